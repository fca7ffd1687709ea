"""The HTTP filter. What is expected was recorded from Envoy 1.40 (tests/differential/test_rbac.py has the rest)."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC

from meshproxy.filters.http import rbac
from meshproxy.http.stream import Stream
from tests.http.harness import Harness, ScriptedUpstream, get, head, parse
from tests.rbac.support import ANY, NEVER, Yaml, policy

DENIED = head("403 Forbidden", ("content-length", "19"), ("content-type", "text/plain"), body="RBAC: access denied")
PASSED = head("200 OK", ("content-length", "0"))
NAMESPACE = "envoy.filters.http.rbac"


def per_filter(**fields: Any) -> Yaml:
    kind = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"
    return {"typed_per_filter_config": {"rbac": {"@type": kind} | ({"rbac": fields} if fields else {})}}


def rules(action: str = "ALLOW", **policies: Yaml) -> Yaml:
    return {"action": action, "policies": policies}


class Log(ScriptedUpstream):
    """Keeps every stream, also of those that never get so far."""

    def on_stream_done(self, stream: Stream) -> None:
        self.streams.append(stream)


class Guarded(Harness):
    """A chain with an rbac filter of this configuration."""

    def __init__(self, override: Yaml | None = None, **config: Any) -> None:
        route = {"match": {"prefix": "/"}, "route": {"cluster": "a"}} | (override or {})
        routes = {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]}
        super().__init__(routes, upstream=Log())
        self.rbac = rbac.build_rbac(parse(config, RBAC()), "f", self.context)
        assert not self.errors, str(self.errors)
        self.add(self.rbac, "rbac")

    @property
    def metadata(self) -> dict[str, Any] | None:
        return self.upstream.streams[-1].info.dynamic_metadata

    def counted(self) -> dict[str, int]:
        """Every stat that is not zero."""
        shown = self.registry.snapshot().counters
        return {name: value for name, value in shown.items() if value and ".rbac." in name}


def test_who_is_allowed_gets_in() -> None:
    made = Guarded(rules=rules(p=policy()))
    assert made.exchange(get()) == PASSED
    assert made.metadata == {NAMESPACE: {"enforced_effective_policy_id": "p", "enforced_engine_result": "allowed"}}
    assert made.counted() == {"http.test.rbac.allowed": 1}


def test_who_is_not_does_not() -> None:
    made = Guarded(rules=rules(p=policy(NEVER)))
    assert made.exchange(get()) == DENIED
    assert made.upstream.seen == []
    assert made.upstream.streams[-1].info.response_code_details == "rbac_access_denied_matched_policy[none]"
    assert made.metadata == {NAMESPACE: {"enforced_engine_result": "denied"}}
    assert made.counted() == {"http.test.rbac.denied": 1}


def test_without_rules_nothing_is_asked_and_nothing_told() -> None:
    made = Guarded()
    assert made.exchange(get()) == PASSED
    assert made.metadata is None
    assert made.counted() == {}


def test_log_lets_pass_and_tells_access_loggers() -> None:
    for permission, hint in ((ANY, True), (NEVER, False)):
        made = Guarded(rules=rules("LOG", p=policy(permission)))
        assert made.exchange(get()) == PASSED
        assert made.metadata is not None
        assert made.metadata["envoy.common"] == {"access_log_hint": hint}


def test_shadow_rules_deny_nobody() -> None:
    made = Guarded(
        rules=rules(p=policy()),
        shadow_rules=rules("DENY", s=policy()),
        rules_stat_prefix="real.",
        shadow_rules_stat_prefix="dry",
        track_per_rule_stats=True,
    )
    assert made.exchange(get()) == PASSED
    assert made.metadata == {
        NAMESPACE: {
            "real.enforced_effective_policy_id": "p",
            "real.enforced_engine_result": "allowed",
            "dryshadow_effective_policy_id": "s",
            "dryshadow_engine_result": "denied",
        }
    }
    assert made.counted() == {
        "http.test.rbac.real.allowed": 1,
        "http.test.rbac.real.policy.p.allowed": 1,
        "http.test.rbac.dry.shadow_denied": 1,
        "http.test.rbac.dry.policy.s.shadow_denied": 1,
    }


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        (None, DENIED),
        (per_filter(), PASSED),
        (per_filter(rules=rules(p=policy())), PASSED),
        (per_filter(rules=rules()), DENIED),
    ],
)
def test_a_route_has_rules_of_its_own_or_none(override: Yaml | None, answer: bytes) -> None:
    assert Guarded(override, rules=rules("DENY", p=policy())).exchange(get()) == answer


def test_rules_of_a_route_have_keys_of_their_own_and_count_for_the_filter() -> None:
    override = per_filter(rules=rules(p=policy()), shadow_rules=rules(), rules_stat_prefix="own_")
    made = Guarded(override, rules_stat_prefix="a.", shadow_rules_stat_prefix="b_")
    assert made.exchange(get()) == PASSED
    assert made.metadata == {
        NAMESPACE: {
            "own_enforced_effective_policy_id": "p",
            "own_enforced_engine_result": "allowed",
            "b_shadow_engine_result": "denied",
        }
    }
    assert made.counted() == {"http.test.rbac.a.allowed": 1, "http.test.rbac.b_.shadow_denied": 1}


def test_what_cannot_be_decided_is_denied() -> None:
    """A DENY that cannot be asked lets nobody in: the stream ends with 500."""
    made = Guarded(rules=rules("DENY", p=policy(principal={"remote_ip": {"address_prefix": "10.9.9.9"}})))
    made.peer = "no-address"
    assert made.exchange(get()).startswith(b"HTTP/1.1 500 ")
    assert made.upstream.seen == []


def test_an_error_in_rules_is_told_of_both() -> None:
    made = Harness()
    bad = rules(p=policy({"url_path": {}}))
    rbac.build_rbac(parse({"rules": bad, "shadow_rules": bad}, RBAC()), "f", made.context)
    assert [error.path for error in made.errors.items] == [
        f"f.{which}.policies[p].permissions[0].url_path.path" for which in ("rules", "shadow_rules")
    ]
