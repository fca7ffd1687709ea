"""The filters of the scenario `one-more-filter`: each adds a header to the request."""

from meshproxy import CONTINUE, HeaderMap, HttpFilter, Stream


class AddHeader(HttpFilter):
    """Synchronous."""

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        headers.set(b"x-bench", b"1")
        return CONTINUE


class AddHeaderAsync(HttpFilter):
    """A coroutine for each request, which here waits for nothing."""

    async def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        headers.set(b"x-bench", b"1")
        return CONTINUE
