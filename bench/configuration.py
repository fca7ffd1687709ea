"""Configurations of bench/configs: their `@PLACES@` filled, patches laid over them, and the certificates they name.

`http1` is the file http1.envoy.yaml; `http1+lua` is the same with the patch `lua` of patches.yaml. A patch names places
of a configuration that has one listener, one virtual host, one route and one cluster: see `patched`.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

CONFIGS: Final = Path(__file__).with_name("configs")
_VIRTUAL_HOSTS: Final = 10_000
_HEADER_ROUTES: Final = 20

Places = Mapping[str, object]


def filled(file: str, places: Places) -> str:
    """The text of a file of bench/configs; `@NAME@` becomes `places["name"]`, or what this module knows to make."""
    text = (CONFIGS / file).read_text(encoding="utf-8")
    for name, value in places.items():
        text = text.replace(f"@{name.upper()}@", str(value))
    for mark, make in _MADE.items():
        if mark in text:
            text = text.replace(mark, make())
    return text


def envoy_config(config: str, places: Places) -> str:
    """What an Envoy or a meshproxy gets: a file, and the patches that follow its name after a `+` each."""
    base, *names = config.split("+")
    text = filled(f"{base}.envoy.yaml", places)
    if not names:
        return text
    patches = {**features(places), **_section("others", places)}
    return json.dumps(functools.reduce(patched, (patches[name] for name in names), yaml.safe_load(text)), indent=1)


def features(places: Places | None = None) -> dict[str, dict[str, Any]]:
    """The rows of the table of features, by name."""
    return _section("features", places or {})


def patched(config: dict[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with a patch laid over it: `filters` go before the router and `clusters` behind the one that is there;
    what stands under any other place replaces that place's fields."""
    resources = config["static_resources"]
    chain = resources["listeners"][0]["filter_chains"][0]
    manager = chain["filters"][0]["typed_config"]
    host = manager["route_config"]["virtual_hosts"][0]
    places = {
        "chain": chain,
        "manager": manager,
        "virtual_host": host,
        "route": host["routes"][0]["route"],
        "cluster": resources["clusters"][0],
    }
    for name, place in places.items():
        place.update(patch.get(name, {}))
    manager["http_filters"][-1:-1] = patch.get("filters", [])
    resources["clusters"] += patch.get("clusters", [])
    return config


def host_name(number: int) -> str:
    """The domain of a virtual host."""
    return f"service-{number}.bench.test"


@functools.cache
def certificates() -> tempfile.TemporaryDirectory[str]:
    """ca.pem, and `rsa` (2048 bits), `ecdsa` and `client` (P-256) as .pem, .key and both in one; gone when this process
    ends."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    from tests.tls.certificates import dns, issue

    folder = tempfile.TemporaryDirectory(prefix="bench-certificates-")
    authority = issue("bench authority", ca=True)
    Path(folder.name, "ca.pem").write_bytes(authority.pem)
    rsa_key = rsa.generate_private_key(65537, 2048)
    for name, key in (("rsa", rsa_key), ("ecdsa", None), ("client", None)):
        issued = issue(name, authority, names=dns("bench.test"), key=key)
        Path(folder.name, f"{name}.pem").write_bytes(issued.pem)
        Path(folder.name, f"{name}.key").write_bytes(issued.key_pem)
        Path(folder.name, f"{name}-with-key.pem").write_bytes(issued.pem + issued.key_pem)  # as HAProxy wants it
    Path(folder.name).chmod(0o755)  # nginx reads them as root, and its workers are another user
    return folder


def _section(name: str, places: Places) -> dict[str, dict[str, Any]]:
    # A place that nobody fills here is of a patch that this peer does not use.
    known = {"folder": "/nowhere", "ext_proc_port": 1, "collector_port": 1, **places}
    sections: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(filled("patches.yaml", known))
    return sections[name]


def _virtual_hosts() -> str:
    return json.dumps([_virtual_host(number) for number in range(_VIRTUAL_HOSTS)])


def _virtual_host(number: int) -> dict[str, object]:
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}]
    return {"name": f"service-{number}", "domains": [host_name(number)], "routes": routes}


def _header_routes() -> str:
    return json.dumps([_header_route(number) for number in range(_HEADER_ROUTES)])


def _header_route(number: int) -> dict[str, object]:
    """Picked by `x-version: vNUMBER`; a request for the last one is held against the matchers of all."""
    header = {"name": "x-version", "string_match": {"exact": f"v{number}"}}
    return {"match": {"prefix": "/", "headers": [header]}, "route": {"cluster": "upstream"}}


LAST_HEADER_ROUTE: Final = f"x-version: v{_HEADER_ROUTES - 1}"
_MADE: Final = {
    "@BENCH@": lambda: str(CONFIGS.parent),
    "@CERTIFICATES@": lambda: certificates().name,
    "@VIRTUAL_HOSTS@": _virtual_hosts,
    "@HEADER_ROUTES@": _header_routes,
}
