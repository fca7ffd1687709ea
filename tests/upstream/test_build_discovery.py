"""`type`, `cluster_type`, and every way to say how names are resolved."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.json_message import MessageParser
from meshproxy.net.resolver import FAMILY_ALL, FAMILY_AUTO, FAMILY_V6_ONLY, ResolverSettings
from meshproxy.upstream.build_resolver import build_resolver
from meshproxy.upstream.config import LOGICAL_DNS, STATIC, STRICT_DNS
from tests.upstream.harness import build, cluster_dict, endpoint, errors_of

TYPE = "type.googleapis.com/envoy.extensions."
CARES = TYPE + "network.dns_resolver.cares.v3.CaresDnsResolverConfig"
GETADDRINFO = TYPE + "network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig"
DNS_CLUSTER = TYPE + "clusters.dns.v3.DnsCluster"
ONE = {"socket_address": {"address": "10.0.0.1", "port_value": 5353}}
TWO = {"socket_address": {"address": "::1"}}
NAME = endpoint("name")


def extension(name: str, **config: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name}
    if config:
        made["typed_config"] = {"@type": config.pop("type")} | config
    return {"cluster_type": made}


def typed(kind: str, **fields: Any) -> dict[str, Any]:
    return {"typed_dns_resolver_config": {"name": "any", "typed_config": {"@type": kind} | fields}}


def settings_of(**fields: Any) -> ResolverSettings:
    return build(cluster_dict(NAME, type="STRICT_DNS", **fields)).dns.resolver


def bootstrap_settings(**fields: Any) -> ResolverSettings | None:
    message, errors = Bootstrap(), ConfigErrors()
    MessageParser(errors).fill(message, fields, "")
    made = build_resolver(message, "", errors)
    assert not errors, str(errors)
    return made


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (extension("envoy.cluster.strict_dns"), STRICT_DNS),
        (extension("envoy.cluster.logical_dns"), LOGICAL_DNS),
        (extension("envoy.cluster.dns"), STRICT_DNS),
        (extension("any", type=DNS_CLUSTER), STRICT_DNS),
        (extension("envoy.cluster.static", type=DNS_CLUSTER), STRICT_DNS),
        (extension("any", type=DNS_CLUSTER, all_addresses_in_single_endpoint=True), LOGICAL_DNS),
        ({"type": "LOGICAL_DNS"}, LOGICAL_DNS),
    ],
)
def test_kinds(fields: dict[str, Any], expected: int) -> None:
    config = build(cluster_dict(NAME, **fields))
    assert config.discovery == expected
    assert config.endpoints[0].dns_name == "name"


def test_static_by_name() -> None:
    assert build(cluster_dict(endpoint("10.0.0.1"), **extension("envoy.cluster.static"))).discovery == STATIC


def test_unknown_kinds_are_refused() -> None:
    assert set(errors_of(cluster_dict(NAME, **extension("envoy.clusters.aggregate")))) >= {"c.cluster_type.name"}
    redis = extension("any", type=TYPE + "clusters.redis.v3.RedisClusterConfig")
    assert set(errors_of(cluster_dict(NAME, **redis))) >= {"c.cluster_type.typed_config"}


def test_the_extension_has_fields_of_its_own() -> None:
    fields = extension(
        "any",
        type=DNS_CLUSTER,
        dns_refresh_rate="2s",
        dns_jitter="1s",
        respect_dns_ttl=True,
        dns_lookup_family="V6_ONLY",
        dns_failure_refresh_rate={"base_interval": "3s"},
        **typed(CARES, resolvers=[ONE]),
    )
    dns = build(cluster_dict(NAME, dns_refresh_rate="9s", dns_lookup_family="V4_ONLY", **fields)).dns
    assert (dns.refresh_ms, dns.jitter_ms, dns.respect_ttl) == (2_000.0, 1_000.0, True)
    assert (dns.failure_base_ms, dns.failure_max_ms) == (3_000.0, 30_000.0)
    assert (dns.family, dns.resolver.servers) == (FAMILY_V6_ONLY, ("10.0.0.1:5353",))


@pytest.mark.parametrize(
    ("name", "expected"), [("UNSPECIFIED", FAMILY_AUTO), ("AUTO", FAMILY_AUTO), ("ALL", FAMILY_ALL)]
)
def test_families_of_the_extension(name: str, expected: int) -> None:
    """Its enumeration has other numbers than the cluster's."""
    fields = extension("any", type=DNS_CLUSTER, dns_lookup_family=name)
    assert build(cluster_dict(NAME, **fields)).dns.family == expected


