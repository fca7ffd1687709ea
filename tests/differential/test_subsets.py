"""Subsets: which hosts take the requests of a route with `metadata_match`, and the statistics about subsets.

Nobody listens on the hosts' addresses: the host is told by a header of the 503.
"""

import copy
import socket
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import pytest
import yaml

from tests.differential.topic import SERVERS, TYPE, Topic, Yaml, address, mapping
from tests.support.downstream import RawDownstream
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy
from tests.support.upstream import ScriptedUpstream, reply

DIFFERENCES = ("subset-count", "subset-selector-order")  # keys in docs/envoy-differences.md
REQUESTS = 24  # a multiple of every number of hosts that a row has
BY_LOCALITY_REQUESTS = 60  # and of the sums of the weights of localities
TYPED = "type.googleapis.com/envoy.extensions.load_balancing_policies."
HOSTS = (
    "{ stage: prod, version: '1.0', type: std }",
    "{ stage: prod, version: '1.0', type: std }",
    "{ stage: prod, version: '1.1', type: std }",
    "{ stage: prod, version: '1.1', type: big }",
    "{ stage: dev, version: '1.2', type: std }",
    "{ stage: dev, version: 2 }",
    "",
    "{ stage: [a, b], version: [v, w, v] }",
    "{ flag: true }",
    "{ flag: 1 }",
    "{ deep: { x: [1, a, null], z: { z: 1.5 } } }",
    "{ canary: true }",
)
SICK = ("{ stage: sick }", "{ stage: sick }", "{ stage: ill }")
KEYS = "[{ keys: [stage] }, { keys: [version, stage] }, { keys: [version] }, { keys: [flag] }, { keys: [deep] }]"
CRITERIA = {
    "none": "",
    "empty": "{}",
    "stage": "{ stage: prod }",
    "other-stage": "{ stage: dev }",
    "unknown-stage": "{ stage: none }",
    "sick": "{ stage: sick }",
    "ill": "{ stage: ill }",
    "version": "{ version: '1.0' }",
    "number": "{ version: 2 }",
    "number-as-text": "{ version: '2' }",
    "both": "{ stage: prod, version: '1.1' }",
    "both-unknown": "{ stage: prod, version: '9' }",
    "both-apart": "{ stage: dev, version: '1.0' }",
    "redundant": "{ stage: prod, version: '1.0', more: x }",
    "redundant-one": "{ more: x, version: '1.0' }",
    "redundant-unknown": "{ stage: prod, version: '9', more: x }",
    "type": "{ type: big }",
    "unknown-type": "{ type: none }",
    "unknown-key": "{ nobody: x }",
    "element": "{ stage: a }",
    "element-both": "{ stage: b, version: w }",
    "list": "{ stage: [a, b] }",
    "list-turned": "{ stage: [b, a] }",
    "true": "{ flag: true }",
    "one": "{ flag: 1 }",
    "deep": "{ deep: { z: { z: 1.5 }, x: [1, a, null] } }",
    "fallbacks": "{ fallback_list: [{ stage: none }, { stage: dev }, { stage: prod }] }",
    "fallbacks-merged": "{ stage: prod, fallback_list: [{ version: '9' }, { version: '1.1' }] }",
    "fallbacks-empty": "{ stage: prod, fallback_list: [] }",
    "fallbacks-text": "{ stage: prod, fallback_list: dev }",
    "fallbacks-none": "{ stage: prod, fallback_list: [{ stage: x }, 3, {}] }",
}
FALLBACK_SELECTORS = (
    "[{ keys: [stage], fallback_policy: ANY_ENDPOINT }, "
    "{ keys: [stage, version], fallback_policy: KEYS_SUBSET, fallback_keys_subset: [stage] }, "
    "{ keys: [version], fallback_policy: NO_FALLBACK }, { keys: [type], fallback_policy: DEFAULT_SUBSET }]"
)
REDUNDANT = (
    "[{ keys: [version], fallback_policy: NO_FALLBACK }, { keys: [type], fallback_policy: ANY_ENDPOINT }, "
    "{ keys: [stage, version], fallback_policy: KEYS_SUBSET, fallback_keys_subset: [version] }]"
)
LONG_FIRST = (
    "[{ keys: [version, stage], fallback_policy: NO_FALLBACK }, { keys: [stage], fallback_policy: ANY_ENDPOINT }]"
)
SINGLE = "[{ keys: [stage], single_host_per_subset: true }, { keys: [stage, version] }]"


