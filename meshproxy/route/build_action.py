"""From a Route message's action to the attributes of its compiled Route."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import json_format

from meshproxy.config.context import BuildContext
from meshproxy.config.datasource import load_data_source
from meshproxy.config.errors import ConfigErrors, child
from meshproxy.config.regex import build_substitution
from meshproxy.config.typed_struct import unpack_any
from meshproxy.config.values import milliseconds, milliseconds_or
from meshproxy.observe.formatter import FormatError, Formatter, JsonFormatter, parse_format
from meshproxy.route.grpc_limit import build_request_limit, build_stream_limit
from meshproxy.route.hash_policy import build_hash_policy
from meshproxy.route.internal_redirect import build_internal_redirect
from meshproxy.route.metadata_criteria import build_criteria
from meshproxy.route.path_matcher import PathMatcher, PathTemplateMatcher
from meshproxy.route.path_template import TemplateError, compile_rewrite
from meshproxy.route.rate_limit import build_rate_limits
from meshproxy.route.redirect import Redirect
from meshproxy.route.retry_policy import build_retry_policy
from meshproxy.route.rewrite import (
    FormattedHostRewrite,
    FormattedPathRewrite,
    HeaderHostRewrite,
    HostRewrite,
    LiteralHostRewrite,
    PathRegexHostRewrite,
    PathRewrite,
    PrefixRewrite,
    RegexPathRewrite,
    TemplatePathRewrite,
    WholePathRewrite,
)
from meshproxy.route.route import DEFAULT_TIMEOUT_MS, Route
from meshproxy.route.upgrade import build_upgrades

_URI_TEMPLATE_REWRITE: Final = "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig"

_NOT_FOUND_STATUS: Final = (503, 404, 500)  # ClusterNotFoundResponseCode by its numbers
_REDIRECT_STATUS: Final = (301, 302, 303, 307, 308)  # RedirectResponseCode by its numbers


def build_forwarding(
    route: Route, message: Any, matcher: PathMatcher, path: str, context: BuildContext
) -> None:
    """Fill in what a RouteAction says, except which cluster."""
    errors = context.errors
    route.cluster_not_found_status = _NOT_FOUND_STATUS[message.cluster_not_found_response_code]
    route.priority = message.priority
    _build_timeouts(route, message)
    route.append_x_forwarded_host = message.append_x_forwarded_host
    route.host_rewrite = _build_host_rewrite(route, message, path, errors)
    route.path_rewrite = _build_path_rewrite(message, matcher, path, errors)
    route.hash_policy = build_hash_policy(message.hash_policy, path, "hash_policy", errors)
    route.upgrades = build_upgrades(message, path, errors)
    route.metadata_match = build_criteria(message.metadata_match, None)
    if message.HasField("hedge_policy"):
        route.hedges = message.hedge_policy.hedge_on_per_try_timeout
    route.internal_redirect = build_internal_redirect(message, path, errors)
    route.rate_limits = build_rate_limits(message.rate_limits, path, context)
    route.include_vh_rate_limits = message.include_vh_rate_limits.value
    if message.HasField("retry_policy"):
        route.retry = build_retry_policy(message.retry_policy, child(path, "retry_policy"), errors)


def _build_timeouts(route: Route, message: Any) -> None:
    route.timeout_ms = milliseconds_or(message, "timeout", DEFAULT_TIMEOUT_MS)
    if message.HasField("idle_timeout"):
        route.idle_timeout_ms = milliseconds(message.idle_timeout)
    if message.HasField("flush_timeout"):
        route.flush_timeout_ms = milliseconds(message.flush_timeout)
    if message.HasField("max_stream_duration"):
        route.timeout_ms = 0  # the limit that takes its place, even when it is empty
        duration = message.max_stream_duration
        if duration.HasField("max_stream_duration"):
            route.max_stream_duration_ms = milliseconds(duration.max_stream_duration)
        route.grpc_stream_limit = build_stream_limit(duration)
        route.limits_stream = True
    else:
        route.grpc_request_limit = build_request_limit(message)


def _build_host_rewrite(route: Route, message: Any, path: str, errors: ConfigErrors) -> HostRewrite | None:
    kind: str | None = message.WhichOneof("host_rewrite_specifier")
    if kind is None:
        return None
    if kind == "auto_host_rewrite":
        route.auto_host_rewrite = message.auto_host_rewrite.value
        return None
    if kind == "host_rewrite_path_regex":
        substitution = build_substitution(message.host_rewrite_path_regex, child(path, kind), errors)
        return None if substitution is None else PathRegexHostRewrite(substitution)
    if kind == "host_rewrite":
        formatter = _parse(message.host_rewrite, b"-", child(path, kind), errors)
        return None if formatter is None else FormattedHostRewrite(formatter)
    text: str = getattr(message, kind)
    if not text:
        return None
    if kind == "host_rewrite_header":
        name = text.lower().encode()
        return HeaderHostRewrite(b":authority" if name == b"host" else name)
    return LiteralHostRewrite(text.encode())


def _build_path_rewrite(message: Any, matcher: PathMatcher, path: str, errors: ConfigErrors) -> PathRewrite | None:
    fields = ("prefix_rewrite", "regex_rewrite", "path_rewrite_policy", "path_rewrite")
    present = [field.name for field, _ in message.ListFields() if field.name in fields]
    if len(present) > 1:
        errors.add(path, f"only one of {', '.join(fields)} may be set, not {' and '.join(present)}")
    if not present:
        return None
    kind = present[0]
    if kind == "prefix_rewrite":
        return prefix_rewrite(message.prefix_rewrite, matcher, child(path, kind), errors)
    if kind == "regex_rewrite":
        return regex_rewrite(message.regex_rewrite, child(path, kind), errors)
    if kind == "path_rewrite":
        formatter = _parse(message.path_rewrite, b"", child(path, kind), errors)
        return None if formatter is None else FormattedPathRewrite(formatter)
    return _template_rewrite(message.path_rewrite_policy, matcher, child(path, kind), errors)


def prefix_rewrite(text: str, matcher: PathMatcher, path: str, errors: ConfigErrors) -> PathRewrite | None:
    """A prefix_rewrite for what `matcher` matches; "" rewrites nothing."""
    if not text:
        return None
    if isinstance(matcher, PathTemplateMatcher):
        errors.add(path, "must not stand beside path_match_policy")
    if matcher.rewrite_length < 0:
        return WholePathRewrite(text.encode())
    return PrefixRewrite(matcher.rewrite_length, text.encode())


def regex_rewrite(message: Any, path: str, errors: ConfigErrors) -> PathRewrite | None:
    substitution = build_substitution(message, path, errors)
    return None if substitution is None else RegexPathRewrite(substitution)


def _template_rewrite(extension: Any, matcher: PathMatcher, path: str, errors: ConfigErrors) -> PathRewrite | None:
    at = child(path, "typed_config")
    message: Any = unpack_any(extension.typed_config, at, errors)
    if message is None:
        return None
    if message.DESCRIPTOR.full_name != _URI_TEMPLATE_REWRITE:
        errors.add(at, f"{message.DESCRIPTOR.full_name} is not supported as a path rewrite policy")
        return None
    if not isinstance(matcher, PathTemplateMatcher):
        errors.add(path, "a path_template_rewrite needs a path_match_policy with a path template")
        return None
    try:
        target = compile_rewrite(message.path_template_rewrite, matcher.template)
    except TemplateError as error:
        errors.add(child(at, "path_template_rewrite"), str(error))
        return None
    return TemplatePathRewrite(matcher.template, target)


def build_redirect(message: Any, matcher: PathMatcher, path: str, errors: ConfigErrors) -> Redirect:
    """Compile an `envoy.config.route.v3.RedirectAction`."""
    redirect = Redirect(_REDIRECT_STATUS[message.response_code])
    redirect.scheme = b"https" if message.https_redirect else message.scheme_redirect.encode()
    redirect.host = message.host_redirect.encode()
    redirect.port = b":%d" % message.port_redirect if message.port_redirect else b""
    redirect.strip_query = message.strip_query
    kind: str | None = message.WhichOneof("path_rewrite_specifier")
    if kind == "path_redirect":
        redirect.path = message.path_redirect.encode()
    elif kind == "prefix_rewrite":
        redirect.path_rewrite = prefix_rewrite(message.prefix_rewrite, matcher, child(path, kind), errors)
    elif kind == "regex_rewrite":
        redirect.path_rewrite = regex_rewrite(message.regex_rewrite, child(path, kind), errors)
    return redirect


def build_direct_response(route: Route, message: Any, path: str, limit_bytes: int, errors: ConfigErrors) -> None:
    """Fill in what a DirectResponseAction says. A body over the table's limit is an error; 0 is no limit."""
    route.direct_status = message.status
    if message.HasField("body"):
        route.direct_body = load_data_source(message.body, child(path, "body"), errors, limit_bytes or None) or b""
    if message.HasField("body_format"):
        _build_body_format(route, message.body_format, child(path, "body_format"), errors)


