"""The state-of-the-world form of the protocol, for one type: every request has all names, every response a version."""

from __future__ import annotations

from collections import deque
from typing import Any

from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest
from google.rpc.status_pb2 import Status

from meshproxy.xds.decode import Decoder
from meshproxy.xds.resources import WHOLE_TYPES, WILDCARD, Rejection
from meshproxy.xds.state import Change, TypeState, error_detail


class SotwState(TypeState):
    """Changes of names wait while a response is applied: a request before its answer would have a stale nonce, and
    servers pass over those."""

    def __init__(self, type_url: str) -> None:
        super().__init__(type_url)
        self.version: str = ""  # the last one that was acknowledged
        self._nonce: str = ""  # of the last response that was answered
        self._answers: deque[tuple[str, str, Status | None]] = deque()  # nonce, version in force, what was wrong
        self._applying: bool = False
        self._asked: bool = False  # the stream has had a request of the type
        self._named: bool = False  # one that had names in it: from then on an empty list stands for none
        self._changed: bool = False
        self._again: set[str] = set()  # names that go and come back before the server has heard of it

    def on_subscribe(self, name: str) -> None:
        self._changed = True

    def on_unsubscribe(self, name: str) -> None:
        self._changed = True
        if self._asked:
            self._again.add(name)

    def begin_stream(self) -> None:
        self._nonce = ""
        self._answers.clear()
        self._asked = self._named = self._applying = False
        self._again.clear()
        self._changed = bool(self.names)

    def begin_response(self) -> None:
        self._applying = True

    def decoder(self, response: Any) -> Decoder:
        return Decoder(self.type_url, response.resources, response.version_info)

    def removed(self, decoder: Decoder, response: Any) -> list[str]:
        """Of listeners and clusters, who is absent. Nobody is while it cannot be told who is there."""
        if self.type_url not in WHOLE_TYPES or decoder.nameless or (decoder.heartbeats and not decoder.updates):
            return []
        return [name for name in self.held if name not in decoder.present]

    def answer(self, change: Change, rejections: list[Rejection]) -> None:
        self._applying = False
        if not rejections:
            self.version = change.version
        self._answers.append((change.nonce, self.version, error_detail(rejections) if rejections else None))

    @property
    def unanswered(self) -> int:
        return len(self._answers)

    @property
    def due(self) -> bool:
        if self._answers:
            return True
        return self._changed and not self._applying and (self._asked or bool(self.names))

    def request(self) -> DiscoveryRequest:
        version, detail = self.version, None
        if self._answers:
            self._nonce, version, detail = self._answers.popleft()
        request = DiscoveryRequest(version_info=version, type_url=self.type_url, response_nonce=self._nonce)
        if detail is not None:
            request.error_detail.CopyFrom(detail)
        back = self._again & self.names.keys()
        # Without those that come back, first: the server has to see them go, or it would not send them again.
        self._changed = bool(back)
        names = [name for name in self.names if name not in back]
        if self._named or not self._is_wildcard(names):
            request.resource_names.extend(names)
        self._named = self._named or bool(request.resource_names)
        self._asked = True
        self._again.clear()
        return request

    def _is_wildcard(self, names: list[str]) -> bool:
        return self.type_url in WHOLE_TYPES and names == [WILDCARD]
