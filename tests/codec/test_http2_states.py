"""Stream states (RFC 9113 section 5.1): what every frame means in every state, on both ends."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.codec.http2_frames import raw_frame
from tests.codec.http2_playbook import Owner, act, client, server
from tests.codec.http2_recorder import sent_lines

HEAD = ":method=POST :scheme=http :authority=a :path=/"
ROLES = ("server", "client")
STREAM = 1

# What may happen to a frame.
TAKEN = "taken"
IGNORED = "ignored"
STREAM_CLOSED = f"RST_STREAM {STREAM} STREAM_CLOSED"
DIES = "GOAWAY"  # a connection error

FRAMES = {
    "DATA": f"DATA {STREAM} x",
    "DATA end": f"DATA {STREAM} x end",
    "HEADERS": f"HEADERS {STREAM} a=b end",
    "PRIORITY": f"PRIORITY {STREAM} on=0",
    "RST_STREAM": f"RST_STREAM {STREAM} CANCEL",
    "SETTINGS": f"RAW 4 0 {STREAM} ",
    "PUSH_PROMISE": rf"RAW 5 4 {STREAM} \x00\x00\x00\x02\x82",
    "PING": f"RAW 6 0 {STREAM} 12345678",
    "GOAWAY": rf"RAW 7 0 {STREAM} \x00\x00\x00\x00\x00\x00\x00\x00",
    "WINDOW_UPDATE": f"WINDOW_UPDATE {STREAM} 1",
    "CONTINUATION": rf"RAW 9 4 {STREAM} \x82",
    "unknown": f"RAW 66 0 {STREAM} x",
}
# Frames of the connection, pushes, and blocks that nothing has begun, are wrong on any stream (sections 6.5 to 6.8 and
# 6.10, 8.4); extensions are ignored on any (5.5), and so are priorities (5.3).
ANYWHERE = {
    "PRIORITY": (IGNORED,),
    "SETTINGS": (DIES,),
    "PUSH_PROMISE": (DIES,),
    "PING": (DIES,),
    "GOAWAY": (DIES,),
    "CONTINUATION": (DIES,),
    "unknown": (IGNORED,),
}
STATES: dict[str, dict[str, tuple[str, ...]]] = {
    # (HEADERS open an idle stream: the tests of messages hold that, and for a client test_http2_framing.py)
    "idle": {"DATA": (DIES,), "DATA end": (DIES,), "RST_STREAM": (DIES,), "WINDOW_UPDATE": (DIES,)},
    "open": dict.fromkeys(("DATA", "DATA end", "HEADERS", "RST_STREAM", "WINDOW_UPDATE"), (TAKEN,)),
    "half-closed (local)": dict.fromkeys(("DATA", "DATA end", "HEADERS", "RST_STREAM", "WINDOW_UPDATE"), (TAKEN,)),
    "half-closed (remote)": {
        **dict.fromkeys(("DATA", "DATA end", "HEADERS"), (STREAM_CLOSED,)),
        **dict.fromkeys(("RST_STREAM", "WINDOW_UPDATE"), (TAKEN,)),
    },
    # "MAY treat receipt of any other type of frame … as a connection error of type STREAM_CLOSED"; WINDOW_UPDATE and
    # RST_STREAM may be on their way
    "closed by both": {
        **dict.fromkeys(("DATA", "DATA end", "HEADERS"), (DIES, STREAM_CLOSED)),
        **dict.fromkeys(("RST_STREAM", "WINDOW_UPDATE"), (IGNORED,)),
    },
    "closed by the peer's RST_STREAM": {
        **dict.fromkeys(("DATA", "DATA end", "HEADERS"), (DIES, STREAM_CLOSED)),
        **dict.fromkeys(("RST_STREAM", "WINDOW_UPDATE"), (IGNORED, DIES)),
    },
    # anything may be on its way
    "closed by our RST_STREAM": dict.fromkeys(
        ("DATA", "DATA end", "HEADERS", "RST_STREAM", "WINDOW_UPDATE"), (IGNORED,)
    ),
}


def in_state(role: str, state: str) -> Owner:
    """A connection whose stream 1 is in this state. A server that has sent its whole response resets a request that
    goes on (section 8.1), so there is no half-closed (local) for it."""
    owner: Owner = server() if role == "server" else client()
    if state == "idle":
        return owner
    ours_ends = state in ("half-closed (local)", "closed by both")
    theirs_ends = state in ("half-closed (remote)", "closed by both")
    if role == "server":
        _feed(owner, f"HEADERS {STREAM} {HEAD}" + (" end" if theirs_ends else ""))
        _act(owner, "send", ours_ends)
    else:
        _act(owner, "request", ours_ends)
        _feed(owner, f"HEADERS {STREAM} :status=200" + (" end" if theirs_ends else ""))
    if state == "closed by our RST_STREAM":
        owner.encoders[STREAM].reset(1)
    elif state == "closed by the peer's RST_STREAM":
        _feed(owner, f"RST_STREAM {STREAM} CANCEL")
    sent_lines(owner)
    owner.log.clear()
    return owner


def _feed(owner: Owner, line: str) -> None:
    owner.connection.receive_data(owner.peer.frames(line))


def _act(owner: Owner, verb: str, end: bool) -> None:
    head = HEAD if verb == "request" else f"{STREAM} :status=200"
    act(owner, f"!! {verb} {head}" + (" end" if end else ""))


def outcome(owner: Owner, line: str) -> str:
    """What the codec made of a frame, by what it sends and tells."""
    was_open = STREAM in owner.connection.streams
    _feed(owner, line)
    sent = sent_lines(owner)
    if sent and sent[-1].startswith("GOAWAY"):
        return DIES
    if sent:
        return sent[0]
    if owner.log or line.startswith("WINDOW_UPDATE") or was_open != (STREAM in owner.connection.streams):
        return TAKEN
    return IGNORED


CASES = [
    (role, state, frame)
    for role, state, frame in itertools.product(ROLES, STATES, FRAMES)
    if (frame in ANYWHERE or frame in STATES[state]) and not (role == "server" and state == "half-closed (local)")
]


@pytest.mark.parametrize(("role", "state", "frame"), CASES)
def test_every_frame_in_every_state(role: str, state: str, frame: str) -> None:
    owner = in_state(role, state)
    allowed = ANYWHERE.get(frame) or STATES[state][frame]
    found = outcome(owner, FRAMES[frame])
    if found == TAKEN and frame == "WINDOW_UPDATE":  # it says nothing, be it taken or ignored
        assert {TAKEN, IGNORED} & set(allowed)
    else:
        assert found in allowed
    if found == DIES:
        assert owner.connection.should_close
    else:
        _feed(owner, "PING 12345678")
        assert sent_lines(owner) == ["PING 12345678 ack"]
    open_after = STREAM in owner.connection.streams
    assert open_after == (found in (TAKEN, IGNORED) and _stays_open(role, state, frame))


def _stays_open(role: str, state: str, frame: str) -> bool:
    """Whether the stream is open behind a frame that is in order."""
    if state == "idle" or state.startswith("closed"):
        return False
    ends = frame in ("DATA end", "HEADERS")
    return frame != "RST_STREAM" and not (ends and state == "half-closed (local)")


def test_no_reset_answers_a_reset() -> None:
    """Section 5.4.2."""
    for role, state in itertools.product(ROLES, STATES):
        if state != "idle" and not (role == "server" and state == "half-closed (local)"):
            owner = in_state(role, state)
            _feed(owner, FRAMES["RST_STREAM"])
            assert not [line for line in sent_lines(owner) if line.startswith("RST_STREAM")]


# -- any frames, in any order


MODEL_STREAMS = (1, 3, 5)
STEPS = st.tuples(
    st.sampled_from(MODEL_STREAMS),
    st.sampled_from(["head", "head end", "data", "data end", "trailers", "reset", "window", "priority", "our reset",
                     "our answer"]),
)  # fmt: skip


class Model:
    """A server's streams by the rules of section 5.1, in the simplest words."""

    def __init__(self) -> None:
        self.states: dict[int, str] = {}
        self.answered: set[int] = set()

    def state(self, stream_id: int) -> str:
        if stream_id in self.states:
            return self.states[stream_id]
        return "skipped" if any(known > stream_id for known in self.states) else "idle"

    def take(self, stream_id: int, kind: str) -> str:
        """What a frame leads to: `dies`, `reset STREAM_CLOSED`, `reset PROTOCOL_ERROR` or nothing."""
        state = self.state(stream_id)
        if kind == "priority":
            return ""
        if state == "idle" and not kind.startswith("head"):
            return "dies"
        if kind in ("window", "reset"):
            if kind == "reset" and state in ("open", "remote"):
                self.states[stream_id] = "closed"
            return ""
        if state == "forgotten":
            return ""
        if state in ("skipped", "closed"):
            return "dies"
        if state == "remote":
            self.states[stream_id] = "forgotten"
            return "STREAM_CLOSED"
        if state == "idle":
            self.states[stream_id] = "remote" if kind == "head end" else "open"
        elif kind in ("head", "head end"):  # pseudo-headers in trailers: malformed (section 8.1)
            return "dies"
        elif kind in ("data end", "trailers"):
            self.states[stream_id] = "remote"
        return ""


