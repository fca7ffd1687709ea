"""What /certs tells, beside Envoy's own; and OCSP staples."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
from typing import Any

import pytest
import yaml
from cryptography import x509 as cx509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp

from meshproxy.observe.tls_stats import TlsCounter, TlsStats
from meshproxy.tls import certs
from meshproxy.tls.context import TlsContext
from meshproxy.tls.material import TlsConfigError
from meshproxy.tls.ocsp import OcspStaple
from meshproxy.tls.options import TlsOptions
from meshproxy.tls.x509 import Certificate, DerError
from tests.support.proxy import start_envoy
from tests.tls.certificates import Issued, issue, world
from tests.tls.harness import client, identity, server, validation
from tests.tls.relay import RelayedServer

TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."


def test_an_element_of_certs() -> None:
    context = server(validation=validation())
    now = world().server.certificate.not_valid_after_utc.timestamp() - 3 * 86400 - 5
    described = certs.describe(context, lambda: now)
    assert [each["days_until_expiration"] for each in described["cert_chain"]] == ["3"]
    assert certs.days_until_first_expires([context], lambda: now) == 3
    assert certs.days_until_first_expires([context], lambda: now + 10 * 86400) == 0
    assert certs.days_until_first_expires([]) is None


def test_envoy_tells_the_same() -> None:
    context = server(validation=validation(trusted_ca=world().ca.pem + world().other_ca.pem))
    common = {
        "tls_certificates": [
            {
                "certificate_chain": {"inline_string": world().server.pem.decode()},
                "private_key": {"inline_string": world().server.key_pem.decode()},
            }
        ],
        "validation_context": {"trusted_ca": {"inline_string": (world().ca.pem + world().other_ca.pem).decode()}},
    }
    tls = {"@type": TLS + "DownstreamTlsContext", "common_tls_context": common}
    proxy = {"@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    chain = {
        "transport_socket": {"name": "tls", "typed_config": tls},
        "filters": [{"name": "echo", "typed_config": proxy}],
    }
    listener = {"name": "l", "address": address, "filter_chains": [chain]}
    bootstrap = {"admin": {"address": address}, "static_resources": {"listeners": [listener]}}
    with start_envoy(yaml.dump(bootstrap)) as envoy:
        found: dict[str, Any] = json.loads(envoy.admin("/certs")[1])
    assert [certs.describe(context)] == found["certificates"]


# -- OCSP


def response(about: Issued, *, hours: tuple[int, int] = (-1, 1), status: Any = ocsp.OCSPCertStatus.GOOD) -> bytes:
    now = dt.datetime.now(dt.UTC)
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=about.certificate,
        issuer=world().ca.certificate,
        algorithm=hashes.SHA1(),
        cert_status=status,
        this_update=now + dt.timedelta(hours=hours[0]),
        next_update=now + dt.timedelta(hours=hours[1]),
        revocation_time=None,
        revocation_reason=None,
    )
    signed = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, world().ca.certificate)
    return signed.sign(world().ca.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def stapled(staple: bytes, about: Issued | None = None) -> TlsContext:
    chosen = identity(about or world().server, ocsp_staple=staple)
    return TlsContext(TlsOptions(is_server=True, certificates=(chosen,)))


@pytest.mark.parametrize(("hours", "told"), [((-1, 1), "Cert Status: good"), ((-2, -1), "no response sent")])
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_current_response_is_sent_to_who_asks(hours: tuple[int, int], told: str, version: str) -> None:
    counter = TlsCounter(TlsStats())
    with RelayedServer(stapled(response(world().server, hours=hours))) as relay:
        relay.events = counter
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{relay.port}", "-status", version]
        ended = subprocess.run(command, input=b"", capture_output=True, timeout=10, check=False)
        relay.join()
    assert told in ended.stdout.decode()
    stats = counter.stats
    is_sent = int(hours[1] > 0)
    found = (stats.ocsp_staple_requests, stats.ocsp_staple_responses, stats.ocsp_staple_omitted)
    assert found == (1, is_sent, 1 - is_sent)


@pytest.mark.parametrize(
    ("staple", "reason"),
    [
        (b"nonsense", ""),
        (b"\x30\x03\x0a\x01\x01", "OCSP response was unsuccessful"),
        (None, "OCSP response does not match its TLS certificate"),
    ],
)
def test_a_response_that_is_no_good(staple: bytes | None, reason: str) -> None:
    with pytest.raises(TlsConfigError) as caught:
        stapled(response(world().client) if staple is None else staple)
    field, told = caught.value.problems[0]
    assert field == "common_tls_context.tls_certificates[0].ocsp_staple"
    assert reason in told


def test_a_certificate_that_must_be_stapled_needs_a_response() -> None:
    now = dt.datetime.now(dt.UTC)
    base = world().server
    must = (
        cx509.CertificateBuilder()
        .subject_name(base.certificate.subject)
        .issuer_name(world().ca.certificate.subject)
        .public_key(base.key.public_key())
        .serial_number(7)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(cx509.TLSFeature([cx509.TLSFeatureType.status_request]), critical=False)
        .sign(world().ca.key, hashes.SHA256())
    )
    issued = Issued(must, base.key)
    with pytest.raises(TlsConfigError, match="OCSP response is required for must-staple certificate"):
        stapled(b"", issued)
    assert stapled(response(issued), issued).identities[0].staple is not None


def test_the_dates_of_a_response_are_told() -> None:
    context = stapled(response(world().server))
    details = certs.describe(context)["cert_chain"][0]["ocsp_details"]
    assert details["valid_from"] < details["expiration"]
    ours = OcspStaple(response(world().server), Certificate(world().server.der), lambda: 0.0)
    assert not ours.is_expired
    with pytest.raises(DerError):
        OcspStaple(response(issue("another", world().ca)), Certificate(world().server.der))


def test_when_the_first_response_expires() -> None:
    contexts = [stapled(response(world().server, hours=(-1, hours))) for hours in (3, 2)]
    assert certs.seconds_until_first_staple_expires([server(), client()]) is None
    staple = contexts[1].identities[0].staple
    assert staple is not None
    assert staple.next_update is not None
    expires = staple.next_update.timestamp()
    assert certs.seconds_until_first_staple_expires([server(), *contexts], lambda: expires - 100.0) == 100
    assert certs.seconds_until_first_staple_expires(contexts, lambda: expires + 1.0) == 0
