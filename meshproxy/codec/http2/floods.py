"""Frames that cost their receiver more than their sender: how many a peer may send, by Envoy's limits and counters.

What of our own frames a peer does not take is counted where it is sent (`sending.py`).
"""

from __future__ import annotations

from typing import Final

from meshproxy.codec.http2 import details
from meshproxy.codec.http2.failures import Http2Flood
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.codec.http2.stats import Http2Stats


class InboundFloods:
    """The counts of one connection. Each method counts a frame, and raises Http2Flood when there are too many."""

    def __init__(self, settings: Http2Settings, stats: Http2Stats) -> None:
        self._settings: Final = settings
        self._stats: Final = stats
        self.opened: int = 0  # streams, ever
        self.data_frames_sent: int = 0
        self.empty_frames: int = 0  # in a row
        self._priority_frames: int = 0
        self._window_updates: int = 0

    def on_empty_frame(self) -> None:
        """DATA without data, or a piece of a field block without bytes, that ends nothing."""
        self.empty_frames += 1
        if self.empty_frames > self._settings.max_empty_frames:
            self._stats.inbound_empty_frames_flood += 1
            raise Http2Flood("too many empty frames", details.EMPTY_FRAMES_FLOOD)

    def on_priority(self) -> None:
        self._priority_frames += 1
        if self._priority_frames > self._settings.max_priority_frames_per_stream * (1 + self.opened):
            self._stats.inbound_priority_frames_flood += 1
            raise Http2Flood("too many PRIORITY frames", details.PRIORITY_FLOOD)

    def on_window_update(self) -> None:
        self._window_updates += 1
        allowed = self._settings.max_window_updates_per_data_frame * self.data_frames_sent
        if self._window_updates > 5 + 2 * (self.opened + allowed):  # Envoy's formula
            self._stats.inbound_window_update_frames_flood += 1
            raise Http2Flood("too many WINDOW_UPDATE frames", details.WINDOW_UPDATE_FLOOD)
