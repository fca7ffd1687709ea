"""Conditions in words: what they ask for, and why a request does not meet one.

Whether it does is asked of the matchers themselves, which serve requests; here are only the words.
"""

from __future__ import annotations

import json
from typing import Any

from meshproxy.codec.grpc import is_grpc
from meshproxy.codec.headers import HeaderMap
from meshproxy.config.runtime import Fraction
from meshproxy.config.string_matcher import (
    ContainsMatcher,
    ExactMatcher,
    IgnoreCaseMatcher,
    PrefixMatcher,
    RegexMatcher,
    StringMatcher,
    SuffixMatcher,
)
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.header_matcher import HeaderMatcher
from meshproxy.route.match import RouteMatch
from meshproxy.route.metadata_matcher import FilterStateMatcher, MetadataMatcher
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
from meshproxy.route.query_matcher import QueryMatcher

UNNAMED = "matcher"  # stands where a kind of condition has no words


def quoted(value: bytes | str) -> str:
    """A value as text in quotation marks."""
    return json.dumps(text(value) if isinstance(value, bytes) else value, ensure_ascii=False)


def text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


# -- paths


def path_words(matcher: PathMatcher, negated: bool = False) -> str:
    """`path begins with /api`, or `path does not begin with /api`."""
    if isinstance(matcher, PathIgnoreCase):
        return path_words(matcher.inner, negated) + ", in whatever case"
    literal = text(matcher.literal)
    if isinstance(matcher, PathPrefix):
        return f"path {'does not begin' if negated else 'begins'} with {literal}"
    if isinstance(matcher, PathExact):
        return f"path is {'not ' if negated else ''}{literal}"
    if isinstance(matcher, PathSeparatedPrefix):
        return f"path is neither {literal} nor below it" if negated else f"path is {literal} or below it"
    if isinstance(matcher, PathRegex):
        return f"path {'does not match' if negated else 'matches'} the regex {matcher.pattern}"
    if isinstance(matcher, PathTemplateMatcher):
        return f"path {'does not fit' if negated else 'fits'} the template {matcher.template.text}"
    if isinstance(matcher, ConnectMatcher):
        return "it is no CONNECT request" if negated else "it is a CONNECT request"
    return f"path {'does not fit' if negated else 'fits'} its {UNNAMED}"


# -- strings, headers, parameters


def string_words(matcher: StringMatcher) -> str:
    """What comes after "must": `be "a"`, `begin with "a"`."""
    if isinstance(matcher, IgnoreCaseMatcher):
        return string_words(matcher.inner) + " in whatever case"
    if isinstance(matcher, ExactMatcher):
        return f"be {quoted(matcher.text)}"
    if isinstance(matcher, PrefixMatcher):
        return f"begin with {quoted(matcher.text)}"
    if isinstance(matcher, SuffixMatcher):
        return f"end with {quoted(matcher.text)}"
    if isinstance(matcher, ContainsMatcher):
        return f"contain {quoted(matcher.text)}"
    if isinstance(matcher, RegexMatcher):
        return f"match the regex {matcher.regex.pattern}"
    return f"fit its {UNNAMED}"


def header_words(matcher: HeaderMatcher) -> str:
    """`header x-user must be "a"`."""
    name = header_name(matcher.name)
    if matcher.present is not None:
        return f"{name} must be {'present' if matcher.present != matcher.invert else 'absent'}"
    if matcher.string is not None:
        asked = string_words(matcher.string)
    else:
        asked = f"be a number from {matcher.start} up to, but not, {matcher.end}"
    absent = " (absent counts as empty)" if matcher.missing_as_empty else ""
    return f"{name} must {'not ' if matcher.invert else ''}{asked}{absent}"


def header_name(name: bytes) -> str:
    return "authority" if name == b":authority" else f"header {text(name)}"


