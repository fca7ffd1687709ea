"""The methods of gRPC services, found by what a request asks for."""

from __future__ import annotations

from typing import Any, Final

from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import DecodeError

from meshproxy.http.transcoding.json_request import Bound
from meshproxy.http.transcoding.path_template import PathTree, TemplateError, Variable, parse_template, unescape
from meshproxy.http.transcoding.schema import HTTP_BODY, FieldType, MessageType, Schema, SchemaError

_PATTERNS: Final = {"get": "GET", "put": "PUT", "post": "POST", "delete": "DELETE", "patch": "PATCH"}


class Method:
    """A method, as its descriptor and its rule have it.

    `request_body` and `response_body` lead to a google.api.HttpBody where the body is one, raw: `raw_request`,
    `raw_response`. Otherwise `request_body` is the binding's matter, and `response_body` is empty.
    """

    def __init__(self, path: bytes, request: MessageType, response_class: Any) -> None:
        self.path = path  # as gRPC calls it
        self.request = request
        self.response_class = response_class
        self.client_streaming: bool = False
        self.server_streaming: bool = False
        self.raw_request: bool = False
        self.raw_response: bool = False
        self.request_body: list[FieldType] = []
        self.response_body: list[str] = []


class Binding:
    """One of the rules of a method. `body` are the names of the fields in which the request's body goes."""

    def __init__(self, method: Method, variables: list[Variable], body: list[str]) -> None:
        self.method = method
        self.variables = variables
        self.body = body


class UnknownParameterError(SchemaError):
    """A parameter of a request names no field."""


class Parameters:
    """What path and query of a request say: of fields, and of what is no field of the message (where that is kept)."""

    def __init__(self) -> None:
        self.bound: Bound | None = None
        self.unknown: dict[str, list[str]] = {}


class MethodTable:
    """The methods of a configuration's services, by their rules."""

    def __init__(self, schema: Schema, tree: PathTree) -> None:
        self.schema = schema
        self.tree = tree
        self.kept_escapes: str = ""  # characters that stay escaped in variables of several segments
        self.unescapes_plus: bool = False
        self.ignored: frozenset[str] = frozenset()  # parameters that are not looked at
        self.ignores_unknown: bool = False
        self.captures_unknown: bool = False

    def parameters(self, binding: Binding, parts: list[str], query: str) -> Parameters:
        """Raises UnknownParameterError."""
        parameters = Parameters()
        for variable in binding.variables:
            self._take(parameters, binding, variable.field_path, variable.value(parts, self.kept_escapes))
        if query:
            for parameter in query.split("&"):
                name, equals, value = parameter.partition("=")
                if name and equals and name not in self.ignored:
                    if self.unescapes_plus:
                        value = value.replace("+", " ")
                    names = [unescape(part, "") for part in name.split(".")]
                    self._take(parameters, binding, names, unescape(value, ""))
        return parameters

    def _take(self, parameters: Parameters, binding: Binding, names: list[str], value: str) -> None:
        method = binding.method
        try:
            path = method.request.field_path(names)
        except SchemaError as error:
            if self.captures_unknown:
                parameters.unknown.setdefault(".".join(names), []).append(value)
            elif not self.ignores_unknown:
                raise UnknownParameterError(str(error)) from None
            return
        if method.raw_request and path[: len(method.request_body)] == method.request_body:
            return  # the raw body is what its field holds
        if parameters.bound is None:
            parameters.bound = Bound()
        parameters.bound.bind(path, value)


def read_descriptor_set(data: bytes) -> FileDescriptorSet:
    """Raises SchemaError."""
    try:
        return FileDescriptorSet.FromString(data)
    except DecodeError as error:
        raise SchemaError(f"Unable to parse proto descriptor: {error}") from None


def add_service(table: MethodTable, files: FileDescriptorSet, name: str, auto_mapping: bool) -> None:
    """Add what a service's methods are called by; with `auto_mapping` one without a rule by its gRPC path. Raises
    SchemaError."""
    service = _find_service(files, name)
    if service is None:
        raise SchemaError(f"Could not find {name!r} in the proto descriptor")
    for method in service.method:
        rule = method.options.Extensions[annotations_pb2.http]
        if auto_mapping and not method.options.HasExtension(annotations_pb2.http):
            rule.post = f"/{name}/{method.name}"
            rule.body = "*"
        try:
            _add_rules(table.tree, _method(table.schema, name, method, rule), rule)
        except (SchemaError, TemplateError) as error:
            raise SchemaError(f"Cannot register '{name}.{method.name}': {error}") from None


def _find_service(files: FileDescriptorSet, name: str) -> Any:
    for file in files.file:
        for service in file.service:
            if (f"{file.package}.{service.name}" if file.package else service.name) == name:
                return service
    return None


def _method(schema: Schema, service: str, described: Any, rule: Any) -> Method:
    response = schema.message_type(described.output_type.lstrip("."))
    method = Method(
        f"/{service}/{described.name}".encode(),
        schema.message_type(described.input_type.lstrip(".")),
        schema.message_class(response.full_name),
    )
    method.client_streaming = described.client_streaming
    method.server_streaming = described.server_streaming
    method.request_body = method.request.field_path(_names(rule.body))
    method.raw_request = _end(method.request, method.request_body) == HTTP_BODY
    response_body = response.field_path(_names(rule.response_body))
    method.raw_response = _end(response, response_body) == HTTP_BODY
    method.response_body = [field.name for field in response_body]
    if response_body and not method.raw_response:
        raise SchemaError('"response_body" is supported for fields of google.api.HttpBody only')
    return method


def _names(field_path: str) -> list[str]:
    return [] if field_path in ("", "*") else field_path.split(".")


def _end(message: MessageType, path: list[FieldType]) -> str:
    """The type to which a path of fields leads; empty for a scalar's."""
    if not path:
        return message.full_name
    last = path[-1].message
    return "" if last is None else last.full_name


def _add_rules(tree: PathTree, method: Method, rule: Any) -> None:
    pattern = rule.WhichOneof("pattern")
    if pattern is not None:
        custom = pattern == "custom"
        verb = rule.custom.kind if custom else _PATTERNS[pattern]
        template = parse_template(rule.custom.path if custom else getattr(rule, pattern))
        tree.add(verb, template, Binding(method, template.variables, _names(rule.body)))
    for additional in rule.additional_bindings:
        _add_rules(tree, method, additional)
