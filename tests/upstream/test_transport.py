"""Which transport socket a connection gets, and what stands before its bytes."""

from __future__ import annotations

from typing import Any

from meshproxy.net.address import Address
from meshproxy.net.proxy_protocol import ProxyHeader
from meshproxy.net.transport_socket import TransportSocket
from meshproxy.upstream.demand import ConnectionDemand
from meshproxy.upstream.proxy_protocol import ProxyProtocolFactory, ProxyProtocolSocket
from tests.upstream.harness import OK, Call, build, cluster_dict, endpoint, errors_of, upstream, world

SOCKETS = "type.googleapis.com/envoy.extensions.transport_sockets."
RAW = {"name": "raw", "typed_config": {"@type": f"{SOCKETS}raw_buffer.v3.RawBuffer"}}


def proxied(version: str, **config: Any) -> dict[str, Any]:
    """A transport socket that writes a PROXY protocol header."""
    typed = {"@type": f"{SOCKETS}proxy_protocol.v3.ProxyProtocolUpstreamTransport", "transport_socket": RAW}
    return {"name": "proxy", "typed_config": typed | {"config": {"version": version, **config}}}


def labelled(port: int, **labels: object) -> dict[str, Any]:
    """An endpoint with labels for transport sockets."""
    return endpoint("127.0.0.1", port, metadata={"filter_metadata": {"envoy.transport_socket_match": labels}})


async def test_other_labels_make_new_connections() -> None:
    matches = [{"name": "told", "match": {"told": True}, "transport_socket": proxied("V1")}]
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(labelled(server.port), transport_socket_matches=matches))
        host = cluster.hosts[0]
        call = Call().start(cluster)
        plain = await server.accept()
        assert (await plain.request()).startswith(b"GET ")
        plain.send(OK)
        await call.until("end")
        w.manager.add_or_update(build(cluster_dict(labelled(server.port, told=True), transport_socket_matches=matches)))
        assert await plain.eof() == b""
        assert cluster.hosts == [host]
        demand = ConnectionDemand()
        demand.header = ProxyHeader(Address("1.2.3.4", 5), Address("6.7.8.9", 10), [])
        pool = host.keyed_pool(cluster, 0, demand)
        assert pool is not None
        pool.new_stream(Call())
        told = await server.accept()
        assert (await told.request()).startswith(b"PROXY TCP4 1.2.3.4 6.7.8.9 5 10\r\nGET ")


class Upper(TransportSocket):
    """Stands for TLS: it shakes hands with one byte, and shouts."""

    def __init__(self) -> None:
        super().__init__()
        self.out = b""
        self.was_shut = False

    def start(self) -> None:
        self.out = b"?"

    def receive(self, data: bytes) -> list[bytes]:
        if data == b"bad":
            self.failure = "it is bad"
            return []
        if not self.established:
            self.established = True
            self.facts = "facts"
            return []
        return [data.lower()]

    def receive_eof(self) -> None:
        self.at_end = True

    def send(self, data: bytes) -> None:
        self.out += data.upper()

    def shut(self) -> None:
        self.was_shut = True

    def take_output(self) -> bytes:
        out, self.out = self.out, b""
        return out


def test_the_header_goes_first() -> None:
    socket = ProxyProtocolSocket(b"PROXY\r\n", None)
    socket.start()
    assert socket.established
    socket.send(b"a")
    socket.send(b"b")
    assert socket.take_output() == b"PROXY\r\nab"
    assert socket.receive(b"answer") == [b"answer"]
    socket.receive_eof()
    socket.shut()
    assert socket.take_output() == b""


def test_what_is_behind_the_header_decides() -> None:
    inner = Upper()
    socket = ProxyProtocolSocket(b"PROXY\r\n", inner)
    socket.start()
    assert socket.take_output() == b"PROXY\r\n?"
    assert [socket.established, socket.receive(b"!"), socket.established] == [False, [], True]
    assert socket.facts == "facts"
    socket.send(b"a")
    assert socket.take_output() == b"A"
    assert socket.receive(b"B") == [b"b"]
    socket.shut()
    assert inner.was_shut
    socket.receive_eof()
    assert socket.at_end
    socket.receive(b"bad")
    assert socket.failure == "it is bad"


def test_tlvs_of_the_configuration_go_before_the_downstreams() -> None:
    factory = ProxyProtocolFactory(None, 2)
    factory.added = [(1, b"own")]
    factory.passed = frozenset({1, 2})
    header = ProxyHeader(Address("1.2.3.4", 5), Address("6.7.8.9", 10), [(1, b"x"), (2, b"y"), (3, b"z")])
    assert factory.header(header).endswith(b"\1\0\3own\2\0\1y")


def test_what_is_refused() -> None:
    socket = proxied("V2", added_tlvs=[{"type": 256, "value": "eA=="}, {"type": 1}])
    where = "c.transport_socket.typed_config"
    assert set(errors_of(cluster_dict(endpoint("10.0.0.1"), transport_socket=socket))) == {
        f"{where}.config.added_tlvs[0].type",
        f"{where}.config.added_tlvs[1].value",
    }
    bind = {
        "source_address": {"address": "here", "port_value": 0},
        "extra_source_addresses": [{"address": {"address": "there", "port_value": 0}}],
    }
    assert set(errors_of(cluster_dict(endpoint("10.0.0.1"), upstream_bind_config=bind))) == {
        "c.upstream_bind_config.source_address",
        "c.upstream_bind_config.extra_source_addresses[0].address",
    }
    again = {
        "source_address": {"address": "10.0.0.1", "port_value": 0},
        "extra_source_addresses": [{"address": {"address": "10.0.0.2", "port_value": 0}}],
    }
    assert set(errors_of(cluster_dict(endpoint("10.0.0.1"), upstream_bind_config=again))) == {
        "c.upstream_bind_config.extra_source_addresses[0].address"
    }
    matches = [{"name": "a", "match": {}}]
    assert set(errors_of(cluster_dict(endpoint("10.0.0.1"), transport_socket_matches=matches))) == {
        "c.transport_socket_matches[0].transport_socket"
    }
    alone = {"extra_source_addresses": [{"address": {"address": "10.0.0.2", "port_value": 0}}]}
    assert set(errors_of(cluster_dict(endpoint("10.0.0.1"), upstream_bind_config=alone))) == {
        "c.upstream_bind_config.extra_source_addresses"
    }