def _build_body_format(route: Route, message: Any, path: str, errors: ConfigErrors) -> None:
    if message.formatters:
        errors.add(child(path, "formatters"), "formatter extensions are not supported")
    kind: str | None = message.WhichOneof("format")
    unset = b"" if message.omit_empty_values else b"-"
    try:
        if kind == "json_format":
            tree = json_format.MessageToDict(message.json_format)
            route.direct_body_json = JsonFormatter(tree, omit_empty=message.omit_empty_values)
        elif kind == "text_format_source":
            text = load_data_source(message.text_format_source, child(path, kind), errors)
            route.direct_body_format = None if text is None else parse_format(text.decode(), unset)
        else:
            route.direct_body_format = parse_format(message.text_format, unset)
    except FormatError as error:
        errors.add(child(path, kind or "format"), str(error))
    default = b"application/json" if kind == "json_format" else b""
    route.direct_content_type = message.content_type.encode() or default


def _parse(text: str, unset: bytes, path: str, errors: ConfigErrors) -> Formatter | None:
    try:
        return parse_format(text, unset)
    except FormatError as error:
        errors.add(path, str(error))
        return None


def metadata_dict(message: Any) -> dict[str, Any]:
    """The `filter_metadata` of a `core.v3.Metadata` as plain data."""
    tree = json_format.MessageToDict(message, preserving_proto_field_name=True)
    found: dict[str, Any] = tree.get("filter_metadata", {})
    return found
