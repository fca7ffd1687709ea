"""Access logs that nobody takes: the requests go on, the memory is bounded, and what was dropped is counted."""

from __future__ import annotations

import os
from pathlib import Path

from tests.integration.config import bootstrap, direct, listener
from tests.support.downstream import RawDownstream
from tests.support.polling import wait_for
from tests.support.proxy import start_meshproxy

_FILE = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
_AGENT = b"a" * 50_000
_REQUESTS = 500  # 25 MB of records; 16 MiB may wait, and a pipe holds a little


def test_a_fifo_without_a_reader(tmp_path: Path) -> None:
    fifo = tmp_path / "access.log"
    os.mkfifo(fifo)
    log_format = {"text_format_source": {"inline_string": "%REQ(USER-AGENT)%\n"}}
    log = {"name": "file", "typed_config": {"@type": _FILE, "path": str(fifo), "log_format": log_format}}
    main = listener("main", [direct("/", "hello")], manager={"access_log": [log]})
    request = b"GET / HTTP/1.1\r\nhost: test\r\nuser-agent: " + _AGENT + b"\r\n\r\n"
    with start_meshproxy(bootstrap([main])) as proxy:
        downstream = RawDownstream(proxy.listener_ports()["main"])
        for _ in range(_REQUESTS):
            downstream.send(request)
            assert downstream.receive().status == 200
        stats = proxy.stats("^filesystem")
        assert stats["filesystem.write_dropped"] > 0
        assert stats["filesystem.write_buffered"] + stats["filesystem.write_dropped"] == _REQUESTS
        assert stats["filesystem.write_total_buffered"] <= 16 << 20
        kept = stats["filesystem.write_buffered"] * (len(_AGENT) + 1)
        assert len(_read(fifo, kept)) == kept
        wait_for(lambda: proxy.stats("^filesystem")["filesystem.write_total_buffered"] == 0, "the writer")
        downstream.close()


def _read(fifo: Path, size: int) -> bytes:
    with fifo.open("rb") as file:
        return file.read(size)
