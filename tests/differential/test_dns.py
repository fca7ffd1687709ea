"""Hosts from DNS: whom each proxy asks, what it makes of the answers, and when it asks again.

Each proxy has a DNS server and an upstream of its own, so that what they are asked can be compared.
"""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.differential.pair import SUBJECT_IS_ENVOY
from tests.differential.topic import ROUTER, TYPE, Yaml, address, file_log, mapping
from tests.support.dns import AAAA, SERVFAIL, A, DnsServer, Record, Zone
from tests.support.downstream import RawDownstream, exchange
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy
from tests.support.upstream import Answer, ScriptedUpstream, reply

CARES = TYPE + "network.dns_resolver.cares.v3.CaresDnsResolverConfig"
GETADDRINFO = TYPE + "network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig"
DNS_CLUSTER = TYPE + "clusters.dns.v3.DnsCluster"
ADDRESSES = "host=%UPSTREAM_HOST% remote=%UPSTREAM_REMOTE_ADDRESS% code=%RESPONSE_CODE% flags=%RESPONSE_FLAGS%\n"
HELD = Answer(reply().pieces, wait_for="go")

FAMILIES = ("AUTO", "V4_ONLY", "V6_ONLY", "V4_PREFERRED", "ALL")
KINDS = ("STRICT_DNS", "LOGICAL_DNS")
ZONES = {
    "both.test": ("127.0.0.1", "127.0.0.2", "::1", "::2"),
    "v4.test": ("127.0.0.1", "127.0.0.2"),
    "v6.test": ("::1",),
    "alias.test": ("v4.test",),
    "empty.test": (),
    "twins.test": ("127.0.0.1", "127.0.0.1"),
}


def extension(**fields: object) -> Yaml:
    """A cluster of Envoy's one extension for both kinds."""
    return {"cluster_type": {"name": "any", "typed_config": {"@type": DNS_CLUSTER, **fields}}}


def by_name(name: str) -> Yaml:
    """A cluster of an extension without a configuration."""
    return {"cluster_type": {"name": f"envoy.cluster.{name}"}}


def typed(kind: str, **fields: object) -> Yaml:
    """A resolver as an extension."""
    return {"typed_dns_resolver_config": {"name": "any", "typed_config": {"@type": kind, **fields}}}


