"""What becomes of each field of Envoy's messages: a table per message, and the walk that they drive."""

from meshproxy.config.fields.check import NotYet, check_fields, register_table
from meshproxy.config.fields.table import MessageTable, Verdict

__all__ = ["MessageTable", "NotYet", "Verdict", "check_fields", "register_table"]
