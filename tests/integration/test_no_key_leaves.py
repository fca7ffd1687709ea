"""Keys that came inline or by SDS, good or bad: none is in anything that leaves the process, or that it writes."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from meshproxy.config.subscription import CLUSTER_TYPE, LISTENER_TYPE, SECRET_TYPE
from tests.integration.config import Json, address, cluster, direct, listener
from tests.integration.dynamic import ads_bootstrap, message
from tests.integration.proxy import Proxy, children
from tests.integration.test_secrets import Agent, inbound, pod
from tests.support.control_plane import ControlPlane
from tests.tls.certificates import Issued, issue, uri, world

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
NAMES = uri("spiffe://cluster.local/ns/default/sa/reviews")
KEYS = {
    name: issue(name, world().ca, names=NAMES)
    for name in (
        "static",
        "inline",
        "sds",
        "mismatched",
        "malformed",
        "refused",
        "ads",
        "encrypted",
        "listener",
        "cluster",
    )
}
PASSWORD = b"a password that nobody sees, 0123456789"
TICKETS = bytes(range(7, 87))
GENERIC = b"a credential that nobody sees, 0123456789"
PAGES = (
    *("/", "/certs", "/clusters", "/clusters?format=json", "/config_dump", "/config_dump?include_eds", "/help"),
    *("/config_dump?resource=static_listeners", "/config_dump?resource=dynamic_active_secrets"),
    *("/config_dump?resource=dynamic_warming_secrets", "/config_dump?resource=dynamic_listeners", "/memory"),
    *("/config_dump?mask=bootstrap", "/init_dump", "/listeners", "/listeners?format=json", "/runtime", "/server_info"),
    *("/stats", "/stats?format=json", "/stats/prometheus", "/ready", "/hot_restart_version"),
    *("/explain?path=/&authority=a.test", "/explain?path=/&authority=a.test&format=json"),
)


def traces(secret: bytes) -> Iterator[bytes]:
    """How it may be written: as it is, in hexadecimal, in base64 wherever it begins, in Python's or C's escapes."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for shift in range(3):
        yield base64.b64encode(bytes(shift) + secret)[4 if shift else 0 : -4]
    yield repr(secret)[2:-1].encode()
    yield "".join(f"\\{byte:03o}" for byte in secret).encode()


def secrets() -> dict[str, list[bytes]]:
    """What is looked for, by a name that may be told."""
    found = {
        "password": list(traces(PASSWORD)),
        "tickets": list(traces(TICKETS[16:64])),
        "generic": list(traces(GENERIC)),
    }
    for name, issued in KEYS.items():
        scalar: Any = issued.key.private_numbers()
        number: bytes = scalar.private_value.to_bytes(32, "big")
        lines = issued.key_pem.splitlines()[1:-1]
        der = issued.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        assert number in der
        found[name] = [*lines[:2], *traces(number), *(each for line in lines[:2] for each in traces(line))]
    return found


def found_in(text: bytes) -> list[str]:
    return [name for name, shapes in secrets().items() if any(shape in text for shape in shapes)]


def held(issued: Issued, key: bytes | None = None) -> Json:
    return {
        "certificate_chain": {"inline_string": issued.pem.decode()},
        "private_key": {"inline_bytes": base64.b64encode(key or issued.key_pem).decode()},
    }


def certificate(name: str, issued: Issued, key: bytes | None = None) -> Any:
    return message(Secret, {"name": name, "tls_certificate": held(issued, key)})


def serving(**fields: Any) -> Json:
    """A listener that speaks TLS by this."""
    name = fields.pop("name")
    made = listener(name, [direct("/", name)])
    config = {"@type": _TLS + "DownstreamTlsContext", "common_tls_context": fields}
    made["filter_chains"][0]["transport_socket"] = {"name": "tls", "typed_config": config}
    return made


def asking(name: str) -> Json:
    """A cluster that shows this certificate."""
    config = {"@type": _TLS + "UpstreamTlsContext", "common_tls_context": {"tls_certificates": [held(KEYS[name])]}}
    return cluster(name, 1, transport_socket={"name": "tls", "typed_config": config})


def configured(plane: ControlPlane, agent: Agent, *, delta: bool) -> str:
    """With keys inline, of the bootstrap's secrets, and references to others."""
    tree = json.loads(ads_bootstrap(plane.port, delta=delta))
    tree["static_resources"]["clusters"] = json.loads(pod(plane, agent))["static_resources"]["clusters"]
    encrypted = held(KEYS["encrypted"], KEYS["encrypted"].encrypted_key_pem(PASSWORD))
    encrypted["password"] = {"inline_bytes": base64.b64encode(PASSWORD).decode()}
    tree["static_resources"]["secrets"] = [
        {"name": "static", "tls_certificate": held(KEYS["static"])},
        {"name": "generic", "generic_secret": {"secret": {"inline_bytes": base64.b64encode(GENERIC).decode()}}},
        {"name": "tickets", "session_ticket_keys": {"keys": [{"inline_bytes": base64.b64encode(TICKETS).decode()}]}},
    ]
    by_name = serving(name="named", tls_certificate_sds_secret_configs=[{"name": "static"}])
    context = by_name["filter_chains"][0]["transport_socket"]["typed_config"]
    context["session_ticket_keys_sds_secret_config"] = {"name": "tickets"}
    tree["static_resources"]["listeners"] = [
        serving(name="inline", tls_certificates=[held(KEYS["inline"]), encrypted]),
        by_name,
    ]
    return json.dumps(tree)