def test_failure_rates_out_of_order() -> None:
    rate = {"base_interval": "2s", "max_interval": "1s"}
    assert errors_of(cluster_dict(NAME, type="STRICT_DNS", dns_failure_refresh_rate=rate)) == {
        "c.dns_failure_refresh_rate": "max_interval must not be below base_interval"
    }
    fields = extension("any", type=DNS_CLUSTER, dns_failure_refresh_rate=rate)
    assert set(errors_of(cluster_dict(NAME, **fields))) == {"c.cluster_type.typed_config.dns_failure_refresh_rate"}


def test_a_logical_cluster_has_one_endpoint() -> None:
    """Envoy's words."""
    several = "LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint"
    assert errors_of(cluster_dict(NAME, NAME, type="LOGICAL_DNS")) == {"c.load_assignment": several}
    assert errors_of(cluster_dict(type="LOGICAL_DNS")) == {"c.load_assignment": several}
    nothing = "LOGICAL_DNS clusters must have a single host"
    assert errors_of({"name": "c", "type": "LOGICAL_DNS"}) == {"c.load_assignment": nothing}


def test_a_logical_host_has_the_highest_priority() -> None:
    assert build(cluster_dict(NAME, type="LOGICAL_DNS", priority=3)).endpoints[0].priority == 0


# -- several addresses


def test_additional_addresses() -> None:
    more = [
        {"address": {"socket_address": {"address": "::1", "port_value": 81}}},
        {"address": {"pipe": {"path": "/x"}}},
    ]
    config = build(cluster_dict(endpoint("10.0.0.1", endpoint={"additional_addresses": more})))
    assert [address.text for address in config.endpoints[0].more] == ["[::1]:81", "/x"]
    assert config.endpoints[0].key == "10.0.0.1:80 [::1]:81 /x"


def test_additional_addresses_must_be_ones() -> None:
    more = [{"address": {"socket_address": {"address": "name", "port_value": 81}}}, {}]
    where = "c.load_assignment.endpoints[0].lb_endpoints[0].endpoint.additional_addresses"
    fields = cluster_dict(endpoint("10.0.0.1", endpoint={"additional_addresses": more}))
    assert set(errors_of(fields)) == {f"{where}[0].address", f"{where}[1].address"}


def test_names_have_no_additional_addresses() -> None:
    """As in Envoy they take no effect."""
    more = [{"address": {"socket_address": {"address": "10.0.0.2", "port_value": 81}}}]
    config = build(cluster_dict(endpoint("name", endpoint={"additional_addresses": more}), type="STRICT_DNS"))
    assert config.endpoints[0].more == []


def test_the_order_of_families() -> None:
    order = {"first_address_family_version": "V6", "first_address_family_count": 3}
    config = build(cluster_dict(NAME, type="STRICT_DNS", upstream_connection_options={"happy_eyeballs_config": order}))
    assert (config.family_order.first, config.family_order.count) == (2, 3)
    config = build(cluster_dict(NAME, type="STRICT_DNS"))
    assert (config.family_order.first, config.family_order.count) == (0, 1)


# -- who resolves


