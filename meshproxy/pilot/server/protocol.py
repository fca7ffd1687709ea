"""The server's side of an xDS stream, without I/O: both variants, of one type of resource or of all.

`receive` takes a request, `set_view` a newer snapshot, `next` gives the next response as long as there is one; nothing
is queued, since a response is worked out when it can leave. Of each type one is under way at a time: the next follows
the ACK or NACK of the one before.

On an aggregated stream nothing refers to what the client has not: clusters and their endpoints go before the listeners
and routes that may use them, and what is gone from them only after the client has taken listeners and routes that do
not ("make before break"). An assignment of endpoints is named like its cluster.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE, VIRTUAL_HOST_TYPE
from meshproxy.errors import MeshProxyError
from meshproxy.pilot.server.kinds import FULL_STATE, PUSH_ORDER, REFERRERS, WILDCARD
from meshproxy.pilot.server.responses import Response
from meshproxy.pilot.server.view import NONE_HELD, Held, Plan, Target, View
from meshproxy.pilot.server.wanted import EVERYTHING, NOTHING, Wanted, wanted
from meshproxy.pilot.snapshot import Resource

# Listeners and routes wait this long for a client to ask for the endpoints of its new clusters, and to take them.
PATIENCE_S: Final = 2.0
# How many types one stream may ask for: what it asks for is remembered.
MAX_TYPES: Final = 32
MAX_TYPE_LENGTH: Final = 256
# The names that one stream may ask for, of all types together; and the versions that it may come with.
MAX_NAMES: Final = 100_000
MAX_NAME_BYTES: Final = 8 * 1024 * 1024
MAX_REASON: Final = 8 * 1024


class RequestError(MeshProxyError):
    """A request that no client may send: the stream ends."""


class TooMuchError(RequestError):
    """A request for more than a client may ask for."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A NACK: what the client says is wrong with the response of this version."""

    at: float  # seconds since the epoch
    type_url: str
    version: str
    reason: str


class Subscription:
    """What a stream has of one type. `held` is what the client has, once it has taken the last response."""

    __slots__ = (
        "accepted_version",
        "answer",
        "asked_at",
        "claimed_version",
        "held",
        "in_flight",
        "named",
        "nonce",
        "refused",
        "rejection",
        "responses",
        "sent",
        "sent_at",
        "sent_target",
        "sent_version",
        "type_url",
        "wanted",
        "weight",
    )

    def __init__(self, type_url: str) -> None:
        self.type_url = type_url
        self.wanted: Wanted = NOTHING
        self.weight = 0  # bytes of the names in it
        self.named = False  # a request has named something: an empty list no longer means everything
        self.held: Held = NONE_HELD
        self.nonce = ""  # of the last response
        self.in_flight = False  # it is neither ACKed nor NACKed
        self.sent_at = 0.0
        self.sent: tuple[str, ...] = ()
        self.sent_target: Target | None = None
        self.sent_version = ""
        self.accepted_version = ""
        self.claimed_version = ""  # state of the world: what a client that comes back says it has
        self.rejection: Rejection | None = None  # the last response was refused
        self.refused: tuple[str, ...] = ()  # what was in it: sent again with the next change, and not before
        self.answer = False  # the client waits for a response, even if it is an empty one
        self.responses = 0


