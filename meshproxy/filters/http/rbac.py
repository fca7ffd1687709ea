"""`envoy.filters.http.rbac`: lets requests pass that its rules allow, and answers 403 to the others.

Shadow rules are only counted, and told in dynamic metadata, beside what is enforced. A route may have rules of its own,
or none; they count under the filter's stats.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC, RBACPerRoute

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.http.filter import CONTINUE, STOP, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.stream import Stream
from meshproxy.observe.stats import StatsScope
from meshproxy.observe.stream_info import shared_metadata
from meshproxy.rbac.access import Access
from meshproxy.rbac.build import build_engine, rbac_scope
from meshproxy.rbac.engine import (
    NO_HINT,
    EnforcedStats,
    Engine,
    ResultKeys,
    ShadowStats,
    Verdict,
    tell_loggers,
)
from meshproxy.route.route import Route

_NAMESPACE: Final = "envoy.filters.http.rbac"


class HttpRules:
    """An RBAC, of the filter or of a route. Keys are None where a route leaves them to the filter."""

    def __init__(self) -> None:
        self.enforced: Engine | None = None
        self.shadow: Engine | None = None
        self.enforced_keys: ResultKeys | None = None
        self.shadow_keys: ResultKeys | None = None
        self.counts_policies: bool = False


class RbacFilter(HttpFilter):
    def __init__(
        self,
        rules: HttpRules,
        enforced_keys: ResultKeys,
        shadow_keys: ResultKeys,
        enforced_stats: EnforcedStats,
        shadow_stats: ShadowStats,
    ) -> None:
        self.rules = rules
        self.enforced_keys = enforced_keys
        self.shadow_keys = shadow_keys
        self.enforced_stats = enforced_stats
        self.shadow_stats = shadow_stats

    def rules_for(self, route: Route | None) -> HttpRules:
        """Those of the route, where it has some."""
        if route is not None and route.filter_configs:
            override = route.filter_configs.get(self.name)
            if isinstance(override, HttpRules):
                return override
        return self.rules

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        rules = self.rules_for(stream.current_route())
        if rules.enforced is None and rules.shadow is None:
            return CONTINUE
        access = Access(headers, stream.info)
        shadow = None if rules.shadow is None else rules.shadow.evaluate(access)
        enforced = None if rules.enforced is None else rules.enforced.evaluate(access)
        fields = shared_metadata(stream.info).setdefault(_NAMESPACE, {})
        if shadow is not None:
            (rules.shadow_keys or self.shadow_keys).write(fields, shadow)
            self.shadow_stats.tell(shadow)
            if rules.counts_policies:
                count_policy(self.shadow_stats, shadow, "shadow_")
        if enforced is None:
            return CONTINUE
        (rules.enforced_keys or self.enforced_keys).write(fields, enforced)
        self.enforced_stats.tell(enforced)
        if rules.counts_policies:
            count_policy(self.enforced_stats, enforced, "")
        if enforced.log_hint != NO_HINT:
            tell_loggers(shared_metadata(stream.info), enforced)
        if enforced.allowed:
            return CONTINUE
        stream.send_local_reply(403, b"RBAC: access denied", enforced.details(), 0)
        return STOP


def count_policy(stats: StatsScope, verdict: Verdict, kind: str) -> None:
    """`track_per_rule_stats`: nothing where no policy matched."""
    if verdict.policy:
        stats.count(f"policy.{verdict.policy}.{kind}{verdict.result}")


def build_rules(message: Any, path: str, context: BuildContext) -> HttpRules:
    rules = HttpRules()
    rules.enforced = build_engine(message, "rules", path, context, http=True)
    rules.shadow = build_engine(message, "shadow_rules", path, context, http=True)
    rules.counts_policies = message.track_per_rule_stats
    return rules


def build_rbac(message: Any, path: str, context: BuildContext) -> RbacFilter:
    enforced, shadow = message.rules_stat_prefix, message.shadow_rules_stat_prefix
    return RbacFilter(
        build_rules(message, path, context),
        ResultKeys(f"{enforced}enforced_"),
        ResultKeys(f"{shadow}shadow_"),
        context.scope(rbac_scope(context.stat_prefix, enforced), EnforcedStats),
        context.scope(rbac_scope(context.stat_prefix, shadow), ShadowStats),
    )


def build_per_route(message: Any, path: str, context: BuildContext) -> HttpRules:
    """Without `rbac` nothing is asked."""
    own = message.rbac
    rules = build_rules(own, child(path, "rbac"), context)
    if own.rules_stat_prefix:
        rules.enforced_keys = ResultKeys(f"{own.rules_stat_prefix}enforced_")
    if own.shadow_rules_stat_prefix:
        rules.shadow_keys = ResultKeys(f"{own.shadow_rules_stat_prefix}shadow_")
    return rules


register_http_filter(RBAC, HttpFilterType(build_rbac, RBACPerRoute, build_per_route))
