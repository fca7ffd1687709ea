"""Rules on single values: what Istio's and Kubernetes' own validation asks of names, hosts, ports and durations."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated, Final, TypeAlias

from meshproxy.config.regex import Regex, RegexError

_LABEL: Final = re.compile(r"[a-zA-Z0-9](?:[-a-zA-Z0-9_]{0,61}[a-zA-Z0-9])?", re.ASCII)
_DNS_LABEL: Final = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_OBJECT_NAME: Final = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
_WILDCARD_LABEL: Final = re.compile(r"\*(?:-[-a-zA-Z0-9]{0,60}[a-zA-Z0-9])?", re.ASCII)
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_QUALIFIED: Final = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII)
_MILLISECOND: Final = timedelta(milliseconds=1)
UINT32_MAX: Final = 2**32 - 1


def _host_reason(value: str) -> str | None:
    """Why it is no host name (a name of DNS labels, of which the first may be a wildcard)."""
    if not value:
        return "must not be empty"
    if len(value) > 255:
        return "is longer than 255 characters"
    first, *others = value.split(".")
    if first.startswith("*"):
        if not _WILDCARD_LABEL.fullmatch(first):
            return f'"{value}" is no host name: only a whole first label may be a wildcard'
    else:
        others.insert(0, first)
    for label in others:
        if not _LABEL.fullmatch(label):
            return f'"{value}" is no host name'
    return None


def wildcard_host(value: str) -> str | None:
    """A host name, `*` or `*.example.com`."""
    return _host_reason(value)


def full_host(value: str) -> str | None:
    """A host name without a wildcard."""
    if value.startswith("*"):
        return f'"{value}": a wildcard is not allowed here'
    return _host_reason(value)


def wildcard_host_or_ip(value: str) -> str | None:
    """A host name, with or without a wildcard, or an IP address."""
    return None if is_ip(value) else _host_reason(value)


def is_ip(value: str) -> bool:
    """Whether it is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def ip_or_cidr(value: str) -> str | None:
    """An IP address or a CIDR prefix."""
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        return f'"{value}" is neither an IP address nor a CIDR prefix'
    return None


def dns_label(value: str) -> str | None:
    """A name of a namespace, a subset, a port."""
    return None if _DNS_LABEL.fullmatch(value) else f'"{value}" is no name of small letters, digits and "-"'


def object_name(value: str) -> str | None:
    """The name of a document."""
    return None if _OBJECT_NAME.fullmatch(value) else f'"{value}" is no name of small letters, digits, "-" and "."'


def header_name(value: str) -> str | None:
    """A header that requests are matched by; pseudo-headers too."""
    return None if _TOKEN.fullmatch(value.removeprefix(":")) else f'"{value}" is no name of a header'


def header_value(value: str) -> str | None:
    """What may stand in a header."""
    return "has a character that no header may hold" if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value) else None


def regex(value: str) -> str | None:
    """An expression of RE2."""
    try:
        Regex(value)
    except RegexError as error:
        return str(error)
    return None


def at_least_1ms(value: timedelta) -> str | None:
    return None if value >= _MILLISECOND else "must be at least 1ms"


def not_empty(value: object) -> str | None:
    return None if value else "must not be empty"


def between(low: float, high: float) -> Callable[[float], str | None]:
    """A number in that range, both ends included."""

    def rule(value: float) -> str | None:
        return None if low <= value <= high else f"must be between {low} and {high}"

    return rule


def at_least(low: float) -> Callable[[float], str | None]:
    def rule(value: float) -> str | None:
        return None if value >= low else f"must be at least {low}"

    return rule


def at_most(high: float) -> Callable[[float], str | None]:
    def rule(value: float) -> str | None:
        return None if value <= high else f"must be at most {high}"

    return rule


def at_most_uint32_seconds(value: timedelta) -> str | None:
    return None if value.total_seconds() <= UINT32_MAX else f"must be at most {UINT32_MAX}s"


def label_name(value: str) -> str | None:
    """The key of a label: `app`, `example.com/app`."""
    prefix, slash, name = value.rpartition("/")
    if not _QUALIFIED.fullmatch(name) or (slash and _host_reason(prefix) is not None):
        return f'"{value}" is no key of a label'
    return None


def label_value(value: str) -> str | None:
    return None if not value or _QUALIFIED.fullmatch(value) else f'"{value}" is no value of a label'


def labels(value: tuple[tuple[str, str], ...]) -> str | None:
    """Labels, as Kubernetes allows them."""
    for key, each in value:
        reason = label_name(key) or label_value(each)
        if reason is not None:
            return reason
    return None


def export_to(value: tuple[str, ...]) -> str | None:
    """Namespaces that may see it: `.` its own, `*` all, `~` none, or names."""
    if len(set(value)) != len(value):
        return "has an entry twice"
    if len(value) > 1 and ("*" in value or "~" in value):
        return '"*" and "~" must stand alone'
    for each in value:
        if each not in (".", "*", "~") and dns_label(each) is not None:
            return f'"{each}" is neither ".", "*", "~" nor the name of a namespace'
    return None


Port: TypeAlias = Annotated[int, between(1, 65535)]
Regexp: TypeAlias = Annotated[str, regex]
Host: TypeAlias = Annotated[str, full_host]
WildcardHost: TypeAlias = Annotated[str, wildcard_host]
Name: TypeAlias = Annotated[str, dns_label]
HeaderName: TypeAlias = Annotated[str, header_name]
Duration: TypeAlias = Annotated[timedelta, at_least_1ms]
Labels: TypeAlias = Annotated[tuple[tuple[str, str], ...], labels]
ExportTo: TypeAlias = Annotated[tuple[str, ...], export_to]
NotNegative: TypeAlias = Annotated[int, at_least(0), at_most(UINT32_MAX)]
UInt32: TypeAlias = Annotated[int, between(0, UINT32_MAX)]
# Where proxies count in whole seconds.
Seconds: TypeAlias = Annotated[timedelta, at_least_1ms, at_most_uint32_seconds]
