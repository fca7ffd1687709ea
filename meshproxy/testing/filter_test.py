"""`FilterTest`: a filter in the real proxy, with memory for a network."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, ClassVar, Final, Self

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.loader import load_bootstrap
from meshproxy.config.python_class import PROVIDED
from meshproxy.errors import ConfigError
from meshproxy.filters import builtin  # noqa: F401  they register themselves
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.observe.access_log import AccessLog
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.server.listener import ActiveListener
from meshproxy.server.worker import Worker
from meshproxy.testing.memory import MemoryLoop, connect_pair
from meshproxy.testing.peers import Exchange, Headers, Response, Text, Upstream, to_bytes, to_header_map

_TIMEOUT_S: Final = 30.0
_PYTHON: Final = "type.googleapis.com/meshproxy.filters.http.python.v1"
_EXTENSIONS: Final = "type.googleapis.com/envoy.extensions.filters"

Secret = bytes | Mapping[str, bytes]  # what a generic secret holds


class FilterTest:
    """Runs a filter (a class, or a file and the name of its class), configured with `config`, before an `upstream`;
    a context manager.

    `clusters` are others that the filter calls: their upstreams are in `cluster`, by name. `route_config` is what the
    filter's `PythonPerRoute` says for paths under `/route/`. `options` are those of the `Python` message, such as
    `{"fail_open": True, "hook_timeout": "0.1s"}`. `secrets` are those that the filter may ask for, each with what it
    holds: bytes, or a mapping of several by their keys. A configuration that the class does not accept raises
    ConfigError with its path, as the proxy would refuse it.
    """

    _stats_prefix: ClassVar[str] = "http.test.python.{name}."
    _place: ClassVar[str] = "http_filters[0].typed_config."  # in the paths of errors

    def __init__(
        self,
        kind: type[Any] | str | Path,
        config: Mapping[str, Any] | None = None,
        *,
        class_name: str = "",
        clusters: Iterable[str] = (),
        route_config: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        secrets: Mapping[str, Secret] | None = None,
    ) -> None:
        self.upstream = Upstream()
        self.cluster: dict[str, Upstream] = {name: Upstream() for name in clusters}
        self._class = kind if isinstance(kind, type) else None
        self._file = "" if isinstance(kind, type) else str(kind)
        self._class_name = class_name
        self._ports: dict[str, int] = {}
        self._config = dict(config or {})
        self._route_config = route_config
        self._options = dict(options or {})
        self._secrets = dict(secrets or {})
        self._worker: Worker | None = None
        self._loop: MemoryLoop | None = None
        self._log = _Recorder()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def start(self) -> None:
        """What `async with` does at its beginning."""
        loop = self._loop = MemoryLoop(asyncio.get_running_loop())
        self._worker = Worker(Dispatcher(loop))
        if self._class is not None:
            PROVIDED[self._name] = self._class
        self._listen(loop)
        try:
            await self.reload()
        except BaseException:
            await self.stop()
            raise

    def _listen(self, loop: MemoryLoop) -> None:
        for name, upstream in {"upstream": self.upstream, **self.cluster}.items():
            self._ports[name] = loop.listen(upstream.new_connection)

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """What `async with` does at its end."""
        worker, self._worker = self._worker, None
        PROVIDED.pop(self._name, None)
        if worker is not None:
            for task in [task for one in (self.upstream, *self.cluster.values()) for task in one.tasks]:
                task.cancel()
            await worker.close()
            for listener in worker.listeners.values():
                listener.close()
            await worker.dispatcher.close()
            for _ in range(3):
                await asyncio.sleep(0)  # connections learn of their end

    # -- requests

    async def request(
        self,
        method: Text,
        path: Text,
        headers: Headers | None = None,
        body: Text | Iterable[Text] = b"",
        trailers: Headers | None = None,
    ) -> Response:
        """Send a request and wait for the response. A body in pieces is sent chunked, each piece on its own."""
        whole = isinstance(body, (str, bytes))
        pieces = [to_bytes(body)] if isinstance(body, (str, bytes)) else [to_bytes(piece) for piece in body]
        fields = to_header_map(headers)
        if whole and pieces[0] and trailers is None:
            fields.add(b"content-length", b"%d" % len(pieces[0]))
        exchange = self.open(method, path, fields.fields, chunked=not whole or trailers is not None)
        for piece in pieces:
            if piece:
                await exchange.send(piece)
        async with asyncio.timeout(_TIMEOUT_S):
            response = await exchange.finish(trailers)
        response.info = self._log.last
        return response

    def open(self, method: Text, path: Text, headers: Headers | None = None, *, chunked: bool = False) -> Exchange:
        """Send the head of a request; its body is sent, and its response awaited, by the exchange."""
        worker, loop = self._worker, self._loop
        assert worker is not None
        assert loop is not None
        exchange = Exchange(to_bytes(method))
        listener = worker.listeners["main"]
        connect_pair(asyncio.get_running_loop(), exchange, listener.new_connection(), 8080)
        fields = to_header_map(headers)
        if b"host" not in fields:
            fields = HeaderMap([(b"host", b"test"), *fields.fields])
        exchange.begin(to_bytes(path), fields, chunked=chunked)
        return exchange

    # -- what the filter left

    def stats(self) -> dict[str, int]:
        """The counters and gauges of the filter, by name."""
        assert self._worker is not None
        snapshot = self._worker.stats.snapshot()
        prefix = self._stats_prefix.format(name=self._name)
        found = {**snapshot.counters, **snapshot.gauges}
        return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}

    # -- the proxy

    @property
    def _name(self) -> str:
        return self._class_name or Path(self._file).stem if self._class is None else self._class.__name__

    async def reload(self, config: Mapping[str, Any] | None = None) -> None:
        """What the proxy does when the filter's file changed, or its configuration. Raises ConfigError as it refuses
        it; what runs stays then."""
        worker = self._worker
        assert worker is not None
        self._config = self._config if config is None else dict(config)
        errors = ConfigErrors()
        described = self._bootstrap(self._ports)
        described["static_resources"]["secrets"] = [_secret(name, held) for name, held in self._secrets.items()]
        bootstrap = load_bootstrap(json.dumps(described), errors=errors)
        if bootstrap is not None and not errors:
            await worker.prepare(bootstrap, {}, errors)
        if errors:
            first, *others = [
                ConfigError(error.path.partition(self._place)[2] or error.path, error.reason)
                for error in errors.sorted()
            ]
            raise ConfigError(first.path, "\n".join([first.reason, *map(str, others)]))
        await worker.commit({})
        self._record(worker.listeners["main"])

    async def rotate(self, name: str, secret: Secret) -> None:
        """The secret changes, under the filter that runs."""
        self._secrets[name] = secret
        await self.reload()

    def _record(self, listener: ActiveListener) -> None:
        terminal: Any = listener.current_chains[0].config.terminal
        terminal.config.access_logs = (self._log,)

    def _bootstrap(self, ports: dict[str, int]) -> dict[str, Any]:
        entry = {"name": self._name, "typed_config": self._python("filters.http")}
        listener = listener_of({"name": "http", "typed_config": self._manager([entry])})
        return static_resources(listener, [cluster_of(name, [port]) for name, port in ports.items()])

    def _python(self, kind: str) -> dict[str, Any]:
        """The message that names the class; `kind` is the place of its type."""
        source = {"entry_point": self._name} if self._class else {"file": self._file, "class": self._class_name}
        python = f"type.googleapis.com/meshproxy.{kind}.python.v1.Python"
        named = {"secrets": [{"name": name} for name in self._secrets]} if self._secrets else {}
        return {"@type": python, **source, "config": self._config, **named, **self._options}

    def _manager(self, filters: list[dict[str, Any]]) -> dict[str, Any]:
        """A connection manager that sends everything to the cluster `upstream`."""
        routes: list[dict[str, Any]] = [{"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "0s"}}]
        if self._route_config is not None:
            override = {"@type": f"{_PYTHON}.PythonPerRoute", "config": dict(self._route_config)}
            route = {"cluster": "upstream", "timeout": "0s"}
            routes.insert(
                0,
                {"match": {"prefix": "/route/"}, "route": route, "typed_per_filter_config": {self._name: override}},
            )
        return {
            "@type": f"{_EXTENSIONS}.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "test",
            "http_filters": [
                *filters,
                {"name": "router", "typed_config": {"@type": f"{_EXTENSIONS}.http.router.v3.Router"}},
            ],
            "http_protocol_options": {"enable_trailers": True},
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        }


def load_file(path: str | Path) -> ModuleType:
    """The module in a filter's file, for tests of what is no filter in it."""
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Recorder(AccessLog):
    """Keeps the newest record."""

    def __init__(self) -> None:
        self.last: StreamInfo | None = None

    def log(self, info: StreamInfo) -> None:
        self.last = info


def _secret(name: str, held: Secret) -> dict[str, Any]:
    """A Secret message."""
    if isinstance(held, bytes):
        return {"name": name, "generic_secret": {"secret": _inline(held)}}
    return {"name": name, "generic_secret": {"secrets": {key: _inline(value) for key, value in held.items()}}}


def _inline(data: bytes) -> dict[str, str]:
    return {"inline_bytes": base64.b64encode(data).decode()}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def listener_of(*network_filters: dict[str, Any]) -> dict[str, Any]:
    """A Listener with one chain of these."""
    return {"name": "main", "address": _address(8080), "filter_chains": [{"filters": list(network_filters)}]}


def static_resources(listener: dict[str, Any], clusters: list[dict[str, Any]]) -> dict[str, Any]:
    """A Bootstrap with these."""
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}


def cluster_of(name: str, ports: list[int]) -> dict[str, Any]:
    """A Cluster with a host at each port."""
    hosts = [{"endpoint": {"address": _address(port)}} for port in ports]
    options: dict[str, Any] = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {"enable_trailers": True}},
    }
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    }
