"""AuthorizationPolicies as RBAC filters, for requests and for connections that nobody reads: with Istio's names and in
Istio's order, AUDIT, DENY, ALLOW, and what its fields come to there.

Of what only requests have, a connection has nothing. As in Istio, an ALLOW rule that asks for it never matches a
connection; a DENY rule matches with that part left out, so that it refuses more, never less.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from envoy.config.core.v3.address_pb2 import CidrRange
from envoy.config.listener.v3.listener_components_pb2 import Filter
from envoy.config.rbac.v3.rbac_pb2 import RBAC, Permission, Policy, Principal
from envoy.config.route.v3.route_components_pb2 import HeaderMatcher
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import HttpFilter
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac
from envoy.extensions.path.match.uri_template.v3.uri_template_match_pb2 import UriTemplateMatchConfig
from envoy.extensions.rbac.principals.mtls_authenticated.v3.mtls_authenticated_pb2 import Config as MtlsAuthenticated
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import SubjectAltNameMatcher
from envoy.type.matcher.v3.metadata_pb2 import MetadataMatcher
from envoy.type.matcher.v3.path_pb2 import PathMatcher
from envoy.type.matcher.v3.string_pb2 import StringMatcher
from envoy.type.matcher.v3.value_pb2 import ValueMatcher

from meshproxy.pilot.documents.authorization_policy import (
    DRY_RUN,
    AuthorizationRule,
    Condition,
    Operation,
    Source,
    claims_of,
    filter_key_of,
    header_of,
    is_template,
    without_brackets,
)
from meshproxy.pilot.resources.messages import extension, pack

if TYPE_CHECKING:
    from meshproxy.pilot.documents.document import Document

HTTP_RBAC: Final = "envoy.filters.http.rbac"
NETWORK_RBAC: Final = "envoy.filters.network.rbac"
JWT: Final = "envoy.filters.http.jwt_authn"
_MTLS_AUTHENTICATED: Final = "envoy.rbac.principals.mtls_authenticated"
_STAT_PREFIX: Final = "tcp."
_ACTIONS: Final = (("AUDIT", RBAC.LOG), ("DENY", RBAC.DENY), ("ALLOW", RBAC.ALLOW))
_DRY_RUN_PREFIX: Final = {RBAC.ALLOW: "istio_dry_run_allow_", RBAC.DENY: "istio_dry_run_deny_"}
_SPIFFE: Final = "spiffe://"
_LOCAL: Final = "cluster.local"  # in a principal it stands for the mesh's own trust domain, whatever that is
_ANY_VALUE: Final = ".+"


@dataclass(frozen=True, slots=True)
class Authorization:
    """Filters for the front of every chain of a proxy; none where no policy selects it."""

    http: tuple[HttpFilter, ...] = ()
    network: tuple[Filter, ...] = ()


NO_AUTHORIZATION: Final = Authorization()


class _Domains(NamedTuple):
    """The mesh's own trust domain and its aliases, and whether there are others whose workloads may call."""

    own: Sequence[str]
    is_federated: bool


def authorization(
    policies: Sequence[Document], trust_domains: Sequence[str], *, federated: bool = False
) -> Authorization:
    """Of the policies of a workload. `trust_domains` is the mesh's own one, then its aliases; `federated`: certificates
    of other authorities are taken, too."""
    if not policies:
        return NO_AUTHORIZATION
    domains = _Domains(trust_domains, federated)
    return Authorization(
        tuple(_http_filter(*rules) for rules in _rules(policies, domains, _HTTP)),
        tuple(_network_filter(*rules) for rules in _rules(policies, domains, _TCP)),
    )


def _http_filter(rules: RBAC | None, shadow: RBAC | None) -> HttpFilter:
    message = http_rbac.RBAC(rules=rules, shadow_rules=shadow, shadow_rules_stat_prefix=_shadow_prefix(shadow))
    return HttpFilter(name=HTTP_RBAC, typed_config=pack(message))


def _network_filter(rules: RBAC | None, shadow: RBAC | None) -> Filter:
    message = network_rbac.RBAC(rules=rules, shadow_rules=shadow, shadow_rules_stat_prefix=_shadow_prefix(shadow))
    message.stat_prefix = _STAT_PREFIX
    return Filter(name=NETWORK_RBAC, typed_config=pack(message))


