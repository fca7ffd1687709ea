"""Secrets in TLS contexts: waited for, shared, rotated, refused; and never plain bytes in their place."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509 as cx509
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2, tls_pb2
from google.protobuf import json_format

from meshproxy.config import tls_factory
from meshproxy.config.context import BuildContext, Services
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.fields import check_fields
from meshproxy.config.runtime import Runtime
from meshproxy.config.secrets import build_static_secrets
from meshproxy.config.subscription import SECRET_TYPE, InitManager
from meshproxy.config.tls_context import build_downstream_tls, build_upstream_tls
from meshproxy.config.tls_factory import SecretTlsSocketFactory, TlsSocketFactory
from meshproxy.net.timers import TimerWheel
from meshproxy.net.transport_socket import TransportSocket, TransportSocketFactory
from meshproxy.observe.stats import StatsRegistry
from meshproxy.tls.certs import describe
from meshproxy.tls.context import TlsContext
from meshproxy.tls.engine import TlsEvents, TlsTransportSocket
from meshproxy.tls.facts import TlsFacts
from meshproxy.tls.not_ready import NotReadySocket
from meshproxy.tls.options import TlsOptions
from tests.support.subscriptions import FakeSubscriptions
from tests.tls.certificates import Issued, dns, issue, key_usage, revocation_list, uri, world
from tests.tls.harness import client as ours_client

Yaml = dict[str, Any]
NOT_READY = "TLS error: Secret is not supplied by SDS"
NEW = issue("new", world().ca, names=dns("a.test"), days=(-1, 3))
TICKET_KEY = bytes(range(80))


def inline(data: bytes) -> Yaml:
    return {"inline_bytes": base64.b64encode(data).decode()}


def certificate(issued: Issued, key: Issued | None = None) -> Yaml:
    return {"certificate_chain": inline(issued.pem), "private_key": inline((key or issued).key_pem)}


def secret(name: str, **held: Any) -> Any:
    return json_format.ParseDict({"name": name} | held, secret_pb2.Secret())


def certificate_secret(name: str, issued: Issued, key: Issued | None = None) -> Any:
    return secret(name, tls_certificate=certificate(issued, key))


def authority_secret(name: str, issued: Issued, **more: Any) -> Any:
    return secret(name, validation_context={"trusted_ca": inline(issued.pem)} | more)


def ads(name: str) -> Yaml:
    return {"name": name, "sds_config": {"ads": {}, "resource_api_version": "V3"}}


class Spawned:
    """A task, a turn at a time."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._done = False

    def done(self) -> bool:
        return self._done

    def cancel(self) -> None:
        self._coroutine.close()
        self._done = True

    def step(self) -> None:
        try:
            self._coroutine.send(None)
        except BaseException as end:
            self._done = True
            if not isinstance(end, StopIteration):
                raise

    def run(self) -> None:
        while not self._done:
            self.step()


class World:
    """One process: what it watches, its timers, and what it counts."""

    def __init__(self) -> None:
        self.subscriptions = FakeSubscriptions()
        self.timers = TimerWheel(None)
        self.services = Services(cast(Any, self), None, None, self.subscriptions)
        self.stats = StatsRegistry()
        self.contexts: list[BuildContext] = []
        self.spawned: list[Spawned] = []

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> Spawned:
        """As a Dispatcher's; the test lets it run."""
        self.spawned.append(Spawned(coroutine))
        return self.spawned[-1]

    def run_spawned(self) -> None:
        for each in self.spawned:
            each.run()

    def context(self) -> BuildContext:
        context = BuildContext(ConfigErrors(), Runtime(), self.stats)
        context.listener_stat_prefix = "listener.l."
        context.services = self.services
        context.ticket_seed = b"seed"
        self.contexts.append(context)
        return context

    def downstream(self, fields: Yaml | None = None, **common: Any) -> SecretTlsSocketFactory:
        context = self.context()
        message = json_format.ParseDict({"common_tls_context": common} | (fields or {}), tls_pb2.DownstreamTlsContext())
        return pending(build_downstream_tls(message, "tls", context), context)

    def upstream(self, fields: Yaml | None = None, name: str = "c", **common: Any) -> SecretTlsSocketFactory:
        context = self.context()
        message = json_format.ParseDict({"common_tls_context": common} | (fields or {}), tls_pb2.UpstreamTlsContext())
        return pending(build_upstream_tls(message, "tls", context, f"cluster.{name}."), context)

    def deliver(self, message: Any) -> list[tuple[str, str]]:
        """What it is refused for."""
        errors = self.subscriptions.deliver(SECRET_TYPE, message.name, message)
        return [(each.path, each.reason) for each in errors.items]

    def miss(self, name: str) -> None:
        self.subscriptions.miss(SECRET_TYPE, name)

    def counted(self, name: str) -> int:
        snapshot = self.stats.snapshot()
        return (snapshot.counters | snapshot.levels)[name]

    def watched(self) -> list[str]:
        return self.subscriptions.names(SECRET_TYPE)


def pending(factory: TransportSocketFactory | None, context: BuildContext) -> SecretTlsSocketFactory:
    assert [str(each) for each in context.errors.items] == []
    assert isinstance(factory, SecretTlsSocketFactory)
    return factory


def warm(context: BuildContext) -> list[str]:
    """Begin to wait; "ready" comes into the list."""
    told: list[str] = []
    InitManager(context.init_targets).start(lambda: told.append("ready"))
    return told


@pytest.fixture
def w() -> World:
    return World()


def talk(one: TransportSocketFactory, other: TransportSocketFactory) -> tuple[Any, Any]:
    """(server, client) after the handshake."""
    serving, asking = one.new(), other.new()
    serving.start()
    asking.start()
    for _ in range(6):
        serving.receive(asking.take_output())
        asking.receive(serving.take_output())
    return serving, asking