SERVERS: list[Any] = [{"socket_address": {"address": "127.0.0.1", "port_value": "@DNS@"}}]
# cluster -> (the name that it resolves, its fields)
CLUSTERS: dict[str, tuple[str, Yaml]] = {
    **{
        f"{kind}_{family}_{name}".lower().replace(".", "_"): (name, {"type": kind, "dns_lookup_family": family})
        for kind in KINDS
        for family in FAMILIES
        for name in ("both.test", "v4.test", "v6.test")
    },
    **{
        f"{kind}_{name}".lower().replace(".", "_"): (name, {"type": kind})
        for kind in KINDS
        for name in ("alias.test", "empty.test", "twins.test", "nowhere.test", "localhost", "127.0.0.1")
    },
    "by_name_strict": ("v4.test", by_name("strict_dns")),
    "by_name_logical": ("v4.test", by_name("logical_dns")),
    "by_name_dns": ("v4.test", by_name("dns")),
    "typed": ("both.test", extension()),
    "typed_all": ("both.test", extension(dns_lookup_family="ALL")),
    "typed_single": ("v4.test", extension(all_addresses_in_single_endpoint=True)),
    "typed_ignores_legacy": (
        "both.test",
        {"dns_lookup_family": "V6_ONLY", "dns_resolvers": [address(9)], **extension(dns_lookup_family="V4_ONLY")},
    ),
    "c_library": ("localhost", {"type": "STRICT_DNS", "dns_lookup_family": "V4_ONLY", **typed(GETADDRINFO)}),
    "with_priority": ("v4.test", {"type": "LOGICAL_DNS"}),
    **{
        f"routable_{family.lower()}": (
            "both.test",
            {
                "type": "STRICT_DNS",
                "dns_lookup_family": family,
                **typed(CARES, resolvers=SERVERS, filter_unroutable_families=True),
            },
        )
        for family in FAMILIES
    },
}
TCP: Yaml = {"use_tcp_for_dns_lookups": True}
# How a cluster names its own server: what is asked over TCP must come by TCP.
RESOLVERS: dict[str, Yaml] = {
    "dns_resolvers": {"dns_resolvers": SERVERS},
    "dns_resolvers_tcp": {"dns_resolvers": SERVERS, **TCP},
    "no_servers_tcp": TCP,
    "resolution_config": {"dns_resolution_config": {"resolvers": SERVERS}},
    "resolution_config_tcp": {"dns_resolution_config": {"resolvers": SERVERS, "dns_resolver_options": TCP}},
    "typed_udp": typed(CARES, resolvers=SERVERS),
    "typed_tcp": typed(CARES, resolvers=SERVERS, dns_resolver_options=TCP),
    "typed_before_legacy": {**typed(CARES, resolvers=SERVERS), "dns_resolvers": SERVERS, **TCP},
    "typed_options": typed(
        CARES,
        resolvers=SERVERS,
        query_timeout_seconds=3,
        query_tries=2,
        rotate_nameservers=True,
        udp_max_queries=100,
        reinit_channel_on_timeout=True,
        max_udp_channel_duration="60s",
    ),
}
# Asked again and again, so that the tests can change what DNS says.
CHANGING = {
    f"{kind.lower()}_{what}": f"{kind}_DNS"
    for kind in ("STRICT", "LOGICAL")
    for what in ("changes", "fails", "vanishes", "held")
}
# cluster -> (its fields, the TTL of its name)
TIMES: dict[str, tuple[Yaml, int]] = {
    "ttl_strict": ({"type": "STRICT_DNS", "respect_dns_ttl": True}, 1),
    "ttl_logical": ({"type": "LOGICAL_DNS", "respect_dns_ttl": True}, 1),
    "ttl_zero": ({"type": "STRICT_DNS", "respect_dns_ttl": True, "dns_refresh_rate": "0.05s"}, 0),
    "ttl_not_respected": ({"type": "STRICT_DNS", "dns_refresh_rate": "0.05s"}, 3600),
    "jitter": ({"type": "STRICT_DNS", "dns_refresh_rate": "0.05s", "dns_jitter": "0.05s"}, 3600),
}
# cluster -> (its name, its fields)
FAILING: dict[str, tuple[str, Yaml]] = {
    "backs_off": (
        "backs-off.test",
        {"dns_failure_refresh_rate": {"base_interval": "0.01s", "max_interval": "0.05s"}},
    ),
    "half": ("half.test", {}),
    "other_half": ("other-half.test", {}),
    "empty_half": ("empty-half.test", {}),
    "cold": ("mute.test", {"wait_for_warm_on_init": False}),
}
# cluster -> (addresses of its host, YAML of further fields)
SEVERAL: dict[str, tuple[tuple[str, ...], str]] = {
    "first_serves": (("127.0.0.1", "127.0.0.8"), ""),
    "second_serves": (("127.0.0.9", "127.0.0.1"), ""),
    "last_serves": (("127.0.0.9", "127.0.0.8", "127.0.0.7", "127.0.0.1"), ""),
    "last_serves_tcp": (("127.0.0.9", "127.0.0.8", "127.0.0.1"), ""),
    "none_serves": (("127.0.0.9", "127.0.0.8"), ""),
    "families_alternate": (("127.0.0.9", "127.0.0.8", "127.0.0.1", "::1", "::1"), ""),
    "v4_first": (("::1", "127.0.0.1"), "{ first_address_family_version: V4 }"),
    "v6_first": (("127.0.0.1", "::1"), "{ first_address_family_version: V6 }"),
    "two_v4_first": (
        ("::1", "::1", "127.0.0.9", "127.0.0.1"),
        "{ first_address_family_version: V4, first_address_family_count: 2 }",
    ),
}


