"""What is stored: whole and by one who knows the passphrase, or refused."""

from __future__ import annotations

import json

import pytest

from meshproxy.pilot.authority.keys import Seal
from meshproxy.pilot.authority.settings import AuthorityError
from meshproxy.pilot.authority.state import (
    MAX_REVOKED,
    PREPARED,
    RETIRING,
    SIGNING,
    TRUSTED,
    Issuer,
    Revoked,
    State,
    changes,
    salt_of,
    seal_state,
    unseal_state,
)
from tests.pilot.authority.support import PASSPHRASE

FULL = State(
    "cluster.local",
    (
        Issuer("b", SIGNING, 2.0, b"key b", b"chain b"),
        Issuer("a", RETIRING, 1.0, b"key a", b"chain a"),
        Issuer("c", PREPARED, 3.0, b"key c"),
    ),
    (Revoked((1 << 127) + 1, "a", 4.0, 5.0),),
    ("spiffe://cluster.local/ns/a/sa/b",),
    6,
    7,
)


@pytest.fixture(scope="module")
def seal() -> Seal:
    return Seal(PASSPHRASE)


def test_a_state_comes_back_as_it_was(seal: Seal) -> None:
    text = seal_state(FULL, seal)
    assert salt_of(text, "here") == seal.salt
    assert unseal_state(text, Seal(PASSPHRASE, seal.salt), "here") == FULL


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("state", "trust_domain"), "evil.example"),
        (("state", "issuers", 0, "chain"), "another root"),
        (("state", "issuers", 0, "phase"), TRUSTED),
        (("state", "revoked"), []),
        (("state", "version"), 8),
        (("state", "more"), 1),
        (("mac",), "00"),
        (("mac",), None),
    ],
)
def test_what_was_changed_without_the_passphrase_is_refused(
    seal: Seal, path: tuple[str | int, ...], value: object
) -> None:
    document = json.loads(seal_state(FULL, seal))
    found = document
    for each in path[:-1]:
        found = found[each]
    found[path[-1]] = value
    with pytest.raises(AuthorityError, match=r"^here: the passphrase is another one, or the content was changed$"):
        unseal_state(json.dumps(document).encode(), seal, "here")


def test_another_passphrase_is_told_from_damage(seal: Seal) -> None:
    with pytest.raises(AuthorityError, match=r"^here: the passphrase is another one"):
        unseal_state(seal_state(FULL, seal), Seal(b"another passphrase", seal.salt), "here")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b'{"meshproxy_authority": 2}', b"[" * 100_000])
def test_damage_names_the_file(seal: Seal, text: bytes) -> None:
    for read in (lambda: unseal_state(text, seal, "here"), lambda: salt_of(text, "here")):
        with pytest.raises(AuthorityError, match=r"^here: is "):
            read()


@pytest.mark.parametrize("salt", [None, 7, "xyz"])
def test_a_damaged_salt_is_told(seal: Seal, salt: object) -> None:
    document = json.loads(seal_state(FULL, seal)) | {"salt": salt}
    with pytest.raises(AuthorityError, match=r"^here: is damaged"):
        salt_of(json.dumps(document).encode(), "here")


def test_who_is_trusted_and_who_signs() -> None:
    assert [each.name for each in FULL.trusted] == ["a", "b"]
    assert FULL.signing is FULL.issuers[0]
    assert State("x").signing is None


def test_a_forgotten_issuer_takes_what_it_had_revoked_along() -> None:
    left = FULL.without_issuer("a")
    assert [each.name for each in left.issuers] == ["b", "c"]
    assert left.revoked == ()


def test_what_is_revoked_twice_stands_once_and_makes_no_new_list() -> None:
    assert FULL.with_revoked(FULL.revoked) == FULL
    more = FULL.with_revoked([Revoked(9, "b", 1.0, 2.0)])
    assert [each.serial for each in more.revoked] == [FULL.revoked[0].serial, 9]
    assert more.crl_number == FULL.crl_number + 1


def test_a_list_of_the_revoked_is_bounded() -> None:
    many = [Revoked(serial, "b", 1.0, 2.0) for serial in range(1, MAX_REVOKED + 1)]
    with pytest.raises(AuthorityError, match="rotate the root instead"):
        FULL.with_revoked(many)


def test_the_audit_is_told_of_each_change() -> None:
    after = State("cluster.local", (Issuer("b", RETIRING, 9.0, b"", b""), Issuer("d", SIGNING, 9.0, b"", b"")))
    after = after.with_revoked([Revoked(255, "b", 1.0, 2.0)])
    assert changes(FULL, after) == [
        ("issuer_retiring", {"issuer": "b"}),
        ("issuer_signing", {"issuer": "d"}),
        ("issuer_forgotten", {"issuer": "a"}),
        ("issuer_forgotten", {"issuer": "c"}),
        ("revoked", {"serial": "ff", "issuer": "b"}),
        ("readmitted", {"identity": "spiffe://cluster.local/ns/a/sa/b"}),
    ]
