"""A shared HTTP cache (RFC 9111) that asks the upstream once for what many want at the same time.

Numbers of sections in comments are those of RFC 9111, unless they name another.
"""

from __future__ import annotations

import asyncio
import calendar
import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from email.utils import formatdate, parsedate_tz
from typing import Final, Literal
from urllib.parse import urljoin, urlsplit

from meshproxy import CONTINUE, STOP, CallError, DataResult, FilterContext, HeaderMap, HttpFilter, Result, Stream

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_DIRECTIVE: Final = re.compile(rf'({_TOKEN})(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,;"]+)))?'.encode())
_ENTITY_TAG: Final = re.compile(rb'(?:W/)?("[^"]*")')

_SAFE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE"))  # RFC 9110 section 9.2.1
_HEURISTIC: Final = frozenset((200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501))  # RFC 9110 section 15.1
_UNDERSTOOD: Final = _HEURISTIC | {302, 303, 307}
_ERRORS: Final = frozenset((500, 502, 503, 504))  # RFC 5861 section 4
_CONDITIONS: Final = frozenset((b"if-none-match", b"if-modified-since"))
# Only the origin can judge these, or we leave them to it.
_NOT_FOR_CACHES: Final = (b"range", b"if-range", b"if-match", b"if-unmodified-since", b"upgrade")
_NOT_STORED: Final = frozenset(  # section 3.1, and what was true of that one response only
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade proxy-authenticate "
    b"proxy-authentication-info age content-length x-envoy-upstream-service-time x-envoy-attempt-count".split()
)
_NOT_UPDATED: Final = frozenset((b":status", b"content-encoding", b"content-type", b"content-range"))  # section 3.2
_IN_NOT_MODIFIED: Final = frozenset(  # RFC 9110 section 15.4.5
    (b"cache-control", b"content-location", b"date", b"etag", b"expires", b"vary", b"cache-status")
)
_LONGEST_S: Final = 1 << 31  # section 1.2.2
_OVERHEAD_BYTES: Final = 1024  # what a response costs beside its text
_MAX_VARIANTS: Final = 32  # of one resource
_HEURISTIC_SHARE: Final = 0.1  # of the time since the last modification (section 4.2.2)
_UNSTORABLE_S: Final = 30.0  # how long nobody waits for an answer that could not be stored
_MAX_UNSTORABLE: Final = 10_000

Key = tuple[bytes, bytes, bytes]  # scheme, authority, path
FlightKey = tuple[Key, bool, tuple[bytes | None, ...]]  # and: with credentials, what the response may vary on
Directives = dict[bytes, bytes]
Outcome = Literal["stored", "unstorable", "failed", "left"]


@dataclass(frozen=True)
class Config:
    """`max_bytes` is each worker's. The `stale_…` hold for responses that do not say it themselves (RFC 5861)."""

    max_bytes: int = 64 << 20
    max_object_bytes: int = 1 << 20
    coalesce_wait: timedelta = timedelta(seconds=3)
    heuristic_max: timedelta = timedelta(hours=1)
    stale_while_revalidate: timedelta = timedelta(0)
    stale_if_error: timedelta = timedelta(0)
    store_set_cookie: bool = False
    cache_status: str = "meshproxy"

    def __post_init__(self) -> None:
        if not 0 < self.max_object_bytes <= self.max_bytes:
            raise ValueError("max_object_bytes: above 0, and at most max_bytes")
        if self.cache_status and not re.fullmatch(rf"[A-Za-z*]{_TOKEN}", self.cache_status):
            raise ValueError("cache_status: a token, such as edge-1, or empty")


# -- reading fields ----------------------------------------------------------------------------------------------------


def directives(headers: HeaderMap) -> Directives:
    """Of Cache-Control, names in lower case. Of one that is there twice, the first counts (section 4.2.1)."""
    found: Directives = {}
    for match in _DIRECTIVE.finditer(headers.joined(b"cache-control") or b""):
        found.setdefault(match[1].lower(), match[2] or match[3] or b"")
    return found


def seconds(value: bytes) -> int:
    """Delta-seconds. What is none counts as 0, so that nothing is fresh by mistake (section 4.2.1)."""
    if not value.isdigit():
        return 0
    return _LONGEST_S if len(value) > 10 else min(int(value), _LONGEST_S)


