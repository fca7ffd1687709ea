"""Any client, any changes, in any order: it ends with what it should have, and is never told to break."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.service.discovery.v3 import discovery_pb2 as discovery
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.config.subscription import CLUSTER_TYPE as CDS
from meshproxy.config.subscription import ENDPOINT_TYPE as EDS
from meshproxy.config.subscription import LISTENER_TYPE as LDS
from meshproxy.config.subscription import ROUTE_TYPE as RDS
from meshproxy.pilot.server.protocol import DeltaStream, StateOfTheWorldStream
from meshproxy.pilot.server.view import View
from meshproxy.pilot.snapshot import Snapshot
from tests.pilot.server.support import MESSAGES, ask, ask_delta, cluster, endpoints, listener, routes, snapshot

NAMES = ("a", "b", "c", "d")
# For each cluster: whether it is there, whether routes use it, its version, its port.
Shape = tuple[tuple[bool, bool, int, int], ...]
SHAPES = st.tuples(*(st.tuples(st.booleans(), st.booleans(), st.integers(1, 2), st.integers(1, 2)) for _ in NAMES))
# What happens next: a change, a response is delivered, the client sends what it has to say, or all of that is done.
STEPS = st.lists(st.one_of(SHAPES, st.sampled_from(["deliver", "deliver", "send", "send", "settle"])), max_size=40)


def shown(shape: Shape) -> Snapshot:
    """Routes use only clusters that are there."""
    there = [(name, *facts) for name, facts in zip(NAMES, shape, strict=True) if facts[0]]
    return snapshot(
        clusters=[cluster(name, version) for name, _, _, version, _ in there],
        endpoints=[endpoints(name, port) for name, _, _, _, port in there],
        listeners=[listener("l", len(there) + 1)],
        routes=[routes("r", *(name for name, _, used, _, _ in there if used))],
    )


class Client:
    """A proxy: it asks for the endpoints of each cluster that it has, and for the routes of its listener. `unsent` are
    requests that are on their way; they arrive in order."""

    def __init__(self, stream: Any, *, answers_first: bool) -> None:
        self.stream = stream
        self.has: dict[str, dict[str, bytes]] = {CDS: {}, EDS: {}, LDS: {}, RDS: {}}
        self.warm: set[str] = set()
        self.unsent: list[Any] = []
        self._answers_first = answers_first
        self._wants: dict[str, set[str]] = {EDS: set()}
        self._nonces = {CDS: "", EDS: "", LDS: "", RDS: ""}
        for type_url in (CDS, LDS):
            self._ask(type_url, set(), set())
        self._subscribe(RDS, {"r"})

    # -- what it sends

    def _ask(self, type_url: str, added: set[str], dropped: set[str], nonce: str = "") -> None:
        if self.stream.IS_DELTA:
            self.unsent.append(ask_delta(type_url, *sorted(added), drop=sorted(dropped), nonce=nonce))
        else:
            names = sorted(self._wants.get(type_url, ()))
            self.unsent.append(ask(type_url, *names, nonce=self._nonces[type_url]))

    def _subscribe(self, type_url: str, names: set[str]) -> None:
        before = self._wants.get(type_url, set())
        self._wants[type_url] = names
        if names != before:
            self._ask(type_url, names - before, before - names)

    def send(self) -> None:
        """The next request arrives."""
        if self.unsent:
            self.stream.receive(self.unsent.pop(0), 0.0)

    # -- what it takes

    def deliver(self) -> bool:
        """The next response arrives; whether there was one."""
        response = self.stream.next(0.0)
        if response is None:
            return False
        kind = discovery.DeltaDiscoveryResponse if self.stream.IS_DELTA else discovery.DiscoveryResponse
        self._take(kind.FromString(bytes(response)))
        return True

    def settle(self) -> None:
        """Everything that is to be said is said."""
        while self.unsent or self.deliver():
            self.send()

    def _take(self, response: Any) -> None:
        type_url = response.type_url
        found, removed = self._contents(response)
        has = self.has[type_url]
        if type_url == CDS:
            self.warm -= found.keys() - has.keys()  # one that changes goes on until the new one is warm
        if type_url == EDS:
            self.warm |= found.keys()
        has.update(found)
        for name in removed:
            has.pop(name, None)
        self._check()
        self._nonces[type_url] = response.nonce
        if self._answers_first:
            self._ask(type_url, set(), set(), response.nonce)
        if type_url == CDS:
            self._subscribe(EDS, set(has))
        if not self._answers_first:
            self._ask(type_url, set(), set(), response.nonce)

    def _contents(self, response: Any) -> tuple[dict[str, bytes], set[str]]:
        if self.stream.IS_DELTA:
            found = {each.name: each.resource.value for each in response.resources}
            return found, set(response.removed_resources)
        found = {}
        for packed in response.resources:
            message = MESSAGES[response.type_url].FromString(packed.value)
            found[message.cluster_name if response.type_url == EDS else message.name] = packed.value
        gone = set(self.has[response.type_url]) - found.keys() if response.type_url in (CDS, LDS) else set()
        return found, gone

    def _check(self) -> None:
        """Whatever its routes use is there, and has endpoints."""
        for name in self.used():
            assert name in self.has[CDS], f"routes use {name}, which is gone or not there yet"
            assert name in self.warm, f"routes use {name}, which has no endpoints yet"

    def used(self) -> set[str]:
        """The clusters that its routes use."""
        value = self.has[RDS].get("r", b"")
        return {host.routes[0].route.cluster for host in RouteConfiguration.FromString(value).virtual_hosts}


@pytest.mark.parametrize("stream", [StateOfTheWorldStream, DeltaStream], ids=["sotw", "delta"])
@given(first=SHAPES, steps=STEPS, answers_first=st.booleans())
def test_every_client_ends_with_what_is_there_and_is_never_broken(
    stream: Any, first: Shape, steps: list[Any], answers_first: bool
) -> None:
    made = stream()
    client = Client(made, answers_first=answers_first)
    latest = shown(first)
    view = View(latest, "tests")
    made.set_view(view)
    for step in steps:
        if step == "deliver":
            client.deliver()
        elif step == "send":
            client.send()
        elif step == "settle":
            client.settle()
        else:
            latest = shown(step)
            view = View(latest, "tests", 0.0, view)
            made.set_view(view)
    client.settle()
    assert made.settled
    for type_url in (CDS, LDS, RDS):
        there = {name: resource.data for name, resource in latest.of_type(type_url).items()}
        assert client.has[type_url] == there
    assignments = {name: resource.data for name, resource in latest.of_type(EDS).items()}
    assert {name: client.has[EDS].get(name) for name in assignments} == assignments