@dataclass
class DnsSide:
    """One proxy with what it talks to."""

    proxy: ProxyProcess
    dns: DnsServer
    upstream: ScriptedUpstream
    log_path: Path
    read: int = field(default=0)

    @property
    def port(self) -> int:
        return self.upstream.ports["a"]

    def statuses(self) -> dict[str, list[Yaml]]:
        """What `/clusters` says of the hosts of every cluster."""
        shown = json.loads(self.proxy.admin("/clusters?format=json")[1])["cluster_statuses"]
        return {cluster["name"]: cluster.get("host_statuses", []) for cluster in shown}

    def hosts(self, cluster: str) -> list[tuple[str, str, int]]:
        """IP address, hostname and priority of every host."""
        found = [
            (host["address"]["socket_address"]["address"], host.get("hostname", ""), host.get("priority", 0))
            for host in self.statuses()[cluster]
        ]
        return sorted(found)

    def ips(self, cluster: str) -> list[str]:
        return [ip for ip, _, _ in self.hosts(cluster)]

    def wait_ips(self, cluster: str, *ips: str) -> None:
        wait_for(lambda: self.ips(cluster) == list(ips), f"{cluster} to have {ips}, not {self.ips(cluster)}")

    def stats(self, cluster: str, pattern: str) -> dict[str, int]:
        found = self.proxy.stats(rf"^cluster\.{cluster}\.({pattern})")
        return {name.split(".", 2)[2]: value for name, value in found.items()}

    def get(self, cluster: str, listener: str = "main") -> int:
        """The status of one request."""
        request = f"GET /{cluster} HTTP/1.1\r\nhost: dns.test\r\n\r\n".encode()
        return exchange(self.proxy.listener_ports()[listener], request, 10.0).status

    def log_line(self) -> str:
        """The next line of the access log; ports are left out, but for the upstream's."""
        line = wait_for(self._next_line, "a line of the access log")
        return line.replace(f":{self.port}", ":a")

    def _next_line(self) -> str:
        text = self.log_path.read_text()[self.read :] if self.log_path.exists() else ""
        line, end, _ = text.partition("\n")
        if not end:
            return ""
        self.read += len(line) + 1
        return line

    def close(self) -> None:
        self.proxy.stop()
        self.dns.close()
        self.upstream.close()
        assert not self.upstream.errors, self.upstream.errors


def start_side(directory: Path, subject: bool) -> DnsSide:
    """A proxy on all clusters of this file."""
    dns = DnsServer()
    upstream = ScriptedUpstream(("a",))
    for name, values in ZONES.items():
        dns.tell(name, *values)
    for name in CHANGING:
        dns.tell(own_name(name), "127.0.0.1", "127.0.0.2")
    for name in RESOLVERS:
        dns.tell(own_name(name), "127.0.0.1")
    for name, (_, ttl_s) in TIMES.items():
        dns.tell(own_name(name), "127.0.0.1", ttl_s=ttl_s)
    dns.zones["backs-off.test"] = Zone(code=SERVFAIL)
    dns.zones["half.test"] = Zone([Record("127.0.0.1")], codes={AAAA: SERVFAIL})
    dns.zones["other-half.test"] = Zone(codes={A: SERVFAIL})
    dns.zones["empty-half.test"] = Zone(codes={AAAA: SERVFAIL})
    dns.zones["mute.test"] = Zone(silent=True)
    log_path = directory / "access.log"
    text = bootstrap(dns.port, upstream.ports["a"], str(log_path))
    start = start_meshproxy if subject and not SUBJECT_IS_ENVOY else start_envoy
    try:
        return DnsSide(start(text), dns, upstream, log_path)
    except BaseException:
        dns.close()
        upstream.close()
        raise


def bootstrap(dns_port: int, port: int, log_path: str) -> str:
    clusters = [dns_cluster(name, host, fields, port) for name, (host, fields) in CLUSTERS.items()]
    for name, kind in CHANGING.items():
        clusters.append(dns_cluster(name, own_name(name), {"type": kind, "dns_refresh_rate": "0.05s"}, port))
    for name, (fields, _) in TIMES.items():
        clusters.append(dns_cluster(name, own_name(name), fields, port))
    for name, fields in RESOLVERS.items():
        clusters.append(dns_cluster(name, own_name(name), {"type": "STRICT_DNS", **fields}, port))
    for name, (host, fields) in FAILING.items():
        clusters.append(dns_cluster(name, host, {"type": "STRICT_DNS", **fields}, port))
    clusters += [several(name, addresses, text, port) for name, (addresses, text) in SEVERAL.items()]
    priority = next(cluster for cluster in clusters if cluster["name"] == "with_priority")
    priority["load_assignment"]["endpoints"][0]["priority"] = 7
    tree = {
        "node": {"id": "dns", "cluster": "dns"},
        "admin": {"address": address(0)},
        "typed_dns_resolver_config": resolver(dns_port),
        "static_resources": {
            "clusters": clusters,
            "listeners": [listener(clusters, log_path), tcp_listener("last_serves_tcp", log_path)],
        },
    }
    return yaml.dump(tree, sort_keys=False, width=1000).replace("'@DNS@'", str(dns_port))