def _shadow_prefix(shadow: RBAC | None) -> str:
    return _DRY_RUN_PREFIX.get(shadow.action, "") if shadow is not None else ""


_HTTP: Final = False
_TCP: Final = True


def _rules(policies: Sequence[Document], domains: _Domains, tcp: bool) -> Iterator[tuple[RBAC | None, RBAC | None]]:
    """For each action: what is enforced, and what is only told. An RBAC without policies is one that says no."""
    for action, wanted in _ACTIONS:
        of_action = [one for one in policies if one.spec.action == action]
        enforced = [one for one in of_action if not is_dry_run(one)]
        told = [one for one in of_action if is_dry_run(one)]
        if of_action:
            yield (
                _rbac(wanted, enforced, domains, tcp) if enforced else None,
                _rbac(wanted, told, domains, tcp) if told else None,
            )


def is_dry_run(policy: Document) -> bool:
    return dict(policy.annotations).get(DRY_RUN) == "true"


def _rbac(action: RBAC.Action.ValueType, policies: Iterable[Document], domains: _Domains, tcp: bool) -> RBAC:
    message = RBAC(action=action)
    for policy in policies:
        name = f"ns[{policy.namespace}]-policy[{policy.name}]-rule"
        maker = _Maker(policy.namespace, domains, tcp=tcp, allows=action == RBAC.ALLOW)
        for index, rule in enumerate(policy.spec.rules):
            made = maker.policy(rule)
            if made is not None:
                message.policies[f"{name}[{index}]"].CopyFrom(made)
        if not policy.spec.rules:
            message.policies[f"{name}[0]"].CopyFrom(_NEVER)
    return message


_NEVER: Final = Policy(
    permissions=[Permission(not_rule=Permission(any=True))], principals=[Principal(not_id=Principal(any=True))]
)


