"""Which filter chain a connection gets, and what listener filters learn of it: the real Envoy and meshproxy.

Expected values are what Envoy 1.40 answered. Three parts try them: Envoy itself, our listener filters and matcher as
they are (without a process), and the whole of meshproxy. `MESHPROXY_DIFF_SUBJECT=envoy` leaves the last two out.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from envoy.config.listener.v3.listener_pb2 import Listener
from google.protobuf import json_format

import meshproxy.filters.builtin
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Layer, Runtime
from meshproxy.filters.listener_filter import CLOSE, NEEDS_DATA, AcceptedSocket, ListenerFilterRun
from meshproxy.filters.listener_filter import build_listener_filters as build_filters
from meshproxy.net.address import Address
from meshproxy.observe.stats import StatsRegistry
from meshproxy.server.filter_chain_match import build_filter_chain_matcher
from tests.differential.layer4 import Layer4Listener, Layer4Side, Probe, filters, listener_filter
from tests.differential.pair import SUBJECT_IS_ENVOY
from tests.filters.listener.headers import LOCAL, v1, v2
from tests.filters.listener.hello import (
    POINT_FORMATS,
    SIGNATURE_ALGORITHMS,
    SUPPORTED_GROUPS,
    alpn,
    client_hello,
    numbers,
    records,
    sni,
    vector,
    versions,
)
from tests.server.chains import Match, build, random_chains, random_connection
from tests.support.proxy import start_envoy, start_meshproxy

PROXY_PROTOCOL = listener_filter("proxy_protocol")
TLS = listener_filter("tls_inspector")
HTTP = listener_filter("http_inspector")
BOTH = filters(PROXY_PROTOCOL, TLS)
FINGERPRINTS = filters(
    listener_filter("tls_inspector", "{enable_ja3_fingerprinting: true, enable_ja4_fingerprinting: true}")
)
RULES = (
    "rules: [{tlv_type: 1, on_tlv_present: {key: alpn}}, "
    "{tlv_type: 2, on_tlv_present: {key: authority, metadata_namespace: other}}, {tlv_type: 4}]"
)


def prefix(*ranges: str) -> str:
    """YAML of CidrRanges."""
    made = [f"{{address_prefix: '{each.split('/')[0]}', prefix_len: {each.split('/')[1]}}}" for each in ranges]
    return f"[{', '.join(made)}]"


LISTENERS = {
    "port": Layer4Listener(
        {"p80": "{destination_port: 80}", "p81_a": "{destination_port: 81, server_names: [a]}", "any": ""},
        default="default",
        filters=BOTH,
    ),
    "port_only": Layer4Listener({"p80": "{destination_port: 80}"}, filters=BOTH),
    "destination": Layer4Listener(
        {
            "ten": f"{{prefix_ranges: {prefix('10.0.0.0/8')}}}",
            "ten_one": f"{{prefix_ranges: {prefix('10.1.2.3/16')}}}",
            "host": f"{{prefix_ranges: {prefix('10.1.1.1/32', '192.168.1.0/24')}, server_names: [a]}}",
            "v6": f"{{prefix_ranges: {prefix('2001:db8::/32')}}}",
            "cut": f"{{prefix_ranges: {prefix('172.16.5.5/64')}}}",
            "all6": f"{{prefix_ranges: {prefix('::/0')}, server_names: [six]}}",
        },
        default="default",
        filters=BOTH,
    ),
    "names": Layer4Listener(
        {
            "exact": "{server_names: [www.example.com]}",
            "exact_h2": "{server_names: [api.example.com], application_protocols: [h2]}",
            "wild": "{server_names: ['*.example.com']}",
            "wild_com": "{server_names: ['*.com', UPPER.org]}",
            "dot": "{server_names: [.dot.net]}",
            "none": "",
        },
        default="default",
        filters=filters(TLS),
    ),
    "names_only": Layer4Listener({"wild": "{server_names: ['*.example.com']}"}, filters=filters(TLS)),
    "protocols": Layer4Listener(
        {
            "tls_h2": "{transport_protocol: tls, application_protocols: [h2]}",
            "tls_h1": "{transport_protocol: tls, application_protocols: [http/1.1, http/1.0]}",
            "raw": "{transport_protocol: raw_buffer}",
            "any_h2": "{application_protocols: [h2, h2c]}",
        },
        default="default",
        filters=filters(TLS),
    ),
    "any_protocol": Layer4Listener(
        {"h2": "{application_protocols: [h2]}", "other": "{application_protocols: [x]}", "any": ""},
        filters=filters(TLS),
    ),
    "sources": Layer4Listener(
        {
            "local": "{source_type: SAME_IP_OR_LOOPBACK}",
            "local_port": "{source_type: SAME_IP_OR_LOOPBACK, source_ports: [7, 8]}",
            "external": f"{{source_type: EXTERNAL, source_prefix_ranges: {prefix('10.0.0.0/8')}}}",
            "external_port": f"{{source_type: EXTERNAL, source_prefix_ranges: {prefix('10.0.0.0/8')}, source_ports: [7]}}",
            "any": f"{{source_prefix_ranges: {prefix('10.0.0.0/8', '11.0.0.0/8')}}}",
        },
        default="default",
        filters=BOTH,
    ),
    "everything": Layer4Listener(
        {"any": "", "all": f"{{prefix_ranges: {prefix('0.0.0.0/0')}, server_names: [a]}}"}, filters=BOTH
    ),
    "any_source": Layer4Listener(
        {
            "local": "{source_type: SAME_IP_OR_LOOPBACK, source_ports: [7]}",
            "ten": f"{{source_prefix_ranges: {prefix('10.0.0.0/8')}}}",
            "ten_one": f"{{source_prefix_ranges: {prefix('10.1.0.0/16')}, source_ports: [7]}}",
            "rest": "",
        },
        filters=BOTH,
    ),
    "direct": Layer4Listener(
        {
            "two": f"{{direct_source_prefix_ranges: {prefix('127.0.0.2/32')}}}",
            "even": f"{{direct_source_prefix_ranges: {prefix('127.0.0.4/30')}, source_ports: [7]}}",
            "loopback": f"{{direct_source_prefix_ranges: {prefix('127.0.0.0/8')}}}",
        },
        default="default",
        filters=BOTH,
    ),
    "loopback": Layer4Listener(
        {"local": "{source_type: SAME_IP_OR_LOOPBACK}", "external": "{source_type: EXTERNAL}"}
    ),
    "nobody": Layer4Listener({"never": f"{{prefix_ranges: {prefix('192.0.2.0/24')}}}"}),
    "default_only": Layer4Listener(default="default"),
    "unix": Layer4Listener(
        {
            "p80": "{destination_port: 80}",
            "prefix": f"{{prefix_ranges: {prefix('10.0.0.0/8')}}}",
            "local": "{source_type: SAME_IP_OR_LOOPBACK}",
            "external": "{source_type: EXTERNAL}",
        },
        unix=True,
    ),
    "unix_disabled": Layer4Listener(
        {"tls": "{transport_protocol: tls}", "raw": ""},
        filters=filters(
            listener_filter(
                "tls_inspector", extra="{filter_disabled: {destination_port_range: {start: 10, end: 20}}}"
            )
        ),
        unix=True,
    ),
    "disabled": Layer4Listener(
        {"tls": "{transport_protocol: tls}", "raw": ""},
        filters=filters(
            PROXY_PROTOCOL,
            listener_filter(
                "tls_inspector",
                extra="{filter_disabled: {or_match: {rules: ["
                "{destination_port_range: {start: 80, end: 82}}, "
                "{and_match: {rules: [{destination_port_range: {start: 90, end: 99}}, "
                "{not_match: {destination_port_range: {start: 95, end: 96}}}]}}]}}}",
            ),
        ),
    ),
    "disabled_always": Layer4Listener(
        {"tls": "{transport_protocol: tls}", "raw": ""},
        filters=filters(listener_filter("tls_inspector", extra="{filter_disabled: {any_match: true}}")),
    ),
    "tls": Layer4Listener(
        {"tls": "{transport_protocol: tls}", "raw": "{transport_protocol: raw_buffer}"}, filters=FINGERPRINTS
    ),
    "tls_small": Layer4Listener(
        {"tls": "{transport_protocol: tls}", "raw": ""},
        filters=filters(listener_filter("tls_inspector", "{max_client_hello_size: 256}")),
    ),
    "tls_strict": Layer4Listener(
        {"tls": "{transport_protocol: tls}", "raw": ""},
        filters=filters(listener_filter("tls_inspector", "{close_connection_on_client_hello_parsing_errors: true}")),
    ),
    "http": Layer4Listener(
        {
            "h1": "{application_protocols: [http/1.1]}",
            "h10": "{application_protocols: [http/1.0]}",
            "h2c": "{application_protocols: [h2c]}",
            "none": "",
        },
        filters=filters(HTTP),
    ),
    "tls_http": Layer4Listener(
        {"h1": "{application_protocols: [http/1.1]}", "h2": "{application_protocols: [h2]}", "none": ""},
        filters=filters(TLS, HTTP),
    ),
    "proxy": Layer4Listener({"a": ""}, filters=filters(listener_filter("proxy_protocol", f"{{{RULES}}}"))),
    "proxy_state": Layer4Listener(
        {"a": ""}, filters=filters(listener_filter("proxy_protocol", f"{{tlv_location: FILTER_STATE, {RULES}}}"))
    ),
    "proxy_optional": Layer4Listener(
        {"a": ""}, filters=filters(listener_filter("proxy_protocol", "{allow_requests_without_proxy_protocol: true}"))
    ),
    "proxy_v2": Layer4Listener(
        {"a": ""}, filters=filters(listener_filter("proxy_protocol", "{disallowed_versions: [V1]}"))
    ),
    "proxy_v1": Layer4Listener(
        {"a": ""}, filters=filters(listener_filter("proxy_protocol", "{disallowed_versions: [V2]}"))
    ),
    "proxy_optional_v1": Layer4Listener(
        {"a": ""},
        filters=filters(
            listener_filter(
                "proxy_protocol", "{allow_requests_without_proxy_protocol: true, disallowed_versions: [V2]}"
            )
        ),
    ),
    "original": Layer4Listener({"a": ""}, filters=filters(listener_filter("original_dst"))),
    "timeout": Layer4Listener({"a": ""}, filters=filters(TLS), fields="{listener_filters_timeout: 0.1s}"),
    "timeout_continues": Layer4Listener(
        {"tls": "{transport_protocol: tls}", "raw": "{transport_protocol: raw_buffer}"},
        filters=filters(TLS),
        fields="{listener_filters_timeout: 0.1s, continue_on_listener_filters_timeout: true}",
    ),
}


@dataclass(frozen=True)
class Row:
    """A connection, the chain that Envoy gives it, and what Envoy's access log says of it.

    `ours` is our answer where it differs on purpose, by the row `differs` of docs/envoy-differences.md; `or_else` is
    Envoy's in some of its runs. `timed` rows are about a timeout, which only processes have.
    """

    name: str
    listener: str
    probe: Probe
    answer: str
    facts: dict[str, Any] = field(default_factory=dict)
    ours: str = ""
    differs: str = ""
    or_else: str = ""
    timed: bool = False


def hello(name: str = "", *protocols: str, **settings: Any) -> bytes:
    """A ClientHello with SNI and ALPN."""
    extensions = [sni(name.encode())] if name else []
    extensions += [alpn(*(each.encode() for each in protocols))] if protocols else []
    return records(client_hello(*extensions, **settings))


def via(source: str, destination: str, data: bytes = b"plain") -> Probe:
    """A connection whose addresses a PROXY header tells."""
    return Probe(v1(source, destination) + data)


def rows(listener: str, **expected: tuple[Probe | bytes, str] | tuple[Probe | bytes, str, dict[str, Any]]) -> list[Row]:
    """Rows of one listener by name: (probe or data, chain, facts)."""
    made = []
    for name, (probe, answer, *facts) in expected.items():
        given = Probe(probe) if isinstance(probe, bytes) else probe
        made.append(Row(f"{listener}_{name}", listener, given, answer, facts[0] if facts else {}))
    return made


FULL = client_hello(
    sni(b"Www.Example.COM"),
    alpn(b"h2", b"http/1.1"),
    (SUPPORTED_GROUPS, numbers(29, 23)),
    (POINT_FORMATS, vector(b"\0", 1)),
    (SIGNATURE_ALGORITHMS, numbers(0x0403, 0x0804)),
    versions(0x0304, 0x0303),
)
FULL_FACTS = {
    "sni": "www.example.com",
    "ja3": "3d6f0fc5ee224d90c1a94028e4f745bd",
    "ja4": "t13d0306h2_13bac7b83268_fb71836bce29",
}
NOT_TLS = {"inspector": {"failure_reason": "ClientHelloNotDetected"}}
FROM_1234 = {"remote": "1.2.3.4:1000", "local": "5.6.7.8:2000", "direct_remote": "127.0.0.1:1", "direct_local": "127.0.0.1:2"}
UNCHANGED = {"remote": "127.0.0.1:1", "local": "127.0.0.1:2"}
WARNING = b"\x15\3\1\0\2\1\x5a"
CLOSE_NOTIFY = b"\x15\3\1\0\2\1\0"
SSL_2_HELLO = b"\x80\x25\1\3\3\0\x0c\0\0\0\x10\0\0\x2f\0\0\x35\0\0\x0a\0\xc0\x2b" + bytes(16)
REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


def different(key: str, listener: str, ours: str, **expected: tuple[Probe | bytes, str]) -> list[Row]:
    """Rows of one listener that differ on purpose, all for one reason: (probe or data, Envoy's answer)."""
    return [replace(row, ours=ours, differs=key) for row in rows(listener, **expected)]


def failed(reason: str) -> dict[str, Any]:
    """Facts of what is no TLS, and BoringSSL's reason."""
    return NOT_TLS | {"failure": f"TLS_error|error:{reason}:TLS_error_end"}


def ssl_error(code: str, name: str) -> str:
    """As an access log shows it, without spaces."""
    return f"{code}:SSL_routines:OPENSSL_internal:{name}"


GREASED = client_hello(
    (0x1A1A, b""),
    sni(b"a.b"),
    (SUPPORTED_GROUPS, numbers(0x2A2A, 29)),
    (POINT_FORMATS, vector(b"\0\1", 1)),
    versions(0x3A3A, 0x0304),
    ciphers=(0x0A0A, 0x1301),
)

ROWS = [
    *rows(
        "port",
        exact=(via("1.2.3.4:9", "5.6.7.8:80"), "p80"),
        other=(via("1.2.3.4:9", "5.6.7.8:82"), "any"),
        no_way_back=(via("1.2.3.4:9", "5.6.7.8:81"), "default"),
        with_name=(via("1.2.3.4:9", "5.6.7.8:81", hello("a")), "p81_a"),
    ),
    *rows("port_only", other=(via("1.2.3.4:9", "5.6.7.8:81"), "closed"), exact=(via("1.2.3.4:9", "5.6.7.8:80"), "p80")),
    *rows(
        "destination",
        wide=(via("1.2.3.4:9", "10.200.0.1:1"), "ten"),
        longer=(via("1.2.3.4:9", "10.1.200.1:1"), "ten_one"),
        longest=(via("1.2.3.4:9", "10.1.1.1:1", hello("a")), "host"),
        no_way_back=(via("1.2.3.4:9", "10.1.1.1:1", hello("b")), "default"),
        second_range=(via("1.2.3.4:9", "192.168.1.77:1", hello("a")), "host"),
        nowhere=(via("1.2.3.4:9", "9.9.9.9:1"), "default"),
        v6=(via("::2:9", "2001:db8:5::1:1"), "v6"),
        v6_all=(via("::2:9", "2002::1:1", hello("six")), "all6"),
        v6_nowhere=(via("::2:9", "2002::1:1", hello("seven")), "default"),
        length_is_cut=(via("1.2.3.4:9", "172.16.5.5:1"), "cut"),
        mapped_is_v6=(via("::2:9", "::ffff:10.1.1.1:1", hello("six")), "all6"),
    ),
    *rows(
        "names",
        exact=(hello("www.example.com"), "exact"),
        upper=(hello("WWW.EXAMPLE.COM"), "exact"),
        wild=(hello("x.example.com"), "wild"),
        wild_deep=(hello("x.y.example.com"), "wild"),
        bare=(hello("example.com"), "wild_com"),
        upper_configured=(hello("upper.org"), "wild_com"),
        other=(hello("upper.net"), "none"),
        no_sni=(hello(), "none"),
        alpn_fits=(hello("api.example.com", "h2"), "exact_h2"),
        no_way_back=(hello("api.example.com", "http/1.1"), "default"),
        dot_is_wild=(hello("a.dot.net"), "dot"),
        dot_itself=(hello(".dot.net"), "dot"),
        leading_dot=(hello(".example.com"), "wild"),
        trailing_dot=(hello("www.example.com."), "none"),
        only_dots=(hello("..."), "none"),
        one_label=(hello("com"), "none"),
        plain=(b"hello", "none"),
    ),
    *rows(
        "names_only",
        fits=(hello("a.example.com"), "wild"),
        other=(hello("example.com"), "closed"),
        plain=(b"hello", "closed"),
    ),
    *rows(
        "protocols",
        h2=(hello("", "h2", "http/1.1"), "tls_h2"),
        client_order=(hello("", "http/1.1", "h2"), "tls_h1"),
        unknown_first=(hello("", "spdy", "http/1.0"), "tls_h1"),
        unknown=(hello("", "spdy"), "default"),
        none=(hello(), "default"),
        plain=(b"hello", "raw"),
    ),
    *rows(
        "any_protocol",
        h2=(hello("", "h2"), "h2"),
        both=(hello("", "x", "h2"), "other"),
        unknown=(hello("", "y"), "any"),
        none=(hello(), "any"),
    ),
    *rows(
        "sources",
        loopback=(via("127.0.0.1:9", "5.6.7.8:1"), "local"),
        loopback_port=(via("127.0.0.1:8", "5.6.7.8:1"), "local_port"),
        same_ip=(via("5.6.7.8:9", "5.6.7.8:1"), "local"),
        loopback_v6=(via("::1:9", "2001:db8::1:1"), "local"),
        other_loopback=(via("127.0.0.2:9", "127.0.0.1:1"), "default"),
        external=(via("10.1.1.1:9", "5.6.7.8:1"), "external"),
        external_port=(via("10.1.1.1:7", "5.6.7.8:1"), "external_port"),
        no_way_back=(via("11.1.1.1:9", "5.6.7.8:1"), "default"),
        real_loopback=(Probe(v2(command=LOCAL) + b"plain"), "local"),
    ),
    *rows(
        "any_source",
        ten=(via("10.2.1.1:7", "5.6.7.8:1"), "ten"),
        longer_and_port=(via("10.1.1.1:7", "5.6.7.8:1"), "ten_one"),
        no_way_back=(via("10.1.1.1:8", "5.6.7.8:1"), "closed"),
        rest=(via("12.1.1.1:8", "5.6.7.8:1"), "rest"),
        rest_v6=(via("2001:db8::5:8", "2001:db8::1:1"), "rest"),
        type_hides_any=(via("127.0.0.1:8", "5.6.7.8:1"), "closed"),
        type_and_port=(via("127.0.0.1:7", "5.6.7.8:1"), "local"),
    ),
    *rows(
        "direct",
        two=(Probe(v1() + b"plain", source="127.0.0.2"), "two"),
        wide=(Probe(v1() + b"plain", source="127.0.0.3"), "loopback"),
        no_way_back=(Probe(v1("1.2.3.4:8") + b"plain", source="127.0.0.5"), "default"),
        remote_is_told=(Probe(v1("1.2.3.4:7") + b"plain", source="127.0.0.5"), "even"),
    ),
    *rows(
        "loopback",
        same=(Probe(), "local"),
        only_127_0_0_1=(Probe(source="127.0.0.2"), "external"),
        same_address=(Probe(source="127.0.0.2", destination="127.0.0.2"), "local"),
    ),
    *rows("nobody", closed=(Probe(), "closed")),
    *rows("default_only", answers=(Probe(), "default")),
    *rows("unix", local=(Probe(), "local")),
    *rows("unix_disabled", matches_any_range=(hello(), "raw")),
    *rows(
        "disabled",
        first=(via("1.2.3.4:9", "5.6.7.8:80", hello()), "raw"),
        before_end=(via("1.2.3.4:9", "5.6.7.8:81", hello()), "raw"),
        end=(via("1.2.3.4:9", "5.6.7.8:82", hello()), "tls"),
        both=(via("1.2.3.4:9", "5.6.7.8:94", hello()), "raw"),
        negated=(via("1.2.3.4:9", "5.6.7.8:95", hello()), "tls"),
    ),
    *rows("disabled_always", waits_for_nothing=(Probe(), "raw")),
    *rows(
        "tls",
        full=(records(FULL), "tls", FULL_FACTS),
        two_records=(records(FULL, 10, 50), "tls", FULL_FACTS),
        records_of_one_byte=(records(FULL, *[1] * 20), "tls", FULL_FACTS),
        cut_header=(records(FULL, 2, 1), "tls", FULL_FACTS),
        empty_records=(records(FULL, *[0] * 32), "tls", FULL_FACTS),
        too_many_empty_records=(records(FULL, *[0] * 33), "raw", NOT_TLS),
        pieces=(Probe([records(FULL)[:1], records(FULL)[1:4], records(FULL)[4:60], records(FULL)[60:]]), "tls", FULL_FACTS),
        more_behind=(records(FULL) + b"more", "tls", FULL_FACTS),
        record_version=(records(FULL, version=0x03FF), "tls", FULL_FACTS),
        grease=(
            records(GREASED),
            "tls",
            {"ja3": "b4668286f92c12ede50a7b7794af19b9", "ja4": "t13d010400_0f2cb44170f4_675b29d69375"},
        ),
        bare=(
            hello(),
            "tls",
            {"ja3": "d12efec3a7501dfb43e0bf44e1445670", "ja4": "t12i030000_13bac7b83268_000000000000"},
        ),
        empty_extensions=(records(client_hello(raw_extensions=b"\0\0")), "tls"),
        tls_1_0=(hello(version=0x0301), "tls", {"ja4": "t10i030000_13bac7b83268_000000000000"}),
        only_1_4=(records(client_hello(versions(0x0305))), "tls", {"ja4": "t00i030100_13bac7b83268_b9a491fefe05"}),
        only_grease=(records(client_hello(versions(0x1A1A))), "tls", {"ja4": "t12i030100_13bac7b83268_b9a491fefe05"}),
        no_versions=(records(client_hello(versions())), "tls", {"ja4": "t12i030100_13bac7b83268_b9a491fefe05"}),
        ssl_3=(
            hello(version=0x0300),
            "closed",
            {
                "inspector": {"failure_reason": "ClientHelloInvalidTlsVersion"},
                "failure": f"TLS_error|error:{ssl_error('10000085', 'CONNECTION_REJECTED')}:TLS_error_end",
            },
        ),
        version_0305=(hello(version=0x0305), "closed"),
        alpn_of_control_bytes=(
            hello("", "\x01\x02"),
            "tls",
            {"ja4": "t12i030102_13bac7b83268_000000000000"},
        ),
        alpn_of_one_letter=(hello("", "a"), "tls", {"ja4": "t12i0301aa_13bac7b83268_000000000000"}),
        alpn_malformed=(
            records(client_hello((16, b"\0\5\2h2"))),
            "tls",
            {"ja4": "t12i0301h2_13bac7b83268_000000000000"},
        ),
        groups_malformed=(
            records(client_hello((10, b"\0\3abc"))),
            "tls",
            {"ja3": "dfa3facbd29b7c42c501a3db3199531e", "ja4": "t12i030100_13bac7b83268_a8f3e973773c"},
        ),
        signatures_malformed=(
            records(client_hello((13, b"\0"))),
            "tls",
            {"ja3": "49db7e8c9cee42da53e42512e0afbd17", "ja4": "t12i030100_13bac7b83268_06540eb5c95f"},
        ),
        point_formats_malformed=(
            records(client_hello((11, b"\0"))),
            "tls",
            {"ja3": "e52c9b9447d3ef3b8e1f7409cf874f3a", "ja4": "t12i030100_13bac7b83268_bcb145a8c2a7"},
        ),
        sni_ip=(hello("10.0.0.1"), "tls", {"sni": "10.0.0.1"}),
        sni_longest=(hello("a" * 255), "tls", {"sni": "a" * 255}),
        sni_too_long=(hello("a" * 256), "raw", NOT_TLS),
        sni_empty=(
            records(client_hello(sni(b""))),
            "raw",
            failed(ssl_error("10000095", "ERROR_PARSING_EXTENSION")),
        ),
        sni_nul=(hello("a\0b"), "raw", NOT_TLS),
        sni_other_kind=(records(client_hello(sni(b"a", 1))), "raw", NOT_TLS),
        sni_two=(records(client_hello((0, vector(b"\0\0\1a\0\0\1b")))), "raw", NOT_TLS),
        sni_nothing=(records(client_hello((0, b""))), "raw", NOT_TLS),
        sni_and_more=(records(client_hello((0, vector(b"\0\0\1a") + b"x"))), "raw", NOT_TLS),
        no_ciphers=(hello(ciphers=()), "raw", failed(ssl_error("10000083", "CLIENTHELLO_PARSE_FAILED"))),
        no_compression=(hello(compression=b""), "raw", NOT_TLS),
        only_compression_1=(hello(compression=b"\1"), "tls"),
        session_id_32=(hello(session_id=bytes(32)), "tls"),
        session_id_33=(hello(session_id=bytes(33)), "raw", NOT_TLS),
        trailing=(hello(trailing=b"x"), "raw", NOT_TLS),
        trailing_extensions=(hello("a", trailing=b"x"), "raw", NOT_TLS),
        repeated_extension=(records(client_hello((999, b""), (999, b""))), "raw", NOT_TLS),
        extensions_overrun=(records(client_hello(raw_extensions=b"\0\x0a\0\0\0\x10abcd")), "raw", NOT_TLS),
        other_message=(
            records(b"\2\0\0\x32" + bytes(50)),
            "raw",
            failed(ssl_error("100000df", "UNEXPECTED_MESSAGE")),
        ),
        message_too_long=(
            b"\x16\3\1\1\0\1\0\x50\1" + bytes(252),
            "raw",
            failed(ssl_error("10000096", "EXCESSIVE_MESSAGE_SIZE")),
        ),
        record_too_long=(
            b"\x16\3\1\x48\1" + bytes(10),
            "raw",
            failed(ssl_error("10000092", "ENCRYPTED_LENGTH_TOO_LONG")),
        ),
        other_record=(b"\x17\3\3\0\5hello", "raw", failed(ssl_error("100000e1", "UNEXPECTED_RECORD"))),
        other_version=(b"\x16\2\1\0\5hello", "raw", failed(ssl_error("100000f7", "WRONG_VERSION_NUMBER"))),
        zeros=(bytes(10), "raw", failed(ssl_error("100000f7", "WRONG_VERSION_NUMBER"))),
        hello=(b"hello", "raw", failed(ssl_error("100000f7", "WRONG_VERSION_NUMBER"))),
        http=(b"GET / HTTP/1.1\r\n\r\n", "raw", failed(ssl_error("1000009c", "HTTP_REQUEST"))),
        http_connect=(b"CONNECT a HTTP/1.1", "raw", failed(ssl_error("1000009b", "HTTPS_PROXY_REQUEST"))),
        nothing=(Probe(), "stalled"),
        one_byte=(b"\x16", "stalled"),
        no_record_yet=(b"\x16\3\1\0", "stalled"),
        no_hello_yet=(records(FULL)[:-1], "stalled"),
        end_too_early=(Probe(records(FULL)[:9], end=True), "closed"),
    ),
    *different(
        "first-impossible-byte", "tls", "raw",
        short_line=(b"hi\n", "stalled"),
        other_version_alone=(b"\x16\2", "stalled"),
        part_of_alert=(b"\x15\3\1", "stalled"),
    ),
    *different("first-impossible-byte", "proxy", "closed", part_of_nothing=(b"GET", "stalled")),
    *different(
        "records-before-hello", "tls", "raw",
        warning_first=(WARNING + records(FULL), "tls"),
        close_notify_first=(CLOSE_NOTIFY + records(FULL), "closed"),
        ssl_2_hello=(SSL_2_HELLO, "tls"),
    ),
    *rows(
        "tls",
        fatal_alert_first=(b"\x15\3\1\0\2\2\x28" + records(FULL), "raw"),
        change_cipher_spec_first=(b"\x14\3\3\0\1\1" + records(FULL), "raw"),
        five_warnings_first=(WARNING * 5 + records(FULL), "raw"),
    ),
    *rows(
        "everything",
        v6=(via("::2:9", "2001:db8::1:1", hello("a")), "any"),
    ),
    *(
        replace(row, or_else="any")
        for row in different(
            "range-of-everything", "everything", "all", hidden=(via("1.2.3.4:9", "5.6.7.8:1", hello("a")), "all")
        )
    ),
    *rows(
        "tls_small",
        largest=(records(client_hello((999, bytes(196)))), "tls"),
        too_large=(records(client_hello((999, bytes(197)))), "closed", {"inspector": {"failure_reason": "ClientHelloTooLarge"}}),
        much_plain=(b"a" * 3000, "raw"),
    ),
    *rows(
        "tls_strict",
        tls=(records(FULL), "tls"),
        http=(b"GET / HTTP/1.1\r\n\r\n", "closed", failed(ssl_error("1000009c", "HTTP_REQUEST"))),
        malformed=(hello(trailing=b"x"), "closed"),
    ),
    *rows(
        "http",
        h11=(REQUEST, "h1"),
        h10=(b"GET / HTTP/1.0\r\n", "h10"),
        bare_lf=(b"GET / HTTP/1.1\n", "h1"),
        h09=(b"GET /\r\n", "h10"),
        h12=(b"GET / HTTP/1.2\r\n", "h10"),
        h2_line=(b"GET / HTTP/2.0\r\n", "h10"),
        other_protocol=(b"GET / XTTP/1.1\r\n", "none"),
        lower_version=(b"GET / http/1.1\r\n", "none"),
        two_digits=(b"GET / HTTP/1.10\r\n", "none"),
        no_target=(b"GET\r\n", "none"),
        preface=(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "h2c"),
        half_preface=(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", "stalled"),
        wrong_preface=(b"PRI * HTTP/2.0\r\n\r\nXX\r\n", "h10"),
        pieces=(Probe([b"GE", b"T / HT", b"TP/1.1\r", b"\n"]), "h1"),
        part=(b"GET / HTT", "stalled"),
        nothing=(Probe(), "stalled"),
        binary=(b"\xff\xfe\xfd", "none"),
        tls=(records(FULL), "none"),
        empty_line=(b"\r\nGET / HTTP/1.1\r\n", "none"),
        custom_method=(b"FOO-BAR / HTTP/1.1\r\n", "h1"),
        lower_method=(b"get / HTTP/1.1\r\n", "h1"),
        no_token=(b"G(T", "none"),
        leading_space=(b" GET / HTTP/1.1\r\n", "none"),
        json=(b'{"a"', "none"),
        ssh=(b"SSH-2.0-OpenSSH_9.6\r\n", "none"),
        smtp=(b"EHLO example.org\r\n", "none"),
        tabs=(b"GET\t/\tHTTP/1.1\r\n", "h1"),
        control_behind_method=(b"GET\x01/ HTTP/1.1\r\n", "none"),
        control_behind_target=(b"GET /\x01HTTP/1.1\r\n", "h1"),
        two_spaces=(b"GET  / HTTP/1.1\r\n", "h1"),
        trailing_space=(b"GET / HTTP/1.1 \r\n", "h1"),
        space_in_target=(b"GET /a b HTTP/1.1\r\n", "none"),
        high_byte=(b"GET /\xff HTTP/1.1\r\n", "none"),
        delete_byte=(b"GET /\x7f HTTP/1.1\r\n", "none"),
        cr_within=(b"GET / HTTP/1.1\rX\n", "none"),
        absolute=(b"GET http://a/ HTTP/1.1\r\n", "h1"),
        absolute_two_ats=(b"GET http://a@@b/ HTTP/1.1\r\n", "none"),
        absolute_two_users=(b"GET http://a@b@c/ HTTP/1.1\r\n", "h1"),
        absolute_nothing=(b"GET http:// HTTP/1.1\r\n", "h1"),
        absolute_bad_host=(b"GET http://a<b HTTP/1.1\r\n", "none"),
        half_absolute=(b"GET http:/a HTTP/1.1\r\n", "none"),
        scheme_of_digit=(b"GET 1http://a HTTP/1.1\r\n", "none"),
        relative=(b"GET a HTTP/1.1\r\n", "none"),
        query_only=(b"GET ?a HTTP/1.1\r\n", "none"),
        star=(b"OPTIONS * HTTP/1.1\r\n", "h1"),
        connect=(b"CONNECT a:1 HTTP/1.1\r\n", "h1"),
        connect_lower=(b"connect a:1 HTTP/1.1\r\n", "none"),
        connect_path=(b"CONNECT a?b/c HTTP/1.1\r\n", "h1"),
        connect_nothing=(b"CONNECT  HTTP/1.1\r\n", "h1"),
        long=(b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n", "h1"),
        too_long=(b"GET /" + b"a" * 65531, "closed"),
    ),
    *rows(
        "tls_http",
        alpn_stays=(hello("", "h2"), "h2"),
        no_alpn=(hello(), "none"),
        plain=(REQUEST, "h1"),
        other=(b"\0\1\2\3\4\5", "none"),
    ),
    *different("full-buffer", "tls_http", "closed", endless_line=(b"G" * 65536, "stalled")),
    *rows("http", endless_line=(b"G" * 65536, "closed")),
    *rows(
        "proxy",
        v1=(v1() + b"rest", "a", FROM_1234),
        v1_pieces=(Probe([v1()[:1], v1()[1:8], v1()[8:-1], v1()[-1:]]), "a", FROM_1234),
        v1_v6=(v1("::2:1000", "2001:DB8::1:2000"), "a", {"remote": "[::2]:1000", "local": "[2001:db8::1]:2000"}),
        v1_mapped=(v1("::ffff:1.2.3.4:1000", "2001:db8::1:2000"), "a", {"remote": "[::ffff:1.2.3.4]:1000"}),
        v1_unknown=(b"PROXY UNKNOWN\r\n", "a", UNCHANGED),
        v1_unknown_more=(b"PROXY UNKNOWN a b c d e f\r\n", "a", UNCHANGED),
        v1_longest=(b"PROXY UNKNOWN " + b"a" * 92 + b"\r\n", "a", UNCHANGED),
        v1_too_long=(b"PROXY UNKNOWN " + b"a" * 94 + b"\r\n", "closed"),
        v1_never_ends=(b"PROXY " + b"a" * 300, "closed"),
        v1_udp=(b"PROXY UDP4 1.2.3.4 5.6.7.8 1000 2000\r\n", "closed"),
        v1_lower=(b"proxy TCP4 1.2.3.4 5.6.7.8 1000 2000\r\n", "closed"),
        v1_bad_address=(b"PROXY TCP4 1.2.3.4 5.6.7 1000 2000\r\n", "closed"),
        v1_zeros_in_address=(b"PROXY TCP4 01.2.3.4 5.6.7.8 1000 2000\r\n", "closed"),
        v1_bad_port=(b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 70000\r\n", "closed"),
        v1_negative_port=(b"PROXY TCP4 1.2.3.4 5.6.7.8 -1 2000\r\n", "closed"),
        v1_port_0=(v1("1.2.3.4:0", "5.6.7.8:0"), "a", {"remote": "1.2.3.4:0", "local": "5.6.7.8:0"}),
        v1_zeros_in_port=(v1("1.2.3.4:0010"), "a", {"remote": "1.2.3.4:10"}),
        v1_two_spaces=(b"PROXY  TCP4 1.2.3.4 5.6.7.8 1000 2000\r\n", "closed"),
        v1_trailing_space=(b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 2000  \r\n", "a", FROM_1234),
        v1_too_many=(b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 2000 x\r\n", "closed"),
        v1_too_few=(b"PROXY TCP4 1.2.3.4 5.6.7.8 1000\r\n", "closed"),
        v1_mixed=(b"PROXY TCP4 ::1 5.6.7.8 1000 2000\r\n", "closed"),
        v1_mixed_6=(b"PROXY TCP6 1.2.3.4 5.6.7.8 1000 2000\r\n", "closed"),
        v1_any=(v1("0.0.0.0:1"), "closed"),
        v1_multicast=(v1("224.0.0.1:1"), "closed"),
        v1_broadcast=(v1("255.255.255.255:1"), "closed"),
        v1_any_v6=(v1(":::1", "2001:db8::1:1"), "closed"),
        v1_multicast_v6=(v1("ff02::1:1", "2001:db8::1:1"), "closed"),
        v1_bare_lf=(v1().replace(b"\r", b""), "stalled"),
        v1_no_end=(v1()[:-2], "stalled"),
        v1_nothing=(b"PROXY \r\n", "closed"),
        v1_brackets=(b"PROXY TCP6 [::1] 2001:db8::1 1000 2000\r\n", "closed"),
        no_header=(REQUEST, "closed", UNCHANGED),
        nothing=(Probe(), "stalled"),
        part_of_v1=(b"PROX", "stalled"),
        part_of_v2=(b"\r\n\r\n", "stalled"),
        end_too_early=(Probe(b"PROXY", end=True), "closed"),
        v2=(v2() + b"rest", "a", FROM_1234),
        v2_pieces=(Probe([v2()[:1], v2()[1:13], v2()[13:17], v2()[17:]]), "a", FROM_1234),
        v2_v6=(v2("2001:db8::2:1000", "2001:db8::1:2000"), "a", {"remote": "[2001:db8::2]:1000"}),
        v2_mapped=(
            v2("::ffff:1.2.3.4:1000", "::ffff:5.6.7.8:2000"),
            "a",
            {"remote": "[::ffff:1.2.3.4]:1000", "local": "[::ffff:5.6.7.8]:2000"},
        ),
        v2_local=(v2(command=LOCAL), "a", UNCHANGED),
        v2_local_with_tlvs=(v2(command=LOCAL, raw_tlvs=b"\xff"), "a", UNCHANGED),
        v2_local_empty=(v2(command=LOCAL, length=0)[:16], "a", UNCHANGED),
        v2_unspec=(v2(family=0, transport=0), "closed"),
        v2_unix=(v2(family=3, length=216) + bytes(204), "closed"),
        v2_datagram=(v2(transport=2), "a", FROM_1234),
        v2_no_transport=(v2(transport=0), "closed"),
        v2_other_command=(v2(command=2), "closed"),
        v2_version_1=(v2(version=1), "closed"),
        v2_too_short=(v2(length=11), "closed"),
        v2_any=(v2("0.0.0.0:1"), "closed"),
        v2_multicast=(v2(destination="239.0.0.1:1"), "closed"),
        v2_signature=(v2()[:12], "stalled"),
        v2_part=(v2()[:20], "stalled"),
        v2_wrong_signature=(v2()[:11] + b"x" + v2()[12:], "closed"),
        tlvs=(v2(tlvs=[(1, b"h2"), (2, b"x"), (5, b"u")]), "a", {"tlvs": {"alpn": "h2"}, "other_tlvs": {"authority": "x"}}),
        tlv_without_key=(v2(tlvs=[(4, b"")]), "a", {"tlvs": {"": ""}}),
        tlv_not_utf8=(v2(tlvs=[(1, b"\xff\xfea\0b")]), "a", {"tlvs": {"alpn": "!!a\0b"}}),
        tlv_utf8=(v2(tlvs=[(1, "é".encode())]), "a", {"tlvs": {"alpn": "é"}}),
        tlv_twice=(v2(tlvs=[(1, b"a"), (1, b"b")]), "a", {"tlvs": {"alpn": "a"}}),
        tlv_empty=(v2(tlvs=[(1, b"")]), "a", {"tlvs": {"alpn": ""}}),
        tlv_large=(v2(tlvs=[(1, b"a" * 65000)]), "a", FROM_1234),
        tlv_wrong_checksum=(v2(tlvs=[(3, bytes(4))]), "a", FROM_1234),
        tlv_cut_type=(v2(raw_tlvs=b"\1"), "closed"),
        tlv_cut_length=(v2(raw_tlvs=b"\1\0"), "closed"),
        tlv_cut_value=(v2(raw_tlvs=b"\1\0\5abc"), "closed"),
    ),
    *different(
        "proxy-v1-numbers", "proxy", "closed",
        v1_plus_in_port=(v1("1.2.3.4:+10"), "a"),
        v1_nul=(v1().replace(b"1.2.3.4", b"1.2.3.4\0"), "a"),
        v1_scope=(v1("fe80::1%1:1", "2001:db8::1:1"), "a"),
    ),
    *rows(
        "proxy_state",
        tlvs=(v2(tlvs=[(1, b"a"), (1, b"b")]), "a", {"tlv_state": '{"alpn":"b"}'}),
        local=(v2(command=LOCAL), "a", UNCHANGED),
    ),
    *rows(
        "proxy_optional",
        v1=(v1(), "a", FROM_1234),
        v2=(v2(), "a", FROM_1234),
        none=(REQUEST, "a", UNCHANGED),
        short=(b"GET", "a", UNCHANGED),
        part_of_v1=(b"P", "stalled"),
        part_of_v2=(b"\r\n", "stalled"),
        malformed=(b"PROXY TCP4 1.2.3.4\r\n", "closed"),
    ),
    *rows("proxy_v2", v1=(v1(), "closed"), v2=(v2(), "a"), none=(REQUEST, "closed")),
    *rows("proxy_v1", v1=(v1(), "a"), v2=(v2(), "closed"), none=(REQUEST, "closed")),
    *rows("proxy_optional_v1", v1=(v1(), "a", FROM_1234), v2=(v2(), "a", UNCHANGED), crlf=(b"\r\n", "a", UNCHANGED)),
    *rows("original", not_redirected=(Probe(), "a", UNCHANGED)),
    Row("timeout_closes", "timeout", Probe(), "closed", timed=True),
    Row("timeout_is_not_reached", "timeout", Probe(hello()), "a"),
    Row("timeout_continues", "timeout_continues", Probe(), "raw", timed=True),
    Row("timeout_continues_with_part", "timeout_continues", Probe(b"\x16\3\1"), "raw", timed=True),
    Row("timeout_continues_not_reached", "timeout_continues", Probe(hello()), "tls"),
]  # fmt: skip

IDS = [row.name for row in ROWS]
UNTIMED = [row for row in ROWS if not row.timed]


@pytest.fixture(scope="module")
def envoy() -> Iterator[Layer4Side]:
    with Layer4Side(LISTENERS, start_envoy) as side:
        yield side


@pytest.fixture(scope="module")
def subject() -> Iterator[Layer4Side]:
    if SUBJECT_IS_ENVOY:
        pytest.skip("meshproxy is not the subject")
    with Layer4Side(LISTENERS, start_meshproxy) as side:
        yield side


def test_names_are_unique() -> None:
    assert len(set(IDS)) == len(IDS)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_envoy(envoy: Layer4Side, row: Row) -> None:
    check(envoy, row, {row.answer, row.or_else or row.answer})


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_meshproxy(subject: Layer4Side, row: Row) -> None:
    check(subject, row, {row.ours or row.answer})


def check(side: Layer4Side, row: Row, answers: set[str]) -> None:
    """A connection over sockets; the log is read where there is something to compare."""
    if not row.facts:
        assert side.ask(row.listener, row.probe) in answers
        return
    facts = side.facts(row.listener, row.probe)
    assert facts["answer"] in answers
    assert {name: facts.get(name) for name in row.facts} == row.facts


@pytest.mark.skipif(SUBJECT_IS_ENVOY, reason="Envoy has no parts to try alone")
@pytest.mark.parametrize("row", UNTIMED, ids=[row.name for row in UNTIMED])
def test_filters_and_matcher_alone(row: Row) -> None:
    subject = InProcess(LISTENERS[row.listener])
    pieces = row.probe.pieces
    for cut in (pieces, [b"".join(pieces)], [bytes([byte]) for byte in b"".join(pieces)]):
        answer, accepted = subject.ask(row.probe, cut)
        assert answer == (row.ours or row.answer)
        assert known(accepted, row.facts) == row.facts


RANDOM_LISTENERS = 40
PROBES = 25


@pytest.fixture(scope="module")
def random_listeners() -> dict[str, list[Match]]:
    """Filter chains at random, the same in every run."""
    return {f"random{seed}": random_chains(random.Random(seed)) for seed in range(RANDOM_LISTENERS)}


def test_random_chains(random_listeners: dict[str, list[Match]]) -> None:
    """Envoy gives every connection the chain that our matcher gives it."""
    listeners = {
        name: Layer4Listener({f"c{index}": json.dumps(match) for index, match in enumerate(matches)}, "none", BOTH)
        for name, matches in random_listeners.items()
    }
    with Layer4Side(listeners, start_envoy) as side:
        for seed, (name, matches) in enumerate(random_listeners.items()):
            rng = random.Random(seed)
            matcher, _ = build(*matches)
            assert matcher is not None
            for _ in range(PROBES):
                accepted = random_connection(rng)
                index = matcher.find(accepted)
                assert side.ask(name, probe_of(accepted)) == ("none" if index is None else f"c{index}"), matches


def probe_of(accepted: AcceptedSocket) -> Probe:
    """The connection of which listener filters learn what stands in `accepted`."""
    data = b"plain"
    if accepted.transport_protocol == "tls":
        data = hello(accepted.server_name, *accepted.application_protocols)
    header = v1(plain_text(accepted.remote), plain_text(accepted.local))
    return Probe(header + data, source=accepted.direct_remote.ip)


def plain_text(address: Address) -> str:
    """With a port, and without brackets."""
    return f"{address.ip}:{address.port}"


class InProcess:
    """A listener's filters and matcher without a socket."""

    def __init__(self, listener: Layer4Listener) -> None:
        meshproxy.filters.builtin  # noqa: B018 - registers them
        errors = ConfigErrors()
        context = BuildContext(errors, Runtime([Layer("static", {})]), StatsRegistry())
        given = listener.message("test", Path("unused"))
        chains = [{key: value for key, value in each.items() if key != "filters"} for each in given["filter_chains"]]
        message = json_format.ParseDict(
            {"listener_filters": given["listener_filters"], "filter_chains": chains}, Listener()
        )
        self.names = [chain.name for chain in message.filter_chains]
        self.default = listener.default
        self.unix = listener.unix
        self.filters = build_filters(message.listener_filters, "listener", context)
        matcher = build_filter_chain_matcher(message.filter_chains, "listener", context)
        assert not errors, str(errors)
        assert matcher is not None
        self.matcher = matcher

    def ask(self, probe: Probe, pieces: Sequence[bytes]) -> tuple[str, AcceptedSocket]:
        """The name of the chain, "closed" or "stalled"."""
        remote = Address(probe.source, probe.source_port or 1)
        local = Address(probe.destination, 2)
        if self.unix:
            remote, local = Address("", 0, "@"), Address("", 0, "/run/test.sock")
        accepted = AcceptedSocket(None, remote, local)
        run = ListenerFilterRun(self.filters, accepted)
        verdict = run.start()
        for piece in pieces:
            if verdict == NEEDS_DATA and piece:
                verdict = run.receive(piece)
        if verdict not in (NEEDS_DATA, CLOSE):
            index = self.matcher.find(accepted)
            return (self.default if index is None else self.names[index]) or "closed", accepted
        return "closed" if verdict == CLOSE or probe.end else "stalled", accepted


def known(accepted: AcceptedSocket, facts: dict[str, Any]) -> dict[str, Any]:
    """Of the connection, what the row has facts of, in an access log's form."""
    metadata = accepted.dynamic_metadata
    state = accepted.filter_state.get("envoy.network.proxy_protocol.tlv")
    seen = {
        "sni": accepted.server_name,
        "remote": accepted.remote.text,
        "direct_remote": accepted.direct_remote.text,
        "direct_local": accepted.direct_local.text,
        "local": accepted.local.text,
        "ja3": accepted.ja3,
        "ja4": accepted.ja4,
        "failure": accepted.transport_failure_reason.replace(" ", "_"),
        "inspector": metadata.get("envoy.filters.listener.tls_inspector"),
        "tlvs": metadata.get("envoy.filters.listener.proxy_protocol"),
        "other_tlvs": metadata.get("other"),
        "tlv_state": None if state is None else str(state).replace("'", '"').replace(": ", ":"),
    }
    return {name: seen[name] for name in facts}