def http_date(value: bytes | None) -> float | None:
    """In any of the three forms (RFC 9110 section 5.6.7); None for what is none."""
    parsed = None if value is None else parsedate_tz(value.decode("latin-1"))
    if parsed is None:
        return None
    try:
        return calendar.timegm(parsed[:9]) - (parsed[9] or 0)
    except (ValueError, OverflowError):
        return None


def normalized(headers: HeaderMap, name: bytes) -> bytes | None:
    """The value of a field that Vary names, for comparison (section 4.1)."""
    value = headers.joined(name)
    return None if value is None else b",".join(part.strip() for part in value.split(b","))


def names_in(value: bytes | None) -> list[bytes]:
    return [name.strip().lower() for name in (value or b"").split(b",") if name.strip()]


def key_of(headers: HeaderMap) -> Key:
    return headers.get(b":scheme") or b"", (headers.get(b":authority") or b"").lower(), headers.get(b":path") or b""


# -- what is stored ----------------------------------------------------------------------------------------------------


class Asked:
    """A request, as far as it decides what may be done with its response."""

    def __init__(self, headers: HeaderMap) -> None:
        self.key = key_of(headers)
        self.headers = headers
        self.control = directives(headers)
        self.authorized = b"authorization" in headers
        self.is_conditional = any(name in headers for name in _CONDITIONS)
        self.at_s = time.time()


