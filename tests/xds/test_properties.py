"""Random servers against a model: whatever is sent, cut, refused or repeated, both forms end in the same state."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.config.config_source import ADS
from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE
from meshproxy.xds.delta import DeltaState
from meshproxy.xds.resources import Rejection
from meshproxy.xds.sotw import SotwState
from meshproxy.xds.state import TypeState
from tests.support.control_plane import delta_response, resource, response
from tests.xds.harness import AT_ONCE, KINDS, api, assignment, client, cluster, envoy_grpc

NAMES = "abcd"

# What happens: the world changes (a name has another version, or is gone), a name is asked for or no longer, the
# client refuses a version, the stream breaks before or after the client has the response.
EVENTS = st.one_of(
    st.tuples(st.just("world"), st.sampled_from(NAMES), st.integers(0, 5)),
    st.tuples(st.just("ask"), st.sampled_from([*NAMES, "*"]), st.booleans()),
    st.tuples(st.just("refuse"), st.sampled_from(NAMES), st.integers(1, 5)),
    st.tuples(st.just("cut"), st.booleans(), st.none()),
)


class Server:
    """A server by the rules, for one type: what it owes the client, in either form."""

    def __init__(self, type_url: str, delta: bool) -> None:
        self.type_url = type_url
        self.delta = delta
        self.world: dict[str, int] = {}
        self.begin()

    def begin(self) -> None:
        """A stream."""
        self.names: set[str] = set()
        self.sent: dict[str, int | str] = {}
        self.first = True
        self.owes = False

    def take(self, request: Any) -> None:
        if self.delta:
            self._take_delta(request)
        else:
            named = set(request.resource_names)
            self.names = named or ({"*"} if self.first or self.names == {"*"} else set())
            self.owes = self.owes or self.first
        self.first = False
        self.sent = {name: version for name, version in self.sent.items() if self.wants(name)}

    def _take_delta(self, request: Any) -> None:
        if self.first:
            self.sent.update(request.initial_resource_versions)
            self.names = set() if request.resource_names_subscribe else {"*"}
        self.names -= set(request.resource_names_unsubscribe)
        self.names |= set(request.resource_names_subscribe)
        if not self.first:
            for name in request.resource_names_subscribe:
                self.sent.pop(name, None)

    def wants(self, name: str) -> bool:
        return name in self.names or "*" in self.names

    def next(self) -> Any:
        """The response that is due; None where the client has all."""
        wanted = {name: version for name, version in self.world.items() if self.wants(name)}
        known = {name: str(version) for name, version in self.sent.items()}
        news = {name: version for name, version in wanted.items() if known.get(name) != str(version)}
        gone = [name for name in known if name not in wanted]
        whole = self.type_url == CLUSTER_TYPE
        if not news and not (gone and (self.delta or whole)) and not (self.owes and whole):
            return None
        self.sent, self.owes = dict(wanted), False
        if self.delta:
            made = [resource(name, self.message(name, version), str(version)) for name, version in news.items()]
            return delta_response(self.type_url, made, gone)
        due = wanted if whole else news
        version = ",".join(f"{name}{at}" for name, at in sorted(self.world.items()))
        return response(self.type_url, [self.message(*each) for each in due.items()], version)

    def message(self, name: str, version: int) -> Any:
        made = KINDS[self.type_url](name)
        if self.type_url == CLUSTER_TYPE:
            made.alt_stat_name = str(version)
        else:
            made.endpoints.add(priority=version)
        return made


class Model:
    """A client, with what it has in force."""

    def __init__(self, state: TypeState, server: Server) -> None:
        self.state = state
        self.server = server
        self.held: dict[str, bytes] = {}
        self.refused: set[tuple[str, int]] = set()
        self.stream()

    def stream(self) -> None:
        self.server.begin()
        self.state.begin_stream()
        self.talk()

    def talk(self) -> None:
        while self.state.due:
            self.server.take(self.state.request())

    def settle(self) -> None:
        """Until nobody has anything to say."""
        self.talk()
        while (message := self.server.next()) is not None:
            self.receive(message)
            self.talk()

    def receive(self, message: Any) -> None:
        self.state.begin_response()
        decoder = self.state.decoder(message)
        for _ in decoder.steps():
            pass
        change = self.state.change(decoder, message)
        refused = {self.server.message(*each).SerializeToString() for each in self.refused}
        rejections = [Rejection(each.name, "bad") for each in change.updates if each.data in refused]
        for each in change.updates:
            if each.data not in refused:
                self.held[each.name] = each.data
        for name in change.removed:
            self.held.pop(name, None)
        self.state.conclude(change, rejections, same_stream=True)

    def ask(self, name: str, wanted: bool) -> None:
        if wanted:
            self.state.subscribe(name)
        else:
            self.state.unsubscribe(name)
        self.held = {each: data for each, data in self.held.items() if self.state.wants(each)}


def play(model: Model, events: list[Any]) -> None:
    for kind, first, second in events:
        if kind == "world":
            model.server.world[first] = second
            if second == 0:
                del model.server.world[first]
        elif kind == "ask":
            model.ask(first, second)
        elif kind == "refuse":
            model.refused.add((first, second))
            continue
        else:
            model.talk()
            message = model.server.next()
            if first and message is not None:
                model.receive(message)  # and its answer is lost
            model.stream()
        model.settle()


@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
@pytest.mark.parametrize("type_url", [CLUSTER_TYPE, ENDPOINT_TYPE], ids=["clusters", "endpoints"])
@given(events=st.lists(EVENTS, max_size=25))
def test_the_client_has_what_the_server_has(delta: bool, type_url: str, events: list[Any]) -> None:
    state = DeltaState(type_url) if delta else SotwState(type_url)
    model = Model(state, Server(type_url, delta))
    play(model, events)
    for name, version in model.server.world.items():
        if state.wants(name) and (name, version) not in model.refused:
            assert model.held.get(name) == model.server.message(name, version).SerializeToString(), name
    if type_url == CLUSTER_TYPE or delta:
        assert set(model.held) <= set(model.server.world)
    assert not state.due
    assert all(state.wants(name) for name in state.held)


@given(data=st.binary(max_size=200), delta=st.booleans())
def test_no_bytes_break_the_reader(data: bytes, delta: bool) -> None:
    state = DeltaState(CLUSTER_TYPE) if delta else SotwState(CLUSTER_TYPE)
    state.subscribe("*")
    state.begin_stream()
    good = cluster("good")
    if delta:
        message = delta_response(CLUSTER_TYPE, [resource("bad", good), resource("good", good)])
        message.resources[0].resource.value = data
    else:
        message = response(CLUSTER_TYPE, [good, good])
        message.resources[0].value = data
        message.resources[1].value = cluster("other").SerializeToString()
    decoder = state.decoder(message)
    for _ in decoder.steps():
        pass
    change = state.change(decoder, message)
    assert ("good" if delta else "other") in {each.name for each in change.updates}
    state.conclude(change, [], same_stream=True)
    assert state.request().HasField("error_detail") == bool(change.rejections)


# -- over the wire


STEPS = 6


@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
@pytest.mark.parametrize("cut_at", range(STEPS + 1))
async def test_a_stream_that_is_cut_at_any_step_ends_in_the_same_state(delta: bool, cut_at: int) -> None:
    """The control plane breaks the stream once, after so many requests and responses; then it goes on as ever."""
    config = api(delta=delta, grpc_services=[envoy_grpc(**AT_ONCE)])
    async with client(config) as c:
        said = 0

        def count(*_: Any) -> None:
            nonlocal said
            said += 1
            if said == cut_at:
                c.plane.streams[0].cut()

        c.plane.on_say = count
        c.plane.set(CLUSTER_TYPE, {"a": cluster("a"), "b": cluster("b")})
        c.plane.set(ENDPOINT_TYPE, {"a": assignment("a")})
        c.xds.subscribe(ADS, CLUSTER_TYPE, "*")
        c.xds.subscribe(ADS, ENDPOINT_TYPE, "a")
        c.xds.start()
        await c.plane.until(lambda: said >= STEPS)
        c.plane.set(CLUSTER_TYPE, {"b": cluster("b", "new")}, "2")
        await c.sink.holds(CLUSTER_TYPE, "b")
        await c.sink.holds(ENDPOINT_TYPE, "a")
        assert c.sink.held[CLUSTER_TYPE]["b"].alt_stat_name == "new"
        assert len(c.plane.streams) == (1 if cut_at == 0 else 2)
