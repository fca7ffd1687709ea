"""Compiled rules decide as a plain reading of their messages does."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from meshproxy.tls.x509 import DNS, URI
from tests.rbac.support import TYPE, Asker, Peer, Yaml, build

TEXTS = ("", "a", "ab", "b", "abc")
NAMES = ("x-a", "x-b")
PATHS = ("/", "/a", "/a/b", "/ab", "/A")
IPS = ("127.0.0.1", "10.1.2.3", "10.200.0.1", "2001:db8::1", "/run/socket")
NETWORKS = (("127.0.0.0", 8), ("10.1.0.0", 16), ("10.1.2.3", 32), ("10.9.9.9", 8), ("0.0.0.0", 0), ("2001:db8::", 32))
MTLS = TYPE + "rbac.principals.mtls_authenticated.v3.Config"
TEMPLATE = TYPE + "path.match.uri_template.v3.UriTemplateMatchConfig"
PEERS = (
    None,
    Peer(((URI, "spiffe://ab"), (DNS, "b.test")), "CN=a"),
    Peer(((DNS, "ab.test"),), "CN=ab", validated=False),
    Peer((), "CN=abc"),
)

# -- conditions, as YAML has them

strings = st.one_of(
    st.builds(lambda text, case: {"exact": text, "ignore_case": case}, st.sampled_from(TEXTS), st.booleans()),
    st.builds(
        lambda kind, text, case: {kind: text, "ignore_case": case},
        st.sampled_from(["prefix", "suffix", "contains"]),
        st.sampled_from(["a", "b", "/", "A", "ab", "spiffe:"]),
        st.booleans(),
    ),
    st.sampled_from([{"safe_regex": {"regex": text}} for text in ("a.*", "[/ab]*", ".*test|CN=.")]),
)
headers = st.builds(
    lambda name, condition, invert, missing: {
        "header": {"name": name, **condition, "invert_match": invert, "treat_missing_header_as_empty": missing}
    },
    st.sampled_from(NAMES),
    st.one_of(strings.map(lambda match: {"string_match": match}), st.booleans().map(lambda on: {"present_match": on})),
    st.booleans(),
    st.booleans(),
)
paths = strings.map(lambda match: {"url_path": {"path": match}})
values = st.one_of(strings.map(lambda match: {"string_match": match}), st.just({"present_match": True}))
matchers = st.builds(
    lambda key, value, invert: {"filter": "f", "path": [{"key": key}], "value": value, "invert": invert},
    st.sampled_from(["k", "other"]),
    values,
    st.booleans(),
)
metadata = st.one_of(
    matchers.map(lambda matcher: {"metadata": matcher}),
    st.builds(
        lambda matcher, source: {"sourced_metadata": {"metadata_matcher": matcher, "metadata_source": source}},
        matchers,
        st.sampled_from(["DYNAMIC", "ROUTE"]),
    ),
)
networks = st.sampled_from([{"address_prefix": prefix, "prefix_len": length} for prefix, length in NETWORKS])
common = st.one_of(st.just({"any": True}), headers, paths, metadata)
permissions = st.recursive(
    st.one_of(
        common,
        networks.map(lambda network: {"destination_ip": network}),
        st.sampled_from([79, 80, 443]).map(lambda port: {"destination_port": port}),
        st.sampled_from([(80, 81), (1, 80), (80, 65536)]).map(
            lambda ends: {"destination_port_range": {"start": ends[0], "end": ends[1]}}
        ),
        strings.map(lambda match: {"requested_server_name": match}),
        st.sampled_from(["/a", "/*", "/**", "/{x}/b"]).map(
            lambda pattern: {
                "uri_template": {"name": "t", "typed_config": {"@type": TEMPLATE, "path_template": pattern}}
            }
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda rules: {"and_rules": {"rules": rules}}),
        st.lists(inner, min_size=1, max_size=3).map(lambda rules: {"or_rules": {"rules": rules}}),
        inner.map(lambda rule: {"not_rule": rule}),
    ),
    max_leaves=6,
)
principals = st.recursive(
    st.one_of(
        common,
        st.builds(
            lambda kind, network: {kind: network},
            st.sampled_from(["source_ip", "direct_remote_ip", "remote_ip"]),
            networks,
        ),
        st.one_of(
            st.just({"authenticated": {}}), strings.map(lambda match: {"authenticated": {"principal_name": match}})
        ),
        strings.map(lambda match: {"filter_state": {"key": "k", "string_match": match}}),
        st.just({"custom": {"name": "m", "typed_config": {"@type": MTLS, "any_validated_client_certificate": True}}}),
        st.builds(
            lambda kind, text: {
                "custom": {
                    "name": "m",
                    "typed_config": {"@type": MTLS, "san_matcher": {"san_type": kind, "matcher": {"prefix": text}}},
                }
            },
            st.sampled_from(["URI", "DNS"]),
            st.sampled_from(["a", "spiffe:", "b."]),
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda ids: {"and_ids": {"ids": ids}}),
        st.lists(inner, min_size=1, max_size=3).map(lambda ids: {"or_ids": {"ids": ids}}),
        inner.map(lambda one: {"not_id": one}),
    ),
    max_leaves=6,
)
policies = st.builds(
    lambda some, others: {"permissions": some, "principals": others},
    st.lists(permissions, min_size=1, max_size=2),
    st.lists(principals, min_size=1, max_size=2),
)
rules = st.builds(
    lambda action, named: {"action": action, "policies": named},
    st.sampled_from(["ALLOW", "DENY", "LOG"]),
    st.dictionaries(st.sampled_from(["a", "b", "B", "c", "é"]), policies, max_size=3),
)
askers = st.builds(
    Asker,
    path=st.sampled_from([None, *PATHS, *(f"{path}?a" for path in PATHS)]),
    fields=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(TEXTS)), max_size=3),
    source=st.sampled_from(IPS),
    direct=st.sampled_from(IPS),
    remote=st.sampled_from(IPS),
    destination=st.sampled_from(IPS),
    port=st.sampled_from([80, 443]),
    server_name=st.sampled_from(TEXTS),
    tls=st.sampled_from(PEERS),
    metadata=st.sampled_from([None, {"f": {"k": "ab"}}, {"f": {"k": 1.0}}]),
    route_metadata=st.sampled_from([None, {"f": {"k": "a"}}]),
    has_route=st.booleans(),
    state=st.sampled_from([None, {"k": "ab"}]),
    connection_state=st.sampled_from([None, {"k": "b"}]),
)  # fmt: skip

# -- what they mean


def text_matches(match: Yaml, text: str) -> bool:
    kind = next(key for key in match if key != "ignore_case")
    wanted = match[kind]
    if kind == "safe_regex":
        return re.fullmatch(wanted["regex"], text) is not None
    if match.get("ignore_case"):
        wanted, text = wanted.lower(), text.lower()
    if kind == "exact":
        return bool(text == wanted)
    if kind == "contains":
        return bool(wanted in text)
    return bool(text.startswith(wanted) if kind == "prefix" else text.endswith(wanted))


def header_matches(matcher: Yaml, asker: Asker) -> bool:
    given = [text for name, text in asker.fields if name == matcher["name"]]
    if not given and matcher["treat_missing_header_as_empty"]:
        given = [""]
    if "present_match" in matcher:
        return bool((bool(given) == matcher["present_match"]) != matcher["invert_match"])
    if not given:
        return False
    return any(text_matches(matcher["string_match"], text) for text in given) != bool(matcher["invert_match"])


def metadata_matches(matcher: Yaml, metadata: dict[str, Any] | None) -> bool:
    value = (metadata or {}).get("f", {}).get(matcher["path"][0]["key"])
    if value is None:
        return bool(matcher["invert"])
    wanted = matcher["value"]
    found = "present_match" in wanted or (isinstance(value, str) and text_matches(wanted["string_match"], value))
    return found != bool(matcher["invert"])


def in_network(network: Yaml, ip: str) -> bool:
    if ip.startswith("/"):
        return False
    wide = ipaddress.ip_network(f"{network['address_prefix']}/{network['prefix_len']}", strict=False)
    return ipaddress.ip_address(ip) in wide


def path_of(asker: Asker) -> str | None:
    return None if asker.path is None else asker.path.partition("?")[0]


def template_matches(pattern: str, path: str | None) -> bool:
    as_regex = {"/a": "/a", "/*": "/[^/]+", "/**": "/.*", "/{x}/b": "/[^/]+/b"}[pattern]
    return path is not None and re.fullmatch(as_regex, path) is not None


def certificate_matches(config: Yaml, tls: Peer | None) -> bool:
    if tls is None or not tls.validated:
        return False
    san = config.get("san_matcher")
    if san is None:
        return True
    kind = URI if san["san_type"] == "URI" else DNS
    return any(text_matches(san["matcher"], name) for name in tls.alt_names_of(kind))


def holds(condition: Yaml, asker: Asker) -> bool:
    """One permission or principal."""
    ((kind, inner),) = condition.items()
    path, tls = path_of(asker), asker.tls
    addresses = {
        "destination_ip": asker.destination,
        "source_ip": asker.source,
        "direct_remote_ip": asker.direct,
        "remote_ip": asker.remote,
    }
    if kind in addresses:
        return in_network(inner, addresses[kind])
    match kind:
        case "any":
            return True
        case "and_rules" | "and_ids":
            return all(holds(each, asker) for each in next(iter(inner.values())))
        case "or_rules" | "or_ids":
            return any(holds(each, asker) for each in next(iter(inner.values())))
        case "not_rule" | "not_id":
            return not holds(inner, asker)
        case "header":
            return header_matches(inner, asker)
        case "url_path":
            return path is not None and text_matches(inner["path"], path)
        case "metadata":
            return metadata_matches(inner, asker.metadata)
        case "sourced_metadata":
            if inner["metadata_source"] == "DYNAMIC":
                return metadata_matches(inner["metadata_matcher"], asker.metadata)
            return asker.has_route and metadata_matches(inner["metadata_matcher"], asker.route_metadata)
        case "destination_port":
            return not asker.destination.startswith("/") and asker.port == inner
        case "destination_port_range":
            return not asker.destination.startswith("/") and inner["start"] <= asker.port < inner["end"]
        case "requested_server_name":
            return text_matches(inner, asker.server_name)
        case "uri_template":
            return template_matches(inner["typed_config"]["path_template"], path)
        case "authenticated":
            if tls is None or not inner:
                return tls is not None
            names = [*tls.alt_names_of(URI), *tls.alt_names_of(DNS), tls.subject]
            return any(text_matches(inner["principal_name"], name) for name in names)
        case "filter_state":
            value = (asker.state or {}).get("k") or (asker.connection_state or {}).get("k")
            return value is not None and text_matches(inner["string_match"], value)
        case "custom":
            return certificate_matches(inner["typed_config"], tls)
    raise AssertionError(kind)


def decide(message: Yaml, asker: Asker) -> tuple[bool, str]:
    """Whether it is allowed, and the policy that says so."""
    matched = ""
    for name in sorted(message["policies"], key=str.encode):
        one = message["policies"][name]
        if any(holds(each, asker) for each in one["permissions"]) and any(
            holds(each, asker) for each in one["principals"]
        ):
            matched = name
            break
    allowed = {"ALLOW": matched != "", "DENY": matched == "", "LOG": True}[message["action"]]
    return allowed, matched


@given(rules, st.lists(askers, min_size=1, max_size=4))
def test_rules(message: Yaml, asking: list[Asker]) -> None:
    engine = build(message)
    for asker in asking:
        verdict = engine.evaluate(asker.access())
        assert (verdict.allowed, verdict.policy) == decide(message, asker)


@given(permissions, askers)
def test_permission(permission: Yaml, asker: Asker) -> None:
    one = {"policies": {"p": {"permissions": [permission], "principals": [{"any": True}]}}}
    assert build(one).evaluate(asker.access()).allowed == holds(permission, asker)


@given(principals, askers)
def test_principal(principal: Yaml, asker: Asker) -> None:
    one = {"policies": {"p": {"permissions": [{"any": True}], "principals": [principal]}}}
    assert build(one).evaluate(asker.access()).allowed == holds(principal, asker)