def asking(**more: Any) -> TransportSocketFactory:
    return _Given(ours_client(**more))


def serving(issued: Issued | None = None, **common: Any) -> TransportSocketFactory:
    """A server whose configuration has all of it."""
    given = {"common_tls_context": {"tls_certificates": [certificate(issued or world().server)]} | common}
    message = json_format.ParseDict(given, tls_pb2.DownstreamTlsContext())
    context = World().context()
    context.ticket_seed = b""  # it resumes no session of another
    factory = build_downstream_tls(message, "tls", context)
    assert isinstance(factory, TlsSocketFactory)
    return factory


class _Given(TransportSocketFactory):
    def __init__(self, context: Any) -> None:
        super().__init__()
        self._context = context

    def new(
        self, server_name: str = "", demanded_name: str = "", protocols: tuple[str, ...] = (), instead: bool = False
    ) -> TransportSocket:
        return TlsTransportSocket(self._context, TlsEvents())


def shown(factory: SecretTlsSocketFactory) -> str:
    """The common name of the certificate that a new connection is shown."""
    _, client = talk(factory, asking())
    assert client.established, client.failure
    facts: TlsFacts = client.facts
    return cx509.load_der_x509_certificate(facts.peer_chain()[0]).subject.rfc4514_string().split(",")[0]


# -- waiting


def test_a_context_waits_for_all_its_secrets(w: World) -> None:
    w.downstream(
        {"require_client_certificate": True},
        tls_certificate_sds_secret_configs=[ads("server")],
        validation_context_sds_secret_config=ads("ca"),
    )
    told = warm(w.contexts[0])
    assert w.watched() == ["ca", "server"]
    assert sorted(target.name for target in w.contexts[0].init_targets) == ["SdsApi ca", "SdsApi server"]
    assert w.deliver(certificate_secret("server", world().server)) == []
    assert told == []
    assert w.deliver(authority_secret("ca", world().ca)) == []
    assert told == ["ready"]


def test_mutual_tls_of_secrets_on_both_sides(w: World) -> None:
    validation: Any = {"validation_context_sds_secret_config": ads("ca")}
    one = w.downstream(
        {"require_client_certificate": True}, tls_certificate_sds_secret_configs=[ads("server")], **validation
    )
    other = w.upstream({"sni": "a.test"}, tls_certificate_sds_secret_configs=[ads("client")], **validation)
    for context in w.contexts:
        warm(context)
    for message in (
        certificate_secret("server", world().server),
        certificate_secret("client", world().client),
        authority_secret("ca", world().ca),
    ):
        assert w.deliver(message) == []
    server, client = talk(one, other)
    assert (server.established, client.established) == (True, True)
    assert (server.facts.peer_certificate_validated, client.facts.peer_certificate_validated) == (True, True)
    assert w.counted("listener.l.server_ssl_socket_factory.ssl_context_update_by_sds") == 2
    assert w.counted("cluster.c.client_ssl_socket_factory.ssl_context_update_by_sds") == 2
    assert w.counted("listener.l.ssl.handshake") == w.counted("cluster.c.ssl.handshake") == 1


@pytest.mark.parametrize("how", ["before", "missing", "refused"])
def test_without_a_secret_connections_fail_and_are_never_plain(w: World, how: str) -> None:
    """As Envoy: the listener is active once nothing is to be expected, and closes every connection."""
    one = w.downstream(tls_certificate_sds_secret_configs=[ads("x")])
    other = w.upstream(validation_context_sds_secret_config=ads("x"))
    told = [warm(context) for context in w.contexts]
    if how == "missing":
        w.miss("x")
    elif how == "refused":
        for watch in w.subscriptions.of(SECRET_TYPE, "x"):
            watch.watcher.refused()
    assert told == ([[], []] if how == "before" else [["ready"], ["ready"]])
    for factory in (one, other):
        socket = factory.new()
        assert isinstance(socket, NotReadySocket)
        socket.start()
        assert socket.failure == NOT_READY
        assert not socket.established
        socket.send(b"plain")
        assert (socket.receive(b"GET / HTTP/1.1\r\n\r\n"), socket.take_output()) == ([], b"")
    assert w.counted("listener.l.server_ssl_socket_factory.downstream_context_secrets_not_ready") == 1
    assert w.counted("listener.l.server_ssl_socket_factory.upstream_context_secrets_not_ready") == 0
    assert w.counted("cluster.c.client_ssl_socket_factory.upstream_context_secrets_not_ready") == 1
    assert w.counted("listener.l.ssl.connection_error") == 0


def test_a_secret_that_comes_late_is_used(w: World) -> None:
    factory = w.downstream(tls_certificate_sds_secret_configs=[ads("server")])
    warm(w.contexts[0])
    w.miss("server")
    assert isinstance(factory.new(), NotReadySocket)
    assert w.deliver(certificate_secret("server", world().server)) == []
    assert shown(factory) == "CN=server"


def test_a_bad_first_secret_lets_nobody_wait(w: World) -> None:
    factory = w.downstream(tls_certificate_sds_secret_configs=[ads("server")])
    told = warm(w.contexts[0])
    assert len(w.deliver(certificate_secret("server", world().server, world().client))) == 1
    assert told == ["ready"]
    assert isinstance(factory.new(), NotReadySocket)


def test_one_that_is_known_is_there_at_once(w: World) -> None:
    w.downstream(tls_certificate_sds_secret_configs=[ads("server")])
    warm(w.contexts[0])
    w.deliver(certificate_secret("server", world().server))
    later = w.downstream(tls_certificate_sds_secret_configs=[ads("server")])
    assert warm(w.contexts[1]) == ["ready"]
    assert shown(later) == "CN=server"
    assert w.watched() == ["server"]