def endpoints(metadata: tuple[str, ...], first: int = 1, fields: str = "") -> str:
    """A locality's hosts, the first one ending in `.first`."""
    made = []
    for index, labels in enumerate(metadata):
        address = f"{{ socket_address: {{ address: 127.9.0.{first + index}, port_value: @dead@ }} }}"
        more = f", metadata: {{ filter_metadata: {{ envoy.lb: {labels} }} }}" if labels else ""
        made.append(f"{{ endpoint: {{ address: {address} }}{more}{fields} }}")
    return ", ".join(made)


def assignment(*localities: str) -> str:
    """A load assignment."""
    return f"load_assignment: {{ cluster_name: x, endpoints: [{', '.join(localities)}] }}\n"


def locality(hosts: str, fields: str = "") -> str:
    """One group of endpoints."""
    return f"{{ lb_endpoints: [{hosts}]{fields} }}"


ALL = assignment(
    locality(f"{endpoints(HOSTS)}, {endpoints(SICK, 101, ', health_status: UNHEALTHY')}"),
    locality(endpoints(("{ stage: ill }", "{ stage: prod, version: '9.9' }"), 201), ", priority: 1"),
)
SPREAD = (
    locality(endpoints(("{ stage: prod }",) * 3, 1), ", locality: { zone: a }, load_balancing_weight: 1"),
    locality(
        endpoints(("{ stage: prod }", *("{ stage: dev }",) * 3), 11), ", locality: { zone: b }, load_balancing_weight: 3"
    ),
    locality(endpoints(("{ stage: dev }",) * 2, 21), ", locality: { zone: c }, load_balancing_weight: 2"),
)
BY_LOCALITY = "common_lb_config: { locality_weighted_lb_config: {} }\n" + assignment(*SPREAD)


def subsets(fields: str, selectors: str = KEYS, hosts: str = ALL) -> str:
    """A cluster with the legacy `lb_subset_config`."""
    return f"lb_subset_config: {{ subset_selectors: {selectors}{', ' + fields if fields else ''} }}\n" + hosts


def typed(fields: str, inner: str = "round_robin.v3.RoundRobin", selectors: str = KEYS, hosts: str = ALL) -> str:
    """A cluster with the typed policy."""
    policies = f"policies: [{{ typed_extension_config: {{ name: inner, typed_config: {{ '@type': {TYPED}{inner} }} }} }}]"
    config = (
        f"{{ '@type': {TYPED}subset.v3.Subset, subset_selectors: {selectors}, subset_lb_policy: {{ {policies} }}"
        f"{', ' + fields if fields else ''} }}"
    )
    return f"load_balancing_policy: {{ policies: [{{ typed_extension_config: {{ name: outer, typed_config: {config} }} }}] }}\n" + hosts