class Stored:
    """A response that may be stored. It does not change: one that is freshened is another."""

    def __init__(self, asked: Asked, headers: HeaderMap, body: bytes, config: Config) -> None:
        self.key = asked.key
        self.headers = HeaderMap(list(_storable_fields(headers, config)))
        self.body = body
        self.status = int(headers[b":status"])
        self.control = directives(headers)
        self.varies = tuple((name, normalized(asked.headers, name)) for name in names_in(headers.joined(b"vary")))
        self.received_s = time.time()
        date_s = http_date(headers.get(b"date"))
        if date_s is None:  # section 6.6.1 of RFC 9110
            date_s = self.received_s
            self.headers[b"date"] = formatdate(date_s, usegmt=True).encode()
        self.initial_age_s = self._initial_age_s(asked, headers, date_s)
        self.lifetime_s = self._lifetime_s(date_s, config.heuristic_max.total_seconds())
        self.while_revalidate_s = self._window_s(b"stale-while-revalidate", config.stale_while_revalidate)
        self.if_error_s = self._window_s(b"stale-if-error", config.stale_if_error)
        if self.status != 204:
            self.headers[b"content-length"] = b"%d" % len(body)
        texts = [body, *asked.key, *(value or b"" for _, value in self.varies)]
        self.size = sum(map(len, texts)) + self.headers.size() + _OVERHEAD_BYTES

    def _initial_age_s(self, asked: Asked, headers: HeaderMap, date_s: float) -> float:
        """Section 4.2.3."""
        apparent_s = max(0.0, self.received_s - date_s)
        delay_s = max(0.0, self.received_s - asked.at_s)
        return max(apparent_s, seconds(headers.get(b"age") or b"") + delay_s)

    def _lifetime_s(self, date_s: float, heuristic_max_s: float) -> float:
        """Section 4.2.1."""
        for name in (b"s-maxage", b"max-age"):
            if name in self.control:
                return seconds(self.control[name])
        if b"expires" in self.headers:
            expires_s = http_date(self.headers[b"expires"])
            return 0.0 if expires_s is None else max(0.0, expires_s - date_s)
        modified_s = http_date(self.headers.get(b"last-modified"))
        if modified_s is None or (self.status not in _HEURISTIC and b"public" not in self.control):
            return 0.0
        return min(max(0.0, (date_s - modified_s) * _HEURISTIC_SHARE), heuristic_max_s)

    def _window_s(self, name: bytes, default: timedelta) -> float:
        """How long it may be served stale; below 0: not at all."""
        if self.must_be_fresh:
            return -1.0
        return seconds(self.control[name]) if name in self.control else default.total_seconds()

    @property
    def must_be_fresh(self) -> bool:
        """Whether it says that it is not to be served stale (section 4.2.4)."""
        return bool(self.control.keys() & {b"must-revalidate", b"proxy-revalidate", b"s-maxage", b"no-cache"})

    @property
    def has_validator(self) -> bool:
        return b"etag" in self.headers or b"last-modified" in self.headers

    @property
    def is_reusable(self) -> bool:
        """Whether it can ever be served without asking."""
        return b"no-cache" not in self.control and self.lifetime_s > self.initial_age_s

    @property
    def is_worth_it(self) -> bool:
        return self.has_validator or self.is_reusable or max(self.while_revalidate_s, self.if_error_s) > 0.0

    def age_s(self) -> float:
        """Section 4.2.3."""
        return self.initial_age_s + max(0.0, time.time() - self.received_s)

    def stale_s(self) -> float:
        """For how long it has been stale; below 0: it is fresh for so long."""
        return self.age_s() - self.lifetime_s

    def matches(self, headers: HeaderMap) -> bool:
        """Whether a request is alike in all that Vary names (section 4.1)."""
        return all(normalized(headers, name) == value for name, value in self.varies)

    def satisfies(self, control: Directives) -> bool:
        """Whether a request with these directives may have it without validation (sections 4 and 5.2.1)."""
        if b"no-cache" in self.control or b"no-cache" in control:
            return False
        stale_s = self.stale_s()
        if stale_s >= 0.0 and (self.must_be_fresh or b"max-stale" not in control):
            return False
        if stale_s >= 0.0 and control[b"max-stale"] and stale_s > seconds(control[b"max-stale"]):
            return False
        if b"min-fresh" in control and -stale_s < seconds(control[b"min-fresh"]):
            return False
        if b"max-age" not in control or (b"immutable" in self.control and stale_s < 0.0):  # RFC 8246 section 2
            return True
        return int(self.age_s()) <= seconds(control[b"max-age"])

    def may_wait_for_refresh(self, control: Directives) -> bool:
        """Section 3 of RFC 5861; not for a client that says how fresh it must be."""
        demands = control.keys() & {b"no-cache", b"no-store", b"max-age", b"min-fresh"}
        return not demands and 0.0 <= self.stale_s() < self.while_revalidate_s

    def helps_in_error(self, control: Directives) -> bool:
        """Section 4 of RFC 5861. A request may ask for it too."""
        if self.if_error_s < 0.0 or b"no-cache" in control:
            return False
        return self.stale_s() < max(self.if_error_s, seconds(control.get(b"stale-if-error", b"")))

    def freshened(self, asked: Asked, headers: HeaderMap, config: Config) -> Stored:
        """With the fields of a 304 (sections 3.2 and 4.3.4)."""
        new = [(name, value) for name, value in headers if name not in _NOT_UPDATED]
        replaced = {name for name, _ in new} | {b"date"}
        kept = [field for field in self.headers if field[0] not in replaced]
        return Stored(asked, HeaderMap(kept + new), self.body, config)

    def is_validated_by(self, headers: HeaderMap) -> bool:
        """Whether a 304 is about it: a strong validator of its own must be the same (section 4.3.4)."""
        tag = headers.get(b"etag")
        return tag is None or tag.startswith(b"W/") or tag == self.headers.get(b"etag")

    def is_what_client_has(self, conditions: HeaderMap) -> bool:
        """Whether the conditions of a request make the answer a 304 (section 4.3.2, RFC 9110 section 13.2.2)."""
        if self.status != 200:
            return False
        tags = conditions.joined(b"if-none-match")
        if tags is not None:
            own = _ENTITY_TAG.match(self.headers.get(b"etag") or b"")
            return tags.strip() == b"*" or (own is not None and own[1] in _ENTITY_TAG.findall(tags))
        since_s = http_date(conditions.get(b"if-modified-since"))
        modified_s = http_date(self.headers.get(b"last-modified") or self.headers[b"date"])
        return since_s is not None and modified_s is not None and modified_s <= since_s


def _storable_fields(headers: HeaderMap, config: Config) -> Iterator[tuple[bytes, bytes]]:
    """Section 3.1."""
    dropped = _NOT_STORED.union(names_in(headers.joined(b"connection")))
    for name, value in headers:
        if name not in dropped and (name != b"set-cookie" or config.store_set_cookie):
            yield name, value


def may_store(asked: Asked, headers: HeaderMap, config: Config) -> bool:
    """Section 3, for a complete response to a GET."""
    control = directives(headers)
    status = int(headers[b":status"])
    if status in (206, 304) or (b"must-understand" in control and status not in _UNDERSTOOD):
        return False
    if b"no-store" in control or b"private" in control or b"no-store" in asked.control:
        return False
    if asked.authorized and not control.keys() & {b"public", b"s-maxage", b"must-revalidate"}:  # section 3.5
        return False
    if b"*" in names_in(headers.joined(b"vary")):  # no request ever matches it (section 4.1)
        return False
    if b"set-cookie" in headers and not config.store_set_cookie:
        return False
    explicit = control.keys() & {b"public", b"max-age", b"s-maxage"} or b"expires" in headers
    return bool(explicit) or status in _HEURISTIC


