"""What rules (envoy.filters.http.rbac, envoy.filters.network.rbac) say of a request that nobody sent.

They are asked as they would be, with what the question tells: no filter before them has written metadata.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.filters.http.rbac import RbacFilter
from meshproxy.filters.network.rbac import NetworkRules, access_of
from meshproxy.http.chain import FilterChain
from meshproxy.http.network_filter import ConnectionFilter
from meshproxy.observe.stream_info import ConnectionInfo, StreamInfo
from meshproxy.rbac.access import Access
from meshproxy.rbac.engine import Engine, Verdict
from meshproxy.route.route import Route
from meshproxy.tls.x509 import DerError

_UNKNOWN: Final = "goes by the names in the client's certificate, of which the question does not tell"


def ask_http(
    chain: FilterChain, route: Route | None, shown: list[dict[str, Any]], headers: HeaderMap, info: StreamInfo
) -> str:
    """Add to `shown`, which has the filters of the chain, what their rules say; the details of the first denial."""
    for http_filter, plain in zip(chain.filters, shown, strict=False):
        if not isinstance(http_filter, RbacFilter) or not plain["runs"]:
            continue
        engine = http_filter.rules_for(route).enforced
        if engine is None:
            continue
        verdict = _ask(engine, Access(headers, info))
        said = _UNKNOWN if verdict is None else _words(verdict)
        plain["reason"] = f"{plain['reason']}; {said}" if "reason" in plain else said
        if verdict is not None and not verdict.allowed:
            return verdict.details()
    return ""


def ask_network(filters: Iterable[ConnectionFilter], info: ConnectionInfo) -> bool:
    """Whether a connection may come in, as far as is known."""
    for each in filters:
        if isinstance(each, NetworkRules) and each.enforced is not None:
            verdict = _ask(each.enforced, access_of(info))
            if verdict is not None and not verdict.allowed:
                return False
    return True


def _ask(engine: Engine, access: Access) -> Verdict | None:
    """None where the answer goes by a certificate that is not known."""
    try:
        return engine.evaluate(access)
    except DerError:
        return None


def _words(verdict: Verdict) -> str:
    by = f"by the policy {verdict.policy!r}" if verdict.policy else "since no policy matches"
    return f"{verdict.result} {by}"