# -- rotation


def test_the_next_connection_has_the_new_certificate(w: World) -> None:
    factory = w.downstream(tls_certificate_sds_secret_configs=[ads("server")])
    warm(w.contexts[0])
    w.deliver(certificate_secret("server", world().server))
    old, client = talk(factory, asking())
    assert w.deliver(certificate_secret("server", NEW)) == []
    assert shown(factory) == "CN=new"
    client.send(b"still here")
    assert old.receive(client.take_output()) == [b"still here"]
    assert w.counted("listener.l.server_ssl_socket_factory.ssl_context_update_by_sds") == 2


def test_the_same_material_again_changes_nothing(w: World) -> None:
    factory = w.upstream(validation_context_sds_secret_config=ads("ca"))
    warm(w.contexts[0])
    w.deliver(authority_secret("ca", world().ca))
    first = talk(serving(), factory)[1]
    w.deliver(authority_secret("ca", world().ca))
    assert w.counted("cluster.c.client_ssl_socket_factory.ssl_context_update_by_sds") == 1
    assert first._context is talk(serving(), factory)[1]._context


def test_what_is_taken_away_stays_in_use(w: World) -> None:
    factory = w.downstream(tls_certificate_sds_secret_configs=[ads("server")])
    warm(w.contexts[0])
    w.deliver(certificate_secret("server", world().server))
    w.miss("server")
    assert shown(factory) == "CN=server"


def test_sessions_survive_a_new_certificate_but_not_a_new_authority(w: World) -> None:
    """Who was validated by one authority is not let in without a look by another."""
    factory = w.downstream(
        tls_certificate_sds_secret_configs=[ads("server")], validation_context_sds_secret_config=ads("ca")
    )
    warm(w.contexts[0])
    w.deliver(certificate_secret("server", world().server))
    w.deliver(authority_secret("ca", world().ca))
    client = asking(certificate=world().client, max_sessions=4)

    def resumes() -> bool:
        server, _ = talk(factory, client)
        assert server.established, server.failure
        return bool(server.facts.resumed)

    assert [resumes(), resumes()] == [False, True]
    w.deliver(certificate_secret("server", NEW))
    assert resumes()
    w.deliver(authority_secret("ca", world().ca, allow_expired_certificate=True))
    assert not resumes()


# -- what is refused

BAD_CRL = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"
OLD_CA, EARLY_CA = issue("old", ca=True, days=(-10, -1)), issue("early", ca=True, days=(2, 4))


