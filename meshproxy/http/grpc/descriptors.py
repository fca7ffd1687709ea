"""Services that a descriptor set describes, for filters: which types the messages of a call have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from meshproxy.codec.headers import HeaderMap
from meshproxy.errors import MeshProxyError


class GrpcMethod:
    """A method: the classes of its messages, and whether there is a stream of them instead of one."""

    def __init__(
        self, service: str, name: str, request: type[Message], response: type[Message], streams: tuple[bool, bool]
    ) -> None:
        self.service = service  # with its package
        self.name = name
        self.request = request
        self.response = response
        self.client_streaming, self.server_streaming = streams


class GrpcServices:
    """The methods of all services in a descriptor set (`protoc --include_imports --descriptor_set_out`).

    Raises MeshProxyError for what is none, or lacks a file that it needs.
    """

    def __init__(self, descriptor_set: bytes) -> None:
        self._methods: dict[bytes, GrpcMethod] = {}
        pool: Any = DescriptorPool()
        try:
            files = FileDescriptorSet.FromString(descriptor_set)
            for file in files.file:
                pool.Add(file)
        except (DecodeError, TypeError) as error:
            raise MeshProxyError(f"no descriptor set: {error}") from error
        for file in files.file:
            package = f"{file.package}." if file.package else ""
            for service in file.service:
                self._add(pool.FindServiceByName(package + service.name))

    @classmethod
    def from_file(cls, path: str) -> GrpcServices:
        """Raises OSError besides."""
        return cls(Path(path).read_bytes())

    def _add(self, service: Any) -> None:
        for method in service.methods:
            request: Any = GetMessageClass(method.input_type)
            response: Any = GetMessageClass(method.output_type)
            streams = (bool(method.client_streaming), bool(method.server_streaming))
            found = GrpcMethod(service.full_name, method.name, request, response, streams)
            self._methods[f"/{service.full_name}/{method.name}".encode()] = found

    def method(self, headers: HeaderMap) -> GrpcMethod | None:
        """The method that a request calls; None where the set has none of that path."""
        return self._methods.get((headers.get(b":path") or b"").partition(b"?")[0])
