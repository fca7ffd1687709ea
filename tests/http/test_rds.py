"""Routes from a control plane, under a connection manager's connections."""

from __future__ import annotations

import pytest

from meshproxy.config.config_source import ADS as ADS_KEY
from meshproxy.config.subscription import ROUTE_TYPE
from tests.http.discovery import ADS, Discovered, route_configuration, routes
from tests.http.harness import get
from tests.support.garbage import only_collected

RDS = {"rds": {"route_config_name": "routes", "config_source": ADS}}
STATS = "http.in.rds.routes."


@pytest.fixture
def proxy() -> Discovered:
    return Discovered()


def test_the_listener_warms_until_the_first_routes(proxy: Discovered) -> None:
    built, context = proxy.build(**RDS)
    assert proxy.subscriptions.watches == []
    warm = proxy.start(context)
    assert (warm, proxy.subscriptions.names(ROUTE_TYPE)) == ([], ["routes"])
    assert not proxy.subscriptions.deliver(ROUTE_TYPE, "routes", routes("one"))
    assert warm == ["warm"]
    assert proxy.ask(built) == (200, b"one")
    assert proxy.stat(STATS + "config_reload") == 1
    assert proxy.stat(STATS + "config_reload_time_ms") > 1_600_000_000_000


def test_without_routes_in_time_requests_have_none(proxy: Discovered) -> None:
    built, context = proxy.build(**RDS)
    warm = proxy.start(context)
    proxy.subscriptions.miss(ROUTE_TYPE, "routes")
    assert warm == ["warm"]
    assert proxy.ask(built)[0] == 404
    proxy.subscriptions.deliver(ROUTE_TYPE, "routes", routes("late"))
    assert proxy.ask(built) == (200, b"late")


def test_an_open_connection_has_the_new_routes_with_its_next_request(proxy: Discovered) -> None:
    built, context = proxy.build(**RDS)
    proxy.start(context)
    proxy.subscriptions.deliver(ROUTE_TYPE, "routes", routes("one"))
    downstream = proxy.harness.connect(built.config)
    assert downstream.send(get()).endswith(b"one")
    proxy.subscriptions.deliver(ROUTE_TYPE, "routes", routes("two"), "2")
    assert downstream.send(get()).endswith(b"two")
    assert proxy.stat(STATS + "config_reload") == 2


def test_removed_routes_stay(proxy: Discovered) -> None:
    """Envoy ignores the removal of a route configuration that is in use."""
    built, context = proxy.build(**RDS)
    proxy.start(context)
    proxy.subscriptions.deliver(ROUTE_TYPE, "routes", routes("one"))
    proxy.subscriptions.miss(ROUTE_TYPE, "routes")
    assert proxy.ask(built) == (200, b"one")


def test_refused_routes_leave_those_in_force_and_say_where(proxy: Discovered) -> None:
    built, context = proxy.build(**RDS)
    proxy.start(context)
    proxy.subscriptions.deliver(ROUTE_TYPE, "routes", routes("one"))
    broken = routes("two")
    broken.virtual_hosts[0].domains.append("*")
    errors = proxy.subscriptions.deliver(ROUTE_TYPE, "routes", broken, "2")
    assert [error.path for error in errors.items] == ["virtual_hosts[0].domains[1]"]
    assert proxy.ask(built) == (200, b"one")
    assert (proxy.stat(STATS + "config_reload"), proxy.stat(STATS + "update_rejected")) == (1, 1)


@pytest.mark.parametrize("how", ["by update", "before"])
def test_a_first_answer_that_is_refused_ends_the_waiting(proxy: Discovered, how: str) -> None:
    built, context = proxy.build(**RDS)
    warm = proxy.start(context)
    broken = routes("x")
    broken.virtual_hosts[0].domains.append("*")
    if how == "by update":
        assert proxy.subscriptions.deliver(ROUTE_TYPE, "routes", broken)
    else:
        proxy.subscriptions.watches[0].watcher.refused()
    assert warm == ["warm"]
    assert proxy.ask(built)[0] == 404


def to_cluster(validates: bool | None) -> dict[str, object]:
    return {} if validates is None else {"validate_clusters": validates}


@pytest.mark.parametrize(
    ("validates", "expected"), [(None, []), (False, []), (True, ["virtual_hosts[0].routes[0].route.cluster"])]
)
def test_clusters_must_be_there_only_where_the_routes_say_so(
    proxy: Discovered, validates: bool | None, expected: list[str]
) -> None:
    built, context = proxy.build(**RDS)
    proxy.start(context)
    action = {"cluster": "nobody", "cluster_not_found_response_code": "NOT_FOUND"}
    host = {"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": action}]}
    message = route_configuration("routes", [host], **to_cluster(validates))
    errors = proxy.subscriptions.deliver(ROUTE_TYPE, "routes", message)
    assert [error.path for error in errors.items] == expected
    assert proxy.ask(built)[0] == 404  # the code that the route gives, or that there is no route