class _OnlyRequestsError(Exception):
    """A connection has nothing that the rule asks for."""


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes rules of one policy into Envoy's policies."""

    namespace: str
    domains: _Domains
    tcp: bool
    allows: bool

    def policy(self, rule: AuthorizationRule) -> Policy | None:
        """None for a rule that can never match."""
        try:
            permissions, principals = self._conditions(rule.when)
            operations = [each.operation for each in rule.to] or [Operation()]
            sources = [each.source for each in rule.from_] or [Source()]
            return Policy(
                permissions=[_all_permissions([*self._operation(one), *permissions]) for one in operations],
                principals=[_all_principals([*self._source(one), *principals]) for one in sources],
            )
        except _OnlyRequestsError:
            return None

    def _conditions(self, conditions: Iterable[Condition]) -> tuple[list[Permission], list[Principal]]:
        permissions: list[Permission] = []
        principals: list[Principal] = []
        for one in conditions:
            make_permission = _permission_of(one.key)
            if make_permission is not None:
                permissions += self._permissions(make_permission, one.values, one.not_values)
            else:
                principals += self._principals(self._principal_of(one.key), one.values, one.not_values, one.key)
        return permissions, principals

    def _operation(self, operation: Operation) -> Iterator[Permission]:
        requests = (
            (_host, operation.hosts, operation.not_hosts),
            (_method, operation.methods, operation.not_methods),
            (_path, operation.paths, operation.not_paths),
        )
        for make, values, not_values in requests:
            yield from self._permissions(make, values, not_values, of_requests=True)
        yield from self._permissions(_port, operation.ports, operation.not_ports)

    def _source(self, source: Source) -> Iterator[Principal]:
        for key, values, not_values in (
            ("source.principal", source.principals, source.not_principals),
            ("request.auth.principal", source.request_principals, source.not_request_principals),
            ("source.namespace", source.namespaces, source.not_namespaces),
            ("source.serviceAccount", source.service_accounts, source.not_service_accounts),
            ("source.ip", source.ip_blocks, source.not_ip_blocks),
            ("remote.ip", source.remote_ip_blocks, source.not_remote_ip_blocks),
        ):
            yield from self._principals(self._principal_of(key), values, not_values, key)

    def _permissions(
        self,
        make: Callable[[str], Permission],
        values: Sequence[str],
        not_values: Sequence[str],
        *,
        of_requests: bool = False,
    ) -> list[Permission]:
        """One of the values, and none of the others."""
        if (values or not_values) and of_requests and self._must_leave_out():
            return []
        found = [_any_permission([make(value) for value in values])] if values else []
        if not_values:
            found.append(Permission(not_rule=_any_permission([make(value) for value in not_values])))
        return found

    def _principals(
        self, make: Callable[[str], Principal], values: Sequence[str], not_values: Sequence[str], key: str
    ) -> list[Principal]:
        if (values or not_values) and key.startswith("request.") and self._must_leave_out():
            return []
        found = [_any_principal([make(value) for value in values])] if values else []
        if not_values:
            found.append(Principal(not_id=_any_principal([make(value) for value in not_values])))
        return found

    def _must_leave_out(self) -> bool:
        """What only requests have; raises _OnlyRequestsError where that would let more through."""
        if self.tcp and self.allows:
            raise _OnlyRequestsError
        return self.tcp

    def _principal_of(self, key: str) -> Callable[[str], Principal]:
        header, claims = header_of(key), claims_of(key)
        if header is not None:
            return lambda value: Principal(header=_header(header, value))
        if claims:
            return lambda value: _claim(claims, value)
        return {
            "source.principal": self._principal,
            "source.namespace": self._namespace,
            "source.serviceAccount": self._account,
            "source.ip": lambda value: Principal(direct_remote_ip=_cidr(value)),
            "remote.ip": lambda value: Principal(remote_ip=_cidr(value)),
            "request.auth.principal": _request_principal,
            "request.auth.audiences": lambda value: _claim(("aud",), value),
            "request.auth.presenter": lambda value: _claim(("azp",), value),
        }[key]

    def _principal(self, value: str) -> Principal:
        return _any_principal(
            [self._authenticated(_principal_pattern(one)) for one in self._in_all_trust_domains(value)]
        )

    def _in_all_trust_domains(self, value: str) -> list[str]:
        """A principal of one of the mesh's trust domains is meant in each of them; a foreign one only there."""
        domain, slash, rest = value.partition("/")
        if not slash or not any(_covers(domain, one) for one in (*self.domains.own, _LOCAL)):
            return [value]
        found = [value if _covers(domain, one) else f"{one}/{rest}" for one in self.domains.own]
        return list(dict.fromkeys(found))

    def _account(self, value: str) -> Principal:
        namespace, slash, name = value.rpartition("/")
        where = namespace if slash else self.namespace
        return self._authenticated(_regex(f"{_SPIFFE}[^/]+/ns/{re.escape(where)}/sa/{re.escape(name)}"))

    def _namespace(self, value: str) -> Principal:
        name = "[^/]*".join(map(re.escape, value.split("*")))
        return self._authenticated(_regex(f"{_SPIFFE}[^/]+/ns/{name}/.*"))

    def _authenticated(self, name: StringMatcher) -> Principal:
        """Whoever is so called. `authenticated` goes by DNS names and the subject, too, which an authority of another
        trust domain signs as it likes: only for URIs is it held to its own."""
        if not self.domains.is_federated:
            return Principal(authenticated=Principal.Authenticated(principal_name=name))
        matcher = SubjectAltNameMatcher(san_type=SubjectAltNameMatcher.URI, matcher=name)
        return Principal(custom=extension(_MTLS_AUTHENTICATED, MtlsAuthenticated(san_matcher=matcher)))


def _covers(pattern: str, domain: str) -> bool:
    """Whether a trust domain, maybe `*` and its end, stands for another."""
    return domain.endswith(pattern[1:]) if pattern.startswith("*") else pattern == domain


# -- permissions


def _permission_of(key: str) -> Callable[[str], Permission] | None:
    """For the keys that speak of the destination; None for those of the caller and the request."""
    place = filter_key_of(key)
    if place is not None:
        return lambda value: Permission(metadata=_filter_metadata(*place, value))
    return _DESTINATION.get(key)


def _host(value: str) -> Permission:
    return Permission(header=_header(":authority", value, ignore_case=True))


def _method(value: str) -> Permission:
    return Permission(header=_header(":method", value))


def _path(value: str) -> Permission:
    if is_template(value):
        template = value.replace("{*}", "*").replace("{**}", "**")
        return Permission(uri_template=extension("uri-template", UriTemplateMatchConfig(path_template=template)))
    return Permission(url_path=PathMatcher(path=_string(value)))


