"""From DownstreamTlsContext and UpstreamTlsContext to contexts: what is honoured, what is refused, what is bad."""

from __future__ import annotations

import base64
import hashlib
import ssl
from pathlib import Path
from typing import Any

import pytest
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2
from google.protobuf import json_format

from meshproxy.config.context import BuildContext
from meshproxy.config.datasource import file_stamp
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.fields import check_fields
from meshproxy.config.runtime import Runtime
from meshproxy.config.tls_context import build_downstream_tls, build_upstream_tls
from meshproxy.config.tls_factory import TlsSocketFactory
from meshproxy.net.transport_socket import TransportSocketFactory
from meshproxy.observe.stats import StatsRegistry
from meshproxy.tls.x509 import Certificate
from tests.tls.certificates import Issued, world
from tests.tls.harness import V12, Recorded, Socket, converse, pair
from tests.tls.harness import client as ours_client
from tests.tls.harness import server as ours_server

COMMON = "tls.common_tls_context"
CERTIFICATE = f"{COMMON}.tls_certificates[0]"
VALIDATION = f"{COMMON}.validation_context"

Yaml = dict[str, Any]


def inline(data: bytes) -> Yaml:
    return {"inline_bytes": base64.b64encode(data).decode()}


def certificate(issued: Issued, **more: Any) -> Yaml:
    return {"certificate_chain": inline(issued.pem), "private_key": inline(issued.key_pem)} | more


def new_context() -> BuildContext:
    context = BuildContext(ConfigErrors(), Runtime(), StatsRegistry())
    context.listener_stat_prefix = "listener.l."
    return context


def downstream(
    fields: Yaml | None = None, context: BuildContext | None = None, names: tuple[str, ...] = (), **common: Any
) -> TlsSocketFactory | None:
    given = {"common_tls_context": {"tls_certificates": [certificate(world().server)]} | common} | (fields or {})
    message = json_format.ParseDict(given, tls_pb2.DownstreamTlsContext())
    return static(build_downstream_tls(message, "tls", context or new_context(), names))


def upstream(fields: Yaml | None = None, context: BuildContext | None = None, **common: Any) -> TlsSocketFactory | None:
    given = {"common_tls_context": common} | (fields or {})
    message = json_format.ParseDict(given, tls_pb2.UpstreamTlsContext())
    return static(build_upstream_tls(message, "tls", context or new_context(), "cluster.c."))


def static(factory: TransportSocketFactory | None) -> TlsSocketFactory | None:
    assert factory is None or isinstance(factory, TlsSocketFactory)
    return factory


def good(factory: TlsSocketFactory | None) -> TlsSocketFactory:
    assert factory is not None
    return factory


def validation(**more: Any) -> Yaml:
    return {"validation_context": {"trusted_ca": inline(world().ca.pem)} | more}


def talk(one: TlsSocketFactory, other: TlsSocketFactory) -> tuple[Any, Any]:
    """(server, client) after the handshake."""
    serving, asking = one.new(), other.new()
    asking.start()
    for _ in range(6):
        serving.receive(asking.take_output())
        asking.receive(serving.take_output())
    return serving, asking


# -- both sides together


def test_mutual_tls_and_what_it_counts() -> None:
    context = new_context()
    san = [{"san_type": "URI", "matcher": {"prefix": "spiffe://mesh/"}}]
    serving = good(
        downstream({"require_client_certificate": True}, context, **validation(match_typed_subject_alt_names=san))
    )
    asking = good(upstream({"sni": "a.test"}, context, tls_certificates=[certificate(world().client)], **validation()))
    one, other = talk(serving, asking)
    assert (one.established, other.established) == (True, True)
    assert (one.facts.server_name, one.facts.version) == ("a.test", "TLSv1.2")  # Envoy's default for clients
    counters = context.stats.snapshot().counters
    assert counters["listener.l.ssl.handshake"] == counters["cluster.c.ssl.handshake"] == 1
    assert counters["listener.l.ssl.versions.TLSv1.2"] == 1
    assert counters["listener.l.ssl.ciphers.ECDHE-ECDSA-AES128-GCM-SHA256"] == 1
    assert counters["listener.l.ssl.curves.X25519"] == 1
    assert counters["listener.l.ssl.sigalgs.ecdsa_secp256r1_sha256"] == 1
    assert counters["listener.l.ssl.no_certificate"] == 0


