"""ClientHellos: real ones of the ssl module, and any other, part by part (RFC 8446 §4.1.2, RFC 6066 §3, RFC 7301)."""

import ssl
from collections.abc import Sequence

SERVER_NAME = 0
SUPPORTED_GROUPS = 10
POINT_FORMATS = 11
SIGNATURE_ALGORITHMS = 13
ALPN = 16
SUPPORTED_VERSIONS = 43

Extension = tuple[int, bytes]


def vector(data: bytes, size: int = 2) -> bytes:
    """A vector with its length in front, in `size` bytes."""
    return len(data).to_bytes(size, "big") + data


def numbers(*values: int) -> bytes:
    """A vector of 16-bit numbers."""
    return vector(b"".join(value.to_bytes(2, "big") for value in values))


def sni(name: bytes, kind: int = 0) -> Extension:
    """server_name (RFC 6066 §3)."""
    return SERVER_NAME, vector(bytes([kind]) + vector(name))


def alpn(*protocols: bytes) -> Extension:
    """application_layer_protocol_negotiation (RFC 7301 §3.1)."""
    return ALPN, vector(b"".join(vector(protocol, 1) for protocol in protocols))


def versions(*values: int) -> Extension:
    """supported_versions (RFC 8446 §4.2.1)."""
    return SUPPORTED_VERSIONS, vector(b"".join(value.to_bytes(2, "big") for value in values), 1)


def client_hello(
    *extensions: Extension,
    version: int = 0x0303,
    session_id: bytes = b"",
    ciphers: Sequence[int] = (0xC02F, 0xC030, 0x009C),
    compression: bytes = b"\0",
    raw_extensions: bytes | None = None,
    trailing: bytes = b"",
) -> bytes:
    """A ClientHello handshake message; without extensions their block is left out."""
    block = b"".join(kind.to_bytes(2, "big") + vector(data) for kind, data in extensions)
    body = version.to_bytes(2, "big") + bytes(range(32)) + vector(session_id, 1) + numbers(*ciphers)
    body += vector(compression, 1)
    if raw_extensions is not None:
        body += raw_extensions
    elif extensions:
        body += vector(block)
    return handshake(body + trailing)


def handshake(body: bytes, kind: int = 1) -> bytes:
    """A handshake message (RFC 8446 §4)."""
    return bytes([kind]) + vector(body, 3)


def records(message: bytes, *sizes: int, version: int = 0x0301, kind: int = 22) -> bytes:
    """The message in TLS records (RFC 8446 §5.1) of these sizes, the last one holding the rest."""
    made = b""
    for size in (*sizes, len(message) - sum(sizes)):
        piece, message = message[:size], message[size:]
        made += bytes([kind]) + version.to_bytes(2, "big") + vector(piece)
    return made


def real_hello(server_name: str | None = None, *protocols: str, context: ssl.SSLContext | None = None) -> bytes:
    """What the ssl module sends first."""
    context = context or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(list(protocols))
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=server_name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake cannot be done alone")


def plain_context(**settings: object) -> ssl.SSLContext:
    """An SSLContext of a client with these attributes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    for name, value in settings.items():
        setattr(context, name, value)
    return context
