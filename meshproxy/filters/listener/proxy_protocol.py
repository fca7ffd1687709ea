"""`envoy.filters.listener.proxy_protocol`: the addresses of the connection that a proxy in front of us stands for.

Reads the header of the PROXY protocol, version 1 (a line of text) or 2 (binary, with TLVs), and takes it off the data:
haproxy.org/download/2.1/doc/proxy-protocol.txt. Like Envoy it refuses UNSPEC and Unix addresses, and verifies no
checksum.
"""

from __future__ import annotations

import codecs
import socket
from typing import Any, ClassVar, Final

from envoy.config.core.v3.proxy_protocol_pb2 import ProxyProtocolConfig, ProxyProtocolPassThroughTLVs
from envoy.extensions.filters.listener.proxy_protocol.v3.proxy_protocol_pb2 import ProxyProtocol

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.filters.listener_filter import (
    CLOSE,
    CONTINUE,
    LISTENER_FILTERS,
    NEEDS_DATA,
    AcceptedSocket,
    ListenerFilter,
    ListenerFilterFactory,
)
from meshproxy.net.address import Address
from meshproxy.net.proxy_protocol import ProxyHeader
from meshproxy.observe.stats import StatsScope

NAMESPACE: Final = "envoy.filters.listener.proxy_protocol"
TLV_FILTER_STATE: Final = "envoy.network.proxy_protocol.tlv"

_V1_SIGNATURE: Final = b"PROXY "
_V1_LIMIT: Final = 108  # bytes of the line with its end; Envoy's, one more than the protocol's
_V2_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V2_HEADER: Final = 16
_V2_LIMIT: Final = _V2_HEADER + 0xFFFF
_V2_LOCAL: Final = 0
_V2_PROXY: Final = 1
_V2_STREAM: Final = 1
_V2_DATAGRAM: Final = 2
_V2_FAMILIES: Final = {1: (socket.AF_INET, 4), 2: (socket.AF_INET6, 16)}
_V1_FAMILIES: Final = {b"TCP4": socket.AF_INET, b"TCP6": socket.AF_INET6}
_NO_UNICAST: Final = frozenset({bytes(4), b"\xff" * 4, bytes(16)})

codecs.register_error("meshproxy.exclaim", lambda error: ("!" * (error.end - error.start), error.end))  # type: ignore[attr-defined]


class ProxyProtocolErrorStats(StatsScope):
    """At the root, beside all prefixes."""

    COUNTERS: ClassVar[tuple[str, ...]] = ("downstream_cx_proxy_proto_error",)

    def __init__(self) -> None:
        super().__init__()
        self.downstream_cx_proxy_proto_error: int = 0


class ProxyProtocolStats(StatsScope):
    """Under `proxy_proto.` or `proxy_proto.<stat_prefix>.`."""

    COUNTERS: ClassVar[tuple[str, ...]] = (
        "not_found_allowed",
        "not_found_disallowed",
        "v1_found",
        "v1_disallowed",
        "v1_error",
        "v2_found",
        "v2_disallowed",
        "v2_error",
    )
    ALIASES: ClassVar[dict[str, str]] = {
        "v1_found": "versions.v1.found",
        "v1_disallowed": "versions.v1.disallowed",
        "v1_error": "versions.v1.error",
        "v2_found": "versions.v2.found",
        "v2_disallowed": "versions.v2.disallowed",
        "v2_error": "versions.v2.error",
    }

    def __init__(self) -> None:
        super().__init__()
        self.not_found_allowed: int = 0
        self.not_found_disallowed: int = 0
        self.v1_found: int = 0
        self.v1_disallowed: int = 0
        self.v1_error: int = 0
        self.v2_found: int = 0
        self.v2_disallowed: int = 0
        self.v2_error: int = 0