class XdsStream:
    """What both variants share. `type_url` is that of a stream for one type; "" on an aggregated one."""

    IS_DELTA: bool

    def __init__(self, type_url: str = "") -> None:
        self.type_url = type_url
        self.subscriptions: dict[str, Subscription] = {}
        self.view: View | None = None
        self.ordered: list[Subscription] = []  # as they go out
        self._now = 0.0
        self._returned_at = -1.0  # a client that has clusters already told so
        self._nonces = 0
        self._warming_since = -1.0  # clusters went out, and what refers to them waits
        self._expected: tuple[str, ...] = ()  # assignments that the client will ask for, or has asked for

    def set_view(self, view: View) -> None:
        """There is a newer snapshot, or this client belongs to another scope now."""
        self.view = view

    def receive(self, request: Any, now: float) -> Rejection | None:
        """Take a request; returns what it refuses. Raises RequestError."""
        raise NotImplementedError

    def next(self, now: float) -> Response | None:
        """The next response; None while there is nothing to send, or nothing may be sent."""
        if self.view is None:
            return None
        self._now = now
        for subscription in self.ordered:
            if subscription.in_flight or self._must_wait(subscription):
                continue
            plan = self._plan(self.view, subscription)
            if plan.body:
                return self._send(self.view, subscription, plan)
            subscription.held = plan.held
        return None

    def leaves(self, response: Response, now: float) -> None:
        """A response that had to wait for others leaves only now: so long its answer was not due."""
        for subscription in self.ordered:
            if subscription.in_flight and subscription.nonce == response.nonce:
                subscription.sent_at = now

    @property
    def settled(self) -> bool:
        """The client has answered all that it was sent. After `next` gave None: it has all that it may have."""
        return not any(subscription.in_flight for subscription in self.ordered)

    @property
    def waits(self) -> bool:
        """Something may be held back for a time that runs out."""
        return self._warming_since >= 0.0 or self._returned_at >= 0.0

    def oldest_sent_at(self) -> float | None:
        """When the response left that has waited longest for its answer."""
        return min((subscription.sent_at for subscription in self.ordered if subscription.in_flight), default=None)

    # -- requests

    def _subscription(self, type_url: str) -> tuple[Subscription, bool]:
        """That of a request's type, and whether it is the first."""
        if len(type_url) > MAX_TYPE_LENGTH:
            raise RequestError(f"type_url is longer than {MAX_TYPE_LENGTH} characters")
        if self.type_url and type_url in ("", self.type_url):
            type_url = self.type_url
        elif self.type_url:
            raise RequestError(f"this method serves {self.type_url}, not {type_url}")
        if not type_url:
            raise RequestError("type_url is required")
        found = self.subscriptions.get(type_url)
        if found is not None:
            return found, False
        if len(self.subscriptions) >= MAX_TYPES:
            raise TooMuchError(f"more than {MAX_TYPES} types of resources on one stream")
        found = self.subscriptions[type_url] = Subscription(type_url)
        self.ordered = sorted(self.subscriptions.values(), key=lambda each: _rank(each.type_url))
        return found, True

    def _answered(self, subscription: Subscription, request: Any) -> Rejection | None:
        """The client has answered the response under way."""
        subscription.in_flight = False
        if not request.HasField("error_detail"):
            subscription.accepted_version = subscription.sent_version
            subscription.rejection = None
            subscription.refused = ()
            return None
        reason = request.error_detail.message[:MAX_REASON]
        rejection = Rejection(time.time(), subscription.type_url, subscription.sent_version, reason)
        subscription.rejection = rejection
        subscription.refused = subscription.sent
        return rejection

    def _want(self, subscription: Subscription, asked: Wanted) -> None:
        """From now on these are asked for. Raises TooMuchError."""
        subscription.wanted = asked
        subscription.weight = sum(map(len, asked.names))
        every = self.subscriptions.values()
        _bound(sum(len(each.wanted.names) for each in every), sum(each.weight for each in every))

    def _restrict(self, subscription: Subscription) -> None:
        """What is no longer asked for is no longer held."""
        if self.view is not None:
            subscription.held = self.view.restricted(subscription.held, subscription.wanted)
        elif not subscription.wanted.wildcard:
            names = subscription.wanted.names
            subscription.held = {name: held for name, held in subscription.held.items() if name in names}

    # -- responses

    def _plan(self, view: View, subscription: Subscription) -> Plan:
        target = view.target(subscription.type_url, subscription.wanted)
        if subscription.refused and target is not subscription.sent_target:
            subscription.held = self._held_after_refusal(view, subscription)
            subscription.refused = ()
            subscription.answer = True  # even if nothing else is new: the client's ACK says that all is well again
        plan = self._plan_to(view, subscription, target, keep=True)
        if plan.gone and self._may_break(view, subscription.type_url):
            plan = self._plan_to(view, subscription, target, keep=False)
        return plan

    def _held_after_refusal(self, view: View, subscription: Subscription) -> Held:
        """Nobody knows which resources of a response that it refused a client has taken: it is to hear of all again."""
        return view.without(subscription.held, subscription.refused)

    def _plan_to(self, view: View, subscription: Subscription, target: Target, *, keep: bool) -> Plan:
        return view.plan(
            subscription.type_url,
            subscription.held,
            target,
            delta=self.IS_DELTA,
            keep=keep,
            answer=subscription.answer,
        )

    def _send(self, view: View, subscription: Subscription, plan: Plan) -> Response:
        if subscription.type_url == CLUSTER_TYPE and plan.sent:
            self._warm(view, plan)
        self._nonces += 1
        subscription.nonce = f"{self._nonces:x}"
        subscription.held = plan.held
        subscription.sent = plan.sent
        subscription.sent_target = view.target(subscription.type_url, subscription.wanted)
        subscription.sent_version = plan.version
        subscription.sent_at = self._now
        subscription.in_flight = True
        subscription.answer = False
        subscription.responses += 1
        return Response(subscription.type_url, plan.body, subscription.nonce)

    def _warm(self, view: View, plan: Plan) -> None:
        """Clusters that are new or changed take no traffic before they have endpoints: those are sent again, since a
        client need not ask again for what it subscribed to before."""
        self._warming_since = self._now
        assignments = view.snapshot.of_type(ENDPOINT_TYPE)
        self._expected = tuple(name for name in plan.sent if name in assignments)
        endpoints = self.subscriptions.get(ENDPOINT_TYPE)
        if endpoints is not None:
            endpoints.held = view.without(endpoints.held, plan.sent)

    def _must_wait(self, subscription: Subscription) -> bool:
        """Listeners and routes, while the clusters that they may use are not warm."""
        if subscription.type_url not in REFERRERS or (self._warming_since < 0.0 and not self._clusters_are_behind()):
            return False
        if self._warming_since < 0.0:
            self._warming_since = self._now
        if self._now - self._warming_since < PATIENCE_S and self._is_warming():
            return True
        self._warming_since = -1.0
        self._expected = ()
        return False

    def _clusters_are_behind(self) -> bool:
        """Whether there are other clusters than those under way: they go when those are answered."""
        clusters = self.subscriptions.get(CLUSTER_TYPE)
        if clusters is None or not clusters.in_flight or self.view is None:
            return False
        return self.view.target(CLUSTER_TYPE, clusters.wanted) is not clusters.sent_target

    def _is_warming(self) -> bool:
        clusters = self.subscriptions[CLUSTER_TYPE]
        if clusters.in_flight:
            return True
        if clusters.rejection is not None:
            return False
        endpoints = self.subscriptions.get(ENDPOINT_TYPE)
        if endpoints is None:
            return bool(self._expected)
        return endpoints.in_flight or not all(endpoints.wanted.covers(name) for name in self._expected)

    def _may_break(self, view: View, type_url: str) -> bool:
        """Whether resources of this type may be taken away: nothing that the client has can refer to them."""
        if type_url == CLUSTER_TYPE:
            return not self._awaits_referrers() and self._have_taken(view, REFERRERS)
        if type_url == ENDPOINT_TYPE:
            return self._have_taken(view, REFERRERS) and self._have_taken(view, (CLUSTER_TYPE,), nothing_kept=True)
        if type_url in (ROUTE_TYPE, VIRTUAL_HOST_TYPE):
            return self._have_taken(view, (LISTENER_TYPE,))
        return True

    def _awaits_referrers(self) -> bool:
        """Whether a client that came back, with clusters, will yet say which listeners and routes it has."""
        if self._returned_at < 0.0:
            return False
        if self._now - self._returned_at < PATIENCE_S and self.subscriptions.keys().isdisjoint(REFERRERS):
            return True
        self._returned_at = -1.0
        return False

    def _have_taken(self, view: View, types: Iterable[str], *, nothing_kept: bool = False) -> bool:
        for type_url in types:
            subscription = self.subscriptions.get(type_url)
            if subscription is None:
                continue
            if subscription.in_flight or subscription.rejection is not None:
                return False
            target = view.target(type_url, subscription.wanted)
            plan = self._plan_to(view, subscription, target, keep=True)
            if plan.body or (nothing_kept and plan.gone):
                return False
        return True


