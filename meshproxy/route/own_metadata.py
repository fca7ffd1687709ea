"""What a route asks of us in its metadata, which an Envoy leaves alone: the configuration stays valid for both."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.config.errors import ConfigErrors, child
from meshproxy.route.match import RouteMatch

NAMESPACE: Final = "meshproxy"
_FIELD: Final = "weighted_clusters"
_RENDEZVOUS: Final = "rendezvous"


def build_own_metadata(match: RouteMatch, metadata: dict[str, Any], path: str, errors: ConfigErrors) -> None:
    """Honour what the route at `path` asks for in the metadata of our namespace; everything else there is an error."""
    asked = metadata.get(NAMESPACE)
    if asked is None:
        return
    where = f"{child(path, 'metadata')}.filter_metadata[{NAMESPACE}]"
    for name, value in asked.items():
        reason = _why_not(match, name, value)
        if reason:
            errors.add(f"{where}.{name}", reason)
        elif match.weighted is not None:
            match.weighted.use_rendezvous()


def _why_not(match: RouteMatch, name: str, value: object) -> str:
    if name != _FIELD:
        return f"unknown field; {_FIELD} is what a route may ask for here"
    if value != _RENDEZVOUS:
        return f"must be {_RENDEZVOUS}, not {value!r}"
    weighted = match.weighted
    if weighted is None:
        return "the route has no weighted_clusters"
    if weighted.hash_policy is None and not weighted.header_name:
        return "needs a number of the user's: use_hash_policy with a hash_policy, or header_name"
    return ""
