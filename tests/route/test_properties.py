"""The fast look-up equals a plain one on random tables."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.route import generate
from tests.route.support import build, new_headers, new_info


@given(st.integers(0, 2**32))
def test_first_route_that_holds(seed: int) -> None:
    """Indexes, sets of expressions and shared look-ups change nothing in the order of routes."""
    rng = random.Random(seed)
    routes = generate.random_routes(rng, 40)
    table = build({"name": "t", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]})
    for _ in range(8):
        path, fields = generate.random_request(rng)
        headers = new_headers(path, fields=list(fields))
        route = table.match(headers, new_info(headers), 0)
        found = None if route is None else route.direct_body.decode()
        assert found == generate.first_route(routes, path, fields)


LABELS = st.lists(st.sampled_from(["a", "b", "foo", "x-y"]), min_size=1, max_size=4)
HOSTS = LABELS.map(".".join)
DOMAINS = st.one_of(
    HOSTS,
    HOSTS.map("*.{}".format),
    HOSTS.map("*-{}".format),
    HOSTS.map("{}.*".format),
    HOSTS.map("{}-*".format),
    st.just("*"),
)


@given(st.lists(DOMAINS, min_size=1, max_size=12, unique=True), st.lists(HOSTS, min_size=1, max_size=8))
def test_domain(domains: list[str], hosts: list[str]) -> None:
    """A host's virtual host by dicts equals the one by trying every domain."""
    table = build({"name": "t", "virtual_hosts": [{"name": each, "domains": [each], "routes": []} for each in domains]})
    for host in hosts:
        found = table.find_host(new_headers(authority=host.upper()))
        assert (None if found is None else found.virtual_host.name) == generate.best_domain(domains, host)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any), st.integers(0, 2**64 - 1))
def test_weights(weights: list[int], number: int) -> None:
    """The number modulo the total falls into the interval of one weight, in order."""
    clusters = [{"name": f"c{i}", "weight": weight} for i, weight in enumerate(weights)]
    route = {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": clusters, "header_name": "x-n"}}}
    table = build({"name": "t", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]})
    wanted = [f"c{i}" for i, weight in enumerate(weights) for _ in range(weight)][number % sum(weights)]
    for fields, drawn in (([], number), ([("x-n", str(number))], 0)):
        headers = new_headers(fields=fields)
        picked = table.match(headers, new_info(headers), drawn)
        assert picked is not None
        assert picked.cluster_name == wanted
