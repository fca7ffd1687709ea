"""The upstream's end of an HTTP/2 connection, spoken by the `h2` package on a connection of the harness."""

from __future__ import annotations

from typing import Any, TypeVar

import h2.config
import h2.connection
import h2.events
import h2.settings
from hyperframe.frame import GoAwayFrame

from tests.upstream.harness import Peer, Upstream, any_of

HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
MAX_CONCURRENT_STREAMS = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
Settings = dict[h2.settings.SettingCodes, int]
E = TypeVar("E", bound=h2.events.Event)


def http_options(**options: Any) -> dict[str, Any]:
    """`typed_extension_protocol_options` of a cluster."""
    return {"typed_extension_protocol_options": {HTTP: any_of(HTTP, **options)}}


def speaking_http2(http2: dict[str, Any] | None = None, **common: Any) -> dict[str, Any]:
    """A cluster's fields; `common` are `common_http_protocol_options`."""
    explicit = {"http2_protocol_options": http2 or {}}
    return http_options(explicit_http_config=explicit, common_http_protocol_options=common)


def goaway(last_stream_id: int) -> bytes:
    """The frame."""
    return GoAwayFrame(last_stream_id=last_stream_id).serialize()


class Http2Peer:
    """Answers when the test says so; what came is in `events`."""

    def __init__(self, peer: Peer, settings: Settings) -> None:
        self._peer = peer
        self.events: list[h2.events.Event] = []
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values=settings)
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        """Send what `h2` has made."""
        self._peer.send(self.h2.data_to_send())

    async def next(self, kind: type[E]) -> E:
        """The next event of this kind; those before it stay in `events`."""
        while True:
            for at, event in enumerate(self.events):
                if isinstance(event, kind):
                    del self.events[at]
                    return event
            data = await self._peer.read_some()
            assert data, f"the connection has ended before a {kind.__name__}"
            for event in self.h2.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self.events.append(event)
            self.flush()

    async def request(self) -> int:
        """The stream of the next request that is complete."""
        return (await self.next(h2.events.StreamEnded)).stream_id

    def answer(self, stream_id: int, body: bytes = b"ok", status: int = 200) -> None:
        self.h2.send_headers(stream_id, [(b":status", b"%d" % status)])
        self.h2.send_data(stream_id, body, end_stream=True)
        self.flush()

    def reset(self, stream_id: int, code: int) -> None:
        self.h2.reset_stream(stream_id, code)
        self.flush()

    def allow(self, streams: int) -> None:
        """Say that so many streams may be open."""
        self.h2.update_settings({MAX_CONCURRENT_STREAMS: streams})
        self.flush()

    def go_away(self, last_stream_id: int) -> None:
        """Take no streams after that one."""
        self._peer.send(goaway(last_stream_id))

    def send_raw(self, data: bytes) -> None:
        self._peer.send(data)

    def close(self) -> None:
        self._peer.close()

    async def closed(self) -> bool:
        """Wait for the end of the connection."""
        await self._peer.eof()
        return True


async def accept_http2(server: Upstream, settings: Settings | None = None) -> Http2Peer:
    """The next connection, with SETTINGS sent."""
    return Http2Peer(await server.accept(), settings or {})
