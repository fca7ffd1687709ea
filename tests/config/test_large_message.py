"""A message that is read in steps is the message that protobuf reads at once."""

from __future__ import annotations

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.config import large_message
from meshproxy.config.large_message import merge_in_steps


def assignment(localities: int, endpoints: int) -> ClusterLoadAssignment:
    made = ClusterLoadAssignment(cluster_name="c")
    made.policy.overprovisioning_factor.value = 140
    made.named_endpoints["x"].hostname = "h"
    for number in range(localities):
        group = made.endpoints.add(priority=number)
        group.locality.zone = f"z{number}"
        for port in range(endpoints):
            address = group.lb_endpoints.add(health_status=port % 6).endpoint.address.socket_address
            address.address, address.port_value = "10.0.0.1", port
    return made


def read(kind: type[Message], data: bytes) -> tuple[Message, int]:
    """The message, and the number of steps."""
    message = kind()
    return message, len(list(merge_in_steps(message, data)))


@pytest.mark.parametrize(("localities", "endpoints"), [(1, 10_000), (300, 30), (3, 3_000), (0, 0)])
def test_a_large_assignment(localities: int, endpoints: int) -> None:
    whole = assignment(localities, endpoints)
    message, steps = read(ClusterLoadAssignment, whole.SerializeToString())
    assert message == whole
    assert steps >= localities * endpoints * 20 // (64 * 1024)


def test_a_large_member_that_is_no_list() -> None:
    whole = Cluster(name="c", load_assignment=assignment(2, 4_000))
    whole.metadata.filter_metadata["k"]["v"] = "x" * 200_000
    whole.connect_timeout.seconds = 5
    message, _ = read(Cluster, whole.SerializeToString() + Cluster(name="last").SerializeToString())
    whole.name = "last"
    assert message == whole


@given(cut=st.integers(0, 4000), flip=st.integers(0, 255), small=st.sampled_from([8, 50, 300]))
def test_what_protobuf_refuses_is_refused(cut: int, flip: int, small: int) -> None:
    """Damaged bytes give what protobuf makes of them, or an error."""
    data = bytearray(assignment(3, 20).SerializeToString())
    data[cut % len(data)] ^= flip
    expected = ClusterLoadAssignment()
    try:
        expected.MergeFromString(bytes(data))
    except DecodeError:
        expected = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_message, "_PIECE_BYTES", small)
        try:
            message, _ = read(ClusterLoadAssignment, bytes(data))
        except DecodeError:
            return  # protobuf takes groups that nobody knows; we do not
        assert expected is not None
        assert message == expected
