"""Trees of expressions (CEL). What they may ask for and call is the builder's to say: matching/cel/build.py."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables


def _tables(package: str) -> Tables:
    """The messages have one form in both packages that have them."""
    return {
        package + "ParsedExpr": MessageTable("expr", ignored={"source_info": "is for people"}),
        package + "Expr": MessageTable(
            "*", refused={"comprehension_expr": "Comprehension support is disabled, as in Envoy"}
        ),
        package + "Expr.Ident": MessageTable("*"),
        package + "Expr.Select": MessageTable("*"),
        package + "Expr.Call": MessageTable("*"),
        package + "Expr.CreateList": MessageTable(
            "elements", refused={"optional_indices": "optional values are not supported"}
        ),
        package + "Expr.CreateStruct": MessageTable(
            "entries", refused={"message_name": "messages cannot be made in expressions"}
        ),
        package + "Expr.CreateStruct.Entry": MessageTable(
            "id map_key value",
            refused={
                "field_key": "messages cannot be made in expressions",
                "optional_entry": "optional values are not supported",
            },
        ),
        package + "Constant": MessageTable("*"),
    }


EXPRESSION_TABLES: Final[Tables] = {
    **_tables("google.api.expr.v1alpha1."),
    **_tables("cel.expr."),
    "envoy.config.core.v3.CelExpressionConfig": MessageTable(
        "enable_string_conversion enable_string_concat",
        refused={"enable_string_functions": "replace and split are not supported"},
    ),
}
