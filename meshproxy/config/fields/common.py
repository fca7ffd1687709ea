"""Messages that stand everywhere: addresses, matchers, headers, data."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables

TABLES: Final[Tables] = {
    "envoy.config.core.v3.Address": MessageTable(
        "socket_address pipe", refused={"envoy_internal_address": "internal listeners are not supported"}
    ),
    "envoy.config.core.v3.SocketAddress": MessageTable(
        "address port_value ipv4_compat",
        only={"protocol": "TCP"},
        refused={
            "named_port": "a port needs a number",
            "resolver_name": "custom resolvers are not supported",
            "network_namespace_filepath": "other network namespaces are not supported",
        },
    ),
    "envoy.config.core.v3.Pipe": MessageTable("path mode"),
    "envoy.config.core.v3.CidrRange": MessageTable("address_prefix prefix_len"),
    "envoy.config.core.v3.SocketOption": MessageTable(
        "level name int_value buf_value",
        only={"state": "STATE_PREBIND"},
        ignored={"description": "is for readers", "type": "all our sockets are streams"},
    ),
    "envoy.config.core.v3.TcpKeepalive": MessageTable("keepalive_probes keepalive_time keepalive_interval"),
    "envoy.config.core.v3.Locality": MessageTable("region zone sub_zone"),
    "envoy.config.core.v3.Metadata": MessageTable(
        "filter_metadata", ignored={"typed_filter_metadata": "there is nobody to read it"}
    ),
    "envoy.config.core.v3.DataSource": MessageTable(
        "filename inline_bytes inline_string environment_variable",
        ignored={
            "watched_directory": "files that hold certificates and keys are watched themselves, through links on the "
            "way to them; other files are read when the configuration is"
        },
    ),
    "envoy.config.core.v3.TypedExtensionConfig": MessageTable("name typed_config"),
    "envoy.config.core.v3.HeaderValue": MessageTable(
        "key value", ignored={"raw_value": "is for external processors: Envoy does not look at it here either"}
    ),
    "envoy.config.core.v3.HeaderValueOption": MessageTable("header append append_action keep_empty_value"),
    "envoy.config.core.v3.RuntimeFractionalPercent": MessageTable("default_value runtime_key"),
    "envoy.config.core.v3.RuntimeFeatureFlag": MessageTable("default_value runtime_key"),
    "envoy.config.core.v3.RuntimeUInt32": MessageTable("default_value runtime_key"),
    "envoy.config.core.v3.RuntimeDouble": MessageTable("default_value runtime_key"),
    "envoy.config.core.v3.SubstitutionFormatString": MessageTable(
        "text_format json_format text_format_source omit_empty_values content_type formatters",
        ignored={"json_format_options": "properties are always sorted"},
    ),
    "envoy.type.v3.FractionalPercent": MessageTable("numerator denominator"),
    "envoy.type.v3.Percent": MessageTable("value"),
    "envoy.type.v3.Int64Range": MessageTable("start end"),
    "envoy.type.v3.DoubleRange": MessageTable("start end"),
    "envoy.type.matcher.v3.StringMatcher": MessageTable(
        "exact prefix suffix safe_regex contains ignore_case",
        refused={"custom": "custom string matchers are not supported"},
    ),
    "envoy.type.matcher.v3.ListStringMatcher": MessageTable("patterns"),
    "envoy.type.matcher.v3.RegexMatcher": MessageTable(
        "regex", ignored={"google_re2": "the engine is RE2 in any case"}
    ),
    "envoy.type.matcher.v3.RegexMatchAndSubstitute": MessageTable("pattern substitution"),
    "envoy.type.matcher.v3.MetadataMatcher": MessageTable("filter path value invert"),
    "envoy.type.matcher.v3.MetadataMatcher.PathSegment": MessageTable("key"),
    "envoy.type.matcher.v3.ValueMatcher": MessageTable("*"),
    "envoy.type.matcher.v3.ValueMatcher.NullMatch": MessageTable(),
    "envoy.type.matcher.v3.DoubleMatcher": MessageTable("*"),
    "envoy.type.matcher.v3.ListMatcher": MessageTable("*"),
    "envoy.type.matcher.v3.OrMatcher": MessageTable("*"),
    "envoy.type.matcher.v3.FilterStateMatcher": MessageTable(
        "key string_match", refused={"address_match": "only string_match is supported on filter state"}
    ),
}
