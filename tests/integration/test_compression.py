"""A real client gets what it asked for: curl decodes what the compressor filters made for it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.examples.test_examples import running
from tests.support.proxy import ProxyProcess, start_meshproxy
from tests.support.upstream import ScriptedUpstream, reply

PAGE = b"<p>Hello world, and all who are in it</p>\n" * 5000


@pytest.fixture(scope="module")
def proxy() -> Iterator[ProxyProcess]:
    """The example, with a page behind it."""
    with closing(ScriptedUpstream()) as upstream:
        upstream.play([reply(200, PAGE, [("content-type", "text/html; charset=utf-8")])])
        with running(start_meshproxy, "compression", {8101: upstream.ports["a"]}) as started:
            yield started


def curl(proxy: ProxyProcess, folder: Path, *arguments: str) -> tuple[bytes, dict[str, str], int]:
    """The body as curl leaves it, the headers, and how many bytes of a body came."""
    url = f"http://127.0.0.1:{proxy.listener_ports()['front']}/page"
    head = folder / "head"
    command = ["curl", "-sS", "--max-time", "30", "-D", str(head), "-o", str(folder / "body"), "-w", "%{size_download}"]
    done = subprocess.run([*command, *arguments, url], capture_output=True, check=True)
    lines = [line.partition(": ") for line in head.read_text().splitlines()[1:] if line]
    return (folder / "body").read_bytes(), {name: value for name, _, value in lines}, int(done.stdout)


def test_curl_accepts_everything_that_it_can(proxy: ProxyProcess, tmp_path: Path) -> None:
    body, headers, received = curl(proxy, tmp_path, "--compressed")
    assert body == PAGE
    assert headers["content-encoding"] in ("br", "zstd", "gzip")
    assert headers["vary"] == "Accept-Encoding"
    assert received < len(PAGE) // 20


def test_curl_decodes_gzip(proxy: ProxyProcess, tmp_path: Path) -> None:
    body, headers, received = curl(proxy, tmp_path, "--compressed", "-H", "accept-encoding: gzip")
    assert (body, headers["content-encoding"]) == (PAGE, "gzip")
    assert received < len(PAGE) // 20


def test_curl_that_accepts_nothing_gets_it_as_it_is(proxy: ProxyProcess, tmp_path: Path) -> None:
    body, headers, received = curl(proxy, tmp_path)
    assert (body, received) == (PAGE, len(PAGE))
    assert "content-encoding" not in headers
    assert headers["content-length"] == str(len(PAGE))
