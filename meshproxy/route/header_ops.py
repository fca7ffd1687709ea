"""Header operations: fields removed, then fields added or overwritten, as Envoy orders them.

All values are computed and all conditions judged on the headers as they were after the removals; then the overwrites
happen, then the additions. Operations on constants are tuples made when the configuration arrives.
"""

from __future__ import annotations

from typing import Any, Final

from meshproxy.codec.headers import Field, HeaderMap, bits_of
from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.observe.formatter import FormatError, Formatter, parse_format
from meshproxy.observe.stream_info import StreamInfo

# HeaderValueOption.HeaderAppendAction, by its numbers.
APPEND_IF_EXISTS_OR_ADD: Final = 0
ADD_IF_ABSENT: Final = 1
OVERWRITE_IF_EXISTS_OR_ADD: Final = 2
OVERWRITE_IF_EXISTS: Final = 3


# Envoy keeps one field of these names and joins what is appended by commas (the others get a field of their own).
_JOINED: Final = frozenset(
    b"""
    accept accept-encoding access-control-allow-credentials access-control-allow-headers access-control-allow-methods
    access-control-allow-origin access-control-allow-private-network access-control-expose-headers
    access-control-max-age access-control-request-headers access-control-request-method
    access-control-request-private-network age authorization cache-control connection content-encoding content-type etag
    expect expires grpc-accept-encoding grpc-message grpc-status grpc-timeout if-match if-modified-since if-none-match
    if-range if-unmodified-since keep-alive last-modified location origin pragma proxy-connection proxy-status referer
    te transfer-encoding upgrade user-agent vary via x-client-trace-id x-envoy-attempt-count
    x-envoy-decorator-operation x-envoy-degraded x-envoy-downstream-service-cluster x-envoy-downstream-service-node
    x-envoy-external-address x-envoy-force-trace x-envoy-immediate-health-check-fail x-envoy-internal x-envoy-ip-tags
    x-envoy-is-timeout-retry x-envoy-original-host x-envoy-original-path x-envoy-original-url x-envoy-ratelimited
    x-envoy-upstream-alt-stat-name x-envoy-upstream-canary x-envoy-upstream-healthchecked-cluster
    x-envoy-upstream-rq-timeout-ms x-forwarded-client-cert x-forwarded-for x-forwarded-host x-forwarded-port
    """.split()
)


class HeaderOperation:
    """One HeaderValueOption. `formatter` is None when the value is constant."""

    def __init__(self, name: bytes, value: bytes, formatter: Formatter | None, action: int, keep_empty: bool) -> None:
        self.name = name
        self.field: Field = (name, value)
        self.bits: int = bits_of(name)
        self.formatter = formatter
        self.action = action
        self.keep_empty = keep_empty


class HeaderOperations:
    """The operations of one level (cluster weight, route, virtual host, route configuration), or of a filter."""

    def __init__(self, operations: list[HeaderOperation], removals: list[bytes]) -> None:
        self.operations = operations
        self.removals = frozenset(removals)
        # The commonest case, appended without a question: only constants, only added.
        self._only_added: list[Field] = [op.field for op in operations]
        self._added_bits: int = 0
        for op in operations:
            self._added_bits |= op.bits
        self._plain: bool = all(
            op.formatter is None and op.action == APPEND_IF_EXISTS_OR_ADD and op.name not in _JOINED
            for op in operations
        )

    def apply(self, headers: HeaderMap, info: StreamInfo) -> None:
        if self.removals:
            headers.remove_names(self.removals)
        if self._plain:
            headers.fields.extend(self._only_added)
            headers.known |= self._added_bits
        else:
            self._apply_each(headers, info)

    def _apply_each(self, headers: HeaderMap, info: StreamInfo) -> None:
        added: list[Field] = []
        overwritten: list[Field] = []
        for op in self.operations:
            field = op.field
            if op.formatter is not None:
                value = op.formatter.format(info)
                if not value and not op.keep_empty:
                    continue
                field = (op.name, value)
            if op.action == APPEND_IF_EXISTS_OR_ADD:
                added.append(field)
            elif op.action == OVERWRITE_IF_EXISTS_OR_ADD:
                overwritten.append(field)
            elif headers.get(op.name) is None:
                if op.action == ADD_IF_ABSENT:
                    added.append(field)
            elif op.action == OVERWRITE_IF_EXISTS:
                overwritten.append(field)
        for field in overwritten:
            headers.remove(field[0])
            headers.add(field[0], field[1])
        for field in added:
            append(headers, field[0], field[1])


def append(headers: HeaderMap, name: bytes, value: bytes) -> None:
    """Add a field, or append to the one that is there where Envoy keeps a single one."""
    if name in _JOINED:
        there = headers.joined(name)
        if there is not None:
            headers.set(name, there + b"," + value)
            return
    headers.add(name, value)


def build_header_operations(
    to_add: Any, to_remove: Any, path: str, errors: ConfigErrors, prefix: str = ""
) -> HeaderOperations | None:
    """Compile repeated HeaderValueOption and repeated names; None when there is nothing to do.

    `path` is that of the message which holds them as `<prefix>headers_to_add` and `<prefix>headers_to_remove`. Errors:
    names that begin with a colon, and Host, are not to be modified; formats that do not parse.
    """
    operations: list[HeaderOperation] = []
    for i in range(len(to_add)):
        operation = build_header_operation(to_add[i], item(path, f"{prefix}headers_to_add", i), errors)
        if operation is not None:
            operations.append(operation)
    removals: list[bytes] = []
    for i in range(len(to_remove)):
        name: str = to_remove[i].lower()
        if is_protected(name):
            errors.add(item(path, f"{prefix}headers_to_remove", i), ":-prefixed or host headers may not be removed")
        removals.append(name.encode())
    if not any(_has_effect(op) for op in operations) and not removals:
        return None
    return HeaderOperations([op for op in operations if _has_effect(op)], removals)


def build_header_operation(message: Any, path: str, errors: ConfigErrors) -> HeaderOperation | None:
    """Compile one HeaderValueOption; None with an error at its path when that cannot be."""
    name: str = message.header.key.lower()
    if is_protected(name):
        errors.add(child(path, "header.key"), ":-prefixed or host headers may not be modified")
        return None
    action: int = message.append_action
    if message.HasField("append"):
        if action != APPEND_IF_EXISTS_OR_ADD:
            errors.add(path, "both append and append_action are set")
            return None
        action = APPEND_IF_EXISTS_OR_ADD if message.append.value else OVERWRITE_IF_EXISTS_OR_ADD
    text: str = message.header.value  # `raw_value` is for external processors; Envoy does not look at it here either
    return make_operation(name, text, action, message.keep_empty_value, child(path, "header.value"), errors)


def make_operation(
    name: str, text: str, action: int, keep_empty: bool, path: str, errors: ConfigErrors
) -> HeaderOperation | None:
    """An operation from its parts; `text` may hold substitution operators (`%REQ(x)%`)."""
    try:
        formatter = parse_format(text)
    except FormatError as error:
        errors.add(path, str(error))
        return None
    constant = formatter.constant
    return HeaderOperation(
        name.encode(),
        b"" if constant is None else constant,
        formatter if constant is None else None,
        action,
        keep_empty,
    )


def is_protected(name: str) -> bool:
    """Pseudo-headers and Host have their own means of rewriting (Envoy's rule)."""
    return name.startswith(":") or name == "host"


def _has_effect(op: HeaderOperation) -> bool:
    """An empty constant is not added unless `keep_empty_value`."""
    return op.formatter is not None or bool(op.field[1]) or op.keep_empty
