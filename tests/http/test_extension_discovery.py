"""Filters whose configuration a control plane gives."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from google.protobuf import json_format

from meshproxy.config.subscription import EXTENSION_TYPE, SECRET_TYPE
from meshproxy.http.build import build_connection_manager
from tests.http.discovery import ADS, PREFIX, Discovered, extension
from tests.http.harness import get

MUTATION = "header_mutation.v3.HeaderMutation"
BUFFER = "buffer.v3.Buffer"
INJECTOR = "credential_injector.v3.CredentialInjector"
GENERIC = "type.googleapis.com/envoy.extensions.http.injected_credentials.generic.v3.Generic"
ANSWER = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
ROUTES = {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [ANSWER]}]}
STATS = "extension_config_discovery.http_filter.mark."


def mark(value: str) -> dict[str, Any]:
    """A configuration that marks responses."""
    return {"mutations": {"response_mutations": [{"append": {"header": {"key": "x-mark", "value": value}}}]}}


def discovery(**fields: Any) -> dict[str, Any]:
    source = {"config_source": ADS, "type_urls": [PREFIX + MUTATION, PREFIX + BUFFER], **fields}
    return {"name": "mark", "config_discovery": source}


def default(value: str) -> dict[str, Any]:
    return {"default_config": {"@type": PREFIX + MUTATION, **mark(value)}}


@pytest.fixture
def proxy() -> Discovered:
    return Discovered()


def marks(answer: bytes) -> list[bytes]:
    lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
    return [line.partition(b": ")[2] for line in lines if line.startswith(b"x-mark")]


def injecting(name: str) -> Any:
    """A filter that needs a secret."""
    credential = {"name": name, "sds_config": ADS}
    typed = {"@type": GENERIC, "credential": credential}
    return extension("mark", INJECTOR, credential={"name": "generic", "typed_config": typed})


def generic_secret(name: str) -> Any:
    held = {"name": name, "generic_secret": {"secret": {"inline_string": "abc"}}}
    return json_format.ParseDict(held, Secret())


def build(proxy: Discovered, *filters: dict[str, Any]) -> Any:
    return proxy.build(route_config=ROUTES, http_filters=list(filters or [discovery()]))


def ask(proxy: Discovered, built: Any) -> list[bytes]:
    return marks(proxy.harness.connect(built.config).send(get()))


def test_the_listener_warms_until_the_first_configuration(proxy: Discovered) -> None:
    built, context = build(proxy)
    warm = proxy.start(context)
    assert (warm, proxy.subscriptions.names(EXTENSION_TYPE)) == ([], ["mark"])
    assert not proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", extension("mark", MUTATION, **mark("one")))
    assert warm == ["warm"]
    assert ask(proxy, built) == [b"one"]
    assert (proxy.stat(STATS + "config_reload"), proxy.stat(STATS + "config_fail")) == (1, 0)


def test_an_open_connection_has_the_new_filter_with_its_next_request(proxy: Discovered) -> None:
    built, context = build(proxy)
    proxy.start(context)
    downstream = proxy.harness.connect(built.config)
    for value in ("one", "two"):
        proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", extension("mark", MUTATION, **mark(value)))
        assert marks(downstream.send(get())) == [value.encode()]


def test_a_stream_keeps_the_chain_it_began_with(proxy: Discovered) -> None:
    """The body comes when the filter is another one already."""
    built, context = build(proxy)
    proxy.start(context)
    proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", extension("mark", BUFFER, max_request_bytes=3))
    downstream = proxy.harness.connect(built.config)
    assert downstream.send(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\n12") == b""
    proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", extension("mark", MUTATION, **mark("two")))
    assert downstream.send(b"34").startswith(b"HTTP/1.1 413 ")
    assert ask(proxy, built) == [b"two"]


def test_without_a_configuration_nothing_passes(proxy: Discovered) -> None:
    built, context = build(proxy)
    warm = proxy.start(context)
    proxy.subscriptions.miss(EXTENSION_TYPE, "mark")
    assert warm == ["warm"]
    assert proxy.ask(built) == (500, b"")
    proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", extension("mark", MUTATION, **mark("late")))
    assert ask(proxy, built) == [b"late"]
    proxy.subscriptions.miss(EXTENSION_TYPE, "mark")  # it was removed
    assert proxy.ask(built) == (500, b"")


def test_the_default_stands_in_once_nothing_came(proxy: Discovered) -> None:
    built, context = build(proxy, discovery(**default("default")))
    warm = proxy.start(context)
    assert warm == []
    proxy.subscriptions.miss(EXTENSION_TYPE, "mark")
    assert (warm, ask(proxy, built)) == (["warm"], [b"default"])
    proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", extension("mark", MUTATION, **mark("one")))
    assert ask(proxy, built) == [b"one"]
    proxy.subscriptions.miss(EXTENSION_TYPE, "mark")
    assert ask(proxy, built) == [b"default"]


def test_a_default_that_is_applied_without_warming(proxy: Discovered) -> None:
    built, context = build(proxy, discovery(**default("default"), apply_default_config_without_warming=True))
    assert proxy.start(context) == ["warm"]
    assert ask(proxy, built) == [b"default"]
    proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", extension("mark", MUTATION, **mark("one")))
    assert ask(proxy, built) == [b"one"]


@pytest.mark.parametrize(
    ("kind", "config", "path"),
    [
        ("fault.v3.HTTPFault", {}, "typed_config"),
        (MUTATION, mark("%NOPE%"), "typed_config.mutations.response_mutations[0].append.header.value"),
        ("router.v3.Router", {}, "typed_config"),
    ],
)
def test_a_configuration_that_is_refused(proxy: Discovered, kind: str, config: dict[str, Any], path: str) -> None:
    types = [PREFIX + MUTATION, PREFIX + "router.v3.Router"]
    built, context = build(proxy, discovery(type_urls=types))
    warm = proxy.start(context)
    errors = proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", extension("mark", kind, **config))
    assert [error.path for error in errors.items] == [path]
    assert warm == ["warm"]
    assert proxy.ask(built)[0] == 500
    assert (proxy.stat(STATS + "config_reload"), proxy.stat(STATS + "config_fail")) == (0, 1)


def test_a_filter_that_waits_itself(proxy: Discovered) -> None:
    """For a secret: the filter before it is in force, and the listener warms, until it is there, or not going to be."""
    built, context = build(proxy, discovery(type_urls=[PREFIX + MUTATION, PREFIX + INJECTOR]))
    warm = proxy.start(context)
    proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", injecting("first"))
    assert (warm, proxy.ask(built)[0]) == ([], 500)
    proxy.subscriptions.miss(SECRET_TYPE, "first")
    assert (warm, proxy.ask(built)[0]) == (["warm"], 401)
    proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", injecting("second"))
    proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", injecting("third"))
    assert (proxy.subscriptions.names(SECRET_TYPE), proxy.ask(built)[0]) == (["first", "third"], 401)
    proxy.subscriptions.deliver(SECRET_TYPE, "third", generic_secret("third"))
    assert (proxy.subscriptions.names(SECRET_TYPE), proxy.ask(built)[0]) == (["third"], 200)
    context.close()
    assert proxy.subscriptions.watches == []


def test_a_refused_configuration_leaves_the_one_in_force(proxy: Discovered) -> None:
    built, context = build(proxy)
    proxy.start(context)
    proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", extension("mark", MUTATION, **mark("one")))
    wrong = extension("mark", "fault.v3.HTTPFault")
    assert proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", wrong, "2")
    assert ask(proxy, built) == [b"one"]


def test_a_filter_gives_back_what_it_acquired(proxy: Discovered) -> None:
    types = {"type_urls": [PREFIX + "fault.v3.HTTPFault", PREFIX + MUTATION]}
    _, context = build(proxy, discovery(**types))
    proxy.start(context)
    before = {prefix for prefix, _ in proxy.harness.registry.scopes()}
    proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", extension("mark", "fault.v3.HTTPFault"))
    assert {prefix for prefix, _ in proxy.harness.registry.scopes()} - before == {"http.in.fault."}
    proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", extension("mark", MUTATION, **mark("one")))
    assert {prefix for prefix, _ in proxy.harness.registry.scopes()} == before
    context.close()
    assert proxy.subscriptions.watches == []


def test_order_and_disabled_filters_stay(proxy: Discovered) -> None:
    fixed = {"name": "fixed", "typed_config": {"@type": PREFIX + MUTATION, **mark("fixed")}}
    off = {"name": "off", "disabled": True, "typed_config": {"@type": PREFIX + MUTATION, **mark("off")}}
    built, context = build(proxy, fixed, discovery(), off)
    proxy.start(context)
    proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", extension("mark", MUTATION, **mark("one")))
    assert ask(proxy, built) == [b"one", b"fixed"]  # responses pass the last filter first


def test_filters_of_an_upgrade_are_swapped_too(proxy: Discovered) -> None:
    router = {"name": "router", "typed_config": {"@type": PREFIX + "router.v3.Router"}}
    upgrades = [{"upgrade_type": "chat", "filters": [discovery(), router]}]
    built, context = proxy.build(route_config=ROUTES, upgrade_configs=upgrades)
    proxy.start(context)
    proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", extension("mark", MUTATION, **mark("one")))
    upgrade = get("/", ("connection", "upgrade"), ("upgrade", "chat"))
    assert marks(proxy.harness.connect(built.config).send(upgrade)) == [b"one"]
    assert ask(proxy, built) == []


def test_a_chain_that_is_kept_follows_the_newer_listener(proxy: Discovered) -> None:
    old, old_context = build(proxy)
    proxy.start(old_context)
    proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", extension("mark", MUTATION, **mark("one")))
    new, new_context = build(proxy)
    proxy.start(new_context)
    proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", extension("mark", MUTATION, **mark("two")))
    old.adopt(new)
    old_context.close()
    assert ask(proxy, old) == [b"two"]
    proxy.subscriptions.deliver(EXTENSION_TYPE, "mark", extension("mark", MUTATION, **mark("three")))
    assert ask(proxy, old) == [b"three"]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"type_urls": []}, "type_urls"),
        ({"type_urls": ["type.googleapis.com/a.b.C"]}, "type_urls[0]"),
        ({"apply_default_config_without_warming": True}, "apply_default_config_without_warming"),
        ({"default_config": {"@type": PREFIX + "fault.v3.HTTPFault"}}, "default_config"),
        ({"config_source": {"self": {}}}, "config_source.self"),
    ],
)
def test_sources_that_are_refused(proxy: Discovered, fields: dict[str, Any], path: str) -> None:
    context = proxy.new_context()
    router = {"name": "router", "typed_config": {"@type": PREFIX + "router.v3.Router"}}
    message = json_format.ParseDict(
        {"stat_prefix": "in", "route_config": ROUTES, "http_filters": [discovery(**fields), router]},
        HttpConnectionManager(),
    )
    assert build_connection_manager(message, "m", context) is None
    assert [error.path for error in context.errors.items] == [f"m.http_filters[0].config_discovery.{path}"]


def test_the_router_cannot_be_discovered(proxy: Discovered) -> None:
    context = proxy.new_context()
    message = json_format.ParseDict(
        {"stat_prefix": "in", "route_config": ROUTES, "http_filters": [discovery()]}, HttpConnectionManager()
    )
    assert build_connection_manager(message, "m", context) is None
    assert [error.path for error in context.errors.items] == ["m.http_filters[0].config_discovery"]
