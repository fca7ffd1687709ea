"""`security.istio.io` AuthorizationPolicy: who may ask a workload for what.

Lists that are given must not be empty: one that a template left empty would match everybody.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, ClassVar, Final, Literal

from meshproxy.pilot.documents.common import MatchLabels
from meshproxy.pilot.documents.problems import At
from meshproxy.pilot.documents.rules import dns_label, header_name, ip_or_cidr, not_empty, object_name
from meshproxy.pilot.documents.spec import Map, Refused, Rule, spec

DRY_RUN: Final = "istio.io/dry-run"
_GATEWAY_NAME: Final = "gateway.networking.k8s.io/gateway-name"
_WHOLE_PORT: Final = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
_NAMESPACE: Final = re.compile(r"[a-z0-9*](?:[-a-z0-9*]{0,61}[a-z0-9*])?", re.ASCII)
# What may stand in a segment of a path template besides an operator, which Envoy's own parser asks for.
_LITERAL: Final = re.compile(r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]*", re.ASCII)
_MAX_OPERATORS: Final = 5
_HEADER: Final = re.compile(r"request\.headers\[([^\[\]]+)\]")
_CLAIM: Final = re.compile(r"request\.auth\.claims((?:\[[^\[\]]+\])+)")
_FILTER: Final = re.compile(r"experimental\.(envoy\.filters\.[^\[\]]+)\[([^\[\]]+)\]")


def pattern(value: str) -> str | None:
    """`exact`, `prefix*`, `*suffix`, or `*` for presence."""
    if not value:
        return "must not be empty"
    if "*" in value[1:-1] or value == "**" or (len(value) > 1 and value[0] == value[-1] == "*"):
        return f'"{value}": "*" may only stand at the beginning or at the end'
    return None


def path_pattern(value: str) -> str | None:
    """A pattern, or a template: `{*}` is one segment, `{**}` any number, as the last operator."""
    if not is_template(value):
        return pattern(value)
    operators = [segment for segment in value.split("/") if segment in ("{*}", "{**}")]
    if any(segment not in ("{*}", "{**}") and not _LITERAL.fullmatch(segment) for segment in value.split("/")):
        return f'"{value}": a segment of a template is {{*}}, {{**}} or plain text'
    if not value.startswith("/") or "{**}" in operators[:-1] or len(operators) > _MAX_OPERATORS:
        return f'"{value}": a template begins with "/", has {{**}} as its last operator, and at most 5 of them'
    return None


def is_template(path: str) -> bool:
    return "{" in path or "}" in path


def port_text(value: str) -> str | None:
    """A port is a string here, as in Istio."""
    return None if _WHOLE_PORT.fullmatch(value) and int(value) < 65_536 else f'"{value}" is no port'


def namespace_pattern(value: str) -> str | None:
    return None if _NAMESPACE.fullmatch(value) else f'"{value}" is no namespace, nor one with "*"'


def account(value: str) -> str | None:
    """`namespace/name`, or a name in the policy's own namespace; nothing else stands for several."""
    namespace, slash, name = value.rpartition("/")
    if (slash and dns_label(namespace) is not None) or object_name(name) is not None:
        return f'"{value}" is neither "namespace/name" nor the name of a service account'
    return None


Patterns = Annotated[tuple[Annotated[str, pattern], ...], not_empty]
Paths = Annotated[tuple[Annotated[str, path_pattern], ...], not_empty]
Ports = Annotated[tuple[Annotated[str, port_text], ...], not_empty]
Addresses = Annotated[tuple[Annotated[str, ip_or_cidr], ...], not_empty]
Namespaces = Annotated[tuple[Annotated[str, namespace_pattern], ...], not_empty]
Accounts = Annotated[tuple[Annotated[str, account], ...], not_empty]


@spec
class Source:
    """All that it says must be true of the caller. Principals, namespaces and service accounts are those of its
    certificate: a caller in plaintext has none. Request principals are those of a JWT."""

    principals: Patterns = ()
    not_principals: Patterns = ()
    request_principals: Patterns = ()
    not_request_principals: Patterns = ()
    namespaces: Namespaces = ()
    not_namespaces: Namespaces = ()
    service_accounts: Accounts = ()
    not_service_accounts: Accounts = ()
    ip_blocks: Addresses = ()
    not_ip_blocks: Addresses = ()
    remote_ip_blocks: Addresses = ()
    not_remote_ip_blocks: Addresses = ()

    def check(self, at: At) -> None:
        accounts = self.service_accounts or self.not_service_accounts
        if accounts and (self.principals or self.not_principals or self.namespaces or self.not_namespaces):
            at.error("serviceAccounts excludes principals and namespaces")
        if self == Source():
            at.error("must say something: it would match everybody")


@spec
class From:
    source: Source


@spec
class Operation:
    """All that it says must be true of the request; of a TCP connection only ports are known."""

    hosts: Patterns = ()
    not_hosts: Patterns = ()
    ports: Ports = ()
    not_ports: Ports = ()
    methods: Patterns = ()
    not_methods: Patterns = ()
    paths: Paths = ()
    not_paths: Paths = ()

    def check(self, at: At) -> None:
        if self == Operation():
            at.error("must say something: it would match everything")


@spec
class To:
    operation: Operation


