"""From `envoy.config.rbac.v3` to rules at work."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.string_matcher import StringMatcher, build_string_matcher
from meshproxy.config.typed_struct import unpack_any
from meshproxy.config.values import cidr_network
from meshproxy.matching.build import build_matcher
from meshproxy.matching.cel.build import build_expression
from meshproxy.rbac.access import DESTINATION, DIRECT_REMOTE, REMOTE, SOURCE
from meshproxy.rbac.conditions import (
    AllOf,
    AnyOf,
    Authenticated,
    Condition,
    ExpressionCondition,
    FilterStateCondition,
    HeaderCondition,
    IpCondition,
    MetadataCondition,
    MtlsAuthenticated,
    Not,
    PathCondition,
    PortCondition,
    RouteMetadataCondition,
    ServerNameCondition,
    TemplateCondition,
)
from meshproxy.rbac.engine import Engine, Policy, PolicyEngine, TreeEngine, Verdict, verdict_of
from meshproxy.route.header_matcher import build_header_matcher
from meshproxy.route.metadata_matcher import build_filter_state_matcher, build_metadata_matcher
from meshproxy.route.path_template import TemplateError, compile_template
from meshproxy.tls import x509
from meshproxy.tls.verify import SanMatcher

_URI_TEMPLATE: Final = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
_MTLS_AUTHENTICATED: Final = "envoy.extensions.rbac.principals.mtls_authenticated.v3.Config"
_ADDRESSES: Final = {
    "source_ip": SOURCE,
    "direct_remote_ip": DIRECT_REMOTE,
    "remote_ip": REMOTE,
    "destination_ip": DESTINATION,
}
_SAN_KINDS: Final = {"EMAIL": x509.EMAIL, "DNS": x509.DNS, "URI": x509.URI, "IP_ADDRESS": x509.IP_ADDRESS}
_ROUTE_METADATA: Final = 1  # MetadataSource.ROUTE
_ACTION: Final = "envoy.config.rbac.v3.Action"
_TREES: Final = {"rules": "matcher", "shadow_rules": "shadow_matcher"}
_MOST_PORTS: Final = 65536


def build_engine(message: Any, field: str, path: str, context: BuildContext, *, http: bool) -> Engine | None:
    """The engine of the RBAC in `field` of `message`, or of the tree that may stand in its place; None where neither is
    set, or there are errors."""
    tree = _TREES[field]
    if message.HasField(tree):
        if message.HasField(field):
            context.errors.add(child(path, field), f"{tree} takes its place: only one of them may be set")
        return _build_tree(getattr(message, tree), child(path, tree), context, http)
    if not message.HasField(field):
        return None
    rules = getattr(message, field)
    builder = _Builder(context.errors, http)
    policies: list[Policy] = []
    # In the order of Envoy's std::map: of the bytes of the names.
    for name in sorted(rules.policies, key=str.encode):
        condition = builder.policy(rules.policies[name], f"{child(path, field)}.policies[{name}]")
        if condition is not None:
            policies.append(Policy(condition, verdict_of(rules.action, name, True)))
    return PolicyEngine(policies, verdict_of(rules.action, "", False))


def _build_tree(message: Any, path: str, context: BuildContext, http: bool) -> Engine | None:
    errors = context.errors
    matcher = build_matcher(message, path, errors, lambda action, at: _action(action, at, errors), http=http)
    return None if matcher is None else TreeEngine(matcher)


def _action(extension: Any, path: str, errors: ConfigErrors) -> Verdict | None:
    where = child(path, "typed_config")
    message: Any = unpack_any(extension.typed_config, where, errors)
    if message is None:
        return None
    if message.DESCRIPTOR.full_name != _ACTION:
        errors.add(where, f"{message.DESCRIPTOR.full_name} is not supported (supported: {_ACTION})")
        return None
    return verdict_of(message.action, message.name, True)


def rbac_scope(prefix: str, rules_prefix: str) -> str:
    """The prefix of the stats of rules, as Envoy joins it: with a dot where the parts have none."""
    whole = f"{prefix}rbac.{rules_prefix}"
    return whole if whole.endswith(".") else whole + "."


class _Builder:
    """Builds conditions. In each method None stands for an error that was added."""

    def __init__(self, errors: ConfigErrors, http: bool) -> None:
        self.errors = errors
        self.http = http

    def policy(self, message: Any, path: str) -> Condition | None:
        permissions = self.permissions(message.permissions, path, "permissions")
        principals = self.principals(message.principals, path, "principals")
        if permissions is None or principals is None:
            return None
        conditions = [one_or_any(permissions), one_or_any(principals)]
        if message.HasField("condition"):
            options = message.cel_config if message.HasField("cel_config") else None
            expression = build_expression(message.condition, child(path, "condition"), self.errors, options)
            if expression is None:
                return None
            conditions.append(ExpressionCondition(expression))
        return AllOf(conditions)

    def permissions(self, messages: Any, path: str, field: str) -> list[Condition] | None:
        built = [self.permission(messages[i], item(path, field, i)) for i in range(len(messages))]
        return all_of_them(built)

    def principals(self, messages: Any, path: str, field: str) -> list[Condition] | None:
        built = [self.principal(messages[i], item(path, field, i)) for i in range(len(messages))]
        return all_of_them(built)

    def permission(self, message: Any, path: str) -> Condition | None:
        kind: str | None = message.WhichOneof("rule")
        if kind is None:
            self.errors.add(child(path, "rule"), "is required")
            return None
        at = child(path, kind)
        if kind == "and_rules":
            every = self.permissions(message.and_rules.rules, at, "rules")
            return None if every is None else AllOf(every)
        if kind == "or_rules":
            some = self.permissions(message.or_rules.rules, at, "rules")
            return None if some is None else AnyOf(some)
        if kind == "not_rule":
            inner = self.permission(message.not_rule, at)
            return None if inner is None else Not(inner)
        if kind == "destination_port":
            return PortCondition(message.destination_port, message.destination_port + 1)
        if kind == "destination_port_range":
            return self.port_range(message.destination_port_range, at)
        if kind == "requested_server_name":
            string = build_string_matcher(message.requested_server_name, at, self.errors)
            return None if string is None else ServerNameCondition(string)
        if kind == "uri_template":
            return self.template(message.uri_template, at)
        return self.common(message, kind, at)

    def principal(self, message: Any, path: str) -> Condition | None:
        kind: str | None = message.WhichOneof("identifier")
        if kind is None:
            self.errors.add(child(path, "identifier"), "is required")
            return None
        at = child(path, kind)
        if kind == "and_ids":
            every = self.principals(message.and_ids.ids, at, "ids")
            return None if every is None else AllOf(every)
        if kind == "or_ids":
            some = self.principals(message.or_ids.ids, at, "ids")
            return None if some is None else AnyOf(some)
        if kind == "not_id":
            inner = self.principal(message.not_id, at)
            return None if inner is None else Not(inner)
        if kind == "authenticated":
            return self.authenticated(message.authenticated, at)
        if kind == "filter_state":
            state = build_filter_state_matcher(message.filter_state, at, self.errors)
            return None if state is None else FilterStateCondition(state)
        if kind == "custom":
            return self.custom(message.custom, at)
        return self.common(message, kind, at)

    def common(self, message: Any, kind: str, at: str) -> Condition | None:
        """What permissions and principals have alike."""
        if kind == "any":
            return Condition()
        if kind in _ADDRESSES:
            return self.network(getattr(message, kind), _ADDRESSES[kind], at)
        if kind == "header":
            return self.header(message.header, at)
        if kind == "url_path":
            string = self.path_string(message.url_path, at)
            return None if string is None else PathCondition(string)
        if kind == "metadata":
            return self.metadata(message.metadata, at, 0)
        if kind == "sourced_metadata":
            sourced = message.sourced_metadata
            return self.metadata(sourced.metadata_matcher, child(at, "metadata_matcher"), sourced.metadata_source)
        self.errors.add(at, "is not supported")
        return None

    def header(self, message: Any, at: str) -> Condition | None:
        if not self.http:
            self.errors.add(at, f"Found header({message.name}) rule,not supported by RBAC network filter")
            return None
        matcher = build_header_matcher(message, at, self.errors)
        return None if matcher is None else HeaderCondition(matcher)

    def path_string(self, message: Any, at: str) -> StringMatcher | None:
        if message.WhichOneof("rule") != "path":
            self.errors.add(child(at, "path"), "is required")
            return None
        return build_string_matcher(message.path, child(at, "path"), self.errors)

    def metadata(self, message: Any, at: str, source: int) -> Condition | None:
        matcher = build_metadata_matcher(message, at, self.errors)
        if matcher is None:
            return None
        return RouteMetadataCondition(matcher) if source == _ROUTE_METADATA else MetadataCondition(matcher)

    def network(self, message: Any, which: int, at: str) -> Condition | None:
        network = cidr_network(message, at, self.errors)
        if network is None:
            return None
        return IpCondition(which, network.version, int(network.network_address), int(network.netmask))

    def port_range(self, message: Any, at: str) -> Condition | None:
        for name in ("start", "end"):
            if not 0 <= getattr(message, name) <= _MOST_PORTS:
                self.errors.add(child(at, name), f"range {name} {getattr(message, name)} is out of bounds")
                return None
        if message.start >= message.end:
            reason = f"range start {message.start} cannot be greater or equal than range end {message.end}"
            self.errors.add(at, reason)
            return None
        return PortCondition(message.start, message.end)

    def template(self, extension: Any, at: str) -> Condition | None:
        message = self.unpack(extension, _URI_TEMPLATE, at)
        if message is None:
            return None
        try:
            return TemplateCondition(compile_template(message.path_template))
        except TemplateError as error:
            self.errors.add(child(at, "typed_config.path_template"), str(error))
            return None

    def authenticated(self, message: Any, at: str) -> Condition | None:
        if not message.HasField("principal_name"):
            return Authenticated(None)
        string = build_string_matcher(message.principal_name, child(at, "principal_name"), self.errors)
        return None if string is None else Authenticated(string)

    def custom(self, extension: Any, at: str) -> Condition | None:
        message = self.unpack(extension, _MTLS_AUTHENTICATED, at)
        if message is None:
            return None
        where = child(at, "typed_config")
        if message.HasField("san_matcher"):
            san = self.san(message.san_matcher, child(where, "san_matcher"))
            return None if san is None else MtlsAuthenticated(san)
        if not message.any_validated_client_certificate:
            self.errors.add(where, "san_matcher or any_validated_client_certificate must be set")
            return None
        return MtlsAuthenticated(None)

    def san(self, message: Any, at: str) -> SanMatcher | None:
        kind = _SAN_KINDS.get(message.SanType.Name(message.san_type))
        if kind is None:
            self.errors.add(child(at, "san_type"), f"only {', '.join(_SAN_KINDS)} are supported")
            return None
        string = build_string_matcher(message.matcher, child(at, "matcher"), self.errors)
        return None if string is None else SanMatcher(kind, string, message.matcher.exact if kind == x509.DNS else "")

    def unpack(self, extension: Any, wanted: str, at: str) -> Any:
        """The message of an extension, if it is the one that is known here."""
        where = child(at, "typed_config")
        message = unpack_any(extension.typed_config, where, self.errors)
        if message is not None and message.DESCRIPTOR.full_name != wanted:
            self.errors.add(where, f"{message.DESCRIPTOR.full_name} is not supported (supported: {wanted})")
            return None
        return message


def all_of_them(built: list[Condition | None]) -> list[Condition] | None:
    """None where one could not be built: a rule is whole or not there."""
    found = [condition for condition in built if condition is not None]
    return found if len(found) == len(built) else None


def one_or_any(conditions: list[Condition]) -> Condition:
    return conditions[0] if len(conditions) == 1 else AnyOf(conditions)