DEFAULT = "fallback_policy: DEFAULT_SUBSET, default_subset: "
TYPED_BY_LOCALITY = "round_robin.v3.RoundRobin, locality_lb_config: { locality_weighted_lb_config: {} }"
CLUSTERS = {
    "no_fallback": subsets(""),
    "any_endpoint": subsets("fallback_policy: ANY_ENDPOINT"),
    "default_subset": subsets(DEFAULT + "{ stage: dev }"),
    "default_by_element": subsets(DEFAULT + "{ stage: a }, list_as_any: true"),
    "default_not_by_element": subsets(DEFAULT + "{ stage: a }"),
    "default_empty": subsets(DEFAULT + "{}"),
    "default_nobody": subsets(DEFAULT + "{ stage: nobody }"),
    "panic": subsets(DEFAULT + "{ stage: nobody }, panic_mode_any: true"),
    "panic_without_fallback": subsets("panic_mode_any: true"),
    "selectors": subsets(DEFAULT + "{ stage: dev }", FALLBACK_SELECTORS),
    "selectors_any": subsets("fallback_policy: ANY_ENDPOINT", FALLBACK_SELECTORS),
    "list_as_any": subsets("list_as_any: true"),
    "fallback_list": subsets("metadata_fallback_policy: FALLBACK_LIST"),
    "fallback_list_any": subsets("metadata_fallback_policy: FALLBACK_LIST, fallback_policy: ANY_ENDPOINT"),
    "single_host": subsets("", SINGLE, assignment(locality(endpoints(HOSTS)))),
    "no_selectors": subsets("fallback_policy: ANY_ENDPOINT", "[]"),
    "no_keys": subsets("", "[{}]"),
    "same_keys_twice": subsets("", "[{ keys: [stage], fallback_policy: ANY_ENDPOINT }, { keys: [stage] }]"),
    "no_panic": subsets("") + "common_lb_config: { healthy_panic_threshold: { value: 0 } }\n",
    "by_locality_unaware": subsets("", hosts=BY_LOCALITY),
    "by_locality": subsets("locality_weight_aware: true", hosts=BY_LOCALITY),
    "by_locality_scaled": subsets("locality_weight_aware: true, scale_locality_weight: true", hosts=BY_LOCALITY),
    "typed": typed(""),
    "typed_redundant": typed("allow_redundant_keys: true"),
    "typed_redundant_any": typed("allow_redundant_keys: true, fallback_policy: ANY_ENDPOINT", selectors=REDUNDANT),
    "typed_redundant_equal": typed("allow_redundant_keys: true", selectors="[{ keys: [more] }, { keys: [version] }]"),
    "typed_by_locality": typed("locality_weight_aware: true", TYPED_BY_LOCALITY, hosts=assignment(*SPREAD)),
    "typed_locality_unaware": typed("", TYPED_BY_LOCALITY, hosts=assignment(*SPREAD)),
}
HASHED = {
    "ring": "lb_policy: RING_HASH\n" + subsets("fallback_policy: ANY_ENDPOINT"),
    "maglev": "lb_policy: MAGLEV\n" + subsets("fallback_policy: ANY_ENDPOINT"),
    "typed_ring": typed("", "ring_hash.v3.RingHash"),
    "ring_by_locality": "lb_policy: RING_HASH\n" + subsets("locality_weight_aware: true", hosts=BY_LOCALITY),
}
TOLD = ", response_headers_to_add: [{ header: { key: x-host, value: '%UPSTREAM_HOST%' } }]"


def matching(criteria: str) -> str:
    """The field `metadata_match`, to be added to an action."""
    return f", metadata_match: {{ filter_metadata: {{ envoy.lb: {criteria} }} }}" if criteria else ""


def route(path: str, cluster: str, criteria: str) -> str:
    """A route to the hosts with these labels."""
    policy = ", hash_policy: [{ header: { header_name: x-key } }]"
    return f"{{ match: {{ path: {path} }}, route: {{ cluster: {cluster}{policy}{matching(criteria)} }}{TOLD} }}"


