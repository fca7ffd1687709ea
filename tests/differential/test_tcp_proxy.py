"""What tcp_proxy, echo, direct_response and connection_limit do with connections: the real Envoy and meshproxy."""

import socket
from collections.abc import Iterator

import pytest

from tests.differential.pair import SUBJECT_IS_ENVOY
from tests.differential.relay import RelayPair, Row, relay_pair
from tests.integration.config import bootstrap, tcp_listener
from tests.support.proxy import start_envoy, start_meshproxy

BOTH = "c connect; u accept; "
ECHO = "[{name: echo, typed_config: {'@type': '@TYPE@echo.v3.Echo'}}]"
DIRECT = (
    "[{name: direct, typed_config: {'@type': '@TYPE@direct_response.v3.Config', response: {inline_string: hello}}}]"
)
LIMIT = (
    "[{name: limit, typed_config: "
    "{'@type': '@TYPE@connection_limit.v3.ConnectionLimit', stat_prefix: NAME, max_connections: 1MORE}}]"
)


def limit(name: str, more: str = "") -> str:
    """YAML of a connection_limit filter for one connection."""
    return LIMIT.replace("NAME", name).replace("MORE", more)


# Who ended a connection that both ends close is told differently; of bytes on the wire the first row tells.
TUNNELED = "^(?!.*(destroy_(local|remote)|up_[tr]x))"
TEXTS = {
    "ok": b"HTTP/1.1 200 OK\r\n\r\n",
    "ok_data": b"HTTP/1.1 200 OK\r\n\r\nhello",
    "created": b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n",
    "interim": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "refused": b"HTTP/1.1 503 Nope\r\ncontent-length: 2\r\n\r\nno",
    "chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "last": b"0\r\n\r\n",
    "broken": b"what?\r\n\r\n",
}


def tunneled(name: str, steps: str, config: str = "", proxy: str = "", **more: object) -> Row:
    """A row whose connections go through an HTTP proxy upstream."""
    tunnel = f'{{tunneling_config: {{hostname: "far.test:443"{config}}}{proxy}}}'
    more = {"compare": TUNNELED} | more
    return Row(name, steps, proxy=tunnel, texts=TEXTS, **more)  # type: ignore[arg-type]


