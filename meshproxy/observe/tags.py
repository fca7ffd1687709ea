"""Tags in stat names: Envoy's built-in rules, and those of `stats_config.stats_tags`.

`cluster.v1.upstream_rq_200` is the metric `cluster.upstream_rq` with `envoy.cluster_name=v1` and
`envoy.response_code=200`. Every rule looks at the whole original name; what the rules took is cut out at the end.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

# Pieces of the rules below
_VALUE: Final = r"[^\.]+"
_ADDRESS: Final = r"(?:(?:\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[[a-fA-F_\d]+\])_\d+)"
_OWNER: Final = r"(?:listener|cluster)\..*?"

Tag = tuple[str, str]
Extracted = tuple[str, tuple[Tag, ...]]


class TagRule(NamedTuple):
    """`pattern`'s first group is cut out of the name; its second group, where it has one, is the value.

    `start` (up to the first dot) and `contains` say cheaply that a name cannot match; a value of `unless` is no tag.
    """

    tag: str
    pattern: re.Pattern[str]
    start: str = ""
    contains: str = ""
    unless: str = ""


def _regex(tag: str, pattern: str, contains: str = "", unless: str = "") -> TagRule:
    start = re.match(r"\^([a-z_]+)\\\.", pattern)
    return TagRule(tag, re.compile(pattern), start[1] if start else "", contains, unless)


def _tokens(tag: str, pattern: str) -> TagRule:
    """Envoy's tokenized rules: `*` is one token, `$` the one that is the value, `**` any number of them."""
    regex = ""
    tokens = pattern.split(".")
    for index, token in enumerate(tokens):
        dot = r"\." if index else ""
        if token == "$":
            regex += dot + rf"(({_VALUE})\.?)" if index + 1 < len(tokens) else rf"(\.({_VALUE}))"
        elif token == "**":
            regex += rf"(?:{_VALUE}(?:\.|$))*"
        else:
            after_cut = index > 0 and tokens[index - 1] in {"$", "**"}
            regex += ("" if after_cut else dot) + (_VALUE if token == "*" else re.escape(token))
            if index + 1 < len(tokens) and tokens[index + 1] == "**":
                regex += r"\."
    start = "" if tokens[0] in {"$", "*"} else tokens[0]
    contains = next((f".{token}." for token in tokens[1:] if token not in {"$", "*", "**"}), "")
    return TagRule(tag, re.compile(f"^{regex}$"), start, contains)