WEIGHTED = (
    "{ match: { path: /weighted }, route: { weighted_clusters: { clusters: ["
    "{ name: no_fallback, weight: 1" + matching("{ version: '1.1' }") + " }] }"
    + matching("{ stage: prod, version: '1.0' }") + " }" + TOLD + " }, "
    "{ match: { path: /weighted-only }, route: { weighted_clusters: { clusters: ["
    "{ name: no_fallback, weight: 1" + matching("{ stage: dev }") + " }] } }" + TOLD + " }, "
    "{ match: { path: /weighted-above }, route: { weighted_clusters: { clusters: ["
    "{ name: no_fallback, weight: 1 }] }" + matching("{ stage: dev }") + " }" + TOLD + " }"
)
# Connections: three servers that answer with their names, in subsets by their names.
NAMED = assignment(
    locality(
        ", ".join(
            f"{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: @{name}@ }} }} }}, "
            f"metadata: {{ filter_metadata: {{ envoy.lb: {{ name: {name}, all: x }} }} }} }}"
            for name in SERVERS
        )
    )
)
BY_NAME = subsets("fallback_policy: DEFAULT_SUBSET, default_subset: { name: c }", "[{ keys: [name] }, { keys: [all] }]", NAMED)
ROUTES = [
    *(route(f"/{cluster}/{name}", cluster, criteria) for cluster in CLUSTERS for name, criteria in CRITERIA.items()),
    *(route(f"/{cluster}/{name}", cluster, CRITERIA[name]) for cluster in HASHED for name in ("none", "stage", "version")),
    WEIGHTED,
    route("/named", "named", ""),
    route("/named-a", "named", "{ name: a }"),
    route("/long_first/unknown-stage", "long_first", CRITERIA["unknown-stage"]),
]
TOPIC = Topic(
    clusters=CLUSTERS | HASHED | {"long_first": subsets("", LONG_FIRST), "named": BY_NAME}, vhosts=f"[{{ name: subsets, domains: ['*'], routes: [{', '.join(ROUTES)}] }}]"
)


CONNECTIONS = {
    "tcp": "cluster: named" + matching("{ name: b }"),
    "tcp_fallback": "cluster: named" + matching("{ name: nobody }"),
    "tcp_nothing": "cluster: named",
    "tcp_weighted": "weighted_clusters: { clusters: [{ name: named, weight: 1" + matching("{ name: a }") + " }] }"
    + matching("{ name: b }"),
    "tcp_weighted_above": "weighted_clusters: { clusters: [{ name: named, weight: 1 }] }" + matching("{ name: b }"),
    "tcp_told": "cluster: named" + matching("{ name: a }"),
    "tcp_told_only": "cluster: named",
}
TLV = 0xE0


def connection_listener(name: str, fields: str) -> Yaml:
    """A listener with tcp_proxy; those that are told something learn it from a PROXY protocol header."""
    config = {"@type": TYPE + "filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": name, **mapping(f"{{ {fields} }}")}
    made: Yaml = {
        "name": name,
        "address": address(0),
        "filter_chains": [{"filters": [{"name": "tcp", "typed_config": config}]}],
    }
    if "told" in name:
        pair = {"metadata_namespace": "envoy.lb", "key": "name"}
        proxy_protocol = {
            "@type": TYPE + "filters.listener.proxy_protocol.v3.ProxyProtocol",
            "rules": [{"tlv_type": TLV, "on_tlv_present": pair}],
        }
        made["listener_filters"] = [{"name": "proxy_protocol", "typed_config": proxy_protocol}]
    return made


def proxy_header(value: bytes) -> bytes:
    """A PROXY protocol header of version 2 with one TLV."""
    body = socket.inet_aton("127.0.0.1") * 2 + struct.pack("!HH", 1, 2) + struct.pack("!BH", TLV, len(value)) + value
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x21, 0x11, len(body)) + body


@pytest.fixture(scope="module")
def proxies() -> Iterator[tuple[ProxyProcess, ProxyProcess]]:
    """Envoy and meshproxy on one configuration, with the same upstream."""
    with ExitStack() as stack:
        upstream = ScriptedUpstream(SERVERS)
        stack.callback(upstream.close)
        upstream.play(by_server={name: [reply(body=name.encode())] for name in SERVERS})
        dead = stack.enter_context(socket.socket())
        dead.bind(("0.0.0.0", 0))  # it never listens: a port that refuses connections on every loopback address
        tree = yaml.safe_load(TOPIC.bootstrap_yaml(upstream.ports | {"dead": dead.getsockname()[1]}, "/dev/null"))
        listeners = tree["static_resources"]["listeners"]
        listeners += [connection_listener(name, fields) for name, fields in CONNECTIONS.items()]
        told = copy.deepcopy(listeners[0]) | {"name": "told"}
        told["listener_filters"] = listeners[-1]["listener_filters"]
        listeners.append(told)
        text = yaml.dump(tree, sort_keys=False)
        yield stack.enter_context(start_envoy(text)), stack.enter_context(start_meshproxy(text))


