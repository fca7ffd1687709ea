"""Runs in a network namespace of its own: connections that iptables redirects here, and what original_dst says of them.

Prints a JSON object: name of the connection -> [address of the socket, local address after the filter, restored].
"""

from __future__ import annotations

import json
import socket
import subprocess

from meshproxy.filters.listener_filter import AcceptedSocket, ListenerFilterRun
from meshproxy.net.address import address_of
from tests.filters.listener.harness import Filters

TARGETS = {
    "redirected": ("192.0.2.55", 8080),
    "another": ("192.0.2.77", 8080),
    "not_redirected": ("192.0.2.55", 0),
    "redirected_v6": ("2001:db8::55", 8080),
    "not_redirected_v6": ("2001:db8::55", 0),
    "redirected_to_v6": ("192.0.2.55", 8081),
}


def prepare(port: int, port_v6: int) -> None:
    """Whole networks that are here, and connections to port 8080 of them that come to our ports.

    8081 of IPv4 comes to the socket of IPv6, which takes both.
    """
    for command in (
        "ip link set lo up",
        "ip route add local 192.0.2.0/24 dev lo",
        "ip -6 route add local 2001:db8::/64 dev lo",
        f"iptables -t nat -A OUTPUT -p tcp --dport 8080 -j REDIRECT --to-ports {port}",
        f"iptables -t nat -A OUTPUT -p tcp --dport 8081 -j REDIRECT --to-ports {port_v6}",
        f"ip6tables -t nat -A OUTPUT -p tcp --dport 8080 -j REDIRECT --to-ports {port_v6}",
    ):
        subprocess.run(command.split(), check=True)


def main() -> None:
    """Connect to each target and look at what is accepted."""
    with (
        socket.create_server(("0.0.0.0", 0)) as v4,
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as v6,
    ):
        prepare(v4.getsockname()[1], v6.getsockname()[1])
        filters = Filters(("original_dst", "")).filters
        seen: dict[str, list[object]] = {}
        for name, (ip, port) in TARGETS.items():
            server = v6 if ":" in ip or port == 8081 else v4
            with socket.create_connection((ip, port or server.getsockname()[1]), timeout=20):
                sock = server.accept()[0]
                with sock:
                    local = address_of(sock.getsockname())
                    accepted = AcceptedSocket(sock, address_of(sock.getpeername()), local)
                    ListenerFilterRun(filters, accepted).start()
                    seen[name] = [local.text, accepted.local.text, accepted.local_restored]
        print(json.dumps(seen))


if __name__ == "__main__":
    main()
