"""Connections to upstreams, the real Envoy and meshproxy: their source, their headers, and who shares them."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.differential.pair import SUBJECT_IS_ENVOY
from tests.differential.tls import client_tls, trusts
from tests.differential.topic import TYPE, Yaml
from tests.differential.upstream_connections import V2, ConnectionsSide, Row, get
from tests.support.proxy import start_envoy, start_meshproxy
from tests.tls.certificates import world

RAW = {"name": "raw", "typed_config": {"@type": TYPE + "transport_sockets.raw_buffer.v3.RawBuffer"}}
PROXY_FILTER: Yaml = {
    "name": "proxy_protocol",
    "typed_config": {
        "@type": TYPE + "filters.listener.proxy_protocol.v3.ProxyProtocol",
        "allow_requests_without_proxy_protocol": True,
        "pass_through_tlvs": {"match_type": "INCLUDE_ALL"},
    },
}
BEHIND_PROXY = json.dumps({"listener_filters": [PROXY_FILTER]})
NAMED = trusts(world().ca)


def v2(*tlvs: tuple[int, bytes]) -> bytes:
    """The header of a proxy in front."""
    body = bytes((1, 2, 3, 4, 5, 6, 7, 8)) + (1000).to_bytes(2, "big") + (2000).to_bytes(2, "big")
    body += b"".join(bytes((kind,)) + len(value).to_bytes(2, "big") + value for kind, value in tlvs)
    return V2 + b"\x21\x11" + len(body).to_bytes(2, "big") + body


def proxied(version: str = "V1", inner: Yaml = RAW, config: str = "{}", **fields: object) -> str:
    """YAML of a cluster whose connections begin with a PROXY protocol header."""
    typed = {
        "@type": TYPE + "transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
        "config": {"version": version} | json.loads(config),
        "transport_socket": inner,
    }
    return json.dumps({"transport_socket": {"name": "proxy", "typed_config": typed | fields}})


def options(upstream: str = "{}", common: str = "{}", http1: str = "{}", **fields: object) -> Yaml:
    """`typed_extension_protocol_options`."""
    made: Yaml = {
        "@type": TYPE + "upstreams.http.v3.HttpProtocolOptions",
        "upstream_http_protocol_options": json.loads(upstream),
        "common_http_protocol_options": json.loads(common),
        "explicit_http_config": {"http_protocol_options": json.loads(http1)},
    }
    return {"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": made}}


def protocols(chosen: Yaml) -> Yaml:
    """`typed_extension_protocol_options` of which HTTP there is."""
    made: Yaml = {"@type": TYPE + "upstreams.http.v3.HttpProtocolOptions"} | chosen
    return {"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": made}}


def secure(chosen: Yaml | None = None, common: str = "") -> str:
    """YAML of a TLS cluster."""
    return json.dumps({"transport_socket": client_tls(common)} | (protocols(chosen) if chosen else {}))


def named(upstream: str, fields: str = "{}", common: str = "") -> str:
    """YAML of a TLS cluster that takes its names from requests."""
    return json.dumps({"transport_socket": client_tls(common, fields), **options(upstream)})


def matching(*matches: Yaml) -> str:
    """YAML of a cluster that has TLS for hosts with labels only."""
    made = [{"transport_socket": client_tls(fields=f"{{sni: {each['name']}.test}}")} | each for each in matches]
    return json.dumps({"transport_socket_matches": made})


def labels(**values: object) -> str:
    """YAML of metadata that transport sockets are matched by."""
    return json.dumps({"metadata": {"filter_metadata": {"envoy.transport_socket_match": values}}})


A, B = {"name": "a", "match": {"x": 1}}, {"name": "b", "match": {"y": [True, "z"]}}
PASSES_ALL = '{"pass_through_tlvs": {"match_type": "INCLUDE_ALL"}}'
ADDED = PASSES_ALL.replace("{", '{"added_tlvs": [{"type": 224, "value": "aGVsbG8="}], ', 1)
MATCH_STATS = r"match_count$"
POOL_STATS = r"upstream_cx_(total|pool_overflow|active)$|default\.(cx_pool_open|remaining_cx_pools)$"
TWO = ((get(),), (get(),))

BIND = [
    Row("bound", cluster="upstream_bind_config: { source_address: { address: 127.0.0.9, port_value: 0 } }"),
    Row("bound_tcp", tcp=True, cluster="upstream_bind_config: { source_address: { address: 127.0.0.9, port_value: 0 } }"),
    Row("bound_other_family", blind=True, cluster="upstream_bind_config: { source_address: { address: '::1', port_value: 0 } }"),
    Row("bound_extra", cluster="upstream_bind_config: { source_address: { address: '::1', port_value: 0 }, "
        "extra_source_addresses: [{ address: { address: 127.0.0.8, port_value: 0 } }] }"),
    Row("bound_extra_6", upstream="six", address="::1", cluster="upstream_bind_config: { source_address: "
        "{ address: 127.0.0.9, port_value: 0 }, extra_source_addresses: [{ address: { address: '::1', port_value: 0 } }] }"),
    Row("bound_freely", stats="connect_fail$", cluster="upstream_bind_config: { freebind: true, source_address: { address: 192.0.2.77, "
        "port_value: 0 } }\nconnect_timeout: 0.2s"),
    Row("bound_nowhere", blind=True, stats="connect_fail$", cluster="upstream_bind_config: { source_address: { address: 192.0.2.77, port_value: 0 } }"),
]
PROXY_PROTOCOL = [
    Row("v1", TWO, proxied()),
    Row("v1_tcp", TWO, proxied(), tcp=True),
    Row("v1_two_requests", ((get(), get("/2")), (get("/3"),)), proxied()),
    Row("v1_forwarded", ((get(headers="x-forwarded-for: 9.9.9.9\r\n"),),), proxied(), manager="{xff_num_trusted_hops: 1}"),
    Row("v1_behind_v1", ((b"PROXY TCP6 ::1 ::2 3 4\r\n" + get(),),), proxied(), listener=BEHIND_PROXY),
    Row("v2", ((get(),),), proxied("V2"), listener=BEHIND_PROXY),
    Row("v2_tcp", ((get(),),), proxied("V2"), tcp=True),
    Row("v2_behind_v2", ((v2((1, b"h2"), (3, b"abcd")) + get(),),), proxied("V2"), listener=BEHIND_PROXY),
    Row("v2_behind_v1", ((b"PROXY TCP6 ::1 ::2 3 4\r\n" + get(),),), proxied("V2"), listener=BEHIND_PROXY),
    Row("v2_behind_local", ((V2 + b"\x20\0\0\0" + get(),),), proxied("V2"), listener=BEHIND_PROXY),
    Row("v2_passes_all", ((v2((1, b"h2"), (0xE0, b"x")) + get(),),),
        proxied("V2", config=PASSES_ALL), listener=BEHIND_PROXY),
    Row("v2_passes_some", ((v2((1, b"h2"), (0xE0, b"x")) + get(),),), listener=BEHIND_PROXY,
        cluster=proxied("V2", config='{"pass_through_tlvs": {"match_type": "INCLUDE", "tlv_type": [224]}}')),
    Row("v2_adds", ((v2((1, b"h2"), (0xE0, b"x")) + get(),),), proxied("V2", config=ADDED), listener=BEHIND_PROXY),
    Row("v2_adds_tcp", ((v2((1, b"h2"), (0xE0, b"x")) + get(),),), proxied("V2", config=ADDED), tcp=True,
        listener=BEHIND_PROXY),
    Row("v2_shared", ((v2((1, b"a")) + get(),), (v2((1, b"b")) + get(),)),
        proxied("V2", config=PASSES_ALL), listener=BEHIND_PROXY),
    Row("v2_not_shared", ((v2((1, b"a")) + get(),), (v2((1, b"b")) + get(),), (v2((1, b"a")) + get("/2"),)),
        differs="tlv-pool-key", ours=(
            "plain from 127.0.0.1 header=v2 0x21 0x11 1.2.3.4 5.6.7.8 PORT PORT b'\\x01\\x00\\x01b' sni=None",), cluster=
        proxied("V2", config=PASSES_ALL, tlv_as_pool_key=True), listener=BEHIND_PROXY),
    Row("v1_tls", TWO, proxied(inner=client_tls(fields="{sni: up.test}")), upstream="proxied_tls"),
    Row("v1_after_v1", ((get(),),), proxied(inner=json.loads(proxied())["transport_socket"])),
    Row("v1_tls_tcp", TWO, proxied(inner=client_tls()), upstream="proxied_tls", tcp=True),
]
OWN_TLVS = "{ proxy_protocol_tlvs: [{ type: 231, value: aGVsbG8= }, { type: 1, value: eA== }] }"
PROXY_PROTOCOL += [
    Row("tlvs_tcp", ((get(),),), proxied("V2", config=PASSES_ALL), tcp=True, manager=OWN_TLVS),
    Row("tlvs_tcp_not_passed", ((get(),),), proxied("V2"), tcp=True, manager=OWN_TLVS),
    Row("tlvs_tcp_behind_v2", ((v2((1, b"h2"), (0xE0, b"x")) + get(),),), proxied("V2", config=PASSES_ALL), tcp=True, manager=OWN_TLVS,
        listener=BEHIND_PROXY),
    Row("tlvs_tcp_added", ((v2((1, b"h2")) + get(),),), proxied("V2", config=ADDED), tcp=True,
        manager="{ proxy_protocol_tlvs: [{ type: 224, value: eA== }] }", listener=BEHIND_PROXY),
]
PROXY_PROTOCOL += [
    Row("v1_tunnel", ((get(),), (get(),)), proxied(), tcp=True, manager="{ tunneling_config: { hostname: 'h.test:1' } }"),
]
MATCHES = [
    Row("match_none", cluster=matching(A, B), stats=MATCH_STATS),
    Row("match_first", cluster=matching(A, B), endpoint=labels(x=1, other=2), upstream="tls", stats=MATCH_STATS),
    Row("match_list", cluster=matching(A, B), endpoint=labels(y=[True, "z"]), upstream="tls", stats=MATCH_STATS),
    Row("match_unequal", cluster=matching(A, B), endpoint=labels(x=2), stats=MATCH_STATS),
    Row("match_text_for_number", cluster=matching(A, B), endpoint=labels(x="1"), stats=MATCH_STATS),
    Row("match_locality", cluster=matching(A, B), locality=labels(x=1), upstream="tls", stats=MATCH_STATS),
    Row("match_both", cluster=matching(A, B), endpoint=labels(y=[True, "z"]), locality=labels(x=1), upstream="tls",
        stats=MATCH_STATS),
    Row("match_all", cluster=matching({"name": "any", "match": {}}), upstream="tls", stats=MATCH_STATS),
    Row("match_all_labelled", cluster=matching(A, {"name": "any", "match": {}}), endpoint=labels(x=2), upstream="tls", stats=MATCH_STATS),
    Row("match_plain", stats=MATCH_STATS, endpoint=labels(x=1), cluster=json.dumps({
        "transport_socket": client_tls(), "transport_socket_matches": [A | {"transport_socket": RAW}]})),
    Row("match_tcp", cluster=matching(A, B), endpoint=labels(x=1), upstream="tls", stats=MATCH_STATS, tcp=True),
]
NAMES = ((get(host="one.test"), get("/2", "two.test:80"), get("/3", "one.test:99")), (get("/4", "one.test"),))
SNI = [
    Row("sni", NAMES, named('{"auto_sni": true}'), upstream="tls"),
    Row("sni_over_configured", NAMES, named('{"auto_sni": true}', "{sni: configured.test}"), upstream="tls"),
    Row("sni_of_ip", ((get(host="127.0.0.1:80"), get(host="[::1]:80"), get(host="[::1]")),), named('{"auto_sni": true}', "{sni: c.test}"), upstream="tls"),
    Row("sni_of_rewritten", NAMES, named('{"auto_sni": true}'), upstream="tls", route="{host_rewrite_literal: new.test}"),
    Row("sni_of_header", ((get(headers="x-name: other.test\r\n"), get("/2"), get("/3", headers="x-name: \r\n")),),
        named('{"auto_sni": true, "override_auto_sni_header": "X-Name"}'), upstream="tls"),
    Row("sni_of_added_header", upstream="tls", route="{ host_rewrite_header: x-host }", downstreams=((get(headers="x-host: new.test\r\n"),),),
        cluster=named('{"auto_sni": true}')),
    Row("sni_of_changed_header", upstream="tls", downstreams=((get(headers="x-name: old.test\r\n"),),),
        manager="{ route_config: { request_headers_to_add: [{ header: { key: x-name, value: new.test }, append_action: OVERWRITE_IF_EXISTS_OR_ADD }], "
        "virtual_hosts: [{ name: all, domains: ['*'], routes: [{ match: { prefix: / }, route: { cluster: sni_of_changed_header } }] }] } }",
        cluster=named('{"auto_sni": true, "override_auto_sni_header": "x-name"}')),
    Row("sni_tcp", ((get(host="one.test"),),), named('{"auto_sni": true}'), upstream="tls", tcp=True),
    Row("sni_unsendable", ((get(host="a" * 70 + ".test"),),), named('{"auto_sni": true}'), upstream="tls",
        differs="sni-length", envoy=("0: 200 b'ok'", f"tls from 127.0.0.1 header= sni={'a' * 70}.test", "  GET / HTTP/1.1"),
        ours=("0: 503 b'upstream connect error or disconnect/reset before headers. reset reason: remote connection failure'",
              "tls from 127.0.0.1 header= sni=None")),
    Row("san", ((get(host="named.test"), get("/2", "x.wild.test:1"), get("/3", "one.test")),),
        named('{"auto_sni": true, "auto_san_validation": true}', common=NAMED), upstream="tls"),
    Row("san_without_sni", ((get(host="named.test"), get("/2", "one.test")),),
        named('{"auto_san_validation": true}', common=NAMED), upstream="tls"),
    Row("san_of_ip", ((get(host="127.0.0.1"),),),
        named('{"auto_sni": true, "auto_san_validation": true}', common=NAMED), upstream="tls"),
    Row("san_of_named_ip", ((get(host="127.0.0.9:80"), get("/2", "[::9]:80"), get("/3", "127.0.0.8")),),
        named('{"auto_sni": true, "auto_san_validation": true}', common=NAMED), upstream="tls"),
    Row("san_of_other_kinds", ((get(headers="x-san: spiffe://a\r\n"), get("/2", headers="x-san: spiffe://b\r\n")),),
        named('{"auto_san_validation": true, "override_auto_sni_header": "x-san"}', common=NAMED), upstream="tls"),
    Row("san_without_ca", ((get(host="named.test"), get("/2", "one.test")),), named('{"auto_sni": true, "auto_san_validation": true}'),
        upstream="tls"),
    Row("san_beside_matchers", ((get(host="named.test"), get("/2", "one.test")),), upstream="tls", cluster=named(
        '{"auto_sni": true, "auto_san_validation": true}',
        common=trusts(world().ca, 'match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: "x.wild.test"}}]'))),
    Row("san_beside_other_matchers", ((get(host="named.test"),),), upstream="tls", cluster=named(
        '{"auto_sni": true, "auto_san_validation": true}',
        common=trusts(world().ca, 'match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: "y.test"}}]'))),
    Row("san_of_auto_sni", ((get(host="named.test"), get("/2", "one.test"), get("/3", "127.0.0.9")),), upstream="tls",
        cluster=named('{"auto_sni": true}', "{sni: x.wild.test, auto_sni_san_validation: true}", common=NAMED)),
    Row("sni_of_cluster", NAMES, upstream="tls",
        cluster=json.dumps({"transport_socket": client_tls(), "upstream_http_protocol_options": {"auto_sni": True}})),
    Row("sni_of_odd_hosts", tuple((get(host=host),) for host in ("a.test:", "a.test:99999", "a.test:0080", ":80")),
        named('{"auto_sni": true}'), upstream="tls"),
    Row("sni_plain", NAMES, json.dumps(options('{"auto_sni": true}'))),
    Row("sni_behind_proxy", ((get(host="one.test"), get("/2", "two.test")), (get("/3", "one.test"),)), upstream="proxied_tls",
        cluster=json.dumps(json.loads(proxied(inner=client_tls())) | options('{"auto_sni": true}'))),
]
POOLS = [
    Row("pool_for_each", ((get(), get("/2")), (get("/3"),)), "connection_pool_per_downstream_connection: true"),
    Row("pools_counted", TWO, stats=POOL_STATS,
        cluster="circuit_breakers: { thresholds: [{ max_connection_pools: 5, track_remaining: true }] }"),
    Row("pools_unlimited", TWO, stats=POOL_STATS, cluster="circuit_breakers: { thresholds: [{ track_remaining: true }] }"),
    Row("pools_0", stats=POOL_STATS,
        cluster="circuit_breakers: { thresholds: [{ max_connection_pools: 0, track_remaining: true }] }"),
]
ORIGINAL = "type: ORIGINAL_DST\nlb_policy: CLUSTER_PROVIDED\n"
BY_HEADER = ORIGINAL + "original_dst_lb_config: { use_http_header: true }"
HOST_STATS = r"membership_(total|change|healthy)$|original_dst_host_invalid$|none_healthy$|upstream_cx_total$"


def bound_for(port: str) -> bytes:
    """What a proxy in front says of a connection's destination."""
    return f"PROXY TCP4 1.2.3.4 127.0.0.1 5 {port}\r\n".encode()


