"""Keys are locked by the passphrase, and never told."""

from __future__ import annotations

import pytest

from meshproxy.pilot.authority.keys import Seal, make_key, public_der
from meshproxy.pilot.authority.settings import KEY_TYPES, AuthorityError
from tests.pilot.authority.support import PASSPHRASE, openssl


@pytest.fixture(scope="module")
def seal() -> Seal:
    return Seal(PASSPHRASE)


@pytest.mark.parametrize("kind", KEY_TYPES)
def test_a_locked_key_is_encrypted_and_comes_back(seal: Seal, kind: str) -> None:
    key = make_key(kind)
    locked = seal.lock(key)
    assert locked.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert public_der(seal.unlock(locked)) == public_der(key)


def test_openssl_cannot_read_a_locked_key_with_any_other_words(seal: Seal) -> None:
    code, said = openssl("pkey", "-passin", "pass:correct horse battery staple", data=seal.lock(make_key("P-256")))
    assert code != 0
    assert "PRIVATE KEY" not in said


def test_the_same_words_with_another_salt_unlock_nothing(seal: Seal) -> None:
    locked = seal.lock(make_key("P-256"))
    Seal(PASSPHRASE, seal.salt).unlock(locked)
    for other in (Seal(PASSPHRASE), Seal(b"another passphrase", seal.salt)):
        with pytest.raises(AuthorityError, match="cannot be decrypted"):
            other.unlock(locked)


def test_a_proof_is_of_the_content_and_the_words(seal: Seal) -> None:
    mac = seal.mac(b"content")
    assert seal.proves(b"content", mac)
    assert not seal.proves(b"Content", mac)
    assert not Seal(b"another passphrase", seal.salt).proves(b"content", mac)
    assert not seal.proves(b"content", "ä")


def test_a_short_passphrase_is_refused_without_being_told() -> None:
    with pytest.raises(AuthorityError, match="less than 16 bytes") as error:
        Seal(b"hunter2")
    assert "hunter2" not in str(error.value)


def test_a_seal_does_not_show_what_it_holds(seal: Seal) -> None:
    assert repr(seal) == "Seal(…)"
