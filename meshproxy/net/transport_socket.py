"""What may stand between the bytes of a socket and those that a handler reads and writes: TLS, a proxy protocol header,
filters in Python.

A `TransportSocket` does no I/O. Its `Connection` gives it what the socket received and sends what it puts out, at the
end of the turn, as always; plain connections have none, and pay nothing for it.
"""

from __future__ import annotations

from typing import Any

from mypy_extensions import mypyc_attr


@mypyc_attr(allow_interpreted_subclasses=True)
class TransportSocket:
    """One connection's. Nothing here raises for what a peer sends: a failure is `failure`, and a connection that has
    one is closed after its last output (an alert)."""

    def __init__(self) -> None:
        self.established: bool = False  # the handshake is done: plain bytes can go both ways
        self.failure: str = ""  # why the connection is of no more use, in Envoy's words
        self.at_end: bool = False  # the peer has said that it sends no more (close_notify)
        self.buffers: bool = False  # it may hold bytes back: `receive(b"")` asks for them, `at_end` comes after them
        self.costly_handshake: bool = False  # it takes so much CPU that handshakes queue up (a TLS server's)
        self.facts: Any = None  # what is known of the session, see tls.facts; None before it is established

    def start(self) -> None:
        """The socket is connected: a client's first bytes may go out."""

    def receive(self, data: bytes) -> list[bytes]:
        """Take what the socket received; the plain bytes that came of it. It may establish the connection, end the
        peer's direction, fail, and put something out."""
        raise NotImplementedError

    def receive_eof(self) -> None:
        """The socket's peer has shut its side, with or without having said so here."""

    def send(self, data: bytes) -> None:
        """Plain bytes to be sent, after the connection is established."""
        raise NotImplementedError

    def shut(self) -> None:
        """Nothing more will be sent: say so to the peer (close_notify). Its direction stays open."""

    def take_output(self) -> bytes:
        """Take all that is to be written to the socket."""
        raise NotImplementedError

    def holds_output(self) -> bool:
        """Whether something that was sent before `shut` is still to come: our side stays open until it has."""
        return False

    def on_close(self) -> None:
        """The connection is gone."""


@mypyc_attr(allow_interpreted_subclasses=True)
class TransportSocketFactory:
    """What configuration says of transport sockets: makes one for each connection."""

    def __init__(self) -> None:
        self.asks_for_host: bool = False  # `server_name` is to be the host's name

    def new(
        self,
        server_name: str = "",
        demanded_name: str = "",
        protocols: tuple[str, ...] = (),
        instead: bool = False,
    ) -> TransportSocket:
        """All are for the upstream's side: what to ask for, whose certificate it must be, beside what the configuration
        asks of it, and the protocols to offer (ALPN) where the configuration names none, or `instead` of those."""
        raise NotImplementedError
