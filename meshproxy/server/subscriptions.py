"""What the resources of one worker watch: the supervisor is told of it, and delivers.

A worker is told a resource once for all who watch it. What comes later than others asked for it, is asked for again.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from meshproxy.config.config_source import ConfigSource
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.large_message import merge_in_steps
from meshproxy.config.messages import find_message, type_name
from meshproxy.config.subscription import VIRTUAL_HOST_TYPE, ResourceWatcher, Subscription, Subscriptions
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.slices import Slices
from meshproxy.net.timers import CallTimer

# Whose resource: the key of its ConfigSource, its type's URL, its name.
Key = tuple[bytes, str, str]
# A key, and whether it is watched from now on, or no longer.
Interest = tuple[bytes, str, str, bool]
# A resource as it is delivered: its name, its version, and the message (serialised, or parsed already).
Delivery = tuple[str, str, Any]
Reasons = list[tuple[str, str, str]]  # of a refusal: the resource's name, a path in it, what is wrong there


class WorkerSubscriptions(Subscriptions):
    """`tell` brings what is watched to the supervisor. `counts`: this worker's statistics stand for those of all."""

    def __init__(self, dispatcher: Dispatcher, *, counts: bool = True) -> None:
        self._dispatcher = dispatcher
        self.counts = counts
        self._watches: dict[Key, list[_Watch]] = {}
        self._news: list[Interest] = []
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by type: one delivery at a time
        self._tell: Callable[[list[Interest]], None] | None = None

    def report_to(self, tell: Callable[[list[Interest]], None]) -> None:
        """Whom to tell what is watched, from the beginning."""
        self._tell = tell
        self._send_news()

    # -- who watches

    def watch(self, source: ConfigSource, type_url: str, name: str, watcher: ResourceWatcher) -> Subscription:
        key = (source.key, type_url, name)
        watch = _Watch(self, key, watcher)
        self._watches.setdefault(key, []).append(watch)
        self._note((*key, True))
        if self.counts and watcher.stats is not None:
            watcher.stats.update_attempt += 1
        if source.initial_fetch_timeout_ms > 0.0:
            watch.timer = CallTimer(watch.on_fetch_timeout)
            self._dispatcher.timers.arm(watch.timer, source.initial_fetch_timeout_ms)
        return watch

    def forget(self, watch: _Watch) -> None:
        """It was closed."""
        watches = self._watches[watch.key]
        watches.remove(watch)
        if not watches:
            del self._watches[watch.key]
            self._note((*watch.key, False))

    def _note(self, interest: Interest) -> None:
        self._news.append(interest)
        if len(self._news) == 1:
            self._dispatcher.post(self._send_news)  # all of a turn at once

    def _send_news(self) -> None:
        if self._tell is not None and self._news:
            news, self._news = self._news, []
            self._tell(news)

    # -- what is delivered

    async def deliver(
        self,
        source: bytes,
        type_url: str,
        updates: list[Delivery],
        removed: list[str],
        refused: list[str],
        only_new: bool,
    ) -> Reasons:
        """Hand resources to those who watch them, or (`only_new`) to those of them who have not got any yet. `refused`
        are those that came and are not worth a try."""
        reasons: Reasons = []
        slices = Slices()
        async with self._locks[type_url]:
            for name, version, message in updates:
                watches = self._waiting((source, type_url, name), only_new)
                if watches:
                    parsed = await _parsed(type_url, message, slices)
                    for watch in watches:
                        await self._update(watch, name, parsed, version, reasons, slices)
                await slices.rest()
            for name in removed:
                for watch in self._waiting((source, type_url, name), only_new):
                    watch.miss(name)
            for name in refused:
                for watch in self._waiting((source, type_url, name), only_new):
                    self._refuse(watch)
        return reasons

    def _waiting(self, key: Key, only_new: bool) -> list[_Watch]:
        watches = [watch for watch in self._watches.get(key, ()) if not (only_new and watch.told)]
        source, type_url, name = key
        if not watches and type_url == VIRTUAL_HOST_TYPE and (whole := collection_of(name)) != name:
            return self._waiting((source, type_url, whole), only_new)
        return watches

    async def _update(
        self, watch: _Watch, name: str, message: Any, version: str, reasons: Reasons, slices: Slices
    ) -> None:
        if watch.closed:
            return
        watch.stop_waiting()
        errors = ConfigErrors()
        watcher: Any = watch.watcher
        if name == watch.key[2]:
            await slices.run(watcher.update(message, version, errors))
        else:
            await slices.run(watcher.update_member(name, message, version, errors))
        reasons += [(name, error.path, error.reason) for error in errors.sorted()]
        stats = watch.watcher.stats
        if self.counts and stats is not None:
            count_update(stats, version, bool(errors))

    def _refuse(self, watch: _Watch) -> None:
        watch.stop_waiting()
        watch.told = False  # it has nothing yet
        watch.watcher.refused()
        if self.counts and watch.watcher.stats is not None:
            count_update(watch.watcher.stats, "", True)

    def on_failure(self, source: bytes, type_url: str) -> None:
        """The source cannot be reached: all who watch something of it count that."""
        for key, watches in self._watches.items():
            if key[:2] == (source, type_url):
                for watch in watches:
                    if watch.watcher.stats is not None and self.counts:
                        watch.watcher.stats.update_failure += 1


class _Watch(Subscription):
    def __init__(self, owner: WorkerSubscriptions, key: Key, watcher: ResourceWatcher) -> None:
        self._owner = owner
        self.key = key
        self.watcher = watcher
        self.told = False
        self.closed = False
        self.timer: CallTimer | None = None

    def stop_waiting(self) -> None:
        """There is an answer."""
        self.told = True
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.disarm()

    def miss(self, name: str) -> None:
        """There is no resource of this name."""
        if self.closed:
            return
        self.stop_waiting()
        watcher: Any = self.watcher
        if name == self.key[2]:
            watcher.missing()
        else:
            watcher.missing_member(name)

    def on_fetch_timeout(self) -> None:
        if self._owner.counts and self.watcher.stats is not None:
            self.watcher.stats.init_fetch_timeout += 1
        self.miss(self.key[2])
        self.told = False  # it may come yet

    def close(self) -> None:
        if not self.closed:
            self.stop_waiting()
            self.closed = True
            self._owner.forget(self)


def collection_of(name: str) -> str:
    """Under which name the watcher of all virtual hosts of a route configuration hears of this one."""
    return name.partition("/")[0] + "/*"


def count_update(stats: Any, version: str, rejected: bool) -> None:
    """An update came: Envoy's statistics of it, which count it as an attempt too."""
    stats.update_attempt += 1
    if rejected:
        stats.update_rejected += 1
        return
    stats.update_success += 1
    stats.update_time = int(time.time() * 1000.0)
    stats.version = version_hash(version)


def version_hash(version: str) -> int:
    """What the gauge `version` shows of a version, which may be any text: 0 for none."""
    return int.from_bytes(hashlib.blake2b(version.encode(), digest_size=7).digest()) if version else 0


async def _parsed(type_url: str, message: Any, slices: Slices) -> Any:
    if not isinstance(message, bytes):
        return message
    kind = find_message(type_name(type_url))
    assert kind is not None  # the supervisor has read it
    parsed = kind()
    await slices.run(merge_in_steps(parsed, message))
    return parsed
