"""An admin that serves a fake backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from meshproxy.net.address import Address
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.server.admin.handlers import AdminHandlers
from meshproxy.server.admin.server import AdminServer
from tests.server.admin.backend import FakeBackend


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
async def dispatcher() -> AsyncIterator[Dispatcher]:
    dispatcher = Dispatcher(asyncio.get_running_loop())
    yield dispatcher
    await dispatcher.close()


@pytest.fixture
async def admin(backend: FakeBackend, dispatcher: Dispatcher) -> AsyncIterator[str]:
    """The address of an admin that serves `backend`."""
    server = AdminServer(dispatcher, AdminHandlers(backend).handle)
    await server.start(Address("127.0.0.1", 0))
    yield server.address.text
    await server.close()
