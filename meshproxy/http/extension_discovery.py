"""ECDS: a filter's configuration, from a control plane (`config_discovery` of HttpFilter).

The filter is swapped under listener and connections, as a file of Python is; a stream keeps the chain that it began
with.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, ClassVar, Final

from meshproxy.config.config_source import ConfigSource, build_config_source
from meshproxy.config.context import BuildContext, Services
from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.subscription import (
    EXTENSION_TYPE,
    InitManager,
    InitTarget,
    ResourceWatcher,
    Subscription,
    SubscriptionStats,
)
from meshproxy.config.typed_struct import TYPED_STRUCTS
from meshproxy.http.filter import HTTP_FILTERS, HttpFilter
from meshproxy.http.manager_config import ConnectionManagerConfig
from meshproxy.http.missing_config import MissingConfig
from meshproxy.http.router_options import RouterOptions

_STATS: Final = "extension_config_discovery.http_filter."


class ExtensionDiscoveryStats(SubscriptionStats):
    """`extension_config_discovery.http_filter.<name>.`"""

    COUNTERS: ClassVar = (*SubscriptionStats.COUNTERS, "config_fail")

    def __init__(self) -> None:
        super().__init__()
        self.config_fail = 0  # configurations that were refused


class ExtensionType:
    """What a discovered configuration may be: one of these messages, which makes a filter that ends no chain."""

    def __init__(self, type_urls: list[str]) -> None:
        self._names = [url.rpartition("/")[2] for url in type_urls]
        # What a TypedStruct holds is told by itself.
        self._takes_any = any(name in TYPED_STRUCTS for name in self._names)

    def build(self, config: Any, path: str, context: BuildContext) -> HttpFilter | None:
        """The filter of this `Any`; None with errors."""
        name = config.type_url.rpartition("/")[2]
        if not self._takes_any and name not in self._names:
            context.errors.add(path, f"{name} is none of the types that are expected: {', '.join(self._names)}")
            return None
        found = HTTP_FILTERS.find(config, path, context)
        if found is None:
            return None
        message, filter_type = found
        built = filter_type.build(message, path, context)
        if isinstance(built, RouterOptions):
            context.errors.add(path, "the router must be the last filter")
            return None
        return built


class ExtensionDiscovery(InitTarget, ResourceWatcher):
    """Keeps one filter of a connection manager what the control plane says.

    Until its first answer the listener warms, unless the default is applied without. Where there is no answer the
    default is in force; without one, requests are answered 500.
    """

    def __init__(
        self,
        name: str,
        source: ConfigSource,
        expected: ExtensionType,
        default: HttpFilter | None,
        services: Services,
        context: BuildContext,
        path: str,
    ) -> None:
        super().__init__(f"FilterConfigSubscription init {name}")
        self.resource_name = name
        self.warms = True
        self.stats: ExtensionDiscoveryStats = context.scope(f"{_STATS}{name}.", ExtensionDiscoveryStats)
        self._source = source
        self._expected = expected
        self._services = services
        self._template = context.for_part(context.name_of(path), ConfigErrors())
        self._template.source = source.key
        self._template.filter_name = name
        self._fallback = default or MissingConfig()
        self.filter: HttpFilter = self._fallback  # the one in force
        self._context: BuildContext | None = None  # of that, if it was discovered
        self._warming: BuildContext | None = None  # of a newer one, which waits for what it names (secrets)
        self._config: ConnectionManagerConfig | None = None
        self._upgrade = b""
        self._subscription: Subscription | None = None
        self._stopped = False

    def attach(self, config: ConnectionManagerConfig, upgrade: bytes = b"") -> None:
        """The filter's chain is this connection manager's, or that of one of its upgrades."""
        self._upgrade = upgrade or self._upgrade
        self._config = config
        self._put(self.filter)

    def begin(self) -> None:
        self._subscription = self._services.subscriptions.watch(self._source, EXTENSION_TYPE, self.resource_name, self)
        if not self.warms:
            self.set_ready()

    def update(self, message: Any, version: str, errors: ConfigErrors) -> Iterator[None]:
        context = self._template.for_part(self._template.resource, errors)
        try:
            built = self._expected.build(message.typed_config, "typed_config", context)
            yield
            yield from context.postponed()
        except BaseException:
            context.close()
            raise
        if built is None or errors or self._stopped:
            context.close()
            self._count_failure(bool(errors))
            self._go_on()
        else:
            self.stats.config_reload += self._services.subscriptions.counts
            self._warm(built, context)

    def refused(self) -> None:
        """An answer broke the API's rules: a first one ends the waiting."""
        self._count_failure(True)
        self._go_on()

    def missing(self) -> None:
        """It did not come in time, or was removed."""
        self._stop_warming()
        self._replace(self._fallback, None)
        self.set_ready()

    def stop(self) -> None:
        self._stopped = True
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None
        self._stop_warming()
        if self._context is not None:
            self._context.close()
            self._context = None

    def _go_on(self) -> None:
        """A first answer that is refused ends the waiting too, as in Envoy."""
        if self._warming is None:
            self.set_ready()

    def _warm(self, built: HttpFilter, context: BuildContext) -> None:
        """The filter in force stays until all is there that this one waits for."""
        self._stop_warming()
        self._warming = context
        InitManager(context.init_targets).start(functools.partial(self._on_warm, built, context))

    def _on_warm(self, built: HttpFilter, context: BuildContext) -> None:
        self._warming = None
        self._replace(built, context)
        self.set_ready()

    def _stop_warming(self) -> None:
        if self._warming is not None:
            self._warming.close()
            self._warming = None

    def _count_failure(self, failed: bool) -> None:
        self.stats.config_fail += failed and self._services.subscriptions.counts

    def _replace(self, built: HttpFilter, context: BuildContext | None) -> None:
        """New streams have this filter; those of the old one, which gives back what it acquired, end with it."""
        old, self._context = self._context, context
        self._put(built)
        if context is not None:
            context.take_effect()
        if old is not None:
            old.close()

    def _put(self, built: HttpFilter) -> None:
        built.name, built.slot = self._fallback.name, self._fallback.slot
        self.filter = built
        config = self._config
        if config is None:
            return
        if not self._upgrade:
            config.chain = config.chain.with_filter(built)
            return
        upgrade = config.upgrades[self._upgrade]
        assert upgrade.chain is not None
        upgrade.chain = upgrade.chain.with_filter(built)