def to(host: str, name: str = "x-envoy-original-dst-host") -> bytes:
    """A request for a host."""
    return get(headers=f"{name}: {host}\r\n")


ORIGINAL_DST = [
    # Each destination comes once: a worker of Envoy's makes a host again that its main thread has not yet told it of.
    Row("original", ((bound_for("@plain@") + get(),), (bound_for("@other@") + get("/3"),)), ORIGINAL,
        listener=BEHIND_PROXY, stats=HOST_STATS),
    Row("original_tcp", ((bound_for("@plain@") + get(),), (bound_for("@other@") + get(),)), ORIGINAL, tcp=True,
        listener=BEHIND_PROXY, stats=HOST_STATS),
    Row("original_by_name", ((bound_for("@plain@") + get(),),), "type:\ncluster_type: { name: envoy.cluster.original_dst }\n"
        "lb_policy: CLUSTER_PROVIDED", listener=BEHIND_PROXY),
    Row("original_none", ((get(),),), ORIGINAL, stats=HOST_STATS),
    Row("original_none_tcp", ((get(),),), ORIGINAL, tcp=True, stats=HOST_STATS),
    Row("original_port", ((bound_for("@plain@") + get(),),), ORIGINAL + "original_dst_lb_config: { upstream_port_override: @other@ }",
        listener=BEHIND_PROXY, stats=HOST_STATS),
    Row("original_header", ((to("127.0.0.1:@plain@"), to("127.0.0.1:@other@"), to("[::1]:@six@")),), BY_HEADER,
        stats=HOST_STATS, fields=(b"x-envoy-original-dst-host",)),
    Row("original_header_unused", ((bound_for("@plain@") + to("127.0.0.1:@other@"),),), ORIGINAL, listener=BEHIND_PROXY),
    Row("original_header_first", ((bound_for("@plain@") + to("127.0.0.1:@other@"),),), BY_HEADER, listener=BEHIND_PROXY),
    Row("original_header_port", ((to("127.0.0.1:@plain@"),),),
        ORIGINAL + "original_dst_lb_config: { use_http_header: true, upstream_port_override: @other@ }"),
    Row("original_header_invalid", stats="original_dst_host_invalid$", blind=True, downstreams=((bound_for("@plain@") + to("nowhere"), *(
        to(host) for host in ("a.test:80", "127.0.0.1", "::1:80", "127.0.0.1:99999", "127.0.0.1:", "127.0.0.1:8 ", " ", "[127.0.0.1]:80")
    ), to("127.0.0.1:@other@\r\nx-envoy-original-dst-host: 127.0.0.1:1")),), cluster=BY_HEADER, listener=BEHIND_PROXY),
    Row("original_header_invalid_alone", ((to("nowhere"), to("127.0.0.1:70000")),), BY_HEADER, stats=HOST_STATS),
    Row("original_header_named", ((to("127.0.0.1:@plain@", "X-Where"),),),
        ORIGINAL + "original_dst_lb_config: { use_http_header: true, http_header_name: x-where }"),
    Row("original_metadata", ((v2((0xE5, b"127.0.0.1:@PLAIN@")) + to("127.0.0.1:@other@"),),
        (v2((0xE5, b"nonsense")) + to("127.0.0.1:@other@"),)), stats=HOST_STATS,
        cluster=ORIGINAL + "original_dst_lb_config: { use_http_header: true, metadata_key: "
        "{ key: envoy.filters.listener.proxy_protocol, path: [{ key: where }] } }",
        listener=json.dumps({"listener_filters": [PROXY_FILTER | {"typed_config": PROXY_FILTER["typed_config"] | {
            "rules": [{"tlv_type": 0xE5, "on_tlv_present": {"key": "where"}}]}}]})),
    Row("original_swept", ((bound_for("@plain@") + get(),),), listener=BEHIND_PROXY, stats=HOST_STATS,
        cluster=ORIGINAL + "cleanup_interval: 0.05s\ncommon_http_protocol_options: { idle_timeout: 0.1s }",
        after="cluster.original_swept.membership_total=0"),
]
def preconnecting(ratios: str, hosts: int = 1, more: str = "") -> str:
    """YAML of a cluster with so many hosts."""
    addresses = [{"address": f"127.0.0.{number + 1}", "port_value": "@plain@"} for number in range(hosts)]
    endpoints = [{"endpoint": {"address": {"socket_address": address}}} for address in addresses]
    groups = json.dumps([{"lb_endpoints": endpoints}]).replace('"@plain@"', "@plain@")
    return f"preconnect_policy: {ratios}\nload_assignment: {{ cluster_name: x, endpoints: {groups} }}\n{more}"