class StateOfTheWorldStream(XdsStream):
    """`Stream…`: every request has all names, every response of a full-state type all resources."""

    IS_DELTA = False

    def receive(self, request: Any, now: float) -> Rejection | None:
        subscription, is_first = self._subscription(request.type_url)
        if subscription.nonce and request.response_nonce not in ("", subscription.nonce):
            return None  # of a response before the last one: the answer to the last one is still to come
        rejection = None
        if request.response_nonce and subscription.in_flight:
            rejection = self._answered(subscription, request)
        if is_first:
            subscription.claimed_version = request.version_info
        self._subscribe(subscription, _wanted_by(subscription, request.resource_names), is_first)
        return rejection

    def _subscribe(self, subscription: Subscription, now_wanted: Wanted, is_first: bool) -> None:
        before = subscription.wanted
        if now_wanted is before:
            return
        self._want(subscription, now_wanted)
        if now_wanted.gains_over(before):
            subscription.answer = subscription.answer or is_first or subscription.type_url in FULL_STATE
        self._restrict(subscription)

    def _plan(self, view: View, subscription: Subscription) -> Plan:
        plan = super()._plan(view, subscription)
        claimed, subscription.claimed_version = subscription.claimed_version, ""
        if claimed and claimed == plan.version and subscription.type_url in FULL_STATE:
            # It comes back with exactly this. Of other types its version does not say which resources it took.
            subscription.answer = False
            subscription.accepted_version = claimed
            return Plan(b"", plan.version, plan.held, (), plan.gone)
        return plan


