"""TLS connections one after the other: handshake, one request, its answer, the end. A program, started by bench.load.

    python -m bench.handshakes PORT SECONDS full|resumed [CERTIFICATE]

CERTIFICATE is a PEM file with a client's certificate and key. It prints one line of JSON: how long each connection
took, in µs.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time
from typing import Final

from meshproxy.tls import openssl
from meshproxy.tls.context import TLS13_CIPHERS

_REQUEST: Final = b"GET / HTTP/1.1\r\nhost: bench.test\r\nconnection: close\r\n\r\n"


def client_context() -> ssl.SSLContext:
    """TLS 1.3, any certificate. It would rather have AES-128, as sidecars, browsers and Go do where AES is in hardware:
    Envoy takes what the client prefers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    openssl.set_tls13_ciphers(context, TLS13_CIPHERS)
    return context


def converse(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None) -> ssl.SSLSession | None:
    """One connection; the session that the next one may resume. Raises RuntimeError when it went otherwise."""
    with (
        _connection(port) as plain,
        context.wrap_socket(plain, server_hostname="bench.test", session=session) as secure,
    ):
        secure.sendall(_REQUEST)
        answer = b"".join(iter(lambda: secure.recv(16384), b""))
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"answered {answer[:60]!r}")
        if secure.session_reused is not (session is not None):
            raise RuntimeError("a session was not resumed")
        return secure.session


def _connection(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    # Else the request waits for the handshake's last message to be acknowledged, which takes the peer's kernel 40 ms.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def main(port: int, seconds: int, *, resumes: bool, certificate: str) -> None:
    context = client_context()
    if certificate:
        context.load_cert_chain(certificate)
    session = converse(port, context, None) if resumes else None
    took_us: list[float] = []
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        last = converse(port, context, session)
        session = last if resumes else None
        took_us.append((time.perf_counter() - begin) * 1e6)
    print(json.dumps(took_us))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), resumes=sys.argv[3] == "resumed", certificate="".join(sys.argv[4:]))
