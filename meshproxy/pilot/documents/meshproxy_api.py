"""`meshproxy.io` LocalRateLimit, Fault, StickySplit, PythonFilter: policy that Istio's rules have no words for."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, ClassVar, Literal

from meshproxy.pilot.documents.common import StringMatch, WorkloadSelector
from meshproxy.pilot.documents.destination_rule import HTTPCookie
from meshproxy.pilot.documents.problems import At
from meshproxy.pilot.documents.rules import (
    Duration,
    HeaderName,
    Port,
    UInt32,
    between,
    header_name,
    header_value,
    object_name,
    wildcard_host,
)
from meshproxy.pilot.documents.spec import Json, Map, Refused, spec
from meshproxy.pilot.documents.virtual_service import Abort, Delay

_MAX_TOKENS = 2**32 - 1


@spec
class TokenBucket:
    """Envoy's: it holds `maxTokens` at most, and every `fillInterval` `tokensPerFill` come in."""

    max_tokens: Annotated[int, between(1, _MAX_TOKENS)]
    tokens_per_fill: Annotated[int, between(1, _MAX_TOKENS)] = 1
    fill_interval: Duration


@spec
class LocalRateLimit:
    """Each proxy that it selects answers requests beyond the limit itself."""

    workload_selector: WorkloadSelector | None = None  # None: all of the namespace
    direction: Literal["INBOUND", "OUTBOUND"] = "INBOUND"
    hosts: tuple[Annotated[str, wildcard_host], ...] = ()  # outbound: the services it is for; none: all
    port: Port | None = None  # the service port it is for; None: all
    token_bucket: TokenBucket
    per_connection: bool = False
    status: Annotated[int, between(400, 599)] = 429
    response_headers: Map[Annotated[str, header_value]] = ()

    def check(self, at: At) -> None:
        if self.hosts and self.direction == "INBOUND":
            (at / "hosts").error("is for direction OUTBOUND: inbound requests are all for the workload itself")
        if self.token_bucket.fill_interval < timedelta(milliseconds=50):
            (at / "tokenBucket" / "fillInterval").error("must be at least 50ms")


@spec
class FaultMatch:
    """Requests with all these headers."""

    headers: Map[StringMatch] = ()

    def check(self, at: At) -> None:
        for name, _ in self.headers:
            reason = header_name(name)
            if reason is not None:
                (at / "headers" / name).error(reason)


@spec
class Fault:
    """Each proxy that it selects holds requests up, or answers them with errors, for some or all of them."""

    workload_selector: WorkloadSelector | None = None  # None: all of the namespace
    direction: Literal["INBOUND", "OUTBOUND"] = "INBOUND"
    hosts: tuple[Annotated[str, wildcard_host], ...] = ()  # outbound: the services it is for; none: all
    port: Port | None = None  # the service port it is for; None: all
    match: FaultMatch | None = None  # None: all requests
    delay: Delay | None = None
    abort: Abort | None = None
    max_active_faults: UInt32 | None = None  # requests held up or answered at one time; beyond, they just go on
    REFUSED: ClassVar[Refused] = {"rateLimit": "bandwidth is not limited by rules"}

    def check(self, at: At) -> None:
        if self.hosts and self.direction == "INBOUND":
            (at / "hosts").error("is for direction OUTBOUND: inbound requests are all for the workload itself")
        if self.delay is None and self.abort is None:
            at.error("one of delay, abort is required")


@spec
class HashOn:
    """What keeps a user's requests together; the first thing that a request has."""

    header: HeaderName | None = None
    cookie: HTTPCookie | None = None
    query_parameter: str | None = None
    source_ip: bool | None = None
    ONE_OF: ClassVar = (("header", "cookie", "queryParameter", "sourceIp"),)

    def check(self, at: At) -> None:
        if not any((self.header, self.cookie, self.query_parameter, self.source_ip)):
            at.error("one of header, cookie, queryParameter, sourceIp is required")


@spec
class StickySplit:
    """Makes the weights of a VirtualService of its namespace shares of users, not of requests."""

    virtual_service: Annotated[str, object_name]
    route: str = ""  # the name of one http route; "": all that have weights
    hash_on: tuple[HashOn, ...]

    def check(self, at: At) -> None:
        if not self.hash_on:
            (at / "hashOn").error("must not be empty")


@spec
class PythonFilter:
    """A filter in Python for the proxies that it selects; those that are not meshproxy do not get it."""

    workload_selector: WorkloadSelector | None = None  # None: all of the namespace
    direction: Literal["INBOUND", "OUTBOUND", "BOTH"] = "INBOUND"
    file: str = ""
    module: str = ""
    entry_point: str = ""
    class_: str = ""
    config: Json = Json("{}")
    order: int = 0  # where several filters stand: the smallest sees requests first, then by name
    fail_open: bool = False
    hook_timeout: timedelta | None = None
    slow_hook: timedelta | None = None
    ONE_OF: ClassVar = (("file", "module", "entryPoint"),)

    def check(self, at: At) -> None:
        if not self.file and not self.module and not self.entry_point:
            at.error("one of file, module, entryPoint is required")
        if not self.config.startswith("{"):
            (at / "config").error("must be an object")
