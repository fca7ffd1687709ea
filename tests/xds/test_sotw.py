"""State of the world, by the rules of Envoy's xDS protocol document."""

from __future__ import annotations

from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from google.protobuf.any_pb2 import Any as AnyMessage

from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE
from tests.support.control_plane import resource, response
from tests.xds.harness import assignment, cluster
from tests.xds.playbook import SotwPlay


def endpoints(*names: str) -> SotwPlay:
    """A stream on which these are asked for."""
    play = SotwPlay(ENDPOINT_TYPE)
    play.subscribe(*names)
    assert list(play.begin().resource_names) == list(names)
    return play


def clusters() -> SotwPlay:
    """A stream on which all are asked for."""
    play = SotwPlay(CLUSTER_TYPE)
    play.subscribe("*")
    assert not play.begin().resource_names
    return play


# -- ACK, NACK, versions, nonces


def test_the_first_request_has_neither_version_nor_nonce() -> None:
    play = SotwPlay(CLUSTER_TYPE)
    play.subscribe("*")
    request = play.begin()
    assert (request.type_url, request.version_info, request.response_nonce) == (CLUSTER_TYPE, "", "")
    assert not request.HasField("error_detail")
    assert play.next() is None


def test_an_ack_has_the_version_and_the_nonce_of_the_response() -> None:
    play = clusters()
    ack = play.send(cluster("a"), version="v1", nonce="n1")
    assert (ack.version_info, ack.response_nonce) == ("v1", "n1")
    assert not ack.HasField("error_detail")
    assert play.next() is None


def test_a_nack_has_the_last_good_version_the_new_nonce_and_every_reason() -> None:
    play = clusters()
    play.send(cluster("a"), version="v1", nonce="n1")
    nack = play.send(cluster("a"), cluster("b"), version="v2", nonce="n2", refuse={"a": "x.y: bad", "b": "z[1]: worse"})
    assert (nack.version_info, nack.response_nonce) == ("v1", "n2")
    assert nack.error_detail.code == 3  # INVALID_ARGUMENT
    assert nack.error_detail.message == "a: x.y: bad\nb: z[1]: worse"


def test_the_first_response_refused_leaves_no_version() -> None:
    nack = clusters().send(cluster("a"), version="v1", nonce="n1", refuse={"a": "bad"})
    assert (nack.version_info, nack.response_nonce) == ("", "n1")


def test_an_ack_after_a_nack_has_no_error() -> None:
    play = clusters()
    play.send(cluster("a"), version="v1", nonce="n1", refuse={"a": "bad"})
    ack = play.send(cluster("a"), version="v2", nonce="n2")
    assert (ack.version_info, ack.response_nonce) == ("v2", "n2")
    assert not ack.HasField("error_detail")


def test_all_requests_of_a_non_wildcard_type_have_all_names() -> None:
    play = endpoints("a", "b")
    assert list(play.send(assignment("a"), nonce="n1").resource_names) == ["a", "b"]
    play.subscribe("d")
    play.unsubscribe("a")
    request = play.next()
    assert list(request.resource_names) == ["b", "d"]
    assert (request.version_info, request.response_nonce) == ("1", "n1")


def test_names_asked_for_together_go_out_together() -> None:
    play = endpoints("a")
    play.subscribe("b", "d")
    assert list(play.next().resource_names) == ["a", "b", "d"]
    assert play.next() is None


def test_names_that_change_while_a_response_is_applied_go_out_with_its_answer() -> None:
    play = endpoints("a")
    play.state.begin_response()
    play.subscribe("b")
    assert play.next() is None  # its nonce would be stale
    ack = play.receive(response(ENDPOINT_TYPE, [assignment("a")], "1", "n1"))
    assert (list(ack.resource_names), ack.response_nonce) == (["a", "b"], "n1")


def test_a_long_error_is_cut_and_says_how_many_there_are() -> None:
    play = clusters()
    refuse = {f"c{index}": "x" * 100 for index in range(100)}
    message = play.send(refuse=refuse).error_detail.message
    lines = message.splitlines()
    assert len(message.encode()) <= 4096
    assert lines[-1] == f"… and {100 - (len(lines) - 1)} more"


