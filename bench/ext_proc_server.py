"""An external processor that adds a header to each request, as one is written in Python: grpc.aio. A program.

    python -m bench.ext_proc_server

It prints the port that it listens on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.ext_proc.v3 import external_processor_pb2 as api
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as service

_ADD_HEADER = api.ProcessingResponse(
    request_headers=api.HeadersResponse(
        response=api.CommonResponse(
            header_mutation=api.HeaderMutation(
                set_headers=[
                    HeaderValueOption(
                        header=HeaderValue(key="x-bench", raw_value=b"1"),
                        append_action=HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
                    )
                ]
            )
        )
    )
)


class AddHeader(service.ExternalProcessorServicer):  # type: ignore[misc]  # its package has no types
    """A stream for each request; one message in it, and one answer."""

    async def Process(self, requests: AsyncIterator[Any], _: object) -> AsyncIterator[Any]:  # noqa: N802
        async for _message in requests:
            yield _ADD_HEADER


async def main() -> None:
    """Until a signal ends the process."""
    server = grpc.aio.server()
    service.add_ExternalProcessorServicer_to_server(AddHeader(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
