"""The incremental form of the protocol, for one type: names come and go, and each resource has a version of its own."""

from __future__ import annotations

from collections import deque
from typing import Any

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest
from google.rpc.status_pb2 import Status

from meshproxy.xds.decode import Decoder
from meshproxy.xds.resources import WILDCARD, Rejection
from meshproxy.xds.state import Change, TypeState, error_detail


class DeltaState(TypeState):
    """Subscribing anew makes the server send a resource again, so a name that goes and comes back is subscribed."""

    def __init__(self, type_url: str) -> None:
        super().__init__(type_url)
        self._asked: bool = False  # the stream has had a request of the type
        self._subscribe: dict[str, None] = {}
        self._unsubscribe: dict[str, None] = {}
        self._answers: deque[tuple[str, Status | None]] = deque()  # nonces, and what was wrong

    def on_subscribe(self, name: str) -> None:
        self._unsubscribe.pop(name, None)
        if self.is_written(name):
            self._subscribe[name] = None

    def on_unsubscribe(self, name: str) -> None:
        self._subscribe.pop(name, None)
        if self.is_written(name):
            self._unsubscribe[name] = None  # perhaps the server has not heard of it: that does no harm

    def begin_stream(self) -> None:
        self._asked = False
        self._answers.clear()
        self._subscribe.clear()
        self._unsubscribe.clear()

    def decoder(self, response: Any) -> Decoder:
        return Decoder(self.type_url, response.resources, response.system_version_info)

    def removed(self, decoder: Decoder, response: Any) -> list[str]:
        """Who is said to be. Of a name that is updated in the same response, the update counts."""
        named = list(response.removed_resources) + [each.name for each in response.removed_resource_names]
        return [name for name in dict.fromkeys(named) if name not in decoder.present and self._concerns(name)]

    def _concerns(self, name: str) -> bool:
        return name in self.held or (WILDCARD not in self.names and self.wants(name)) or name in self.names

    def answer(self, change: Change, rejections: list[Rejection]) -> None:
        self._answers.append((change.nonce, error_detail(rejections) if rejections else None))

    @property
    def unanswered(self) -> int:
        return len(self._answers)

    @property
    def due(self) -> bool:
        if not self._asked:
            return bool(self.names)
        return bool(self._answers or self._subscribe or self._unsubscribe)

    def request(self) -> DeltaDiscoveryRequest:
        request = DeltaDiscoveryRequest(type_url=self.type_url)
        if not self._asked:
            self._begin(request)
        else:
            request.resource_names_subscribe.extend(self._subscribe)
            request.resource_names_unsubscribe.extend(self._unsubscribe)
        self._asked = True
        self._subscribe.clear()
        self._unsubscribe.clear()
        if self._answers:
            request.response_nonce, detail = self._answers.popleft()
            if detail is not None:
                request.error_detail.CopyFrom(detail)
        return request

    def _begin(self, request: DeltaDiscoveryRequest) -> None:
        """The first of a stream says which versions we have, so that only what changed is sent."""
        if not self.legacy_wildcard:
            request.resource_names_subscribe.extend(name for name in self.names if self.is_written(name))
        for name, version in self.held.items():
            if version is not None and (WILDCARD in self.names or self.wants(name)):
                request.initial_resource_versions[name] = version