CX_STATS = r"upstream_cx_(total|overflow|active|destroy|max_requests)$|upstream_rq_total$"
THREE = ((get(),), (get(),), (get(),))


def opens(name: str, total: int) -> str:
    """Wait for so many connections."""
    return f"cluster.{name}.upstream_cx_total={total}"


PRECONNECT = [
    Row("pre_1", cluster=preconnecting("{ per_upstream_preconnect_ratio: 1.0 }"), stats=CX_STATS, after=opens("pre_1", 1)),
    Row("pre_2", cluster=preconnecting("{ per_upstream_preconnect_ratio: 2.0 }"), stats=CX_STATS, after=opens("pre_2", 2), blind=True),
    Row("pre_3", cluster=preconnecting("{ per_upstream_preconnect_ratio: 3.0 }"), stats=CX_STATS, after=opens("pre_3", 3), blind=True),
    Row("pre_1_5", THREE, parallel=True, blind=True, cluster=preconnecting("{ per_upstream_preconnect_ratio: 1.5 }"), stats=CX_STATS,
        after=opens("pre_1_5", 5)),
    Row("pre_3_three", THREE, parallel=True, blind=True, cluster=preconnecting("{ per_upstream_preconnect_ratio: 3.0 }"), stats=CX_STATS,
        after=opens("pre_3_three", 9)),
    Row("pre_tcp", tcp=True, stats="upstream_cx_total$", cluster=preconnecting("{ per_upstream_preconnect_ratio: 2.0 }"), blind=True,
        differs="tcp-preconnect", envoy=("cluster.pre_tcp.upstream_cx_total: 2",), ours=("cluster.pre_tcp.upstream_cx_total: 1",)),
    Row("pre_limited", THREE, parallel=True, blind=True, stats=r"upstream_cx_(total|active)$",
        cluster=preconnecting("{ per_upstream_preconnect_ratio: 3.0 }", more="circuit_breakers: { thresholds: [{ max_connections: 4 }] }"),
        after=opens("pre_limited", 4)),
    Row("predicted", THREE, cluster=preconnecting("{ predictive_preconnect_ratio: 3.0 }", 4), stats=CX_STATS),
    Row("predicted_at_once", THREE, parallel=True, cluster=preconnecting("{ predictive_preconnect_ratio: 3.0 }", 4), stats=CX_STATS, blind=True),
]
TRAILERS = b"POST / HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx-end: 1\r\n\r\n"
IN_PROPER_CASE = (b"host", b"user-agent", b"x-two-words")
UPSTREAM_HTTP1 = [
    Row("full_urls", ((get("/a?b"), get("/"), b"OPTIONS * HTTP/1.1\r\nhost: a.test\r\n\r\n"),),
        json.dumps(options(http1='{"send_fully_qualified_url": true}'))),
    Row("full_urls_rewritten", ((get("/a", "a.test:81"),),), json.dumps(options(http1='{"send_fully_qualified_url": true}')),
        route="{ host_rewrite_literal: b.test, prefix_rewrite: /x/ }"),
    Row("full_urls_tls", ((get(),),), json.dumps({"transport_socket": client_tls()} | options(http1='{"send_fully_qualified_url": true}')),
        upstream="tls"),
    Row("full_urls_tls_scheme", ((get(),),), upstream="tls", manager="{ scheme_header_transformation: { match_upstream: true } }",
        cluster=json.dumps({"transport_socket": client_tls()} | options(http1='{"send_fully_qualified_url": true}'))),
    Row("scheme_of_matched", ((get(),),), upstream="tls", endpoint=labels(x=1), manager="{ scheme_header_transformation: { match_upstream: true } }",
        cluster=json.dumps(json.loads(matching(A)) | options(http1='{"send_fully_qualified_url": true}'))),
    Row("scheme_of_proxied", ((get(),),), manager="{ scheme_header_transformation: { match_upstream: true } }",
        cluster=json.dumps(json.loads(proxied()) | options(http1='{"send_fully_qualified_url": true}'))),
    Row("proper_case", ((get(headers="user-agent: x\r\nX-TWO-words: y\r\n"),),), fields=IN_PROPER_CASE,
        cluster=json.dumps(options(http1='{"header_key_format": {"proper_case_words": {}}}'))),
    Row("trailers", ((TRAILERS,),), json.dumps(options(http1='{"enable_trailers": true}')), manager="{ http_protocol_options: { enable_trailers: true } }"),
    Row("requests_2", ((get(), get("/2"), get("/3"), get("/4")),), json.dumps(options(common='{"max_requests_per_connection": 2}')), stats=CX_STATS),
    Row("requests_1", TWO, json.dumps(options(common='{"max_requests_per_connection": 1}')), stats=CX_STATS),
    Row("requests_2_of_cluster", ((get(), get("/2"), get("/3")),), "max_requests_per_connection: 2", stats=CX_STATS),
    Row("requests_1_preconnected", THREE, stats=r"max_requests$|rq_total$", blind=True,
        cluster=preconnecting("{ per_upstream_preconnect_ratio: 2.0 }", more="max_requests_per_connection: 1")),
    Row("duration", ((get(),),), json.dumps(options(common='{"max_connection_duration": "0.2s"}')),
        stats=r"max_duration_reached$|upstream_cx_(total|active|destroy|destroy_local|destroy_remote)$",
        after="cluster.duration.upstream_cx_max_duration_reached=1"),
    Row("idle", ((get(),),), json.dumps(options(common='{"idle_timeout": "0.1s"}')), stats=r"idle_timeout$|upstream_cx_(active|destroy_local)$",
        after="cluster.idle.upstream_cx_idle_timeout=1"),
]
ALPN = [
    Row("alpn", cluster=secure(), upstream="tls", alpn=True),
    Row("alpn_http2", cluster=secure({"explicit_http_config": {"http2_protocol_options": {}}}), upstream="tls", alpn=True),
    Row("alpn_auto", cluster=secure({"auto_config": {}}), upstream="tls", alpn=True),
    Row("alpn_auto_counted", TWO, cluster=secure({"auto_config": {}}), upstream="tls", alpn=True, stats=r"upstream_cx_(http[12]_)?total$",
        differs="negotiated-twice", envoy=("cluster.alpn_auto_counted.upstream_cx_total: 2",),
        ours=("cluster.alpn_auto_counted.upstream_cx_total: 1",)),
    Row("alpn_as_downstream", cluster=secure({"use_downstream_protocol_config": {}}), upstream="tls", alpn=True),
    Row("alpn_configured", cluster=secure({"auto_config": {}}, "alpn_protocols: [other]"), upstream="tls", alpn=True),
    Row("alpn_behind_proxy", cluster=json.dumps(json.loads(proxied(inner=client_tls())) | protocols({"auto_config": {}})),
        upstream="proxied_tls", alpn=True),
    Row("alpn_tcp", cluster=secure(), upstream="tls", alpn=True, tcp=True),
]
BOUND_BY_BOOTSTRAP = [
    Row("common_source"),
    Row("own_source", cluster="upstream_bind_config: { source_address: { address: 127.0.0.9, port_value: 0 } }"),
    Row("own_without_source", cluster="upstream_bind_config: { freebind: false }"),
]
COMMON_SOURCE = "cluster_manager: { upstream_bind_config: { source_address: { address: 127.0.0.7, port_value: 0 } } }"
ROWS = [*ORIGINAL_DST, *UPSTREAM_HTTP1, *PRECONNECT, *BIND, *PROXY_PROTOCOL, *MATCHES, *SNI, *POOLS, *ALPN]