def test_a_reason_that_is_no_text_is_told_as_far_as_it_is() -> None:
    assert clusters().send(refuse={"a": "not \udcff UTF-8"}).error_detail.message == "a: not ? UTF-8"


# -- wildcards


def test_the_wildcard_of_old_is_an_empty_list() -> None:
    play = clusters()
    assert not play.send(cluster("a")).resource_names


def test_the_wildcard_with_names_is_written() -> None:
    play = clusters()
    play.subscribe("a")
    assert list(play.next().resource_names) == ["*", "a"]
    play.unsubscribe("a")
    assert list(play.next().resource_names) == ["*"]  # an empty list would stand for nothing by now


def test_the_wildcard_of_types_that_do_not_know_it_of_old_is_written() -> None:
    assert endpoints("*").send(assignment("a"), assignment("b")).resource_names == ["*"]


def test_a_wildcard_type_can_be_asked_by_name() -> None:
    play = SotwPlay(CLUSTER_TYPE)
    play.subscribe("a")
    assert list(play.begin().resource_names) == ["a"]
    play.send(cluster("a"), cluster("b"))
    assert play.updates == {"a": "1"}
    play.unsubscribe("a")
    assert list(play.next().resource_names) == []
    play.send(cluster("a"))
    assert play.updates == {}


def test_nothing_asked_for_is_nothing_said() -> None:
    play = SotwPlay(CLUSTER_TYPE)
    assert play.begin() is None
    play.subscribe("a")
    play.unsubscribe("a")
    assert play.next() is None  # an empty list would ask for all


# -- who is gone


def test_a_cluster_that_is_absent_is_gone() -> None:
    play = clusters()
    play.send(cluster("a"), cluster("b"))
    play.send(cluster("b"), version="2")
    assert (play.updates, play.removed) == ({"b": "2"}, ["a"])
    play.send(version="3")
    assert play.removed == ["b"]


def test_endpoints_that_are_absent_stay() -> None:
    play = endpoints("a", "b")
    play.send(assignment("a"), assignment("b"))
    play.send(assignment("a"), version="2")
    assert (play.updates, play.removed) == ({"a": "2"}, [])


def test_who_was_refused_and_is_absent_is_gone() -> None:
    play = clusters()
    play.send(cluster("a"), refuse={"a": "bad"})
    play.send(version="2")
    assert play.removed == ["a"]


def test_a_refused_one_is_not_gone() -> None:
    play = clusters()
    play.send(cluster("a"), cluster("b"))
    play.send(cluster("a"), version="2", refuse={"a": "bad"})
    assert play.removed == ["b"]
    play.send(cluster("a"), version="3")
    assert (play.updates, play.removed) == ({"a": "3"}, [])


def test_nobody_is_gone_while_it_cannot_be_told_who_is_there() -> None:
    play = clusters()
    play.send(cluster("a"), cluster("b"))
    nack = play.send(cluster("a"), AnyMessage(type_url=CLUSTER_TYPE, value=b"\xff"), version="2")
    assert (play.updates, play.removed) == ({"a": "2"}, [])
    assert nack.error_detail.message == "resources[1]: the bytes are not a envoy.config.cluster.v3.Cluster"
    play.send(cluster("a"), version="3")
    assert play.removed == ["b"]


def test_what_the_server_says_it_does_not_have_is_gone() -> None:
    play = endpoints("a", "b")
    play.send(assignment("a"), assignment("b"))
    message = response(ENDPOINT_TYPE, [], "2", "n2")
    for name, code in (("a", 5), ("b", 14), ("other", 5)):
        error = message.resource_errors.add()
        error.resource_name.name = name
        error.error_detail.code = code
    ack = play.receive(message)
    assert play.removed == ["a"]
    assert not ack.HasField("error_detail")


# -- bad resources, alone


def test_of_one_name_twice_the_first_counts() -> None:
    play = clusters()
    nack = play.send(cluster("a", "first"), cluster("b"), cluster("a", "second"), cluster("a", "third"))
    assert play.updates == {"a": "1", "b": "1"}
    assert nack.error_detail.message.splitlines() == [
        "a: resources[2]: the name is there twice; the first counts",
        "a: resources[3]: the name is there twice; the first counts",
    ]


