"""What takes the place of a refused document that guards something: who cannot be told what is allowed allows nothing.

A refused version of a document that was good before leaves that in force; this is for one that was never good, or not
since the pilot began: else a mistake, and a pilot that starts anew, would open what somebody meant to close.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

from meshproxy.pilot.documents.authorization_policy import DRY_RUN, AuthorizationPolicy, AuthorizationRule
from meshproxy.pilot.documents.common import MatchLabels
from meshproxy.pilot.documents.security import MutualTLS, PeerAuthentication

_POLICY: Final = "AuthorizationPolicy"
_PEERS: Final = "PeerAuthentication"


def closed_spec(kind: str, text: str) -> Any:
    """For a refused document; None for kinds that guard nothing, and policies that would refuse nobody. Its selector
    counts where it can be read; where not, it is for all that it could have been meant for."""
    if kind == _PEERS:
        return PeerAuthentication(selector=_selector(_mappings(text)[0]), mtls=MutualTLS(mode="STRICT"))
    if kind != _POLICY:
        return None
    spec, metadata = _mappings(text)
    annotations = metadata.get("annotations")
    if spec.get("action") == "AUDIT" or (isinstance(annotations, dict) and annotations.get(DRY_RUN) == "true"):
        return None
    return AuthorizationPolicy(selector=_selector(spec), action="DENY", rules=(AuthorizationRule(),))


def _mappings(text: str) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """`spec` and `metadata`, as far as they are there."""
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}, {}
    parts = [document.get(name) if isinstance(document, dict) else None for name in ("spec", "metadata")]
    spec, metadata = (part if isinstance(part, dict) else {} for part in parts)
    return spec, metadata


def _selector(spec: dict[Any, Any]) -> MatchLabels | None:
    selector = spec.get("selector")
    labels = selector.get("matchLabels") if isinstance(selector, dict) and selector.keys() == {"matchLabels"} else None
    if not isinstance(labels, dict) or not all(isinstance(one, str) for pair in labels.items() for one in pair):
        return None
    return MatchLabels(match_labels=tuple(sorted(labels.items())))
