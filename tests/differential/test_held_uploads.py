"""Uploads that cannot go on: what is kept of them stays bounded, and the downstream waits, as in Envoy."""

import select
import socket

from tests.differential.cases import get
from tests.differential.pair import Pair, Side
from tests.differential.topic import Topic
from tests.support.downstream import RawDownstream
from tests.support.upstream import OK, Answer

BODY_BYTES = 40_000_000
STUCK_S = 0.5
PIECE = b"x" * 65536
TOPIC = Topic(
    vhosts="""
- name: mirrored
  domains: [mirrored.test]
  routes:
  - match: { prefix: / }
    route: { cluster: a, request_mirror_policies: [{ cluster: dead }] }
- name: single
  domains: [single.test]
  routes:
  - { match: { prefix: / }, route: { cluster: single } }
""",
    clusters={"single": "hosts: [a]\ncircuit_breakers: { thresholds: [{ max_connections: 1 }] }"},
)


def test_a_request_waits_for_its_shadow(pair: Pair) -> None:
    """The shadow's server does not read, until it leaves."""
    assert [mirrored(side) for side in (pair.reference, pair.subject)] == [True, True]


def test_a_request_waits_for_its_connection(pair: Pair) -> None:
    """The cluster's one connection is another request's, until that is answered."""
    assert [pending(side) for side in (pair.reference, pair.subject)] == [True, True]


def mirrored(side: Side) -> bool:
    """Whether the upload came to a halt before its end."""
    side.upstream.play()
    side.dead.listen()  # the kernel takes the connection; nobody reads from it
    with RawDownstream(side.ports["main"]) as downstream:
        sent = upload_until_stuck(downstream, "mirrored.test")
        shadow, _ = side.dead.accept()
        shadow.close()
        finish(downstream, sent)
    return 0 < sent < BODY_BYTES


def pending(side: Side) -> bool:
    """Whether the upload came to a halt before its end."""
    side.upstream.play([Answer(wait_for="go"), OK])
    with RawDownstream(side.ports["main"]) as first, RawDownstream(side.ports["main"]) as downstream:
        first.send(get("/", host="single.test"))
        side.upstream.wait_seen(1)
        sent = upload_until_stuck(downstream, "single.test")
        side.upstream.fire("go")
        finish(downstream, sent)
    return 0 < sent < BODY_BYTES


def upload_until_stuck(downstream: RawDownstream, host: str) -> int:
    """Send an upload for as long as the proxy takes it; how much of the body it took."""
    downstream.send(f"POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: {BODY_BYTES}\r\n\r\n".encode())
    sock: socket.socket = downstream.sock
    sock.setblocking(False)
    sent = 0
    while sent < BODY_BYTES and select.select([], [sock], [], STUCK_S)[1]:
        sent += sock.send(PIECE[: BODY_BYTES - sent])
    sock.settimeout(5.0)
    return sent


def finish(downstream: RawDownstream, sent: int) -> None:
    """Send the rest: it is answered."""
    downstream.sock.sendall(b"x" * (BODY_BYTES - sent))
    assert downstream.receive(b"POST").status == 200