def header_why_not(matcher: HeaderMatcher, headers: HeaderMap) -> str:
    """Why the condition does not hold; "" when it does."""
    if matcher.matches(headers):
        return ""
    name = header_name(matcher.name)
    values = headers.get_all(matcher.name)
    if not values:
        return f"{name} is absent" if not matcher.missing_as_empty else f"{name} is absent; {header_words(matcher)}"
    if matcher.present is not None:
        return f"{name} is present"
    shown = ", ".join(quoted(value) for value in values)
    return f"{name} is {shown}, and {header_words(matcher).removeprefix(name + ' ')}"


def query_words(matcher: QueryMatcher) -> str:
    name = f"query parameter {text(matcher.name)}"
    if matcher.string is None:
        return f"{name} must be {'present' if matcher.present else 'absent'}"
    return f"{name} must {string_words(matcher.string)}"


def query_why_not(matcher: QueryMatcher, parameters: dict[bytes, bytes]) -> str:
    """Why the condition does not hold; "" when it does."""
    if matcher.matches(parameters):
        return ""
    name = f"query parameter {text(matcher.name)}"
    value = parameters.get(matcher.name)
    if value is None:
        return f"{name} is absent"
    if matcher.string is None:
        return f"{name} is present"
    return f"{name} is {quoted(value)}, and must {string_words(matcher.string)}"


# -- the rest of a RouteMatch


def fraction_words(fraction: Fraction) -> str:
    return f"a share of {fraction.numerator} in {fraction.denominator} of all requests"


def metadata_words(matcher: MetadataMatcher) -> str:
    return f"dynamic metadata {'.'.join([matcher.namespace, *matcher.keys])}"


def state_words(matcher: FilterStateMatcher) -> str:
    return f"filter state {matcher.key} must {string_words(matcher.string)}"


def conditions(match: RouteMatch) -> list[str]:
    """All that a route asks of a request, its path first."""
    found = [path_words(match.path_matcher)]
    if match.fraction is not None:
        found.append(fraction_words(match.fraction))
    if match.grpc:
        found.append("it is a gRPC request")
    found += [header_words(matcher) for matcher in match.headers]
    found += [query_words(matcher) for matcher in match.query]
    if match.tls_presented is not None:
        found.append(f"a client certificate is {'presented' if match.tls_presented else 'not presented'}")
    if match.tls_validated is not None:
        found.append(f"a client certificate is {'validated' if match.tls_validated else 'not validated'}")
    for matcher in match.metadata:
        found.append(f"{metadata_words(matcher)} {'does not match' if matcher.invert else 'matches'}")
    return found + [state_words(matcher) for matcher in match.filter_state]


def other_conditions_why_not(
    match: RouteMatch, headers: HeaderMap, info: StreamInfo, random: int, parameters: dict[bytes, bytes]
) -> list[str]:
    """Every condition but the path's that does not hold, in the order in which they are looked at."""
    found: list[str] = []
    if match.fraction is not None and not match.fraction.sample(random):
        found.append(f"it takes {fraction_words(match.fraction)}, and the number drawn ({random}) is not among them")
    if match.grpc and not is_grpc(headers):
        found.append("it is no gRPC request (content-type)")
    found += [header_why_not(matcher, headers) for matcher in match.headers]
    found += [query_why_not(matcher, parameters) for matcher in match.query]
    found += _tls_why_not(match, info)
    for matcher in match.metadata:
        if not matcher.matches(info.dynamic_metadata):
            found.append(f"{metadata_words(matcher)} {'matches' if matcher.invert else 'does not match'}")
    for state in match.filter_state:
        if not state.matches(info):
            found.append(f"{state_words(state)}, and does not")
    return [reason for reason in found if reason]


def _tls_why_not(match: RouteMatch, info: StreamInfo) -> list[str]:
    tls: Any = info.connection.tls
    found = []
    for wanted, given, word in (
        (match.tls_presented, tls is not None and bool(tls.peer_certificate_presented), "presented"),
        (match.tls_validated, tls is not None and bool(tls.peer_certificate_validated), "validated"),
    ):
        if wanted is not None and wanted != given:
            found.append(f"a client certificate is {word}" if given else f"no client certificate is {word}")
    return found
