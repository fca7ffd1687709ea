"""Where the keys of tokens come from: files, and https."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from meshproxy.errors import ConfigError
from meshproxy.pilot.authority import jwks as module
from meshproxy.pilot.authority.jwks import FetchedKeys, FileKeys, KeySetError, open_keys, read_keys
from tests.pilot.authority.fakes import Signer, jwks
from tests.tls.certificates import Issued, ip, issue


def ids(keys: list[Any]) -> list[str]:
    return [key.id for key in keys]


def test_keys_that_sign_are_kept_and_others_left_out() -> None:
    good, other = Signer("a"), Signer("b", "RS256")
    weak = Signer("weak", "RS256", rsa.generate_private_key(public_exponent=65537, key_size=1024))
    secret = base64.urlsafe_b64encode(b"secret").decode()
    rows = [
        good.jwk,
        other.jwk,
        weak.jwk,
        {"kty": "oct", "k": secret, "kid": "hmac", "alg": "HS256"},
        {**good.jwk, "kid": "encrypts", "use": "enc"},
        {**good.jwk, "kid": "wraps", "key_ops": ["wrapKey"]},
        {**good.jwk, "kid": "hs", "alg": "HS256"},
        {**good.jwk, "kid": "no-point", "x": "AAAA"},
        {**good.jwk, "kid": 7},
        {"kty": "EC", "crv": "secp256k1"},
        {},
        "text",
    ]
    found = read_keys(json.dumps({"keys": rows}).encode())
    assert [(key.id, key.algorithms) for key in found] == [
        ("a", ("ES256",)),
        ("b", ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
    ]


def test_a_key_may_be_for_one_algorithm_only() -> None:
    (key,) = read_keys(json.dumps({"keys": [{**Signer("a", "RS256").jwk, "alg": "PS512"}]}).encode())
    assert key.algorithms == ("PS512",)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no JSON Web Key Set"),
        (b"[]", "no JSON Web Key Set"),
        (b"[" * 100_000, "no JSON Web Key Set"),
        (b'{"keys": 1}', "is no list"),
        (b'{"keys": []}', "no key in it verifies"),
        (b'{"keys": [' + b"{}," * 100 + b"{}]}", "is no list"),
        (b" " * (module.MAX_BYTES + 1), "more than"),
    ],
)
def test_what_is_no_key_set(data: bytes, why: str) -> None:
    with pytest.raises(KeySetError, match=why):
        read_keys(data)


async def test_a_file_is_read_again_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(jwks(Signer("a")))
    keys = open_keys(str(path))
    assert isinstance(keys, FileKeys)
    assert ids(await keys.candidates("a")) == ["a"]
    assert await keys.candidates("b") == []
    path.write_bytes(jwks(Signer("a"), Signer("b")))
    assert ids(await keys.candidates("")) == ["a", "b"]
    path.write_bytes(b"nonsense")
    assert ids(await keys.candidates("")) == ["a", "b"]
    path.unlink()
    assert ids(await keys.candidates("")) == ["a", "b"]
    path.write_bytes(jwks(Signer("c")))
    assert ids(await keys.candidates("")) == ["c"]


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        open_keys(str(tmp_path / "nothing"))
    (tmp_path / "bad").write_text("{}")
    with pytest.raises(ConfigError, match="no JSON Web Key Set"):
        open_keys(str(tmp_path / "bad"))
    with pytest.raises(ConfigError, match="https:// only"):
        open_keys("http://127.0.0.1/keys")
    with pytest.raises(ConfigError, match="https:// only"):
        open_keys("file:///etc/passwd")
    with pytest.raises(ConfigError, match="No such file"):
        open_keys("https://127.0.0.1/keys", str(tmp_path / "no-ca.pem"))


class KeyServer:
    """Serves `answer` by https; None: it fails. `asked` counts."""

    def __init__(self, folder: Path) -> None:
        self.answer: bytes | None = None
        self.redirect = ""
        self.nonsense = b""
        self.asked = 0
        self.tokens: list[str | None] = []
        authority = issue("authority", ca=True)
        self.ca = _write(folder, "ca.pem", authority.pem)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        mine = issue("127.0.0.1", authority, names=ip("127.0.0.1"))
        context.load_cert_chain(_write(folder, "cert.pem", mine.pem), _write(folder, "key.pem", mine.key_pem))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}/keys"
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                if outer.nonsense:
                    self.wfile.write(outer.nonsense)
                    return
                outer.tokens.append(self.headers["authorization"])
                if outer.redirect:
                    self.send_response(302)
                    self.send_header("location", outer.redirect)
                    self.end_headers()
                    return
                self.send_response(200 if outer.answer is not None else 503)
                self.end_headers()
                self.wfile.write(outer.answer or b"")

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        return Handler

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _write(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KeyServer]:
    made = KeyServer(tmp_path)
    try:
        yield made
    finally:
        made.close()


class Now:
    """A clock that stands."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