def own_name(cluster: str) -> str:
    """The DNS name of a cluster that has one of its own."""
    return cluster.replace("_", "-") + ".test"


def dns_cluster(name: str, host: str, fields: Yaml, port: int) -> Yaml:
    """A cluster with one endpoint, whose name is resolved once an hour."""
    endpoint = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}
    return {"name": name, "connect_timeout": "2s", "dns_refresh_rate": "3600s", "load_assignment": assignment} | fields


def several(name: str, addresses: tuple[str, ...], text: str, port: int) -> Yaml:
    """A cluster with one host at several addresses."""
    places = [{"socket_address": {"address": ip, "port_value": port}} for ip in addresses]
    endpoint = {"address": places[0], "additional_addresses": [{"address": place} for place in places[1:]]}
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]}
    options = {"upstream_connection_options": {"happy_eyeballs_config": mapping(text)}} if text else {}
    return {"name": name, "type": "STATIC", "connect_timeout": "2s", "load_assignment": assignment} | options


def resolver(dns_port: int) -> Yaml:
    """The DNS server of the test, as the bootstrap's for all clusters."""
    server = {"socket_address": {"address": "127.0.0.1", "port_value": dns_port}}
    options = {"no_default_search_domain": True}
    return {"name": "cares", "typed_config": {"@type": CARES, "resolvers": [server], "dns_resolver_options": options}}


def listener(clusters: list[Yaml], log_path: str) -> Yaml:
    """Every cluster at a path of its name."""
    log = file_log(log_path)
    log["typed_config"]["log_format"]["text_format_source"]["inline_string"] = ADDRESSES
    routes = [{"match": {"path": "/" + each["name"]}, "route": {"cluster": each["name"]}} for each in clusters]
    manager = {
        "@type": TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "main",
        "access_log": [log],
        "http_filters": [ROUTER],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    }
    chain = {"filters": [{"name": "hcm", "typed_config": manager}]}
    return {"name": "main", "address": address(0), "filter_chains": [chain]}


def tcp_listener(cluster: str, log_path: str) -> Yaml:
    """A cluster without HTTP."""
    log = file_log(log_path)
    log["typed_config"]["log_format"]["text_format_source"]["inline_string"] = ADDRESSES
    proxy = {
        "@type": TYPE + "filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "tcp",
        "cluster": cluster,
        "access_log": [log],
    }
    return {
        "name": "tcp",
        "address": address(0),
        "filter_chains": [{"filters": [{"name": "tcp", "typed_config": proxy}]}],
    }


Sides = tuple[DnsSide, DnsSide]


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    """Envoy's and ours."""
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(start_side, tmp_path_factory.mktemp("envoy"), False)
        second = pool.submit(start_side, tmp_path_factory.mktemp("subject"), True)
        started = [future.result() for future in (first, second) if future.exception() is None]
        try:
            yield first.result(), second.result()
        finally:
            for side in started:
                side.close()


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_same_hosts(sides: Sides, cluster: str) -> None:
    expected, actual = (side.hosts(cluster) for side in sides)
    assert actual == expected


def test_some_hosts_are_known(sides: Sides) -> None:
    """So that the comparison above means something."""
    assert sides[1].hosts("strict_dns_all_both_test") == sorted((ip, "both.test", 0) for ip in ZONES["both.test"])
    assert sides[1].hosts("with_priority") == [("127.0.0.1", "v4.test", 0)]


