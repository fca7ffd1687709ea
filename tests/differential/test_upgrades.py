"""Upgrades, CONNECT and tunnels, step by step between two raw sockets: the real Envoy and meshproxy."""

from collections.abc import Iterator

import pytest

from tests.differential.pair import SUBJECT_IS_ENVOY
from tests.differential.relay import RelayPair, Row, relay_pair
from tests.support.proxy import start_envoy, start_meshproxy

WEBSOCKET = "upgrade_configs: [{upgrade_type: websocket}]"
CONNECT = "upgrade_configs: [{upgrade_type: CONNECT}]"


def texts(**heads: str) -> dict[str, bytes]:
    """Heads, written with `|` for the ends of lines."""
    return {name: text.replace("|", "\r\n").encode() for name, text in heads.items()}


TEXTS = texts(
    ws="GET /chat HTTP/1.1|host: ws.test|connection: Upgrade|upgrade: websocket|sec-websocket-key: abc||",
    ws_early="GET /chat HTTP/1.1|host: ws.test|connection: Upgrade|upgrade: websocket||early",
    ws_caps="GET /chat HTTP/1.1|host: ws.test|connection: keep-alive, Upgrade|upgrade: WebSocket||",
    ws_length="POST /chat HTTP/1.1|host: ws.test|connection: Upgrade|upgrade: websocket|content-length: 5||hello",
    ws_chunked="POST /chat HTTP/1.1|host: ws.test|connection: Upgrade|upgrade: websocket|transfer-encoding: chunked||5|hello|0||",
    ws_10="GET /chat HTTP/1.0|host: ws.test|connection: Upgrade|upgrade: websocket||",
    ws_two="GET /chat HTTP/1.1|host: ws.test|connection: Upgrade|upgrade: websocket, foo||",
    ws_lines="GET /chat HTTP/1.1|host: ws.test|connection: Upgrade|upgrade: websocket|upgrade: foo||",
    ws_unnamed="GET /chat HTTP/1.1|host: ws.test|connection: Upgrade|upgrade:||",
    foo="GET /chat HTTP/1.1|host: ws.test|connection: Upgrade|upgrade: foo||",
    get="GET /plain HTTP/1.1|host: ws.test||",
    yes="HTTP/1.1 101 Switching Protocols|connection: Upgrade|upgrade: websocket|sec-websocket-accept: xyz||",
    yes_data="HTTP/1.1 101 Switching Protocols|connection: Upgrade|upgrade: websocket||welcome",
    yes_bare="HTTP/1.1 101 Switching Protocols||",
    yes_length="HTTP/1.1 101 Switching Protocols|connection: Upgrade|upgrade: websocket|content-length: 0||",
    yes_coding="HTTP/1.1 101 Switching Protocols|connection: Upgrade|upgrade: websocket|transfer-encoding: chunked||",
    yes_unconnected="HTTP/1.1 101 Switching Protocols|upgrade: websocket||",
    interim="HTTP/1.1 100 Continue||",
    no="HTTP/1.1 403 Forbidden|content-length: 2||no",
    no_chunked="HTTP/1.1 200 OK|transfer-encoding: chunked||2|no|0||",
    no_eof="HTTP/1.1 200 OK||no",
    no_upgrade="HTTP/1.1 426 Upgrade Required|connection: upgrade|upgrade: websocket|content-length: 2||no",
    connect="CONNECT far.test:443 HTTP/1.1|host: far.test:443||",
    connect_early="CONNECT far.test:443 HTTP/1.1|host: far.test:443||early",
    connect_zero="CONNECT far.test:443 HTTP/1.1|host: far.test:443|content-length: 0||",
    connect_length="CONNECT far.test:443 HTTP/1.1|host: far.test:443|content-length: 2||hi",
    connect_chunked="CONNECT far.test:443 HTTP/1.1|host: far.test:443|transfer-encoding: chunked||2|hi|0||",
    connect_get="GET / HTTP/1.1|host: far.test:443||",
    post="POST / HTTP/1.1|host: far.test:443|transfer-encoding: chunked||2|hi|",
    post_length="POST / HTTP/1.1|host: far.test:443|content-length: 2||hi",
    ok="HTTP/1.1 200 OK||",
    ok_data="HTTP/1.1 200 OK||hello",
    ok_length="HTTP/1.1 200 OK|content-length: 2||hi",
    ok_chunked="HTTP/1.1 200 OK|transfer-encoding: chunked||2|hi|0||",
    no_content="HTTP/1.1 204 No Content||",
    moved="HTTP/1.1 301 Moved|location: /x|content-length: 0||",
    missing="HTTP/1.1 404 Not Found||no",
    ok_upgrade="HTTP/1.1 200 OK|connection: upgrade|upgrade: websocket||no",
    refused="HTTP/1.1 503 Nope|content-length: 2||no",
)  # fmt: skip


