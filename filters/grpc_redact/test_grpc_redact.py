from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.text_format import Parse

from meshproxy import GrpcMessages, GrpcServices, HeaderMap
from meshproxy.testing import ConfigError, FilterTest

FILE = Path(__file__).with_name("grpc_redact.py")
GRPC = {"content-type": "application/grpc"}
SHOP = """
name: "shop.proto" package: "shop.v1" syntax: "proto3"
message_type {
  name: "Customer"
  field { name: "name" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "email" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "friends" number: 3 type: TYPE_MESSAGE type_name: ".shop.v1.Customer" label: LABEL_REPEATED }
  field { name: "by_city" number: 4 type: TYPE_MESSAGE type_name: ".shop.v1.Customer.CityEntry" label: LABEL_REPEATED }
  field { name: "best" number: 5 type: TYPE_MESSAGE type_name: ".shop.v1.Customer" label: LABEL_OPTIONAL }
  field { name: "notes" number: 6 type: TYPE_MESSAGE type_name: ".shop.v1.Customer.NotesEntry" label: LABEL_REPEATED }
  nested_type {
    name: "CityEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
    field { name: "value" number: 2 type: TYPE_MESSAGE type_name: ".shop.v1.Customer" label: LABEL_OPTIONAL }
  }
  nested_type {
    name: "NotesEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
    field { name: "value" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL }
  }
}
service {
  name: "Shop"
  method { name: "Find" input_type: ".shop.v1.Customer" output_type: ".shop.v1.Customer" server_streaming: true }
}
"""
DESCRIPTORS = FileDescriptorSet(file=[Parse(SHOP, FileDescriptorProto())]).SerializeToString()
CUSTOMER: dict[str, Any] = {
    "name": "ann",
    "email": "a@x",
    "friends": [{"name": "bob", "email": "b@x"}],
    "byCity": {"Ulm": {"name": "eve", "email": "e@x", "best": {"email": "d@x"}}},
    "notes": {"a": "b"},
}
REDACTED = {
    "name": "ann",
    "friends": [{"name": "bob"}],
    "byCity": {"Ulm": {"name": "eve", "best": {}}},
    "notes": {"a": "b"},
}
METHOD = GrpcServices(DESCRIPTORS).method(HeaderMap([(b":path", b"/shop.v1.Shop/Find")]))


def body(*messages: dict[str, Any]) -> bytes:
    assert METHOD is not None
    return GrpcMessages(HeaderMap()).write([ParseDict(each, METHOD.response()) for each in messages])


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "shop.pb"
    file.write_bytes(DESCRIPTORS)
    return {"descriptor_set": str(file), "fields": ["shop.v1.Customer.email"]}


async def test_a_stream_of_messages(config: dict[str, Any]) -> None:
    async with FilterTest(FILE, config) as t:
        sent = body(CUSTOMER, {"email": "only"})
        t.upstream.respond(200, GRPC, [sent[:9], sent[9:]])
        response = await t.request("POST", "/shop.v1.Shop/Find", GRPC, body({}))
        assert METHOD is not None
        read = GrpcMessages(response.headers, METHOD.response).read(response.body)
        assert [MessageToDict(each) for each in read] == [REDACTED, {}]


async def test_a_method_that_nobody_knows(config: dict[str, Any]) -> None:
    async with FilterTest(FILE, config) as t:
        response = await t.request("POST", "/shop.v1.Shop/Other", GRPC, body({}))
        assert (response.header("grpc-status"), response.details) == ("12", "grpc_redact_unknown_method")


async def test_what_is_no_such_message(config: dict[str, Any]) -> None:
    async with FilterTest(FILE, config) as t:
        t.upstream.respond(200, GRPC, b"\0\0\0\0\1\xff")
        with pytest.raises(ConnectionError):
            await t.request("POST", "/shop.v1.Shop/Find", GRPC, body({}))
        assert t.stats()["errors"] == 1


async def test_no_descriptor_set(tmp_path: Path) -> None:
    file = tmp_path / "nonsense"
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="no descriptor set"):
        await FilterTest(FILE, {"descriptor_set": str(file), "fields": []}).start()