@pytest.mark.parametrize("cluster", [*CLUSTERS, "half", "other_half", "empty_half"])
def test_same_statistics(sides: Sides, cluster: str) -> None:
    """After one answer: the next question comes after an hour, but for the cluster that says nothing of it.

    On a busy machine the first question may go unanswered and be asked again: how often is not compared.
    """
    names = "membership|max_host_weight" + ("" if cluster == "by_name_dns" else "|update_(empty|failure)")
    expected, actual = (side.stats(cluster, names) for side in sides)
    assert actual == expected


def test_same_statistics_of_lookups(sides: Sides) -> None:
    """Their names: how many there were depends on time."""
    expected, actual = (side.proxy.stats(r"^dns\.") for side in sides)
    assert set(actual) == set(expected)
    assert all(found["dns.cares.not_found"] and found["dns.cares.get_addr_failure"] for found in (expected, actual))


@pytest.mark.parametrize("cluster", [*RESOLVERS, "half", "other_half", "empty_half"])
def test_same_way_to_ask(sides: Sides, cluster: str) -> None:
    """Which questions, by which way, and how often a server is asked that cannot answer."""
    expected, actual = (
        [(asked.kind, asked.transport) for asked in side.dns.questions if asked.name == own_name(cluster)]
        for side in sides
    )
    assert expected
    assert actual == expected


@pytest.mark.parametrize("kind", ["strict", "logical"])
def test_hosts_follow_the_answers(sides: Sides, kind: str) -> None:
    cluster = f"{kind}_changes"
    for side in sides:
        side.dns.tell(own_name(cluster), "127.0.0.3", "127.0.0.1")
        side.wait_ips(cluster, *(["127.0.0.1", "127.0.0.3"] if kind == "strict" else ["127.0.0.3"]))
        side.dns.tell(own_name(cluster), "127.0.0.1", "127.0.0.4")
        side.wait_ips(cluster, *(["127.0.0.1", "127.0.0.4"] if kind == "strict" else ["127.0.0.1"]))
    expected, actual = (side.stats(cluster, "membership_change") for side in sides)
    assert actual == expected
    if kind == "logical":
        assert [side.get(cluster) for side in sides] == [200, 200]
        assert [side.log_line() for side in sides] == ["host=127.0.0.1:a remote=127.0.0.1:a code=200 flags=-"] * 2


@pytest.mark.parametrize("kind", ["strict", "logical"])
def test_failures_keep_the_hosts(sides: Sides, kind: str) -> None:
    cluster = f"{kind}_fails"
    for side in sides:
        side.dns.zones[own_name(cluster)] = Zone(code=SERVFAIL)
        wait_for(lambda side=side: side.stats(cluster, "update_failure")["update_failure"] > 1, "failures")  # type: ignore[misc]
    expected, actual = (side.hosts(cluster) for side in sides)
    assert actual == expected
    assert len(actual) == (2 if kind == "strict" else 1)


def test_a_name_without_addresses_has_no_hosts(sides: Sides) -> None:
    for side in sides:
        del side.dns.zones[own_name("strict_vanishes")]
        side.wait_ips("strict_vanishes")
        assert side.stats("strict_vanishes", "update_failure")["update_failure"] == 0


def test_a_logical_host_stays_when_its_name_has_no_addresses(sides: Sides) -> None:
    cluster = "logical_vanishes"
    for side in sides:
        del side.dns.zones[own_name(cluster)]
        wait_for(lambda side=side: side.stats(cluster, "update_failure")["update_failure"] > 1, "failures")  # type: ignore[misc]
        assert side.ips(cluster) == ["127.0.0.1"]


@pytest.mark.parametrize("kind", ["strict", "logical"])
def test_streams_outlive_their_host(sides: Sides, kind: str) -> None:
    cluster = f"{kind}_held"
    for side in sides:
        side.dns.tell(own_name(cluster), "127.0.0.1")
        side.wait_ips(cluster, "127.0.0.1")
        side.upstream.play([HELD])
        with RawDownstream(side.proxy.listener_ports()["main"]) as downstream:
            downstream.send(f"GET /{cluster} HTTP/1.1\r\nhost: dns.test\r\n\r\n".encode())
            side.upstream.wait_seen(1)
            side.dns.tell(own_name(cluster), "127.0.0.7")
            side.wait_ips(cluster, "127.0.0.7")
            side.upstream.fire("go")
            assert downstream.receive().status == 200
        assert side.log_line() == "host=127.0.0.1:a remote=127.0.0.1:a code=200 flags=-"
        side.upstream.play()
    assert [side.get(cluster) for side in sides] == [503, 503]
    assert [side.log_line() for side in sides] == ["host=127.0.0.7:a remote=- code=503 flags=UF"] * 2


