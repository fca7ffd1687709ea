"""One representation of a header block, for every HTTP version and both directions.

Fields are `(name, value)` tuples in order, names in lower case, pseudo-headers (`:method`, `:path`, `:authority`,
`:scheme`, `:status`) as on HTTP/2. A block also carries a set of bits, `known`: for every name in `KNOWN` that was ever
added, its bit is set. So "is there an Expect, an Upgrade, any x-envoy-…?" is one `&` for a whole group of names, and a
request that has none of them pays nothing for the features that it does not use (DESIGN section 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

Field = tuple[bytes, bytes]

# Bits of the names that the proxy itself asks for. Groups share a bit where they are only ever asked for together.
HOST: Final = 1 << 0
CONNECTION: Final = 1 << 1  # connection, keep-alive, proxy-connection
TRANSFER_ENCODING: Final = 1 << 2
CONTENT_LENGTH: Final = 1 << 3
UPGRADE: Final = 1 << 4  # upgrade, http2-settings
TE: Final = 1 << 5  # te, trailer
EXPECT: Final = 1 << 6
FORWARDED_FOR: Final = 1 << 7  # x-forwarded-for
FORWARDED_PROTO: Final = 1 << 8  # x-forwarded-proto
FORWARDED: Final = 1 << 9  # x-forwarded-host, x-forwarded-port
REQUEST_ID: Final = 1 << 10
VIA: Final = 1 << 11
ENVOY: Final = 1 << 12  # any x-envoy-…
ENVOY_RETRY: Final = 1 << 13  # the x-envoy-… that change retries
ENVOY_TIMEOUT: Final = 1 << 14  # the x-envoy-… that change timeouts
ORIGIN: Final = 1 << 15  # origin (cors)
GRPC: Final = 1 << 16  # content-type, when it is looked at for gRPC; grpc-…
SERVER: Final = 1 << 17
DATE: Final = 1 << 18
TRACE: Final = 1 << 19  # x-client-trace-id, traceparent, tracestate, b3, x-b3-…
FAULT: Final = 1 << 20  # x-envoy-fault-…
CLIENT_CERT: Final = 1 << 21  # x-forwarded-client-cert
PROXY_CONNECTION: Final = 1 << 22  # beside CONNECTION
ENVOY_TRACE: Final = 1 << 23  # the x-envoy-… that concern traces
COOKIE: Final = 1 << 24
GRPC_TIMEOUT: Final = 1 << 26
FRAGMENT: Final = 1 << 25  # no name: the path has a "#" (which an HTTP/1 codec refuses itself)

KNOWN: Final[dict[bytes, int]] = {
    b"host": HOST,
    b"connection": CONNECTION,
    b"keep-alive": CONNECTION,
    b"proxy-connection": CONNECTION | PROXY_CONNECTION,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"content-length": CONTENT_LENGTH,
    b"upgrade": UPGRADE,
    b"http2-settings": UPGRADE,
    b"te": TE,
    b"trailer": TE,
    b"expect": EXPECT,
    b"x-forwarded-for": FORWARDED_FOR,
    b"x-forwarded-proto": FORWARDED_PROTO,
    b"x-forwarded-host": FORWARDED,
    b"x-forwarded-port": FORWARDED,
    b"x-request-id": REQUEST_ID,
    b"via": VIA,
    b"origin": ORIGIN,
    b"cookie": COOKIE,
    b"content-type": GRPC,
    b"server": SERVER,
    b"date": DATE,
    b"x-client-trace-id": TRACE,
    b"traceparent": TRACE,
    b"tracestate": TRACE,
    b"b3": TRACE,
    b"x-b3-traceid": TRACE,
    b"x-b3-spanid": TRACE,
    b"x-b3-sampled": TRACE,
    b"x-b3-flags": TRACE,
    b"x-forwarded-client-cert": CLIENT_CERT,
    b"x-envoy-force-trace": ENVOY | ENVOY_TRACE,
    b"x-envoy-decorator-operation": ENVOY | ENVOY_TRACE,
    b"x-envoy-retry-on": ENVOY | ENVOY_RETRY,
    b"x-envoy-retry-grpc-on": ENVOY | ENVOY_RETRY,
    b"x-envoy-max-retries": ENVOY | ENVOY_RETRY,
    b"x-envoy-retriable-status-codes": ENVOY | ENVOY_RETRY,
    b"x-envoy-retriable-header-names": ENVOY | ENVOY_RETRY,
    b"x-envoy-hedge-on-per-try-timeout": ENVOY | ENVOY_RETRY | ENVOY_TIMEOUT,
    b"x-envoy-upstream-rq-timeout-ms": ENVOY | ENVOY_TIMEOUT,
    b"x-envoy-upstream-rq-per-try-timeout-ms": ENVOY | ENVOY_TIMEOUT,
    b"x-envoy-upstream-rq-timeout-alt-response": ENVOY | ENVOY_TIMEOUT,
    b"x-envoy-expected-rq-timeout-ms": ENVOY | ENVOY_TIMEOUT,
    b"x-envoy-upstream-stream-duration-ms": ENVOY | ENVOY_TIMEOUT,
    b"grpc-timeout": GRPC | GRPC_TIMEOUT,
}
_ZERO: Final = 0x30
_LEARNT_LIMIT: Final = 4096  # names a peer may add to the table of spellings, in all: memory stays bounded

# Spelling on the wire -> (lower-case name, bits). Names seen before cost one look-up and share one bytes object.
_SPELLINGS: dict[bytes, tuple[bytes, int]] = {}


def bits_of(name: bytes) -> int:
    """The bits of a lower-case `name`, 0 when the proxy never asks for it."""
    bits = KNOWN.get(name)
    if bits is not None:
        return bits
    if name.startswith(b"x-envoy-"):
        return ENVOY | FAULT if name.startswith(b"x-envoy-fault-") else ENVOY
    return 0


def spelling(raw: bytes) -> tuple[bytes, int]:
    """The lower-case name and the bits of a field name as it stood on the wire."""
    found = _SPELLINGS.get(raw)
    if found is None:
        name = raw.lower()
        found = (name, bits_of(name))
        if len(_SPELLINGS) < _LEARNT_LIMIT and len(raw) <= 64:
            _SPELLINGS[raw] = found
    return found


class HeaderMap:
    """An ordered header block.

    `fields` may be read directly; whoever changes it directly keeps `known` a superset of the truth (`bits_of`).
    """

    def __init__(self, fields: list[Field] | None = None, known: int = -1) -> None:
        """With `known`, the bits of `fields`, that very list becomes the block's."""
        self.known: int = 0
        self.sensitive: frozenset[bytes] | None = None  # names that no HPACK table may hold (RFC 7541 section 7.1.3)
        if fields is None:
            self.fields: list[Field] = []
        elif known >= 0:
            self.fields = fields
            self.known = known
        else:
            self.fields = []
            for name, value in fields:
                self.add(name, value)

    def get(self, name: bytes) -> bytes | None:
        """The first value of the lower-case `name`; None when absent."""
        for field in self.fields:
            if field[0] == name:
                return field[1]
        return None

    def get_all(self, name: bytes) -> list[bytes]:
        """Every value of `name`, in order."""
        return [field[1] for field in self.fields if field[0] == name]

    def joined(self, name: bytes) -> bytes | None:
        """The values of `name` joined by commas (RFC 9110 section 5.3), as Envoy's matchers see them; None when
        absent."""
        joined: bytes | None = None
        for field in self.fields:
            if field[0] == name:
                joined = field[1] if joined is None else joined + b"," + field[1]
        return joined

    def __getitem__(self, name: bytes) -> bytes:
        """The first value of `name`. Raises KeyError when it is absent."""
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __setitem__(self, name: bytes, value: bytes) -> None:
        self.set(name, value)

    def __delitem__(self, name: bytes) -> None:
        """Drop every field of `name`; none need be there."""
        self.remove(name)

    def __contains__(self, name: bytes) -> bool:
        return self.get(name) is not None

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def add(self, name: bytes, value: bytes) -> None:
        """Append a field; fields of the same name stay."""
        self.fields.append((name, value))
        self.known |= bits_of(name)

    def append(self, field: Any, bits: int) -> None:
        """As `add`, for a field whose `bits_of` the caller knows. As Any it stays the tuple that it is: made once, it
        is also found at once among the lines that the codec remembers."""
        fields: list[Any] = self.fields
        fields.append(field)
        self.known |= bits

    def set(self, name: bytes, value: bytes) -> None:
        """Overwrite the first field of `name` in its place and drop the others; append when there is none."""
        fields = self.fields
        found = -1
        for i in range(len(fields)):
            if fields[i][0] == name:
                found = i
                break
        if found < 0:
            self.add(name, value)
            return
        fields[found] = (name, value)
        for i in range(len(fields) - 1, found, -1):
            if fields[i][0] == name:
                del fields[i]

    def replace(self, field: Any, bits: int) -> None:
        """As `set`, with a field that was made once."""
        fields: list[Any] = self.fields
        name: bytes = field[0]
        for i in range(len(fields)):
            if self.fields[i][0] == name:
                fields[i] = field
                for j in range(len(fields) - 1, i, -1):
                    if self.fields[j][0] == name:
                        del fields[j]
                return
        self.append(field, bits)

    def set_default(self, name: bytes, value: bytes) -> None:
        """Append the field unless one of that name is there."""
        if self.get(name) is None:
            self.add(name, value)

    def remove(self, name: bytes) -> bool:
        """Drop every field of `name`; True when there was one."""
        fields = self.fields
        removed = False
        for i in range(len(fields) - 1, -1, -1):
            if fields[i][0] == name:
                del fields[i]
                removed = True
        return removed

    def remove_names(self, names: frozenset[bytes]) -> None:
        """Drop every field whose name is in `names`."""
        fields = self.fields
        for i in range(len(fields) - 1, -1, -1):
            if fields[i][0] in names:
                del fields[i]

    def extend(self, fields: Iterable[Field]) -> None:
        for name, value in fields:
            self.add(name, value)

    def copy(self) -> HeaderMap:
        """A block of its own with the same fields (the tuples are shared: they never change)."""
        copy = HeaderMap(self.fields.copy(), self.known)
        copy.sensitive = self.sensitive
        return copy

    def size(self) -> int:
        """Bytes of names and values together."""
        total = 0
        for name, value in self.fields:
            total += len(name) + len(value)
        return total

    def __repr__(self) -> str:
        return f"HeaderMap({self.fields!r})"


def status_code(headers: HeaderMap) -> int:
    """The `:status` as a number; 0 without one, and for what is none (a filter's mistake)."""
    status = headers.get(b":status")
    if status is None or len(status) != 3:
        return 0
    code = (status[0] - _ZERO) * 100 + (status[1] - _ZERO) * 10 + status[2] - _ZERO
    return code if 0 < code < 1000 else 0
