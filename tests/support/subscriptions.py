"""Resources without a control plane: the test says what comes."""

from __future__ import annotations

from typing import Any

from meshproxy.config.config_source import ADS, ConfigSource
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.subscription import ResourceWatcher, Subscription, Subscriptions


class FakeSubscription(Subscription):
    """One watch; `closed` once nobody watches any more."""

    def __init__(
        self, owner: FakeSubscriptions, source: ConfigSource, type_url: str, name: str, watcher: ResourceWatcher
    ) -> None:
        self._owner = owner
        self.source = source
        self.type_url = type_url
        self.name = name
        self.watcher = watcher
        self.closed = False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._owner.watches.remove(self)


class FakeSubscriptions(Subscriptions):
    """Remembers who watches what, in `watches`; nothing comes but by `deliver` and `miss`."""

    def __init__(self) -> None:
        self.watches: list[FakeSubscription] = []
        self.steps = 0  # of the last `deliver`, of all watchers

    def watch(self, source: ConfigSource, type_url: str, name: str, watcher: ResourceWatcher) -> Subscription:
        watch = FakeSubscription(self, source, type_url, name, watcher)
        self.watches.append(watch)
        return watch

    def of(self, type_url: str, name: str, source: bytes = ADS) -> list[FakeSubscription]:
        """Those who watch this resource now."""
        return [one for one in self.watches if (one.type_url, one.name, one.source.key) == (type_url, name, source)]

    def names(self, type_url: str) -> list[str]:
        """What of this type is watched, each as often as it is."""
        return sorted(one.name for one in self.watches if one.type_url == type_url)

    def deliver(self, type_url: str, name: str, message: Any, version: str = "1", source: bytes = ADS) -> ConfigErrors:
        """The resource comes: every watcher takes it, and counts it, as `Subscriptions` does. All their errors."""
        errors = ConfigErrors()
        self.steps = 0
        watches = self.of(type_url, name, source)
        assert watches, f"nobody watches {name}"
        for watch in watches:
            own = ConfigErrors()
            for _ in watch.watcher.update(message, version, own):
                self.steps += 1
            _count(watch.watcher.stats, bool(own))
            errors.items += own.items
            errors.warnings += own.warnings
        return errors

    def refuse(self, type_url: str, name: str, source: bytes = ADS) -> None:
        """It comes, and breaks the API's rules."""
        for watch in self.of(type_url, name, source):
            watch.watcher.refused()
            _count(watch.watcher.stats, True)

    def miss(self, type_url: str, name: str, source: bytes = ADS) -> None:
        """It does not come, or was removed."""
        watches = self.of(type_url, name, source)
        assert watches, f"nobody watches {name}"
        for watch in watches:
            watch.watcher.missing()


def _count(stats: Any, rejected: bool) -> None:
    if stats is None:
        return
    if rejected:
        stats.update_rejected += 1
    else:
        stats.update_success += 1
