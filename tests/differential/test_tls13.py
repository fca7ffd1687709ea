"""What a TLS 1.3 handshake costs a server, the real Envoy and meshproxy: the suite that it picks, the tickets it sends."""

import socket
import ssl
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.differential.pair import SUBJECT_IS_ENVOY
from tests.differential.tls import DEADLINE_S, REQUEST, TLS, TlsChain, TlsListener, TlsSide, World, certificate
from tests.support.proxy import start_envoy, start_meshproxy
from tests.tls.certificates import world

DIFFERENCES = {"tls13-suite", "tls13-tickets"}
AES_128, AES_256, CHACHA = "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"
HANDSHAKE, SESSION_TICKET = 22, 4  # RFC 8446 sections 5.1 and 4: ContentType, HandshakeType


@pytest.fixture(scope="module")
def sides() -> Iterator[tuple[TlsSide, TlsSide]]:
    common = {"tls_certificates": [certificate(world().server)]}
    transport = {"name": "tls", "typed_config": {"@type": TLS + "DownstreamTlsContext", "common_tls_context": common}}
    made = World({"one": TlsListener({"one": TlsChain(transport)})})
    start_subject = start_envoy if SUBJECT_IS_ENVOY else start_meshproxy
    with TlsSide(made, start_envoy) as envoy, TlsSide(made, start_subject) as subject:
        yield envoy, subject


def suite(side: TlsSide, *offered: str) -> str:
    """What is picked of these."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{side.ports['one']}", "-ciphersuites", ":".join(offered)]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=60, check=False)
    (line,) = (line for line in done.stdout.decode().splitlines() if "Cipher is" in line)
    return line.rpartition(" ")[2]


@pytest.mark.parametrize(
    "offered",
    [(AES_128, AES_256), (AES_128, CHACHA, AES_256), (CHACHA, AES_128), (CHACHA, AES_256), (AES_256,), (CHACHA,)],
    ids=lambda offered: "-".join(name.split("_")[-2][:3] + name.split("_")[-1] for name in offered),
)
def test_the_suite(sides: tuple[TlsSide, TlsSide], offered: tuple[str, ...]) -> None:
    theirs, ours = (suite(side, *offered) for side in sides)
    assert ours == theirs


def test_the_suite_of_clients_that_begin_with_the_dearer_one(sides: tuple[TlsSide, TlsSide]) -> None:
    """The row `tls13-suite`."""
    theirs, ours = (suite(side, AES_256, AES_128) for side in sides)
    assert theirs == AES_256
    assert ours == (AES_256 if SUBJECT_IS_ENVOY else AES_128)


class Resuming:
    """A client that counts the tickets that come."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._count = 0
        self._session: ssl.SSLSession | None = None
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context._msg_callback = self._on_message  # type: ignore[attr-defined]

    def _on_message(self, _tls: Any, direction: str, _version: Any, kind: int, message: int, _data: bytes) -> None:
        self._count += (direction, kind, message) == ("read", HANDSHAKE, SESSION_TICKET)

    def connect(self) -> int:
        """One connection, which resumes that before; how many came on it."""
        self._count = 0
        with socket.create_connection(("127.0.0.1", self._port), DEADLINE_S) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._context.wrap_socket(sock, server_hostname="a.test", session=self._session) as tls:
                tls.sendall(REQUEST % b"connection: close\r\n")
                while tls.recv(4096):
                    continue
                assert tls.session_reused is (self._session is not None)
                self._session = tls.session
        return self._count


def test_how_many_tickets_come(sides: tuple[TlsSide, TlsSide]) -> None:
    """The row `tls13-tickets`: after a full handshake, and after a resumed one."""
    theirs, ours = (Resuming(side.ports["one"]) for side in sides)
    assert [theirs.connect() for _ in range(3)] == [2, 2, 2]
    assert [ours.connect() for _ in range(3)] == ([2, 2, 2] if SUBJECT_IS_ENVOY else [1, 1, 1])
