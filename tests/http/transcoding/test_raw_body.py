"""google.api.HttpBody, in a message and in a field of one."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from meshproxy.http.transcoding.json_response import ResponseError
from meshproxy.http.transcoding.raw_body import unwrap, wrap
from meshproxy.http.transcoding.schema import Schema
from tests.support.library import DESCRIPTOR_SET, encoded

SCHEMA = Schema(FileDescriptorSet.FromString(DESCRIPTOR_SET))
HTTP_BODY = "google.api.HttpBody"


def test_a_message_that_is_the_body() -> None:
    data = wrap(b"\0\xff", "image/png", {}, [])
    assert data == encoded(HTTP_BODY, contentType="image/png", data="AP8=")
    assert unwrap(SCHEMA.message_class(HTTP_BODY), data, []) == ("image/png", b"\0\xff")


def test_a_field_of_a_field() -> None:
    path = SCHEMA.message_type("test.library.File").field_path(["inner", "body"])
    data = wrap(b"x" * 200, "a/b", {}, path)
    assert data == encoded("File", inner={"body": {"contentType": "a/b", "data": "eHh4" * 66 + "eHg="}})
    assert unwrap(SCHEMA.message_class("test.library.File"), data, ["inner", "body"]) == ("a/b", b"x" * 200)


def test_an_empty_body_is_there() -> None:
    assert wrap(b"", "", {}, []) == b"\x12\x00"


def test_unknown_parameters_are_packed() -> None:
    data = wrap(b"", "", {"colour": ["red", "blue"]}, [])
    assert b"UnknownQueryParams" in data
    assert b"\n\x06colour\x12\x0b\n\x03red\n\x04blue" in data


@pytest.mark.parametrize("data", [b"\xff", encoded(HTTP_BODY, contentType="a/b\r\nx: y")])
def test_what_is_none(data: bytes) -> None:
    with pytest.raises(ResponseError):
        unwrap(SCHEMA.message_class(HTTP_BODY), data, [])
