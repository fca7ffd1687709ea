"""Following an upstream's redirect: the request becomes the one that its Location asks for, or stays as it was."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.route.internal_redirect import InternalRedirectPolicy, RedirectHistory
from meshproxy.route.route import Route

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream

# An absolute URL as Envoy reads it: letters, an authority that may name a user, what comes after it up to the fragment.
_URL: Final = re.compile(
    rb"([A-Za-z]+)://"
    rb"(?:[\w.!~*'()%;:&=+$,-]*@)?"
    rb"((?:\[[0-9A-Fa-f:.]+(?:%[\w.~%-]+)?\]|[\w.-]+)(?::[0-9]{1,5})?)"
    rb"((?:[/?][!-~]*)?)",
    re.ASCII,
)
_SEE_OTHER: Final = 303


def redirect_request(stream: Stream, route: Route, policy: InternalRedirectPolicy, response: HeaderMap) -> bool:
    """Turn the stream's request into the redirected one, for `Stream.recreate`.

    False when the policy forbids it, which is counted: the redirect goes downstream then. As in Envoy, the stream's
    route may be the target's all the same.
    """
    location = response.joined(b"location")
    if location is None:
        return False
    stats = stream.config.stats
    url = parse_location(location)
    if url is None:
        stats.passthrough_internal_redirect_bad_location += 1
        return False
    scheme, authority, path = url
    headers = stream.request_headers
    secure = stream.info.connection.tls is not None and headers.get(b":scheme") != b"http"
    if secure != (scheme != b"http") and not policy.allows_cross_scheme:
        stats.passthrough_internal_redirect_unsafe_scheme += 1
        return False
    history = stream.redirects
    if history is None:
        history = stream.redirects = RedirectHistory()
    if history.count >= policy.max_redirects:
        stats.passthrough_internal_redirect_too_many_redirects += 1
        return False
    before = headers.fields.copy()
    _copy_headers(policy, response, headers)
    original = b"".join(
        (b"https://" if secure else b"http://", headers.get(b":authority") or b"", headers.get(b":path") or b"")
    )
    headers.set(b":scheme", scheme)
    headers.set(b":authority", authority)
    headers.set(b":path", path)
    if not _is_allowed(stream, route, policy, history, secure, scheme != b"http"):
        headers.fields = before
        return False
    history.count += 1
    headers.set(b"x-envoy-original-url", original)
    return True


def becomes_get(status: int, headers: HeaderMap) -> bool:
    """Whether the redirected request is a GET without a body (RFC 9110 section 15.4.4): then its head becomes one."""
    if status != _SEE_OTHER or headers.get(b":method") in (b"GET", b"HEAD"):
        return False
    headers.set(b":method", b"GET")
    headers.remove(b"content-length")
    return True


def parse_location(location: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Scheme, authority and path with query; None when it is no absolute URL."""
    match = _URL.fullmatch(location)
    if match is None:
        return None
    authority = match[2]
    port = b"" if authority.endswith(b"]") else authority.rpartition(b":")[2]
    if port.isdigit() and port != authority and int(port) > 0xFFFF:
        return None
    return match[1].lower(), authority, match[3].partition(b"#")[0] or b"/"


def _copy_headers(policy: InternalRedirectPolicy, response: HeaderMap, headers: HeaderMap) -> None:
    for name in policy.copied_headers:
        headers.remove(name)
        for value in response.get_all(name):
            headers.add(name, value)


def _is_allowed(
    stream: Stream,
    route: Route,
    policy: InternalRedirectPolicy,
    history: RedirectHistory,
    secure: bool,
    target_secure: bool,
) -> bool:
    """There is a route for the redirected request, and every predicate takes it."""
    stats = stream.config.stats
    target = _pick_target(stream)
    if target is None:
        stats.passthrough_internal_redirect_no_route += 1
        return False
    for predicate in policy.predicates:
        if not predicate.accepts(route.name, target.name, history, secure, target_secure):
            stats.passthrough_internal_redirect_predicate += 1
            return False
    return True


def _pick_target(stream: Stream) -> Route | None:
    """The stream's route by its new head. Logs tell the new route and cluster beside the old host, as in Envoy."""
    info = stream.info
    attempted = info.upstream
    info.route = None
    info.upstream = None
    stream.clear_route_cache()
    target = stream.current_route()
    if attempted is not None:
        picked = stream.info.upstream
        attempted.cluster = None if picked is None else picked.cluster
        info.upstream = attempted
    return target
