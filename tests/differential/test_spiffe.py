"""SPIFFE's validator of certificates (`envoy.tls.cert_validator.spiffe`), the real Envoy and meshproxy on one
configuration: who is taken for a member of which trust domain, on either side."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.differential.pair import SUBJECT_IS_ENVOY
from tests.differential.test_secrets import Files, Sides, flat, server
from tests.differential.tls import (
    TLS,
    Client,
    TlsChain,
    TlsCluster,
    TlsListener,
    TlsSide,
    Upstream,
    World,
    client_tls,
    inline,
    server_tls,
)
from tests.differential.topic import Yaml
from tests.support.proxy import envoy_binary, start_envoy, start_meshproxy
from tests.tls.certificates import Issued, issue, key_usage, revocation_list, uri, world

CA_A, CA_B = issue("a", ca=True), issue("b", ca=True)
BETWEEN = issue("between", CA_A, ca=True)
SIGNS = key_usage(signs=True)


@dataclass(frozen=True)
class WithIntermediate(Issued):
    """Presented together with who signed it."""

    @property
    def pem(self) -> bytes:
        return super().pem + BETWEEN.pem


def member(name: str, issuer: Issued, *, domain: str = "", **more: Any) -> Issued:
    names = uri(f"spiffe://{domain or issuer_domain(issuer)}/{name}")
    return issue(name, issuer, names=names, **({"key_usage": SIGNS} | more))


def issuer_domain(issuer: Issued) -> str:
    return "b.test" if issuer is CA_B else "a.test"


def signing() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, key_encipherment=False, content_commitment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


_below = member("below", BETWEEN)
MEMBERS: dict[str, Issued | None] = {
    "nobody": None,
    "of_a": member("of-a", CA_A),
    "of_b": member("of-b", CA_B),
    "crossed": member("crossed", CA_A, domain="b.test"),  # of B, signed by the authority of A
    "unknown": member("unknown", CA_A, domain="c.test"),
    "other_case": member("other-case", CA_A, domain="A.test"),
    "nameless": issue("nameless", CA_A, key_usage=SIGNS),
    "no_spiffe": issue("no-spiffe", CA_A, names=uri("https://a.test/x"), key_usage=SIGNS),
    "no_path": issue("no-path", CA_A, names=uri("spiffe://a.test"), key_usage=SIGNS),
    "root_path": issue("root-path", CA_A, names=uri("spiffe://a.test/"), key_usage=SIGNS),
    "two": issue("two", CA_A, names=[*uri("spiffe://a.test/one"), *uri("spiffe://b.test/two")], key_usage=SIGNS),
    "authority": member("authority", CA_A, ca=True),
    "signs_others": member("signs-others", CA_A, key_usage=signing()),
    "any_usage": member("any-usage", CA_A, key_usage=None),
    "expired": member("expired", CA_A, days=(-10, -1)),
    "early": member("early", CA_A, days=(2, 4)),
    "below": _below,
    "below_with": WithIntermediate(_below.certificate, _below.key),
    "revoked": member("revoked", CA_A),
}
REVOKED = MEMBERS["revoked"]
assert REVOKED is not None


def spiffe(domains: dict[str, bytes] | None = None, bundles: str = "", **more: Any) -> str:
    """YAML of a `common_tls_context` whose peers are members of these domains."""
    config: Yaml = {"@type": TLS + "SPIFFECertValidatorConfig"}
    if domains is not None:
        config["trust_domains"] = [{"name": name, "trust_bundle": inline(pem)} for name, pem in domains.items()]
    if bundles:
        config["trust_bundles"] = {"inline_string": bundles}
    validator = {"name": "envoy.tls.cert_validator.spiffe", "typed_config": config}
    return json.dumps({"validation_context": {"custom_validator_config": validator} | more})


def bundle_map(**domains: list[Issued]) -> str:
    def keys(issued: list[Issued]) -> list[Yaml]:
        return [{"kty": "EC", "use": "x509-svid", "x5c": [base64.b64encode(each.der).decode()]} for each in issued]

    held = {name.replace("_", "."): {"spiffe_sequence": 1, "keys": keys(each)} for name, each in domains.items()}
    return json.dumps({"trust_domains": held})


def san(kind: str, **matcher: str) -> Yaml:
    return {"match_typed_subject_alt_names": [{"san_type": kind, "matcher": matcher}]}


BOTH = {"a.test": CA_A.pem, "b.test": CA_B.pem}
CONTEXTS = {
    "both": spiffe(BOTH),
    "only_a": spiffe({"a.test": CA_A.pem}),
    "swapped": spiffe({"a.test": CA_B.pem, "b.test": CA_A.pem}),
    "several": spiffe({"a.test": CA_B.pem + CA_A.pem}),
    "intermediate": spiffe({"a.test": BETWEEN.pem}),
    "any_time": spiffe(BOTH, allow_expired_certificate=True),
    "named": spiffe(BOTH, **san("URI", prefix="spiffe://a.test/of-")),
    "misnamed": spiffe(BOTH, **san("URI", exact="spiffe://a.test/else")),
    "revoking": spiffe({"a.test": CA_A.pem + revocation_list(CA_A, REVOKED), "b.test": CA_B.pem}),
    "map": spiffe(bundles=bundle_map(a_test=[CA_B, CA_A], b_test=[CA_B])),
    "with_ca": spiffe(BOTH, trusted_ca=inline(world().ca.pem)),
}
ASKED = {
    "both": tuple(MEMBERS),
    "only_a": ("of_a", "of_b"),
    "swapped": ("of_a", "of_b", "crossed"),
    "several": ("of_a", "crossed"),
    "intermediate": ("below", "below_with", "of_a"),
    "any_time": ("of_a", "expired", "early", "crossed"),
    "named": ("of_a", "of_b", "crossed"),
    "misnamed": ("of_a",),
    "revoking": ("of_a", "of_b", "revoked"),
    "map": ("of_a", "of_b", "crossed", "unknown"),
    "with_ca": ("of_a", "nobody"),
}
SERVED = ("of_a", "of_b", "crossed", "two", "authority", "expired", "below_with")


# Who meets something else: the rows of docs/envoy-differences.md.
DIFFERENT = {"two": "spiffe-two-uris"}
UNKNOWN = "<SSLV3_ALERT_CERTIFICATE_UNKNOWN>"


def downstream(name: str) -> TlsListener:
    return TlsListener({name: TlsChain(server_tls(common=CONTEXTS[name]))})


def made() -> World:
    listeners = {name: downstream(name) for name in CONTEXTS}
    listeners |= {f"to_{name}": TlsListener({name: TlsChain(cluster=name)}) for name in SERVED}
    clusters = {name: TlsCluster(name, client_tls(CONTEXTS["both"])) for name in SERVED}
    return World(listeners, clusters, {name: Upstream(issued=MEMBERS[name]) for name in SERVED})


@pytest.fixture(scope="module")
def sides() -> Iterator[tuple[TlsSide, TlsSide]]:
    start_subject = start_envoy if SUBJECT_IS_ENVOY else start_meshproxy
    with TlsSide(made(), start_envoy) as envoy, TlsSide(made(), start_subject) as subject:
        yield envoy, subject


ROWS = [(listener, who) for listener, asked in ASKED.items() for who in asked]


@pytest.mark.parametrize(("listener", "who"), ROWS, ids=[f"{listener}-{who}" for listener, who in ROWS])
def test_clients_as_envoy(sides: tuple[TlsSide, TlsSide], listener: str, who: str) -> None:
    theirs, ours = (flat(side.run(listener, Client(certificate=MEMBERS[who]))) for side in sides)
    if who in DIFFERENT:
        assert (theirs["answer"], ours["answer"]) == ("200 both", UNKNOWN if not SUBJECT_IS_ENVOY else "200 both")
    else:
        assert ours == theirs


@pytest.mark.parametrize("who", SERVED)
def test_servers_as_envoy(sides: tuple[TlsSide, TlsSide], who: str) -> None:
    theirs, ours = (flat(side.run(f"to_{who}", Client(plain=True))) for side in sides)
    if who in DIFFERENT:
        assert (theirs["answer"][:3], ours["answer"][:3]) == ("200", "200" if SUBJECT_IS_ENVOY else "503")
    else:
        assert ours == theirs


def test_stats_as_envoy(sides: tuple[TlsSide, TlsSide]) -> None:
    """When certificates expire, each of a trust bundle under a number."""
    pattern = r"days_until|^(listener\.(both|map|several)|cluster\.two)\.ssl\.certificate"
    assert sides[1].proxy.stats(pattern) == sides[0].proxy.stats(pattern)


def test_a_secret_brings_trust_domains() -> None:
    """By SDS: the next connections are judged by the domains that it names, and `/certs` and expiry tell of them."""
    start_subject = start_envoy if SUBJECT_IS_ENVOY else start_meshproxy
    with Files() as files:
        files.certificate("server", world().server)
        files.put("roots", **json.loads(CONTEXTS["only_a"]))
        trusting = server(files.secret("server"), validation_context_sds_secret_config=files.secret("roots"))
        one = World({"one": TlsListener({"one": TlsChain(trusting)})})
        with TlsSide(one, start_envoy) as envoy, TlsSide(one, start_subject) as subject:
            sides = Sides(files, envoy, subject)

            def answers() -> list[str]:
                clients = [Client(certificate=MEMBERS[who]) for who in ("of_a", "of_b", "crossed")]
                met = [[flat(side.run("one", client))["answer"] for client in clients] for side in (envoy, subject)]
                assert met[0] == met[1]
                return met[1]

            assert answers() == ["200 one", UNKNOWN, UNKNOWN]
            files.put("roots", **json.loads(CONTEXTS["both"]))
            sides.settle("roots", "update_success", 2)
            assert answers() == ["200 one", "200 one", UNKNOWN]
            files.put("roots", **json.loads(spiffe({"a.test": b"no certificate"})))
            sides.settle("roots", "update_rejected", 1)
            assert answers() == ["200 one", "200 one", UNKNOWN]
            assert subject.proxy.stats("ssl.certificate") == envoy.proxy.stats("ssl.certificate")
            assert serials(subject) == serials(envoy)


def serials(side: TlsSide) -> list[str]:
    """Of those who are trusted, in their order. (Envoy calls all of them by the last domain.)"""
    (context,) = json.loads(side.proxy.admin("/certs")[1])["certificates"]
    return [each["serial_number"] for each in context["ca_cert"]]


# -- what is taken


def with_keys(*keys: Yaml) -> str:
    return spiffe(bundles=json.dumps({"trust_domains": {"a.test": {"keys": list(keys)}}}))


def domains(*names: str) -> str:
    """The same authority for each of these, which may be one twice."""
    made = json.loads(spiffe({}))
    config = made["validation_context"]["custom_validator_config"]["typed_config"]
    config["trust_domains"] = [{"name": name, "trust_bundle": inline(CA_A.pem)} for name in names]
    return json.dumps(made)


KEY: Yaml = {"kty": "EC", "use": "x509-svid", "x5c": [base64.b64encode(CA_A.der).decode()]}
TAKEN = {
    "domains": CONTEXTS["both"],
    "map_before_domains": spiffe({"a.test": b"no certificate"}, bundle_map(a_test=[CA_A])),
}
REFUSED = {
    "one_domain_twice": (domains("a.test", "a.test"), "trust_domains[1].name"),
    "no_certificate": (spiffe({"a.test": b"none"}), "trust_domains[0].trust_bundle"),
    "no_json": (spiffe(bundles="none"), "trust_bundles"),
    "deep": (spiffe(bundles="[" * 9999), "trust_bundles"),
    "no_domains": (spiffe(bundles="{}"), "trust_bundles"),
    "no_keys": (spiffe(bundles='{"trust_domains": {"a.test": {}}}'), "trust_bundles"),
    "key_without_certificate": (with_keys({"kty": "EC", "use": "x509-svid"}), "trust_bundles"),
    "certificate_that_is_none": (with_keys(KEY | {"x5c": ["AAAA"]}), "trust_bundles"),
    "certificate_no_base64": (with_keys(KEY | {"x5c": ["*"]}), "trust_bundles"),
}
# What Envoy takes and does not look at: the row `spiffe-unheard`.
UNHEARD = {
    "hash": spiffe(BOTH, verify_certificate_hash=["ab" * 32]),
    "spki": spiffe(BOTH, verify_certificate_spki=[base64.b64encode(bytes(32)).decode()]),
    "untrusted": spiffe(BOTH, trust_chain_verification="ACCEPT_UNTRUSTED"),
    "other_name": spiffe(BOTH, **san("DNS", exact="a.test")),
    "nobody": spiffe({}),
}
DIFFERENCES = {*DIFFERENT.values(), "spiffe-unheard", "spiffe-token-keys"}


def verdicts(common: str, directory: Path) -> tuple[bool, bool, str]:
    """Whether Envoy takes it, whether we do, and what we say of it."""
    config = directory / "config.yaml"
    config.write_text(World({"one": TlsListener({"one": TlsChain(server_tls(common=common))})}).bootstrap({}, config))
    envoy = [envoy_binary(), "--mode", "validate", "--log-level", "error", "--use-dynamic-base-id"]
    ours = envoy if SUBJECT_IS_ENVOY else [sys.executable, "-m", "meshproxy", "validate"]
    results = [
        subprocess.run([*argv, "-c", str(config)], capture_output=True, text=True, timeout=60, check=False)
        for argv in (envoy, ours)
    ]
    return results[0].returncode == 0, results[1].returncode == 0, results[1].stdout + results[1].stderr


@pytest.mark.parametrize("name", TAKEN)
def test_taken(name: str, tmp_path: Path) -> None:
    assert verdicts(TAKEN[name], tmp_path)[:2] == (True, True)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    common, field = REFUSED[name]
    theirs, ours, told = verdicts(common, tmp_path)
    assert (theirs, ours) == (False, False)
    assert SUBJECT_IS_ENVOY or f"custom_validator_config.typed_config.{field}" in told


@pytest.mark.parametrize("name", UNHEARD)
def test_unheard(name: str, tmp_path: Path) -> None:
    theirs, ours, told = verdicts(UNHEARD[name], tmp_path)
    assert (theirs, ours) == (True, SUBJECT_IS_ENVOY)
    assert SUBJECT_IS_ENVOY or "validation_context.custom_validator_config" in told


def test_keys_of_tokens(tmp_path: Path) -> None:
    """The row `spiffe-token-keys` of docs/envoy-differences.md."""
    theirs, ours, _ = verdicts(with_keys({"kty": "EC", "use": "jwt-svid"}, KEY), tmp_path)
    assert (theirs, ours) == (False, not SUBJECT_IS_ENVOY)
