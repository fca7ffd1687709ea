"""Certificates and authorities that are loaded once, and shared by contexts."""

from __future__ import annotations

import gc

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from meshproxy.tls.context import TlsContext
from meshproxy.tls.material import LoadedCertificate, TlsConfigError, at_once, load_authorities
from meshproxy.tls.options import TlsOptions, ValidationOptions
from meshproxy.tls.verify import VERIFY_ERROR
from tests.tls.certificates import Issued, dns, issue, revocation_list, world
from tests.tls.harness import client, identity, pair, server, validation


def serving(loaded: LoadedCertificate, shared: ValidationOptions | None = None) -> TlsContext:
    return TlsContext(
        TlsOptions(
            is_server=True,
            certificates=(loaded,),
            validation=shared,
            require_client_certificate=shared is not None,
        )
    )


def trusting(**more: bytes) -> ValidationOptions:
    return validation(authorities=at_once(load_authorities(validation(**more))), **more)


@pytest.mark.parametrize("who", ["server", "rsa_server"])
def test_certificate_key_and_chain_are_shared(who: str) -> None:
    """With the intermediate certificate, and when what they were loaded into is gone."""
    issued: Issued = getattr(world(), who)
    chain = issued.pem + world().intermediate.pem
    loaded = LoadedCertificate(identity(issued, chain=chain))
    contexts = [serving(loaded) for _ in range(2)]
    del loaded
    gc.collect()
    for context in contexts:
        one, other = pair(context, client())
        assert one.established
        assert other.facts.peer_chain() == [issued.der, world().intermediate.der]


def test_an_encrypted_key() -> None:
    issued = world().server
    given = identity(issued, key=issued.encrypted_key_pem(b"secret"), password=b"secret")
    assert pair(serving(LoadedCertificate(given)), client())[0].established
    with pytest.raises(TlsConfigError) as wrong:
        LoadedCertificate(identity(issued, key=issued.encrypted_key_pem(b"secret"), password=b"guess"))
    assert "guess" not in str(wrong.value)


def test_authorities_and_revocations_are_shared() -> None:
    revoked = revocation_list(world().ca, world().revoked)
    shared = trusting(crl=revoked)
    contexts = [serving(LoadedCertificate(identity(world().server)), shared) for _ in range(2)]
    plain = serving(LoadedCertificate(identity(world().server)), trusting())
    for context in contexts:
        assert pair(context, client(world().client))[0].established
        assert pair(context, client(world().revoked))[0].told.failures == [VERIFY_ERROR]
        assert pair(context, client(world().stranger))[0].told.failures == [VERIFY_ERROR]
    assert pair(plain, client(world().revoked))[0].established


def test_each_context_has_rules_of_its_own() -> None:
    authorities = at_once(load_authorities(validation()))
    lenient = validation(authorities=authorities, ignore_times=True)
    strict = validation(authorities=authorities)
    loaded = LoadedCertificate(identity(world().server))
    assert pair(serving(loaded, lenient), client(world().expired))[0].established
    assert not pair(serving(loaded, strict), client(world().expired))[0].established


def test_weak_keys_are_refused() -> None:
    weak = issue("weak", world().ca, names=dns("a.test"), key=rsa.generate_private_key(65537, 1024))
    with pytest.raises(TlsConfigError, match="2048-bit or larger"):
        LoadedCertificate(identity(weak))


def test_nobody_keeps_the_bytes_of_a_key() -> None:
    """But OpenSSL: neither a context nor what it was made of."""
    context = server()
    assert context.options.certificates == ()
    loaded = LoadedCertificate(identity(world().server))
    kept = [value for value in vars(loaded).values() if isinstance(value, bytes)]
    assert kept == []


@pytest.mark.parametrize("number", [1, 4, 5, 30])
def test_many_authorities_come_bit_by_bit(number: int) -> None:
    """All of them are trusted, however they are cut; what stands between and behind them does not matter."""
    authorities = [issue(f"ca {index}", ca=True) for index in range(number)]
    pem = b"\n".join(b"# the next one\n" + each.pem for each in authorities) + b"\n# the end\n"
    steps = list(load_authorities(validation(trusted_ca=pem)))
    assert len(steps) == -(-number // 4)
    shared = trusting(trusted_ca=pem)
    assert shared.authorities is not None
    assert len(shared.authorities.infos) == number
    context = serving(LoadedCertificate(identity(world().server)), shared)
    for authority in (authorities[0], authorities[-1]):
        assert pair(context, client(issue("client", authority)))[0].established
    assert not pair(context, client(world().client))[0].established


def test_one_bad_authority_among_many() -> None:
    pem = b"".join(issue(f"ca {index}", ca=True).pem for index in range(20))
    broken = pem[: pem.rindex(b"-----END") - 40] + pem[pem.rindex(b"-----END") :]
    with pytest.raises(TlsConfigError, match="Failed to load trusted CA"):
        at_once(load_authorities(validation(trusted_ca=broken)))