def test_a_resource_without_a_name_and_one_of_another_type() -> None:
    play = clusters()
    nack = play.send(cluster(""), assignment("x"), cluster("a"))
    assert play.updates == {"a": "1"}
    assert nack.error_detail.message.splitlines() == [
        "resources[0]: has no name",
        f"resources[1]: is of type '{ENDPOINT_TYPE}', in a response of '{CLUSTER_TYPE}'",
    ]


def test_resources_nobody_asked_for_are_passed_over() -> None:
    play = endpoints("a")
    ack = play.send(assignment("a"), assignment("other"))
    assert play.updates == {"a": "1"}
    assert not ack.HasField("error_detail")


# -- wrapped, with a time to live


def test_a_wrapped_resource_has_its_name_aliases_and_lifetime_from_the_wrapping() -> None:
    play = endpoints("a")
    message = response(ENDPOINT_TYPE, [resource("a", assignment("a"), "ignored", 2.5, ("b",))], "7")
    decoder = play.state.decoder(message)
    assert list(decoder.steps()) == [None]
    update = decoder.updates["a"]
    assert (update.version, update.aliases, update.ttl_ms) == ("7", ("b",), 2500)
    assert update.data == ClusterLoadAssignment(cluster_name="a").SerializeToString()


def test_a_wrapping_with_another_name_is_refused() -> None:
    play = endpoints("a", "b")
    play.send(resource("a", assignment("b")))
    assert play.refused == ["a: resources[0]: the name in it is 'b'"]


def test_a_heartbeat_of_what_is_held_changes_nothing() -> None:
    play = clusters()
    play.send(resource("a", cluster("a"), ttl_s=1), resource("b", cluster("b"), ttl_s=1))
    message = response(CLUSTER_TYPE, [resource("a", None, "", 1)], "1", "n2")
    decoder = play.state.decoder(message)
    list(decoder.steps())
    change = play.state.change(decoder, message)
    assert (change.only_heartbeats, change.refreshed, change.removed) == (True, [("a", 1000)], [])


def test_a_heartbeat_beside_an_update_counts_as_present() -> None:
    play = clusters()
    play.send(cluster("a"), cluster("b"), cluster("d"))
    play.send(resource("a", None, "", 1), cluster("b"), version="2")
    assert (play.updates, play.removed) == ({"b": "2"}, ["d"])


def test_a_heartbeat_of_what_is_not_held_is_refused() -> None:
    play = endpoints("a")
    play.send(resource("a", None, "1", 1))
    assert play.refused == ["a: resources[0]: has no resource in it"]


# -- a new stream


def test_a_new_stream_begins_with_the_version_and_no_nonce() -> None:
    play = endpoints("a")
    play.send(assignment("a"), version="v1", nonce="n1")
    play.send(assignment("a"), version="v2", nonce="n2", refuse={"a": "bad"})
    request = play.begin()
    assert (request.version_info, request.response_nonce, list(request.resource_names)) == ("v1", "", ["a"])
    assert not request.HasField("error_detail")


def test_the_wildcard_is_an_empty_list_again_on_a_new_stream() -> None:
    play = clusters()
    play.subscribe("a")
    play.next()
    play.unsubscribe("a")
    assert not play.begin().resource_names


def test_what_is_absent_after_a_reconnect_is_gone() -> None:
    play = clusters()
    play.send(cluster("a"), cluster("b"))
    play.begin()
    play.send(cluster("b"))
    assert play.removed == ["a"]


def test_what_was_restored_and_is_absent_is_gone() -> None:
    play = SotwPlay(CLUSTER_TYPE)
    play.state.restore({"a": "x"})
    play.subscribe("*")
    play.begin()
    play.send(cluster("b"))
    assert play.removed == ["a"]


def test_a_name_that_goes_and_comes_back_is_seen_to_go() -> None:
    play = endpoints("a", "b")
    play.send(assignment("a"), assignment("b"))
    play.unsubscribe("a")
    play.subscribe("a")
    assert list(play.next().resource_names) == ["b"]
    assert sorted(play.next().resource_names) == ["a", "b"]
    assert play.next() is None
