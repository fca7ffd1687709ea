"""Messages as JSON in pieces: the same as protobuf's own JSON, but for what must not be shown."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from envoy.admin.v3.config_dump_shared_pb2 import ClustersConfigDump
from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.base_pb2 import Metadata
from envoy.config.core.v3.config_source_pb2 import RateLimitSettings
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import DownstreamTlsContext
from google.protobuf import json_format, message_factory
from google.protobuf.any_pb2 import Any as ProtoAny
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import UInt64Value
from udpa.type.v1.typed_struct_pb2 import TypedStruct

from meshproxy.server.admin.json_stream import write_message

TLS_TYPE = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
TLS_CONTEXT: dict[str, Any] = {
    "common_tls_context": {
        "tls_certificates": [
            {
                "certificate_chain": {"inline_string": "public"},
                "private_key": {"inline_string": "secret"},
                "password": {"inline_bytes": "c2VjcmV0"},
            }
        ]
    }
}


def packed(message: Message) -> ProtoAny:
    result = ProtoAny()
    result.Pack(message)
    return result


def written(message: Message) -> str:
    return "".join(write_message(message, 0))


def cluster() -> Cluster:
    parsed = json_format.ParseDict(
        {
            "name": 'v1 "quoted" ü \n',
            "type": "STRICT_DNS",
            "connect_timeout": "0.25s",
            "per_connection_buffer_limit_bytes": 32768,
            "load_assignment": {
                "cluster_name": "v1",
                "endpoints": [{"lb_endpoints": [{"load_balancing_weight": 3}, {}], "priority": 1}, {}],
            },
            "circuit_breakers": {"thresholds": [{"retry_budget": {"budget_percent": {"value": 12.5}}}]},
            "metadata": {"filter_metadata": {"b": {"x": [1, "y", None, {"z": True}]}, "a": {}}},
            "typed_extension_protocol_options": {},
            "lb_subset_config": {"subset_selectors": [{"keys": ["a", "b"]}, {}]},
        },
        Cluster(),
    )
    assert isinstance(parsed, Cluster)
    return parsed


MESSAGES: list[Message] = [
    Cluster(),
    cluster(),
    ClustersConfigDump.StaticCluster(cluster=packed(cluster())),
    packed(packed(cluster())),
    packed(Duration(seconds=3, nanos=5_000_000)),
    packed(UInt64Value(value=2**63)),
    packed(Metadata()),
    ProtoAny(),
    UInt64Value(value=2**63),
    RateLimitSettings(fill_rate={"value": 0.1}, max_tokens={"value": 7}),
    json_format.ParseDict({"node": {"id": "x", "extensions": [{"disabled": True}]}}, Bootstrap()),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.DESCRIPTOR.name)
def test_is_protobufs_own_json(message: Message) -> None:
    expected = json_format.MessageToDict(message, preserving_proto_field_name=True)
    assert json.loads(written(message)) == expected


@pytest.fixture(scope="module")
def numbers() -> type[Message]:
    """A message with a field of every kind of number, and a map; the Envoy API has few of them."""
    file = FileDescriptorProto(name="admin_test_numbers.proto", package="admin_test", syntax="proto3")
    message = file.message_type.add(name="Numbers")
    for number, kind in enumerate(("FLOAT", "DOUBLE", "INT64", "UINT64", "INT32", "FIXED32", "BOOL", "BYTES"), 1):
        message.field.add(name=kind.lower(), number=number, type=f"TYPE_{kind}", label="LABEL_OPTIONAL")
    entry = message.nested_type.add(name="NamesEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type="TYPE_INT32", label="LABEL_OPTIONAL")
    entry.field.add(name="value", number=2, type="TYPE_FLOAT", label="LABEL_OPTIONAL")
    names = message.field.add(name="names", number=9, type="TYPE_MESSAGE", label="LABEL_REPEATED")
    names.type_name = ".admin_test.Numbers.NamesEntry"
    pool = DescriptorPool()
    pool.Add(file)
    numbers_type = message_factory.GetMessageClass(pool.FindMessageTypeByName("admin_test.Numbers"))
    assert issubclass(numbers_type, Message)
    return numbers_type


@pytest.mark.parametrize(
    "value", [0.1, -0.1, 1.5, 16777217.0, 3.4e38, 1e-40, 1e22, 123456.789, math.inf, -math.inf, math.nan]
)
def test_numbers(numbers: type[Message], value: float) -> None:
    message = numbers(float=value, double=value, names={1: value, 10: value})
    whole = numbers(int64=-(2**63), uint64=2**64 - 1, int32=-5, fixed32=7, bool=True, bytes=b"\0\xff")
    for one in (message, whole):
        expected = json_format.MessageToDict(one, preserving_proto_field_name=True)
        assert repr(json.loads(written(one), parse_int=float)) == repr(
            json.loads(json.dumps(expected), parse_int=float)
        )


def test_is_indented_as_envoy_does() -> None:
    message = json_format.ParseDict(
        {"name": "a", "load_assignment": {"endpoints": [{}, {"priority": 1}]}, "dns_refresh_rate": "5s"}, Cluster()
    )
    expected = json_format.MessageToDict(message, preserving_proto_field_name=True)
    assert sorted(written(message).splitlines()) == sorted(json.dumps(expected, indent=1).splitlines())
    assert written(message).startswith('{\n "name": "a",\n')


def test_an_any_of_an_unknown_type_shows_its_bytes() -> None:
    unknown = ProtoAny(type_url="type.googleapis.com/envoy.no.such.Type", value=b"\x01")
    assert json.loads(written(unknown)) == {"@type": unknown.type_url, "value": "AQ=="}


def test_an_any_that_does_not_parse_shows_its_bytes() -> None:
    broken = ProtoAny(type_url="type.googleapis.com/envoy.config.cluster.v3.Cluster", value=b"\xff")
    assert json.loads(written(broken)) == {"@type": broken.type_url, "value": "/w=="}


def test_sensitive_fields_are_redacted() -> None:
    context = json_format.ParseDict(TLS_CONTEXT, DownstreamTlsContext())
    for message in (context, packed(context), packed(packed(context))):
        text = written(message)
        assert "secret" not in text
        assert "c2VjcmV0" not in text
        assert '"inline_string": "public"' in text
        assert '"inline_string": "[redacted]"' in text
        assert '"inline_bytes": "W3JlZGFjdGVkXQ=="' in text


def test_a_typed_struct_is_redacted_as_the_message_it_stands_for() -> None:
    struct = TypedStruct(type_url=f"type.googleapis.com/{TLS_TYPE}")
    struct.value.update(TLS_CONTEXT)
    text = written(packed(struct))
    assert "secret" not in text
    assert '"inline_string": "[redacted]"' in text


def test_a_typed_struct_without_secrets_stays_as_it_is() -> None:
    struct = TypedStruct(type_url="type.googleapis.com/envoy.config.cluster.v3.Cluster")
    struct.value.update({"name": "v1", "unknown": 1})
    expected = json_format.MessageToDict(struct, preserving_proto_field_name=True)
    assert json.loads(written(struct)) == expected


def test_a_large_message_comes_in_small_pieces() -> None:
    big = Cluster()
    for port in range(2_000):
        big.load_assignment.endpoints.add().priority = port
    pieces = list(write_message(big, 0))
    assert len(pieces) > 4_000
    assert max(map(len, pieces)) < 100