# -- the store ---------------------------------------------------------------------------------------------------------


class Flight:
    """A request that is on its way, for all who want the same.

    Where it `left` before there was an answer, or that was for its client alone, another may take its place.
    """

    def __init__(self, key: FlightKey) -> None:
        self.key = key
        self.landed = asyncio.Event()
        self.outcome: Outcome = "left"
        self.outdated = False  # something was changed meanwhile


class Cache:
    """Responses, within a number of bytes: the one that was not used for longest goes first."""

    def __init__(self, context: FilterContext) -> None:
        self._context = context
        self._config: Config = context.config
        self._resources: dict[Key, list[Stored]] = {}  # their variants, the newest first
        self._by_use: OrderedDict[Stored, None] = OrderedDict()
        self._flights: dict[FlightKey, Flight] = {}
        self._unstorable: OrderedDict[int, float] = OrderedDict()  # hash of a flight's key -> until when
        self.bytes = 0

    def find(self, asked: Asked) -> Stored | None:
        for stored in self._resources.get(asked.key, ()):
            if stored.matches(asked.headers):
                self._by_use.move_to_end(stored)
                return stored
        return None

    def holds(self, stored: Stored) -> bool:
        return stored in self._by_use

    def has_variants(self, key: Key) -> bool:
        return key in self._resources

    def put(self, asked: Asked, stored: Stored) -> None:
        """In place of what was stored for the same request."""
        variants = self._resources.get(stored.key, [])
        for old in [one for one in variants if one.matches(asked.headers)] + variants[_MAX_VARIANTS - 1 :]:
            self.drop(old)
        self._resources.setdefault(stored.key, []).insert(0, stored)
        self._by_use[stored] = None
        self.bytes += stored.size
        self._context.count("stored")
        while self.bytes > self._config.max_bytes:
            self.drop(next(iter(self._by_use)))
            self._context.count("evicted")

    def drop(self, stored: Stored) -> None:
        if stored not in self._by_use:
            return
        del self._by_use[stored]
        self.bytes -= stored.size
        variants = self._resources[stored.key]
        variants.remove(stored)
        if not variants:
            del self._resources[stored.key]

    def invalidate(self, keys: Iterable[Key]) -> None:
        """Section 4.4. What is on its way may be older than the change: it is not stored."""
        for key in set(keys):
            for stored in list(self._resources.get(key, ())):
                self.drop(stored)
                self._context.count("invalidated")
            for flight in self._flights.values():
                if flight.key[0] == key:
                    flight.outdated = True

    # -- flights

    def flight_key(self, asked: Asked) -> FlightKey:
        variants = self._resources.get(asked.key)
        varies = () if variants is None else tuple(normalized(asked.headers, name) for name, _ in variants[0].varies)
        return asked.key, asked.authorized, varies

    def flight(self, key: FlightKey) -> Flight | None:
        return self._flights.get(key)

    def depart(self, key: FlightKey) -> Flight:
        flight = self._flights[key] = Flight(key)
        return flight

    def land(self, flight: Flight, outcome: Outcome) -> None:
        flight.outcome = outcome
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        flight.landed.set()

    def remember_unstorable(self, key: FlightKey) -> None:
        self._unstorable[hash(key)] = time.time() + _UNSTORABLE_S
        self._unstorable.move_to_end(hash(key))
        if len(self._unstorable) > _MAX_UNSTORABLE:
            self._unstorable.popitem(last=False)

    def is_unstorable(self, key: FlightKey) -> bool:
        return self._unstorable.get(hash(key), 0.0) > time.time()


# -- the filter --------------------------------------------------------------------------------------------------------