def test_every_option_of_cares() -> None:
    made = settings_of(
        **typed(
            CARES,
            resolvers=[ONE, TWO],
            use_resolvers_as_fallback=True,
            filter_unroutable_families=True,
            dns_resolver_options={"use_tcp_for_dns_lookups": True, "no_default_search_domain": True},
            udp_max_queries=7,
            query_timeout_seconds=8,
            query_tries=9,
            rotate_nameservers=True,
            max_udp_channel_duration="10s",
            reinit_channel_on_timeout=True,
        )
    )
    assert made.servers == ("10.0.0.1:5353", "[::1]:53")
    assert (made.servers_as_fallback, made.filter_unroutable_families, made.use_tcp) == (True, True, True)
    assert (made.no_default_search_domain, made.rotate, made.reinit_on_timeout) == (True, True, True)
    assert (made.udp_max_queries, made.timeout_s, made.tries, made.max_channel_ms) == (7, 8, 9, 10_000.0)


def test_the_defaults_of_cares() -> None:
    """5 s and 4 tries are Envoy's, not c-ares' own."""
    made = settings_of(**typed(CARES))
    assert made.key() == ResolverSettings().key() == settings_of().key()
    assert (made.timeout_s, made.tries, made.servers) == (5, 4, ())


def test_the_c_library() -> None:
    made = settings_of(**typed(GETADDRINFO, num_retries=2, num_resolver_threads=3))
    assert (made.getaddrinfo, made.retries, made.threads) == (True, 2, 3)
    made = settings_of(**typed(GETADDRINFO))
    assert (made.retries, made.threads) == (-1, 1)


def test_older_ways() -> None:
    assert settings_of(dns_resolvers=[ONE]).servers == ("10.0.0.1:5353",)
    assert settings_of(dns_resolvers=[ONE], use_tcp_for_dns_lookups=True).use_tcp
    assert not settings_of(use_tcp_for_dns_lookups=True).use_tcp  # as in Envoy
    options = {"no_default_search_domain": True}
    made = settings_of(dns_resolution_config={"resolvers": [ONE], "dns_resolver_options": options}, dns_resolvers=[TWO])
    assert (made.servers, made.no_default_search_domain) == (("10.0.0.1:5353",), True)
    assert not settings_of(dns_resolution_config={"dns_resolver_options": options}).no_default_search_domain
    made = settings_of(**typed(CARES, resolvers=[TWO]), dns_resolution_config={"resolvers": [ONE]})
    assert made.servers == ("[::1]:53",)


def test_the_bootstraps_ways() -> None:
    assert bootstrap_settings() is None
    made = bootstrap_settings(use_tcp_for_dns_lookups=True)
    assert made is not None
    assert made.use_tcp
    made = bootstrap_settings(dns_resolution_config={"dns_resolver_options": {"no_default_search_domain": True}})
    assert made is not None
    assert made.no_default_search_domain
    made = bootstrap_settings(**typed(CARES, resolvers=[ONE]), use_tcp_for_dns_lookups=True)
    assert made is not None
    assert (made.servers, made.use_tcp) == (("10.0.0.1:5353",), False)


def test_what_is_no_server() -> None:
    name = {"socket_address": {"address": "localhost", "port_value": 53}}
    errors = errors_of(cluster_dict(NAME, type="STRICT_DNS", dns_resolvers=[name, {"pipe": {"path": "/x"}}]))
    assert errors == {
        "c.dns_resolvers[0].socket_address": "malformed IP address: localhost",
        "c.dns_resolvers[1]": "a DNS resolver needs an IP address",
    }


def test_other_resolvers_are_refused() -> None:
    apple = typed(TYPE + "network.dns_resolver.apple.v3.AppleDnsResolverConfig")
    assert set(errors_of(cluster_dict(NAME, type="STRICT_DNS", **apple))) == {
        "c.typed_dns_resolver_config.typed_config"
    }


def test_another_resolver_makes_another_cluster() -> None:
    """A change of the bootstrap's resolver alone must not leave the clusters with the old one."""
    one, other = build(cluster_dict(NAME, type="STRICT_DNS")), settings_of(dns_resolvers=[ONE])
    assert other.key() != one.dns.resolver.key()
    assert build(cluster_dict(NAME, type="STRICT_DNS", dns_resolvers=[ONE])).fingerprint != one.fingerprint
