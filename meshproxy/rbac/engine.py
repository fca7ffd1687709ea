"""Rules at work: policies in their order, the first that matches decides; and what is told of a decision."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.matching.tree import Matcher
from meshproxy.observe.stats import StatsScope
from meshproxy.rbac.access import Access
from meshproxy.rbac.conditions import Condition

_AS_ONE_WORD: Final = str.maketrans(" \t\n\v\f\r", "______")

# RBAC.Action
ALLOW: Final = 0
DENY: Final = 1
LOG: Final = 2

# What access loggers are told (envoy.common: access_log_hint).
NO_HINT: Final = -1
DO_NOT_LOG: Final = 0
DO_LOG: Final = 1

COMMON_NAMESPACE: Final = "envoy.common"
ACCESS_LOG_HINT: Final = "access_log_hint"


class EnforcedStats(StatsScope):
    """Under `<prefix>rbac.<rules_stat_prefix>`; `dynamic` has those of single policies."""

    COUNTERS = ("allowed", "denied")

    def __init__(self) -> None:
        super().__init__()
        self.allowed: int = 0
        self.denied: int = 0

    def tell(self, verdict: Verdict) -> None:
        """Of a decision."""
        if verdict.allowed:
            self.allowed += 1
        else:
            self.denied += 1


class ShadowStats(StatsScope):
    """Under `<prefix>rbac.<shadow_rules_stat_prefix>`; `dynamic` has those of single policies."""

    COUNTERS = ("shadow_allowed", "shadow_denied")

    def __init__(self) -> None:
        super().__init__()
        self.shadow_allowed: int = 0
        self.shadow_denied: int = 0

    def tell(self, verdict: Verdict) -> None:
        """Of what would have been decided."""
        if verdict.allowed:
            self.shadow_allowed += 1
        else:
            self.shadow_denied += 1


class Verdict:
    """What rules say; made with them. `policy` is the one that matched, empty where none did."""

    def __init__(self, allowed: bool, policy: str, log_hint: int) -> None:
        self.allowed = allowed
        self.policy = policy
        self.log_hint = log_hint
        self.result: str = "allowed" if allowed else "denied"

    def details(self) -> str:
        """Of a denial, for logs."""
        return f"rbac_access_denied_matched_policy[{(self.policy or 'none').translate(_AS_ONE_WORD)}]"


_UNMATCHED: Final = Verdict(False, "", NO_HINT)


class Engine:
    """Decides about an access."""

    def evaluate(self, access: Access) -> Verdict:
        raise NotImplementedError


class Policy:
    """Who may do what: `condition` holds where a permission and a principal do. `verdict` is what follows."""

    def __init__(self, condition: Condition, verdict: Verdict) -> None:
        self.condition = condition
        self.verdict = verdict


class PolicyEngine(Engine):
    """`rules`: the first policy that matches, in the order of their names."""

    def __init__(self, policies: list[Policy], otherwise: Verdict) -> None:
        self.policies = policies
        self.otherwise = otherwise

    def evaluate(self, access: Access) -> Verdict:
        for policy in self.policies:
            if policy.condition.holds(access):
                return policy.verdict
        return self.otherwise


class TreeEngine(Engine):
    """`matcher`: what the tree comes to, which is a verdict. What nothing in it matches is denied."""

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher

    def evaluate(self, access: Access) -> Verdict:
        found = self.matcher.match(access)
        return found if isinstance(found, Verdict) else _UNMATCHED


class ResultKeys:
    """Under which names a decision stands in dynamic metadata."""

    def __init__(self, prefix: str) -> None:
        self.policy = prefix + "effective_policy_id"
        self.result = prefix + "engine_result"

    def write(self, fields: dict[str, Any], verdict: Verdict) -> None:
        if verdict.policy:
            fields[self.policy] = verdict.policy
        fields[self.result] = verdict.result


def verdict_of(action: int, policy: str, matched: bool) -> Verdict:
    """What an action makes of a match, or of none. LOG lets everything pass."""
    if action == LOG:
        return Verdict(True, policy, DO_LOG if matched else DO_NOT_LOG)
    return Verdict(matched == (action == ALLOW), policy, NO_HINT)


def tell_loggers(metadata: dict[str, dict[str, Any]], verdict: Verdict) -> None:
    """Leave the hint of a LOG action where access loggers look for it."""
    metadata.setdefault(COMMON_NAMESPACE, {})[ACCESS_LOG_HINT] = verdict.log_hint == DO_LOG