def test_failures_are_counted_where_they_belong() -> None:
    context = new_context()
    pins = {"validation_context": {"verify_certificate_hash": ["00" * 32]}}
    san = validation(match_typed_subject_alt_names=[{"san_type": "DNS", "matcher": {"exact": "no"}}])
    for common, issued in ((validation(), world().stranger), (pins, world().client), (san, world().client)):
        serving = good(downstream({"require_client_certificate": True}, context, **common))
        talk(serving, good(upstream(None, context, tls_certificates=[certificate(issued)])))
    talk(good(downstream({"require_client_certificate": True}, context)), good(upstream(None, context)))
    counters = context.stats.snapshot().counters
    names = ("fail_verify_error", "fail_verify_cert_hash", "fail_verify_san", "fail_verify_no_cert", "connection_error")
    assert [counters[f"listener.l.ssl.{name}"] for name in names] == [1, 1, 1, 1, 0]
    assert counters["cluster.c.ssl.connection_error"] == 4


@pytest.mark.parametrize(
    ("matcher", "passes"),
    [
        ({"exact": "spiffe://mesh/client"}, True),
        ({"safe_regex": {"regex": "spiffe://[a-z]+/client"}}, True),
        ({"safe_regex": {"regex": "spiffe"}}, False),  # the whole of it must match
        ({"suffix": "/CLIENT", "ignore_case": True}, True),
        ({"contains": "evil"}, False),
    ],
)
def test_every_string_matcher_matches_names(matcher: Yaml, passes: bool) -> None:
    for field, given in (
        ("match_typed_subject_alt_names", {"san_type": "URI", "matcher": matcher}),
        ("match_subject_alt_names", matcher),
    ):
        serving = good(downstream({"require_client_certificate": True}, **validation(**{field: [given]})))
        one, _ = pair(serving.context, ours_client(world().client))
        assert one.established == passes


def test_a_name_of_another_kind_is_no_match_unless_the_kind_is_left_open() -> None:
    matcher = {"exact": "client.test"}
    for field, given, passes in (
        ("match_typed_subject_alt_names", {"san_type": "URI", "matcher": matcher}, False),
        ("match_typed_subject_alt_names", {"san_type": "DNS", "matcher": matcher}, True),
        ("match_subject_alt_names", matcher, True),
    ):
        serving = good(downstream({"require_client_certificate": True}, **validation(**{field: [given]})))
        assert pair(serving.context, ours_client(world().client))[0].established == passes


def test_pins_in_both_spellings() -> None:
    digest = hashlib.sha256(world().client.der).hexdigest()
    colons = ":".join(digest[at : at + 2] for at in range(0, 64, 2)).upper()
    spki = base64.b64encode(Certificate(world().client.der).public_key_sha256()).decode()
    for given in (
        {"verify_certificate_hash": [digest]},
        {"verify_certificate_hash": [colons]},
        {"verify_certificate_spki": [spki]},
    ):
        serving = good(downstream({"require_client_certificate": True}, validation_context=given))
        assert pair(serving.context, ours_client(world().client))[0].established
        assert not pair(serving.context, ours_client(world().stranger))[0].established


