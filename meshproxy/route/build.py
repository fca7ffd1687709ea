"""From a RouteConfiguration message to its compiled RouteTable."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, Final, Protocol

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.messages import find_message
from meshproxy.config.regex import RegexError, RegexSet
from meshproxy.config.string_matcher import RegexMatcher
from meshproxy.config.typed_struct import unpack_any
from meshproxy.route.build_action import (
    build_direct_response,
    build_forwarding,
    build_redirect,
    metadata_dict,
)
from meshproxy.route.build_match import build_conditions, build_path_matcher
from meshproxy.route.header_matcher import HeaderMatcher, build_header_matchers
from meshproxy.route.header_ops import build_header_operations
from meshproxy.route.match import LOOKED_AT_A_STEP, RouteMatch, Subject, make_steps
from meshproxy.route.metadata_criteria import build_criteria
from meshproxy.route.mirror import build_mirrors
from meshproxy.route.own_metadata import build_own_metadata
from meshproxy.route.path_matcher import PathMatcher
from meshproxy.route.rate_limit import build_rate_limits
from meshproxy.route.retry_policy import RetryPolicy, build_retry_policy
from meshproxy.route.route import (
    DISABLED,
    ENABLED,
    ROUTE_CLUSTER,
    ROUTE_DIRECT_RESPONSE,
    ROUTE_REDIRECT,
    Route,
    VirtualCluster,
    VirtualHost,
)
from meshproxy.route.stats import RequestStats
from meshproxy.route.table import HostRoutes, RouteTable
from meshproxy.route.tracing import build_decorator, build_route_tracing
from meshproxy.route.weighted import WeightedRoutes

_FILTER_CONFIG: Final = "envoy.config.route.v3.FilterConfig"
_CORS_POLICY: Final = "envoy.extensions.filters.http.cors.v3.CorsPolicy"
_UINT32_MAX: Final = (1 << 32) - 1
_ROUTES_A_STEP: Final = 8
_KINDS: Final = {
    "route": ROUTE_CLUSTER,
    "redirect": ROUTE_REDIRECT,
    "direct_response": ROUTE_DIRECT_RESPONSE,
}

OverrideBuilder = Callable[[Any, str, BuildContext], object | None]


class OverrideLookup(Protocol):
    """The registry of per-route filter configurations, which lives above route/."""

    def find(self, config: AnyMessage, path: str, context: BuildContext) -> tuple[Message, OverrideBuilder] | None: ...

    def type_urls(self) -> list[str]: ...


class Level:
    """What one level of the configuration (table, virtual host, route, cluster weight) adds to its routes."""

    def __init__(self, message: Any, path: str, context: BuildContext, overrides: OverrideLookup) -> None:
        errors = context.errors
        self.request = build_header_operations(
            message.request_headers_to_add, message.request_headers_to_remove, path, errors, prefix="request_"
        )
        self.response = build_header_operations(
            message.response_headers_to_add, message.response_headers_to_remove, path, errors, prefix="response_"
        )
        self.filters = build_filter_configs(message.typed_per_filter_config, path, context, overrides)


def build_route_configuration(
    message: Any, path: str, context: BuildContext, overrides: OverrideLookup
) -> RouteTable | None:
    """Compile an `envoy.config.route.v3.RouteConfiguration`; None when errors were added to the context."""
    before = len(context.errors)
    builder = _TableBuilder(message, path, context, overrides)
    context.later(builder.steps())
    return builder.table if len(context.errors) == before else None


def build_virtual_host(
    configuration: Any, message: Any, context: BuildContext, overrides: OverrideLookup
) -> Generator[None, None, tuple[HostRoutes, RouteTable]]:
    """Compile a VirtualHost that came by itself. What holds for all routes stands in `configuration`, a
    RouteConfiguration whose own virtual hosts do not matter; the table, empty, knows the clusters that are named.
    Errors go to the context."""
    builder = _TableBuilder(configuration, "", context, overrides)
    builder.read_settings()
    routes = yield from builder.build_virtual_host(message, "")
    return routes, builder.table


def build_filter_configs(
    messages: Any, path: str, context: BuildContext, overrides: OverrideLookup
) -> dict[str, object]:
    """A typed_per_filter_config: filter name → what its builder made, DISABLED or ENABLED."""
    configs: dict[str, object] = {}
    for name in sorted(messages):
        at = f"{child(path, 'typed_per_filter_config')}[{name}]"
        context.filter_name = name
        built = _build_filter_config(messages[name], at, context, overrides)
        if built is not None:
            configs[name] = built
    return configs


def _build_filter_config(config: Any, path: str, context: BuildContext, overrides: OverrideLookup) -> object | None:
    """One entry. An unknown type that is optional is passed over with a warning."""
    if config.type_url.rpartition("/")[2] == _FILTER_CONFIG:
        wrapper: Any = unpack_any(config, path, context.errors)
        if wrapper is None:
            return None
        if wrapper.disabled:
            return DISABLED
        if not wrapper.config.type_url:
            return ENABLED
        config = wrapper.config
        if wrapper.is_optional and find_message(config.type_url.rpartition("/")[2]) is None:
            context.errors.warn(path, f"{config.type_url} is not known, and optional")
            return None
    found = overrides.find(config, path, context)
    if found is None:
        return None
    message, build = found
    return build(message, path, context)


def build_legacy_cors(message: Any, path: str, context: BuildContext, overrides: OverrideLookup) -> object | None:
    """The deprecated `cors` field, as the override of the cors filter that has the same fields under other numbers."""
    if not message.HasField("cors"):
        return None
    kind = find_message(_CORS_POLICY)
    if kind is None:
        return None
    policy: Any = kind()
    for field, value in message.cors.ListFields():
        if field.is_repeated:
            getattr(policy, field.name).extend(value)
        elif field.message_type is not None:
            getattr(policy, field.name).CopyFrom(value)
        else:
            setattr(policy, field.name, value)
    packed = AnyMessage()
    packed.Pack(policy)
    found = overrides.find(packed, child(path, "cors"), context)
    return None if found is None else found[1](found[0], child(path, "cors"), context)


class _TableBuilder:
    """Carries what the builds of one table share."""

    def __init__(self, message: Any, path: str, context: BuildContext, overrides: OverrideLookup) -> None:
        self.message = message
        self.path = path
        self.context = context
        self.errors = context.errors
        self.overrides = overrides
        self.table = RouteTable(message.name)
        self.level = Level(message, path, context, overrides)
        self.mirrors = build_mirrors(message.request_mirror_policies, path, context, self.table.referenced)

    def steps(self) -> Iterator[None]:
        """Fill the table, some routes a step."""
        self.read_settings()
        message, table = self.message, self.table
        for i in range(len(message.virtual_hosts)):
            yield from self.add_virtual_host(message.virtual_hosts[i], item(self.path, "virtual_hosts", i))
            yield
        table.seal()
        # "Not said" means yes for a table that is static; for another its watcher knows.
        if table.validate_clusters is not False:
            self.context.references += table.referenced

    def read_settings(self) -> None:
        """What holds for all virtual hosts."""
        message, table = self.message, self.table
        table.ignore_port_in_host_matching = message.ignore_port_in_host_matching
        table.ignore_path_parameters = message.ignore_path_parameters_in_path_matching
        if message.vhost_header:
            header = message.vhost_header.lower().encode()
            table.host_header = b":authority" if header == b"host" else header
        table.internal_only_headers = frozenset([name.lower().encode() for name in message.internal_only_headers])
        if message.HasField("max_direct_response_body_size_bytes"):
            table.max_direct_response_body_size_bytes = message.max_direct_response_body_size_bytes.value
        if message.HasField("validate_clusters"):
            table.validate_clusters = message.validate_clusters.value

    def add_virtual_host(self, message: Any, path: str) -> Iterator[None]:
        """Build one virtual host and file it under its domains."""
        routes = yield from self.build_virtual_host(message, path)
        self.table.virtual_hosts.append(routes)
        file_domains(self.table, routes, message.domains, path, self.errors)

    def build_virtual_host(self, message: Any, path: str) -> Generator[None, None, HostRoutes]:
        host = VirtualHost(message.name)
        host.require_tls = message.require_tls
        host.include_request_attempt_count = message.include_request_attempt_count
        host.include_attempt_count_in_response = message.include_attempt_count_in_response
        host.include_is_timeout_retry_header = message.include_is_timeout_retry_header
        host.metadata = metadata_dict(message.metadata)
        host.rate_limits = build_rate_limits(message.rate_limits, path, self.context)
        self.add_virtual_clusters(host, message.virtual_clusters, path)
        matches = yield from _HostBuilder(self, message, path, host).build()
        subjects = yield from assign_subjects(matches)
        patterns = yield from gather_paths(matches)
        steps = yield from make_steps(matches)
        return HostRoutes(host, matches, steps, subjects, patterns)

    def add_virtual_clusters(self, host: VirtualHost, messages: Any, path: str) -> None:
        """Those that are configured, and `other` for the requests that none of them holds for."""
        for i in range(len(messages)):
            headers = build_header_matchers(
                messages[i].headers, item(path, "virtual_clusters", i), "headers", self.errors
            )
            host.virtual_clusters.append(self.virtual_cluster(host, messages[i].name, headers))
        if host.virtual_clusters:
            host.virtual_clusters.append(self.virtual_cluster(host, "", []))

    def virtual_cluster(self, host: VirtualHost, name: str, headers: list[HeaderMatcher]) -> VirtualCluster:
        stats = self.context.scope(f"vhost.{host.name}.vcluster.{name or 'other'}.", RequestStats)
        return VirtualCluster(name, headers, stats)


def file_domains(table: RouteTable, routes: HostRoutes, domains: Any, path: str, errors: ConfigErrors) -> None:
    """These routes are for those domains, unless others are."""
    for i in range(len(domains)):
        domain: bytes = domains[i].lower().encode()
        if not table.file(domain, routes):
            reason = "Only a single wildcard domain is permitted"
            if domain != b"*":
                reason = f"Only unique values for domains are permitted. Duplicate entry of domain {domain.decode()}"
            errors.add(item(path, "domains", i), reason)


def assign_subjects(matches: list[RouteMatch]) -> Generator[None, None, list[Subject]]:
    """Give every header that the conditions look at a slot, so that a request looks it up once."""
    by_name: dict[bytes, list[HeaderMatcher]] = {}
    for i in range(len(matches)):
        for matcher in matches[i].headers:
            alike = by_name.setdefault(matcher.name, [])
            matcher.slot = alike[0].slot if alike else len(by_name) - 1
            alike.append(matcher)
        if i % LOOKED_AT_A_STEP == LOOKED_AT_A_STEP - 1:
            yield
    subjects: list[Subject] = []
    for name, matchers in by_name.items():
        subject = Subject(name)
        subject.patterns = _gather(matchers)
        subjects.append(subject)
        if len(matchers) > _ROUTES_A_STEP:
            yield
    return subjects


def _gather(matchers: list[HeaderMatcher]) -> RegexSet | None:
    """One set of the expressions among the matchers of a header, when there are several."""
    patterns: dict[str, int] = {}
    for matcher in matchers:
        if isinstance(matcher.string, RegexMatcher):
            patterns.setdefault(matcher.string.regex.pattern, len(patterns))
    found = make_set(list(patterns))
    if found is not None:
        for matcher in matchers:
            if isinstance(matcher.string, RegexMatcher):
                matcher.pattern = patterns[matcher.string.regex.pattern]
    return found


def gather_paths(matches: list[RouteMatch]) -> Generator[None, None, RegexSet | None]:
    """One set of the expressions (and templates) for the path, when there are several."""
    patterns: dict[str, int] = {}
    with_pattern: list[RouteMatch] = []
    for i in range(len(matches)):
        pattern = matches[i].path_matcher.pattern
        if pattern is not None:
            patterns.setdefault(pattern, len(patterns))
            with_pattern.append(matches[i])
        if i % LOOKED_AT_A_STEP == LOOKED_AT_A_STEP - 1:
            yield
    found = make_set(list(patterns))
    if found is not None:
        for match in with_pattern:
            match.path_pattern = patterns[match.path_matcher.pattern or ""]
    return found


def make_set(patterns: list[str]) -> RegexSet | None:
    """None when there are not several, or they are too much for one automaton: then each is tried by itself."""
    try:
        return RegexSet(patterns) if len(patterns) > 1 else None
    except RegexError:
        return None


class _HostBuilder:
    """Builds the routes of one virtual host."""

    def __init__(self, owner: _TableBuilder, message: Any, path: str, host: VirtualHost) -> None:
        self.owner = owner
        self.message = message
        self.path = path
        self.host = host
        self.context = owner.context
        self.errors = owner.errors
        self.level = Level(message, path, owner.context, owner.overrides)
        self.cors = build_legacy_cors(message, path, owner.context, owner.overrides)
        self.mirrors = build_mirrors(message.request_mirror_policies, path, owner.context, owner.table.referenced)
        self.retry: RetryPolicy | None = None
        if message.HasField("retry_policy"):
            self.retry = build_retry_policy(message.retry_policy, child(path, "retry_policy"), owner.errors)

    def build(self) -> Generator[None, None, list[RouteMatch]]:
        matches: list[RouteMatch] = []
        for i in range(len(self.message.routes)):
            if i % _ROUTES_A_STEP == _ROUTES_A_STEP - 1:
                yield
            match = self.build_match(self.message.routes[i], item(self.path, "routes", i), i)
            if match is not None:
                matches.append(match)
        return matches

    def build_match(self, message: Any, path: str, order: int) -> RouteMatch | None:
        matcher = build_path_matcher(message.match, child(path, "match"), self.errors)
        kind: str | None = message.WhichOneof("action")
        if kind not in _KINDS:
            self.errors.add(
                child(path, kind) if kind else path, "this action is not supported" if kind else "an action is required"
            )
            return None
        if matcher is None:
            return None
        route = self.build_route(message, kind, matcher, path)
        match = RouteMatch(matcher, route, order)
        build_conditions(match, message.match, child(path, "match"), self.context)
        levels = [self.owner.level, self.level, Level(message, path, self.context, self.owner.overrides)]
        if kind == "route":
            self.build_cluster(match, message.route, levels, child(path, "route"))
        build_own_metadata(match, route.metadata, path, self.errors)
        self.seal(route, levels)
        return match

    def build_route(self, message: Any, kind: str, matcher: PathMatcher, path: str) -> Route:
        route = Route(message.name, self.host, _KINDS[kind])
        route.metadata = metadata_dict(message.metadata)
        if message.stat_prefix:
            prefix = f"vhost.{self.host.name}.route.{message.stat_prefix}."
            route.stats = self.context.scope(prefix, RequestStats)
        route.request_body_buffer_limit = body_buffer_limit(message, self.message)
        if message.HasField("tracing"):
            route.tracing = build_route_tracing(message.tracing, child(path, "tracing"), self.context)
        if message.HasField("decorator"):
            route.decorator = build_decorator(message.decorator)
        at = child(path, kind)
        if kind == "route":
            route.retry = self.retry
            route.hedges = self.message.hedge_policy.hedge_on_per_try_timeout
            mirrors = build_mirrors(
                message.route.request_mirror_policies, at, self.context, self.owner.table.referenced
            )
            route.mirrors = mirrors or self.mirrors or self.owner.mirrors
            build_forwarding(route, message.route, matcher, at, self.context)
            own = build_legacy_cors(message.route, at, self.context, self.owner.overrides)
            route.cors = [policy for policy in (own, self.cors) if policy is not None]
        elif kind == "redirect":
            route.redirect_action = build_redirect(message.redirect, matcher, at, self.errors)
        elif kind == "direct_response":
            limit_bytes = self.owner.table.max_direct_response_body_size_bytes
            build_direct_response(route, message.direct_response, at, limit_bytes, self.errors)
        return route

    def build_cluster(self, match: RouteMatch, message: Any, levels: list[Level], path: str) -> None:
        kind: str | None = message.WhichOneof("cluster_specifier")
        route = match.route
        if kind == "cluster":
            route.cluster_name = message.cluster
            self.owner.table.referenced.append((message.cluster, child(path, "cluster")))
        elif kind == "cluster_header":
            route.cluster_header = header_name(message.cluster_header)
        elif kind == "weighted_clusters":
            at = child(path, kind)
            match.weighted = self.build_weighted(route, message.weighted_clusters, levels, at)
        elif kind is None:
            self.errors.add(path, "a cluster specifier is required")

    def build_weighted(self, route: Route, message: Any, levels: list[Level], path: str) -> WeightedRoutes | None:
        routes = [
            self.build_weight(route, message.clusters[i], levels, item(path, "clusters", i))
            for i in range(len(message.clusters))
        ]
        total = sum([each.weight for each in routes])
        if total == 0:
            self.errors.add(path, "Sum of weights in the weighted_cluster must be greater than 0.")
        elif total > _UINT32_MAX:
            self.errors.add(path, f"the sum of weights exceeds {_UINT32_MAX}")
        weighted = WeightedRoutes(routes, header_name(message.header_name))
        if message.use_hash_policy.value:
            weighted.hash_policy = route.hash_policy
        if message.runtime_key_prefix:
            prefix: str = message.runtime_key_prefix
            runtime = self.context.runtime
            weighted.runtime_weights = [
                runtime.integer(f"{prefix}.{each.cluster_name}", each.weight) for each in routes
            ]
        return weighted

    def build_weight(self, base: Route, message: Any, levels: list[Level], path: str) -> Route:
        route = base.for_weighted_cluster()
        if bool(message.name) == bool(message.cluster_header):
            self.errors.add(path, "exactly one of name and cluster_header must be set")
        route.cluster_name = message.name
        if message.cluster_header:
            route.cluster_header = header_name(message.cluster_header)
        else:
            self.owner.table.referenced.append((message.name, child(path, "name")))
        route.weight = message.weight.value
        route.metadata_match = build_criteria(message.metadata_match, base.metadata_match)
        route.weighted_host_rewrite = message.host_rewrite_literal.encode()
        own = Level(message, path, self.context, self.owner.overrides)
        self.seal(route, levels, own)
        return route

    def seal(self, route: Route, levels: list[Level], weighted: Level | None = None) -> None:
        """Merge the levels, global first, into a route."""
        route.filter_configs = {}
        route.all_filter_configs = {}
        for level in levels if weighted is None else [*levels, weighted]:
            route.filter_configs.update(level.filters)
            for name, config in level.filters.items():
                route.all_filter_configs.setdefault(name, []).append(config)
        # Later operations win: by default the global ones come last.
        ordered = levels if self.owner.message.most_specific_header_mutations_wins else levels[::-1]
        route.request_operations = [level.request for level in ordered if level.request is not None]
        route.response_operations = [level.response for level in ordered if level.response is not None]
        if weighted is not None:
            route.weighted_operations = weighted.request
            if weighted.response is not None:
                route.response_operations.insert(0, weighted.response)
        route.seal()


def header_name(text: str) -> bytes:
    """A header's name as our header blocks spell it."""
    name = text.lower().encode()
    return b":authority" if name == b"host" else name


def body_buffer_limit(route: Any, virtual_host: Any) -> int | None:
    """`request_body_buffer_limit` of the route, else of its virtual host; else its deprecated predecessor of either."""
    for field in ("request_body_buffer_limit", "per_request_buffer_limit_bytes"):
        for message in (route, virtual_host):
            if message.HasField(field):
                return int(getattr(message, field).value)
    return None
