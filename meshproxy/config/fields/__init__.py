"""What becomes of each field of Envoy's messages: a table per message, and the walk that they drive."""

from meshproxy.config.fields.check import UNKNOWN_FIELD, NotYet, check_fields, check_steps, register_table
from meshproxy.config.fields.table import MessageTable, Verdict

__all__ = ["UNKNOWN_FIELD", "MessageTable", "NotYet", "Verdict", "check_fields", "check_steps", "register_table"]
