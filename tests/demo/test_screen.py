"""The terminal: in place where there is one, plain lines where there is none."""

import io
import os

import pytest

from meshproxy.demo.screen import GREEN, PLAIN, Line, Screen

BLOCK: list[Line] = [(GREEN, "one"), (PLAIN, "two")]


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("LINES", "40")
    monkeypatch.setenv("COLUMNS", "80")
    return Terminal()


def test_a_terminal_gets_the_block_over_the_last_one(terminal: Terminal) -> None:
    screen = Screen(terminal)
    assert screen.draws
    screen.begin()
    screen.draw(BLOCK)
    screen.settle(BLOCK)
    drawn = "\x1b[32mone\x1b[0m\x1b[K\ntwo\x1b[K\n"
    assert terminal.getvalue() == drawn + "\x1b[2F" + drawn


def test_the_next_block_begins_below(terminal: Terminal) -> None:
    screen = Screen(terminal)
    screen.settle(BLOCK)
    screen.begin()
    screen.draw(BLOCK)
    assert "\x1b[2F" not in terminal.getvalue()


def test_a_line_is_cut_at_the_edge(terminal: Terminal) -> None:
    Screen(terminal).draw([(PLAIN, "x" * 200)])
    assert terminal.getvalue() == "x" * 79 + "\x1b[K\n"


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("LINES", "10")])
def test_a_terminal_that_cannot_show_it_gets_lines(
    name: str, value: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert not Screen(terminal).draws


def test_no_color_is_honoured(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    Screen(terminal).say("done", GREEN)
    assert terminal.getvalue() == "done\n"


def test_a_pipe_gets_plain_text() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as out:
        screen = Screen(out)
        assert not screen.draws
        screen.say("title", GREEN)
        screen.settle(BLOCK)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "title\none\ntwo\n"
