"""RING_HASH, MAGLEV and hash policies: both proxies put a key on the same host.

The hosts' addresses are hashed, so that both proxies have the same ones. Nobody listens there: the host is told by a
header of the 503.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import xxhash
import yaml

from tests.differential.topic import SERVERS, TYPE, Topic, Yaml, address
from tests.support.downstream import RawDownstream
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy
from tests.support.upstream import STALL, ScriptedUpstream, reply
from tests.support.wire import Message, WireReader

KEYS = 120
TYPED = "type.googleapis.com/envoy.extensions.load_balancing_policies."
RING, MAGLEV = "lb_policy: RING_HASH\n", "lb_policy: MAGLEV\n"
HOSTNAMES = "type: STRICT_DNS\ncommon_lb_config: { consistent_hashing_lb_config: { use_hostname_for_hashing: true } }\n"
SICK = "health_status: UNHEALTHY"
HASH_KEY = "metadata: {{ filter_metadata: {{ envoy.lb: {{ hash_key: host-{} }} }} }}"
TWELVE = (1,) * 12
UNEVEN = (1, 5, 2, 9, 3, 1, 7)


def hosts(weights: tuple[int, ...], *fields: str, priority: int = 0) -> str:
    """A locality; `fields` are added to its endpoints, the first to the first."""
    return f"{{ priority: {priority}, lb_endpoints: [{', '.join(_endpoints(weights, fields, priority))}] }}"


def _endpoints(weights: tuple[int, ...], fields: tuple[str, ...], priority: int) -> Iterator[str]:
    for index, weight in enumerate(weights):
        address = f"{{ socket_address: {{ address: 127.9.{priority}.{index + 1}, port_value: @dead@ }} }}"
        more = f", {fields[index]}" if index < len(fields) and fields[index] else ""
        yield (
            f"{{ load_balancing_weight: {weight}, "
            f"endpoint: {{ address: {address}, hostname: name-{index} }}{more} }}"
        )


def in_zone(zone: str, weight: int, text: str) -> str:
    """The same locality with a name, and with a weight unless that is 0."""
    weighed = f", load_balancing_weight: {weight}" if weight else ""
    return f"{{ locality: {{ zone: {zone} }}{weighed}, {text.removeprefix('{')}"


def assignment(*localities: str) -> str:
    """A load assignment of localities."""
    return f"load_assignment: {{ cluster_name: x, endpoints: [{', '.join(localities)}] }}\n"


def typed(name: str, options: str) -> str:
    """The `load_balancing_policy` form."""
    config = f"{{ '@type': {TYPED}{name}, {options} }}"
    return f"load_balancing_policy: {{ policies: [{{ typed_extension_config: {{ name: x, typed_config: {config} }} }}] }}\n"


PRIORITIES = assignment(
    hosts((1,) * 4, SICK, SICK), hosts((1, 2, 3), priority=1)
)  # 70 percent of the keys go to the first priority
BY_LOCALITY = "common_lb_config: { locality_weighted_lb_config: {} }\n"
BOUNDED = "common_lb_config: {{ consistent_hashing_lb_config: {{ hash_balance_factor: {} }} }}\n"
ZONES = assignment(
    in_zone("b", 3, hosts((1, 2, 3))),
    in_zone("a", 1, hosts((1, 1), priority=7).replace("priority: 7", "priority: 0")),
    in_zone("c", 5, hosts((4, 1), SICK, priority=8).replace("priority: 8", "priority: 0")),
    in_zone("d", 0, hosts((1,), priority=9).replace("priority: 9", "priority: 0")),
)
CLUSTERS = {
    "ring": RING + assignment(hosts(TWELVE)),
    "ring_one_host": RING + assignment(hosts((1,))),
    "ring_weighted": RING + assignment(hosts(UNEVEN)),
    "ring_small": RING + "ring_hash_lb_config: { minimum_ring_size: 3, maximum_ring_size: 17 }\n" + assignment(hosts(UNEVEN)),
    "ring_fewer_places_than_hosts": RING
    + "ring_hash_lb_config: { minimum_ring_size: 1, maximum_ring_size: 5 }\n"
    + assignment(hosts(TWELVE)),
    "ring_large": RING + "ring_hash_lb_config: { minimum_ring_size: 20000 }\n" + assignment(hosts(UNEVEN)),
    "ring_murmur": RING + "ring_hash_lb_config: { hash_function: MURMUR_HASH_2 }\n" + assignment(hosts(UNEVEN)),
    "ring_hostname": RING + HOSTNAMES + assignment(hosts(UNEVEN)),
    "ring_hash_key": RING + assignment(hosts(UNEVEN, HASH_KEY.format(1), "", HASH_KEY.format(3))),
    "ring_sick": RING + assignment(hosts(TWELVE, SICK, "", SICK)),
    "ring_panic": RING + assignment(hosts((1, 1, 1, 1), SICK, SICK, SICK)),
    "ring_degraded": RING + assignment(hosts((1, 1, 1, 1), *("health_status: DEGRADED",) * 2)),
    "ring_priorities": RING + PRIORITIES,
    "maglev": MAGLEV + assignment(hosts(TWELVE)),
    "maglev_weighted": MAGLEV + assignment(hosts(UNEVEN)),
    "maglev_small": MAGLEV + "maglev_lb_config: { table_size: 251 }\n" + assignment(hosts(UNEVEN)),
    "maglev_fewer_entries_than_hosts": MAGLEV + "maglev_lb_config: { table_size: 5 }\n" + assignment(hosts(TWELVE)),
    "maglev_hostname": MAGLEV + HOSTNAMES + assignment(hosts(UNEVEN)),
    "maglev_sick": MAGLEV + assignment(hosts(TWELVE, SICK, "", SICK)),
    "maglev_panic": MAGLEV + assignment(hosts((1, 1, 1, 1), SICK, SICK, SICK)),
    "maglev_degraded": MAGLEV + assignment(hosts((1, 1, 1, 1), *("health_status: DEGRADED",) * 2)),
    "maglev_priorities": MAGLEV + PRIORITIES,
    "typed_ring": typed("ring_hash.v3.RingHash", "hash_function: MURMUR_HASH_2, minimum_ring_size: 50")
    + assignment(hosts(UNEVEN)),
    "typed_ring_hostname": typed("ring_hash.v3.RingHash", "use_hostname_for_hashing: true") + assignment(hosts(UNEVEN)),
    "typed_ring_overridden": typed(
        "ring_hash.v3.RingHash", "use_hostname_for_hashing: true, consistent_hashing_lb_config: {}"
    )
    + assignment(hosts(UNEVEN)),
    "typed_maglev": typed(
        "maglev.v3.Maglev", "table_size: 1009, consistent_hashing_lb_config: { use_hostname_for_hashing: true }"
    )
    + assignment(hosts(UNEVEN)),
    "ring_locality": RING + BY_LOCALITY + ZONES,
    "maglev_locality": MAGLEV + BY_LOCALITY + ZONES,
    "ring_locality_without_weights": RING + BY_LOCALITY + assignment(hosts(UNEVEN)),
    "typed_ring_locality": typed("ring_hash.v3.RingHash", "locality_weighted_lb_config: {}") + ZONES,
    "typed_maglev_locality": typed("maglev.v3.Maglev", "locality_weighted_lb_config: {}") + ZONES,
    "typed_ring_no_locality": typed("ring_hash.v3.RingHash", "minimum_ring_size: 100") + ZONES,
    "ring_bounded": RING + BOUNDED.format(100) + assignment(hosts(UNEVEN)),
    "typed_own_policy": typed(
        "maglev.v3.Maglev", "consistent_hashing_lb_config: { hash_policy: [{ query_parameter: { name: q } }] }"
    )
    + assignment(hosts(TWELVE)),
}

COOKIE = "cookie: { name: sid"
POLICIES = {
    "header": "[{ header: { header_name: X-Key } }]",
    "rewritten": r"[{ header: { header_name: x-key, regex_rewrite: { pattern: { regex: '^k(.).*' }, substitution: '\1' } } }]",
    "path": '[{ header: { header_name: ":path" } }]',
    "host": "[{ header: { header_name: host } }]",
    "user_agent": "[{ header: { header_name: user-agent } }]",
    "added": "[{ header: { header_name: x-added } }]",
    "query": "[{ query_parameter: { name: q } }]",
    "ip": "[{ connection_properties: { source_ip: true } }]",
    "cookie": f"[{{ {COOKIE} }} }}]",
    "two": "[{ header: { header_name: x-key } }, { query_parameter: { name: q } }]",
    "same_twice": "[{ header: { header_name: x-key } }, { header: { header_name: x-key } }]",
    "state_that_is_none": "[{ filter_state: { key: none }, terminal: true }, { header: { header_name: x-key } }]",
    "terminal": "[{ header: { header_name: x-key }, terminal: true }, { query_parameter: { name: q } }]",
    "only_terminal": "[{ header: { header_name: x-none }, terminal: true }, { query_parameter: { name: q } }]",
}
MADE_UP = {
    "session": f"[{{ {COOKIE}, ttl: 0s }} }}]",
    "lasting": f"[{{ {COOKIE}, ttl: 3600.9s, path: /p }} }}]",
    "attributes": f"[{{ {COOKIE}, ttl: 5s, attributes: [{{ name: Secure }}, {{ name: SameSite, value: Lax }}] }} }}]",
    "two_cookies": f"[{{ {COOKIE}, ttl: 0s }} }}, {{ cookie: {{ name: other, ttl: 7s }} }}]",
}


def route(prefix: str, cluster: str, policy: str, fields: str = "", action: str = "") -> str:
    """A route that goes by a policy."""
    return (
        f"{{ match: {{ prefix: /{prefix}/ }}, route: {{ cluster: {cluster}, hash_policy: {policy}{action} }}, "
        f"response_headers_to_add: [{{ header: {{ key: x-host, value: '%UPSTREAM_HOST%' }} }}, "
        f"{{ header: {{ key: x-remote, value: 'to %UPSTREAM_REMOTE_ADDRESS%' }} }}]{fields} }}"
    )


ADDED = ", request_headers_to_add: [{ header: { key: x-added, value: '%REQ(x-key)%' } }]"
RETRY = (
    ", retry_policy: { retry_on: connect-failure, num_retries: 3, host_selection_retry_max_attempts: 5, "
    "retry_back_off: { base_interval: 0.001s }, retry_host_predicate: [{ name: p, typed_config: "
    "{ '@type': type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate } }] }"
)
TWO_RETRIES = ", retry_policy: { retry_on: retriable-status-codes, retriable_status_codes: [200], num_retries: 2 }"
SET_COOKIE = ", response_headers_to_remove: [set-cookie]"
PARTS = ", ".join(f"{{ name: {name}, weight: {weight} }}" for name, weight in (("a", 20), ("b", 30), ("c", 50)))
HELD = {
    "held_100": RING + BOUNDED.format(100) + "hosts: [a, b, c]\n",
    "held_150": MAGLEV + BOUNDED.format(150) + "hosts: [a, b, c]\n",
    "held_typed": typed("ring_hash.v3.RingHash", "hash_balance_factor: 200") + "hosts: [a, b, c]\n",
    "held_weighted": RING + BOUNDED.format(120) + assignment(
        "{ lb_endpoints: [" + ", ".join(
            f"{{ load_balancing_weight: {weight}, endpoint: {{ address: {{ socket_address: "
            f"{{ address: 127.0.0.1, port_value: @{name}@ }} }} }} }}"
            for name, weight in (("a", 5), ("b", 1), ("c", 2))
        ) + "] }"
    ),
}
WEIGHTED = (
    "{{ match: {{ prefix: /weighted-{name}/ }}, route: {{ weighted_clusters: {{ clusters: [{parts}], {fields} }}, "
    "hash_policy: {policy} }}, response_headers_to_add: [{{ header: {{ key: x-host, value: '%UPSTREAM_HOST%' }} }}] }}"
)
BY_WEIGHT = {
    "hashed": (POLICIES["header"], "use_hash_policy: true"),
    "cookie": (MADE_UP["session"], "use_hash_policy: true"),
}
ROUTES = [
    *(
        WEIGHTED.format(name=name, parts=PARTS, policy=policy, fields=fields)
        for name, (policy, fields) in BY_WEIGHT.items()
    ),
    *(route(name, name, POLICIES["header"]) for name in CLUSTERS),
    *(route(name, name, POLICIES["header"]) for name in HELD),
    *(route(f"policy-{name}", "ring", policy, ADDED) for name, policy in POLICIES.items()),
    *(route(f"cookie-{name}", "answered", policy) for name, policy in MADE_UP.items()),
    route("rewritten", "ring", POLICIES["path"], action=", prefix_rewrite: /"),
    *(route(f"retry-{name}", name, POLICIES["header"], action=RETRY) for name in ("ring", "maglev")),
    route("cookie-retried", "answered", MADE_UP["session"], action=TWO_RETRIES),
    route("cookie-not-hashed", "a", MADE_UP["session"]),
    route("cookie-not-answered", "ring", MADE_UP["session"]),
    route("cookie-added", "answered", MADE_UP["session"], SET_COOKIE),
]
TOPIC = Topic(
    listeners={"main": "use_remote_address: true\nxff_num_trusted_hops: 1\n"},
    clusters=CLUSTERS | HELD | {"answered": RING + "hosts: [a, b, c]\n"},
    vhosts=f"[{{ name: hashing, domains: ['*'], routes: [{', '.join(ROUTES)}] }}]",
)


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    """Three servers, each of which answers with its name."""
    servers = ScriptedUpstream(SERVERS)
    answer_with_names(servers)
    yield servers
    servers.close()


def answer_with_names(upstream: ScriptedUpstream) -> None:
    """Each server answers with its name from now on."""
    upstream.play(by_server={name: [reply(body=name.encode())] for name in SERVERS})


@pytest.fixture(scope="module")
def proxies(upstream: ScriptedUpstream) -> Iterator[tuple[ProxyProcess, ProxyProcess]]:
    """Envoy and meshproxy on one configuration, with the same upstream."""
    with ExitStack() as stack:
        dead = stack.enter_context(socket.socket())
        dead.bind(("0.0.0.0", 0))  # it never listens: a port that refuses connections on every loopback address
        tree = yaml.safe_load(TOPIC.bootstrap_yaml(upstream.ports | {"dead": dead.getsockname()[1]}, "/dev/null"))
        tree["static_resources"]["listeners"].append(relay())
        text = yaml.dump(tree, sort_keys=False)
        yield stack.enter_context(start_envoy(text)), stack.enter_context(start_meshproxy(text))


def relay() -> Yaml:
    """A listener that passes connections on by their source addresses."""
    policy = {"cluster": "answered", "stat_prefix": "relay", "hash_policy": [{"source_ip": {}}]}
    config = {"@type": TYPE + "filters.network.tcp_proxy.v3.TcpProxy", **policy}
    chain = {"filters": [{"name": "tcp", "typed_config": config}]}
    return {"name": "relay", "address": address(0), "filter_chains": [chain]}


def ask(proxy: ProxyProcess, requests: list[bytes]) -> list[Message]:
    """The responses to requests on one connection."""
    with RawDownstream(proxy.listener_ports()["main"]) as downstream:
        responses = []
        for request in requests:
            downstream.send(request)
            responses.append(downstream.receive())
        return responses


def request(path: str, *fields: str, host: str = "h") -> bytes:
    """A GET."""
    return "\r\n".join([f"GET {path} HTTP/1.1", f"host: {host}", *fields, "", ""]).encode()


def chosen(proxy: ProxyProcess, requests: list[bytes]) -> list[str]:
    """The host of each request."""
    return [(response.get(b"x-host") or b"%d" % response.status).decode() for response in ask(proxy, requests)]


def keyed(path: str) -> list[bytes]:
    """Requests with a hundred keys."""
    return [request(f"{path}?q={index * 7}", f"x-key: k{index}") for index in range(KEYS)]


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_same_host_for_every_key(proxies: tuple[ProxyProcess, ProxyProcess], cluster: str) -> None:
    expected, actual = (chosen(proxy, keyed(f"/{cluster}/")) for proxy in proxies)
    assert len(set(expected)) > 1 or cluster in ("ring_one_host", "ring_locality_without_weights")
    assert actual == expected


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_same_stats(proxies: tuple[ProxyProcess, ProxyProcess], cluster: str) -> None:
    expected, actual = (
        proxy.stats(rf"^cluster.{cluster}\.(ring_hash_lb|maglev_lb|lb_healthy_panic)") for proxy in proxies
    )
    assert len(expected) > 1
    assert actual == expected


CASES = {
    "header": keyed("/policy-header/"),
    "header_twice": [
        request("/policy-header/", *(f"x-key: {a}{i}" for a in order)) for i in range(40) for order in ("ab", "ba", "a")
    ],
    "header_empty": [request("/policy-header/", "x-key: ")],
    "rewritten": keyed("/policy-rewritten/"),
    "path": keyed("/policy-path/"),
    "added_by_the_route": keyed("/policy-added/"),
    "path_rewritten": keyed("/rewritten/"),
    "host": [request("/policy-host/", host=f"h{index}.test") for index in range(40)],
    "user_agent_twice": [
        request("/policy-user_agent/", f"user-agent: {index}", f"user-agent: x{index}") for index in range(40)
    ],
    "query": keyed("/policy-query/"),
    "query_forms": [
        request(f"/policy-query/?{query}") for query in ("q", "q=", "q=1&q=2", "q=%41", "a=1&q=A", "q=1;b", "q=a=b", "&q=3")
    ],
    "ip": [request("/policy-ip/", f"x-forwarded-for: 10.1.{index}.9, 10.2.{index}.7") for index in range(40)],
    "ip_of_socket": [request("/policy-ip/")],
    "cookie": [request("/policy-cookie/", f"cookie: a=b; sid=v{index}; c=d") for index in range(40)],
    "cookie_forms": [
        request("/policy-cookie/", f"cookie: {text}")
        for text in ('sid="q"', "sid=x ; b=c", "a=1;sid=y", "sid=a=b", "sid=1; sid=2", "x; sid=3", 'sid="', "sid=z;")
    ],
    "cookie_twice": [request("/policy-cookie/", "cookie: a=1", "cookie: sid=5")],
    "two": keyed("/policy-two/"),
    "two_with_one": [request(f"/policy-two/?q={index}") for index in range(40)],
    "same_twice": keyed("/policy-same_twice/"),
    "terminal": keyed("/policy-terminal/"),
    "only_terminal": keyed("/policy-only_terminal/"),
    "weighted": keyed("/weighted-hashed/"),
    "weighted_cookie": [request("/weighted-cookie/", f"cookie: sid={index}") for index in range(40)],
    "retry_ring": keyed("/retry-ring/"),
    "retry_maglev": keyed("/retry-maglev/"),
}


@pytest.mark.parametrize("kind", CASES)
def test_same_host_by_policy(proxies: tuple[ProxyProcess, ProxyProcess], kind: str) -> None:
    expected, actual = (chosen(proxy, CASES[kind]) for proxy in proxies)
    assert actual == expected


def test_a_host_that_cannot_be_reached_is_no_remote_address(proxies: tuple[ProxyProcess, ProxyProcess]) -> None:
    expected, actual = (
        [response.get(b"x-remote") for response in ask(proxy, [request("/ring/"), request("/cookie-session/")])]
        for proxy in proxies
    )
    assert expected[0] == b"to"
    assert expected[1] != b"to"
    assert [len(value or b"") for value in actual] == [len(value or b"") for value in expected]


def test_without_a_hash_any_host(proxies: tuple[ProxyProcess, ProxyProcess]) -> None:
    for proxy in proxies:
        assert len(set(chosen(proxy, [request("/policy-header/")] * 60))) > 3
        assert len(set(chosen(proxy, [request("/weighted-cookie/")] * 60))) > 1


@pytest.mark.parametrize(
    "path",
    [f"/cookie-{name}/" for name in (*MADE_UP, "retried", "not-hashed", "not-answered", "added")],
)
def test_same_cookies_are_made_up(proxies: tuple[ProxyProcess, ProxyProcess], path: str) -> None:
    """Their values differ by connection: compared are their names, attributes, number, and what becomes of them."""
    expected, actual = (made_up(proxy, path) for proxy in proxies)
    assert actual == expected


def made_up(proxy: ProxyProcess, path: str) -> list[tuple[str, ...]]:
    """The set-cookie headers of three requests on one connection; the last brings a cookie."""
    plain = request(path)
    seen = []
    for response in ask(proxy, [plain, plain, request(path, "cookie: sid=x; other=y")]):
        cookies = [value.decode() for value in response.get_all(b"set-cookie")]
        seen.append(tuple(str(len(cookie)) + cookie.partition('"')[0] + cookie.rpartition('"')[2] for cookie in cookies))
    return seen


@pytest.mark.parametrize("forwarded", ["", "x-forwarded-for: 10.1.2.3, 10.4.5.6"])
def test_a_made_up_cookie_is_the_hash_of_the_connection(
    proxies: tuple[ProxyProcess, ProxyProcess], forwarded: str
) -> None:
    """It leads to the host that it was made up for, on whatever connection it comes."""
    for proxy in proxies:
        port = proxy.listener_ports()["main"]
        with RawDownstream(port) as downstream:
            downstream.send(request("/cookie-session/", *([forwarded] if forwarded else [])))
            first = downstream.receive()
            remote = f"127.0.0.1:{downstream.local_port}"
        ends = f"{remote}127.0.0.1:{port}"
        cookie = f'sid="{xxhash.xxh64_hexdigest(ends.encode())}"'
        assert (first.get(b"set-cookie") or b"").decode().partition(";")[0] == cookie
        again = chosen(proxy, [request("/cookie-session/", f"cookie: {cookie}")])
        assert again == [(first.get(b"x-host") or b"").decode()]


def test_same_host_for_every_source_of_a_connection(proxies: tuple[ProxyProcess, ProxyProcess]) -> None:
    expected, actual = ([served_by(proxy, f"127.0.7.{index}") for index in range(1, 25)] for proxy in proxies)
    assert set(expected) == {name.encode() for name in SERVERS}
    assert actual == expected


def served_by(proxy: ProxyProcess, source: str) -> bytes:
    """Which server answers a connection from that address."""
    place = ("127.0.0.1", proxy.listener_ports()["relay"])
    with socket.create_connection(place, timeout=5.0, source_address=(source, 0)) as connection:
        connection.sendall(request("/"))
        reader = WireReader(connection)
        message = reader.read_head()
        reader.read_body(message, to_end=False)
        return message.body


@pytest.mark.parametrize("cluster", HELD)
def test_an_overloaded_host_passes_requests_on_alike(
    proxies: tuple[ProxyProcess, ProxyProcess], upstream: ScriptedUpstream, cluster: str
) -> None:
    """Requests that are not answered: each of two keys fills one host, then the others."""
    expected, actual = (held(proxy, upstream, cluster, 18) for proxy in proxies)
    assert len(set(expected)) > 1
    assert actual == expected


def held(proxy: ProxyProcess, upstream: ScriptedUpstream, cluster: str, count: int) -> list[str]:
    """The servers that get the requests, in order."""
    upstream.play([STALL])
    with ExitStack() as stack:
        for number in range(count):
            downstream = stack.enter_context(RawDownstream(proxy.listener_ports()["main"]))
            downstream.send(request(f"/{cluster}/", f"x-key: key{number % 2}"))
            upstream.wait_seen(number + 1)
        seen = [each.server for each in upstream.script.seen]
    upstream.settle()
    answer_with_names(upstream)
    return seen
