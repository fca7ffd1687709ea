"""Virtual hosts that come by themselves, or when a request asks for them (answers as Envoy 1.40 gave them)."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.route.v3.route_components_pb2 import VirtualHost
from google.protobuf import json_format

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.subscription import ROUTE_TYPE, VIRTUAL_HOST_TYPE
from meshproxy.http import vhds
from meshproxy.http.chain import FilterChain
from meshproxy.http.filter import CONTINUE, STOP, HttpFilter
from meshproxy.http.stream import Stream
from tests.http.discovery import ADS, Discovered, route_configuration
from tests.http.harness import Downstream, get

VHDS: dict[str, Any] = {"vhds": {"config_source": ADS}}
STATS = "http.in.vhds.routes."
COUNTED = [{"name": "all", "headers": [{"name": ":path", "present_match": True}]}]


class Waits(HttpFilter):
    """Holds requests that have no virtual host until there is an answer."""

    def __init__(self) -> None:
        self.asked = 0

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        if stream.route is not None:
            return CONTINUE
        if not stream.config.routes.request_virtual_host(headers, Resume(self, stream)):
            return CONTINUE
        self.asked += 1
        return STOP


class Resume:
    def __init__(self, http_filter: HttpFilter, stream: Stream) -> None:
        self._filter = http_filter
        self._stream = stream

    def __call__(self, found: bool) -> None:
        if not self._stream.done:
            self._stream.pick_route_again(self._filter)
            self._stream.resume_request()


class Marks(HttpFilter):
    """Marks the responses of requests that it has seen."""

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        stream.state[self.slot] = "seen"
        return CONTINUE

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        headers.set(b"x-filter", b"seen" if stream.state[self.slot] else b"missed")
        return CONTINUE


class Proxy(Discovered):
    """With routes that have virtual hosts elsewhere, and a filter that waits for them."""

    def __init__(self, **manager: Any) -> None:
        super().__init__()
        rds = {"route_config_name": "routes", "config_source": ADS}
        self.built, self.context = self.build(rds=rds, **manager)
        self.waits, self.marks = Waits(), Marks()
        for slot, (name, each) in enumerate((("waits", self.waits), ("marks", self.marks))):
            each.slot, each.name = slot, name
        self.built.config.chain = FilterChain((self.waits, self.marks))
        self.start(self.context)
        self.set_routes()

    def set_routes(self, *hosts: dict[str, Any], **fields: Any) -> ConfigErrors:
        """A RouteConfiguration with the host `fixed`, and more, whose `domains` may be others."""
        hosts = (virtual_host("fixed", fields.pop("domains", ["fixed"])), *hosts)
        message = route_configuration("routes", list(hosts), **{**VHDS, **fields})
        return self.subscriptions.deliver(ROUTE_TYPE, "routes", message)

    def push(self, name: str, *domains: str, body: str = "") -> ConfigErrors:
        """A virtual host comes that nobody asked for."""
        errors = ConfigErrors()
        watcher: Any = self.subscriptions.of(VIRTUAL_HOST_TYPE, "routes/*")[0].watcher
        message = parse(virtual_host(name, [*domains], body or name))
        list(watcher.update_member(f"routes/{name}", message, "1", errors))
        return errors

    def take_away(self, name: str) -> None:
        watcher: Any = self.subscriptions.of(VIRTUAL_HOST_TYPE, "routes/*")[0].watcher
        watcher.missing_member(f"routes/{name}")

    def answer(self, name: str, *domains: str, **fields: Any) -> ConfigErrors:
        """The virtual host comes that a request asked for."""
        message = parse({**virtual_host(name, [*domains]), **fields})
        return self.subscriptions.deliver(VIRTUAL_HOST_TYPE, f"routes/{name}", message)

    def begin(self, host: str, *fields: tuple[str, str]) -> Downstream:
        """A request that is on its way."""
        downstream = self.harness.connect(self.built.config)
        downstream.feed(get("/", *fields).replace(b"host: h", b"host: " + host.encode()))
        return downstream

    def asked_for(self) -> list[str]:
        return [name for name in self.subscriptions.names(VIRTUAL_HOST_TYPE) if name != "routes/*"]


def virtual_host(name: str, domains: list[str], body: str = "") -> dict[str, Any]:
    answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": body or name}}}
    return {"name": name, "domains": domains, "routes": [answer]}


def parse(tree: dict[str, Any]) -> VirtualHost:
    return json_format.ParseDict(tree, VirtualHost())


def status(answer: bytes) -> int:
    return int(answer.split()[1]) if answer else 0


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


def test_a_host_that_is_pushed_takes_requests(proxy: Proxy) -> None:
    assert proxy.ask(proxy.built, host="fixed") == (200, b"fixed")
    assert not proxy.push("one", "one.test", "*.one.test", "one.*")
    assert [proxy.ask(proxy.built, host=host)[1] for host in ("one.test", "a.one.test", "one.org")] == [b"one"] * 3
    assert proxy.stat(STATS + "config_reload") == 1


def test_a_newer_version_replaces_the_domains_too(proxy: Proxy) -> None:
    proxy.push("one", "one.test", "*.one.test", "one.*")
    proxy.push("one", "two.test")
    table = proxy.built.config.routes.table
    assert table is not None
    assert [table.find_name(host) is not None for host in (b"one.test", b"a.one.test", b"one.org", b"two.test")] == [
        *[False] * 3,
        True,
    ]
    assert len(table.virtual_hosts) == 2


def test_a_host_that_is_removed_takes_none(proxy: Proxy) -> None:
    proxy.push("one", "*")
    assert proxy.ask(proxy.built, host="any") == (200, b"one")
    proxy.take_away("one")
    table = proxy.built.config.routes.table
    assert table is not None
    assert table.find_name(b"any") is None
    assert proxy.ask(proxy.built, host="fixed") == (200, b"fixed")


def test_a_domain_that_is_taken_is_refused(proxy: Proxy) -> None:
    errors = proxy.push("one", "one.test", "fixed")
    assert [error.path for error in errors.items] == ["domains[1]"]
    assert proxy.ask(proxy.built, host="fixed") == (200, b"fixed")
    assert proxy.stat(STATS + "config_reload") == 0


def test_a_request_waits_for_its_host(proxy: Proxy) -> None:
    downstream = proxy.begin("One.test:80")
    assert downstream.received() == b""
    assert proxy.asked_for() == ["routes/one.test:80"]
    assert not proxy.answer("one.test:80", "one.test", "one.test:80")
    answer = downstream.received()
    assert (status(answer), answer.endswith(b"one.test:80")) == (200, True)
    assert b"x-filter: seen" in answer
    assert proxy.ask(proxy.built, host="one.test") == (200, b"one.test:80")
    assert proxy.waits.asked == 1


def test_requests_for_one_host_ask_once(proxy: Proxy) -> None:
    waiting = [proxy.begin("one.test") for _ in range(20)]
    assert proxy.asked_for() == ["routes/one.test"]
    proxy.answer("one.test", "one.test")
    assert [status(downstream.received()) for downstream in waiting] == [200] * 20


def test_a_host_that_does_not_exist(proxy: Proxy) -> None:
    downstream = proxy.begin("nobody.test")
    proxy.subscriptions.miss(VIRTUAL_HOST_TYPE, "routes/nobody.test")
    answer = downstream.received()
    assert (status(answer), b"x-filter: seen" in answer) == (404, True)
    assert proxy.asked_for() == []  # whoever wants it later asks again


def test_a_refused_host_does_not_exist(proxy: Proxy) -> None:
    downstream = proxy.begin("one.test")
    assert proxy.answer("one.test", "fixed")
    assert status(downstream.received()) == 404
    downstream = proxy.begin("two.test")
    proxy.subscriptions.of(VIRTUAL_HOST_TYPE, "routes/two.test")[0].watcher.refused()
    assert status(downstream.received()) == 404


def test_an_alias_is_known_by_the_domains_of_the_host(proxy: Proxy) -> None:
    downstream = proxy.begin("alias.test")
    proxy.push("real.test", "real.test", "alias.test")
    answer = downstream.received()
    assert (status(answer), answer.endswith(b"real.test")) == (200, True)
    proxy.subscriptions.miss(VIRTUAL_HOST_TYPE, "routes/alias.test")  # no resource has that name
    assert proxy.ask(proxy.built, host="alias.test") == (200, b"real.test")


def test_an_answer_that_is_for_another_host(proxy: Proxy) -> None:
    """The watch of the name stays, since the host is in force; requests for it have no route, and do not wait."""
    downstream = proxy.begin("one.test")
    proxy.answer("one.test", "two.test")
    assert status(downstream.received()) == 404
    assert proxy.ask(proxy.built, host="one.test")[0] == 404
    assert proxy.ask(proxy.built, host="two.test")[0] == 200


def test_only_so_many_names_that_were_asked_for_in_vain_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are given up, with what came by their names; whoever wants them later asks again."""
    monkeypatch.setattr(vhds, "_MOST_UNSERVED", 2)
    proxy = Proxy()
    before = {prefix for prefix, _ in proxy.harness.registry.scopes()}
    waiting = proxy.begin("waiting.test")
    proxy.begin("there.test")
    proxy.answer("there.test", "there.test")
    for name in ("refused", "other", "late", "bad", "last"):
        proxy.begin(f"{name}.test")
        if name == "bad":
            proxy.subscriptions.refuse(VIRTUAL_HOST_TYPE, "routes/bad.test")
        else:
            domain = "fixed" if name == "refused" else f"not-{name}.test"
            proxy.answer(f"{name}.test", domain, virtual_clusters=COUNTED)
        if name == "late":
            proxy.answer("late.test", "late.test", virtual_clusters=COUNTED)
    proxy.begin("fresh.test")
    proxy.subscriptions.refuse(VIRTUAL_HOST_TYPE, "routes/fresh.test")
    kept = ["fresh.test", "last.test", "late.test", "there.test", "waiting.test"]
    assert proxy.asked_for() == [f"routes/{name}" for name in kept]
    assert {prefix for prefix, _ in proxy.harness.registry.scopes()} - before == {
        f"vhost.{name}.test.vcluster.{cluster}." for name in ("late", "last") for cluster in ("all", "other")
    }
    assert waiting.received() == b""
    assert [proxy.ask(proxy.built, host=host)[0] for host in ("late.test", "there.test", "not-last.test")] == [200] * 3
    assert proxy.begin("not-other.test").received() == b""
    assert proxy.begin("refused.test").received() == b""