def ws(name: str, steps: str, manager: str = WEBSOCKET, route: str = "", path: str = "/", **more: object) -> Row:
    """A row whose route leads to its cluster; upgrades to websocket are on."""
    routes = f"[{{match: {{prefix: {path}}}, route: {{cluster: {name}{route}}}}}]"
    return Row(name, steps, routes=routes, manager=f"{{{manager}}}", texts=TEXTS, **more)  # type: ignore[arg-type]


def tunnel(name: str, steps: str, config: str = "", manager: str = "", **more: object) -> Row:
    """A row whose route takes CONNECT requests; `config` is more of its upgrade_configs entry."""
    routes = (
        f"[{{match: {{connect_matcher: {{}}}}, route: {{cluster: {name}, "
        f"upgrade_configs: [{{upgrade_type: CONNECT{config}}}]}}}}, "
        f"{{match: {{prefix: /}}, direct_response: {{status: 418}}}}]"
    )
    return Row(name, steps, routes=routes, manager=f"{{{manager}}}", texts=TEXTS, **more)  # type: ignore[arg-type]


def hurried(name: str, steps: str, **more: object) -> Row:
    """A row whose route is one of high priority and ends CONNECT requests."""
    routes = (
        f"[{{match: {{connect_matcher: {{}}}}, route: {{cluster: {name}, priority: HIGH, "
        f"upgrade_configs: [{{upgrade_type: CONNECT, connect_config: {{}}}}]}}}}]"
    )
    return Row(name, steps, routes=routes, texts=TEXTS, **more)  # type: ignore[arg-type]


def posted(name: str, steps: str, **more: object) -> Row:
    """A row whose route passes on the bodies of POST requests as plain bytes."""
    routes = (
        f"[{{match: {{prefix: /}}, route: {{cluster: {name}, "
        f"upgrade_configs: [{{upgrade_type: CONNECT, connect_config: {{allow_post: true}}}}]}}}}]"
    )
    return Row(name, steps, routes=routes, texts=TEXTS, **more)  # type: ignore[arg-type]


NO_TX = (
    "^(?!.*(tx_bytes|destroy_(local|remote)))"  # what one end still sends while the other ends is a matter of timing
)
UNAVAILABLE = (
    "c HTTP/1.1 503 Service Unavailable",
    "c content-length: 19",
    "c end b'no healthy upstream' eof",
    "log 0: code=503",
)
NO_RX = "^(?!.*up_rx)"  # a response that is refused by its head may have been read further
NO_WHO = "^(?!.*destroy_(local|remote))"
ASK = "c connect; c send @ws; u accept; u head; "
OPEN = ASK + "u send @yes; c head; "
TCP = ", connect_config: {}"
REACH = "c connect; c send @connect; u accept; "
PASS = REACH + "u head; "

