"""Small conversions that builders share: what a field says, or its default, in the unit that the code uses."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final

from meshproxy.config.errors import ConfigErrors, child
from meshproxy.net.connect import SocketOption

_DENOMINATORS: Final = (100, 10_000, 1_000_000)


def milliseconds(duration: Any) -> int:
    """A Duration in whole milliseconds, cut off as Envoy does."""
    return int(duration.seconds * 1000) + int(duration.nanos / 1_000_000)


def milliseconds_or(message: Any, field: str, default: int) -> int:
    """The Duration field in milliseconds; `default` where it is not set."""
    return milliseconds(getattr(message, field)) if message.HasField(field) else default


def int_or(message: Any, field: str, default: int) -> int:
    """The value of an integer wrapper field; `default` where it is not set."""
    return int(getattr(message, field).value) if message.HasField(field) else default


def float_or(message: Any, field: str, default: float) -> float:
    """The value of a float wrapper or a Percent (in percent); `default` where it is not set."""
    return float(getattr(message, field).value) if message.HasField(field) else default


def bool_or(message: Any, field: str, default: bool) -> bool:
    """The value of a BoolValue field; `default` where it is not set."""
    return bool(getattr(message, field).value) if message.HasField(field) else default


def fraction(percent: Any) -> tuple[int, int]:
    """(numerator, denominator) of a FractionalPercent."""
    return int(percent.numerator), _DENOMINATORS[percent.denominator]


def struct_fields(struct: Any) -> dict[str, Any]:
    """A Struct as plain Python; its numbers are floats, infinite ones and NaN too."""
    return {name: struct_value(value) for name, value in struct.fields.items()}


def struct_value(value: Any) -> Any:
    """A google.protobuf.Value as plain Python; None for null, and for one that holds nothing."""
    kind = value.WhichOneof("kind")
    if kind is None or kind == "null_value":
        return None
    if kind == "struct_value":
        return struct_fields(value.struct_value)
    if kind == "list_value":
        return [struct_value(item) for item in value.list_value.values]
    return getattr(value, kind)


def cidr_network(message: Any, path: str, errors: ConfigErrors) -> IPv4Network | IPv6Network | None:
    """Of a CidrRange, whose address may be any in it; None with an error."""
    try:
        return ip_network(f"{message.address_prefix}/{message.prefix_len.value}", strict=False)
    except ValueError as error:
        errors.add(path, str(error))
        return None


def socket_address(address: Any, path: str, errors: ConfigErrors) -> tuple[str, int] | str | None:
    """What an Address names: (host, port), or the path of a Unix socket. None, with an error, for any other kind.

    An abstract Unix socket's path begins with `@`, as in Envoy.
    """
    kind = address.WhichOneof("address")
    if kind == "socket_address":
        return _host_and_port(address.socket_address, child(path, kind), errors)
    if kind == "pipe":
        return str(address.pipe.path)
    errors.add(path, "an address is required" if kind is None else f"{kind} is not supported yet")
    return None


def socket_options(message: Any) -> tuple[SocketOption, ...]:
    """The `socket_options` of a message that has some."""
    return tuple(
        (option.level, option.name, option.int_value if option.WhichOneof("value") == "int_value" else option.buf_value)
        for option in message.socket_options
    )


def _host_and_port(address: Any, path: str, errors: ConfigErrors) -> tuple[str, int] | None:
    if address.WhichOneof("port_specifier") == "named_port":
        errors.add(child(path, "named_port"), "a port needs a number: named ports are not supported")
        return None
    if address.protocol != address.TCP:
        errors.add(child(path, "protocol"), "only TCP is supported")
        return None
    return address.address, address.port_value