def ask(proxy: ProxyProcess, path: str, count: int = REQUESTS) -> list[str]:
    """The last number of the host's address for each of the requests, which have a key each; or the status."""
    chosen = []
    with RawDownstream(proxy.listener_ports()["main"]) as downstream:
        for index in range(count):
            downstream.send(f"GET {path} HTTP/1.1\r\nhost: h\r\nx-key: {index}\r\n\r\n".encode())
            response = downstream.receive()
            host = (response.get(b"x-host") or b"").decode()
            chosen.append(host.partition(":")[0].rpartition(".")[2] if ":" in host else str(response.status))
    return chosen


def spread(proxy: ProxyProcess, cluster: str) -> dict[str, Mapping[str, int]]:
    """How often each host was chosen, by criteria."""
    count = BY_LOCALITY_REQUESTS if "locality" in cluster else REQUESTS
    return {name: Counter(ask(proxy, f"/{cluster}/{name}", count)) for name in CRITERIA}


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_same_hosts(proxies: tuple[ProxyProcess, ProxyProcess], cluster: str) -> None:
    expected, actual = (spread(proxy, cluster) for proxy in proxies)
    assert actual == expected


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_same_stats(proxies: tuple[ProxyProcess, ProxyProcess], cluster: str) -> None:
    """Of the requests of the tests before, and of one of each kind."""
    for proxy in proxies:
        for name in CRITERIA:
            ask(proxy, f"/{cluster}/{name}", 1)
    expected, actual = (proxy.stats(rf"^cluster\.{cluster}\.(lb_subsets|lb_healthy_panic)") for proxy in proxies)
    assert len(expected) > 5
    for name in ("active", "created"):  # `subset-count`: Envoy's main thread has them, too
        expected[f"cluster.{cluster}.lb_subsets_{name}"] //= 2
    assert actual == expected


def test_a_selector_keeps_its_fallback_behind_a_longer_one(proxies: tuple[ProxyProcess, ProxyProcess]) -> None:
    """`subset-selector-order`: Envoy forgets it."""
    expected, actual = (ask(proxy, "/long_first/unknown-stage") for proxy in proxies)
    assert set(expected) == {"503"}
    assert len(set(actual)) == len(HOSTS)


@pytest.mark.parametrize("cluster", HASHED)
def test_same_host_for_every_key(proxies: tuple[ProxyProcess, ProxyProcess], cluster: str) -> None:
    for name in ("none", "stage", "version"):
        expected, actual = (ask(proxy, f"/{cluster}/{name}", 60) for proxy in proxies)
        assert actual == expected


@pytest.mark.parametrize("path", ["/weighted", "/weighted-only", "/weighted-above"])
def test_a_weighted_cluster_adds_to_what_its_route_asks_for(
    proxies: tuple[ProxyProcess, ProxyProcess], path: str
) -> None:
    expected, actual = (Counter(ask(proxy, path)) for proxy in proxies)
    assert len(expected) == 2
    assert actual == expected


@pytest.mark.parametrize("listener", CONNECTIONS)
def test_same_server_of_a_connection(proxies: tuple[ProxyProcess, ProxyProcess], listener: str) -> None:
    header = proxy_header(b"b") if "told" in listener else b""
    expected, actual = ([answered(proxy, listener, header) for _ in range(3)] for proxy in proxies)
    assert actual == expected


@pytest.mark.parametrize("path", ["/named", "/named-a"])
@pytest.mark.parametrize("value", [b"b", b"nobody"])
def test_metadata_of_the_connection_counts(
    proxies: tuple[ProxyProcess, ProxyProcess], path: str, value: bytes
) -> None:
    header = proxy_header(value)
    expected, actual = (answered(proxy, "told", header, path) for proxy in proxies)
    assert actual == expected


def answered(proxy: ProxyProcess, listener: str, header: bytes, path: str = "/") -> bytes:
    """What a request on a new connection is answered."""
    with RawDownstream(proxy.listener_ports()[listener]) as downstream:
        downstream.send(header + f"GET {path} HTTP/1.1\r\nhost: h\r\n\r\n".encode())
        return downstream.receive().body