async def refetched(keys: FetchedKeys, condition: Callable[[], bool]) -> None:
    """Wait for a request that nobody waits for."""
    async with asyncio.timeout(20.0):
        while not condition() or keys._fetching is not None:
            await asyncio.sleep(0.005)


async def test_a_url_is_fetched_once_for_all_and_again_when_it_is_old(server: KeyServer) -> None:
    server.answer = jwks(Signer("a"))
    now = Now()
    keys = FetchedKeys(server.url, server.ca, now)
    found = await asyncio.gather(*(keys.candidates("a") for _ in range(20)))
    assert [ids(each) for each in found] == [["a"]] * 20
    assert server.asked == 1
    now.at += module.FRESH_S - 1.0
    await keys.candidates("a")
    assert server.asked == 1
    # What is old is used while the new one is fetched.
    server.answer = jwks(Signer("b"))
    now.at += 2.0
    assert ids(await keys.candidates("a")) == ["a"]
    await refetched(keys, lambda: server.asked == 2)
    assert await keys.candidates("a") == []
    assert ids(await keys.candidates("b")) == ["b"]
    await keys.close()


async def test_an_unknown_key_is_asked_for_but_not_by_everybody(server: KeyServer) -> None:
    server.answer = jwks(Signer("a"))
    now = Now()
    keys = FetchedKeys(server.url, server.ca, now)
    await keys.candidates("a")
    server.answer = jwks(Signer("a"), Signer("b"))
    for _ in range(20):
        assert await keys.candidates("b") == []  # too soon: whoever invents names does not drive requests
    assert server.asked == 1
    now.at += module.SOONEST_S
    assert ids(await keys.candidates("b")) == ["b"]
    assert server.asked == 2
    await keys.close()


async def test_without_its_server_it_lives_on_what_it_has_for_a_day(server: KeyServer) -> None:
    now = Now()
    keys = FetchedKeys(server.url, server.ca, now)
    with pytest.raises(KeySetError, match="503"):
        await keys.candidates("a")
    with pytest.raises(KeySetError, match="503"):
        await keys.candidates("a")
    assert server.asked == 1  # not at once again
    server.answer = jwks(Signer("a"))
    now.at += 1.0
    assert ids(await keys.candidates("a")) == ["a"]
    server.answer = None
    now.at += module.FRESH_S
    assert ids(await keys.candidates("a")) == ["a"]
    await refetched(keys, lambda: server.asked == 3)
    now.at += module.STALE_S
    with pytest.raises(KeySetError, match="503"):
        await keys.candidates("a")
    await keys.close()


async def test_whoever_is_not_the_server_is_not_believed(server: KeyServer, tmp_path: Path) -> None:
    server.answer = jwks(Signer("a"))
    stranger: Issued = issue("other", ca=True)
    other = _write(tmp_path, "other.pem", stranger.pem)
    with pytest.raises(KeySetError, match="CERTIFICATE_VERIFY_FAILED"):
        await FetchedKeys(server.url, other).candidates("a")
    with pytest.raises(KeySetError, match="localhost"):
        await FetchedKeys(server.url.replace("127.0.0.1", "localhost"), server.ca).candidates("a")
    assert server.asked == 0


async def test_nobody_is_led_elsewhere_or_given_too_much(server: KeyServer) -> None:
    server.redirect = server.url
    with pytest.raises(KeySetError, match="302"):
        await FetchedKeys(server.url, server.ca).candidates("a")
    server.redirect = ""
    server.answer = jwks(Signer("a")) + b" " * module.MAX_BYTES
    with pytest.raises(KeySetError, match="more than"):
        await FetchedKeys(server.url, server.ca).candidates("a")
    assert server.asked == 2


@pytest.mark.parametrize("nonsense", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"])
async def test_its_server_may_speak_nonsense(server: KeyServer, nonsense: bytes) -> None:
    """That is a reason like any other, and there is no second request at once."""
    server.nonsense = nonsense
    keys = FetchedKeys(server.url, server.ca)
    for _ in range(2):
        with pytest.raises(KeySetError):
            await keys.candidates("a")
    assert server.asked == 1


async def test_its_server_may_want_a_token_which_changes(server: KeyServer, tmp_path: Path) -> None:
    server.answer = jwks(Signer("a"))
    now = Now()
    token = tmp_path / "token"
    keys = FetchedKeys(server.url, server.ca, now, token_file=str(token))
    with pytest.raises(KeySetError, match="No such file"):
        await keys.candidates("a")
    token.write_text("one\n")
    now.at += 1.0
    assert ids(await keys.candidates("a")) == ["a"]
    token.write_text("two")
    now.at += module.FRESH_S
    await keys.candidates("a")
    await refetched(keys, lambda: server.asked == 2)
    assert server.tokens == ["Bearer one", "Bearer two"]
    await keys.close()


async def test_they_may_be_there_before_anybody_asks(server: KeyServer) -> None:
    server.answer = jwks(Signer("a"))
    keys = FetchedKeys(server.url, server.ca, Now())
    keys.begin()
    await refetched(keys, lambda: server.asked == 1)
    assert ids(await keys.candidates("a")) == ["a"]
    assert server.asked == 1