def build_extension_discovery(
    name: str, message: Any, path: str, context: BuildContext
) -> tuple[HttpFilter, ExtensionDiscovery | None] | None:
    """From the `ExtensionConfigSource` at `path`: the filter to begin with, and the target that replaces it, where
    there is anybody to ask. None with errors."""
    before = len(context.errors)
    source = build_config_source(message.config_source, child(path, "config_source"), context)
    _check_types(message.type_urls, path, context)
    expected = ExtensionType(list(message.type_urls))
    default: HttpFilter | None = None
    if message.HasField("default_config"):
        default = expected.build(message.default_config, child(path, "default_config"), context)
    elif message.apply_default_config_without_warming:
        where = child(path, "apply_default_config_without_warming")
        context.errors.add(where, "there is no default_config to apply")
    if len(context.errors) != before or source is None:
        return None
    services = context.services
    if services is None or services.subscriptions is None:
        return default or MissingConfig(), None
    discovery = ExtensionDiscovery(name, source, expected, default, services, context, path)
    discovery.warms = not message.apply_default_config_without_warming
    context.init_targets.append(discovery)
    return discovery.filter, discovery


def _check_types(type_urls: Any, path: str, context: BuildContext) -> None:
    if not type_urls:
        context.errors.add(child(path, "type_urls"), "at least one is required")
    known = HTTP_FILTERS.type_urls()
    for index, url in enumerate(type_urls):
        name = url.rpartition("/")[2]
        if name not in TYPED_STRUCTS and f"type.googleapis.com/{name}" not in known:
            context.errors.add(item(path, "type_urls", index), f"no HTTP filter has the type {name!r}")
