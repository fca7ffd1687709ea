"""Path normalisation: the table in data/paths.json was recorded from Envoy 1.40, for every mode and path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from meshproxy.codec.headers import HeaderMap
from meshproxy.http import path
from meshproxy.http.entry import check_and_normalize
from meshproxy.net.address import Address
from meshproxy.observe.stream_info import ConnectionInfo, StreamInfo
from tests.http.harness import Harness

TABLE: dict[str, Any] = json.loads(Path(__file__).with_name("data").joinpath("paths.json").read_text())
# Envoy's merge of a path of nothing but slashes leaves two of them.
DIFFERENT = {("/%2f", "fwdall"): "/"}


@pytest.mark.parametrize("mode", TABLE["modes"])
def test_every_path_becomes_what_envoy_makes_of_it(mode: str) -> None:
    config = Harness().config()
    for name, value in TABLE["modes"][mode].items():
        setattr(config, name, value)
    config.touches_path = True
    outcomes = {}
    for given in TABLE["paths"]:
        headers = HeaderMap([(b":authority", b"h"), (b":path", given.encode()), (b":method", b"GET")])
        info = StreamInfo(ConnectionInfo(1, Address("1.1.1.1", 1), Address("2.2.2.2", 2)), 0.0)
        rejected = check_and_normalize(config, headers, info)
        after = headers.get(b":path")
        assert after is not None
        outcomes[given] = after.decode()
        if rejected is not None:
            outcomes[given] = f"{rejected.status} {rejected.location.decode()}".strip()
    expected = {
        given: DIFFERENT.get((given, mode), by_mode.get(mode, given)) for given, by_mode in TABLE["paths"].items()
    }
    assert outcomes == expected


def test_nothing_but_the_path_is_touched() -> None:
    assert path.merge_slashes(b"/a//b?x=//") == b"/a/b?x=//"
    assert path.unescape_slashes(b"/a%2Fb%5c?x=%2F") == b"/a/b\\?x=%2F"
    assert path.normalize(b"/a/../b?x=/../") == b"/b?x=/../"
    assert not path.has_escaped_slashes(b"/a?x=%2F")


def test_normalising_twice_changes_nothing_more() -> None:
    for given in TABLE["paths"]:
        once = path.normalize(given.encode())
        if once is not None:
            assert path.normalize(once) == once


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        (b"/.;/admin", b"/admin"),
        (b"/x/..;/admin", b"/admin"),
        (b"/x/y;a/b;c/..;", b"/x/y;a/"),
        (b"/x//..;/y", b"/x/y"),
        (b"/a/..;;x;/b?/..;/c", b"/b?/..;/c"),
        (b"/a/..;\\b", b"/"),
        (b"/a/..;%2fb", b"/"),
        (b"/x/%2e%2e;/y", b"/x/..;/y"),
        (b"/x/...;/y", b"/x/...;/y"),
        (b"/a;b/c", b"/a;b/c"),
    ],
)
def test_a_dot_segment_may_have_parameters(given: bytes, normal: bytes) -> None:
    """As Envoy 1.40 has it: rules would not hold for servers that leave parameters out."""
    assert path.normalize(given) == normal


@pytest.mark.parametrize(
    ("given", "left"), [(b"a.test:443", b"a.test"), (b"[::1]:443", b"[::1]"), (b"a.test", b"a.test")]
)
def test_the_host_of_a_connect_is_stripped_like_any_other(given: bytes, left: bytes) -> None:
    config = Harness().config()
    config.strip_any_host_port = config.touches_host = True
    headers = HeaderMap([(b":authority", given), (b":method", b"CONNECT")])
    info = StreamInfo(ConnectionInfo(1, Address("1.1.1.1", 1), Address("2.2.2.2", 2)), 0.0)
    assert check_and_normalize(config, headers, info) is None
    assert headers.get(b":authority") == left


@pytest.mark.parametrize("given", [b"a", b"%2fa", b"/%00"])
def test_what_is_no_path(given: bytes) -> None:
    assert path.normalize(given) is None
