"""From a RouteMatch message to its compiled conditions."""

from __future__ import annotations

from typing import Any

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors, child
from meshproxy.config.regex import compile_regex
from meshproxy.config.typed_struct import unpack_any
from meshproxy.route.header_matcher import build_header_matchers
from meshproxy.route.match import RouteMatch
from meshproxy.route.metadata_matcher import build_filter_state_matchers, build_metadata_matchers
from meshproxy.route.path_matcher import (
    ConnectMatcher,
    PathExact,
    PathIgnoreCase,
    PathMatcher,
    PathPrefix,
    PathRegex,
    PathSeparatedPrefix,
    PathTemplateMatcher,
)
from meshproxy.route.path_template import TemplateError, compile_template
from meshproxy.route.query_matcher import build_query_matchers

_URI_TEMPLATE_MATCH = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"


def build_path_matcher(message: Any, path: str, errors: ConfigErrors) -> PathMatcher | None:
    """The path condition of an `envoy.config.route.v3.RouteMatch`; None with an error when there can be none."""
    kind: str | None = message.WhichOneof("path_specifier")
    if kind is None:
        errors.add(path, "a path specifier is required")
        return None
    if kind == "connect_matcher":
        return ConnectMatcher()
    if kind == "safe_regex":
        regex = compile_regex(message.safe_regex, child(path, kind), errors)
        return None if regex is None else PathRegex(regex)
    if kind == "path_match_policy":
        return _build_template(message.path_match_policy, child(path, kind), errors)
    ignore_case = message.HasField("case_sensitive") and not message.case_sensitive.value
    literal: bytes = getattr(message, kind).encode()
    return _literal(kind, literal.lower() if ignore_case else literal, ignore_case)


def _literal(kind: str, literal: bytes, ignore_case: bool) -> PathMatcher:
    matcher: PathMatcher
    if kind == "prefix":
        matcher = PathPrefix(literal)
    elif kind == "path":
        matcher = PathExact(literal)
    else:
        matcher = PathSeparatedPrefix(literal)
    return PathIgnoreCase(matcher) if ignore_case else matcher


def _build_template(extension: Any, path: str, errors: ConfigErrors) -> PathMatcher | None:
    at = child(path, "typed_config")
    message: Any = unpack_any(extension.typed_config, at, errors)
    if message is None:
        return None
    if message.DESCRIPTOR.full_name != _URI_TEMPLATE_MATCH:
        errors.add(at, f"{message.DESCRIPTOR.full_name} is not supported as a path match policy")
        return None
    try:
        return PathTemplateMatcher(compile_template(message.path_template))
    except TemplateError as error:
        errors.add(child(at, "path_template"), str(error))
        return None


def build_conditions(match: RouteMatch, message: Any, path: str, context: BuildContext) -> None:
    """Fill in every condition but the path's."""
    errors = context.errors
    match.headers = build_header_matchers(message.headers, path, "headers", errors)
    match.query = build_query_matchers(message.query_parameters, path, "query_parameters", errors)
    match.metadata = build_metadata_matchers(message.dynamic_metadata, path, "dynamic_metadata", errors)
    match.filter_state = build_filter_state_matchers(message.filter_state, path, "filter_state", errors)
    match.grpc = message.HasField("grpc")
    if message.HasField("runtime_fraction"):
        match.fraction = context.runtime.fraction(message.runtime_fraction)
    if message.HasField("tls_context"):
        tls = message.tls_context
        match.tls_presented = tls.presented.value if tls.HasField("presented") else None
        match.tls_validated = tls.validated.value if tls.HasField("validated") else None
    match.seal()
