"""Classes of all kinds in a proxy of its own process: over real sockets, with TLS, and reloaded while they run."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_meshproxy
from tests.support.upstream import ScriptedUpstream, reply
from tests.tls.certificates import world

_FOLDER = Path(__file__).resolve().parents[2] / "filters" / "all_kinds"
_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    server = ScriptedUpstream(("one", "two", "records"))
    yield server
    server.close()


def transport_socket() -> dict[str, Any]:
    server = world().server
    certificate = {
        "certificate_chain": {"inline_string": server.pem.decode()},
        "private_key": {"inline_string": server.key_pem.decode()},
    }
    tls = {"@type": _TLS, "common_tls_context": {"tls_certificates": [certificate]}}
    return {"name": "tls", "typed_config": tls}


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=world().ca.pem.decode())
    return context


def configuration(upstream: ScriptedUpstream, source: Path) -> str:
    """The example, behind TLS, with these services."""
    ports = {8101: upstream.ports["one"], 8102: upstream.ports["two"], 8103: upstream.ports["records"]}
    text = (_FOLDER / "all_kinds.yaml").read_text().replace("filters/all_kinds/all_kinds.py", str(source))
    text = re.sub(r"(port_value: )(\d+)", lambda match: f"{match[1]}{ports.get(int(match[2]), 0)}", text)
    made: Any = yaml.safe_load(text)
    made["static_resources"]["listeners"][0]["filter_chains"][0]["transport_socket"] = transport_socket()
    return json.dumps(made)


@contextmanager
def connected(proxy: ProxyProcess) -> Iterator[http.client.HTTPConnection]:
    plain = socket.create_connection(("127.0.0.1", proxy.listener_ports()["main"]), timeout=30)
    with closing(http.client.HTTPConnection("app")) as connection, trusting().wrap_socket(plain) as sock:
        connection.sock = sock
        yield connection


def ask(connection: http.client.HTTPConnection, tenant: str, body: bytes = b"") -> str:
    connection.request("POST", "/", body, headers={"x-tenant": tenant})
    return connection.getresponse().read().decode()


def ask_much(connection: http.client.HTTPConnection) -> None:
    """More than the quota of the connection."""
    for _ in range(3):
        ask(connection, "ann", b"x" * 60_000)


def test_all_kinds_together(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    source = tmp_path / "all_kinds.py"
    source.write_text((_FOLDER / "all_kinds.py").read_text())
    script = upstream.play(by_server={name: [reply(body=name.encode())] for name in ("one", "two", "records")})
    with start_meshproxy(configuration(upstream, source)) as proxy, connected(proxy) as connection:
        homes = {tenant: ask(connection, tenant) for tenant in ("ann", "bob", "eve", "dan")}
        assert set(homes.values()) == {"one", "two"}
        assert {tenant: ask(connection, tenant) for tenant in homes} == homes

        def shipped() -> list[Any]:
            bodies = [seen.message.body for seen in script.seen if seen.server == "records"]
            return [json.loads(line) for body in bodies for line in body.splitlines()]

        wait_for(lambda: len(shipped()) >= 8, "the records")
        assert sorted(record["tenant"] for record in shipped()) == sorted([*homes, *homes])

        source.write_text(source.read_text().replace("< 0:", "< 0 or data == b'':").replace("crc32", "adler32"))
        wait_for(lambda: proxy.stats("server.config_reload_success").popitem()[1] == 1, "the reload")
        assert ask(connection, "ann") in ("one", "two")  # the connection stays
        with pytest.raises((OSError, http.client.HTTPException)):
            ask_much(connection)
        stats = proxy.stats("python")
        assert sum(value for name, value in stats.items() if name.endswith("over_quota")) == 1
        assert sum(value for name, value in stats.items() if name.endswith("errors")) == 0
        wait_for(lambda: _active(proxy) == 0, "the end of the connection")
        with connected(proxy) as another:
            assert ask(another, "bob") in ("one", "two")


def _active(proxy: ProxyProcess) -> int:
    stats = proxy.stats("connections_active")
    return sum(value for name, value in stats.items() if name.endswith("quota.connections_active"))


_UPPER = """
from meshproxy import NetworkFilter

class Upper(NetworkFilter):
    async def on_data(self, connection, data, end):
        return b"THE END" if end else data.upper()
"""


def shake(session: ssl.SSLObject) -> bool:
    session.do_handshake()
    return True


def test_half_close_through_tls_and_a_filter(tmp_path: Path) -> None:
    """The client's close_notify passes the filter, which has a last word; then the answer still comes."""
    source = tmp_path / "upper.py"
    source.write_text(_UPPER)
    python = {"@type": "type.googleapis.com/meshproxy.filters.network.python.v1.Python", "file": str(source)}
    echo = {"@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"}
    filters = [{"name": "upper", "typed_config": python}, {"name": "echo", "typed_config": echo}]
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    chain = {"filters": filters, "transport_socket": transport_socket()}
    made = {
        "admin": {"address": address},
        "static_resources": {"listeners": [{"name": "main", "address": address, "filter_chains": [chain]}]},
    }
    with start_meshproxy(json.dumps(made)) as proxy:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = trusting().wrap_bio(incoming, outgoing, server_hostname="a.test")
        with socket.create_connection(("127.0.0.1", proxy.listener_ports()["main"]), timeout=30) as sock:

            def step(action: Callable[[], Any]) -> Any:
                while True:
                    try:
                        result = action()
                    except ssl.SSLWantReadError:
                        result = None
                    sock.sendall(outgoing.read())
                    if result is not None:
                        return result
                    data = sock.recv(65536)
                    incoming.write(data) if data else incoming.write_eof()

            step(lambda: shake(session))
            session.write(b"some bytes")
            assert step(lambda: session.read(10)) == b"SOME BYTES"
            with suppress(ssl.SSLWantReadError):
                session.unwrap()  # our close_notify
            sock.sendall(outgoing.read())
            assert step(lambda: session.read(7)) == b"THE END"
            with pytest.raises(ssl.SSLZeroReturnError):  # the proxy's close_notify
                step(lambda: session.read(1))
