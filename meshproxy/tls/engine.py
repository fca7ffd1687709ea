"""TLS as a transport socket: an SSLObject over two memory BIOs, fed one record at a time.

Records are cut out of what the socket gives before OpenSSL sees them: so a read always has a whole record to return,
none ends in an exception for want of data, and the BIOs of an idle connection stay as small as a record.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, Final

from mypy_extensions import mypyc_attr

from meshproxy.net.transport_socket import TransportSocket
from meshproxy.tls import openssl
from meshproxy.tls.context import Identity, TlsContext
from meshproxy.tls.facts import TlsFacts
from meshproxy.tls.failure import failure_of, failure_text
from meshproxy.tls.inspector import ClientHelloReader
from meshproxy.tls.ocsp import NOT_ASKED, SENT
from meshproxy.tls.verify import CONNECTION_ERROR, NO_CERTIFICATE, NO_FAILURE, VERIFY_ERROR, VERIFY_SAN

_HEADER_BYTES: Final = 5
_SLICE_BYTES: Final = 16 * 1024  # a record holds no more plain bytes (RFC 8446 section 5.1)
_MAX_RECORD_BYTES: Final = _HEADER_BYTES + 16 * 1024 + 2048  # RFC 5246 section 6.2.3
_MAX_HELLO_BYTES: Final = 64 * 1024
_HANDSHAKE: Final = 22
_EXPIRED: Final = "verify cert failed: the certificate of the resumed session has expired"
_FIRST_TYPE: Final = 20
_LAST_TYPE: Final = 24


@mypyc_attr(allow_interpreted_subclasses=True)
class TlsEvents:
    """Told of what becomes of connections (stats); the base does nothing."""

    def on_handshake(self, facts: TlsFacts) -> None:
        """It succeeded."""

    def on_failure(self, failure: int) -> None:
        """What failed: a number of tls.verify. VERIFY_ERROR may come before a success, where untrusted is accepted."""

    def on_staple(self, sent: bool) -> None:
        """A client asked for an OCSP response, of a certificate that has one; it is left out when it is outdated."""


class TlsTransportSocket(TransportSocket):
    """One connection's TLS, either side.

    `server_name` is what a client asks for (SNI), `demanded_name` a name that the server's certificate must have,
    beside what the context asks of it; `protocols` are what it offers (ALPN) where the context names none, or
    `instead` of those.
    """

    def __init__(
        self,
        context: TlsContext,
        events: TlsEvents,
        server_name: str = "",
        demanded_name: str = "",
        protocols: tuple[str, ...] = (),
        instead: bool = False,
    ) -> None:
        super().__init__()
        self.costly_handshake = context.is_server
        self.application_protocol: str = ""  # what ALPN agreed on
        self.truncated: bool = False  # the peer's stream ended without a close_notify
        self._context = context
        self._events = events
        options = context.options
        self._server_name: str = server_name or options.server_name
        self._expected_name: str = self._server_name if options.expects_server_name else ""
        self._demanded_name: str = demanded_name
        self._protocols = protocols
        self._instead = instead
        self._ssl: ssl.SSLObject | None = None
        # the methods of what SSLObject wraps, once established: a Python frame less for each record (and so elsewhere)
        self._read: Callable[[int], bytes] = _not_established
        self._write: Callable[[bytes | memoryview], int] = _not_established
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._identity: Identity = context.identities[0]
        self._hello: ClientHelloReader | None = None
        self._held: bytes = b""  # the beginning of a record whose end has not come
        self._out: list[bytes] = []
        self._is_shut: bool = False
        self._refuses_handshakes: bool = False  # one of TLS 1.2, once established
        self._awaits_session: bool = False
        self._made_tickets: bool = False
        self._holds_output: bool = False  # tickets, until the first answer takes them along
        if context.is_server:
            if context.selector is not None:
                self._hello = ClientHelloReader()
            else:
                self._ssl = self._identity.ssl_context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    # -- the contract

    def start(self) -> None:
        """A client says hello; a server waits for it."""
        context = self._context
        if context.is_server:
            return
        context.offer(self._protocols, self._instead)
        session = context.take_session(self._session_key())
        try:
            self._ssl = self._identity.ssl_context.wrap_bio(
                self._incoming, self._outgoing, server_hostname=self._server_name or None
            )
            if session is not None:
                openssl.resume(self._ssl, session)
        except ValueError:  # of the idna codec too
            self._fail(failure_of("INVALID_SERVERNAME", self._server_name), CONNECTION_ERROR)
            return
        self._shake_hands()

    def receive(self, data: bytes) -> list[bytes]:
        if self.failure or self.at_end:
            return []
        if self._held:
            data = self._held + data
            self._held = b""
        if self._hello is not None and not self._read_hello(data):
            return []
        plain: list[bytes] = []
        position = self._take_records(data, plain)
        if position < len(data) and not self.failure:
            self._held = data[position:] if position > 0 else data
        if self._made_tickets:
            # Who waits for nothing (a request came right behind the handshake) gets them with its answer, in one write.
            self._made_tickets = False
            self._holds_output = len(plain) > 0
        return plain if len(plain) < 2 else [b"".join(plain)]

    def receive_eof(self) -> None:
        """Without a close_notify the stream may have been cut; as Envoy does, it ends all the same."""
        if not self.at_end:
            self.truncated = True
            self.at_end = True

    def send(self, data: bytes) -> None:
        if not self.established or self._is_shut or self.failure:
            return
        self._holds_output = False
        try:
            if len(data) <= _SLICE_BYTES:
                self._write(data)
                if self._outgoing.pending > _SLICE_BYTES:
                    self._out.append(self._outgoing.read())
                return
            view = memoryview(data)
            for begin in range(0, len(data), _SLICE_BYTES):
                self._write(view[begin : begin + _SLICE_BYTES])
                self._out.append(self._outgoing.read())
        except ssl.SSLError as error:
            self._fail(failure_text(error, ""), CONNECTION_ERROR)

    def shut(self) -> None:
        ssl_object = self._ssl
        if ssl_object is None or self._is_shut or not self.established or self.failure:
            return
        self._is_shut = True
        self._holds_output = False
        try:
            ssl_object._sslobj.shutdown()  # type: ignore[attr-defined]
        except ssl.SSLError:
            # The close_notify is out; that the peer's is not in, or that it broke off, is no news here.
            return

    def take_output(self) -> bytes:
        if self._holds_output:
            return b""
        if not self._out:
            return self._outgoing.read()
        out = self._out
        self._out = []
        out.append(self._outgoing.read())
        return b"".join(out)

    # -- records

    def _take_records(self, data: bytes, plain: list[bytes]) -> int:
        """Take the whole records in `data`; where the rest of it begins."""
        position = 0
        end = len(data)
        while end - position >= _HEADER_BYTES:
            stop = position + _HEADER_BYTES + (data[position + 3] << 8 | data[position + 4])
            if stop - position > _MAX_RECORD_BYTES or not (self.established or _is_record(data, position)):
                self._take_garbage(data[position:])
                return end
            if stop > end:
                break
            piece = self._take(data if position == 0 and stop == end else data[position:stop])
            if piece:
                plain.append(piece)
            elif self.failure or self.at_end:
                return end
            position = stop
        return position

    def _take(self, record: bytes) -> bytes:
        """The plain bytes of one record; nothing where it has none."""
        self._incoming.write(record)
        ssl_object = self._ssl
        assert ssl_object is not None
        if not self.established:
            self._shake_hands()
            return b""
        if self._refuses_handshakes and record[0] == _HANDSHAKE:
            self._refuse_renegotiation(ssl_object)
            return b""
        try:
            plain = self._read(len(record))
        except ssl.SSLWantReadError:  # a ticket, a key update, an empty record
            if self._awaits_session:
                self._keep_session(ssl_object)
            return b""
        except ssl.SSLZeroReturnError:  # close_notify, after ours
            self.at_end = True
            return b""
        except ssl.SSLError as error:
            self._fail(failure_text(error, ""), CONNECTION_ERROR)
            return b""
        if not plain:
            self.at_end = True
        return plain

    def _take_garbage(self, data: bytes) -> None:
        """What is no record: OpenSSL says what is wrong with it."""
        if self._ssl is None:
            return
        self._incoming.write(data[:_SLICE_BYTES])
        if self.established:
            try:
                self._ssl.read(1)
            except ssl.SSLError as error:
                self._fail(failure_text(error, ""), CONNECTION_ERROR)
        else:
            self._shake_hands()
        if not self.failure:
            self._fail(failure_of("WRONG_VERSION_NUMBER"), CONNECTION_ERROR)

    def _refuse_renegotiation(self, ssl_object: ssl.SSLObject) -> None:
        """OpenSSL answers with a warning and goes on; here that is the end, as with BoringSSL."""
        try:
            ssl_object.read(1)
        except ssl.SSLError as error:
            if not isinstance(error, ssl.SSLWantReadError):
                self._fail(failure_text(error, ""), CONNECTION_ERROR)
                return
        self._fail(failure_of("NO_RENEGOTIATION"), CONNECTION_ERROR)

    # -- the handshake

    def _read_hello(self, data: bytes) -> bool:
        """Whether the ClientHello is there, or will never be, and OpenSSL can have it; else `data` is held."""
        reader = self._hello
        assert reader is not None
        reader.receive(data)
        if reader.hello is None and not reader.failure and len(data) < _MAX_HELLO_BYTES:
            self._held = data
            return False
        self._hello = None
        identity = self._context.select(reader.hello)
        self._identity = identity
        self._ssl = identity.ssl_context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        return True

    def _shake_hands(self) -> None:
        ssl_object = self._ssl
        assert ssl_object is not None
        judge = self._context.judge
        if judge is not None:
            judge.begin(self._expected_name, self._demanded_name)
        staple = self._identity.staple
        if staple is not None:
            staple.outcome = NOT_ASKED
        try:
            ssl_object._sslobj.do_handshake()  # type: ignore[attr-defined]
        except ssl.SSLWantReadError:
            if judge is not None and judge.failure != NO_FAILURE:
                self._events.on_failure(judge.failure)  # untrusted, and accepted
            if staple is not None and staple.outcome != NOT_ASKED:
                self._events.on_staple(staple.outcome == SENT)
            return
        except ssl.SSLError as error:
            failure = _failure_kind(error)
            if failure == VERIFY_ERROR and judge is not None and judge.failure != NO_FAILURE:
                failure = judge.failure
            if judge is not None and judge.failure == CONNECTION_ERROR:
                self._fail(failure_of(judge.reason), failure)
            else:
                self._fail(failure_text(error, judge.reason if judge is not None else ""), failure)
            return
        if judge is not None and judge.failure != NO_FAILURE:
            self._events.on_failure(judge.failure)
        if self._demanded_name and (judge is None or not judge.verifies_chain):
            self._fail(failure_of("CERTIFICATE_VERIFY_FAILED"), VERIFY_SAN)  # whoever it is, it has signed its own name
            return
        if self._context.is_server and self._is_of_the_past(ssl_object):
            self._fail(failure_of("CERTIFICATE_VERIFY_FAILED", _EXPIRED), VERIFY_ERROR)
            return
        self._establish(ssl_object)

    def _is_of_the_past(self, ssl_object: ssl.SSLObject) -> bool:
        """A session of the cache vouches for its client no longer than the client's certificate was valid. (Of tickets,
        OpenSSL asks the context.)"""
        if not self._context.checks_times or not ssl_object._sslobj.session_reused:  # type: ignore[attr-defined]
            return False
        return openssl.resumed_expired_peer(ssl_object)

    def _establish(self, ssl_object: ssl.SSLObject) -> None:
        context = self._context
        judge = context.judge
        certificate = self._identity.certificate
        facts = TlsFacts(
            ssl_object,
            certificate,
            judge is not None and judge.verifies,
            context.checks_times,
        )
        inner = ssl_object._sslobj  # type: ignore[attr-defined]
        self._read = inner.read
        self._write = inner.write
        self.facts = facts
        self.established = True
        self.costly_handshake = False
        self.application_protocol = inner.selected_alpn_protocol() or ""
        is_tls13 = inner.version() == "TLSv1.3"
        self._refuses_handshakes = not is_tls13 and not context.options.allow_renegotiation
        if context.is_server:
            self._made_tickets = is_tls13
        elif is_tls13:
            self._awaits_session = True
        else:
            self._keep_session(ssl_object)
        self._events.on_handshake(facts)

    def _keep_session(self, ssl_object: ssl.SSLObject) -> None:
        session = openssl.session_of(ssl_object) if openssl.AVAILABLE else None
        if session is not None:
            self._context.keep_session(self._session_key(), session, single_use=self._awaits_session)

    def _session_key(self) -> str:
        """A session is good for a peer of the same names only: its certificate is not looked at again."""
        return f"{self._server_name}|{self._expected_name}|{self._demanded_name}"

    def _fail(self, reason: str, failure: int) -> None:
        self.failure = reason
        self._held = b""
        self._holds_output = False
        self._events.on_failure(failure)


def _not_established(_: Any) -> Any:
    raise ssl.SSLError("the connection is not established")


def _is_record(data: bytes, position: int) -> bool:
    return _FIRST_TYPE <= data[position] <= _LAST_TYPE and data[position + 1] == 3


def _failure_kind(error: ssl.SSLError) -> int:
    if error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return NO_CERTIFICATE
    return VERIFY_ERROR if error.reason == "CERTIFICATE_VERIFY_FAILED" else CONNECTION_ERROR