class ProxyProtocolFactory(ListenerFilterFactory):
    """The configuration."""

    def __init__(self, message: Any, stats: ProxyProtocolStats, errors: ProxyProtocolErrorStats) -> None:
        self.stats = stats
        self.errors = errors
        self.optional: bool = message.allow_requests_without_proxy_protocol
        self.allow_v1 = ProxyProtocolConfig.V1 not in message.disallowed_versions
        self.allow_v2 = ProxyProtocolConfig.V2 not in message.disallowed_versions
        # A version that is not allowed is an offence where there must be a header, else it is any other data.
        self.looks_for_v1 = self.allow_v1 or not self.optional
        self.looks_for_v2 = self.allow_v2 or not self.optional
        self.to_filter_state: bool = message.tlv_location == ProxyProtocol.FILTER_STATE
        self.rules: dict[int, tuple[str, str]] = {
            rule.tlv_type: (rule.on_tlv_present.metadata_namespace or NAMESPACE, rule.on_tlv_present.key)
            for rule in message.rules
        }
        passed = message.pass_through_tlvs
        every = message.HasField("pass_through_tlvs") and passed.match_type == ProxyProtocolPassThroughTLVs.INCLUDE_ALL
        self.passed_tlvs: frozenset[int] = frozenset(range(256) if every else passed.tlv_type)

    def new(self) -> ListenerFilter:
        return ProxyProtocolFilter(self)


class ProxyProtocolFilter(ListenerFilter):
    """Consumes the header."""

    max_read_bytes = _V2_LIMIT

    def __init__(self, config: ProxyProtocolFactory) -> None:
        self._config = config

    def on_accept(self, accepted: AcceptedSocket) -> int:
        return NEEDS_DATA

    def on_data(self, accepted: AcceptedSocket, data: bytes) -> int:
        config = self._config
        v1 = config.looks_for_v1 and _V1_SIGNATURE.startswith(data[: len(_V1_SIGNATURE)])
        v2 = config.looks_for_v2 and _V2_SIGNATURE.startswith(data[: len(_V2_SIGNATURE)])
        if not v1 and not v2:
            return self._not_found()
        if len(data) < (len(_V1_SIGNATURE) if v1 else len(_V2_SIGNATURE)):
            return NEEDS_DATA
        return self._on_v1(accepted, data) if v1 else self._on_v2(accepted, data)

    def _not_found(self) -> int:
        if self._config.optional:
            self._config.stats.not_found_allowed += 1
            return CONTINUE
        self._config.stats.not_found_disallowed += 1
        self._config.errors.downstream_cx_proxy_proto_error += 1
        return CLOSE

    # -- version 1

    def _on_v1(self, accepted: AcceptedSocket, data: bytes) -> int:
        stats = self._config.stats
        if not self._config.allow_v1:
            stats.v1_found += 1
            stats.v1_disallowed += 1
            return CLOSE
        end = data.find(b"\r\n", 0, _V1_LIMIT)
        if end < 0 and len(data) < _V1_LIMIT:
            return NEEDS_DATA
        words = data[:end].rstrip().split(b" ") if end >= 0 else []
        if words[1:2] == [b"UNKNOWN"]:
            accepted.proxy_header = ProxyHeader(accepted.remote, accepted.local, [])
        elif not self._take_v1(accepted, words):
            stats.v1_error += 1
            self._config.errors.downstream_cx_proxy_proto_error += 1
            return CLOSE
        accepted.consume(end + 2)
        stats.v1_found += 1
        return CONTINUE

    def _take_v1(self, accepted: AcceptedSocket, words: list[bytes]) -> bool:
        family = _V1_FAMILIES.get(words[1]) if len(words) == 6 else None
        if family is None:
            return False
        remote = _read_address(family, words[2], words[4])
        local = _read_address(family, words[3], words[5])
        if remote is None or local is None:
            return False
        _restore(accepted, remote, local, [])
        return True

    # -- version 2

    def _on_v2(self, accepted: AcceptedSocket, data: bytes) -> int:
        stats = self._config.stats
        if not self._config.allow_v2:
            stats.v2_found += 1
            stats.v2_disallowed += 1
            return CLOSE
        if len(data) < _V2_HEADER:
            return NEEDS_DATA
        end = _V2_HEADER + int.from_bytes(data[14:16], "big")
        addresses = _length_of_addresses(data)
        if addresses >= 0 and len(data) < end:
            return NEEDS_DATA
        if addresses < 0 or not self._take_v2(accepted, data[_V2_HEADER:end], addresses):
            stats.v2_error += 1
            self._config.errors.downstream_cx_proxy_proto_error += 1
            return CLOSE
        accepted.consume(end)
        stats.v2_found += 1
        return CONTINUE

    def _take_v2(self, accepted: AcceptedSocket, body: bytes, addresses: int) -> bool:
        if not addresses:  # LOCAL: a health check of the proxy itself, whatever follows
            accepted.proxy_header = ProxyHeader(accepted.remote, accepted.local, [])
            return True
        size = (addresses - 4) // 2
        remote = _address(body[:size], body[2 * size : 2 * size + 2])
        local = _address(body[size : 2 * size], body[2 * size + 2 : addresses])
        tlvs = _read_tlvs(body[addresses:])
        if remote is None or local is None or tlvs is None:
            return False
        self._use_tlvs(accepted, tlvs)
        passed = self._config.passed_tlvs
        _restore(accepted, remote, local, [tlv for tlv in tlvs if tlv[0] in passed])
        return True

    def _use_tlvs(self, accepted: AcceptedSocket, tlvs: list[tuple[int, bytes]]) -> None:
        """By the rules. Of two TLVs of a type the first stays in the metadata, and the last in the filter state."""
        config = self._config
        for kind, value in tlvs:
            rule = config.rules.get(kind)
            if rule is None:
                continue
            text = value.decode("utf-8", "meshproxy.exclaim")
            namespace, key = rule
            if config.to_filter_state:
                accepted.filter_state.setdefault(TLV_FILTER_STATE, {})[key] = text
            elif key not in accepted.dynamic_metadata.get(namespace, {}):
                accepted.set_metadata(namespace, key, text)


