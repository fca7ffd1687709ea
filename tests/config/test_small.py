"""DataSource, small conversions, and what an Any holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from envoy.config.core.v3 import address_pb2, base_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from google.protobuf import duration_pb2, json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from udpa.type.v1 import typed_struct_pb2 as udpa
from xds.type.v3 import typed_struct_pb2 as xds

from meshproxy.config import values
from meshproxy.config.datasource import load_data_source
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.messages import find_message
from meshproxy.config.typed_struct import unpack_any

ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


def pack(message: Any) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def told(errors: ConfigErrors) -> list[tuple[str, str]]:
    return [(each.path, each.reason) for each in errors.items]


# -- DataSource


def test_the_four_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"\x00file")
    monkeypatch.setenv("MESHPROXY_TEST_SOURCE", "envé")
    errors = ConfigErrors()
    read = [
        load_data_source(source, "p", errors)
        for source in (
            base_pb2.DataSource(filename=str(path)),
            base_pb2.DataSource(inline_bytes=b"\xff"),
            base_pb2.DataSource(inline_string="é"),
            base_pb2.DataSource(environment_variable="MESHPROXY_TEST_SOURCE"),
        )
    ]
    assert read == [b"\x00file", b"\xff", "é".encode(), "envé".encode()]
    assert not errors


@pytest.mark.parametrize(
    ("source", "path", "reason"),
    [
        ({}, "p", "is required"),
        ({"filename": "/nowhere/at/all"}, "p.filename", "No such file"),
        ({"filename": "a\0b"}, "p.filename", "cannot read"),
        ({"environment_variable": "MESHPROXY_NOT_SET"}, "p.environment_variable", "is not set"),
        ({"environment_variable": "A\0B"}, "p.environment_variable", "is not set"),
        ({"inline_string": "12345"}, "p.inline_string", "longer than the 4 bytes"),
    ],
)
def test_a_source_that_cannot_be_read(source: dict[str, str], path: str, reason: str) -> None:
    errors = ConfigErrors()
    assert load_data_source(base_pb2.DataSource(**source), "p", errors, max_bytes=4) is None
    assert told(errors)[0][0] == path
    assert reason in told(errors)[0][1]


def test_a_file_is_read_no_further_than_allowed(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"12345")
    errors = ConfigErrors()
    source = base_pb2.DataSource(filename=str(path))
    assert load_data_source(source, "p", errors, max_bytes=5) == b"12345"
    assert load_data_source(source, "p", errors, max_bytes=4) is None
    assert told(errors) == [("p.filename", "longer than the 4 bytes that are allowed")]


# -- conversions


def test_durations() -> None:
    duration = duration_pb2.Duration(seconds=1, nanos=500_999_999)
    assert values.milliseconds(duration) == 1500
    assert values.milliseconds(duration_pb2.Duration(seconds=-1, nanos=-500_000_000)) == -1500


def test_fields_or_their_defaults() -> None:
    router = router_pb2.Router()
    assert values.bool_or(router, "dynamic_stats", True) is True
    router.dynamic_stats.value = False
    assert values.bool_or(router, "dynamic_stats", True) is False
    keepalive = address_pb2.TcpKeepalive()
    assert values.int_or(keepalive, "keepalive_time", 7) == 7
    keepalive.keepalive_time.value = 0
    assert values.int_or(keepalive, "keepalive_time", 7) == 0


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ({"socket_address": {"address": "::1", "port_value": 80}}, ("::1", 80)),
        ({"pipe": {"path": "@abstract"}}, "@abstract"),
    ],
)
def test_addresses(address: dict[str, Any], expected: Any) -> None:
    errors = ConfigErrors()
    assert values.socket_address(json_format.ParseDict(address, address_pb2.Address()), "a", errors) == expected
    assert not errors


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ({}, "a"),
        ({"envoy_internal_address": {"server_listener_name": "x"}}, "a"),
        ({"socket_address": {"address": "x", "named_port": "http"}}, "a.socket_address.named_port"),
        ({"socket_address": {"address": "x", "port_value": 1, "protocol": "UDP"}}, "a.socket_address.protocol"),
    ],
)
def test_addresses_that_are_no_place(address: dict[str, Any], path: str) -> None:
    errors = ConfigErrors()
    assert values.socket_address(json_format.ParseDict(address, address_pb2.Address()), "a", errors) is None
    assert [each[0] for each in told(errors)] == [path]


# -- Any and TypedStruct


def test_an_any_is_unpacked() -> None:
    router = router_pb2.Router(suppress_envoy_headers=True)
    errors = ConfigErrors()
    assert unpack_any(pack(router), "p", errors) == router
    assert not errors


@pytest.mark.parametrize("kind", [udpa.TypedStruct, xds.TypedStruct])
def test_a_typed_struct_is_the_message_it_names(kind: Any) -> None:
    wrapped = kind(type_url=ROUTER)
    wrapped.value.update({"suppress_envoy_headers": True, "dynamicStats": False})
    errors = ConfigErrors()
    router = unpack_any(pack(wrapped), "p", errors)
    assert not errors
    assert router == router_pb2.Router(suppress_envoy_headers=True, dynamic_stats={"value": False})


def test_errors_in_a_typed_struct_have_their_path() -> None:
    wrapped = udpa.TypedStruct(type_url=ROUTER)
    wrapped.value.update({"suppress": True, "dynamic_stats": 7})
    errors = ConfigErrors()
    assert unpack_any(pack(wrapped), "p", errors) is None
    assert sorted(path for path, _ in told(errors)) == ["p.value.dynamic_stats", "p.value.suppress"]


@pytest.mark.parametrize(
    ("message", "path", "reason"),
    [
        (AnyMessage(), "p", "needs its @type"),
        (AnyMessage(type_url="type.googleapis.com/envoy.no.Such"), "p", "unknown type"),
        (AnyMessage(type_url="type.googleapis.com/os"), "p", "unknown type"),
        (AnyMessage(type_url="x"), "p", "unknown type"),
        (AnyMessage(type_url=ROUTER, value=b"\xff"), "p", "the value is not a"),
        (pack(udpa.TypedStruct()), "p.type_url", "needs the type"),
        (pack(udpa.TypedStruct(type_url="type.googleapis.com/a.B")), "p.type_url", "unknown type"),
    ],
)
def test_an_any_that_cannot_be_unpacked(message: AnyMessage, path: str, reason: str) -> None:
    errors = ConfigErrors()
    assert unpack_any(message, "p", errors) is None
    assert [each[0] for each in told(errors)] == [path]
    assert reason in told(errors)[0][1]


@pytest.mark.parametrize(
    "name",
    [
        "envoy.extensions.filters.http.lua.v3.Lua",
        "envoy.config.route.v3.RouteAction.HashPolicy.Cookie",
        "xds.core.v3.TypedExtensionConfig",
        "google.protobuf.StringValue",
    ],
)
def test_any_message_of_the_api_is_found_by_its_name(name: str) -> None:
    found = find_message(name)
    assert found is not None
    assert found.DESCRIPTOR.full_name == name


@pytest.mark.parametrize("name", ["", ".", "a..b", "envoy", "envoy.config", "os.path", "envoy.config.route.v3.Nope"])
def test_other_names_are_not(name: str) -> None:
    assert find_message(name) is None
