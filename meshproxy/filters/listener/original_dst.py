"""`envoy.filters.listener.original_dst`: the destination that a connection had before iptables redirected it here."""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

from envoy.extensions.filters.listener.original_dst.v3.original_dst_pb2 import OriginalDst

from meshproxy.config.context import BuildContext
from meshproxy.filters.listener_filter import (
    CONTINUE,
    LISTENER_FILTERS,
    AcceptedSocket,
    ListenerFilter,
    ListenerFilterFactory,
)
from meshproxy.net.address import Address

# <linux/netfilter_ipv4.h> and <linux/netfilter_ipv6/ip6_tables.h>: one number, two levels
_SO_ORIGINAL_DST: Final = 80
_SOCKADDR_IN: Final = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6: Final = struct.Struct("!2xH4x16s4x")


class OriginalDstFilter(ListenerFilter):
    """Reads no data and never fails a connection: one that was not redirected keeps its local address."""

    def on_accept(self, accepted: AcceptedSocket) -> int:
        if accepted.sock is not None and not accepted.local.path:
            original = original_destination(accepted.sock, accepted.local)
            if original is not None and original != accepted.local:
                accepted.local = original
                accepted.local_restored = True
        return CONTINUE


def original_destination(sock: socket.socket, local: Address) -> Address | None:
    """What the connection tracking of the kernel knows of the socket; None where it tracks nothing."""
    v6 = ":" in local.ip
    level = socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP
    form = _SOCKADDR_IN6 if v6 else _SOCKADDR_IN
    try:
        port, ip = form.unpack(sock.getsockopt(level, _SO_ORIGINAL_DST, form.size))
    except (OSError, struct.error):
        return None
    return Address(socket.inet_ntop(socket.AF_INET6 if v6 else socket.AF_INET, ip), port)


class OriginalDstFactory(ListenerFilterFactory):
    """There is nothing to configure."""

    def new(self) -> ListenerFilter:
        return OriginalDstFilter()


def build_original_dst(message: Any, path: str, context: BuildContext) -> ListenerFilterFactory:
    return OriginalDstFactory()


LISTENER_FILTERS.register(OriginalDst, build_original_dst)
