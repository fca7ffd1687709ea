"""The credential_injector filter; tests/differential/test_credential_injector.py compares it with Envoy's."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.http.credential_injector.v3.credential_injector_pb2 import CredentialInjector
from envoy.extensions.http.injected_credentials.oauth2.v3.oauth2_pb2 import OAuth2

from meshproxy.config.fields import check_fields
from meshproxy.config.generic_secret import GenericSecret
from meshproxy.config.secrets import GENERIC, StaticSecret, StaticSecrets
from meshproxy.filters.http import credential_injector
from meshproxy.filters.http.credential_injector import Credential, CredentialInjectorFilter, CredentialInjectorStats
from tests.http.harness import Harness, get, parse

TYPE = "type.googleapis.com/envoy.extensions.http.injected_credentials."


def generic(name: str = "token", **fields: Any) -> dict[str, Any]:
    return {"@type": TYPE + "generic.v3.Generic", "credential": {"name": name}, **fields}


class Injecting(Harness):
    """A chain with the filter, and a secret of the bootstrap, `token`."""

    def __init__(self, value: bytes, credential: dict[str, Any], **fields: Any) -> None:
        super().__init__()
        self.context.static_secrets = StaticSecrets()
        self.context.static_secrets.add(GENERIC, "token", StaticSecret(GenericSecret(value, {}), {}))
        config = {"credential": {"name": "generic", "typed_config": credential}, **fields}
        self.message = parse(config, CredentialInjector())
        self.built = credential_injector.build_credential_injector(self.message, "c", self.context)

    def seen(self, *fields: tuple[str, str]) -> dict[bytes, list[bytes]]:
        """What the upstream gets, but for what is in each request."""
        self.filters = []
        self.add(self.built, "injector")
        self.exchange(get("/", *fields))
        found: dict[bytes, list[bytes]] = {}
        for name, value in self.upstream.seen[-1]:
            if name in (b"authorization", b"x-api-key"):
                found.setdefault(name, []).append(value)
        return found

    def counted(self) -> tuple[int, int, int]:
        stats = self.registry.acquire("http.test.credential_injector.", CredentialInjectorStats)
        return stats.injected, stats.already_exists, stats.failed


def test_requests_get_the_credential() -> None:
    made = Injecting(b"Bearer abc\n", generic())
    assert made.seen() == {b"authorization": [b"Bearer abc"]}
    assert made.counted() == (1, 0, 0)


def test_a_request_keeps_its_own() -> None:
    made = Injecting(b"abc", generic(header="X-Api-Key"))
    assert made.seen(("X-API-Key", "mine")) == {b"x-api-key": [b"mine"]}
    assert made.counted() == (0, 1, 0)


def test_unless_it_is_to_be_overwritten() -> None:
    made = Injecting(b"abc", generic(header="x-api-key"), overwrite=True)
    assert made.seen(("x-api-key", "mine"), ("x-api-key", "too")) == {b"x-api-key": [b"abc"]}
    assert made.counted() == (1, 0, 0)


@pytest.mark.parametrize("is_optional", [False, True])
def test_without_a_secret(is_optional: bool) -> None:
    """The next request has what came meanwhile."""
    made = Harness()
    credential = Credential(b"authorization")
    stats = CredentialInjectorStats()
    made.add(CredentialInjectorFilter(credential, False, is_optional, stats), "injector")
    answer = made.exchange(get())
    if is_optional:
        assert b"authorization" not in dict(made.upstream.seen[0])
    else:
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert answer.endswith(b"Failed to inject credential.")
        assert made.upstream.seen == []
    assert (stats.injected, stats.failed) == (0, 1)
    credential.take(GenericSecret(b"abc", {}))
    made.exchange(get())
    assert dict(made.upstream.seen[-1])[b"authorization"] == b"abc"
    assert (stats.injected, stats.failed) == (1, 1)


@pytest.mark.parametrize("value", [b"a\r\nx-other: b", b"\nabc", b"a\0b", b"a\x7fb"])
def test_what_no_header_can_hold_is_refused(value: bytes) -> None:
    made = Injecting(value, generic())
    assert made.built is None
    (error,) = made.errors.items
    assert error.path == "c.credential.typed_config.credential.name"
    assert error.reason == "has bytes that cannot stand in a header"


@pytest.mark.parametrize("value", [b"", b"\r\n", b"  \t\n"])
def test_an_empty_one_is_refused(value: bytes) -> None:
    made = Injecting(value, generic())
    assert [error.reason for error in made.errors.items] == ["a credential needs a `secret`, and one that is not empty"]


@pytest.mark.parametrize("header", [":path", "Host", "content-length", "transfer-encoding"])
def test_a_credential_says_nothing_about_the_request(header: str) -> None:
    made = Injecting(b"abc", generic(header=header), overwrite=True)
    assert [error.path for error in made.errors.items] == ["c.credential.typed_config.header"]


def test_a_secret_that_is_not_there() -> None:
    made = Injecting(b"abc", generic("nobody"))
    assert [error.path for error in made.errors.items] == ["c.credential.typed_config.credential.name"]


def test_tokens_are_not_fetched() -> None:
    made = Injecting(b"abc", {"@type": f"type.googleapis.com/{OAuth2.DESCRIPTOR.full_name}"})
    check_fields(made.message, "f", made.errors)
    told = {error.path: error.reason for error in made.errors.items}
    assert "f.credential.typed_config" in told
    assert "is not supported as a credential" in told["c.credential.typed_config"]
