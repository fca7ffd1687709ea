"""Delta, by the rules of Envoy's xDS protocol document."""

from __future__ import annotations

from envoy.config.route.v3.route_components_pb2 import VirtualHost

from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, VIRTUAL_HOST_TYPE
from tests.support.control_plane import delta_response, resource
from tests.xds.harness import assignment, cluster
from tests.xds.playbook import DeltaPlay


def endpoints(*names: str) -> DeltaPlay:
    """A stream on which these are asked for."""
    play = DeltaPlay(ENDPOINT_TYPE)
    play.subscribe(*names)
    assert list(play.begin().resource_names_subscribe) == list(names)
    return play


def clusters() -> DeltaPlay:
    """A stream on which all are asked for."""
    play = DeltaPlay(CLUSTER_TYPE)
    play.subscribe("*")
    assert not play.begin().resource_names_subscribe
    return play


# -- ACK and NACK


def test_the_first_request_of_a_wildcard_type_is_empty() -> None:
    play = DeltaPlay(CLUSTER_TYPE)
    play.subscribe("*")
    request = play.begin()
    assert request.type_url == CLUSTER_TYPE
    assert not request.resource_names_subscribe
    assert not request.initial_resource_versions
    assert play.next() is None


def test_an_ack_has_the_nonce_and_nothing_else() -> None:
    play = endpoints("a")
    ack = play.send(resource("a", assignment("a")), nonce="n1")
    assert ack.response_nonce == "n1"
    assert not ack.HasField("error_detail")
    assert not ack.resource_names_subscribe
    assert play.next() is None


def test_a_nack_has_every_reason() -> None:
    play = endpoints("a", "b")
    resources = [resource(name, assignment(name)) for name in "ab"]
    nack = play.send(*resources, nonce="n1", refuse={"a": "x.y: bad", "b": "z[1]: worse"})
    assert (nack.response_nonce, nack.error_detail.code) == ("n1", 3)
    assert nack.error_detail.message == "a: x.y: bad\nb: z[1]: worse"


def test_every_response_has_an_answer_of_its_own() -> None:
    play = endpoints("a", "b")
    for nonce in ("n1", "n2"):
        message = delta_response(ENDPOINT_TYPE, [resource("a", assignment("a"))], nonce=nonce)
        decoder = play.state.decoder(message)
        list(decoder.steps())
        play.state.conclude(play.state.change(decoder, message), [], same_stream=True)
    assert [play.next().response_nonce, play.next().response_nonce, play.next()] == ["n1", "n2", None]


# -- names


def test_names_come_and_go() -> None:
    play = endpoints("a", "b")
    play.subscribe("d", "e")
    play.unsubscribe("a")
    request = play.next()
    assert list(request.resource_names_subscribe) == ["d", "e"]
    assert list(request.resource_names_unsubscribe) == ["a"]
    assert request.response_nonce == ""
    assert play.next() is None


def test_a_name_that_goes_and_comes_back_is_subscribed_anew() -> None:
    play = endpoints("a")
    play.unsubscribe("a")
    play.subscribe("a")
    request = play.next()
    assert list(request.resource_names_subscribe) == ["a"]
    assert not request.resource_names_unsubscribe


def test_the_wildcard_with_names() -> None:
    play = DeltaPlay(CLUSTER_TYPE)
    play.subscribe("*", "a")
    assert list(play.begin().resource_names_subscribe) == ["*", "a"]
    play.unsubscribe("*")
    assert list(play.next().resource_names_unsubscribe) == ["*"]
    play.send(resource("a", cluster("a")), resource("b", cluster("b")))
    assert play.updates == {"a": "1"}


def test_a_name_beside_the_wildcard_of_old() -> None:
    play = clusters()
    play.subscribe("a")
    assert list(play.next().resource_names_subscribe) == ["a"]
    play.send(resource("a", cluster("a")), resource("b", cluster("b")))
    play.unsubscribe("a")
    assert list(play.next().resource_names_unsubscribe) == ["a"]
    assert dict(play.begin().initial_resource_versions) == {"a": "1", "b": "1"}  # the wildcard has it still


def test_what_only_the_wildcard_held_goes_with_it() -> None:
    play = DeltaPlay(CLUSTER_TYPE)
    play.subscribe("*", "a")
    play.begin()
    play.send(resource("a", cluster("a")), resource("b", cluster("b")))
    play.unsubscribe("*")
    request = play.begin()
    assert (list(request.resource_names_subscribe), dict(request.initial_resource_versions)) == (["a"], {"a": "1"})


def test_nothing_asked_for_is_nothing_said() -> None:
    play = DeltaPlay(ENDPOINT_TYPE)
    assert play.begin() is None
    play.subscribe("a")
    play.unsubscribe("a")
    assert play.next() is None


# -- resources


def test_removed_resources_are_gone() -> None:
    play = clusters()
    play.send(resource("a", cluster("a")), resource("b", cluster("b")))
    play.send(removed=("a", "unheard-of"))
    assert (play.updates, play.removed) == ({}, ["a"])
    assert dict(play.begin().initial_resource_versions) == {"b": "1"}


def test_a_name_asked_for_that_does_not_exist_is_said_to_be_gone() -> None:
    play = endpoints("a")
    play.send(removed=("a", "other"))
    assert play.removed == ["a"]