def test_a_host_that_came_unasked_stays_when_its_name_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vhds, "_MOST_UNSERVED", 0)
    proxy = Proxy()
    proxy.push("one.test", "two.test")
    downstream = proxy.begin("one.test")
    proxy.answer("one.test", "three.test")
    assert status(downstream.received()) == 404
    assert proxy.asked_for() == []
    assert proxy.ask(proxy.built, host="three.test")[0] == 200


def test_a_client_that_leaves_while_it_waits(proxy: Proxy) -> None:
    downstream = proxy.begin("one.test")
    downstream.leave()
    proxy.answer("one.test", "one.test")
    assert proxy.ask(proxy.built, host="one.test")[0] == 200


def test_so_many_may_wait_and_no_more(proxy: Proxy) -> None:
    waiting = [proxy.begin(f"h{index}.test") for index in range(1000)]
    assert proxy.ask(proxy.built, host="more.test")[0] == 404
    proxy.answer("h7.test", "h7.test")
    assert status(waiting[7].received()) == 200
    assert proxy.begin("more.test").received() == b""


def test_a_name_that_is_too_long_to_be_one(proxy: Proxy) -> None:
    assert proxy.ask(proxy.built, host="a" * 300)[0] == 404
    assert proxy.asked_for() == []


def test_what_the_route_says_of_filters_holds_behind_the_one_that_waits(proxy: Proxy) -> None:
    off = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
    downstream = proxy.begin("one.test")
    assert not proxy.answer("one.test", "one.test", typed_per_filter_config={"marks": off, "waits": off})
    answer = downstream.received()
    assert (status(answer), b"x-filter" in answer) == (200, False)


