"""What is logged of connections (`Listener.access_log`) and of the admin's requests (`Admin.access_log`)."""

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.downstream import RawDownstream
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy

TYPES = "type.googleapis.com/envoy.extensions."
CONNECTION_FORMAT = (
    "%BYTES_RECEIVED% %BYTES_SENT% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS% "
    "%CONNECTION_TERMINATION_DETAILS% %FILTER_CHAIN_NAME% %ACCESS_LOG_TYPE% %DOWNSTREAM_WIRE_BYTES_RECEIVED% "
    "%DOWNSTREAM_WIRE_BYTES_SENT% %REQ(:PATH)% %RESP(SERVER)% %ROUTE_NAME% %UPSTREAM_HOST% %UPSTREAM_CLUSTER% "
    "%REQUEST_DURATION% %RESPONSE_DURATION% %COMMON_DURATION(DS_RX_BEG:DS_RX_END)% %UPSTREAM_REQUEST_ATTEMPT_COUNT% "
    "%GRPC_STATUS% %STREAM_ID% %REQUESTED_SERVER_NAME% %DOWNSTREAM_TRANSPORT_FAILURE_REASON% "
    "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_ADDRESS%\n"
)
ADMIN_FORMAT = (
    "%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %BYTES_RECEIVED% "
    "%RESP(CONTENT-TYPE)% %REQ(X-FORWARDED-FOR)% %REQ(X-FORWARDED-PROTO)% %REQ(USER-AGENT)% %ROUTE_NAME% "
    "%FILTER_CHAIN_NAME% %ACCESS_LOG_TYPE% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_HOST%\n"
)


def file_log(path: Path, text: str) -> dict[str, object]:
    """A file access log of lines with this format."""
    config = {"@type": TYPES + "access_loggers.file.v3.FileAccessLog", "path": str(path)}
    return {"name": "file", "typed_config": config | {"log_format": {"text_format_source": {"inline_string": text}}}}


def bootstrap(directory: Path) -> str:
    """One listener that answers by itself, and an admin that serves three paths."""
    manager = {
        "@type": TYPES + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "main",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                }
            ]
        },
        "http_filters": [{"name": "router", "typed_config": {"@type": TYPES + "filters.http.router.v3.Router"}}],
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    listener = {
        "name": "main",
        "address": address,
        "filter_chains": [{"name": "chain", "filters": [{"name": "http", "typed_config": manager}]}],
        "access_log": [file_log(directory / "connections.log", CONNECTION_FORMAT)],
    }
    allowed = [{"exact": "/ready"}, {"prefix": "/listeners"}, {"exact": "/healthcheck/fail"}]
    admin = {
        "address": address,
        "allow_paths": allowed,
        "access_log": [file_log(directory / "admin.log", ADMIN_FORMAT)],
    }
    return json.dumps({"admin": admin, "static_resources": {"listeners": [listener]}})


class Side:
    """One proxy and the directory that it logs to."""

    def __init__(self, proxy: ProxyProcess, directory: Path) -> None:
        self.directory = directory
        self.ports = {"main": proxy.listener_ports()["main"], "admin": int(proxy.admin_address.rpartition(":")[2])}

    def play(self, port: str, *parts: bytes) -> tuple[list[tuple[int, bytes]], str]:
        """Send each part and read its answer on one connection; the answers, and the line that is logged at the end."""
        path = self.directory / {"main": "connections.log", "admin": "admin.log"}[port]
        before = len(path.read_text().splitlines()) if path.exists() else 0
        answers = []
        with RawDownstream(self.ports[port]) as downstream:
            for part in parts:
                downstream.send(part)
                message = downstream.receive(part.split(b" ")[0])
                answers.append((message.status, message.body))

        def logged() -> list[str]:
            lines = path.read_text().splitlines() if path.exists() else []
            return lines[before:]

        lines = wait_for(logged, "the access log line")
        assert len(lines) == 1
        return answers, lines[0].replace(f":{self.ports['main']}", ":<port>")


@pytest.fixture(scope="module")
def sides() -> Iterator[tuple[Side, Side]]:
    with (
        tempfile.TemporaryDirectory() as first,
        tempfile.TemporaryDirectory() as second,
        start_envoy(bootstrap(Path(first))) as envoy,
        start_meshproxy(bootstrap(Path(second))) as ours,
    ):
        yield Side(envoy, Path(first)), Side(ours, Path(second))


_GET = b"GET /x HTTP/1.1\r\nhost: test\r\n\r\n"
CONNECTIONS = {
    "idle": (),
    "one request": (_GET,),
    "two requests": (_GET, _GET),
    "HTTP/1.0": (b"GET /x HTTP/1.0\r\nhost: test\r\n\r\n",),
    "no HTTP": (b"nonsense\r\n\r\n",),
    "no HTTP after a request": (_GET, b"nonsense\r\n\r\n"),
}


@pytest.mark.parametrize("name", CONNECTIONS)
def test_connections(sides: tuple[Side, Side], name: str) -> None:
    theirs, ours = (side.play("main", *CONNECTIONS[name])[1] for side in sides)
    assert ours == theirs


REQUESTS = {
    "served": b"GET /ready HTTP/1.1\r\nhost: x\r\nuser-agent: test\r\n\r\n",
    "forwarded": b"GET /ready HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 192.0.2.1\r\n\r\n",
    "slashes": b"GET //listeners?format=text HTTP/1.1\r\nhost: x\r\n\r\n",
    "not allowed": b"GET /stats HTTP/1.1\r\nhost: x\r\n\r\n",
    "not allowed with a query": b"GET /ready?x HTTP/1.1\r\nhost: x\r\n\r\n",
    "not allowed by a detour": b"GET /listeners/%2e%2e/stats HTTP/1.1\r\nhost: x\r\n\r\n",
    "wrong method": b"GET /healthcheck/fail HTTP/1.1\r\nhost: x\r\n\r\n",
    "with a body": b"POST /ready HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc",
    "no HTTP": b"nonsense\r\n\r\n",
}


@pytest.mark.parametrize("name", REQUESTS)
def test_admin(sides: tuple[Side, Side], name: str) -> None:
    (their_answers, theirs), (our_answers, ours) = (side.play("admin", REQUESTS[name]) for side in sides)
    if name != "slashes":  # the bound port
        assert our_answers == their_answers
    assert ours == theirs
    assert re.match(r"\S+ \S+ HTTP/1\.1 \d+ ", ours)