@pytest.mark.parametrize("cluster", TIMES)
def test_a_name_is_asked_for_again_in_time(sides: Sides, cluster: str) -> None:
    """What would be an hour if the wrong field counted."""
    for side in sides:
        side.dns.wait_asked(own_name(cluster), AAAA, more=2)
        assert side.stats(cluster, "update_failure")["update_failure"] == 0


def test_failures_are_tried_again_at_their_own_rate(sides: Sides) -> None:
    for side in sides:
        side.dns.wait_asked("backs-off.test", AAAA, more=20)
        assert side.stats("backs_off", "update_success")["update_success"] == 0


def test_a_cluster_may_serve_before_it_knows_its_hosts(sides: Sides) -> None:
    assert [side.get("cold") for side in sides] == [503, 503]
    assert [side.log_line() for side in sides] == ["host=- remote=- code=503 flags=UH"] * 2


# -- several addresses of one host


@pytest.mark.parametrize("cluster", sorted(SEVERAL.keys() - {"last_serves_tcp"}))
def test_same_choice_among_addresses(sides: Sides, cluster: str) -> None:
    """Which answers, what the log says of it, and how many connections that took."""
    expected, actual = (observe(side, cluster) for side in sides)
    assert actual == expected


def test_same_choice_among_addresses_over_tcp(sides: Sides) -> None:
    expected, actual = (observe(side, "last_serves_tcp", "tcp", ends=True) for side in sides)
    assert actual == expected


def observe(side: DnsSide, cluster: str, listener: str = "main", *, ends: bool = False) -> tuple[Any, ...]:
    """`ends`: the upstream connection ends with the downstream's, soon."""
    status = side.get(cluster, listener)
    if ends:
        name = f"cluster.{cluster}.upstream_cx_active"
        wait_for(lambda: side.proxy.stats(f"^{name}$").get(name) == 0, "the end of the upstream connection")
    counts = side.stats(
        cluster, "upstream_cx_(total|active|connect_fail|destroy|http1_total)|upstream_rq_(total|pending)"
    )
    host = side.statuses()[cluster][0]
    shown = {stat["name"]: stat.get("value", "0") for stat in host["stats"]}
    return status, side.log_line(), counts, shown["cx_total"], shown["cx_connect_fail"], side.ips(cluster)


def test_an_address_that_does_not_answer_is_passed_over(sides: Sides, stalled: str, tmp_path: Path) -> None:
    """The next one is tried after 300 ms (within connect_timeout), and serves."""
    for number, side in enumerate(sides):
        cluster = several("stalls", (stalled, "127.0.0.1"), "", side.port)
        first = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
        first["socket_address"]["port_value"] = int(stalled.rpartition(":")[2])
        first["socket_address"]["address"] = stalled.rpartition(":")[0]
        tree = {
            "admin": {"address": address(0)},
            "static_resources": {
                "clusters": [cluster],
                "listeners": [listener([cluster], str(tmp_path / str(number)))],
            },
        }
        start = start_meshproxy if number and not SUBJECT_IS_ENVOY else start_envoy
        with start(yaml.dump(tree)) as proxy:
            own = DnsSide(proxy, side.dns, side.upstream, tmp_path / str(number))
            assert own.get("stalls") == 200
            assert own.log_line() == f"host={stalled} remote=127.0.0.1:a code=200 flags=-"
            assert own.stats("stalls", "upstream_cx_(total|active)") == {
                "upstream_cx_total": 2,
                "upstream_cx_active": 1,
            }


@pytest.fixture
def stalled() -> Iterator[str]:
    """An address whose queue of connections is full, so that it does not answer."""
    with socket.socket() as full:
        full.bind(("127.0.0.6", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        yield "{}:{}".format(*full.getsockname())
        for one in waiting:
            one.close()