@pytest.mark.parametrize(
    ("by_manager", "by_route", "expected"),
    [(True, None, 503), (True, False, 403), (False, True, 503), (False, None, 403), (False, False, 403)],
)
def test_upgrades_are_allowed_by_the_route_that_came(by_manager: bool, by_route: bool | None, expected: int) -> None:
    """503: it was let through, to a cluster that is not there."""
    proxy = Proxy(upgrade_configs=[{"upgrade_type": "chat", "enabled": by_manager}])
    downstream = proxy.begin("one.test", ("connection", "upgrade"), ("upgrade", "chat"))
    says = [] if by_route is None else [{"upgrade_type": "chat", "enabled": by_route}]
    action = {"cluster": "nobody", "upgrade_configs": says}
    proxy.answer("one.test", "one.test", routes=[{"match": {"prefix": "/"}, "route": action}])
    assert status(downstream.received()) == expected


def test_another_route_configuration_keeps_the_hosts_that_came(proxy: Proxy) -> None:
    proxy.push("one", "one.test")
    more = [{"header": {"key": "x-all", "value": "new"}}]
    assert not proxy.set_routes(response_headers_to_add=more)
    answer = proxy.begin("one.test").received()
    assert (status(answer), b"x-all: new" in answer) == (200, True)
    assert proxy.subscriptions.names(VIRTUAL_HOST_TYPE) == ["routes/*"]
    proxy.take_away("one")
    assert proxy.begin("one.test").received() == b""