DEFAULT_RULES: Final[tuple[TagRule, ...]] = (
    _regex("envoy.response_code", r"_rq(_(\d{3}))$", "_rq_"),
    _regex("envoy.response_code_class", r"_rq_((\d))xx$", "_rq_"),
    _regex(
        "envoy.dynamo_partition_id",
        rf"^http\.{_VALUE}\.dynamodb\.table\.{_VALUE}\.capacity\.{_VALUE}(\.__partition_id=(\w{{7}}))$",
        ".dynamodb.table.",
    ),
    _regex(
        "envoy.dynamo_operation",
        rf"^http\.{_VALUE}\.dynamodb.(?:operation|table\.{_VALUE}\.capacity)(\.({_VALUE}))(?:\.|$)",
        ".dynamodb.",
    ),
    _tokens("envoy.mongo_callsite", "mongo.*.collection.*.callsite.$.query.**"),
    _regex("envoy.dynamo_table", rf"^http\.{_VALUE}\.dynamodb.(?:table|error)\.(({_VALUE})\.)", ".dynamodb."),
    _tokens("envoy.mongo_collection", "mongo.*.collection.$.**.query.*"),
    _tokens("envoy.mongo_cmd", "mongo.*.cmd.$.**"),
    _tokens("envoy.grpc_bridge_method", "cluster.*.grpc.*.$.**"),
    _tokens("envoy.http_user_agent", "http.*.user_agent.$.**"),
    _tokens("envoy.virtual_cluster", "vhost.*.vcluster.$.**"),
    _tokens("envoy.fault_downstream_cluster", "http.*.fault.$.**"),
    _regex("envoy.ssl_cipher", r"^listener\..*?\.ssl\.ciphers(\.([\w-]+))$", ".ssl.ciphers."),
    _regex("envoy.ssl_curve", rf"^{_OWNER}\.ssl\.curves(\.([\w-]+))$", ".ssl.curves."),
    _regex("envoy.ssl_sigalg", rf"^{_OWNER}\.ssl\.sigalgs(\.([\w-]+))$", ".ssl.sigalgs."),
    _regex("envoy.ssl_version", rf"^{_OWNER}\.ssl\.versions(\.(TLSv\d\.\d))$", ".ssl.versions."),
    _regex("cipher_suite", rf"^cluster\.{_VALUE}\.ssl\.ciphers(\.([\w-]+))$", ".ssl.ciphers."),
    _tokens("envoy.grpc_bridge_service", "cluster.*.grpc.$.**"),
    _tokens("envoy.tcp_prefix", "tcp.$.**"),
    _tokens("envoy.udp_prefix", "udp.$.**"),
    _tokens("envoy.clientssl_prefix", "auth.clientssl.$.**"),
    _tokens("envoy.ratelimit_prefix", "ratelimit.$.**"),
    _tokens("envoy.cluster_name", "cluster.$.**"),
    _regex("envoy.http_conn_manager_prefix", rf"^listener\..*?\.http\.(({_VALUE})\.)", ".http."),
    _tokens("envoy.ext_authz_prefix", "cluster.*.ext_authz.$.**"),
    _tokens("envoy.ext_authz_prefix", "http.*.ext_authz.$.**"),
    _tokens("envoy.http_conn_manager_prefix", "http.$.**"),
    _regex(
        "envoy.worker_id",
        rf"^(?:listener\.(?:{_ADDRESS}|{_VALUE})|server|listener_manager|thread_local_cluster_manager)\.worker_((\d+)\.)",
        ".worker_",
    ),
    _regex("envoy.listener_address", rf"^listener\.(({_ADDRESS}|{_VALUE})\.)", "", "admin"),
    _tokens("envoy.virtual_host", "vhost.$.**"),
    _tokens("envoy.mongo_prefix", "mongo.$.**"),
    _regex("envoy.rds_route_config", rf"^http\.{_VALUE}\.rds\.(([\w\-\./]+)\.)\w+?$", ".rds."),
    _regex("envoy.scoped_rds_config", rf"^http\.{_VALUE}\.scoped_rds\.(([\w\-\.]+)\.)\w+?$", ".scoped_rds."),
    _tokens("envoy.route", "vhost.*.route.$.**"),
    _tokens("envoy.thrift_prefix", "thrift.$.**"),
    _tokens("envoy.redis_prefix", "redis.$.**"),
    _tokens("envoy.local_http_ratelimit_prefix", "$.http_local_rate_limit.**"),
    _tokens("envoy.local_network_ratelimit_prefix", "local_rate_limit.$.**"),
    _tokens("envoy.local_listener_ratelimit_prefix", "listener_local_ratelimit.$.**"),
    _tokens("envoy.dns_filter_prefix", "dns_filter.$.**"),
    _tokens("envoy.connection_limit_prefix", "connection_limit.$.**"),
    _regex(
        "envoy.rbac_policy_name",
        rf"^http\.{_VALUE}\.rbac\.(?:{_VALUE}\.)?policy\.(({_VALUE})\.)(?:allowed|shadow_allowed|denied|shadow_denied)$",
        ".rbac.",
    ),
    _tokens("envoy.rbac_prefix", "$.rbac.**"),
    _regex("envoy.rbac_http_prefix", rf"^http\.{_VALUE}\.rbac\.(({_VALUE})\.).*?", ".rbac.", "policy"),
    _regex("envoy.proxy_protocol_prefix", rf"^proxy_proto\.(({_VALUE})\.).+$", "", "versions"),
    _regex("envoy.proxy_protocol_version", rf"^proxy_proto\.((?:{_VALUE}\.)?versions\.v(\d)\.)\w+$"),
    _tokens("envoy.google_grpc_client_prefix", "grpc.$.**"),
    _regex("envoy.tls_certificate", rf"^{_OWNER}\.ssl\.certificate\.(({_VALUE})\.).*$", ".ssl.certificate"),
    _regex("envoy.xds_resource_name", rf"^sds\.(({_VALUE})\.).+"),
)


class TagExtractor:
    """Names to (metric, tags)."""

    def __init__(self, rules: tuple[TagRule, ...] = DEFAULT_RULES, fixed: tuple[Tag, ...] = ()) -> None:
        self._fixed = fixed
        self._anywhere = [(order, rule) for order, rule in enumerate(rules) if not rule.start]
        self._by_start: dict[str, list[tuple[int, TagRule]]] = {}
        for order, rule in enumerate(rules):
            if rule.start:
                self._by_start.setdefault(rule.start, []).append((order, rule))

    def extract(self, name: str) -> Extracted:
        """The name without its tags, and the tags in the order of the rules."""
        rules = sorted(self._by_start.get(name.partition(".")[0], []) + self._anywhere, key=lambda entry: entry[0])
        tags: list[Tag] = list(self._fixed)
        cuts: list[tuple[int, int]] = []
        for _, rule in rules:
            if rule.contains and rule.contains not in name:
                continue
            match = rule.pattern.search(name)
            if match is None or any(tag[0] == rule.tag for tag in tags):
                continue
            value = match[2] if match.re.groups > 1 else match[1]
            if value is None or (rule.unless and value == rule.unless):
                continue
            tags.append((rule.tag, value))
            cuts.append(match.span(1))
        return _cut(name, cuts), tuple(tags)


def _cut(name: str, cuts: list[tuple[int, int]]) -> str:
    kept = ""
    position = 0
    for begin, end in sorted(cuts):
        kept += name[position:begin] if begin > position else ""
        position = max(position, end)
    return kept + name[position:]