def members(domains: dict[str, bytes]) -> Yaml:
    """A validation context for members of these trust domains."""
    config = {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"}
    bundles = [{"name": name, "trust_bundle": inline(pem)} for name, pem in domains.items()]
    validator = {"name": "spiffe", "typed_config": config | {"trust_domains": bundles}}
    return {"custom_validator_config": validator}


SAN = {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": "spiffe://mesh/client"}}]}
MALFORMED = certificate(world().server) | {"certificate_chain": inline(b"-----BEGIN CERTIFICATE-----\nAAAA")}
BAD = [
    (certificate_secret("s", world().server, world().client), "tls_certificate.private_key", "KEY_VALUES_MISMATCH"),
    (secret("s", tls_certificate=MALFORMED), "tls_certificate.certificate_chain", "Failed to load certificate chain"),
    (secret("s", tls_certificate={"certificate_chain": inline(b"x")}), "tls_certificate.private_key",
     "No certificate chain, or no private key"),
    (secret("s", tls_certificate=certificate(world().server) | {"private_key": inline(b"")}),
     "tls_certificate.private_key", "is empty"),
    (secret("s", tls_certificate=certificate(world().server) | {"private_key": inline(b"x" * 1_048_577)}),
     "tls_certificate.private_key.inline_bytes", "longer than"),
    (secret("s", tls_certificate=certificate(world().server) | {"private_key": {"filename": "/no/such"}}),
     "tls_certificate.private_key.filename", "No such file"),
    (certificate_secret("s", world().expired), "tls_certificate.certificate_chain", "has expired, on "),
    (certificate_secret("s", issue("early", world().ca, days=(2, 4))), "tls_certificate.certificate_chain",
     "is not valid before "),
    (authority_secret("s", world().ca), "validation_context", "a tls_certificate is what is asked for"),
    (secret("s"), "tls_certificate", "a tls_certificate is what is asked for"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "path", "reason"), BAD, ids=[f"{path}-{reason[:12]}" for _, path, reason in BAD])
def test_a_bad_certificate_is_refused_and_the_old_one_stays(w: World, message: Any, path: str, reason: str) -> None:
    factory = w.downstream(tls_certificate_sds_secret_configs=[ads("s")])
    warm(w.contexts[0])
    w.deliver(certificate_secret("s", world().server))
    ((found, why),) = w.deliver(message)
    assert (found, reason in why) == (path, True)
    assert shown(factory) == "CN=server"
    assert (w.counted("sds.s.update_rejected"), w.counted("sds.s.update_success")) == (1, 1)


@pytest.mark.parametrize(
    ("held", "path", "reason"),
    [
        ({"trusted_ca": inline(b"garbage")}, "validation_context.trusted_ca", "Failed to load trusted CA"),
        ({"trusted_ca": inline(world().ca.pem), "crl": inline(b"x")}, "validation_context.crl", "Failed to load CRL"),
        ({"trusted_ca": inline(world().ca.pem), "verify_certificate_hash": ["z" * 64]},
         "validation_context.verify_certificate_hash[0]", "Invalid hex-encoded"),
        (SAN, "validation_context", "without trusted CA is insecure"),
        ({"trusted_ca": inline(OLD_CA.pem)}, "validation_context.trusted_ca", "all authorities have expired"),
        ({"trusted_ca": inline(EARLY_CA.pem)}, "validation_context.trusted_ca", "is not valid before "),
        ({"trusted_ca": inline(EARLY_CA.pem + OLD_CA.pem)}, "validation_context.trusted_ca", "is not valid before "),
        (members({"a.test": OLD_CA.pem}),
         "validation_context.custom_validator_config.typed_config.trust_domains[0].trust_bundle",
         "all authorities have expired (of a.test)"),
        (members({"a.test": world().ca.pem}) | {"crl": inline(BAD_CRL)},
         "validation_context.crl", "Failed to load CRL"),
    ],
)  # fmt: skip
def test_a_bad_authority_is_refused_and_the_old_one_stays(w: World, held: Yaml, path: str, reason: str) -> None:
    factory = w.upstream(validation_context_sds_secret_config=ads("ca"))
    warm(w.contexts[0])
    w.deliver(authority_secret("ca", world().ca))
    ((found, why),) = w.deliver(secret("ca", validation_context=held))
    assert (found, reason in why) == (path, True)
    assert talk(serving(), factory)[1].established
    assert not talk(serving(issue("other", world().other_ca)), factory)[1].established


@pytest.mark.parametrize("message", [certificate_secret("s", world().expired), certificate_secret("s", OLD_CA)])
def test_an_expired_certificate_is_not_taken_where_there_is_none(w: World, message: Any) -> None:
    factory = w.downstream(tls_certificate_sds_secret_configs=[ads("s")])
    told = warm(w.contexts[0])
    assert "has expired" in w.deliver(message)[0][1]
    assert told == ["ready"]
    assert isinstance(factory.new(), NotReadySocket)


def test_a_certificate_that_is_just_made_may_be_ahead_of_our_clock(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate_of_now = issue("now", world().ca, names=dns("a.test"), days=(0, 1))
    made = certificate_of_now.certificate.not_valid_before_utc.timestamp()
    factory = w.downstream(tls_certificate_sds_secret_configs=[ads("s")])
    warm(w.contexts[0])
    monkeypatch.setattr("time.time", lambda: made - 61.0)
    assert "is not valid before" in w.deliver(certificate_secret("s", certificate_of_now))[0][1]
    monkeypatch.setattr("time.time", lambda: made - 59.0)
    assert w.deliver(certificate_secret("s", certificate_of_now)) == []
    assert shown(factory) == "CN=now"


def test_of_a_bundle_those_are_left_out_that_have_expired(w: World, caplog: pytest.LogCaptureFixture) -> None:
    """An authority of the same name and key as one that is valid would be found in its place."""
    factory = w.upstream(validation_context_sds_secret_config=ads("ca"))
    warm(w.contexts[0])
    bundle = OLD_CA.pem + b"# a comment\n" + world().ca.pem + OLD_CA.pem + EARLY_CA.pem
    assert w.deliver(secret("ca", validation_context={"trusted_ca": inline(bundle)})) == []
    assert talk(serving(), factory)[1].established
    assert [info.certificate.common_name for info in factory.ca_certificates] == ["ca", "early"]
    assert caplog.text.count("is left out: it has expired (CN=old") == 2


def test_what_was_revoked_among_the_authorities_counts(w: World) -> None:
    """As Envoy: a revocation list may stand in `trusted_ca`, and survives that an authority there has expired."""
    factory = w.upstream(validation_context_sds_secret_config=ads("ca"))
    warm(w.contexts[0])
    for bundle in (OLD_CA.pem + world().ca.pem, world().ca.pem):
        revoking = bundle + revocation_list(world().ca, world().server)
        assert w.deliver(secret("ca", validation_context={"trusted_ca": inline(revoking)})) == []
        _, client = talk(serving(), factory)
        assert "revoked" in client.failure
        assert talk(serving(issue("good", world().ca)), factory)[1].established


def test_expired_authorities_are_taken_where_times_do_not_count(w: World) -> None:
    factory = w.upstream(validation_context_sds_secret_config=ads("ca"))
    warm(w.contexts[0])
    assert w.deliver(authority_secret("ca", OLD_CA, allow_expired_certificate=True)) == []
    assert talk(serving(issue("of old", OLD_CA)), factory)[1].established


# -- trust domains


SIGNS = key_usage(signs=True)
OF_A = issue("of a", world().ca, names=uri("spiffe://a.test/x"), key_usage=SIGNS)
OF_B = issue("of b", world().other_ca, names=uri("spiffe://b.test/x"), key_usage=SIGNS)
CROSSED = issue("crossed", world().ca, names=uri("spiffe://b.test/x"), key_usage=SIGNS)
FEDERATED = members({"a.test": world().ca.pem, "b.test": world().other_ca.pem})


def taken(w: World, factory: TransportSocketFactory) -> list[str]:
    """Whom a server lets in."""
    known = {"a": OF_A, "b": OF_B, "crossed": CROSSED}
    return [name for name, issued in known.items() if talk(factory, asking(certificate=issued))[0].established]


def trusting(w: World, default: Yaml | None = None) -> SecretTlsSocketFactory:
    validation: Yaml = {"validation_context_sds_secret_config": ads("ca")}
    if default is not None:
        validation = {"combined_validation_context": {"default_validation_context": default} | validation}
    factory = w.downstream(tls_certificate_sds_secret_configs=[ads("server")], **validation)
    warm(w.contexts[0])
    w.deliver(certificate_secret("server", world().server))
    return factory


def test_members_are_judged_by_the_authorities_of_their_domain(w: World) -> None:
    factory = trusting(w)
    w.deliver(authority_secret("ca", world().ca))
    assert taken(w, factory) == ["a", "crossed"]
    assert w.deliver(secret("ca", validation_context=FEDERATED)) == []
    assert taken(w, factory) == ["a", "b"]
    assert not talk(factory, asking())[0].established  # a certificate is demanded
    assert [info.trust_domain for info in factory.ca_certificates] == ["a.test", "b.test"]


@pytest.mark.parametrize(
    ("default", "held", "expected"),
    [
        (FEDERATED, {"trusted_ca": inline(world().ca.pem)}, ["a", "b"]),  # which trust bundles leave unheard
        ({"trusted_ca": inline(world().ca.pem)}, FEDERATED, ["a", "b"]),
        (FEDERATED, members({"a.test": world().ca.pem}), ["a"]),  # the secret's goes before it
        (FEDERATED, {"crl": inline(revocation_list(world().ca, OF_A))}, ["b"]),
        ({"crl": inline(revocation_list(world().ca, OF_A))}, FEDERATED, ["b"]),
        (FEDERATED, {"crl": inline(revocation_list(world().ca, CROSSED))}, ["a", "b"]),
        (SAN, FEDERATED, []),
    ],
)
def test_trust_bundles_are_merged(w: World, default: Yaml, held: Yaml, expected: list[str]) -> None:
    factory = trusting(w, default)
    assert w.deliver(secret("ca", validation_context=held)) == []
    assert taken(w, factory) == expected


def test_the_list_of_an_intermediate_authority_is_about_whom_it_signed(w: World) -> None:
    """Its own is not needed for others, though the issuer stands in no bundle."""
    middle = issue("middle", world().ca, ca=True)
    below = issue("below", middle, names=uri("spiffe://a.test/y"), key_usage=SIGNS)
    both = Issued(below.certificate, below.key)
    presented = certificate(both) | {"certificate_chain": inline(below.pem + middle.pem)}
    client = build(w, presented)
    factory = trusting(w)
    assert w.deliver(secret("ca", validation_context=FEDERATED | {"crl": inline(revocation_list(middle))})) == []
    assert talk(factory, client)[0].established
    revoking = FEDERATED | {"crl": inline(revocation_list(middle, below))}
    assert w.deliver(secret("ca", validation_context=revoking)) == []
    assert "revoked" in talk(factory, client)[0].failure
    assert taken(w, factory) == ["a", "b"]


def build(w: World, presented: Yaml) -> TransportSocketFactory:
    """A client that presents it."""
    given = {"common_tls_context": {"tls_certificates": [presented]}}
    message = json_format.ParseDict(given, tls_pb2.UpstreamTlsContext())
    factory = build_upstream_tls(message, "tls", World().context(), "cluster.c.")
    assert factory is not None
    return factory


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        ({"verify_certificate_hash": ["ab" * 32]}, "verify_certificate_hash"),
        ({"trust_chain_verification": "ACCEPT_UNTRUSTED"}, "trust_chain_verification"),
        ({"match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "a"}}]}, "only URI"),
    ],
)
def test_what_trust_bundles_would_leave_unheard_is_refused(w: World, held: Yaml, reason: str) -> None:
    factory = trusting(w, FEDERATED)
    ((path, why),) = w.deliver(secret("ca", validation_context=held))
    assert (path, reason in why) == ("validation_context", True)
    assert isinstance(factory.new(), NotReadySocket)


def test_an_authority_is_demanded_where_names_are_to_be_checked(w: World) -> None:
    w.upstream({"sni": "a.test", "auto_sni_san_validation": True}, validation_context_sds_secret_config=ads("ca"))
    warm(w.contexts[0])
    pinned = secret("ca", validation_context={"verify_certificate_hash": ["ab" * 32]})
    assert w.deliver(pinned) == [
        ("validation_context", "'auto_sni_san_validation' was configured without a validation context")
    ]


def test_nobody_is_told_what_a_secret_holds(w: World, caplog: pytest.LogCaptureFixture) -> None:
    w.downstream(tls_certificate_sds_secret_configs=[ads("s")])
    warm(w.contexts[0])
    key = world().client.key_pem.decode().splitlines()[1]
    told = [*w.deliver(BAD[0][0]), *w.deliver(secret("s", tls_certificate=certificate(world().client) | {"password": {
        "inline_string": "pass word"}, "certificate_chain": inline(world().client.key_pem)}))]  # fmt: skip
    assert len(told) == 2
    assert key not in repr(told) + caplog.text
    assert "pass word" not in repr(told) + caplog.text


# -- many that refer to one


def test_a_thousand_clusters_share_what_one_update_brings(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[TlsOptions] = []

    def make(options: TlsOptions) -> TlsContext:
        made.append(options)
        return TlsContext(options)

    monkeypatch.setattr(tls_factory, "TlsContext", make)
    built = [
        w.upstream(
            {"sni": f"outbound_.80_._.s{index}.ns.svc.cluster.local"}, name=f"c{index}",
            tls_certificate_sds_secret_configs=[ads("default")], validation_context_sds_secret_config=ads("ROOTCA"),
        )
        for index in range(1000)
    ]  # fmt: skip
    told = [warm(context) for context in w.contexts]
    assert w.watched() == ["ROOTCA", "default"]
    w.deliver(authority_secret("ROOTCA", world().ca))
    w.deliver(certificate_secret("default", world().client))
    assert w.subscriptions.steps > 5  # they hear of it bit by bit
    assert told == [["ready"]] * 1000
    assert made == []
    for factory in built[:2]:
        assert talk(serving(), factory)[1].established
        assert talk(serving(), factory)[1].established
    assert len(made) == 2
    assert made[0].certificates[0] is made[1].certificates[0]
    assert made[0].validation is made[1].validation


def test_it_is_watched_as_long_as_somebody_refers_to_it(w: World) -> None:
    for _ in range(2):
        w.downstream(tls_certificate_sds_secret_configs=[ads("s")])
    for context in w.contexts:
        warm(context)
    w.contexts[0].close()
    assert w.watched() == ["s"]
    w.contexts[1].close()
    assert w.watched() == []
    w.contexts[1].close()
    fresh = w.downstream(tls_certificate_sds_secret_configs=[ads("s")])
    warm(w.contexts[2])
    w.deliver(certificate_secret("s", world().server))
    assert shown(fresh) == "CN=server"


def test_who_goes_keeps_what_it_has(w: World) -> None:
    """A cluster that is replaced may still open connections for the streams that it has."""
    factory = w.downstream(tls_certificate_sds_secret_configs=[ads("s")])
    warm(w.contexts[0])
    w.deliver(certificate_secret("s", world().server))
    w.contexts[0].close()
    assert shown(factory) == "CN=server"


def test_one_who_cannot_use_it_is_refused_alone_when_it_comes_later(w: World) -> None:
    lenient = w.upstream(validation_context_sds_secret_config=ads("ca"))
    warm(w.contexts[0])
    w.deliver(secret("ca", validation_context={"verify_certificate_hash": ["ab" * 32]}))
    strict = w.upstream(
        {"sni": "a.test", "auto_sni_san_validation": True}, validation_context_sds_secret_config=ads("ca")
    )
    assert warm(w.contexts[1]) == ["ready"]
    assert not isinstance(lenient.new(), NotReadySocket)
    assert isinstance(strict.new(), NotReadySocket)


# -- combined_validation_context


@pytest.mark.parametrize(
    ("default", "held", "passes"),
    [
        (SAN, {}, True),
        ({"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": "spiffe://no"}}]}, {}, False),
        ({"trusted_ca": inline(world().other_ca.pem)}, {}, True),  # the secret's goes before it
        ({"trusted_ca": inline(world().ca.pem)}, None, True),
        ({"verify_certificate_hash": ["ab" * 32]}, {}, False),
        ({"allow_expired_certificate": True}, {}, True),
        ({"max_verify_depth": 0}, {"max_verify_depth": 3}, True),
    ],
)
def test_a_secret_is_merged_into_what_stands_beside_it(
    w: World, default: Yaml, held: Yaml | None, passes: bool
) -> None:
    """As Envoy does it (measured): protobuf's merge, so lists are joined and a CA of the secret replaces the other."""
    factory = w.downstream(
        {"require_client_certificate": True},
        tls_certificate_sds_secret_configs=[ads("server")],
        combined_validation_context={
            "default_validation_context": default,
            "validation_context_sds_secret_config": ads("ca"),
        },
    )
    warm(w.contexts[0])
    w.deliver(certificate_secret("server", world().server))
    without_ca = secret("ca", validation_context={"only_verify_leaf_cert_crl": True})
    assert w.deliver(without_ca if held is None else authority_secret("ca", world().ca, **held)) == []
    assert talk(factory, asking(certificate=world().client))[0].established == passes


# -- several certificates, ticket keys


def test_certificates_are_chosen_by_name(w: World) -> None:
    factory = w.downstream(tls_certificate_sds_secret_configs=[ads("one"), ads("two")])
    warm(w.contexts[0])
    w.deliver(certificate_secret("one", issue("one", world().ca, names=dns("one.test"))))
    assert isinstance(factory.new(), NotReadySocket)
    w.deliver(certificate_secret("two", issue("two", world().ca, names=dns("two.test"))))
    for name in ("one", "two"):
        server, client = talk(factory, asking(server_name=f"{name}.test"))
        assert client.established
        assert server.facts.server_name == f"{name}.test"
        assert f"CN={name}" in cx509.load_der_x509_certificate(client.facts.peer_chain()[0]).subject.rfc4514_string()


def test_ticket_keys_of_a_secret(w: World) -> None:
    given = {"session_ticket_keys_sds_secret_config": ads("tickets")}
    factories = [w.downstream(given, tls_certificates=[certificate(world().server)]) for _ in range(2)]
    for context in w.contexts:
        warm(context)
    assert w.deliver(secret("tickets", session_ticket_keys={"keys": [inline(b"short")]})) == [
        ("session_ticket_keys.keys[0]", "incorrect TLS session ticket key length; 5 bytes instead of 80")
    ]
    assert isinstance(factories[0].new(), NotReadySocket)
    assert w.deliver(secret("tickets", session_ticket_keys={"keys": [inline(TICKET_KEY)]})) == []
    client = asking()
    assert not talk(factories[0], client)[0].facts.resumed
    assert talk(factories[1], client)[0].facts.resumed


# -- files that a secret names


def test_files_of_a_secret_are_looked_at(w: World, tmp_path: Path) -> None:
    chain, key = tmp_path / "chain", tmp_path / "key"

    def put(issued: Issued, other: Issued | None = None) -> None:
        for path, data in ((chain, issued.pem), (key, (other or issued).key_pem)):
            fresh = path.with_suffix(".new")
            fresh.write_bytes(data)
            fresh.rename(path)

    def look() -> None:
        (watch,) = w.subscriptions.of(SECRET_TYPE, "s")
        for _ in range(2):  # it must have been quiet between two looks
            cast(Any, watch.watcher).look_at_files()
        w.run_spawned()

    put(world().server)
    factory = w.downstream(tls_certificate_sds_secret_configs=[ads("s")])
    warm(w.contexts[0])
    held = {"certificate_chain": {"filename": str(chain)}, "private_key": {"filename": str(key)}}
    assert w.deliver(secret("s", tls_certificate=held)) == []
    look()
    assert shown(factory) == "CN=server"
    put(NEW)
    look()
    assert shown(factory) == "CN=new"
    put(world().server, NEW)
    look()
    look()
    assert shown(factory) == "CN=new"
    assert w.counted("sds.s.key_rotation_failed") == 1
    put(world().server)
    look()
    assert shown(factory) == "CN=server"
    assert w.counted("listener.l.server_ssl_socket_factory.ssl_context_update_by_sds") == 3
    assert w.counted("sds.s.update_success") == 1


class Files:
    """Secret `s` of two files, which two use."""

    def __init__(self, w: World, directory: Path) -> None:
        self.chain, self.key = directory / "chain", directory / "key"
        self.held = {"certificate_chain": {"filename": str(self.chain)}, "private_key": {"filename": str(self.key)}}
        self.put(world().server)
        self.factories = [w.downstream(tls_certificate_sds_secret_configs=[ads("s")]) for _ in range(17)]
        for context in w.contexts:
            warm(context)
        assert w.deliver(secret("s", tls_certificate=self.held)) == []
        (watch,) = w.subscriptions.of(SECRET_TYPE, "s")
        self.secret = cast(Any, watch.watcher)

    def put(self, issued: Issued) -> None:
        for path, data in ((self.chain, issued.pem), (self.key, issued.key_pem)):
            fresh = path.with_suffix(".new")
            fresh.write_bytes(data)
            fresh.rename(path)

    def look(self) -> None:
        for _ in range(2):
            self.secret.look_at_files()

    def shown(self) -> list[str]:
        """To the first that uses it, and to the last."""
        return [shown(self.factories[index]) for index in (0, -1)]


async def step_by_step(steps: Iterator[None]) -> None:
    for _ in steps:
        await asyncio.sleep(0)


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshproxy.config.secrets.in_slices", step_by_step)


def test_files_are_read_again_in_steps(w: World, tmp_path: Path, short_slices: None) -> None:
    files = Files(w, tmp_path)
    files.put(NEW)
    files.look()
    (task,) = w.spawned
    assert files.shown() == ["CN=server", "CN=server"]
    while files.shown() == ["CN=server", "CN=server"]:
        task.step()
    assert files.shown() == ["CN=new", "CN=server"]
    files.look()
    assert w.spawned == [task]
    task.run()
    assert files.shown() == ["CN=new", "CN=new"]


@pytest.mark.parametrize("good", [True, False])
def test_what_comes_while_files_are_read_again_counts(w: World, tmp_path: Path, short_slices: None, good: bool) -> None:
    files = Files(w, tmp_path)
    files.put(NEW)
    files.look()
    while files.shown() == ["CN=server", "CN=server"]:
        w.spawned[0].step()
    if good:
        assert w.deliver(certificate_secret("s", world().server)) == []
        w.run_spawned()
        assert files.shown() == ["CN=server", "CN=server"]
        assert not files.secret._timer.armed
    else:
        assert w.deliver(certificate_secret("s", world().server, NEW)) != []
        files.look()
        w.run_spawned()
        assert files.shown() == ["CN=new", "CN=new"]


def test_files_are_looked_at_though_they_could_not_be_read(
    w: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(w, tmp_path)
    monkeypatch.setattr("meshproxy.config.secrets.read_secret", None)
    files.put(NEW)
    files.secret._timer.disarm()
    files.look()
    with pytest.raises(TypeError):
        w.run_spawned()
    assert files.secret._timer.armed
    monkeypatch.undo()
    files.put(world().client)
    files.look()
    w.run_spawned()
    assert files.shown() == ["CN=client", "CN=client"]


# -- what is told of them


def test_expiry_and_certs_are_of_the_latest(w: World) -> None:
    w.downstream(tls_certificate_sds_secret_configs=[ads("server")], validation_context_sds_secret_config=ads("ca"))
    (context,) = w.contexts
    warm(context)
    w.deliver(certificate_secret("server", world().server))
    assert context.tls == []
    w.deliver(authority_secret("ca", world().ca))
    (certified,) = context.tls
    for issued in (world().server, NEW):
        w.deliver(certificate_secret("server", issued))
        (described,) = describe(certified)["cert_chain"]
        assert int(described["serial_number"], 16) == issued.certificate.serial_number
        expires = int(issued.certificate.not_valid_after_utc.timestamp())
        assert w.counted("listener.l.ssl.certificate.server.expiration_unix_time_seconds") == expires
    assert len(describe(certified)["ca_cert"]) == 1
    expires = int(world().ca.certificate.not_valid_after_utc.timestamp())
    assert w.counted("listener.l.ssl.certificate.ca.expiration_unix_time_seconds") == expires


# -- what cannot be built


@pytest.mark.parametrize(
    ("is_server", "common", "path", "reason"),
    [
        (True, {"tls_certificates": [certificate(world().server)], "tls_certificate_sds_secret_configs": [ads("a")]},
         "tls_certificate_sds_secret_configs[0]", "may not be mixed"),
        (False, {"tls_certificates": [certificate(world().server)], "tls_certificate_sds_secret_configs": [ads("a")]},
         "tls_certificate_sds_secret_configs[0]", "not supported for client"),
        (False, {"tls_certificate_sds_secret_configs": [ads("a"), ads("b")]},
         "tls_certificate_sds_secret_configs[0]", "not supported for client"),
        (True, {"tls_certificate_sds_secret_configs": [{"name": "a"}]},
         "tls_certificate_sds_secret_configs[0].name", "no tls_certificate of this name"),
        (True, {"tls_certificate_sds_secret_configs": [{"name": "a", "sds_config": {}}]},
         "tls_certificate_sds_secret_configs[0].sds_config", "is required"),
        (False, {"validation_context_sds_secret_config": {"name": "a"}},
         "validation_context_sds_secret_config.name", "no validation_context of this name"),
        # what stands beside secrets is looked at before they come
        (False, {"validation_context_sds_secret_config": ads("a"), "tls_params": {"cipher_suites": ["NOPE"]}},
         "tls_params.cipher_suites", "NOPE"),
        (False, {"validation_context_sds_secret_config": ads("a"),
                 "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"}},
         "tls_params.tls_minimum_protocol_version", "greater than the maximum"),
        (False, {"validation_context_sds_secret_config": ads("a"),
                 "tls_certificates": [certificate(world().server, world().client)]},
         "tls_certificates[0].private_key", "KEY_VALUES_MISMATCH"),
        (True, {"tls_certificate_sds_secret_configs": [ads("a")],
                "validation_context": {"trusted_ca": {"inline_string": "x"}}},
         "validation_context.trusted_ca", "Failed to load trusted CA"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_names_its_field(w: World, is_server: bool, common: Yaml, path: str, reason: str) -> None:
    context = w.context()
    kind: Any = tls_pb2.DownstreamTlsContext if is_server else tls_pb2.UpstreamTlsContext
    message = json_format.ParseDict({"common_tls_context": common}, kind())
    if is_server:
        assert build_downstream_tls(message, "tls", context) is None
    else:
        assert build_upstream_tls(message, "tls", context, "cluster.c.") is None
    assert [each.path for each in context.errors.items] == [f"tls.common_tls_context.{path}"]
    assert reason in context.errors.items[0].reason


def test_a_build_that_only_checks_asks_for_nothing(w: World) -> None:
    context = w.context()
    context.services = None
    message = json_format.ParseDict(
        {"common_tls_context": {"validation_context_sds_secret_config": ads("a")}}, tls_pb2.UpstreamTlsContext()
    )
    assert build_upstream_tls(message, "tls", context, "cluster.c.") is not None
    context.close()
    assert w.watched() == []


# -- static secrets


def bootstrap_with(w: World, *messages: Any) -> tuple[BuildContext, list[tuple[str, str]]]:
    """A context for what refers to these, and what is wrong with them."""
    context = w.context()
    static = bootstrap_pb2.Bootstrap.StaticResources(secrets=messages)
    steps = build_static_secrets(static.secrets, "static_resources", context)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            context.static_secrets = end.value
            return context, [(each.path, each.reason) for each in context.errors.items]


def test_secrets_of_the_bootstrap_are_there_at_once(w: World, tmp_path: Path) -> None:
    chain = tmp_path / "chain"
    chain.write_bytes(world().server.pem)
    held = certificate(world().server) | {"certificate_chain": {"filename": str(chain)}}
    messages = (
        secret("s", tls_certificate=held), authority_secret("ca", world().ca), certificate_secret("other", NEW),
    )  # fmt: skip
    context, errors = bootstrap_with(w, *messages)
    assert errors == []
    common = {
        "tls_certificate_sds_secret_configs": [{"name": "s"}],
        "combined_validation_context": {
            "default_validation_context": SAN,
            "validation_context_sds_secret_config": {"name": "ca"},
        },
    }
    given = {"require_client_certificate": True, "common_tls_context": common}
    factory = build_downstream_tls(json_format.ParseDict(given, tls_pb2.DownstreamTlsContext()), "tls", context)
    assert isinstance(factory, TlsSocketFactory)
    assert context.init_targets == []
    assert list(context.files) == [str(chain)]
    assert talk(factory, asking(certificate=world().client))[0].established
    stranger = issue("client", world().ca, names=uri("spiffe://mesh/other"))
    assert not talk(factory, asking(certificate=stranger))[0].established
    context.take_effect()
    expires = int(world().server.certificate.not_valid_after_utc.timestamp())
    assert w.counted("listener.l.ssl.certificate.s.expiration_unix_time_seconds") == expires


def test_what_is_wrong_with_secrets_of_the_bootstrap(w: World) -> None:
    context, errors = bootstrap_with(
        w,
        certificate_secret("s", world().server),
        certificate_secret("s", world().server),
        certificate_secret("bad", world().server, world().client),
    )
    assert [path for path, _ in errors] == [
        "static_resources.secrets[1].name",
        "static_resources.secrets[2].tls_certificate.private_key",
    ]
    common = {"tls_certificate_sds_secret_configs": [{"name": "bad"}]}
    message = json_format.ParseDict({"common_tls_context": common}, tls_pb2.DownstreamTlsContext())
    assert build_downstream_tls(message, "tls", context) is None


def test_names_without_an_authority_in_secrets_of_the_bootstrap(w: World) -> None:
    context, errors = bootstrap_with(w, secret("pins", validation_context={"verify_certificate_hash": ["ab" * 32]}))
    assert errors == []
    combined = {"default_validation_context": SAN, "validation_context_sds_secret_config": {"name": "pins"}}
    given = {"common_tls_context": {"combined_validation_context": combined}}
    assert build_upstream_tls(json_format.ParseDict(given, tls_pb2.UpstreamTlsContext()), "tls", context, "c.") is None
    assert "without trusted CA is insecure" in context.errors.items[0].reason


# -- the tables


@pytest.mark.parametrize(
    ("held", "path", "reason"),
    [
        ({"tls_certificate": {"private_key_provider": {"provider_name": "cryptomb"}}},
         "s.tls_certificate.private_key_provider", "private key providers"),
        ({"validation_context": {"require_signed_certificate_timestamp": True}},
         "s.validation_context.require_signed_certificate_timestamp", "is not supported"),
    ],
)  # fmt: skip
def test_what_a_secret_may_not_hold(held: Yaml, path: str, reason: str) -> None:
    errors = ConfigErrors()
    check_fields(secret("s", **held), "s", errors)
    assert [each.path for each in errors.items] == [path]
    assert reason in errors.items[0].reason