def test_parameters() -> None:
    params = {
        "tls_minimum_protocol_version": "TLSv1_1",
        "tls_maximum_protocol_version": "TLSv1_3",
        "cipher_suites": ["ECDHE-ECDSA-AES256-GCM-SHA384"],
        "ecdh_curves": ["P-256"],
        "signature_algorithms": ["ecdsa_secp256r1_sha256"],
    }
    options = good(upstream(None, tls_params=params, alpn_protocols=["h2,http/1.1"])).context.options
    assert (options.min_version, options.max_version) == (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_3)
    assert options.application_protocols == ("h2", "http/1.1")
    one, _ = pair(ours_server(), good(upstream(None, tls_params=params, alpn_protocols=["h2"])).context)
    assert (one.facts.version, one.facts.group) == ("TLSv1.3", "P-256")
    defaults = good(downstream()).context.options
    assert (defaults.min_version, defaults.max_version) == (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


def test_the_server_name_is_expected_when_that_is_asked_for() -> None:
    for name, passes in (("a.test", True), ("b.test", False)):
        asking = good(upstream({"sni": name, "auto_sni_san_validation": True}, **validation()))
        assert talk(good(downstream()), asking)[1].established == passes
    asking = good(upstream({"auto_host_sni": True, "auto_sni_san_validation": True}, **validation()))
    serving = ours_server()
    for name, passes in (("x.w.test", True), ("b.test", False)):
        one, other = Socket(serving), asking.new(name)
        other.start()
        for _ in range(4):
            one.take(other.take_output())
            other.receive(one.take_output())
        assert other.established == passes


def test_a_session_of_one_filter_chain_does_not_resume_in_another() -> None:
    """The bypass: two chains share their ticket keys, and only one of them asks for a certificate."""
    keys = {"session_ticket_keys": {"keys": [inline(bytes(range(80)))]}}
    lax, strict = good(downstream(keys)), good(downstream(keys | {"require_client_certificate": True}, **validation()))
    renewed, elsewhere = good(downstream(keys)), good(downstream(keys, names=("b.test",)))
    resumed = []
    for second in (renewed, strict, elsewhere):
        asking = ours_client(max_version=V12)
        pair(lax.context, asking)
        one, other = pair(second.context, asking)
        converse(one, other)
        resumed.append(one.established and one.facts.resumed)
    assert resumed == [True, False, False]


def test_what_a_server_says_of_sessions() -> None:
    fields = {
        "disable_stateless_session_resumption": True,
        "disable_stateful_session_resumption": True,
        "session_timeout": "30s",
        "prefer_client_ciphers": True,
        "full_scan_certs_on_sni_mismatch": True,
    }
    options = good(downstream(fields)).context.options
    assert (options.tickets, options.session_cache, options.session_timeout_s) == (False, False, 30)
    assert (options.prefer_client_ciphers, options.full_scan_on_sni_mismatch) == (True, True)
    assert good(downstream()).context.options.session_timeout_s == 7200


def test_files_are_watched(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("chain", "key", "ca", "crl")}
    paths["chain"].write_bytes(world().server.pem)
    paths["key"].write_bytes(world().server.key_pem)
    paths["ca"].write_bytes(world().ca.pem)
    given = {
        "certificate_chain": {"filename": str(paths["chain"])},
        "private_key": {"filename": str(paths["key"])},
        "watched_directory": {"path": str(tmp_path)},
    }
    trusted = {"trusted_ca": {"filename": str(paths["ca"]), "watched_directory": {"path": "/elsewhere"}}}
    context = new_context()
    factory = good(downstream(None, context, tls_certificates=[given], validation_context=trusted))
    assert context.files == {
        str(paths[name]): (file_stamp(str(paths[name])), paths[name].read_bytes()) for name in ("chain", "key", "ca")
    }
    assert context.tls == [factory.context]
    assert factory.context.certificates[0].source == str(paths["chain"])


# -- bad input


@pytest.mark.parametrize(
    ("fields", "common", "path", "reason"),
    [
        ({}, {"tls_certificates": []}, "tls.common_tls_context", "No TLS certificates found for server context"),
        ({}, {"tls_certificates": [certificate(world().server, private_key={"filename": "/no/such"})]},
         f"{CERTIFICATE}.private_key.filename", "No such file"),
        ({}, {"tls_certificates": [{"certificate_chain": {"inline_string": "x"}}]}, f"{CERTIFICATE}.private_key", ""),
        ({}, {"tls_certificates": [{"private_key": {"inline_string": "x"}}]}, f"{CERTIFICATE}.certificate_chain", ""),
        ({}, {"validation_context": {"trusted_ca": {"inline_string": ""}}}, f"{VALIDATION}.trusted_ca", "is empty"),
        ({}, {"validation_context": {"trusted_ca": {"inline_string": "x"}}}, f"{VALIDATION}.trusted_ca",
         "Failed to load trusted CA certificates from <inline>"),
        ({}, {"validation_context": {"match_typed_subject_alt_names": [{"san_type": 2, "matcher": {"exact": "a"}}]}},
         f"{VALIDATION}.match_typed_subject_alt_names", "without trusted CA is insecure"),
        ({}, {"validation_context": {"crl": {"inline_string": "x"}}}, f"{VALIDATION}.crl", "without a trusted CA"),
        ({}, {"validation_context": {"verify_certificate_hash": ["zz" * 32]}},
         f"{VALIDATION}.verify_certificate_hash[0]", "Invalid hex-encoded SHA-256"),
        ({}, {"validation_context": {"verify_certificate_spki": ["x" * 44]}},
         f"{VALIDATION}.verify_certificate_spki[0]", "Invalid base64-encoded SHA-256"),
        ({}, {"alpn_protocols": ["h2,,x"]}, f"{COMMON}.alpn_protocols", "Invalid ALPN protocol string"),
        ({}, {"tls_params": {"cipher_suites": ["AES128-SHA", "NOPE"]}}, f"{COMMON}.tls_params.cipher_suites", "NOPE"),
        ({"session_ticket_keys": {"keys": [{"inline_string": "short"}]}}, {},
         "tls.session_ticket_keys.keys[0]", "5 bytes instead of 80"),
    ],
)  # fmt: skip
def test_a_downstream_context_that_cannot_be_built(fields: Yaml, common: Yaml, path: str, reason: str) -> None:
    context = new_context()
    assert downstream(fields, context, **common) is None
    assert [each.path for each in context.errors.items] == [path]
    assert reason in context.errors.items[0].reason


@pytest.mark.parametrize(
    ("fields", "path", "reason"),
    [
        ({"sni": "a..b"}, "tls.sni", "cannot be sent"),
        ({"sni": "a" * 64 + ".test"}, "tls.sni", "cannot be sent"),
        ({"auto_sni_san_validation": True, "sni": "a"}, "tls.auto_sni_san_validation", "without a validation context"),
    ],
)
def test_an_upstream_context_that_cannot_be_built(fields: Yaml, path: str, reason: str) -> None:
    context = new_context()
    assert upstream(fields, context) is None
    assert [each.path for each in context.errors.items] == [path]
    assert reason in context.errors.items[0].reason


def test_all_errors_are_told_at_once() -> None:
    context = new_context()
    bad = {
        "certificate_chain": {"filename": "/no/such"},
        "private_key": {"environment_variable": "NO_SUCH_VARIABLE_AT_ALL"},
    }
    given = {"trusted_ca": {"filename": "/none"}, "verify_certificate_hash": ["zz"]}
    assert downstream({}, context, tls_certificates=[bad, bad], validation_context=given) is None
    assert len(context.errors) == 6


def test_a_name_as_istio_writes_it_can_be_sent() -> None:
    name = "outbound_.9080_._.reviews.default.svc.cluster.local"
    assert good(upstream({"sni": name})).context.options.server_name == name


# -- the tables


@pytest.mark.parametrize(
    ("message", "path", "reason"),
    [
        ({"tls_certificates": [{"pkcs12": {"inline_string": "x"}}]}, "tls_certificates[0].pkcs12", "certificate_chain"),
        ({"validation_context": {"match_typed_subject_alt_names": [{"san_type": "OTHER_NAME", "oid": "1.2"}]}},
         "validation_context.match_typed_subject_alt_names[0].san_type", "OTHER_NAME is not supported"),
        ({"custom_handshaker": {"name": "x"}}, "custom_handshaker", "extensions of TLS"),
        ({"key_log": {"path": "/x", "local_address_range": [{"address_prefix": "10.0.0.0"}]}},
         "key_log.local_address_range", "all connections"),
    ],
)  # fmt: skip
def test_what_is_refused_names_its_field(message: Yaml, path: str, reason: str) -> None:
    errors = ConfigErrors()
    check_fields(json_format.ParseDict(message, tls_pb2.CommonTlsContext()), "c", errors)
    assert errors.items[0].path == f"c.{path}"
    assert reason in errors.items[0].reason


def test_the_events_of_a_factory_are_the_sockets() -> None:
    factory = good(downstream())
    told = Recorded()
    replaced = TlsSocketFactory(factory.context, told)
    talk(replaced, good(upstream()))
    assert len(told.handshakes) == 1