ROWS = [
    Row("relay", BOTH + "c send hello; u read 5; u send world!; c read 6; c close; u end"),
    Row("upstream_closes", BOTH + "c send hello; u read 5; u send bye; u close; c end; c close"),
    Row("server_first", BOTH + "u send greeting; c read 8; c send hi; u read 2; u close; c end"),
    Row("early_data", "c connect; c send early; u accept; u read 5; c close; u end"),
    Row("nothing_sent", BOTH + "c close; u end"),
    Row("half_close_down", BOTH + "c send ask; c shut; u end; u send answer; c read 6; u send more; u close; c end"),
    Row("half_close_up", BOTH + "u send all; u shut; c end; c send answer; u read 6; c send more; c close; u end"),
    Row("half_close_down_then_reset", BOTH + "c send ask; c shut; u end; u reset; c end"),
    Row("half_close_up_then_reset", BOTH + "u send x; u shut; c end; c reset; u end"),
    Row("half_close_early", "c connect; c send ask; c shut; u accept; u end; u send answer; u close; c end"),
    Row("client_resets", BOTH + "c send hello; u read 5; c reset; u end"),
    Row("upstream_resets", BOTH + "c send hello; u read 5; u reset; c end"),
    Row("upstream_resets_with_answer", BOTH + "c send hi; u read 2; u send answer; c read 6; u reset; c end"),
    Row("upstream_accepts_and_closes", BOTH + "u close; c end"),
    Row("refused", "c connect; c end", hosts=("dead",)),
    Row("refused_3_attempts", "c connect; c end", hosts=("dead",), proxy="{max_connect_attempts: 3}"),
    Row("overflow_1000_attempts", "c connect; c end", proxy="{max_connect_attempts: 1000}", cluster="{circuit_breakers: {thresholds: [{max_pending_requests: 0}]}}"),
    Row("second_host", BOTH + "c send x; u read 1; c close; u end", compare="^tcp", hosts=("dead", "live"), proxy="{max_connect_attempts: 2}"),
    Row("connect_timeout", "c connect; c end", hosts=("blackhole",), cluster="{connect_timeout: 0.1s}"),
    Row("no_host", "c connect; c end", hosts=()),
    Row("no_host_2_attempts", "c connect; c end", hosts=(), proxy="{max_connect_attempts: 2}"),
    Row("leaves_while_connecting", differs="tcp-downstream-leaves", compare="flags=|down_rx=|upstream_rq_(cancel|pending_fail)",
        envoy=("log 0: flags=UF,URX", "log 0: down_rx=0", "cluster.leaves_while_connecting.upstream_rq_pending_failure_eject: 1"),
        ours=("log 0: flags=-", "log 0: down_rx=3", "cluster.leaves_while_connecting.upstream_rq_cancelled: 1"),
        steps="c connect; c send abc; c stat cluster.leaves_while_connecting.upstream_cx_total=1; c reset",
        hosts=("blackhole",), cluster="{connect_timeout: 0.5s}"),
    Row("one_cluster_of_two", BOTH + "c send x; u read 1; c close; u end",
        proxy="{weighted_clusters: {clusters: [{name: one_cluster_of_two, weight: 5}]}}"),
    Row("weighted", BOTH + "c send x; u read 1; c close; u end",
        proxy="{weighted_clusters: {clusters: [{name: weighted, weight: 5}, {name: weighted, weight: 3}]}}"),
    Row("max_connections", BOTH + "d connect; d end; c close; u end", logs=2,
        cluster="{circuit_breakers: {thresholds: [{max_connections: 1}]}}"),
    Row("max_requests", BOTH + "d connect; v accept; d send x; v read 1; d close; v end; v close; c close; u end", logs=2,
        cluster="{circuit_breakers: {thresholds: [{max_requests: 1}]}}"),
    Row("max_pending", "c connect; c stat cluster.max_pending.upstream_cx_total=1; d connect; d end; c end", logs=2,
        hosts=("blackhole",), cluster="{connect_timeout: 0.5s, circuit_breakers: {thresholds: [{max_pending_requests: 1}]}}"),
    Row("idle_timeout", BOTH + "c send x; u read 1; u end; c end", proxy="{idle_timeout: 0.2s}"),
    Row("idle_while_connecting", "c connect; c end", hosts=("blackhole",), proxy="{idle_timeout: 0.2s}"),
    Row("max_duration", BOTH + "c send x; u read 1; u end; c end", proxy="{max_downstream_connection_duration: 0.2s}"),
    Row("max_duration_while_connecting", "c connect; c end", hosts=("blackhole",),
        proxy="{max_downstream_connection_duration: 0.2s}"),
    Row("log_on_connected", BOTH + "c logged 1; c send x; u read 1; c close; u end", logs=2,
        proxy="{access_log_options: {flush_access_log_on_connected: true}}"),
    Row("log_on_connected_refused", "c connect; c end", hosts=("dead",),
        proxy="{access_log_options: {flush_access_log_on_connected: true}}"),
    Row("echo", "c connect; c send abc; c read 3; c send de; c read 2; c shut; c end", filters=ECHO, logs=0),
    Row("echo_reset", "c connect; c send abc; c read 3; c reset", filters=ECHO, logs=0),
    Row("direct", "c connect; c end; c close", filters=DIRECT, logs=0),
    Row("direct_after_data", "c connect; c send hello; c end; c close", filters=DIRECT, logs=0),
    Row("limit", BOTH + "d connect; d end; d close; c send x; u read 1; c close; u end; u close; "
        "d stat connection_limit.limit.active_connections=0; d connect; v accept; d send y; v read 1; d close; v end",
        filters=limit("limit"), before=True, differs="connection-limit", compare="^(tcp|connection_limit)",
        envoy=("tcp.limit.downstream_cx_total: 3",), ours=("tcp.limit.downstream_cx_total: 2",)),
    Row("limit_delay", BOTH + "d connect; d quiet; u nobody; d end; c send x; u read 1; c close; u end",
        filters=limit("limit_delay", ", delay: 0.4s"), before=True, differs="connection-limit",
        compare="^(tcp|connection_limit)",
        envoy=("tcp.limit_delay.downstream_cx_total: 2",), ours=("tcp.limit_delay.downstream_cx_total: 1",)),
    Row("limit_off", BOTH + "d connect; v accept; d send x; v read 1; d close; v end; c close; u end",
        filters=limit("limit_off", ", runtime_enabled: {default_value: false, runtime_key: no.such}"), before=True, logs=2,
        differs="connection-limit-off", envoy=("connection_limit.limit_off.active_connections: 18446744073709551614",)),
    tunneled("tunnel", BOTH + "u head; u send @ok; c send hello; u read 5; u send world; c read 5; c close; u end",
        differs="tunnel-wire-bytes", compare="code=|up_[tr]x", envoy=("log 0: up_tx=63", "log 0: up_rx=29"), ours=("log 0: up_tx=58", "log 0: up_rx=24")),
    tunneled("tunnel_upstream_ends", BOTH + "u head; u send @ok_data; c read 5; u close; c end; c close"),
    tunneled("tunnel_early", "c connect; c send early; u accept; u head; u quiet; u send @ok; u read 5; c close; u end"),
    tunneled("tunnel_half_close_down", BOTH + "u head; u send @ok; c send ask; c shut; u end; u send answer; c end"),
    tunneled("tunnel_half_close_up", BOTH + "u head; u send @ok_data; u shut; c end; c send answer; u read 6; c close; u end"),
    tunneled("tunnel_client_resets", BOTH + "u head; u send @ok; c send hi; u read 2; c reset; u end"),
    tunneled("tunnel_upstream_resets", BOTH + "u head; u send @ok; c send hi; u read 2; u reset; c end"),
    tunneled("tunnel_created", BOTH + "u head; u send @created; c send hi; u read 2; c close; u end"),
    tunneled("tunnel_interim", BOTH + "u head; u send @interim; u send @ok; c send hi; u read 2; c close; u end"),
    tunneled("tunnel_refused", BOTH + "u head; u send @refused; c end; u end"),
    tunneled("tunnel_broken", BOTH + "u head; u send @broken; c end; u end"),
    tunneled("tunnel_closed", BOTH + "u head; u close; c end"),
    tunneled("tunnel_second_attempt", BOTH + "u head; u send @refused; u end; v accept; v head; v send @ok; c send hi; v read 2; c close; v end", proxy=", max_connect_attempts: 2"),
    tunneled("tunnel_dead", "c connect; c end", hosts=("dead",)),
    tunneled("tunnel_dead_2", "c connect; c end", hosts=("dead",), proxy=", max_connect_attempts: 2"),
    tunneled("tunnel_no_host", "c connect; c end", hosts=()),
    tunneled("tunnel_leaves_early", BOTH + "u head; c close; u quiet; u close"),
    tunneled("tunnel_idle", BOTH + "u head; u send @ok; c send x; u read 1; u end; c end", proxy=", idle_timeout: 0.2s"),
    tunneled("tunnel_headers", BOTH + "u head; u send @ok; c send x; u read 1; c close; u end",
        ', headers_to_add: [{header: {key: x-a, value: "b"}}, {header: {key: x-ip, value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}}]'),
    tunneled("tunnel_post", BOTH + "u head; u send @chunked; c send hi; u read 7; c read 5; c close; u close", ", use_post: true, post_path: /tunnel", compare="^tcp"),
    tunneled("tunnel_post_ends", BOTH + "u head; u send @chunked; c send hi; u read 7; c read 5; c shut; u read 5; u send @last; c end; c close", ", use_post: true", compare="^tcp"),
    tunneled("tunnel_log", BOTH + "u head; u send @ok; c logged 1; c send x; u read 1; c close; u end", logs=2,
        proxy=", access_log_options: {flush_access_log_on_connected: true}"),
]  # fmt: skip


@pytest.fixture(scope="module")
def pair() -> Iterator[RelayPair]:
    """Envoy and the subject with a listener for each row."""
    with relay_pair(ROWS, (start_envoy, start_envoy if SUBJECT_IS_ENVOY else start_meshproxy)) as both:
        yield both


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_row(pair: RelayPair, row: Row) -> None:
    pair.check(row)


@pytest.mark.skipif(SUBJECT_IS_ENVOY, reason="it is about where the two differ")
def test_unknown_cluster() -> None:
    config = bootstrap([tcp_listener("main", "nobody")])
    with start_envoy(config) as envoy, socket.create_connection(("127.0.0.1", envoy.listener_ports()["main"])) as sock:
        assert sock.recv(1) == b""
        assert envoy.stats("no_route")["tcp.main.downstream_cx_no_route"] == 1
    with pytest.raises(RuntimeError, match="cluster: unknown cluster 'nobody'"):
        start_meshproxy(config)
