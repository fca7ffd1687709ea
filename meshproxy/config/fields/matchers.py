"""xDS matchers: trees of conditions on what a request or a connection has. matching/build.py says which inputs."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables

_XDS: Final = "xds.type.matcher.v3."
_MATCHER: Final = _XDS + "Matcher"
_LIST: Final = _MATCHER + ".MatcherList"
_NETWORK: Final = "envoy.extensions.matching.common_inputs.network.v3."
_SSL: Final = "envoy.extensions.matching.common_inputs.ssl.v3."
_INPUTS: Final = (
    _NETWORK + "SourceIPInput",
    _NETWORK + "SourcePortInput",
    _NETWORK + "DirectSourceIPInput",
    _NETWORK + "DestinationIPInput",
    _NETWORK + "DestinationPortInput",
    _NETWORK + "ServerNameInput",
    _SSL + "UriSanInput",
    _SSL + "DnsSanInput",
    _SSL + "SubjectInput",
    _XDS + "HttpAttributesCelMatchInput",
    "envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
)
_CHECKED: Final = "give the parsed expression: types are not looked at"

MATCHER_TABLES: Final[Tables] = {
    **{name: MessageTable("*") for name in _INPUTS},
    "xds.core.v3.TypedExtensionConfig": MessageTable("name typed_config"),
    _MATCHER: MessageTable("*"),
    _MATCHER + ".OnMatch": MessageTable("matcher action", refused={"keep_matching": "is not supported"}),
    _LIST: MessageTable("*"),
    _LIST + ".FieldMatcher": MessageTable("*"),
    _LIST + ".Predicate": MessageTable("*"),
    _LIST + ".Predicate.PredicateList": MessageTable("*"),
    _LIST + ".Predicate.SinglePredicate": MessageTable("*"),
    _MATCHER + ".MatcherTree": MessageTable("*"),
    _XDS + "IPMatcher": MessageTable("*"),
    _XDS + "IPMatcher.IPRangeMatcher": MessageTable("*"),
    "xds.core.v3.CidrRange": MessageTable("*"),
    _MATCHER + ".MatcherTree.MatchMap": MessageTable("*"),
    _XDS + "StringMatcher": MessageTable(
        "exact prefix suffix contains safe_regex ignore_case",
        refused={"custom": "custom string matchers are not supported"},
    ),
    _XDS + "RegexMatcher": MessageTable("*"),
    _XDS + "RegexMatcher.GoogleRE2": MessageTable("*"),
    _XDS + "CelMatcher": MessageTable("expr_match", ignored={"description": "is for people"}),
    "xds.type.v3.CelExpression": MessageTable(
        "parsed_expr cel_expr_parsed",
        refused={
            "checked_expr cel_expr_checked": _CHECKED,
            "cel_expr_string": "give the parsed expression: text is not parsed",
        },
    ),
}
