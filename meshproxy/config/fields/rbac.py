"""Role based access control. Nothing here is among what may be left out (access.py): what it asks for is done, or the
resource is refused."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.expressions import EXPRESSION_TABLES
from meshproxy.config.fields.matchers import MATCHER_TABLES
from meshproxy.config.fields.table import MessageTable, Tables

_RBAC: Final = "envoy.config.rbac.v3."
_HTTP: Final = "envoy.extensions.filters.http.rbac.v3."
_NETWORK: Final = "envoy.extensions.filters.network.rbac.v3."

TABLES: Final[Tables] = {
    _HTTP + "RBAC": MessageTable("*"),
    _HTTP + "RBACPerRoute": MessageTable("rbac"),
    _NETWORK + "RBAC": MessageTable("*"),
    _RBAC + "RBAC": MessageTable(
        "action policies", ignored={"audit_logging_options": "is for gRPC's own servers: Envoy does not look at it"}
    ),
    _RBAC + "Policy": MessageTable(
        "permissions principals condition cel_config",
        refused={"checked_condition": "Envoy takes it and does not look at it: say it in condition"},
    ),
    _RBAC + "Permission": MessageTable(
        "*", refused={"matcher": "upstream addresses are not known when rules are asked (upstream_ip_port)"}
    ),
    _RBAC + "Permission.Set": MessageTable("rules"),
    _RBAC + "Principal": MessageTable("*"),
    _RBAC + "Principal.Set": MessageTable("ids"),
    _RBAC + "Principal.Authenticated": MessageTable("principal_name"),
    _RBAC + "SourcedMetadata": MessageTable("metadata_matcher metadata_source"),
    "envoy.type.matcher.v3.PathMatcher": MessageTable("path"),
    _RBAC + "Action": MessageTable("*"),
    **MATCHER_TABLES,
    **EXPRESSION_TABLES,
    "envoy.extensions.rbac.principals.mtls_authenticated.v3.Config": MessageTable("*"),
}