class HttpCache(HttpFilter):
    """Answers from the cache what may be, and stores what passes."""

    config: Config

    @classmethod
    def on_start(cls, context: FilterContext) -> None:
        context.state = Cache(context)

    def __init__(self) -> None:
        self._cache: Cache = self.context.state
        self._asked: Asked | None = None  # by a GET or HEAD that a cache may answer
        self._conditions = HeaderMap()  # of the client
        self._why = b"bypass"  # the request went on (RFC 9211 section 2.2)
        self._collapsed = b""
        self._flight: Flight | None = None  # that this request is
        self._found: Stored | None = None  # in the cache, but not fit to be served
        self._validates = False
        self._head: HeaderMap | None = None  # of the response that is being stored
        self._body = bytearray()
        self._instead: bytes | None = None  # of the body that comes, this one is sent
        self._answered = False

    # -- the request

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        if headers[b":method"] not in (b"GET", b"HEAD"):
            self._why = b"method"
            return CONTINUE
        if not end or any(name in headers for name in _NOT_FOR_CACHES):
            self.context.count("bypassed")
            return self._only_if_cached(stream) if b"only-if-cached" in directives(headers) else CONTINUE
        self._asked = Asked(headers.copy())
        self._conditions = HeaderMap([field for field in headers if field[0] in _CONDITIONS])
        found = self._look(stream, headers, self._asked, None)
        return self._wait(stream, headers, self._asked, found) if isinstance(found, Flight) else found

    def _look(self, stream: Stream, headers: HeaderMap, asked: Asked, waited: Flight | None) -> int | Flight:
        """Answer, or let the request pass; or a flight that is worth waiting for."""
        cache = self._cache
        stored = cache.find(asked)
        if stored is not None:
            if stored.satisfies(asked.control):
                return self._hit(stream, stored)
            if stored.may_wait_for_refresh(asked.control) and self._refreshes(stream, asked, stored):
                self.context.count("stale")
                return self._hit(stream, stored)
        if b"only-if-cached" in asked.control:
            return self._only_if_cached(stream)
        key = cache.flight_key(asked)
        flight = cache.flight(key)
        if flight is not None and not cache.is_unstorable(key) and _may_share(asked, stored):
            if waited is None or waited.outcome == "left" or waited.key != key:
                return flight
        self._forward(headers, asked, stored, None if flight is not None else key)
        return CONTINUE

    async def _wait(self, stream: Stream, headers: HeaderMap, asked: Asked, flight: Flight) -> int:
        """Until it has landed, or its place was taken by one that we wait for as well, or the time is over."""
        try:
            async with asyncio.timeout(self.config.coalesce_wait.total_seconds()):
                while True:
                    await flight.landed.wait()
                    if flight.outcome in ("unstorable", "failed"):
                        break
                    self._collapsed = b"; collapsed" if flight.outcome == "stored" else b""
                    found = self._look(stream, headers, asked, flight)
                    if not isinstance(found, Flight):
                        return found
                    flight = found
        except TimeoutError:
            self.context.count("coalesce_timeouts")
        stored = self._cache.find(asked)
        if flight.outcome == "failed" and stored is not None and stored.helps_in_error(asked.control):
            self.context.count("stale")
            return self._hit(stream, stored)
        self._forward(headers, asked, stored, None)
        return CONTINUE

    def _forward(self, headers: HeaderMap, asked: Asked, stored: Stored | None, key: FlightKey | None) -> None:
        """Let the request go upstream: as the flight `key`, and to validate what is stored (section 4.3.1)."""
        self._why = self._reason(asked, stored)
        self._collapsed = b""
        self.context.count("misses")
        self._found = stored
        asked.at_s = time.time()
        if headers[b":method"] != b"GET" or b"no-store" in asked.control:
            return
        if key is not None:
            self._flight = self._cache.depart(key)
        if stored is not None and stored.has_validator:
            self._validates = True
            make_conditional(headers, stored)

    def _reason(self, asked: Asked, stored: Stored | None) -> bytes:
        if stored is None:
            return b"vary-miss" if self._cache.has_variants(asked.key) else b"uri-miss"
        return b"stale" if stored.stale_s() >= 0.0 or b"no-cache" in stored.control else b"request"

    def _only_if_cached(self, stream: Stream) -> int:
        stream.send_local_reply(504, b"", "http_cache_only_if_cached")  # section 5.2.1.7
        return STOP

    # -- answers

    def _hit(self, stream: Stream, stored: Stored) -> int:
        self.context.count("coalesced" if self._collapsed else "hits")
        left = b"hit; ttl=%d" % -stored.stale_s()
        head = self._answer(stored, b"fwd=uri-miss" + self._collapsed if self._collapsed else left)
        head[b"age"] = b"%d" % stored.age_s()
        return self._send(stream, head, stored.body, "http_cache_hit")

    def _answer(self, stored: Stored, status: bytes) -> HeaderMap:
        """The head of what the client is sent of it; `status` is for Cache-Status (RFC 9211)."""
        head = stored.headers.copy()
        if self.config.cache_status:
            head.add(b"cache-status", self.config.cache_status.encode() + b"; " + status)
        if not stored.is_what_client_has(self._conditions):
            return head
        kept = HeaderMap([field for field in head if field[0] in _IN_NOT_MODIFIED])
        return HeaderMap([(b":status", b"304"), *kept])

    def _send(self, stream: Stream, head: HeaderMap, body: bytes, details: str) -> int:
        """Send a response, in place of any that might come. (A local reply would be open to be rewritten as such.)"""
        self._answered = True
        stream.info.response_code_details = details
        if head[b":status"] == b"304" or stream.request_headers[b":method"] == b"HEAD":
            body = b""
        stream.send_response_headers(head, not body)
        if body and not stream.done:
            stream.send_response_data(body, True)
        return STOP

    def _send_instead(self, stream: Stream, headers: HeaderMap, end: bool, stored: Stored, status: bytes) -> int:
        """Send what is stored in place of the response that came: a 304, or an error."""
        head = self._answer(stored, status)
        if b"fwd-status=304" not in status:
            head[b"age"] = b"%d" % stored.age_s()
        if end:
            return self._send(stream, head, stored.body, stream.info.response_code_details)
        self._answered = True
        self._instead = b"" if head[b":status"] == b"304" else stored.body
        headers.fields.clear()
        headers.extend(head)
        return CONTINUE

    # -- the response

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        if self._answered:
            return CONTINUE
        status = int(headers[b":status"])
        asked, stored = self._asked, self._found
        if asked is not None and stored is not None:
            if status == 304 and self._validates:
                return self._on_validated(stream, headers, end, asked, stored)
            if status in _ERRORS and stored.helps_in_error(asked.control):
                self.context.count("stale")
                self._end_flight("failed")
                return self._send_instead(stream, headers, end, stored, b"fwd=stale; fwd-status=%d" % status)
        elif asked is None and not stream.local_reply:
            self._invalidate(stream.request_headers, headers, status)
        is_stored = self._flight is not None and self._begin_to_store(stream, self._flight, headers, status, end)
        if self.config.cache_status and not stream.local_reply:
            told = b"; fwd=" + self._why + (b"; stored" if is_stored else b"")
            headers.add(b"cache-status", self.config.cache_status.encode() + told)
        return CONTINUE

    def _on_validated(self, stream: Stream, headers: HeaderMap, end: bool, asked: Asked, stored: Stored) -> Result:
        self.context.count("revalidated")
        was_stored = store_freshened(self._cache, self.config, asked, headers, stored)
        self._end_flight("stored" if was_stored else "unstorable")
        if stored.is_validated_by(headers):
            stored = stored.freshened(asked, headers, self.config)
        return self._send_instead(stream, headers, end, stored, b"fwd=" + self._why + b"; fwd-status=304")

    def _begin_to_store(self, stream: Stream, flight: Flight, headers: HeaderMap, status: int, end: bool) -> bool:
        """Whether it will be, if all of it comes and is not too large."""
        length = seconds(headers.get(b"content-length") or b"")
        refused = stream.local_reply or length > self.config.max_object_bytes
        if not refused and self._asked is not None and may_store(self._asked, headers, self.config):
            if Stored(self._asked, headers, b"", self.config).is_worth_it:
                self._head = headers.copy()
                if end:
                    self._store(self._head)
                return True
        if status >= 500:
            self._end_flight("failed")
        elif status == 304 or stream.local_reply:  # by what this client asked, or who it is
            self._end_flight("left")
        else:
            self._give_up(flight)
            if self._found is not None:  # section 4.3.3
                self._cache.drop(self._found)
        return False

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        if self._instead is not None:
            body, self._instead = self._instead, b""
            return body
        if self._head is not None:
            self._body += data
            if len(self._body) > self.config.max_object_bytes and self._flight is not None:
                self._give_up(self._flight)
            elif end:
                self._store(self._head)
        return CONTINUE

    def on_response_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        if self._instead is not None:
            trailers.fields.clear()
            if self._instead:
                stream.add_to_response(self._instead)
        if self._head is not None:
            self._store(self._head)  # without them (section 3.1)
        return CONTINUE

    def on_stream_done(self, stream: Stream) -> None:
        self._end_flight("left")  # what was not complete is not stored (section 3.3)

    def _store(self, head: HeaderMap) -> None:
        asked, flight = self._asked, self._flight
        if asked is not None and flight is not None and not flight.outdated:
            self._cache.put(asked, Stored(asked, head, bytes(self._body), self.config))
            self._end_flight("stored")
        self._head = None

    def _give_up(self, flight: Flight) -> None:
        self._cache.remember_unstorable(flight.key)
        self._end_flight("unstorable")
        self._head = None
        self._body.clear()

    def _end_flight(self, outcome: Outcome) -> None:
        flight, self._flight = self._flight, None
        if flight is not None:
            self._cache.land(flight, outcome)

    def _invalidate(self, request: HeaderMap, headers: HeaderMap, status: int) -> None:
        """Section 4.4: a change that succeeded, of what it names at the same origin."""
        if request[b":method"] in _SAFE or not 200 <= status < 400:
            return
        scheme, authority, path = key_of(request)
        base = b"%s://%s%s" % (scheme, authority, path)
        keys = [(scheme, authority, path)]
        for name in (b"location", b"content-location"):
            target = urlsplit(urljoin(base, headers.get(name) or b""))
            if (target.scheme, target.netloc.lower()) == (scheme, authority):
                keys.append((scheme, authority, target.path + (b"?" + target.query if target.query else b"")))
        self._cache.invalidate(keys)

    # -- refreshing in the background (RFC 5861 section 3)

    def _refreshes(self, stream: Stream, asked: Asked, stored: Stored) -> bool:
        """Whether a fresh one is being fetched; it is from now on, where the route leads to a cluster."""
        key = self._cache.flight_key(asked)
        if self._cache.flight(key) is not None:
            return True
        route, cluster = stream.route, stream.cluster
        if route is None or cluster is None or route.auto_host_rewrite:
            return False
        request = asked.headers.copy()
        request[b":method"] = b"GET"
        make_conditional(request, stored)
        route.finalize_request(request, stream.info)
        self.context.spawn(self._refresh(cluster.name, request, Asked(asked.headers), stored, self._cache.depart(key)))
        return True

    async def _refresh(self, cluster: str, request: HeaderMap, asked: Asked, stored: Stored, flight: Flight) -> None:
        fields = [field for field in request if not field[0].startswith(b":")]
        outcome: Outcome = "failed"
        try:
            answer = await self.context.call(
                cluster,
                path=request[b":path"],
                authority=request[b":authority"],
                headers=fields,
                limit_bytes=self.config.max_object_bytes,
            )
            if answer.status == 304:
                store_freshened(self._cache, self.config, asked, answer.headers, stored)
                outcome = "stored"
            elif answer.status not in _ERRORS and not flight.outdated:
                self._cache.drop(stored)
                if may_store(asked, answer.headers, self.config):
                    self._cache.put(asked, Stored(asked, answer.headers, answer.body, self.config))
                outcome = "stored"
            self.context.count("refreshed")
        except CallError as error:
            self.context.count("refresh_failed")
            self.context.log.warning("http_cache: %s was not refreshed: %s", asked.key[2], error)
        finally:
            self._cache.land(flight, outcome)


def _may_share(asked: Asked, stored: Stored | None) -> bool:
    """Whether an answer to another request can do for this one (section 4)."""
    if asked.headers[b":method"] != b"GET" or b"no-cache" in asked.control:
        return False
    if asked.is_conditional and (stored is None or not stored.has_validator):
        return False  # the origin's 304 would be for one client alone
    return stored is None or stored.is_reusable


def make_conditional(headers: HeaderMap, stored: Stored) -> None:
    """Section 4.3.1."""
    headers.remove_names(_CONDITIONS)
    for name, validator in ((b"if-none-match", b"etag"), (b"if-modified-since", b"last-modified")):
        if validator in stored.headers:
            headers[name] = stored.headers[validator]


def store_freshened(cache: Cache, config: Config, asked: Asked, headers: HeaderMap, stored: Stored) -> bool:
    """After a 304. Whether it is in the cache now: it is not if it was dropped meanwhile, or must not be stored."""
    if not cache.holds(stored):
        return False
    cache.drop(stored)
    fresh = stored.freshened(asked, headers, config)
    if not stored.is_validated_by(headers) or not may_store(asked, fresh.headers, config):
        return False
    cache.put(asked, fresh)
    return True
