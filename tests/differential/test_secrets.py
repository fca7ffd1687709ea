"""Secrets that stand in files (`path_config_source`), the real Envoy and meshproxy on one configuration: what clients and
upstreams see, before and after the files change."""

import base64
import json
import os
import socket
import ssl
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from tests.differential.pair import SUBJECT_IS_ENVOY
from tests.differential.tls import (
    DEADLINE_S,
    REQUEST,
    TLS,
    Client,
    TlsChain,
    TlsCluster,
    TlsListener,
    TlsSide,
    Upstream,
    World,
    certificate,
    inline,
)
from tests.differential.topic import Yaml
from tests.support.polling import wait_for
from tests.support.proxy import start_envoy, start_meshproxy
from tests.tls.certificates import Issued, dns, issue, uri, world

V12 = ssl.TLSVersion.TLSv1_2
NEW = issue("new", world().ca, names=dns("a.test"))
OTHER = issue("other", world().other_ca, names=dns("a.test"))
CLIENT = Client(certificate=world().client)
PLAIN = Client(plain=True)


def named(kind: str, exact: str) -> Yaml:
    return {"match_typed_subject_alt_names": [{"san_type": kind, "matcher": {"exact": exact}}]}


class Files:
    """A file for each secret, put in place by a rename."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="secrets-")
        self._versions = 0

    def path(self, name: str) -> str:
        return str(Path(self._directory.name) / f"{name}.yaml")

    def put(self, name: str, **held: Any) -> None:
        """Its secret holds this from now on; none at all when nothing is given."""
        self._versions += 1
        resources = [{"@type": TLS + "Secret", "name": name} | held] if held else []
        fresh = Path(self.path(name) + ".new")
        fresh.write_text(yaml.dump({"version_info": f"v{self._versions}", "resources": resources}))
        os.replace(fresh, self.path(name))

    def certificate(self, name: str, issued: Issued, key: Issued | None = None) -> None:
        held = certificate(issued) | {"private_key": inline((key or issued).key_pem)}
        self.put(name, tls_certificate=held)

    def authority(self, name: str, issued: Issued) -> None:
        self.put(name, validation_context={"trusted_ca": inline(issued.pem)})

    def secret(self, name: str) -> Yaml:
        """An SdsSecretConfig."""
        source = {"path_config_source": {"path": self.path(name)}, "resource_api_version": "V3"}
        return {"name": name, "sds_config": source}

    def close(self) -> None:
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def server(*certificates: Yaml, fields: Yaml | None = None, **common: Any) -> Yaml:
    """The transport socket of a filter chain."""
    common["tls_certificate_sds_secret_configs"] = list(certificates)
    config = {"@type": TLS + "DownstreamTlsContext", "common_tls_context": common} | (fields or {})
    return {"name": "tls", "typed_config": config}


def client(**common: Any) -> Yaml:
    """The transport socket of a cluster."""
    return {"name": "tls", "typed_config": {"@type": TLS + "UpstreamTlsContext", "common_tls_context": common}}


REQUIRED = {"require_client_certificate": True}


def configured(files: Files) -> World:
    secret = files.secret
    certificates = {"tls_certificate_sds_secret_configs": [secret("client")]}
    trusted = {"validation_context_sds_secret_config": secret("ca")}

    def combined(default: Yaml) -> Yaml:
        return {"combined_validation_context": {"default_validation_context": default} | trusted}

    chains = {
        "one": server(secret("server")),
        "two": server(secret("rsa"), secret("server")),
        "mutual": server(secret("server"), fields=REQUIRED, **trusted),
        "right_name": server(secret("server"), fields=REQUIRED, **combined(named("URI", "spiffe://mesh/client"))),
        "wrong_name": server(secret("server"), fields=REQUIRED, **combined(named("URI", "spiffe://mesh/nobody"))),
        "other_ca": server(secret("server"), fields=REQUIRED, **combined({"trusted_ca": inline(world().other_ca.pem)})),
        "without": server(secret("none")),
        "without_ca": server(secret("server"), fields=REQUIRED, validation_context_sds_secret_config=secret("none_ca")),
    }
    clusters = {
        "to_both": client(**certificates, **trusted),
        "to_name": client(**certificates, **combined(named("DNS", "a.test"))),
        "to_wrong_name": client(**certificates, **combined(named("DNS", "b.test"))),
        "to_without": client(tls_certificate_sds_secret_configs=[secret("none")], **trusted),
        "to_without_ca": client(**certificates, validation_context_sds_secret_config=secret("none_ca")),
    }
    listeners = {name: TlsListener({name: TlsChain(transport)}) for name, transport in chains.items()}
    listeners |= {name: TlsListener({name: TlsChain(cluster=name)}) for name in clusters}
    upstream = Upstream(client_ca=world().ca, version=V12)
    return World(listeners, {name: TlsCluster("up", each) for name, each in clusters.items()}, {"up": upstream})


def fill(files: Files) -> None:
    files.certificate("server", world().server)
    files.certificate("rsa", world().rsa_server)
    files.certificate("client", world().client)
    files.authority("ca", world().ca)
    files.put("none")
    files.put("none_ca")


@dataclass
class Sides:
    """Both proxies, and the files that both read."""

    files: Files
    envoy: TlsSide
    subject: TlsSide

    def settle(self, name: str, counter: str, count: int) -> None:
        """Both have counted so many updates of a secret."""
        for side in (self.envoy, self.subject):
            wait_for(lambda: side.proxy.stats(f"^sds.{name}.{counter}$")[f"sds.{name}.{counter}"] == count, counter)  # noqa: B023

    def compare(self, listener: str) -> dict[str, str]:
        """What a client meets at both."""
        who = PLAIN if listener.startswith("to_") else CLIENT
        theirs, ours = (flat(side.run(listener, who)) for side in (self.envoy, self.subject))
        assert ours == theirs
        return theirs


def flat(found: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """`connection.flags` …, but for what is different in every failed handshake (test_tls.py has it)."""
    parts: dict[str, str] = {}
    for name, value in found.items():
        if name not in ("kind", "listener", "version", "local", "subject", "uri"):
            parts |= flat(value, f"{name}.") if isinstance(value, dict) else {prefix + name: value}
    return parts


@pytest.fixture(scope="module")
def sides() -> Iterator[Sides]:
    start_subject = start_envoy if SUBJECT_IS_ENVOY else start_meshproxy
    with Files() as files:
        fill(files)
        made = configured(files)
        with TlsSide(made, start_envoy) as envoy, TlsSide(made, start_subject) as subject:
            yield Sides(files, envoy, subject)


LISTENERS = (
    *("one", "two", "mutual", "right_name", "wrong_name", "other_ca", "without", "without_ca"),
    *("to_both", "to_name", "to_wrong_name", "to_without", "to_without_ca"),
)


@pytest.mark.parametrize("listener", LISTENERS)
def test_as_envoy(sides: Sides, listener: str) -> None:
    sides.compare(listener)


def test_what_is_told_of_them(sides: Sides) -> None:
    """Contexts that are made of secrets, connections that had none, when certificates expire, and what they are."""
    names = "_ssl_socket_factory|ssl.certificate|^sds.*(key_rotation_failed|init_fetch_timeout)"
    for listener in ("one", "without", "to_without"):
        sides.compare(listener)
    assert sides.subject.proxy.stats(names) == sides.envoy.proxy.stats(names)
    told = [side.proxy.admin("/certs")[1] for side in (sides.envoy, sides.subject)]
    theirs, ours = (sorted(json.dumps(each) for each in json.loads(text)["certificates"]) for text in told)
    assert ours == theirs


@pytest.mark.long
def test_rotation_as_envoy() -> None:
    """Each change: which secret, what becomes of it, and who notices."""
    start_subject = start_envoy if SUBJECT_IS_ENVOY else start_meshproxy
    with Files() as files:
        fill(files)
        made = configured(files)
        with TlsSide(made, start_envoy) as envoy, TlsSide(made, start_subject) as subject:
            sides = Sides(files, envoy, subject)
            seen = {name: sides.compare(name) for name in ("one", "mutual", "to_both")}

            def noticed(*counted: tuple[str, str, int]) -> list[str]:
                for name, counter, count in counted:
                    sides.settle(name, counter, count)
                now = {name: sides.compare(name) for name in seen}
                others = [name for name, before in seen.items() if now[name] != before]
                seen.update(now)
                return others

            files.certificate("server", NEW)
            files.put("ca", validation_context={"trusted_ca": {"inline_string": "garbage"}})
            assert noticed(("server", "update_success", 2), ("ca", "update_rejected", 1)) == ["one", "mutual"]
            files.certificate("server", NEW, world().client)
            files.authority("ca", world().other_ca)
            assert noticed(("server", "update_rejected", 1), ("ca", "update_success", 2)) == ["mutual", "to_both"]
            files.put("server", validation_context={"trusted_ca": inline(world().ca.pem)})
            files.authority("ca", world().ca)
            assert noticed(("server", "update_rejected", 2), ("ca", "update_success", 3)) == ["mutual", "to_both"]
            files.certificate("client", OTHER)
            assert noticed(("client", "update_success", 2)) == ["to_both"]
            pattern = "_ssl_socket_factory|ssl.certificate"
            assert subject.proxy.stats(pattern) == envoy.proxy.stats(pattern)


# -- static_resources.secrets


def static(*names: str, **common: Any) -> Yaml:
    """The transport socket of a filter chain whose certificates have these names."""
    return server(*({"name": name} for name in names), **common)


def test_static_secrets_as_envoy() -> None:
    """They are there at once; `/config_dump` has them, without keys, and `/certs` and expiry by their names."""
    start_subject = start_envoy if SUBJECT_IS_ENVOY else start_meshproxy
    ticket_key = base64.b64encode(bytes(80)).decode()
    secrets: tuple[Yaml, ...] = (
        {"name": "server", "tls_certificate": certificate(world().server)},
        {"name": "other", "tls_certificate": certificate(NEW)},
        {"name": "ca", "validation_context": {"trusted_ca": inline(world().ca.pem)}},
        {"name": "tickets", "session_ticket_keys": {"keys": [{"inline_bytes": ticket_key}]}},
    )
    trusted: Any = {"validation_context_sds_secret_config": {"name": "ca"}}
    tickets = REQUIRED | {"session_ticket_keys_sds_secret_config": {"name": "tickets"}}
    listeners = {
        "one": TlsListener({"one": TlsChain(static("other"))}),
        "mutual": TlsListener({"mutual": TlsChain(static("server", fields=tickets, **trusted))}),
        "to": TlsListener({"to": TlsChain(cluster="to")}),
    }
    clusters = {"to": TlsCluster("up", client(tls_certificate_sds_secret_configs=[{"name": "server"}], **trusted))}
    made = World(listeners, clusters, {"up": Upstream(client_ca=world().ca, version=V12)}, secrets)
    with TlsSide(made, start_envoy) as envoy, TlsSide(made, start_subject) as subject:
        for name in listeners:
            who = PLAIN if name == "to" else CLIENT
            assert flat(subject.run(name, who)) == flat(envoy.run(name, who))
        pattern = "_ssl_socket_factory|ssl.certificate|^sds"
        assert subject.proxy.stats(pattern) == envoy.proxy.stats(pattern)
        assert dumped_secrets(subject) == dumped_secrets(envoy)


def dumped_secrets(side: TlsSide) -> list[Any]:
    configs = json.loads(side.proxy.admin("/config_dump")[1])["configs"]
    (section,) = (each for each in configs if each["@type"].endswith("SecretsConfigDump"))
    return sorted(section["static_secrets"], key=lambda each: str(each["name"]))


# -- what differs on purpose

DIFFERENCES = {"sessions-after-renewal", "expired-secret", "expired-session"}


def resumption(side: TlsSide, session: ssl.SSLSession | None, context: ssl.SSLContext) -> tuple[bool, ssl.SSLSession]:
    """Whether a connection resumed the session, and its own."""
    address = ("127.0.0.1", side.ports["one"])
    with socket.create_connection(address, DEADLINE_S) as sock:
        tls = context.wrap_socket(sock, server_hostname="a.test", session=session)
        with tls:
            tls.sendall(REQUEST % b"")
            assert tls.recv(4096).startswith(b"HTTP/1.1 200")
            assert tls.session is not None
            return bool(tls.session_reused), tls.session


def test_sessions_survive_the_renewal_of_a_certificate() -> None:
    """The row `sessions-after-renewal` of docs/envoy-differences.md."""
    start_subject = start_envoy if SUBJECT_IS_ENVOY else start_meshproxy
    with Files() as files:
        files.certificate("server", world().server)
        made = World({"one": TlsListener({"one": TlsChain(server(files.secret("server")))})})
        with TlsSide(made, start_envoy) as envoy, TlsSide(made, start_subject) as subject:
            sides = Sides(files, envoy, subject)
            context = Client().context()
            sessions = [resumption(side, None, context)[1] for side in (envoy, subject)]
            again = [resumption(side, held, context) for side, held in zip((envoy, subject), sessions, strict=True)]
            assert [resumed for resumed, _ in again] == [True, True]
            files.certificate("server", NEW)
            sides.settle("server", "update_success", 2)
            later = [
                resumption(side, held, context)[0] for side, (_, held) in zip((envoy, subject), again, strict=True)
            ]
            assert later == [False, not SUBJECT_IS_ENVOY]


@pytest.mark.parametrize("days", [(-10, -1), (2, 4)], ids=["expired", "early"])
def test_what_is_not_valid_now_is_not_taken(days: tuple[int, int]) -> None:
    """The row `expired-secret` of docs/envoy-differences.md: of a certificate, and of authorities."""
    start_subject = start_envoy if SUBJECT_IS_ENVOY else start_meshproxy
    untimely = issue("untimely", world().ca, names=dns("a.test"), days=days)
    untimely_ca = issue("ca", ca=True, days=days, key=world().ca.key, subject=world().ca.certificate.subject)
    with Files() as files:
        fill(files)
        mutual = server(
            files.secret("server"), fields=REQUIRED, validation_context_sds_secret_config=files.secret("ca")
        )
        made = World({"mutual": TlsListener({"mutual": TlsChain(mutual)})})
        with TlsSide(made, start_envoy) as envoy, TlsSide(made, start_subject) as subject:
            sides = Sides(files, envoy, subject)
            before = sides.compare("mutual")
            files.certificate("server", untimely)
            files.put("ca", validation_context={"trusted_ca": inline(untimely_ca.pem)})
            met = []
            for side in (envoy, subject):
                counter = "update_rejected" if side is subject and not SUBJECT_IS_ENVOY else "update_success"
                for name in ("server", "ca"):
                    counted = f"sds.{name}.{counter}"
                    wait_for(lambda: side.proxy.stats(counted)[counted] == 1 + (counter == "update_success"), counted)  # noqa: B023
                met.append(flat(side.run("mutual", CLIENT)))
            assert met[0]["handshake"] != before["handshake"]
            assert SUBJECT_IS_ENVOY or met[1] == before


@pytest.mark.long
def test_a_session_ends_with_its_client_s_certificate() -> None:
    """The row `expired-session` of docs/envoy-differences.md."""
    start_subject = start_envoy if SUBJECT_IS_ENVOY else start_meshproxy
    with Files() as files:
        fill(files)
        mutual = server(
            files.secret("server"), fields=REQUIRED, validation_context_sds_secret_config=files.secret("ca")
        )
        made = World({"one": TlsListener({"one": TlsChain(mutual)})})
        with TlsSide(made, start_envoy) as envoy, TlsSide(made, start_subject) as subject:
            hour = 1 / 24  # which `issue` adds
            short = issue("short", world().ca, names=uri("spiffe://mesh/client"), days=(-1, 30 / 86400 - hour))
            context = Client(certificate=short, version=V12).context()
            sessions = [resumption(side, None, context)[1] for side in (envoy, subject)]
            again = [resumption(side, held, context) for side, held in zip((envoy, subject), sessions, strict=True)]
            assert [resumed for resumed, _ in again] == [True, True]
            expires = short.certificate.not_valid_after_utc.timestamp()
            wait_for(lambda: time.time() > expires + 1.0, "the certificate to expire", 60.0)
            assert resumption(envoy, again[0][1], context)[0]
            if SUBJECT_IS_ENVOY:
                return
            with pytest.raises(ssl.SSLError, match="CERTIFICATE_EXPIRED"):
                resumption(subject, again[1][1], context)
            assert subject.proxy.stats("fail_verify_error")["listener.one.ssl.fail_verify_error"] == 1
