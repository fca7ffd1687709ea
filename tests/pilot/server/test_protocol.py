"""The server's side of xDS streams, as the xDS protocol has it (state of the world, and incremental), without I/O."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.service.discovery.v3 import discovery_pb2 as discovery

from meshproxy.config.subscription import CLUSTER_TYPE as CDS
from meshproxy.config.subscription import ENDPOINT_TYPE as EDS
from meshproxy.config.subscription import LISTENER_TYPE as LDS
from meshproxy.config.subscription import ROUTE_TYPE as RDS
from meshproxy.config.subscription import SECRET_TYPE as SDS
from meshproxy.pilot.server import protocol
from meshproxy.pilot.server.protocol import (
    MAX_TYPES,
    PATIENCE_S,
    DeltaStream,
    RequestError,
    StateOfTheWorldStream,
    TooMuchError,
)
from meshproxy.pilot.server.view import View
from meshproxy.pilot.snapshot import Snapshot
from tests.pilot.server.support import MESSAGES, ask, ask_delta, changed, cluster, endpoints, listener, routes, snapshot

BASE = snapshot(
    clusters=[cluster("a"), cluster("b")],
    endpoints=[endpoints("a"), endpoints("b")],
    listeners=[listener("l")],
    routes=[routes("r", "a")],
)


class Playbook:
    """A stream, and a client that answers as it is told. `now` is the time."""

    def __init__(self, stream: Any, first: Snapshot | None = BASE) -> None:
        self.stream = stream
        self.now = 100.0
        self.view: View | None = None
        if first is not None:
            self.show(first)

    def show(self, shown: Snapshot) -> None:
        self.view = View(shown, "tests", 0.0, self.view)
        self.stream.set_view(self.view)

    def receive(self, request: Any) -> Any:
        return self.stream.receive(request, self.now)

    def next(self) -> Any:
        """The next response, parsed; None where there is none."""
        response = self.stream.next(self.now)
        if response is None:
            return None
        if self.stream.IS_DELTA:
            return discovery.DeltaDiscoveryResponse.FromString(bytes(response))
        return discovery.DiscoveryResponse.FromString(bytes(response))

    def all(self) -> list[Any]:
        """All responses that may leave without an answer."""
        found = []
        while (response := self.next()) is not None:
            found.append(response)
        return found


def sotw(first: Snapshot | None = BASE, type_url: str = "") -> Playbook:
    return Playbook(StateOfTheWorldStream(type_url), first)


def delta(first: Snapshot | None = BASE, type_url: str = "") -> Playbook:
    return Playbook(DeltaStream(type_url), first)


def names(response: Any) -> list[str]:
    """Those of the resources in a response."""
    if isinstance(response, discovery.DeltaDiscoveryResponse):
        return sorted(resource.name for resource in response.resources)
    kinds = {CDS: "name", EDS: "cluster_name", LDS: "name", RDS: "name"}
    found = []
    for packed in response.resources:
        message = MESSAGES[response.type_url]()
        assert packed.Unpack(message)
        found.append(getattr(message, kinds[response.type_url]))
    return sorted(found)


def ack(book: Playbook, response: Any, *wanted: str) -> None:
    """Take a response; with state of the world, `wanted` are the names that the client asks for."""
    if book.stream.IS_DELTA:
        book.receive(ask_delta(response.type_url, nonce=response.nonce))
    else:
        book.receive(ask(response.type_url, *wanted, nonce=response.nonce, version=response.version_info))


class TestStateOfTheWorld:
    def test_a_first_request_for_nothing_asks_for_all_clusters(self) -> None:
        book = sotw()
        book.receive(ask(CDS))
        response = book.next()
        assert (response.type_url, names(response)) == (CDS, ["a", "b"])
        assert response.nonce
        assert response.control_plane.identifier == "tests"
        assert book.next() is None

    def test_of_other_types_it_asks_for_nothing(self) -> None:
        book = sotw()
        book.receive(ask(EDS))
        book.receive(ask(RDS))
        assert book.next() is None

    def test_an_ack_is_not_answered(self) -> None:
        book = sotw()
        book.receive(ask(CDS))
        response = book.next()
        assert not book.stream.settled
        ack(book, response)
        assert book.stream.settled
        assert book.next() is None
        assert book.stream.subscriptions[CDS].accepted_version == response.version_info

    def test_a_nack_is_told_and_the_same_is_not_sent_again(self) -> None:
        book = sotw()
        book.receive(ask(CDS))
        response = book.next()
        rejection = book.receive(ask(CDS, nonce=response.nonce, error="clusters[0]: no"))
        assert (rejection.type_url, rejection.reason) == (CDS, "clusters[0]: no")
        assert rejection.version == response.version_info
        assert book.next() is None
        assert book.stream.subscriptions[CDS].accepted_version == ""

    def test_what_was_refused_goes_out_again_with_the_next_change(self) -> None:
        book = sotw()
        book.receive(ask(EDS, "a", "b"))
        response = book.next()
        book.receive(ask(EDS, "a", "b", nonce=response.nonce, error="a is wrong"))
        book.show(changed(BASE, endpoints=[endpoints("a", 81), endpoints("b")]))
        again = book.next()
        assert names(again) == ["a", "b"]  # `b` was in what the client refused: it may not have it
        ack(book, again, "a", "b")
        assert book.stream.subscriptions[EDS].rejection is None

    def test_what_was_refused_and_is_gone_is_made_good_by_an_ack(self) -> None:
        book = sotw()
        book.receive(ask(LDS))
        ack(book, book.next())
        book.show(changed(BASE, listeners=[listener("l"), listener("wrong")]))
        book.receive(ask(LDS, nonce=book.next().nonce, error="wrong is"))
        book.show(BASE)
        response = book.next()
        assert names(response) == ["l"]
        ack(book, response)
        assert book.stream.subscriptions[LDS].rejection is None
        assert book.next() is None

    def test_a_stale_nonce_is_neither_an_answer_nor_a_wish(self) -> None:
        book = sotw()
        book.receive(ask(EDS, "a"))
        first = book.next()
        ack(book, first, "a")
        book.show(changed(BASE, endpoints=[endpoints("a", 81), endpoints("b")]))
        second = book.next()
        book.receive(ask(EDS, "a", "b", nonce=first.nonce, version=first.version_info))
        assert not book.stream.settled
        assert book.next() is None
        ack(book, second, "a", "b")
        assert names(book.next()) == ["b"]

    def test_one_response_of_a_type_is_under_way_at_a_time(self) -> None:
        book = sotw()
        book.receive(ask(EDS, "a"))
        first = book.next()
        book.show(changed(BASE, endpoints=[endpoints("a", 81)]))
        book.show(changed(BASE, endpoints=[endpoints("a", 82)]))
        assert book.next() is None
        ack(book, first, "a")
        second = book.next()
        assert second.nonce != first.nonce
        assert endpoints("a", 82).data == second.resources[0].value
        ack(book, second, "a")
        assert book.next() is None

    def test_only_the_changed_assignment_is_sent(self) -> None:
        book = sotw()
        book.receive(ask(EDS, "a", "b"))
        ack(book, book.next(), "a", "b")
        book.show(changed(BASE, endpoints=[endpoints("a", 81), endpoints("b")]))
        assert names(book.next()) == ["a"]

    def test_a_response_of_a_full_state_type_has_everything(self) -> None:
        book = sotw()
        book.receive(ask(CDS))
        ack(book, book.next())
        book.show(changed(BASE, clusters=[cluster("a", 2), cluster("b")]))
        assert names(book.next()) == ["a", "b"]

    def test_a_removed_listener_is_absent(self) -> None:
        book = sotw()
        book.receive(ask(LDS))
        ack(book, book.next())
        book.show(changed(BASE, listeners=[]))
        response = book.next()
        assert (response.type_url, names(response)) == (LDS, [])

    def test_a_removed_assignment_is_told_by_nothing(self) -> None:
        book = sotw()
        book.receive(ask(EDS, "a", "b"))
        ack(book, book.next(), "a", "b")
        book.show(changed(BASE, endpoints=[endpoints("a")]))
        assert book.next() is None

    def test_a_name_that_is_added_is_sent_alone(self) -> None:
        book = sotw()
        book.receive(ask(EDS, "a"))
        ack(book, book.next(), "a")
        book.receive(ask(EDS, "a", "b", nonce=book.stream.subscriptions[EDS].nonce))
        assert names(book.next()) == ["b"]

    def test_a_name_that_is_dropped_and_asked_for_again_is_sent_again(self) -> None:
        book = sotw()
        book.receive(ask(EDS, "a", "b"))
        response = book.next()
        ack(book, response, "a", "b")
        book.receive(ask(EDS, "b", nonce=response.nonce))
        assert book.next() is None
        book.receive(ask(EDS, "a", "b", nonce=response.nonce))
        assert names(book.next()) == ["a"]

    def test_names_that_nobody_has_are_absent(self) -> None:
        book = sotw()
        book.receive(ask(LDS, "l", "nobody"))
        response = book.next()
        assert names(response) == ["l"]
        ack(book, response, "l", "nobody")
        book.receive(ask(LDS, "l", "nobody", "nor this", nonce=response.nonce))
        assert names(book.next()) == ["l"]  # the client learns from it that there is none

    def test_secrets_that_are_not_there_are_answered_with_none(self) -> None:
        book = sotw()
        book.receive(ask(SDS, "default"))
        response = book.next()
        assert (response.type_url, list(response.resources)) == (SDS, [])
        ack(book, response, "default")
        assert book.next() is None

    def test_all_listeners_may_be_none(self) -> None:
        book = sotw(snapshot())
        book.receive(ask(LDS))
        response = book.next()
        assert list(response.resources) == []
        assert response.version_info

    def test_names_end_the_wildcard_that_an_empty_request_began(self) -> None:
        book = sotw()
        book.receive(ask(CDS))
        response = book.next()
        ack(book, response)
        book.receive(ask(CDS, "a", nonce=response.nonce))
        response = book.next()
        assert names(response) == ["a"]
        ack(book, response, "a")
        book.show(changed(BASE, clusters=[cluster("a"), cluster("b", 2)]))
        assert book.next() is None
        book.receive(ask(CDS, nonce=response.nonce))  # and then, nothing is asked for
        book.show(changed(BASE, clusters=[cluster("a", 2), cluster("b", 2)]))
        assert book.next() is None

    def test_an_explicit_wildcard_and_a_name(self) -> None:
        book = sotw()
        book.receive(ask(EDS, "*", "nobody"))
        response = book.next()
        assert names(response) == ["a", "b"]
        ack(book, response, "*", "nobody")
        book.receive(ask(EDS, nonce=response.nonce))
        book.show(changed(BASE, endpoints=[endpoints("a", 81)]))
        assert book.next() is None

    def test_who_comes_back_with_this_very_version_is_not_sent_it(self) -> None:
        first = sotw()
        first.receive(ask(CDS))
        version = first.next().version_info
        book = sotw()
        book.receive(ask(CDS, version=version))
        assert book.next() is None
        assert book.stream.subscriptions[CDS].accepted_version == version
        book.show(changed(BASE, clusters=[cluster("a")]))
        assert names(book.next()) == ["a"]

    def test_assignments_are_sent_to_who_comes_back(self) -> None:
        first = sotw()
        first.receive(ask(EDS, "a"))
        version = first.next().version_info
        book = sotw()
        book.receive(ask(EDS, "a", version=version))
        assert names(book.next()) == ["a"]

    def test_before_there_is_a_snapshot_nothing_is_sent(self) -> None:
        book = sotw(None)
        book.receive(ask(CDS))
        book.receive(ask(EDS, "a"))
        book.receive(ask(EDS, "b"))
        assert book.next() is None
        book.show(BASE)
        assert [(each.type_url, names(each)) for each in book.all()] == [(CDS, ["a", "b"]), (EDS, ["b"])]

    def test_versions_are_hashes_of_the_contents(self) -> None:
        books = [sotw(), sotw(snapshot(clusters=[cluster("b"), cluster("a")]))]
        versions = []
        for book in books:
            book.receive(ask(CDS))
            versions.append(book.next().version_info)
        assert versions[0] == versions[1]

    def test_a_view_of_the_same_resources_is_no_news(self) -> None:
        book = sotw()
        book.receive(ask(CDS))
        ack(book, book.next())
        book.show(changed(BASE, clusters=[cluster("b"), cluster("a")]))
        assert book.next() is None


class TestDelta:
    def test_a_first_request_for_nothing_asks_for_all_clusters(self) -> None:
        book = delta()
        book.receive(ask_delta(CDS))
        response = book.next()
        assert (response.type_url, names(response)) == (CDS, ["a", "b"])
        assert {each.name: each.version for each in response.resources} == {
            "a": cluster("a").version,
            "b": cluster("b").version,
        }
        assert response.nonce

    def test_nothing_is_asked_for_of_other_types(self) -> None:
        book = delta()
        book.receive(ask_delta(EDS))
        assert book.next() is None

    def test_only_what_changed_is_sent(self) -> None:
        book = delta()
        book.receive(ask_delta(CDS))
        ack(book, book.next())
        book.show(changed(BASE, clusters=[cluster("a"), cluster("b", 2), cluster("c")]))
        response = book.next()
        assert (names(response), list(response.removed_resources)) == (["b", "c"], [])

    def test_what_is_gone_is_removed(self) -> None:
        book = delta()
        book.receive(ask_delta(CDS))
        ack(book, book.next())
        book.show(changed(BASE, clusters=[cluster("a")]))
        response = book.next()
        assert (names(response), list(response.removed_resources)) == ([], ["b"])
        ack(book, response)
        assert book.next() is None

    def test_a_name_that_nobody_has_is_removed_once(self) -> None:
        book = delta()
        book.receive(ask_delta(EDS, "a", "nobody"))
        response = book.next()
        assert (names(response), list(response.removed_resources)) == (["a"], ["nobody"])
        ack(book, response)
        assert book.next() is None
        book.show(changed(BASE, endpoints=[endpoints("a"), endpoints("nobody")]))
        assert names(book.next()) == ["nobody"]

    def test_names_come_and_go(self) -> None:
        book = delta()
        book.receive(ask_delta(EDS, "a"))
        ack(book, book.next())
        book.receive(ask_delta(EDS, "b", drop=["a"]))
        response = book.next()
        assert (names(response), list(response.removed_resources)) == (["b"], [])
        ack(book, response)
        book.show(changed(BASE, endpoints=[endpoints("a", 81), endpoints("b", 81)]))
        assert names(book.next()) == ["b"]

    def test_who_subscribes_again_is_sent_it_again(self) -> None:
        book = delta()
        book.receive(ask_delta(EDS, "a", "b"))
        ack(book, book.next())
        book.receive(ask_delta(EDS, "a"))
        assert names(book.next()) == ["a"]

    def test_a_name_that_was_dropped_and_comes_back_is_sent_again(self) -> None:
        book = delta()
        book.receive(ask_delta(EDS, "a", "b"))
        ack(book, book.next())
        book.receive(ask_delta(EDS, drop=["a"]))
        assert book.next() is None
        book.receive(ask_delta(EDS, "a"))
        assert names(book.next()) == ["a"]

    def test_names_join_the_wildcard_and_leave_it(self) -> None:
        book = delta()
        book.receive(ask_delta(CDS))
        ack(book, book.next())
        book.receive(ask_delta(CDS, "nobody"))
        response = book.next()
        assert (names(response), list(response.removed_resources)) == ([], ["nobody"])
        ack(book, response)
        book.show(changed(BASE, clusters=[cluster("a"), cluster("b"), cluster("c")]))
        response = book.next()
        assert names(response) == ["c"]  # the wildcard is in force
        ack(book, response)
        book.receive(ask_delta(CDS, drop=["*"]))
        book.show(changed(BASE, clusters=[cluster("a", 2), cluster("nobody")]))
        assert names(book.next()) == ["nobody"]

    def test_a_name_that_is_dropped_under_a_wildcard_is_told_again(self) -> None:
        book = delta()
        book.receive(ask_delta(CDS, "*", "a", "nobody"))
        ack(book, book.next())
        book.receive(ask_delta(CDS, drop=["a", "nobody"]))
        response = book.next()
        assert (names(response), list(response.removed_resources)) == (["a"], ["nobody"])

    def test_an_explicit_wildcard_works_for_all_types(self) -> None:
        book = delta()
        book.receive(ask_delta(EDS, "*"))
        assert names(book.next()) == ["a", "b"]

    def test_all_may_be_none(self) -> None:
        book = delta(snapshot())
        book.receive(ask_delta(LDS))
        response = book.next()
        assert (names(response), list(response.removed_resources)) == ([], [])

    def test_who_comes_back_is_sent_what_differs(self) -> None:
        book = delta()
        have = {"a": cluster("a").version, "b": "older", "gone": "1"}
        book.receive(ask_delta(CDS, have=have))
        assert names(book.next()) == ["b"]

    def test_what_is_gone_is_removed_when_the_client_has_said_what_else_it_has(self) -> None:
        book = delta()
        book.receive(ask_delta(CDS, have={"a": cluster("a").version, "b": cluster("b").version, "gone": "1"}))
        assert book.next() is None  # its listeners and routes may use it
        book.receive(ask_delta(LDS, have={"l": "older"}))
        response = book.next()
        assert (response.type_url, names(response)) == (LDS, ["l"])
        assert book.next() is None
        ack(book, response)
        response = book.next()
        assert (response.type_url, list(response.removed_resources)) == (CDS, ["gone"])

    def test_or_when_it_says_nothing_for_a_while(self) -> None:
        book = delta()
        book.receive(ask_delta(CDS, have={"a": cluster("a").version, "b": cluster("b").version, "gone": "1"}))
        assert book.next() is None
        assert book.stream.waits
        book.now += PATIENCE_S
        assert list(book.next().removed_resources) == ["gone"]
        assert not book.stream.waits

    def test_who_comes_back_with_everything_is_sent_nothing(self) -> None:
        book = delta()
        book.receive(ask_delta(CDS, have={"a": cluster("a").version, "b": cluster("b").version}))
        assert book.next() is None

    def test_what_it_no_longer_asks_for_does_not_count(self) -> None:
        book = delta()
        book.receive(ask_delta(EDS, "a", have={"a": endpoints("a").version, "other": "1"}))
        assert book.next() is None

    def test_a_nack_is_told_and_the_same_is_not_sent_again(self) -> None:
        book = delta()
        book.receive(ask_delta(CDS))
        response = book.next()
        rejection = book.receive(ask_delta(CDS, nonce=response.nonce, error="a: no"))
        assert (rejection.type_url, rejection.reason) == (CDS, "a: no")
        assert rejection.version == response.system_version_info
        assert book.next() is None
        book.show(changed(BASE, clusters=[cluster("a", 2), cluster("b")]))
        assert names(book.next()) == ["a", "b"]

    def test_what_was_refused_and_is_gone_is_removed(self) -> None:
        book = delta()
        book.receive(ask_delta(LDS))
        ack(book, book.next())
        book.show(changed(BASE, listeners=[listener("l"), listener("wrong")]))
        book.receive(ask_delta(LDS, nonce=book.next().nonce, error="wrong is"))
        book.show(BASE)
        response = book.next()
        assert (names(response), list(response.removed_resources)) == ([], ["wrong"])
        ack(book, response)
        assert book.stream.subscriptions[LDS].rejection is None
        assert book.next() is None

    def test_a_wish_counts_though_its_nonce_is_stale(self) -> None:
        book = delta()
        book.receive(ask_delta(EDS, "a"))
        first = book.next()
        ack(book, first)
        book.show(changed(BASE, endpoints=[endpoints("a", 81), endpoints("b")]))
        second = book.next()
        book.receive(ask_delta(EDS, "b", nonce=first.nonce))
        assert book.next() is None  # the second response is not answered yet
        ack(book, second)
        assert names(book.next()) == ["b"]

    def test_a_wish_with_an_answer(self) -> None:
        book = delta()
        book.receive(ask_delta(EDS, "a"))
        book.receive(ask_delta(EDS, "b", nonce=book.next().nonce))
        assert names(book.next()) == ["b"]


@pytest.mark.parametrize("stream", [StateOfTheWorldStream, DeltaStream])
class TestOrder:
    """On an aggregated stream, in both variants."""

    @staticmethod
    def connected(stream: Any) -> Playbook:
        """A client that has everything."""
        book = Playbook(stream())
        wish = ask_delta if stream.IS_DELTA else ask
        for type_url, asked in ((CDS, ()), (EDS, ("a", "b")), (LDS, ()), (RDS, ("r",))):
            book.receive(wish(type_url, *asked))
            ack(book, book.next(), *asked)
        assert book.next() is None
        assert not book.stream.waits
        return book

    def test_clusters_then_endpoints_then_listeners_then_routes(self, stream: Any) -> None:
        book = Playbook(stream())
        wish = ask_delta if stream.IS_DELTA else ask
        for type_url, asked in ((RDS, ("r",)), (LDS, ()), (EDS, ("a", "b")), (CDS, ())):
            book.receive(wish(type_url, *asked))
        first = book.all()
        assert [each.type_url for each in first] == [CDS, EDS]
        ack(book, first[0])
        assert book.next() is None
        ack(book, first[1], "a", "b")
        assert [each.type_url for each in book.all()] == [LDS, RDS]

    def test_routes_wait_until_new_clusters_are_warm(self, stream: Any) -> None:
        book = self.connected(stream)
        book.show(
            changed(
                BASE,
                clusters=[cluster("a"), cluster("b"), cluster("c")],
                endpoints=[endpoints("a"), endpoints("b"), endpoints("c")],
                routes=[routes("r", "c")],
            )
        )
        (clusters,) = book.all()
        assert clusters.type_url == CDS
        ack(book, clusters)
        assert book.next() is None  # nobody has asked for the endpoints of `c`
        wish = ask_delta(EDS, "c") if stream.IS_DELTA else ask(EDS, "a", "b", "c", nonce=_nonce(book, EDS))
        book.receive(wish)
        (assignments,) = book.all()
        assert (assignments.type_url, names(assignments)) == (EDS, ["c"])
        ack(book, assignments, "a", "b", "c")
        (route,) = book.all()
        assert (route.type_url, names(route)) == (RDS, ["r"])

    def test_also_when_the_clusters_cannot_leave_yet(self, stream: Any) -> None:
        book = self.connected(stream)
        book.show(changed(BASE, clusters=[cluster("a", 2), cluster("b")]))
        clusters, assignments = book.all()
        book.show(
            changed(
                BASE,
                clusters=[cluster("a", 2), cluster("b"), cluster("c")],
                endpoints=[endpoints("a"), endpoints("b")],
                routes=[routes("r", "c")],
            )
        )
        ack(book, assignments, "a", "b")
        assert book.next() is None  # clusters of before are under way: `c` is not there
        ack(book, clusters)
        (clusters,) = book.all()
        assert "c" in names(clusters)
        ack(book, clusters)
        assert book.next().type_url == RDS

    def test_they_do_not_wait_for_ever(self, stream: Any) -> None:
        book = self.connected(stream)
        book.show(
            changed(
                BASE,
                clusters=[cluster("a"), cluster("b"), cluster("c")],
                endpoints=[endpoints("a"), endpoints("b"), endpoints("c")],
                routes=[routes("r", "c")],
            )
        )
        ack(book, book.next())
        assert book.next() is None
        book.now += PATIENCE_S
        assert book.next().type_url == RDS

    def test_nor_for_clusters_that_are_refused(self, stream: Any) -> None:
        book = self.connected(stream)
        book.show(changed(BASE, clusters=[cluster("a", 2), cluster("b")], routes=[routes("r", "b")]))
        clusters, assignments = book.all()
        ack(book, assignments, "a", "b")
        wish = ask_delta if stream.IS_DELTA else ask
        book.receive(wish(CDS, nonce=clusters.nonce, error="no"))
        assert book.next().type_url == RDS

    def test_endpoints_of_a_changed_cluster_are_sent_again(self, stream: Any) -> None:
        book = self.connected(stream)
        book.show(changed(BASE, clusters=[cluster("a", 2), cluster("b")]))
        found = book.all()
        assert [each.type_url for each in found] == [CDS, EDS]
        assert names(found[1]) == ["a"]

    def test_endpoints_alone_do_not_hold_up_routes(self, stream: Any) -> None:
        book = self.connected(stream)
        book.show(changed(BASE, endpoints=[endpoints("a", 81), endpoints("b")], routes=[routes("r", "b")]))
        assert [each.type_url for each in book.all()] == [EDS, RDS]

    def test_a_cluster_is_removed_after_the_routes_that_used_it(self, stream: Any) -> None:
        book = self.connected(stream)
        book.show(
            changed(
                BASE,
                clusters=[cluster("b"), cluster("c")],
                endpoints=[endpoints("b"), endpoints("c")],
                routes=[routes("r", "c")],
            )
        )
        (clusters,) = book.all()
        assert set(names(clusters)) >= {"c"}
        assert _removed(book, clusters) == []
        ack(book, clusters)
        book.receive(ask_delta(EDS, "c") if stream.IS_DELTA else ask(EDS, "a", "b", "c", nonce=_nonce(book, EDS)))
        (assignments,) = book.all()
        ack(book, assignments, "a", "b", "c")
        (route,) = book.all()
        assert book.next() is None
        ack(book, route, "r")
        (clusters,) = book.all()
        assert _removed(book, clusters) == ["a"]
        ack(book, clusters)
        if stream.IS_DELTA:
            (assignments,) = book.all()
            assert list(assignments.removed_resources) == ["a"]
        else:
            assert book.next() is None

    def test_it_stays_while_the_client_refuses_those_routes(self, stream: Any) -> None:
        book = self.connected(stream)
        book.show(changed(BASE, clusters=[cluster("b")], endpoints=[endpoints("b")], routes=[routes("r", "b")]))
        (route,) = book.all()
        wish = ask_delta if stream.IS_DELTA else ask
        wanted = () if stream.IS_DELTA else ("r",)
        book.receive(wish(RDS, *wanted, nonce=route.nonce, error="no"))
        assert book.next() is None
        book.show(changed(BASE, clusters=[cluster("b")], endpoints=[endpoints("b")], routes=[routes("r", "b", "b2")]))
        (route,) = book.all()
        ack(book, route, "r")
        assert "a" in _removed(book, book.next())

    def test_another_scope_is_a_change_like_any_other(self, stream: Any) -> None:
        book = self.connected(stream)
        book.show(snapshot(clusters=[cluster("b")], endpoints=[endpoints("b")], listeners=[listener("l")]))
        found = book.all()
        assert {each.type_url for each in found} <= {CDS, RDS}


def _nonce(book: Playbook, type_url: str) -> str:
    return str(book.stream.subscriptions[type_url].nonce)


def _removed(book: Playbook, response: Any) -> list[str]:
    """What a response of clusters takes away from a client that has had `a`, `b` and `c`."""
    if book.stream.IS_DELTA:
        return list(response.removed_resources)
    return sorted({"a", "b", "c"} - set(names(response)))


@pytest.mark.parametrize(("stream", "wish"), [(StateOfTheWorldStream, ask), (DeltaStream, ask_delta)])
class TestRequests:
    def test_the_type_of_a_stream_for_one_need_not_be_told(self, stream: Any, wish: Any) -> None:
        book = Playbook(stream(CDS))
        book.receive(wish(""))
        assert book.next().type_url == CDS

    def test_another_type_is_refused(self, stream: Any, wish: Any) -> None:
        with pytest.raises(RequestError, match=r"this method serves .*Cluster, not .*Listener"):
            Playbook(stream(CDS)).receive(wish(LDS))

    def test_an_aggregated_stream_needs_one(self, stream: Any, wish: Any) -> None:
        with pytest.raises(RequestError, match="type_url is required"):
            Playbook(stream()).receive(wish(""))

    def test_types_are_bounded(self, stream: Any, wish: Any) -> None:
        book = Playbook(stream())
        for number in range(MAX_TYPES):
            book.receive(wish(f"type.googleapis.com/unknown.{number}"))
        with pytest.raises(RequestError, match=f"more than {MAX_TYPES}"):
            book.receive(wish("type.googleapis.com/one.more"))

    def test_a_type_that_nobody_knows_has_no_resources(self, stream: Any, wish: Any) -> None:
        book = Playbook(stream())
        book.receive(wish("type.googleapis.com/unknown", "x"))
        answer = book.next()
        assert list(answer.resources) == []
        ack(book, answer, "x")
        book.show(changed(BASE, clusters=[cluster("c")]))
        assert book.next() is None  # once

    def test_the_name_of_a_type_is_bounded(self, stream: Any, wish: Any) -> None:
        with pytest.raises(RequestError, match="type_url is longer than 256 characters"):
            Playbook(stream()).receive(wish("type.googleapis.com/" + "x" * 256))

    def test_names_are_bounded_over_all_types(self, stream: Any, wish: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(protocol, "MAX_NAMES", 4)
        book = Playbook(stream())
        book.receive(wish(EDS, "a", "b"))
        book.receive(wish(CDS, "a", "b"))
        with pytest.raises(TooMuchError, match="more than 4 names of resources"):
            book.receive(wish(RDS, "r"))

    def test_the_bytes_of_names_are_bounded(self, stream: Any, wish: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(protocol, "MAX_NAME_BYTES", 100)
        book = Playbook(stream())
        book.receive(wish(EDS, "a" * 60))
        with pytest.raises(TooMuchError, match="or 100 bytes of them"):
            book.receive(wish(CDS, "b" * 60))

    def test_the_time_of_the_oldest_unanswered_response(self, stream: Any, wish: Any) -> None:
        book = Playbook(stream())
        assert book.stream.oldest_sent_at() is None
        book.receive(wish(CDS))
        book.next()
        book.now += 3.0
        book.receive(wish(EDS, "a"))
        response = book.stream.next(book.now)
        assert book.stream.oldest_sent_at() == 100.0
        ack(book, _answered(book, CDS))
        assert book.stream.oldest_sent_at() == 103.0
        book.stream.leaves(response, 110.0)
        assert book.stream.oldest_sent_at() == 110.0


def _answered(book: Playbook, type_url: str) -> Any:
    """The response of a type that is under way, as far as an ACK names it."""
    return discovery.DiscoveryResponse(type_url=type_url, nonce=_nonce(book, type_url))


def test_versions_that_a_client_comes_with_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_NAMES", 2)
    delta().receive(ask_delta(CDS, have={"a": "1", "b": "1"}))
    with pytest.raises(TooMuchError):
        delta().receive(ask_delta(CDS, have={"a": "1", "b": "1", "c": "1"}))


def test_names_that_a_client_drops_under_a_wildcard_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_NAMES", 3)
    book = delta()
    book.receive(ask_delta(CDS))
    book.next()
    book.receive(ask_delta(CDS, drop=["x", "y"]))
    with pytest.raises(TooMuchError):
        book.receive(ask_delta(CDS, drop=["v", "w"]))


@pytest.mark.parametrize("type_url", [EDS, RDS, SDS])
def test_state_of_the_world_says_which_names_there_are_not(type_url: str) -> None:
    book = sotw()
    book.receive(ask(type_url, "a", "r", "nobody"))
    answer = book.next()
    missing = {error.resource_name.name: error.error_detail.code for error in answer.resource_errors}
    present = set(book.view.snapshot.of_type(type_url)) if book.view is not None else set()
    assert missing == dict.fromkeys({"a", "r", "nobody"} - present, 5)  # NOT_FOUND
    ack(book, answer, "a", "r", "nobody")
    assert book.next() is None  # once
    # One more name: only of that one.
    book.receive(ask(type_url, "a", "r", "nobody", "neither", nonce=answer.nonce, version=answer.version_info))
    (error,) = book.next().resource_errors
    assert error.resource_name.name == "neither"


def test_what_was_not_there_is_sent_when_it_comes() -> None:
    book = sotw()
    book.receive(ask(EDS, "a", "c"))
    ack(book, book.next(), "a", "c")
    book.show(changed(BASE, endpoints=[endpoints("a"), endpoints("c")]))
    answer = book.next()
    assert (names(answer), list(answer.resource_errors)) == (["c"], [])


def test_what_a_client_has_is_not_taken_away_by_an_error() -> None:
    book = sotw()
    book.receive(ask(EDS, "a", "b"))
    ack(book, book.next(), "a", "b")
    book.show(changed(BASE, endpoints=[endpoints("b", 81)]))
    answer = book.next()
    assert (names(answer), list(answer.resource_errors)) == (["b"], [])
    ack(book, answer, "a", "b")
    assert book.next() is None
