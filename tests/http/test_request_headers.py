"""What happens to a request's headers on entry: data/request_headers.json was recorded from Envoy 1.40.

There the downstream is on loopback, this node's address is `<own>` and the listener's port `<port>`. Headers that the
router consumes are left out.
"""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest

from meshproxy.codec.headers import HeaderMap
from meshproxy.http.manager_config import ConnectionManagerConfig, InternalAddresses
from meshproxy.http.request_headers import last_address, remove_hop_by_hop
from meshproxy.net.address import Address
from tests.http.harness import Harness, get

TABLE: dict[str, Any] = json.loads(Path(__file__).with_name("data").joinpath("request_headers.json").read_text())


def configure(config: ConnectionManagerConfig, mode: dict[str, Any]) -> None:
    config.generate_request_id = mode.get("generate_request_id", True)
    config.local_address = b"<own>"
    for name, value in mode.items():
        if name == "internal_address_config":
            blocks = [f"{each['address_prefix']}/{each['prefix_len']}" for each in value["cidr_ranges"]]
            config.internal_addresses = InternalAddresses(False, tuple(ipaddress.ip_network(block) for block in blocks))
        elif name == "via":
            config.via = value.encode()
        elif name != "generate_request_id":
            setattr(config, name, value)


def upstream_headers(mode: str, request: str) -> list[list[str]] | str:
    """What the upstream sees of a request, sorted; the status when it is refused."""
    made = Harness(peer="127.0.0.1")
    config = made.config()
    configure(config, TABLE["modes"][mode])
    answer = made.connect(config).send(get("/", *TABLE["requests"][request]))
    if not made.upstream.seen:
        return answer.split(b" ")[1].decode()
    seen: dict[str, list[str]] = {}
    for name, value in made.upstream.seen[0]:
        if not name.startswith(b":"):
            seen.setdefault(name.decode(), []).append(masked(name, value.decode()))
    joined = "x-forwarded-for"  # Envoy keeps one field of it, we the fields as they came: the list is the same
    if joined in seen:
        seen[joined] = [",".join(seen[joined])]
    return sorted([name, value] for name, values in seen.items() for value in values)


def masked(name: bytes, value: str) -> str:
    if name == b"x-request-id" and len(value) == 36:
        return "<id>"
    return "<port>" if name == b"x-forwarded-port" and value == "8080" else value


@pytest.mark.parametrize("case", TABLE["upstream"])
def test_the_upstream_sees_what_it_sees_behind_envoy(case: str) -> None:
    mode, request = case.split(" ")
    assert upstream_headers(mode, request) == TABLE["upstream"][case]


def test_own_address_comes_last_also_behind_several_fields() -> None:
    """Else the next proxy, which trusts the last address, would believe what the client wrote."""
    made = Harness(peer="203.0.113.7")
    config = made.config()
    config.use_remote_address = True
    made.connect(config).send(get("/", ("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "10.0.0.1")))
    assert (b"x-forwarded-for", b"1.1.1.1,10.0.0.1,203.0.113.7") in made.upstream.seen[0]


def test_an_edge_makes_a_request_id_of_its_own() -> None:
    """A UUID version 4 (RFC 9562): nobody outside chooses it."""
    made = Harness(peer="203.0.113.7")
    config = made.config()
    config.use_remote_address = True
    config.generate_request_id = True
    for _ in range(50):
        made.connect(config).send(get("/", ("x-request-id", "mine")))
    ids = [dict(fields)[b"x-request-id"].decode() for fields in made.upstream.seen]
    assert len(set(ids)) == 50
    for each in ids:
        assert each[14] == "4"
        assert each[19] in "89ab"
        assert len(each) == 36


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([("connection", "close"), ("x-a", "1")], ["x-a"]),
        ([("connection", "X-A , x-b"), ("x-a", "1"), ("x-b", "1"), ("x-c", "1")], ["x-c"]),
        ([("connection", "x-a"), ("connection", "x-b"), ("x-a", "1"), ("x-b", "1")], []),
        ([("keep-alive", "5"), ("proxy-connection", "x"), ("upgrade", "h2c")], []),
        ([("connection", "http2-settings"), ("http2-settings", "x")], []),
        ([("te", "gzip")], []),
        ([("te", "trailers, gzip")], ["te"]),
        ([("connection", ""), ("x-a", "1")], ["x-a"]),
    ],
)
def test_hop_by_hop_fields_end_here(given: list[tuple[str, str]], kept: list[str]) -> None:
    headers = HeaderMap([(name.encode(), value.encode()) for name, value in given])
    assert remove_hop_by_hop(headers) is None
    assert [name.decode() for name, _ in headers] == kept


@pytest.mark.parametrize("name", ["host", ":path", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"])
def test_what_a_downstream_may_not_have_removed(name: str) -> None:
    assert remove_hop_by_hop(HeaderMap([(b"connection", name.encode())])) is not None


def test_only_trailers_remains_of_te() -> None:
    headers = HeaderMap([(b"te", b"deflate , trailers")])
    remove_hop_by_hop(headers)
    assert headers.fields == [(b"te", b"trailers")]


@pytest.mark.parametrize(
    ("value", "hops", "expected"),
    [
        (b"1.1.1.1", 0, ("1.1.1.1", True)),
        (b"1.1.1.1, 2.2.2.2", 0, ("2.2.2.2", False)),
        (b"1.1.1.1, 2.2.2.2", 1, ("1.1.1.1", False)),
        (b"1.1.1.1", 1, ("", False)),
        (b"junk", 0, ("", False)),
        (b"2001:DB8::1", 0, ("2001:db8::1", True)),
        (b"", 0, ("", False)),
    ],
)
def test_the_trusted_address(value: bytes, hops: int, expected: tuple[str, bool]) -> None:
    address, single = last_address(HeaderMap([(b"x-forwarded-for", value)]), hops)
    assert ("" if address is None else address.ip, single) == expected


def test_internal_addresses() -> None:
    addresses = InternalAddresses(True, (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")))
    assert addresses.contains(Address("10.255.0.1", 1))
    assert addresses.contains(Address("fd00::1", 1))
    assert addresses.contains(Address("", 0, "/run/socket"))
    assert not addresses.contains(Address("11.0.0.1", 1))
    assert not InternalAddresses(False, ()).contains(Address("", 0, "/run/socket"))
