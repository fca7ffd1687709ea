"""What permissions and principals are made of: conditions on an access, compiled into small objects.

Whatever the condition is about has its matcher elsewhere (route/, config/string_matcher.py, tls/verify.py); here it is
only asked.
"""

from __future__ import annotations

from typing import Any

from meshproxy.config.string_matcher import StringMatcher
from meshproxy.matching.cel.build import Expression
from meshproxy.rbac.access import DESTINATION, Access, principal_names
from meshproxy.route.header_matcher import HeaderMatcher
from meshproxy.route.metadata_matcher import FilterStateMatcher, MetadataMatcher
from meshproxy.route.path_template import PathTemplate
from meshproxy.tls.verify import SanMatcher


class Condition:
    """One condition; the base holds for everybody (`any`)."""

    def holds(self, access: Access) -> bool:
        return True


class AllOf(Condition):
    def __init__(self, conditions: list[Condition]) -> None:
        self.conditions = conditions

    def holds(self, access: Access) -> bool:
        return all(condition.holds(access) for condition in self.conditions)


class AnyOf(Condition):
    def __init__(self, conditions: list[Condition]) -> None:
        self.conditions = conditions

    def holds(self, access: Access) -> bool:
        return any(condition.holds(access) for condition in self.conditions)


class Not(Condition):
    def __init__(self, condition: Condition) -> None:
        self.condition = condition

    def holds(self, access: Access) -> bool:
        return not self.condition.holds(access)


class HeaderCondition(Condition):
    def __init__(self, matcher: HeaderMatcher) -> None:
        self.matcher = matcher

    def holds(self, access: Access) -> bool:
        return self.matcher.matches(access.headers)


class PathCondition(Condition):
    """On the path without its query and fragment. What has no path, a CONNECT, does not match."""

    def __init__(self, string: StringMatcher) -> None:
        self.string = string

    def holds(self, access: Access) -> bool:
        path = access.path()
        return path is not None and self.string.match(path)


class TemplateCondition(Condition):
    def __init__(self, template: PathTemplate) -> None:
        self.template = template

    def holds(self, access: Access) -> bool:
        path = access.path()
        return path is not None and self.template.matches(path)


class IpCondition(Condition):
    """One of the addresses of `access` lies in a network. A Unix socket's lies in none."""

    def __init__(self, which: int, version: int, network: int, mask: int) -> None:
        self.which = which
        self.version = version
        self.network = network
        self.mask = mask

    def holds(self, access: Access) -> bool:
        ip = access.ip(self.which)
        return ip.version == self.version and ip.number & self.mask == self.network


class PortCondition(Condition):
    """The port that the connection was bound for lies in [start, end)."""

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end

    def holds(self, access: Access) -> bool:
        return access.ip(DESTINATION).version != 0 and self.start <= access.connection.local.port < self.end


class ServerNameCondition(Condition):
    """On the server name that the client asked for (SNI); empty where it asked for none, or nobody looked."""

    def __init__(self, string: StringMatcher) -> None:
        self.string = string

    def holds(self, access: Access) -> bool:
        return self.string.match(access.connection.requested_server_name.encode("latin-1", "replace"))


class MetadataCondition(Condition):
    """On dynamic metadata."""

    def __init__(self, matcher: MetadataMatcher) -> None:
        self.matcher = matcher

    def holds(self, access: Access) -> bool:
        return self.matcher.matches(access.info.dynamic_metadata)


class RouteMetadataCondition(Condition):
    """On the metadata of the route. What has no route does not match, inverted or not."""

    def __init__(self, matcher: MetadataMatcher) -> None:
        self.matcher = matcher

    def holds(self, access: Access) -> bool:
        route = access.info.route
        return route is not None and self.matcher.matches(route.metadata)


class FilterStateCondition(Condition):
    def __init__(self, matcher: FilterStateMatcher) -> None:
        self.matcher = matcher

    def holds(self, access: Access) -> bool:
        return self.matcher.matches(access.info)


class ExpressionCondition(Condition):
    """Of the Common Expression Language. What has no value does not hold."""

    def __init__(self, expression: Expression) -> None:
        self.expression = expression

    def holds(self, access: Access) -> bool:
        return self.expression.holds(access)


class Authenticated(Condition):
    """The connection is TLS, and where there is a `string`, a name of the peer's matches it.

    Whether the peer's certificate was verified is for the TLS context to say, as in Envoy: one that asks for none lets
    everybody be "authenticated".
    """

    def __init__(self, string: StringMatcher | None) -> None:
        self.string = string

    def holds(self, access: Access) -> bool:
        if access.connection.tls is None:
            return False
        string = self.string
        if string is None:
            return True
        return any(string.match(name) for name in principal_names(access.connection))


class MtlsAuthenticated(Condition):
    """The peer's certificate was validated, and where there is a `san`, one of its alternative names matches."""

    def __init__(self, san: SanMatcher | None) -> None:
        self.san = san

    def holds(self, access: Access) -> bool:
        tls: Any = access.connection.tls
        if tls is None or not tls.peer_certificate_validated:
            return False
        san = self.san
        if san is None:
            return True
        peer = tls.peer
        return peer is not None and any(san.match(kind, text) for kind, text in peer.alt_names())
