"""What gRPC says in headers (its PROTOCOL-HTTP2 document): content types, statuses and their messages, timeouts."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from meshproxy.codec.headers import GRPC, HeaderMap

OK: Final = 0
CANCELLED: Final = 1
UNKNOWN: Final = 2
INVALID_ARGUMENT: Final = 3
DEADLINE_EXCEEDED: Final = 4
NOT_FOUND: Final = 5
ALREADY_EXISTS: Final = 6
PERMISSION_DENIED: Final = 7
RESOURCE_EXHAUSTED: Final = 8
FAILED_PRECONDITION: Final = 9
ABORTED: Final = 10
OUT_OF_RANGE: Final = 11
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14
DATA_LOSS: Final = 15
UNAUTHENTICATED: Final = 16

INVALID_STATUS: Final = -1  # in the place of a grpc-status that is no number

# By status; Envoy writes them both ways.
CAMEL_NAMES: Final = (
    "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied",
    "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable",
    "DataLoss", "Unauthenticated",
)  # fmt: skip
SNAKE_NAMES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip

# https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md; 429 is Envoy's
_OF_HTTP: Final = {
    400: INTERNAL,
    401: UNAUTHENTICATED,
    403: PERMISSION_DENIED,
    404: UNIMPLEMENTED,
    429: UNAVAILABLE,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: UNAVAILABLE,
}
# https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto, by gRPC status
_TO_HTTP: Final = (200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401)

_CONTENT_TYPE: Final = b"application/grpc"
_TIMEOUT_MAX: Final = 99_999_999  # eight digits
_TIMEOUT_UNITS_NS: Final = {
    0x48: 3_600_000_000_000,  # H
    0x4D: 60_000_000_000,  # M
    0x53: 1_000_000_000,  # S
    0x6D: 1_000_000,  # m
    0x75: 1_000,  # u
    0x6E: 1,  # n
}


def is_grpc(headers: HeaderMap) -> bool:
    """Whether a message is gRPC, by its content type: application/grpc, or one of application/grpc+…"""
    return bool(headers.known & GRPC) and is_grpc_content_type(headers.get(b"content-type"))


def is_grpc_content_type(value: bytes | None) -> bool:
    if value is None or not value.startswith(_CONTENT_TYPE):
        return False
    return len(value) == 16 or value[16] == 0x2B


def is_grpc_response(headers: HeaderMap, status: int, end: bool) -> bool:
    """Whether a response is gRPC: 200 with its content type, or a head alone that has a `grpc-status` (Envoy)."""
    return headers.get(b"grpc-status") is not None if end else status == 200 and is_grpc(headers)


def grpc_status(headers: HeaderMap | None) -> int | None:
    """What the `grpc-status` of headers or trailers says: a number, INVALID_STATUS for what is none, or None."""
    value = None if headers is None else headers.get(b"grpc-status")
    if value is None:
        return None
    return int(value) if value.isdigit() and len(value) < 10 else INVALID_STATUS


def status_of_response(headers: HeaderMap | None, trailers: HeaderMap | None, http_status: int) -> int | None:
    """The gRPC status of a response: of its trailers, else of its headers (a response of trailers only), else what the
    HTTP status amounts to. None without any of them."""
    status = grpc_status(trailers)
    if status is None:
        status = grpc_status(headers)
    if status is None and http_status:
        return status_of_http(http_status)
    return status


def status_of_http(status: int) -> int:
    """The gRPC status in place of an HTTP status; UNKNOWN for most, 200 among them."""
    return _OF_HTTP.get(status, UNKNOWN)


def http_status_of(status: int) -> int:
    """The HTTP status in place of a gRPC status; 500 for what is none."""
    return _TO_HTTP[status] if 0 <= status < len(_TO_HTTP) else 500


def encode_message(text: bytes) -> bytes:
    """A `grpc-message`: percent-encoded are controls, `%`, and (as in Envoy) all from `~` on."""
    quoted = quote_from_bytes(text, safe=" !\"#$&'()*+,/:;<=>?@[\\]^_`{|}-.").replace("~", "%7E")
    return quoted.encode()


def decode_message(value: bytes) -> bytes:
    """The text of a `grpc-message`; what is no valid escape stands for itself."""
    return unquote_to_bytes(value) if 0x25 in value else value


def timeout_ms(headers: HeaderMap) -> float | None:
    """What `grpc-timeout` grants, in milliseconds; None without one, and for one that is not a number below 10^8 and a
    unit."""
    value = headers.get(b"grpc-timeout")
    if value is None or not 2 <= len(value) <= 20:
        return None
    digits = value[:-1]
    unit_ns = _TIMEOUT_UNITS_NS.get(value[len(value) - 1], 0)
    if unit_ns == 0 or not digits.isdigit() or int(digits) > _TIMEOUT_MAX:
        return None
    return float(-(-int(digits) * unit_ns // 1_000_000))  # rounded up: a timeout of some µs is one, and 0 none


def encode_timeout(timeout_ms: float) -> bytes:
    """A `grpc-timeout` of that many milliseconds, in the finest of Envoy's units that takes at most eight digits."""
    number = int(timeout_ms)
    if number <= _TIMEOUT_MAX:
        return b"%dm" % number
    number //= 1000
    if number <= _TIMEOUT_MAX:
        return b"%dS" % number
    number //= 60
    if number <= _TIMEOUT_MAX:
        return b"%dM" % number
    return b"%dH" % min(number // 60, _TIMEOUT_MAX)
