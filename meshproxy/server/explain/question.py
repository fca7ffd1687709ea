"""What is asked: a request, and the connection that it comes on. The command line and the admin ask alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from meshproxy.net.address import Address, is_ip

_NOT_IN_HEADS: Final = "\r\n\0"
_SCHEMES: Final = {"http": False, "https": True, "ws": False, "wss": True}
_TRUE: Final = ("", "1", "true", "yes")
_FALSE: Final = ("0", "false", "no")
Pairs = Iterable[tuple[str, str]]


class QuestionError(ValueError):
    """What is asked cannot be: the text says why."""


class Question:
    """One request; what is empty (or None) is filled in as a plain client would have it."""

    def __init__(self) -> None:
        self.method: str = "GET"
        self.authority: str = ""  # "": the listener's address
        self.target: str = "/"  # path and query
        self.headers: list[tuple[str, str]] = []
        self.listener: str = ""  # its name
        self.port: int = 0  # of the listener
        self.url_port: int = 0  # of the URL: the listener's, where one listens there
        self.source: Address = Address("127.0.0.1", 0)
        self.destination: Address | None = None  # where the connection was bound for before it was redirected here
        self.tls: bool | None = None  # None: as the listener wants it
        self.server_name: str = ""
        self.protocols: list[str] = []  # ALPN
        self.client_cert: bool = False
        self.client_uri: str = ""  # the URI name in it (a SPIFFE ID)
        self.random: int | None = None  # the number that decides fractions; None: drawn


def build_question(pairs: Pairs) -> Question:
    """From parameters, which are named as the flags of the command line. Raises QuestionError."""
    given = list(pairs)
    question = Question()
    for name, value in given:
        if name == "url":  # the others say more
            _set_url(question, value)
    for name, value in given:
        if any(character in value for character in _NOT_IN_HEADS):
            raise QuestionError(f"{name}: a line break or NUL can stand in no request")
        _set(question, name, value)
    return question


def _set(question: Question, name: str, value: str) -> None:
    if name == "method":
        question.method = _word(name, value)
    elif name == "authority":
        question.authority = value
    elif name == "path":
        question.target = _word(name, value)
    elif name == "header":
        question.headers.append(_header(value))
    elif name == "listener":
        question.listener = value
    elif name == "port":
        question.port = _number(name, value, 65535)
    elif name == "source":
        question.source = _address(name, value)
    elif name == "destination":
        question.destination = _address(name, value)
    elif name == "tls":
        question.tls = _switch(name, value)
    elif name == "server_name":
        question.server_name = value.lower()
        question.tls = True
    elif name == "alpn":
        question.protocols += [each for each in value.split(",") if each]
    elif name == "client_cert":
        question.client_cert = _switch(name, value)
    elif name == "client_uri":
        question.client_uri = value
        question.client_cert = question.tls = True
    elif name == "random":
        question.random = _number(name, value, 2**64 - 1)
    elif name != "url":
        raise QuestionError(f"unknown parameter {name!r}")


def _set_url(question: Question, url: str) -> None:
    """`http://host:port/path?query`, or a path alone."""
    if url.startswith("/"):
        question.target = _word("url", url)
        return
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port or 0
    except ValueError as error:
        raise QuestionError(f"url: {error}") from error
    if parts.scheme not in _SCHEMES or not parts.hostname:
        raise QuestionError(f"url: {url!r} is no http or https URL with a host")
    question.authority = parts.netloc.rpartition("@")[2]
    question.target = _word("url", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
    question.url_port = port
    if "://" in url:
        question.tls = _SCHEMES[parts.scheme]
    if question.tls and not is_ip(parts.hostname):
        question.server_name = parts.hostname


def _word(name: str, value: str) -> str:
    if not value or " " in value:
        raise QuestionError(f"{name}: {value!r} can stand in no request line")
    return value


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise QuestionError(f"header: {text!r} is not of the form 'name: value'")
    return name.strip(), value.strip(" \t")


def _number(name: str, value: str, most: int) -> int:
    if not value.isascii() or not value.isdigit() or int(value) > most:
        raise QuestionError(f"{name}: {value!r} is not a number from 0 to {most}")
    return int(value)


def _switch(name: str, value: str) -> bool:
    if value.lower() not in _TRUE + _FALSE:
        raise QuestionError(f"{name}: {value!r} is neither true nor false")
    return value.lower() in _TRUE


def _address(name: str, value: str) -> Address:
    """`1.2.3.4`, `1.2.3.4:80`, `::1`, `[::1]:80`; without a port it is 0."""
    ip, port = value, "0"
    if value.startswith("["):
        ip, _, port = value[1:].partition("]")
        port = port.removeprefix(":") or "0"
    elif value.count(":") == 1:
        ip, _, port = value.partition(":")
    if not is_ip(ip):
        raise QuestionError(f"{name}: {value!r} is no IP address, with or without a port")
    return Address(ip, _number(name, port, 65535))
