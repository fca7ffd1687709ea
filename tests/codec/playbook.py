r"""Playbooks: what a codec is fed and told, and what it must do then.

    >> BYTES                  the peer sends (escapes as in Python)
    >> EOF                    the peer ends its side
    !! VERB ARGUMENTS         the owner acts (below)
    << EVENT                  what the owner is told, or `out BYTES`: what the codec sends

Verbs: `send NAME=VALUE … [end]` (`+` stands for a space in a value), `info NAME=VALUE`, `data BYTES [end]`,
`trailers NAME=VALUE`, `reset`, `disable`, `enable`, `next`, `close`, `request NAME=VALUE … [end]` (clients).
After every step, exactly the events that follow it in the playbook have happened.
"""

from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http1.client import Http1ClientConnection
from meshproxy.codec.http1.server import Http1ServerConnection
from meshproxy.codec.http1.settings import Http1Settings
from tests.codec.recorder import Downstream, Upstream, escaped, output, unescaped


def play(owner: Downstream | Upstream, script: str) -> None:
    """Run a playbook; the first step that does something else fails."""
    lines = [line.strip() for line in script.strip().splitlines() if line.strip()]
    at = 0
    while at < len(lines):
        step = lines[at]
        at += 1
        expected = []
        while at < len(lines) and lines[at].startswith("<<"):
            expected.append(lines[at][3:])
            at += 1
        owner.log.clear()
        act(owner, step)
        if sent := output(owner.connection):
            owner.log.append(f"out {escaped(sent)}")
        assert owner.log == expected, step


def act(owner: Downstream | Upstream, step: str) -> None:
    """One step of the peer or of the owner."""
    kind, _, rest = step.partition(" ")
    if kind == ">>":
        if rest == "EOF":
            owner.connection.receive_eof()
        else:
            owner.connection.receive_data(unescaped(rest))
        return
    assert kind == "!!", step
    words = rest.split(" ")
    end = words[-1] == "end"
    if end:
        words.pop()
    do(owner, words[0], words[1:], end)


def do(owner: Downstream | Upstream, verb: str, words: list[str], end: bool) -> None:
    """What the owner does."""
    connection = owner.connection
    if verb == "next":
        assert isinstance(connection, Http1ServerConnection)
        connection.read_next()
        return
    if verb == "close":
        assert isinstance(connection, Http1ServerConnection)
        connection.close_after_response = True
        return
    if verb == "request":
        assert isinstance(owner, Upstream)
        owner.request(fields(words), end)
        return
    encoder = owner.encoder
    assert encoder is not None
    if verb == "send":
        encoder.send_headers(HeaderMap(fields(words)), end)
    elif verb == "info":
        encoder.send_informational(HeaderMap(fields(words)))
    elif verb == "data":
        encoder.send_data(unescaped(" ".join(words)), end)
    elif verb == "trailers":
        encoder.send_trailers(HeaderMap(fields(words)))
    elif verb == "reset":
        encoder.reset(1)
    else:
        encoder.read_disable({"disable": True, "enable": False}[verb])


def fields(words: list[str]) -> list[tuple[bytes, bytes]]:
    """`name=value` words as fields."""
    pairs = [word.partition("=") for word in words]
    return [(unescaped(name), unescaped(value.replace("+", " "))) for name, _, value in pairs]


__all__ = ["Downstream", "Http1ClientConnection", "Http1Settings", "Upstream", "play"]
