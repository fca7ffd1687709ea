"""The whole way of a request, as plain values (what JSON and marshal take).

It takes the steps of `http/stream.py` and `http/router.py` with their own functions: the codec, the checks and the
header rules of entry, the route table, the chain of filters. Nothing is sent, counted or logged.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)

from meshproxy.clock import monotonic
from meshproxy.codec import headers as h
from meshproxy.codec.connection import ServerConnectionCallbacks
from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http1.server import Http1ServerConnection
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.config.errors import child, item
from meshproxy.errors import ProtocolError
from meshproxy.filters.http.on_demand import OnDemandFilter
from meshproxy.filters.network.http_connection_manager import HttpNetworkFilter
from meshproxy.filters.network.tcp_proxy import TcpProxyFilter
from meshproxy.http.chain import FilterChain
from meshproxy.http.entry import RejectedRequest, check_and_normalize
from meshproxy.http.manager_config import ConnectionManagerConfig
from meshproxy.http.request_headers import mutate_request_headers, remove_hop_by_hop
from meshproxy.http.upgrade import tunnel_chain, tunnel_protocol
from meshproxy.net.address import Address
from meshproxy.observe.stream_info import ConnectionInfo, StreamInfo
from meshproxy.route.route import DISABLED, ROUTE_CLUSTER, ROUTE_REDIRECT, Route
from meshproxy.server.explain import access, words
from meshproxy.server.explain.chains import passed_over
from meshproxy.server.explain.connection import (
    connection_info,
    listening_address,
    new_accepted,
    run_listener_filters,
)
from meshproxy.server.explain.question import Question, QuestionError
from meshproxy.server.explain.routes import RouteWalk
from meshproxy.server.explain.upstream import ClusterView, cluster_name, split_plain
from meshproxy.server.listener_config import FilterChainConfig, ListenerConfig

Plain = dict[str, Any]

_MOST_BODY: Final = 200

# What becomes of the request (`outcome.kind`).
FORWARD: Final = "forward"
REDIRECT: Final = "redirect"
DIRECT_RESPONSE: Final = "direct_response"
LOCAL_REPLY: Final = "local_reply"
CLOSE: Final = "close"
TCP: Final = "tcp"


class ListenerView:
    """A listener: where it stands in the configuration, its message (serialised), and what was built of it."""

    def __init__(self, path: str, message: bytes, config: ListenerConfig) -> None:
        self.path = path
        self.message = message
        self.config = config


class World:
    """A configuration, as it was read or as it runs. `find_cluster` knows clusters by name."""

    def __init__(
        self, listeners: Mapping[str, ListenerView], find_cluster: Callable[[str], ClusterView | None]
    ) -> None:
        self.listeners = listeners
        self.find_cluster = find_cluster

    def listener_at(self, address: Address) -> ListenerView | None:
        """As `Worker.listener_at`: exactly this address, else its port on all addresses."""
        wildcard = Address("::" if ":" in address.ip else "0.0.0.0", address.port)
        for wanted in (address, wildcard):
            for view in self.listeners.values():
                if wanted in view.config.addresses:
                    return view
        return None


class Explanation:
    """Run `steps` to their end; then `plain` has the answer, and `found` says whether a route (or a TCP proxy) takes
    the request. Raises QuestionError for a question that names no listener."""

    def __init__(self, world: World, question: Question) -> None:
        self.world = world
        self.question = question
        self.plain: Plain = {"found": False}
        self._path: str = ""  # of the listener

    @property
    def found(self) -> bool:
        return bool(self.plain["found"])

    def steps(self) -> Iterator[None]:
        question = self.question
        view = self._pick_listener()
        local = listening_address(view.config, question.port or question.url_port)
        accepted = new_accepted(question, local)
        tls = self._is_tls(view.config)
        self._show_request(local, accepted.remote, tls)
        shown = self._show_listener(view, local)
        ran = run_listener_filters(view.config, question, tls, accepted)
        if view.config.hands_off and accepted.local_restored:
            other = self.world.listener_at(accepted.local)
            if other is not None and other is not view:
                shown["handed_to"] = other.config.name
                view = other
                shown = self._show_listener(view, accepted.local)
                ran = run_listener_filters(view.config, question, tls, accepted)
        yield
        message: Any = Listener.FromString(view.message)
        shown["listener_filters"] = [
            {"name": entry.name, "runs": runs} for entry, runs in zip(message.listener_filters, ran, strict=True)
        ]
        yield
        config = view.config
        index = None if config.matcher is None else config.matcher.find(accepted)
        chain = config.default_chain if index is None else config.chains[index]
        yield from self._show_chains(message, index, chain, accepted)
        if chain is None:
            self._outcome(CLOSE, "no filter chain matches: the connection is closed")
            return
        assumed = tls or (question.tls is None and chain.transport is not None)
        self.plain["request"]["tls"] = assumed
        if assumed != (chain.transport is not None):
            reason = "speaks TLS, and the client does not" if not assumed else "does not speak TLS, and the client does"
            self._outcome(CLOSE, f"the filter chain {reason}: the connection fails")
            return
        info = connection_info(accepted, question, assumed)
        info.listener_name, info.filter_chain_name = config.name, chain.name
        yield from self._ask_terminal(chain, info, self._terminal_path(index, chain), message, index)

    # -- listeners

    def _pick_listener(self) -> ListenerView:
        question, listeners = self.question, self.world.listeners
        names = ", ".join(f"{name} ({_addresses(view.config)})" for name, view in listeners.items())
        if question.listener:
            if question.listener not in listeners:
                raise QuestionError(f"there is no listener {question.listener!r}; there are: {names}")
            return listeners[question.listener]
        ports = [question.port] if question.port else [question.url_port] if question.url_port else []
        for port in ports:
            for view in listeners.values():
                if any(address.port == port for address in view.config.addresses):
                    return view
        if question.port:
            raise QuestionError(f"no listener has port {question.port}; there are: {names}")
        if len(listeners) != 1:
            raise QuestionError(f"which listener? say --listener or --port; there are: {names or 'none'}")
        return next(iter(listeners.values()))

    def _is_tls(self, config: ListenerConfig) -> bool:
        if self.question.tls is None:
            chains = config.all_chains()
            return len(chains) == 1 and chains[0].transport is not None
        return self.question.tls

    def _show_request(self, local: Address, remote: Address, tls: bool) -> None:
        question = self.question
        self.plain["request"] = {
            "method": question.method,
            "authority": question.authority or ("localhost" if local.path else local.text),
            "path": question.target,
            "headers": [list(field) for field in question.headers],
            "source": remote.text if remote.port else remote.ip or remote.path,
            "tls": tls,
            "server_name": question.server_name,
        }

    def _show_listener(self, view: ListenerView, local: Address) -> Plain:
        self._path = view.path
        shown: Plain = {"name": view.config.name, "path": view.path, "address": local.text, "listener_filters": []}
        if "listener" in self.plain:
            self.plain["handed_from"] = self.plain["listener"]
        self.plain["listener"] = shown
        return shown

    # -- filter chains

    def _show_chains(
        self, message: Any, index: int | None, chain: FilterChainConfig | None, accepted: Any
    ) -> Iterator[None]:
        labels = [each.name or f"filter_chains[{at}]" for at, each in enumerate(message.filter_chains)]
        reasons = passed_over(message.filter_chains, labels, accepted)
        yield
        passed = [
            {"name": each.name, "path": item(self._path, "filter_chains", at), "reason": reasons[at]}
            for at, each in enumerate(message.filter_chains)
            if at != index
        ]
        shown: Plain | None = None
        if chain is not None:
            shown = {"name": chain.name, "path": self._chain_path(index), "tls": chain.transport is not None}
            shown["default"] = index is None
        self.plain["filter_chain"] = shown
        self.plain["filter_chains_passed_over"] = passed

    def _chain_path(self, index: int | None) -> str:
        return child(self._path, "default_filter_chain") if index is None else item(self._path, "filter_chains", index)

    def _terminal_path(self, index: int | None, chain: FilterChainConfig) -> str:
        return item(self._chain_path(index), "filters", len(chain.gates) + len(chain.filters))

    def _ask_terminal(
        self, chain: FilterChainConfig, info: ConnectionInfo, path: str, message: Any, index: int | None
    ) -> Iterator[None]:
        entries = (message.default_filter_chain if index is None else message.filter_chains[index]).filters
        terminal = chain.terminal
        self.plain["network_filters"] = [{"name": entry.name} for entry in entries]
        if not access.ask_network(chain.filters, info):
            self._outcome(CLOSE, "rules do not let the connection in: it is closed when its first bytes come")
        elif isinstance(terminal, HttpNetworkFilter):
            manager = HttpConnectionManager()
            entries[-1].typed_config.Unpack(manager)
            yield from self._ask_manager(terminal.config, info, path, manager)
        elif isinstance(terminal, TcpProxyFilter):
            self._show_tcp_proxy(terminal)
        else:
            self.plain["found"] = True
            self._outcome(TCP, f"the network filter {entries[-1].name!r} speaks on the connection, and it is no HTTP")

    def _show_tcp_proxy(self, terminal: TcpProxyFilter) -> None:
        config = terminal.config
        self.plain["found"] = True
        if len(config.clusters) == 1:
            view = self.world.find_cluster(config.clusters[0])
            self.plain["cluster"] = None if view is None else view.plain()
            self._outcome(TCP, f"bytes are passed on to the cluster {config.clusters[0]}, whatever they say")
            return
        weights = zip(config.clusters, config.weights, strict=True)
        clusters = [
            {"name": name, "weight": weight, "share": weight / (config.total_weight or 1), "taken": False}
            for name, weight in weights
        ]
        self.plain["split"] = {
            "method": "intervals",
            "decided_by": "chance",
            "sticky": False,
            "number": None,
            "clusters": clusters,
        }
        self._outcome(TCP, "bytes are passed on to one of the clusters, by chance for each connection")

    # -- the request

    def _ask_manager(
        self, config: ConnectionManagerConfig, connection: ConnectionInfo, path: str, manager: Any
    ) -> Iterator[None]:
        question = self.question
        reader = _HeadReader(config)
        headers = reader.read(_head(question, self.plain["request"]["authority"]))
        yield
        if headers is None:
            error = reader.error
            status = 400 if error is None else error.status
            details = "" if error is None else error.details
            self._outcome(LOCAL_REPLY, f"the codec refuses the request: {details}", status=status, details=details)
            return
        drawn = random.getrandbits(64) if question.random is None else question.random
        info = StreamInfo(connection, monotonic())
        info.request_headers = headers
        tunnel = tunnel_protocol(headers) if headers.known & h.UPGRADE else b""
        rejected = check_and_normalize(config, headers, info)
        if rejected is None:
            rejected = remove_hop_by_hop(headers, tunnel)
        if rejected is not None:
            self._show_rejected(rejected)
            return
        mutate_request_headers(config, connection, headers, info)
        self._show_normalized(headers, info)
        yield
        table = config.routes.table
        if table is None:
            self._outcome(LOCAL_REPLY, "there are no routes yet: 404", status=404, details="route_not_found")
            return
        inline = manager.WhichOneof("route_specifier") == "route_config"
        where = child(child(path, "typed_config"), "route_config") if inline else f"routes.{table.name}"
        walk = RouteWalk(table, where, headers, info, drawn)
        yield from walk.steps()
        self._show_walk(walk)
        yield
        self._show_action(config, manager, headers, info, walk, tunnel)

    def _show_rejected(self, rejected: RejectedRequest) -> None:
        if rejected.location:
            location = words.text(rejected.location)
            self._outcome(
                REDIRECT,
                f"the path is not in its normal form: {rejected.status} to {location}",
                status=rejected.status,
                location=location,
            )
            return
        self._outcome(
            LOCAL_REPLY,
            f"refused before any route is looked at: {rejected.status} {rejected.details}",
            status=rejected.status,
            details=rejected.details,
        )

    def _show_normalized(self, headers: HeaderMap, info: StreamInfo) -> None:
        self.plain["normalized"] = {
            "authority": words.text(headers.get(b":authority") or b""),
            "path": words.text(headers.get(b":path") or b""),
            "scheme": words.text(headers.get(b":scheme") or b""),
            "x_forwarded_proto": words.text(headers.get(b"x-forwarded-proto") or b""),
            "downstream_remote_address": info.remote.text if info.remote.port else info.remote.ip or info.remote.path,
            "internal": info.internal,
        }

    def _show_walk(self, walk: RouteWalk) -> None:
        self.plain["virtual_host"] = walk.host_shown
        self.plain["virtual_hosts_passed_over"] = walk.hosts_passed
        self.plain["routes_passed_over"] = walk.routes_passed
        route, match = walk.route, walk.match
        self.plain["route"] = None
        if route is None:
            return
        self.plain["found"] = True
        if match is None:
            assert walk.host_shown is not None
            path = child(walk.host_shown["path"], "require_tls")
            self.plain["route"] = {"name": "", "path": path, "conditions": ["the request came without TLS"]}
            return
        assert walk.host_shown is not None
        path = item(walk.host_shown["path"], "routes", match.order)
        self.plain["route"] = {"name": match.route.name, "path": path, "conditions": words.conditions(match)}
        if match.weighted is not None:
            self.plain["split"] = split_plain(match.weighted, route, walk.headers, walk.info)

    def _show_action(
        self,
        config: ConnectionManagerConfig,
        manager: Any,
        headers: HeaderMap,
        info: StreamInfo,
        walk: RouteWalk,
        tunnel: bytes,
    ) -> None:
        route = walk.route
        chain = config.chain
        if tunnel:
            allowed = tunnel_chain(tunnel, config.upgrades, chain, route)
            if allowed is None and route is not None:
                name = words.text(tunnel)
                self._outcome(
                    LOCAL_REPLY, f"nobody allows an upgrade to {name}: 403", status=403, details="upgrade_failed"
                )
                return
            chain = allowed or chain
        self.plain["http_filters"] = _filters(chain, route, manager)
        details = access.ask_http(chain.for_route(route), route, self.plain["http_filters"], headers, info)
        if details:
            self.plain["found"] = False
            self._outcome(LOCAL_REPLY, "its rules do not let it in: 403", status=403, details=details)
        elif route is None:
            what = "no virtual host has the domain" if walk.host is None else "no route matches"
            self._outcome(LOCAL_REPLY, f"{what}: 404", status=404, details="route_not_found")
        elif route.kind != ROUTE_CLUSTER:
            self._show_direct(route, headers, info)
        else:
            self._show_forward(config, chain, route, headers, info)

    def _show_direct(self, route: Route, headers: HeaderMap, info: StreamInfo) -> None:
        if route.kind == ROUTE_REDIRECT:
            status, to = route.redirect(headers, info)
            location = words.text(to)
            self._outcome(REDIRECT, f"answered with {status} to {location}", status=status, location=location)
            return
        status, body = route.direct_response(info)
        shown = words.text(body[:_MOST_BODY]) + ("…" if len(body) > _MOST_BODY else "")
        self._outcome(DIRECT_RESPONSE, f"answered here with {status}", status=status, body=shown)

    def _show_forward(
        self, config: ConnectionManagerConfig, chain: FilterChain, route: Route, headers: HeaderMap, info: StreamInfo
    ) -> None:
        name = route.resolve_cluster(headers)
        view = self.world.find_cluster(name)
        self.plain["cluster"] = None if view is None else view.plain()
        if view is None:
            status = route.cluster_not_found_status
            unnamed = "" if name else f" (none is named: {cluster_name(route)})"
            reason = f"there is no cluster {name!r}{unnamed}: {status}"
            if name and _is_asked_for(chain, route):
                reason += ", unless the control plane, which is asked for it then, has one"
            self._outcome(LOCAL_REPLY, reason, status=status, details="cluster_not_found", cluster=name)
            return
        if route.metadata_match is not None:
            self.plain["cluster"]["metadata_match"] = dict(route.metadata_match.fields)
        route.finalize_request(headers, info, not config.suppress_envoy_headers)
        number = view.hash_of(route, headers, info)
        if number is not None:
            self.plain["cluster"]["hash"] = number
        upstream = {
            "authority": words.text(headers.get(b":authority") or b""),
            "path": words.text(headers.get(b":path") or b""),
        }
        if route.auto_host_rewrite:
            upstream["authority"] = "(the host's name)"
        self._outcome(FORWARD, f"sent to the cluster {name}", cluster=name, upstream_request=upstream)

    def _outcome(self, kind: str, reason: str, **more: Any) -> None:
        self.plain["outcome"] = {"kind": kind, "reason": reason, **more}


def _is_asked_for(chain: FilterChain, route: Route) -> bool:
    """Whether a cluster that is missing is discovered on demand."""
    filters = chain.for_route(route).filters
    return any(isinstance(each, OnDemandFilter) and each.settings_for(route).clusters is not None for each in filters)


def _filters(chain: FilterChain, route: Route | None, manager: Any) -> list[Plain]:
    """The HTTP filters in order, the router last."""
    actual = chain.for_route(route)
    configs: dict[str, object] = {} if route is None else route.filter_configs
    types = {entry.name: entry.typed_config.type_url.rpartition("/")[2] for entry in manager.http_filters}
    found: list[Plain] = []
    for each in actual.filters:
        runs = each.name not in actual.disabled
        shown: Plain = {"name": each.name, "type": types.get(each.name, ""), "runs": runs}
        if not runs:
            by_route = configs.get(each.name) is DISABLED
            shown["reason"] = "disabled on this route" if by_route else "disabled, and not enabled on this route"
        elif each.name in configs:
            shown["reason"] = "enabled on this route" if each.name in chain.disabled else "configured for this route"
        found.append(shown)
    if manager.http_filters:
        last = manager.http_filters[-1]
        found.append({"name": last.name, "type": types[last.name], "runs": True})
    return found


def _addresses(config: ListenerConfig) -> str:
    return ", ".join(address.text for address in config.addresses)


def _head(question: Question, authority: str) -> bytes:
    """The request on the wire, without a body."""
    target = authority if question.method == "CONNECT" else question.target
    named = any(name.lower() == "host" for name, _ in question.headers)
    lines = [f"{question.method} {target} HTTP/1.1"]
    if not named or question.authority:
        lines.append(f"host: {authority}")
    lines += [f"{name}: {value}" for name, value in question.headers]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


class _HeadReader(ServerConnectionCallbacks):
    """Lets the codec read one head."""

    def __init__(self, config: ConnectionManagerConfig) -> None:
        self._codec = Http1ServerConnection(self, config.codec)
        self._decoder = _HeadKeeper()
        self.error: ProtocolError | None = None

    def read(self, head: bytes) -> HeaderMap | None:
        """None, with `error`, when it is refused."""
        self._codec.receive_data(head)
        return None if self.error is not None else self._decoder.headers

    def new_stream(self, encoder: StreamEncoder) -> StreamDecoder:
        return self._decoder

    def on_send_pending(self) -> None:
        """Nobody is answered."""

    def on_protocol_error(self, error: ProtocolError) -> None:
        self.error = error


class _HeadKeeper(StreamDecoder):
    def __init__(self) -> None:
        self.headers: HeaderMap | None = None

    def on_headers(self, headers: HeaderMap, end: bool) -> None:
        self.headers = headers

    def on_data(self, data: bytes, end: bool) -> None:
        """There is no body."""

    def on_trailers(self, trailers: HeaderMap) -> None:
        """There are none."""

    def on_reset(self, reason: int, details: str) -> None:
        """The connection is only thought of."""