def _port(value: str) -> Permission:
    return Permission(destination_port=int(value))


_DESTINATION: Final[dict[str, Callable[[str], Permission]]] = {
    "destination.ip": lambda value: Permission(destination_ip=_cidr(value)),
    "destination.port": _port,
    "connection.sni": lambda value: Permission(requested_server_name=_string(value)),
}


def _filter_metadata(name: str, key: str, value: str) -> MetadataMatcher:
    """`[v]`: the metadata are a list that has v."""
    matcher = ValueMatcher(string_match=_string(without_brackets(value)))
    if value != without_brackets(value):
        matcher = ValueMatcher(list_match={"one_of": matcher})
    return MetadataMatcher(filter=name, path=[{"key": key}], value=matcher)


# -- principals


def _principal_pattern(value: str) -> StringMatcher:
    """Identities are written without `spiffe://`."""
    if value.startswith("*") and value != "*":
        return _regex(f"{_SPIFFE}.*{re.escape(value[1:])}")
    return _string(value) if value == "*" else _string(_SPIFFE + value)


def _request_principal(value: str) -> Principal:
    """`issuer/subject` of a JWT. Both may have slashes: it may be cut at any of its own, or at the pattern's end."""
    found = [
        _issuer_and_subject(value[: slash.start()], value[slash.end() :])
        for slash in re.finditer("/", value)
        if value[: slash.start()] and value[slash.end() :]
    ]
    if value.endswith("*"):
        found.append(_issuer_and_subject(value, "*"))
    if value.startswith("*") and value != "*":
        found.append(_issuer_and_subject("*", value))
    return _any_principal(found) if found else Principal(not_id=Principal(any=True))


def _issuer_and_subject(issuer: str, subject: str) -> Principal:
    found = (("iss", _string(issuer)), ("sub", _string(subject)))
    return _all_principals([_verified((name,), ValueMatcher(string_match=value)) for name, value in found])


def _claim(path: Sequence[str], value: str) -> Principal:
    """A claim of a JWT: the value, or a list that has it."""
    one = ValueMatcher(string_match=_string(value))
    return _any_principal([_verified(path, one), _verified(path, ValueMatcher(list_match={"one_of": one}))])


def _verified(path: Sequence[str], value: ValueMatcher) -> Principal:
    """What the filter for JWTs says of one that it has verified: without it nobody has claims."""
    steps: list[Any] = [{"key": key} for key in ("payload", *path)]
    return Principal(metadata=MetadataMatcher(filter=JWT, path=steps, value=value))


# -- what they are made of


def _header(name: str, value: str, *, ignore_case: bool = False) -> HeaderMatcher:
    if value == "*":
        return HeaderMatcher(name=name, present_match=True)
    matcher = _string(value)
    matcher.ignore_case = ignore_case
    return HeaderMatcher(name=name, string_match=matcher)


def _string(value: str) -> StringMatcher:
    """`exact`, `prefix*`, `*suffix`; `*`: anything but nothing."""
    if value == "*":
        return _regex(_ANY_VALUE)
    if value.startswith("*"):
        return StringMatcher(suffix=value[1:])
    return StringMatcher(prefix=value[:-1]) if value.endswith("*") else StringMatcher(exact=value)


def _regex(text: str) -> StringMatcher:
    return StringMatcher(safe_regex={"regex": text})


def _cidr(value: str) -> CidrRange:
    address, slash, length = value.partition("/")
    bits = int(length) if slash else 128 if ":" in address else 32
    return CidrRange(address_prefix=address, prefix_len={"value": bits})


def _all_permissions(found: list[Permission]) -> Permission:
    if not found:
        return Permission(any=True)
    return found[0] if len(found) == 1 else Permission(and_rules=Permission.Set(rules=found))


def _any_permission(found: list[Permission]) -> Permission:
    return found[0] if len(found) == 1 else Permission(or_rules=Permission.Set(rules=found))


def _all_principals(found: list[Principal]) -> Principal:
    if not found:
        return Principal(any=True)
    return found[0] if len(found) == 1 else Principal(and_ids=Principal.Set(ids=found))


def _any_principal(found: list[Principal]) -> Principal:
    return found[0] if len(found) == 1 else Principal(or_ids=Principal.Set(ids=found))