def _length_of_addresses(header: bytes) -> int:
    """Of what the header of version 2 announces; 0 of a LOCAL command, -1 of what we do not take."""
    command = header[12] & 0x0F
    if header[12] >> 4 != 2 or command not in (_V2_LOCAL, _V2_PROXY):
        return -1
    if command == _V2_LOCAL:
        return 0
    family = _V2_FAMILIES.get(header[13] >> 4)
    if family is None or header[13] & 0x0F not in (_V2_STREAM, _V2_DATAGRAM):
        return -1
    length = 2 * family[1] + 4
    return length if int.from_bytes(header[14:16], "big") >= length else -1


def _read_address(family: socket.AddressFamily, ip: bytes, port: bytes) -> Address | None:
    """Of the text in version 1."""
    try:
        packed = socket.inet_pton(family, ip.decode("ascii"))
    except (OSError, ValueError):
        return None
    if not port.isdigit() or len(port) > 5 or int(port) > 0xFFFF:
        return None
    return _address(packed, int(port).to_bytes(2, "big"))


def _address(packed: bytes, port: bytes) -> Address | None:
    """None when it is not that of one host (TCP needs unicast)."""
    v4 = len(packed) == 4
    if packed in _NO_UNICAST or (v4 and 224 <= packed[0] <= 239) or (not v4 and packed[0] == 0xFF):
        return None
    ip = socket.inet_ntop(socket.AF_INET if v4 else socket.AF_INET6, packed)
    return Address(ip, int.from_bytes(port, "big"))


def _read_tlvs(data: bytes) -> list[tuple[int, bytes]] | None:
    """(type, value) of each; None when one is longer than what is there."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        end = at + 3 + int.from_bytes(data[at + 1 : at + 3], "big")
        if len(data) < at + 3 or len(data) < end:
            return None
        found.append((data[at], data[at + 3 : end]))
        at = end
    return found


def _restore(accepted: AcceptedSocket, remote: Address, local: Address, tlvs: list[tuple[int, bytes]]) -> None:
    accepted.proxy_header = ProxyHeader(remote, local, tlvs)
    accepted.remote = remote
    if local != accepted.local:
        accepted.local = local
        accepted.local_restored = True


def build_proxy_protocol(message: Any, path: str, context: BuildContext) -> ListenerFilterFactory | None:
    if {ProxyProtocolConfig.V1, ProxyProtocolConfig.V2} <= set(message.disallowed_versions):
        context.errors.add(child(path, "disallowed_versions"), "all proxy protocol versions are disallowed")
        return None
    prefix = f"proxy_proto.{message.stat_prefix}." if message.stat_prefix else "proxy_proto."
    return ProxyProtocolFactory(
        message, context.scope(prefix, ProxyProtocolStats), context.scope("", ProxyProtocolErrorStats)
    )


LISTENER_FILTERS.register(ProxyProtocol, build_proxy_protocol)
