"""Generic secrets, and the filters that refer to them by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from google.protobuf import json_format

from meshproxy.config.context import BuildContext, Services
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.filter_secret import FilterSecret, refer_to_secret
from meshproxy.config.generic_secret import GenericSecret
from meshproxy.config.runtime import Runtime
from meshproxy.config.secrets import build_static_secrets
from meshproxy.config.subscription import SECRET_TYPE, InitManager
from meshproxy.observe.stats import StatsRegistry
from tests.support.subscriptions import FakeSubscriptions

Yaml = dict[str, Any]
SENTINEL = "no one may read this"


def generic(value: str = "", **values: str) -> Yaml:
    held: Yaml = {"secret": {"inline_string": value}} if value else {}
    return {"generic_secret": held | {"secrets": {key: {"inline_string": each} for key, each in values.items()}}}


def secret(name: str, held: Yaml) -> Any:
    return json_format.ParseDict({"name": name} | held, secret_pb2.Secret())


def ads(name: str = "token") -> Yaml:
    return {"name": name, "sds_config": {"ads": {}, "resource_api_version": "V3"}}


class World:
    """A process, of which a filter is built."""

    def __init__(self, *static: Any) -> None:
        self.subscriptions = FakeSubscriptions()
        self.context = BuildContext(ConfigErrors(), Runtime(), StatsRegistry())
        self.context.services = Services(None, None, None, self.subscriptions)  # type: ignore[arg-type]
        bootstrap = bootstrap_pb2.Bootstrap()
        bootstrap.static_resources.secrets.extend(static)
        steps = build_static_secrets(bootstrap.static_resources.secrets, "static_resources", self.context)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                self.context.static_secrets = end.value
                break

    def refer(self, message: Yaml, into: FilterSecret) -> bool:
        """For a filter that is built now."""
        return refer_to_secret(json_format.ParseDict(message, secret_pb2.SdsSecretConfig()), "f", self.context, into)

    def warm(self) -> list[str]:
        told: list[str] = []
        InitManager(self.context.init_targets).start(lambda: told.append("ready"))
        return told

    def errors(self) -> list[tuple[str, str]]:
        return [(each.path, each.reason) for each in self.context.errors.items]

    def deliver(self, held: Yaml, name: str = "token") -> list[tuple[str, str]]:
        errors = self.subscriptions.deliver(SECRET_TYPE, name, secret(name, held))
        return [(each.path, each.reason) for each in errors.items]


def values_of(into: FilterSecret) -> tuple[bytes, dict[str, bytes]]:
    assert into.current is not None
    return into.current.value, into.current.values


def test_one_of_the_bootstrap_is_there_at_once() -> None:
    w = World(secret("token", generic("abc", user="ann", password="x")))
    into = FilterSecret()
    assert w.refer({"name": "token"}, into)
    assert values_of(into) == (b"abc", {"user": b"ann", "password": b"x"})
    assert w.warm() == ["ready"]


def test_one_of_a_control_plane_is_waited_for_and_changes() -> None:
    w = World()
    told: list[bytes] = []
    into = FilterSecret(on_change=lambda now: told.append(now.value))
    assert w.refer(ads(), into)
    warm = w.warm()
    assert (warm, into.current) == ([], None)
    assert w.deliver(generic("one")) == []
    assert warm == ["ready"]
    assert w.deliver(generic("two")) == []
    assert told == [b"one", b"two"]
    w.subscriptions.miss(SECRET_TYPE, "token")
    assert values_of(into) == (b"two", {})


def test_one_that_does_not_come_ends_the_waiting() -> None:
    w = World()
    into = FilterSecret()
    w.refer(ads(), into)
    warm = w.warm()
    w.subscriptions.miss(SECRET_TYPE, "token")
    assert (warm, into.current) == (["ready"], None)


@pytest.mark.parametrize(
    ("held", "problem"),
    [
        ({"generic_secret": {}}, ("generic_secret", "is empty")),
        ({"generic_secret": {"secret": {"inline_string": ""}}}, ("generic_secret.secret", "is empty")),
        (
            {"generic_secret": {"secrets": {"a": {"inline_bytes": ""}}}},
            ("generic_secret.secrets[a]", "is empty"),
        ),
        ({"validation_context": {}}, ("validation_context", "a generic_secret is what is asked for")),
        (generic("x" * (1024 * 1024 + 1)), ("generic_secret.secret.inline_string", "longer than")),
    ],
    ids=["nothing", "empty", "empty_value", "other_kind", "huge"],
)
def test_a_bad_one_is_refused_and_the_one_before_stays(held: Yaml, problem: tuple[str, str]) -> None:
    w = World()
    into = FilterSecret()
    w.refer(ads(), into)
    w.warm()
    w.deliver(generic("good"))
    (found,) = w.deliver(held)
    assert found[0] == problem[0]
    assert problem[1] in found[1]
    assert values_of(into) == (b"good", {})


def test_what_the_filter_cannot_use_is_refused_without_telling_what_it_is() -> None:
    w = World(secret("token", generic(SENTINEL)))

    def unusable(found: GenericSecret) -> str:
        return "no good" if found.value == SENTINEL.encode() else ""

    assert not w.refer({"name": "token"}, FilterSecret(unusable))
    assert w.errors() == [("f.name", "no good")]
    into = FilterSecret(unusable)
    assert w.refer(ads("other"), into)
    w.warm()
    assert w.deliver(generic(SENTINEL), "other") == [("generic_secret", "no good")]
    assert into.current is None


def test_names_that_are_not_there() -> None:
    w = World(secret("empty", {"generic_secret": {}}), secret("ca", {"validation_context": {}}))
    assert not any(w.refer({"name": name}, FilterSecret()) for name in ("ca", "empty", "nobody"))
    assert w.errors() == [
        ("static_resources.secrets[0].generic_secret", "is empty"),
        ("f.name", "no generic_secret of this name stands in static_resources.secrets"),
        ("f.name", "this secret of static_resources.secrets is no good"),
        ("f.name", "no generic_secret of this name stands in static_resources.secrets"),
    ]


def test_a_configuration_that_is_not_in_force_yet_changes_nothing() -> None:
    """A filter that both have goes on with what the one in force says."""
    into = FilterSecret()
    World(secret("token", generic("old"))).refer({"name": "token"}, into)
    newer = World(secret("token", generic("new")))
    newer.refer({"name": "token"}, into)
    assert values_of(into)[0] == b"old"
    newer.context.take_effect()
    assert values_of(into)[0] == b"new"


def test_a_file_that_it_is_read_of(tmp_path: Path) -> None:
    """The resource is built anew when the file changes: it stands among those that it goes by."""
    held = tmp_path / "token"
    held.write_bytes(b"abc")
    w = World(secret("token", {"generic_secret": {"secret": {"filename": str(held)}}}))
    into = FilterSecret()
    assert w.refer({"name": "token"}, into)
    assert values_of(into)[0] == b"abc"
    assert list(w.context.files) == [str(held)]
