"""What several kinds have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from meshproxy.pilot.documents.problems import At
from meshproxy.pilot.documents.rules import Labels, Port, Regexp, between, dns_label, object_name
from meshproxy.pilot.documents.spec import spec

# Protocols of a port as the documents name them; what is plain TCP to a proxy is TCP here.
HTTP_PROTOCOLS = frozenset({"HTTP", "HTTP2", "GRPC", "GRPC-WEB"})
TLS_PROTOCOLS = frozenset({"HTTPS", "TLS"})
_TCP_PROTOCOLS = frozenset({"TCP", "MONGO", "REDIS", "MYSQL"})


def protocol(value: str) -> str | None:
    """A protocol of a port, in letters of either case."""
    if value.upper() in HTTP_PROTOCOLS | TLS_PROTOCOLS | _TCP_PROTOCOLS:
        return None
    known = ", ".join(sorted(HTTP_PROTOCOLS | TLS_PROTOCOLS | _TCP_PROTOCOLS))
    return f'"{value}" is not one of {known}'


def plain_protocol(value: str) -> str:
    """HTTP, HTTP2, GRPC, GRPC-WEB, HTTPS, TLS or TCP."""
    upper = value.upper()
    return "TCP" if upper in _TCP_PROTOCOLS else upper


# Rules that need other secrets than the mesh's own certificates are told of this: no pilot has them.
AGENTS_SECRETS = (
    "needs secrets of the proxy's own agent: where its node names none (metadata.meshproxy.io/sds-cluster) "
    "connections fail"
)


@spec
class StringMatch:
    """Istio's StringMatch: exactly one of them; none of them asks for presence where that is allowed."""

    exact: str | None = None
    prefix: str | None = None
    regex: Regexp | None = None
    ONE_OF: ClassVar = (("exact", "prefix", "regex"),)

    @property
    def is_presence(self) -> bool:
        return self.exact is None and self.prefix is None and self.regex is None


@spec
class Percent:
    """0 to 100, with a fraction."""

    value: Annotated[float, between(0, 100)] = 0.0


@spec
class PortSelector:
    """A port of a service by its number."""

    number: Port


@spec
class WorkloadSelector:
    """Workloads with all these labels."""

    labels: Labels = ()


@spec
class MatchLabels:
    """Workloads with all these labels; some kinds say `matchLabels` where others say `labels`."""

    match_labels: Labels = ()


def check_unique(at: At, values: Sequence[str | int], step: str, what: str) -> None:
    """Tells of a value that stands twice: `values[i]` is `at[i].step`."""
    seen: set[str | int] = set()
    for index, value in enumerate(values):
        if value in seen:
            (at / index / step).error(f"the {what} {value} is given twice")
        seen.add(value)


def gateway_name(value: str) -> str | None:
    """`mesh`, a gateway's name, or `namespace/name`."""
    namespace, slash, name = value.partition("/")
    if slash and (dns_label(namespace) if namespace != "." else None):
        return f'"{value}" is neither a name nor "namespace/name"'
    return object_name(name if slash else namespace)


def overlap(one: str, other: str) -> bool:
    """Whether two hosts, with wildcards or not, may be the same."""
    one, other = one.lower(), other.lower()
    if one.startswith("*") and other.startswith("*"):
        return one[1:].endswith(other[1:]) or other[1:].endswith(one[1:])
    return covers(one, other) or covers(other, one)


def covers(pattern: str, host: str) -> bool:
    """Whether all that `host` stands for is in `pattern`: `*.a.com` covers `x.a.com` and `*.b.a.com`."""
    if not pattern.startswith("*"):
        return pattern.lower() == host.lower()
    ending = pattern[1:].lower()
    rest = host[1:] if host.startswith("*") else host
    return rest.lower().endswith(ending) and (host.startswith("*") or len(host) > len(ending) or not ending)