@spec
class Condition:
    """`values`: one of them is the key's; `notValues`: none is."""

    key: str
    values: Annotated[tuple[str, ...], not_empty] = ()
    not_values: Annotated[tuple[str, ...], not_empty] = ()

    def check(self, at: At) -> None:
        if not self.values and not self.not_values:
            at.error("one of values, notValues is required")
        rule = rule_of(self.key)
        if rule is None:
            (at / "key").error(f'there is no key "{self.key}"')
            return
        for step, values in (("values", self.values), ("notValues", self.not_values)):
            for index, value in enumerate(values):
                reason = rule(value)
                if reason is not None:
                    (at / step / index).error(reason)


def rule_of(key: str) -> Rule | None:
    """What values of a key must be; None: there is no such key."""
    name = header_of(key)
    if name is not None:
        return pattern if header_name(name) is None and not name.startswith(":") else None
    if filter_key_of(key) is not None:
        return lambda value: pattern(without_brackets(value))
    if claims_of(key):
        return pattern
    return _KEYS.get(key)


_KEYS: Final[dict[str, Callable[[str], str | None]]] = {
    "source.ip": ip_or_cidr,
    "remote.ip": ip_or_cidr,
    "source.namespace": namespace_pattern,
    "source.principal": pattern,
    "source.serviceAccount": account,
    "request.auth.principal": pattern,
    "request.auth.audiences": pattern,
    "request.auth.presenter": pattern,
    "destination.ip": ip_or_cidr,
    "destination.port": port_text,
    "connection.sni": pattern,
}


def header_of(key: str) -> str | None:
    """The header of `request.headers[name]`, in small letters."""
    found = _HEADER.fullmatch(key)
    return found[1].lower() if found is not None else None


def claims_of(key: str) -> tuple[str, ...]:
    """The path of `request.auth.claims[a][b]`; empty for another key."""
    found = _CLAIM.fullmatch(key)
    return tuple(found[1][1:-1].split("][")) if found is not None else ()


def filter_key_of(key: str) -> tuple[str, str] | None:
    """The filter's name and the key of its metadata, of `experimental.envoy.filters.x[key]`."""
    found = _FILTER.fullmatch(key)
    return (found[1], found[2]) if found is not None else None


def without_brackets(value: str) -> str:
    """A value for filters' metadata may be `[value]`: one of a list."""
    return value[1:-1] if value.startswith("[") and value.endswith("]") else value


@spec
class AuthorizationRule:
    """It matches what one of `from` and one of `to` match, and all conditions; one that says nothing matches
    everything."""

    from_: Annotated[tuple[From, ...], not_empty] = ()
    to: Annotated[tuple[To, ...], not_empty] = ()
    when: Annotated[tuple[Condition, ...], not_empty] = ()


def target_group(value: str) -> str | None:
    return None if value == "gateway.networking.k8s.io" else f'"{value}": only gateway.networking.k8s.io is known'


@spec
class TargetRef:
    """The proxies of a Gateway of the Gateway API: those with the label `gateway.networking.k8s.io/gateway-name`."""

    group: Annotated[str, target_group]
    kind: Literal["Gateway"]
    name: Annotated[str, object_name]
    REFUSED: ClassVar[Refused] = {
        "namespace": "a policy is for its own namespace",
        "sectionName": "listeners of a Gateway cannot be told apart here",
    }


@spec
class AuthorizationPolicy:
    """Of the policies of a workload any DENY that matches refuses; then, where there are ALLOWs, one of them has to
    match. In the root namespace, without a selector, it is for the whole mesh. The annotation `istio.io/dry-run:
    "true"` has proxies count and tell what it would do. A policy that is refused while no good version of it stays in
    force denies everything to the workloads that it selects, if its selector can be read, else to its namespace."""

    selector: MatchLabels | None = None  # None: all of the namespace
    target_refs: Annotated[tuple[TargetRef, ...], not_empty] = ()
    action: Literal["ALLOW", "DENY", "AUDIT"] = "ALLOW"
    rules: tuple[AuthorizationRule, ...] = ()
    ONE_OF: ClassVar = (("selector", "targetRefs"),)
    REFUSED: ClassVar[Refused] = {
        "targetRef": "write targetRefs",
        "provider": "is for the action CUSTOM: asking another service is not supported yet",
    }

    @property
    def selections(self) -> tuple[Map[str], ...]:
        """The labels that it asks for: a workload has all of one of these."""
        if self.target_refs:
            return tuple(((_GATEWAY_NAME, each.name),) for each in self.target_refs)
        return (self.selector.match_labels if self.selector is not None else (),)

    def check(self, at: At) -> None:
        if self.action != "ALLOW" and not self.rules:
            (at / "rules").error(f"a policy with action {self.action} and no rules would do nothing")
        if self.action == "DENY":
            self._warn_of_ports(at)

    def _warn_of_ports(self, at: At) -> None:
        """A host header may carry a port, which a pattern without one does not match."""
        for index, rule in enumerate(self.rules):
            for number, to in enumerate(rule.to):
                for place, host in enumerate(to.operation.hosts):
                    if "*" not in host and ":" not in host and f"{host}:*" not in to.operation.hosts:
                        where = at / "rules" / index / "to" / number / "operation" / "hosts" / place
                        where.warn(f'"{host}" does not match {host}:80: write "{host}:*" as well')
