"""In place of a filter whose configuration did not come: nothing gets past it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshproxy.codec.headers import HeaderMap
from meshproxy.http.filter import STOP, HttpFilter
from meshproxy.observe.response_flags import NO_FILTER_CONFIG_FOUND

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream


class MissingConfig(HttpFilter):
    """Answers 500, as Envoy: what the filter would have guarded stays closed."""

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        stream.send_local_reply(500, b"", "filter_config_not_found", NO_FILTER_CONFIG_FOUND)
        return STOP
