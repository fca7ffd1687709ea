"""Whatever comes, and in whatever order: the table is what a table of the same virtual hosts would be."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http.test_vhds import Proxy, virtual_host

DOMAINS = ["a.test", "b.test", "*.test", "*.a.test", "a.*", "*"]
HOSTS = [b"a.test", b"b.test", b"c.test", b"x.a.test", b"a.org", b"other"]
_SOME = st.lists(st.sampled_from(DOMAINS), min_size=1, max_size=3, unique=True)
_NAMES = st.sampled_from(["one", "two", "three"])
Operation = tuple[str, str, list[str]]
OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    st.tuples(st.just("push"), _NAMES, _SOME),
    st.tuples(st.just("remove"), _NAMES, st.just([])),
    st.tuples(st.just("routes"), st.just("fixed"), _SOME),
)


class Model:
    """Who has which domains."""

    def __init__(self) -> None:
        self.hosts: dict[str, list[str]] = {"fixed": ["fixed"]}

    def take(self, name: str, domains: list[str]) -> bool:
        """False when another has one of them."""
        others = [domain for other, held in self.hosts.items() if other != name for domain in held]
        if set(domains) & set(others):
            return False
        self.hosts[name] = domains
        return True


@settings(max_examples=60, deadline=None)
@given(st.lists(OPERATIONS, max_size=12))
def test_the_table_is_that_of_all_hosts(operations: list[Operation]) -> None:
    proxy, model = Proxy(), Model()
    for kind, name, domains in operations:
        if kind == "push":
            assert bool(proxy.push(name, *domains)) is not model.take(name, domains)
        elif kind == "remove":
            proxy.take_away(name)
            model.hosts.pop(name, None)
        else:
            wanted = ["fixed", *domains]
            errors = proxy.set_routes(domains=wanted)
            assert bool(errors) is not model.take("fixed", wanted)
    expected = Proxy()
    whole: list[Any] = [virtual_host(name, held) for name, held in model.hosts.items() if name != "fixed"]
    assert not expected.set_routes(*whole, domains=model.hosts["fixed"])
    assert found(proxy) == found(expected)
    proxy.context.close()
    assert proxy.subscriptions.watches == []


def found(proxy: Proxy) -> list[str | None]:
    """Which virtual host takes each host."""
    table = proxy.built.config.routes.table
    assert table is not None
    hosts = [table.find_name(host) for host in HOSTS]
    return [None if host is None else host.virtual_host.name for host in hosts]