def test_a_table_gives_back_what_it_acquired(proxy: Discovered) -> None:
    _, context = proxy.build(**RDS)
    proxy.start(context)
    cluster = {"name": "all", "headers": [{"name": ":path", "present_match": True}]}
    host = {"name": "v", "domains": ["*"], "virtual_clusters": [cluster]}
    before = {prefix for prefix, _ in proxy.harness.registry.scopes()}
    proxy.subscriptions.deliver(ROUTE_TYPE, "routes", route_configuration("routes", [host]))
    own = {prefix for prefix, _ in proxy.harness.registry.scopes()} - before
    assert own == {"vhost.v.vcluster.all.", "vhost.v.vcluster.other."}
    proxy.subscriptions.deliver(ROUTE_TYPE, "routes", routes("two"), "2")
    assert {prefix for prefix, _ in proxy.harness.registry.scopes()} == before


def test_the_end_of_the_listener_ends_the_watch(proxy: Discovered) -> None:
    _, context = proxy.build(**RDS)
    proxy.start(context)
    proxy.subscriptions.deliver(ROUTE_TYPE, "routes", routes("one"))
    context.close()
    assert proxy.subscriptions.watches == []
    assert not any(prefix.startswith("http.in.rds") for prefix, _ in proxy.harness.registry.scopes())


def test_an_update_that_ends_after_its_listener_changes_nothing(proxy: Discovered) -> None:
    built, context = proxy.build(**RDS)
    proxy.start(context)
    watcher = proxy.subscriptions.watches[0].watcher
    steps = watcher.update(routes("one"), "1", context.errors)
    next(steps)
    context.close()
    list(steps)
    assert built.config.routes.table is None


def test_two_connection_managers_watch_the_same_routes_by_themselves(proxy: Discovered) -> None:
    first, first_context = proxy.build(**RDS)
    second, second_context = proxy.build(**RDS)
    proxy.start(first_context)
    proxy.start(second_context)
    assert proxy.subscriptions.names(ROUTE_TYPE) == ["routes", "routes"]
    proxy.subscriptions.deliver(ROUTE_TYPE, "routes", routes("one"))
    assert (proxy.ask(first), proxy.ask(second)) == ((200, b"one"), (200, b"one"))


def test_a_chain_that_is_kept_follows_the_routes_of_the_newer_listener(proxy: Discovered) -> None:
    """As a listener is updated in place: the connection managers are alike but for their routes' name."""
    old, old_context = proxy.build(**RDS)
    proxy.start(old_context)
    proxy.subscriptions.deliver(ROUTE_TYPE, "routes", routes("one"))
    new, new_context = proxy.build(rds={"route_config_name": "others", "config_source": ADS})
    proxy.start(new_context)
    proxy.subscriptions.deliver(ROUTE_TYPE, "others", routes("two", "others"))
    assert old.fingerprint == new.fingerprint
    assert proxy.ask(old) == (200, b"one")
    old.adopt(new)
    old_context.close()
    assert proxy.ask(old) == (200, b"two")
    proxy.subscriptions.deliver(ROUTE_TYPE, "others", routes("three", "others"), "2")
    assert proxy.ask(old) == (200, b"three")


def test_many_routes_come_in_steps(proxy: Discovered) -> None:
    _, context = proxy.build(**RDS)
    proxy.start(context)
    matches = [{"match": {"path": f"/{i}"}, "redirect": {"path_redirect": "/"}} for i in range(2000)]
    hosts = [{"name": f"v{i}", "domains": [f"d{i}"]} for i in range(500)]
    hosts.append({"name": "v", "domains": ["*"], "routes": matches})  # type: ignore[dict-item]
    message = route_configuration("routes", hosts)
    assert not proxy.subscriptions.deliver(ROUTE_TYPE, "routes", message)
    built_in = proxy.subscriptions.steps
    assert built_in >= 500 + 2000 / 8
    proxy.subscriptions.deliver(ROUTE_TYPE, "routes", routes("two"), "2")
    assert proxy.subscriptions.steps >= 2000 / 32  # the old table is freed in steps


def test_a_name_in_statistics_has_no_colons(proxy: Discovered) -> None:
    _, context = proxy.build(rds={"route_config_name": "a.b:80", "config_source": ADS})
    proxy.start(context)
    proxy.subscriptions.deliver(ROUTE_TYPE, "a.b:80", routes("one", "a.b:80"), source=ADS_KEY)
    assert proxy.stat("http.in.rds.a.b_80.config_reload") == 1


def test_a_build_that_only_checks_watches_nothing(proxy: Discovered) -> None:
    proxy.subscriptions = None  # type: ignore[assignment]
    _, context = proxy.build(**RDS)
    assert context.init_targets == []


def test_a_table_that_is_replaced_leaves_nothing_to_the_garbage_collector(proxy: Discovered) -> None:
    _, context = proxy.build(**RDS)
    proxy.start(context)
    proxy.subscriptions.deliver(ROUTE_TYPE, "routes", routes("one"))
    with only_collected() as found:
        proxy.subscriptions.deliver(ROUTE_TYPE, "routes", routes("two"), "2")
        proxy.subscriptions.deliver(ROUTE_TYPE, "routes", routes("three"), "3")
    assert found == []
