r"""Playbooks for HTTP/2: what a codec is fed and told, and what it must do then.

    >> FRAME                  the peer sends (tests/codec/http2_frames.py); `>> SPLIT n` cuts all that follows into
                              pieces of n bytes
    !! VERB STREAM ARGUMENTS  the owner acts: `send FIELDS [end]`, `info FIELDS`, `data BYTES [end]`, `trailers FIELDS`,
                              `reset REASON`, `disable`, `enable`, and of clients `request FIELDS [end]`; without a
                              stream `ping`, `backed_up`, `drained`, and of servers `notice` and `goaway`
    << EVENT                  what the owner is told, or `out FRAME`: what the codec sends

After every step, exactly the events that follow it in the playbook have happened. Both prefaces are exchanged before.
"""

from __future__ import annotations

from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http2.server import Http2ServerConnection
from meshproxy.codec.http2.settings import Http2Settings
from tests.codec.http2_frames import PREFACE, parse_fields, unescaped
from tests.codec.http2_recorder import Client, Server, output, sent_lines

Owner = Server | Client


def server(settings: Http2Settings | None = None, peer: str = "SETTINGS") -> Server:
    """One whose client has sent its preface and these SETTINGS; all that this causes is passed over."""
    owner = Server(settings)
    owner.connection.receive_data(PREFACE + owner.peer.frames(peer) + owner.peer.frames("SETTINGS ack"))
    _begun(owner)
    return owner


def client(settings: Http2Settings | None = None, peer: str = "SETTINGS") -> Client:
    """One whose server has sent these SETTINGS; all that this causes is passed over."""
    owner = Client(settings)
    assert output(owner).startswith(PREFACE)
    owner.connection.receive_data(owner.peer.frames(peer) + owner.peer.frames("SETTINGS ack"))
    _begun(owner)
    return owner


def _begun(owner: Owner) -> None:
    sent_lines(owner)
    owner.log.clear()


def play(owner: Owner, script: str) -> None:
    """Run a playbook; the first step that does something else fails."""
    lines = [line.strip() for line in script.strip().splitlines() if line.strip()]
    at = 0
    split = 0
    while at < len(lines):
        step = lines[at]
        at += 1
        expected = []
        while at < len(lines) and lines[at].startswith("<<"):
            expected.append(lines[at][3:])
            at += 1
        if step.startswith(">> SPLIT "):
            split = int(step.removeprefix(">> SPLIT "))
            continue
        owner.log.clear()
        act(owner, step, split)
        happened = owner.log + [f"out {line}" for line in sent_lines(owner)]
        assert happened == expected, step


def act(owner: Owner, step: str, split: int = 0) -> None:
    """One step of the peer or of the owner."""
    kind, _, rest = step.partition(" ")
    if kind == ">>":
        data = owner.peer.frames(rest)
        for begin in range(0, len(data), split or len(data) or 1):
            owner.connection.receive_data(data[begin : begin + split] if split else data)
        return
    assert kind == "!!", step
    verb, *words = rest.split(" ")
    end = bool(words) and words[-1] == "end"
    if end:
        words.pop()
    if verb == "request":
        assert isinstance(owner, Client)
        owner.request(parse_fields(words), end)
    elif words and words[0].isdigit():
        on_stream(owner, verb, int(words[0]), words[1:], end)
    else:
        on_connection(owner, verb)


def on_stream(owner: Owner, verb: str, stream_id: int, words: list[str], end: bool) -> None:
    """What the owner does to a stream."""
    encoder = owner.encoders[stream_id]
    if verb == "send":
        encoder.send_headers(HeaderMap(parse_fields(words)), end)
    elif verb == "info":
        encoder.send_informational(HeaderMap(parse_fields(words)))
    elif verb == "data":
        data = b"x" * int(words[0][4:]) if words and words[0].startswith("len=") else unescaped(" ".join(words))
        encoder.send_data(data, end)
    elif verb == "trailers":
        encoder.send_trailers(HeaderMap(parse_fields(words)))
    elif verb == "reset":
        encoder.reset(int(words[0]))
    else:
        encoder.read_disable({"disable": True, "enable": False}[verb])


def on_connection(owner: Owner, verb: str) -> None:
    """What the owner does to the connection."""
    connection = owner.connection
    if verb == "ping":
        connection.ping()
    elif verb == "notice":
        assert isinstance(connection, Http2ServerConnection)
        connection.shutdown_notice()
    elif verb == "goaway":
        assert isinstance(connection, Http2ServerConnection)
        connection.goaway()
    elif verb == "backed_up":
        connection.on_above_write_watermark()
    else:
        assert verb == "drained", verb
        connection.on_below_write_watermark()
