"""`internal_redirect_policy`: which redirects of an upstream the proxy follows by itself."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.typed_struct import unpack_any
from meshproxy.route.header_ops import is_protected

_STATUSES: Final = frozenset((301, 302, 303, 307, 308))  # others may be listed, and do nothing
_DEFAULT_STATUSES: Final = frozenset((302,))
_PREDICATES: Final = "envoy.extensions.internal_redirect."
_HANDLE: Final = 1  # RouteAction.InternalRedirectAction


class RedirectHistory:
    """The internal redirects that a request has been through."""

    def __init__(self) -> None:
        self.count: int = 0
        self.targets: dict[str, set[str]] = {}  # route -> the routes that its redirects led to


class RedirectPredicate:
    """One condition on where a redirect leads."""

    def accepts(self, source: str, target: str, history: RedirectHistory, secure: bool, target_secure: bool) -> bool:
        """`source` and `target` are the names of the routes, `secure` and `target_secure` whether https leads there."""
        raise NotImplementedError


class AllowListedRoutes(RedirectPredicate):
    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def accepts(self, source: str, target: str, history: RedirectHistory, secure: bool, target_secure: bool) -> bool:
        return target in self._names


class PreviousRoutes(RedirectPredicate):
    """From one route no request is led to the same route twice."""

    def accepts(self, source: str, target: str, history: RedirectHistory, secure: bool, target_secure: bool) -> bool:
        targets = history.targets.setdefault(source, set())
        if target in targets:
            return False
        targets.add(target)
        return True


class SafeCrossScheme(RedirectPredicate):
    """No request that came in the clear is led to https."""

    def accepts(self, source: str, target: str, history: RedirectHistory, secure: bool, target_secure: bool) -> bool:
        return secure or not target_secure


class InternalRedirectPolicy:
    """What may be followed, and what the second request takes over of the answer."""

    def __init__(self) -> None:
        self.max_redirects: int = 1
        self.statuses: frozenset[int] = _DEFAULT_STATUSES
        self.allows_cross_scheme: bool = False
        self.copied_headers: list[bytes] = []
        self.predicates: list[RedirectPredicate] = []


def build_internal_redirect(message: Any, path: str, errors: ConfigErrors) -> InternalRedirectPolicy | None:
    """The policy of a RouteAction, or what its deprecated predecessors say; None when nothing is followed."""
    if message.HasField("internal_redirect_policy"):
        return _build_policy(message.internal_redirect_policy, child(path, "internal_redirect_policy"), errors)
    if message.internal_redirect_action != _HANDLE:
        return None
    policy = InternalRedirectPolicy()
    if message.HasField("max_internal_redirects"):
        policy.max_redirects = message.max_internal_redirects.value
    return policy


def _build_policy(message: Any, path: str, errors: ConfigErrors) -> InternalRedirectPolicy:
    policy = InternalRedirectPolicy()
    if message.HasField("max_internal_redirects"):
        policy.max_redirects = message.max_internal_redirects.value
    if message.redirect_response_codes:
        policy.statuses = _STATUSES.intersection(message.redirect_response_codes)
    policy.allows_cross_scheme = message.allow_cross_scheme_redirect
    for index in range(len(message.response_headers_to_copy)):
        name: str = message.response_headers_to_copy[index].lower()
        if is_protected(name):
            errors.add(
                item(path, "response_headers_to_copy", index), ":-prefixed headers or Hosts may not be specified here."
            )
        policy.copied_headers.append(name.encode())
    for index in range(len(message.predicates)):
        predicate = _build_predicate(message.predicates[index], item(path, "predicates", index), errors)
        if predicate is not None:
            policy.predicates.append(predicate)
    return policy


def _build_predicate(extension: Any, path: str, errors: ConfigErrors) -> RedirectPredicate | None:
    message: Any = unpack_any(extension.typed_config, child(path, "typed_config"), errors)
    if message is None:
        return None
    kind: str = message.DESCRIPTOR.full_name
    if kind == _PREDICATES + "allow_listed_routes.v3.AllowListedRoutesConfig":
        return AllowListedRoutes(frozenset(message.allowed_route_names))
    if kind == _PREDICATES + "previous_routes.v3.PreviousRoutesConfig":
        return PreviousRoutes()
    if kind == _PREDICATES + "safe_cross_scheme.v3.SafeCrossSchemeConfig":
        return SafeCrossScheme()
    errors.add(child(path, "typed_config"), f"{kind} is not supported as a predicate")
    return None