ROWS = [
    ws("switch", OPEN + "c send hello; u read 5; u send world; c read 5; c close; u end"),
    ws("upstream_ends", OPEN + "u send bye; u close; c end; c close"),
    ws("upstream_half_closes", OPEN + "u send bye; u shut; c end; c send more; c close; u end"),
    ws("upstream_resets", OPEN + "c send hi; u read 2; u reset; c end"),
    ws("downstream_half_closes", OPEN + "c send bye; c shut; u end; c end", compare=NO_TX),
    ws("downstream_resets", OPEN + "c send hi; u read 2; c reset; u end"),
    ws("early_data", "c connect; c send @ws_early; u accept; u head; u send @yes; c head; u read 5; c close; u end"),
    ws("welcome", ASK + "u send @yes_data; c head; c read 7; c close; u end"),
    ws("caps", "c connect; c send @ws_caps; u accept; u head; u send @yes; c head; c close; u end"),
    ws("two_protocols", "c connect; c send @ws_two; c head; c end", compare="^(c|u)"),
    ws("two_lines", "c connect; c send @ws_lines; c head; c end"),
    ws("unnamed", "c connect; c send @ws_unnamed; c head; c end"),
    ws("coding_101", ASK + "u send @yes_coding; c head", compare="^(c HTTP|log 0: code)"),
    ws("unconnected_101", ASK + "u send @yes_unconnected; c head", differs="tunnel-bare-101", compare="^(c HTTP|log 0: code)", envoy=("c HTTP/1.1 101 Switching Protocols", "log 0: code=101"),
       ours=("c HTTP/1.1 502 Bad Gateway", "c content-length: 87", "c content-type: text/plain", "log 0: code=502")),
    ws("bare_101", ASK + "u send @yes_bare; c head", differs="tunnel-bare-101", compare="^(c HTTP|log 0: code)", envoy=("c HTTP/1.1 101 Switching Protocols", "log 0: code=101"),
       ours=("c HTTP/1.1 502 Bad Gateway", "c content-length: 87", "c content-type: text/plain", "log 0: code=502")),
    ws("length_101", ASK + "u send @yes_length; c head; c send x; u read 1; c close; u end"),
    ws("interim", ASK + "u send @interim; u send @yes; c head; c send x; u read 1; c close; u end"),
    ws("declined", ASK + "u send @no; c head; c read 2; c end; c close"),
    ws("declined_chunked", ASK + "u send @no_chunked; c head; c read 12; c end; c close", compare=NO_RX),
    ws("declined_until_eof", ASK + "u send @no_eof; u close; c head; c end; c close", compare=NO_RX),
    ws("declined_with_upgrade", ASK + "u send @no_upgrade; c head; c read 2; c end; c close", differs="tunnel-declined", compare="^c |code", envoy=("c connection: upgrade", "c upgrade: websocket", "c end b'' stalled"),
       ours=("c connection: close", "c end b'' eof")),
    ws("declined_200", ASK + "u send @ok_length; c head; c end; c close", compare=NO_RX),
    ws("declined_200_upgrade", ASK + "u send @ok_upgrade; c head; c end; c close", differs="tunnel-declined", compare="^c |code", envoy=("c connection: upgrade", "c upgrade: websocket"), ours=("c connection: close",)),
    ws("declined_204", ASK + "u send @no_content; c head; c end; c close"),
    ws("declined_301", ASK + "u send @moved; c head; c end; c close"),
    ws("declined_404", ASK + "u send @missing; u close; c head; c end; c close", compare=NO_WHO),
    ws("foo_200", "c connect; c send @foo; u accept; u head; u send @ok_length; c head; c end; c close", manager="upgrade_configs: [{upgrade_type: foo}]"),
    ws("early_quiet", "c connect; c send @ws_early; u accept; u head; u quiet; u send @yes; c head; u read 5; c close; u end"),
    tunnel("connect_early_quiet", "c connect; c send @connect_early; u accept; u head; u quiet; u send @ok; c head; u read 5; c close; u end"),
    ws("with_length", "c connect; c send @ws_length; c head; c end", hosts=(), differs="tunnel-with-body", compare="code=|details=",
       envoy=(*UNAVAILABLE, "log 0: details=no_healthy_upstream"),
       ours=("c HTTP/1.1 400 Bad Request", "c content-length: 11", "c end b'Bad Request' eof", "log 0: code=400", "log 0: details=http1.body_disallowed")),
    ws("with_chunks", "c connect; c send @ws_chunked; c head; c end", hosts=(), differs="tunnel-with-body", compare="code=|details=",
       envoy=(*UNAVAILABLE, "log 0: details=no_healthy_upstream"),
       ours=("c HTTP/1.1 501 Not Implemented", "c content-length: 15", "c end b'Not Implemented' eof", "log 0: code=501",
             "log 0: details=http1.invalid_transfer_encoding")),
    ws("on_http_10", "c connect; c send @ws_10; u accept; u head; u send @no; c head; c read 2; c end", manager=WEBSOCKET + ", http_protocol_options: {accept_http_10: true}", differs="tunnel-http10", compare="^u|code", envoy=("u connection: Upgrade", "u upgrade: websocket")),
    ws("other_protocol", "c connect; c send @foo; c head; c end"),
    ws("not_configured", "c connect; c send @ws; c head; c end", manager=""),
    ws("disabled_by_manager", "c connect; c send @ws; c head; c end", manager="upgrade_configs: [{upgrade_type: websocket, enabled: false}]"),
    ws("enabled_by_route", OPEN + "c send x; u read 1; c close; u end", manager="", route=", upgrade_configs: [{upgrade_type: websocket}]"),
    ws("disabled_by_route", "c connect; c send @ws; c head; c end", route=", upgrade_configs: [{upgrade_type: websocket, enabled: false}]"),
    ws("route_over_manager", OPEN + "c send x; u read 1; c close; u end", manager="upgrade_configs: [{upgrade_type: websocket, enabled: false}]",
       route=", upgrade_configs: [{upgrade_type: WebSocket}]"),
    ws("plain_request", "c connect; c send @get; u accept; u head; u send @no; c head; c read 2; c close; u end"),
    ws("ignored", "c connect; c send @ws; u accept; u head; u send @no; c head; c read 2; c close; u end",
       manager=WEBSOCKET + ", http_protocol_options: {ignore_http_11_upgrade: [{exact: websocket}]}"),
    ws("no_host", "c connect; c send @ws; c head; c end", hosts=()),
    ws("refused_by_host", "c connect; c send @ws; c head; c end", hosts=("dead",)),
    ws("route_timeout", ASK + "c head; c end", route=", timeout: 0.2s"),
    ws("route_timeout_after", OPEN + "c quiet; c quiet; c send x; u read 1; c close; u end", route=", timeout: 0.2s"),
    ws("route_timeout_half_closed", OPEN + "c shut; u end; c end; c close", route=", timeout: 0.2s"),
    ws("request_timeout", OPEN + "c quiet; c quiet; c send x; u read 1; c close; u end", manager=WEBSOCKET + ", request_timeout: 0.2s"),
    ws("idle_timeout", OPEN + "c end; c close", manager=WEBSOCKET + ", stream_idle_timeout: 0.3s"),
    ws("max_stream_duration", OPEN + "c end; c close",
       manager=WEBSOCKET + ", common_http_protocol_options: {max_stream_duration: 0.3s}"),
    ws("two_connections", OPEN + "d connect; d send @ws; v accept; v head; v send @yes; d head; d send x; v read 1; d close; v end; c close; u end", logs=2),
    ws("own_filters", OPEN + "c send x; u read 1; c close; u end", manager="upgrade_configs: [{upgrade_type: websocket, filters: ["
       "{name: router, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}]"),
    ws("no_route", "c connect; c send @ws; c head; c end", path="/never"),
    ws("no_route_not_configured", "c connect; c send @ws; c head; c end", manager="", path="/never"),
    ws("connect_not_configured", "c connect; c send @connect; c head; c end"),
    ws("connect_by_prefix", "c connect; c send @connect; c head; c end", manager=CONNECT),
    tunnel("connect", PASS + "u send @ok; c head; c send hello; u read 5; u send world; c read 5; c close; u end"),
    tunnel("connect_upstream_ends", PASS + "u send @ok_data; c head; c read 5; u close; c end; c close", compare=NO_WHO),
    tunnel("connect_half_close_down", PASS + "u send @ok; c head; c send ask; c shut; u end; u send answer; c read 6; u close; c end", compare=NO_TX),
    tunnel("connect_half_close_up", PASS + "u send @ok; c head; u send all; u shut; c end; c send answer; u read 6; c close; u end", compare=NO_WHO),
    tunnel("connect_early", "c connect; c send @connect_early; u accept; u head; u send @ok; c head; u read 5; c close; u end"),
    tunnel("connect_zero_length", "c connect; c send @connect_zero; u accept; u head; u send @ok; c head; c close; u end"),
    tunnel("connect_with_length", "c connect; c send @connect_length; c head; c end"),
    tunnel("connect_with_chunks", "c connect; c send @connect_chunked; c head; c end"),
    tunnel("connect_refused", PASS + "u send @refused; c head; c read 2; c end; c close"),
    tunnel("connect_ok_with_length", PASS + "u send @ok_length; c head; c read 2; c close; u end", differs="tunnel-2xx-length", compare="^[cu]|code", envoy=("c content-length: 2",)),
    tunnel("connect_ok_chunked", PASS + "u send @ok_chunked; c head; c read 12; c close; u end"),
    tunnel("connect_route_not_enabled", "c connect; c send @connect; c head; c end", ", enabled: false"),
    tunnel("connect_get", "c connect; c send @connect_get; c head; c close"),
    tunnel("terminate", REACH + "c head; c send hello; u read 5; u send world; c read 5; c close; u end", TCP),
    tunnel("terminate_early", "c connect; c send @connect_early; u accept; u read 5; c head; c close; u end", TCP),
    tunnel("terminate_upstream_ends", REACH + "u send bye; u close; c head; c end; c close", TCP),
    tunnel("terminate_upstream_resets", REACH + "c head; c send hi; u read 2; u reset; c end", TCP),
    tunnel("terminate_half_close_down", REACH + "c head; c send ask; c shut; u end; u send answer; c read 6; u close; c end", TCP, compare=NO_TX),
    tunnel("terminate_half_close_up", REACH + "c head; u send all; u shut; c read 3; c send answer; u read 6; c close; u end", TCP, compare=NO_TX),
    tunnel("terminate_resets", REACH + "c head; c send hi; u read 2; c reset; u end", TCP),
    tunnel("terminate_refused", "c connect; c send @connect; c head; c end", TCP, hosts=("dead",)),
    tunnel("terminate_no_host", "c connect; c send @connect; c head; c end", TCP, hosts=()),
    tunnel("terminate_timeout", "c connect; c send @connect; c head; c end", TCP, hosts=("blackhole",), cluster="{connect_timeout: 0.1s}"),
    tunnel("terminate_proxy_protocol", REACH + "c head; u read 30; c close", ", connect_config: {proxy_protocol_config: {version: V1}}"),
    tunnel("terminate_max_connections", REACH + "c head; d connect; d send @connect; c stat cluster.terminate_max_connections.upstream_cx_overflow=1; d close; c logged 1; c close; u end", TCP, logs=2,
           cluster="{circuit_breakers: {thresholds: [{max_connections: 1}]}}", differs="tunnel-overflow", compare="^log 0: code|cx_overflow", envoy=("log 0: code=0",), ours=("log 0: code=503",)),
    hurried("terminate_high", REACH + "c head; c send hello; u read 5; c close; u end", cluster="{circuit_breakers: {thresholds: [{max_pending_requests: 0, max_connections: 0}]}}"),
    hurried("terminate_high_overflow", "c connect; c send @connect; c head; c end", cluster="{circuit_breakers: {thresholds: [{priority: HIGH, max_pending_requests: 0}]}}"),
    posted("terminate_post", "c connect; c send @post; u accept; u read 2; u send answer; c head; c read 11; u close; c end"),
    posted("terminate_post_complete", "c connect; c send @post_length; u accept; u read 2; u send answer; c head; c read 11; u close; c end", compare="^(?!.*with_active_rq)"),
    tunnel("terminate_enabled_by_manager", REACH + "c head; c send x; u read 1; c close; u end", TCP, manager=CONNECT),
]  # fmt: skip


@pytest.fixture(scope="module")
def pair() -> Iterator[RelayPair]:
    """Envoy and the subject with a listener for each row."""
    with relay_pair(ROWS, (start_envoy, start_envoy if SUBJECT_IS_ENVOY else start_meshproxy)) as both:
        yield both


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_row(pair: RelayPair, row: Row) -> None:
    pair.check(row)