LINES = {
    "head": f"HEADERS {{}} {HEAD}",
    "head end": f"HEADERS {{}} {HEAD} end",
    "data": "DATA {} x",
    "data end": "DATA {} x end",
    "trailers": "HEADERS {} a=b end",
    "reset": "RST_STREAM {} CANCEL",
    "window": "WINDOW_UPDATE {} 1",
    "priority": "PRIORITY {} on=0",
}


@settings(max_examples=500, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=25))
def test_any_frames_in_any_order(steps: list[tuple[int, str]]) -> None:
    """A server does what the model says; when a trailer-shaped block opens a stream, it is malformed."""
    owner = server()
    model = Model()
    for stream_id, kind in steps:
        if kind.startswith("our"):
            _answer(owner, model, stream_id, kind)
            continue
        expected = model.take(stream_id, kind)
        if kind == "trailers" and stream_id in model.states and not expected and _is_new(owner, stream_id):
            expected = "dies"
        _feed(owner, LINES[kind].format(stream_id))
        sent = [line for line in sent_lines(owner) if not line.startswith("WINDOW_UPDATE")]
        if expected == "dies":
            assert sent[-1].startswith("GOAWAY")
            return
        assert sent == ([f"RST_STREAM {stream_id} {expected}"] if expected else []), (stream_id, kind)
        live = {each for each, state in model.states.items() if state in ("open", "remote")}
        assert set(owner.connection.streams) == live


def _is_new(owner: Owner, stream_id: int) -> bool:
    return stream_id not in owner.encoders


def _answer(owner: Owner, model: Model, stream_id: int, kind: str) -> None:
    """The owner resets a stream, or answers it in full: which ends a request that goes on by a reset as well."""
    state = model.state(stream_id)
    if state not in ("open", "remote"):
        return
    if kind == "our reset":
        act(owner, f"!! reset {stream_id} 1")
        model.states[stream_id] = "forgotten"
    else:
        act(owner, f"!! send {stream_id} :status=200 end")
        model.states[stream_id] = "closed" if state == "remote" else "forgotten"
    sent = sent_lines(owner)
    assert [line.startswith("RST_STREAM") for line in sent][-1] == (model.states[stream_id] == "forgotten")


def test_a_stream_that_was_passed_over_is_closed() -> None:
    """Section 5.1.1: identifiers below one that was used are closed."""
    owner = server()
    owner.connection.receive_data(owner.peer.frames(f"HEADERS 5 {HEAD} end") + raw_frame(8, 0, 3, b"\0\0\0\1"))
    assert sent_lines(owner) == []
    _feed(owner, "DATA 3 x")
    assert sent_lines(owner)[-1].startswith("GOAWAY 5 ")