@pytest.fixture(scope="module")
def sides() -> Iterator[tuple[ConnectionsSide, ConnectionsSide]]:
    subject = start_envoy if SUBJECT_IS_ENVOY else start_meshproxy
    with ConnectionsSide(ROWS, "", start_envoy) as envoy, ConnectionsSide(ROWS, "", subject) as ours:
        yield envoy, ours


def test_the_source_that_the_bootstrap_names() -> None:
    subject = start_envoy if SUBJECT_IS_ENVOY else start_meshproxy
    with (
        ConnectionsSide(BOUND_BY_BOOTSTRAP, COMMON_SOURCE, start_envoy) as envoy,
        ConnectionsSide(BOUND_BY_BOOTSTRAP, COMMON_SOURCE, subject) as ours,
    ):
        for row in BOUND_BY_BOOTSTRAP:
            assert ours.run(row) == envoy.run(row)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(sides: tuple[ConnectionsSide, ConnectionsSide], row: Row) -> None:
    with ThreadPoolExecutor(2) as pool:
        expected, actual = pool.map(lambda side: side.run(row), sides)
    if not row.differs:
        assert actual == expected
        return
    differences = () if SUBJECT_IS_ENVOY else (*row.envoy, "|", *row.ours)
    found = [line for line in expected if line not in actual], [line for line in actual if line not in expected]
    assert (*found[0], "|", *found[1]) == (differences or ("|",))