async def told_by(proxy: Proxy, plane: ControlPlane, agent: Agent, directory: Path) -> dict[str, bytes]:
    """All that leaves the process: pages, logs, files, and what control planes hear."""
    found = {page: (await proxy.admin(page))[1].encode() for page in PAGES}
    found["/logging"] = (await proxy.admin("/logging", "POST"))[1].encode()
    found["output"] = proxy.output().encode()
    for name, each in (("plane", plane), ("agent", agent)):
        found[name] = b"".join(request.SerializeToString() for _, request in each.requests)
    found |= written_in(directory)
    for pid in (proxy.pid, *children(proxy.pid)):
        found |= opened_by(pid, proxy.process.config_path)
    return found


def written_in(directory: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def opened_by(pid: int, config: Path) -> dict[str, bytes]:
    """What stands in the files that it has open, its command line and its environment."""
    found = {f"{name} of {pid}": Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(link)
            if target.startswith("/memfd:") or (link.is_file() and target != str(config)):
                found[f"{target} of {pid}"] = link.read_bytes()
        except OSError:
            continue  # closed meanwhile
    return found


@pytest.fixture
async def planes(tmp_path: Path) -> Any:
    async with ControlPlane.start() as plane, Agent.start(uds=str(tmp_path / "agent")) as agent:
        agent.socket = str(tmp_path / "agent")
        yield plane, agent


@pytest.mark.parametrize(
    ("delta", "workers"), [(False, "1"), pytest.param(True, "2", marks=pytest.mark.long)], ids=["sotw", "delta"]
)
async def test_no_key_leaves(
    planes: tuple[ControlPlane, Agent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, delta: bool, workers: str
) -> None:
    plane, agent = planes
    directory = tmp_path / "written"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    agent.give("1", KEYS["sds"])
    by_ads = {"name": "ads", "sds_config": {"ads": {}, "resource_api_version": "V3"}}
    with_key = serving(name="listener", tls_certificates=[held(KEYS["listener"])])
    plane.set(CLUSTER_TYPE, {"cluster": message(Cluster, asking("cluster"))})
    plane.set(SECRET_TYPE, {"ads": certificate("ads", KEYS["ads"])})
    listeners = {
        "inbound": inbound(),
        "ads": message(Listener, serving(name="ads", tls_certificate_sds_secret_configs=[by_ads])),
        "listener": message(Listener, with_key),
    }
    plane.set(LISTENER_TYPE, listeners)
    arguments = ("--concurrency", workers, "--xds-cache", str(directory / "cache"), "-l", "trace", "--enable-core-dump")
    config = configured(plane, agent, delta=delta)
    assert set(found_in(config.encode())) == {"generic", "inline", "password", "static", "tickets"}
    async with Proxy(config, *arguments) as proxy:
        await proxy.until_stat("listener_manager.total_listeners_active", lambda count: count == 5)
        assert await proxy.stat("sds.default.update_success") >= 1
        assert await proxy.stat("sds.ads.update_success") >= 1
        await proxy.until_stat("cluster_manager.cds.update_success", lambda count: count >= 1)

        # bad ones
        refused = serving(name="refused", tls_certificates=[held(KEYS["refused"], KEYS["sds"].key_pem)])
        plane.set(LISTENER_TYPE, listeners | {"refused": message(Listener, refused)}, "2")
        await plane.until(lambda: plane.nacks(LISTENER_TYPE))
        agent.give("2", KEYS["sds"], key=KEYS["mismatched"])
        await agent.until(lambda: agent.nacks(SECRET_TYPE))
        cut = KEYS["malformed"].key_pem[:-40]
        plane.set(
            SECRET_TYPE, {"ads": message(Secret, {"name": "ads", "tls_certificate": held(KEYS["ads"], cut)})}, "2"
        )
        await plane.until(lambda: plane.nacks(SECRET_TYPE))
        bytes_that_are_none = held(KEYS["ads"], b"\xff\xfe" + cut)
        plane.set(SECRET_TYPE, {"ads": message(Secret, {"name": "ads", "tls_certificate": bytes_that_are_none})}, "3")
        await plane.until(lambda: len(plane.nacks(SECRET_TYPE)) >= 2)

        for page in ("/config_dump", "/config_dump?include_eds"):
            assert "[redacted]" in (await proxy.admin(page))[1]
        told = await told_by(proxy, plane, agent, directory)
        assert {name: found_in(text) for name, text in told.items() if found_in(text)} == {}
    told = written_in(directory)
    assert str(directory / "cache") in told  # it was written, at the latest when the proxy ended
    assert {name: found_in(text) for name, text in told.items() if found_in(text)} == {}


async def test_no_key_of_the_command_line_is_shown() -> None:
    """Whoever passes one there shows it to the users of the machine, but not to those of the admin."""
    named = serving(name="static", tls_certificates=[held(KEYS["static"])])
    overlay = json.dumps({"static_resources": {"listeners": [named]}})
    async with Proxy(json.dumps({"admin": {"address": address(0)}}), "--config-yaml", overlay) as proxy:
        for page in PAGES:
            assert found_in((await proxy.admin(page))[1].encode()) == [], page
        assert "[redacted]" in (await proxy.admin("/server_info"))[1]
