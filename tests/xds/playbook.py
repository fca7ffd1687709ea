"""The protocol of one type without I/O: a response goes in, what is applied and what is said come out."""

from __future__ import annotations

from typing import Any

from meshproxy.xds.delta import DeltaState
from meshproxy.xds.resources import Rejection
from meshproxy.xds.sotw import SotwState
from meshproxy.xds.state import TypeState
from tests.support.control_plane import delta_response, response


class Play:
    """`updates`, `removed` and `refused` are what the last response came to."""

    def __init__(self, state: TypeState) -> None:
        self.state = state
        self.updates: dict[str, str] = {}
        self.removed: list[str] = []
        self.refused: list[str] = []

    def begin(self) -> Any:
        """A new stream; its first request, if there is one."""
        self.state.begin_stream()
        return self.next()

    def next(self) -> Any:
        """The next request; None where none is due."""
        return self.state.request() if self.state.due else None

    def subscribe(self, *names: str) -> None:
        for name in names:
            self.state.subscribe(name)

    def unsubscribe(self, *names: str) -> None:
        for name in names:
            self.state.unsubscribe(name)

    def receive(self, message: Any, refuse: dict[str, str] | None = None) -> Any:
        """Take a response, and return the request that answers it."""
        self.state.begin_response()
        decoder = self.state.decoder(message)
        for _ in decoder.steps():
            pass
        change = self.state.change(decoder, message)
        self.updates = {each.name: each.version for each in change.updates}
        self.removed = change.removed
        rejections = [Rejection(*each) for each in (refuse or {}).items()]
        self.refused = [str(each) for each in change.rejections + rejections]
        self.state.conclude(change, rejections, same_stream=True)
        return self.next()


class SotwPlay(Play):
    def __init__(self, type_url: str) -> None:
        super().__init__(SotwState(type_url))

    def send(self, *messages: Any, version: str = "1", nonce: str = "n", refuse: dict[str, str] | None = None) -> Any:
        return self.receive(response(self.state.type_url, messages, version, nonce), refuse)


class DeltaPlay(Play):
    def __init__(self, type_url: str) -> None:
        super().__init__(DeltaState(type_url))

    def send(
        self, *resources: Any, removed: tuple[str, ...] = (), nonce: str = "n", refuse: dict[str, str] | None = None
    ) -> Any:
        return self.receive(delta_response(self.state.type_url, resources, removed, nonce), refuse)
