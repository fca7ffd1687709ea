"""What rules know of a peer, and what a condition costs nobody to get wrong: names, addresses, paths."""

from __future__ import annotations

import pytest

from meshproxy.rbac.access import REMOTE, SOURCE, principal_names, without_query
from meshproxy.tls.x509 import DNS, EMAIL, URI, DerError
from tests.rbac.support import CLIENT, NEVER, Asker, Peer, Unreadable, build, holds, policy


def test_names_come_in_their_order_and_are_read_once() -> None:
    peer = Peer(((DNS, "a.test"), (EMAIL, "x@a.test"), (URI, "spiffe://b"), (URI, "spiffe://ä")), "CN=é")
    connection = Asker(tls=peer).access().connection
    expected = [b"spiffe://b", "spiffe://ä".encode("latin-1"), b"a.test", "CN=é".encode()]
    assert principal_names(connection) == expected
    assert principal_names(connection) is connection.principal_names


def test_a_certificate_that_cannot_be_read_lets_nobody_past() -> None:
    """Neither into an ALLOW nor past a DENY."""
    for action in ("ALLOW", "DENY"):
        named = policy(principal={"authenticated": {"principal_name": {"exact": "spiffe://bad"}}})
        engine = build({"action": action, "policies": {"p": named}})
        with pytest.raises(DerError):
            engine.evaluate(Asker(tls=Unreadable()).access())


def test_an_address_that_is_none_lets_nobody_past() -> None:
    engine = build({"action": "DENY", "policies": {"p": policy(principal={"remote_ip": {"address_prefix": "::"}})}})
    with pytest.raises(OSError, match="illegal IP address"):
        engine.evaluate(Asker(remote="not-an-address").access())


def test_addresses_are_read_once() -> None:
    access = Asker(source="10.0.0.1", remote="fe80::1%eth0").access()
    assert access.ip(SOURCE) is access.ip(SOURCE)
    assert (access.ip(SOURCE).version, access.ip(SOURCE).number) == (4, 0x0A000001)
    assert (access.ip(REMOTE).version, access.ip(REMOTE).number) == (6, (0xFE80 << 112) + 1)


@pytest.mark.parametrize(
    ("target", "path"), [(b"/a", b"/a"), (b"/a?b#c", b"/a"), (b"/a#b?c", b"/a"), (b"?", b""), (b"", b"")]
)
def test_the_query_is_no_part_of_a_path(target: bytes, path: bytes) -> None:
    assert without_query(target) == path


@pytest.mark.parametrize("peer", [None, CLIENT, Peer(CLIENT.names, validated=False)])
def test_the_identity_that_filters_see_is_validated(peer: Peer | None) -> None:
    uris = Asker(tls=peer).access().connection.peer_uris
    assert uris == (["spiffe://mesh/ns/a/sa/b"] if peer is CLIENT else [])


def test_filter_state_of_the_connection_is_the_streams_too() -> None:
    principal = {"filter_state": {"key": "k", "string_match": {"exact": "v"}}}
    assert holds(Asker(connection_state={"k": "v"}), principal=principal)
    assert holds(Asker(state={"k": "v"}, connection_state={"k": "other"}), principal=principal)
    assert not holds(Asker(state={"k": "other"}, connection_state={"k": "v"}), principal=principal)


@pytest.mark.parametrize(
    ("policies", "decides"),
    [
        ({"b": policy(), "a": policy()}, "a"),
        ({"b": policy(), "a": policy(NEVER)}, "b"),
        ({"a": policy(), "B": policy()}, "B"),
        ({"z": policy(), "é": policy()}, "z"),
        ({}, ""),
    ],
)
def test_the_first_policy_by_the_bytes_of_its_name(policies: dict[str, dict[str, object]], decides: str) -> None:
    assert build({"policies": policies}).evaluate(Asker().access()).policy == decides


@pytest.mark.parametrize(
    ("name", "told"), [("a b", "a_b"), ("a\t\n\v\f\rb", "a_____b"), ("ns[a]-policy[b]", "ns[a]-policy[b]")]
)
def test_details_are_one_word(name: str, told: str) -> None:
    verdict = build({"action": "DENY", "policies": {name: policy()}}).evaluate(Asker().access())
    assert verdict.details() == f"rbac_access_denied_matched_policy[{told}]"


def test_details_where_no_policy_matched() -> None:
    assert build({}).evaluate(Asker().access()).details() == "rbac_access_denied_matched_policy[none]"