def test_another_route_configuration_that_takes_a_domain_is_refused(proxy: Proxy) -> None:
    proxy.push("one", "one.test")
    errors = proxy.set_routes(virtual_host("mine", ["one.test"]))
    assert [error.path for error in errors.items] == ["vhds"]
    assert proxy.ask(proxy.built, host="one.test") == (200, b"one")


def test_a_host_that_comes_while_other_routes_are_built(proxy: Proxy) -> None:
    """Both are in force in the end, the host as the newer routes have it."""
    more = [{"header": {"key": "x-all", "value": "new"}}]
    proxy.push("one", "one.test")
    errors = ConfigErrors()
    watcher = proxy.subscriptions.of(ROUTE_TYPE, "routes")[0].watcher
    message = route_configuration("routes", [], response_headers_to_add=more, **VHDS)
    steps = watcher.update(message, "2", errors)
    for _ in range(4):
        next(steps)
    proxy.push("two", "two.test")
    list(steps)
    for host in ("one.test", "two.test"):
        answer = proxy.begin(host).received()
        assert (status(answer), b"x-all: new" in answer) == (200, True)


def test_other_routes_that_come_while_a_host_is_built(proxy: Proxy) -> None:
    more = [{"header": {"key": "x-all", "value": "new"}}]
    watcher: Any = proxy.subscriptions.of(VIRTUAL_HOST_TYPE, "routes/*")[0].watcher
    steps = watcher.update_member("routes/one", parse(
        {"name": "one", "domains": ["one.test"], "routes": virtual_host("one", [])["routes"] * 20}
    ), "1", ConfigErrors())  # fmt: skip
    next(steps)
    proxy.set_routes(response_headers_to_add=more)
    list(steps)
    answer = proxy.begin("one.test").received()
    assert (status(answer), b"x-all: new" in answer) == (200, True)


def test_routes_without_discovery_have_their_own_hosts_only(proxy: Proxy) -> None:
    proxy.push("one", "one.test")
    downstream = proxy.begin("two.test")
    proxy.subscriptions.deliver(ROUTE_TYPE, "routes", route_configuration("routes", []))
    assert status(downstream.received()) == 404
    assert proxy.ask(proxy.built, host="one.test")[0] == 404
    assert proxy.subscriptions.names(VIRTUAL_HOST_TYPE) == []
    assert proxy.built.config.routes.virtual_hosts is None


def test_the_end_of_the_listener_ends_all_watches(proxy: Proxy) -> None:
    proxy.push("one", "one.test")
    downstream = proxy.begin("two.test")
    before = {prefix for prefix, _ in proxy.harness.registry.scopes()}
    assert "http.in.vhds.routes." in before
    proxy.context.close()
    assert proxy.subscriptions.watches == []
    assert not any("vhds" in prefix for prefix, _ in proxy.harness.registry.scopes())
    assert status(downstream.received()) == 404


def test_virtual_hosts_give_back_what_they_acquired(proxy: Proxy) -> None:
    before = {prefix for prefix, _ in proxy.harness.registry.scopes()}
    proxy.begin("one.test")
    proxy.answer("one.test", "one.test", virtual_clusters=COUNTED)
    added = {prefix for prefix, _ in proxy.harness.registry.scopes()} - before
    assert added == {"vhost.one.test.vcluster.all.", "vhost.one.test.vcluster.other."}
    proxy.set_routes()
    assert {prefix for prefix, _ in proxy.harness.registry.scopes()} - before == added
    proxy.answer("one.test", "one.test")
    assert {prefix for prefix, _ in proxy.harness.registry.scopes()} == before


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ({"path_config_source": {"path": "/hosts.yaml"}}, "vhds.config_source"),
        ({"api_config_source": {"api_type": "GRPC"}}, "vhds.config_source.api_config_source.api_type"),
    ],
)
def test_sources_that_are_refused(proxy: Proxy, source: dict[str, Any], path: str) -> None:
    errors = proxy.set_routes(vhds={"config_source": source})
    assert [error.path for error in errors.items] == [path]
    assert proxy.ask(proxy.built, host="fixed") == (200, b"fixed")


def test_inline_routes_cannot_have_it(proxy: Proxy) -> None:
    with pytest.raises(AssertionError, match=r"m\.route_config\.vhds"):
        proxy.build(route_config={"name": "r", **VHDS})