def test_names_of_removed_resources_in_their_new_form() -> None:
    play = endpoints("a")
    message = delta_response(ENDPOINT_TYPE, [])
    message.removed_resource_names.add(name="a")
    play.receive(message)
    assert play.removed == ["a"]


def test_removed_and_updated_in_one_response_is_updated() -> None:
    play = clusters()
    play.send(resource("a", cluster("a")))
    play.send(resource("a", cluster("a", "new"), "2"), removed=("a",))
    assert (play.updates, play.removed) == ({"a": "2"}, [])


def test_each_resource_has_a_version_of_its_own() -> None:
    play = endpoints("a", "b")
    play.send(resource("a", assignment("a"), "va"), resource("b", assignment("b"), "vb"))
    assert play.updates == {"a": "va", "b": "vb"}


def test_the_name_is_that_of_the_wrapping() -> None:
    play = endpoints("a")
    play.send(resource("", assignment("a")))
    assert play.updates == {"a": "1"}
    play.send(resource("a", assignment("b")))
    assert play.refused == ["a: resources[0]: the name in it is 'b'"]


def test_of_one_name_twice_the_first_counts() -> None:
    play = endpoints("a")
    nack = play.send(resource("a", assignment("a"), "1"), resource("a", assignment("a"), "2"))
    assert nack.error_detail.message == "a: resources[1]: the name is there twice; the first counts"
    assert dict(play.begin().initial_resource_versions) == {"a": "1"}


# -- a new stream


def test_a_new_stream_says_what_was_taken_and_nothing_that_was_refused() -> None:
    play = endpoints("a", "b", "d", "e")
    play.send(
        *(resource(name, assignment(name), "1") for name in "abd"),
        refuse={"b": "bad"},
    )
    play.send(resource("a", assignment("a"), "2"), nonce="n2", refuse={"a": "bad"})
    play.unsubscribe("d")
    request = play.begin()
    assert list(request.resource_names_subscribe) == ["a", "b", "e"]
    assert dict(request.initial_resource_versions) == {"a": "1"}
    assert request.response_nonce == ""
    assert not request.resource_names_unsubscribe


def test_restored_versions_are_said() -> None:
    play = DeltaPlay(CLUSTER_TYPE)
    play.state.restore({"a": "x", "b": "y"})
    play.subscribe("*")
    assert dict(play.begin().initial_resource_versions) == {"a": "x", "b": "y"}
    play.send(removed=("a",))
    assert play.removed == ["a"]


def test_restored_versions_of_names_nobody_asks_for_are_not_said() -> None:
    play = DeltaPlay(ENDPOINT_TYPE)
    play.state.restore({"a": "x", "b": "y"})
    play.subscribe("b")
    assert dict(play.begin().initial_resource_versions) == {"b": "y"}


def test_what_has_expired_is_not_said() -> None:
    play = endpoints("a")
    play.send(resource("a", assignment("a"), ttl_s=1))
    play.state.expire(["a"])
    assert not play.begin().initial_resource_versions


# -- heartbeats


def test_a_heartbeat_of_the_version_that_is_held() -> None:
    play = endpoints("a")
    play.send(resource("a", assignment("a"), "1", 1))
    message = delta_response(ENDPOINT_TYPE, [resource("a", None, "1", 2)])
    decoder = play.state.decoder(message)
    list(decoder.steps())
    change = play.state.change(decoder, message)
    assert (change.only_heartbeats, change.refreshed) == (True, [("a", 2000)])


def test_a_heartbeat_of_another_version_is_no_resource() -> None:
    play = endpoints("a")
    play.send(resource("a", assignment("a"), "1", 1))
    play.send(resource("a", None, "2", 1))
    assert play.refused == ["a: resources[0]: has no resource in it"]


# -- virtual hosts


def test_a_route_configuration_asks_for_all_its_virtual_hosts() -> None:
    play = DeltaPlay(VIRTUAL_HOST_TYPE)
    play.subscribe("routes/*")
    request = play.begin()
    assert request.type_url == VIRTUAL_HOST_TYPE
    assert not request.resource_names_subscribe
    play.send(resource("routes/a", VirtualHost(name="a", domains=["a"])), resource("others/a", VirtualHost(name="a")))
    assert play.updates == {"routes/a": "1"}
    play.send(removed=("routes/a", "others/a"))
    assert play.removed == ["routes/a"]
    play.subscribe("routes/b")
    assert list(play.next().resource_names_subscribe) == ["routes/b"]
    assert list(play.begin().resource_names_subscribe) == ["routes/b"]
    play.unsubscribe("routes/*")
    assert play.next() is None
    play.send(resource("routes/a", VirtualHost(name="a", domains=["a"])))
    assert play.updates == {}


def test_a_virtual_host_by_an_alias() -> None:
    play = DeltaPlay(VIRTUAL_HOST_TYPE)
    play.subscribe("r/a.test:80")
    play.begin()
    play.send(resource("x/a", VirtualHost(name="a", domains=["a"]), aliases=("r/a.test:80",)))
    assert play.updates == {"x/a": "1"}


def test_a_virtual_host_without_a_resource_does_not_exist() -> None:
    play = DeltaPlay(VIRTUAL_HOST_TYPE)
    play.subscribe("r/*", "r/a", "r/b")
    play.begin()
    play.send(resource("r/b", VirtualHost(name="b", domains=["b"])))
    play.send(resource("r/a", None), resource("r/b", None), resource("r/other", None))
    assert (play.removed, play.refused) == (["r/a"], [])
