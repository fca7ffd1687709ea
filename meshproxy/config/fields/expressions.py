"""Trees of expressions (CEL). What they may ask for and call is the builder's to say: matching/cel/build.py."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables

_EXPR: Final = "google.api.expr.v1alpha1."

EXPRESSION_TABLES: Final[Tables] = {
    "envoy.config.core.v3.CelExpressionConfig": MessageTable(
        "enable_string_conversion enable_string_concat",
        refused={"enable_string_functions": "replace and split are not supported"},
    ),
    _EXPR + "Expr": MessageTable("*", refused={"comprehension_expr": "Comprehension support is disabled, as in Envoy"}),
    _EXPR + "Expr.Ident": MessageTable("*"),
    _EXPR + "Expr.Select": MessageTable("*"),
    _EXPR + "Expr.Call": MessageTable("*"),
    _EXPR + "Expr.CreateList": MessageTable(
        "elements", refused={"optional_indices": "optional values are not supported"}
    ),
    _EXPR + "Expr.CreateStruct": MessageTable(
        "entries", refused={"message_name": "messages cannot be made in expressions"}
    ),
    _EXPR + "Expr.CreateStruct.Entry": MessageTable(
        "id map_key value",
        refused={
            "field_key": "messages cannot be made in expressions",
            "optional_entry": "optional values are not supported",
        },
    ),
    _EXPR + "Constant": MessageTable("*"),
}
