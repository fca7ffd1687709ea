"""xDS matchers: trees of conditions on what a request or a connection has. matching/build.py has the inputs."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables
from meshproxy.matching_inputs import x

_XDS: Final = "xds.type.matcher.v3."
_MATCHER: Final = _XDS + "Matcher"