class DeltaStream(XdsStream):
    """`Delta…`: requests and responses say what changes."""

    IS_DELTA = True

    def receive(self, request: Any, now: float) -> Rejection | None:
        subscription, is_first = self._subscription(request.type_url)
        rejection = None
        if request.response_nonce and subscription.in_flight and request.response_nonce == subscription.nonce:
            rejection = self._answered(subscription, request)
        if is_first:
            self._begin(subscription, request, now)
        elif request.resource_names_subscribe or request.resource_names_unsubscribe:
            self._change(subscription, request.resource_names_subscribe, request.resource_names_unsubscribe)
        return rejection

    def _held_after_refusal(self, view: View, subscription: Subscription) -> Held:
        doubtful = {name: Resource(name, "refused", b"") for name in subscription.refused}
        return {**subscription.held, **doubtful}

    def _begin(self, subscription: Subscription, request: Any, now: float) -> None:
        versions = request.initial_resource_versions
        _bound(len(versions), sum(len(name) + len(version) for name, version in versions.items()))
        held = {name: Resource(name, version, b"") for name, version in versions.items()}
        subscription.held = held or NONE_HELD
        if held and not self.type_url and subscription.type_url == CLUSTER_TYPE:
            self._returned_at = now
        if not request.resource_names_subscribe and subscription.type_url in FULL_STATE:
            self._want(subscription, EVERYTHING)
        else:
            self._want(subscription, wanted(request.resource_names_subscribe))
        subscription.answer = subscription.wanted.wildcard and not held
        self._restrict(subscription)

    def _change(self, subscription: Subscription, added: Iterable[str], dropped: Iterable[str]) -> None:
        before = subscription.wanted
        names, gone = set(added), set(dropped)
        wildcard = (before.wildcard and WILDCARD not in gone) or WILDCARD in names
        self._want(subscription, wanted((before.names - gone) | (names - {WILDCARD}), wildcard))
        if wildcard and not before.wildcard:
            subscription.answer = True
        # Who subscribes again wants it again. Who drops a name that the wildcard has too must hear what is left of it.
        again = (names | gone) & subscription.held.keys()
        if again:
            subscription.held = {name: held for name, held in subscription.held.items() if name not in again}
        untold = gone - {WILDCARD} - names if wildcard else set()
        self._tell_gone(subscription, untold)
        self._restrict(subscription)

    def _tell_gone(self, subscription: Subscription, names: set[str]) -> None:
        """Names that the client forgot under a wildcard, and that there may not be: they count as had, so that they are
        reported as removed."""
        if self.view is None or not names:
            return
        present = self.view.snapshot.of_type(subscription.type_url)
        missing = {name: Resource(name, "dropped", b"") for name in names if name not in present}
        if missing:
            subscription.held = {**subscription.held, **missing}
            dropped = [name for name, resource in subscription.held.items() if not resource.data]
            _bound(len(dropped), sum(map(len, dropped)))


def _bound(number: int, size: int) -> None:
    if number > MAX_NAMES or size > MAX_NAME_BYTES:
        raise TooMuchError(
            f"more than {MAX_NAMES} names of resources, or {MAX_NAME_BYTES} bytes of them, on one stream"
        )


def _wanted_by(subscription: Subscription, names: Iterable[str]) -> Wanted:
    """An empty list asks for everything of a full-state type as long as no request has named anything."""
    asked = wanted(names)
    if asked:
        subscription.named = True
    if asked or subscription.named or subscription.type_url not in FULL_STATE:
        return asked
    return EVERYTHING


def _rank(type_url: str) -> tuple[int, str]:
    return (PUSH_ORDER.index(type_url) if type_url in PUSH_ORDER else len(PUSH_ORDER), type_url)
