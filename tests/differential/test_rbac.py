"""Role based access control of requests: who gets in, and what answers, logs, metadata and stats tell of it."""

import json
from typing import Any

from tests.differential.cases import Case, Connect, Receive, get, post, request
from tests.differential.pair import Pair, Side
from tests.differential.test_filters import PREFIX, ROUTE, filters
from tests.differential.test_sidecar_filters import log
from tests.differential.test_stats import values
from tests.differential.topic import Topic

RBAC = PREFIX + "rbac.v3.RBAC"
PER_ROUTE = PREFIX + "rbac.v3.RBACPerRoute"
EXTENSION = "type.googleapis.com/envoy.extensions."
NAMESPACE = "envoy.filters.http.rbac"
TOLD = log(
    "%RESPONSE_CODE%",
    "%RESPONSE_CODE_DETAILS%",
    f"%DYNAMIC_METADATA({NAMESPACE})%",
    "%DYNAMIC_METADATA(envoy.common)%",
)
ANY = {"any": True}
Yaml = dict[str, Any]


def policy(permissions: list[Yaml] | Yaml = ANY, principals: list[Yaml] | Yaml = ANY) -> Yaml:
    """A policy; one of each need not be a list."""
    return {
        "permissions": permissions if isinstance(permissions, list) else [permissions],
        "principals": principals if isinstance(principals, list) else [principals],
    }


def rules(action: str = "ALLOW", **policies: Yaml) -> Yaml:
    """An RBAC."""
    return {"action": action, "policies": policies}


def on_route(route: str = ROUTE, **fields: Any) -> str:
    """A route whose filter has these fields of RBAC; none: it is not asked."""
    message: Yaml = {"@type": PER_ROUTE} | ({"rbac": fields} if fields else {})
    return f"{route}typed_per_filter_config: {json.dumps({'rbac': message})}\n"


def rbac(**fields: Any) -> str:
    """The filter."""
    return json.dumps({"name": "rbac", "typed_config": {"@type": RBAC} | fields})


def header(name: str, **fields: Any) -> Yaml:
    """A condition on a header."""
    return {"header": {"name": name} | fields}


def text(**match: Any) -> Yaml:
    """A string_match."""
    return {"string_match": match}


def path(**match: Any) -> Yaml:
    """A url_path."""
    return {"url_path": {"path": match}}


def template(pattern: str) -> Yaml:
    """A uri_template."""
    kind = EXTENSION + "path.match.uri_template.v3.UriTemplateMatchConfig"
    name = "envoy.path.match.uri_template.uri_template_matcher"
    return {"uri_template": {"name": name, "typed_config": {"@type": kind, "path_template": pattern}}}


def cidr(kind: str, address: str, length: int | None) -> Yaml:
    """A condition on an address."""
    return {kind: {"address_prefix": address} | ({} if length is None else {"prefix_len": length})}


def metadata(namespace: str, key: str, value: Yaml, *, invert: bool = False) -> Yaml:
    """A MetadataMatcher."""
    return {"filter": namespace, "path": [{"key": key}], "value": value, "invert": invert}


def decided(
    name: str, permission: list[Yaml] | Yaml, *headers: tuple[str, str], target: str = "/p", listener: str = "rbac"
) -> Case:
    """Whether a request has this permission."""
    return Case(name, get(target, *headers), route=on_route(rules=rules(p=policy(permission))), listener=listener)


def identified(name: str, principal: list[Yaml] | Yaml, *headers: tuple[str, str], listener: str = "rbac") -> Case:
    """Whether a request comes from this principal."""
    route = on_route(rules=rules(p=policy(ANY, principal)))
    return Case(name, get("/p", *headers), route=route, listener=listener)


NEVER = {"not_rule": ANY}
NOBODY = {"not_id": ANY}
POLICIES: dict[str, dict[str, Yaml]] = {
    "matched": {"p": policy()},
    "not_matched": {"p": policy(NEVER)},
    "empty": {},
    "first_by_name": {"b": policy(), "a": policy(), "c": policy()},
    "second_by_name": {"a": policy(NEVER), "B": policy(principals=NOBODY), "b": policy(), "c": policy()},
    "capitals_first": {"a": policy(), "Z": policy()},
    "name_with_blanks": {"a b  c\td": policy()},
    "name_of_istio": {"ns[foo]-policy[bar]-rule[0]": policy()},
    "name_with_unicode": {"zürich": policy(), "zu": policy(NEVER)},
    "name_with_colon": {"a:b": policy()},
}
ACTIONS = [
    Case(f"{action.lower()}_{name}", get("/p"), route=on_route(rules=rules(action, **policies)), listener="rbac")
    for action in ("ALLOW", "DENY", "LOG")
    for name, policies in POLICIES.items()
]
BESIDE: dict[str, dict[str, Any]] = {
    "shadow_only": {"shadow_rules": rules(s=policy())},
    "shadow_denies": {"shadow_rules": rules(s=policy(NEVER))},
    "shadow_deny_matched": {"shadow_rules": rules("DENY", s=policy())},
    "shadow_logs": {"shadow_rules": rules("LOG", s=policy())},
    "both": {"rules": rules(r=policy()), "shadow_rules": rules("DENY", s=policy())},
    "both_denied": {"rules": rules("DENY", r=policy()), "shadow_rules": rules(s=policy())},
    "own_prefixes": {
        "rules": rules(r=policy()),
        "rules_stat_prefix": "own_",
        "shadow_rules": rules(s=policy()),
        "shadow_rules_stat_prefix": "own.shadow.",
    },
    "counted": {
        "rules": rules("DENY", r=policy()),
        "shadow_rules": rules(s=policy()),
        "track_per_rule_stats": True,
    },
    "counted_allowed": {
        "rules": rules("ALLOW", **{"a:b c.d": policy()}),
        "shadow_rules": rules("DENY", s=policy()),
        "track_per_rule_stats": True,
    },
    "counted_none": {"rules": rules(), "shadow_rules": rules(), "track_per_rule_stats": True},
}
SHADOWS = [
    Case(f"{listener}_{name}", get("/p"), route=on_route(**fields), listener=listener)
    for listener in ("rbac", "prefixed")
    for name, fields in BESIDE.items()
]
ROUTES = [
    Case("filters_own_rules", get("/p"), route=ROUTE, listener="denies"),
    Case("route_is_not_asked", get("/p"), route=on_route(), listener="denies"),
    Case("route_with_empty_rbac", get("/p"), route=on_route(rules_stat_prefix="x"), listener="denies"),
    Case("no_route_at_all", get("/p"), route="match: { prefix: /other }\nroute: { cluster: a }", listener="denies"),
    Case("no_route_allowed", get("/p"), route="match: { prefix: /other }\nroute: { cluster: a }", listener="rbac"),
    Case(
        "direct_response",
        get("/p"),
        route=on_route("match: { prefix: / }\ndirect_response: { status: 201 }\n", rules=rules()),
        listener="rbac",
    ),
    Case(
        "redirect",
        get("/p"),
        route=on_route("match: { prefix: / }\nredirect: { path_redirect: /q }\n", rules=rules()),
        listener="rbac",
    ),
    Case(
        "virtual_host",
        get("/p"),
        route=ROUTE,
        vhost=f"typed_per_filter_config: {json.dumps({'rbac': {'@type': PER_ROUTE, 'rbac': {'rules': rules()}}})}",
        listener="rbac",
    ),
    Case(
        "route_over_virtual_host",
        get("/p"),
        route=on_route(rules=rules(r=policy())),
        vhost=f"typed_per_filter_config: {json.dumps({'rbac': {'@type': PER_ROUTE, 'rbac': {'rules': rules()}}})}",
        listener="rbac",
    ),
]
ROUTES += [Case(f"two_filters_{name}", get(f"/{name}"), route=ROUTE, listener="twice") for name in ("p", "q", "other")]
ROUTES.append(Case("two_filters_on_route", get("/q"), route=on_route(rules=rules("LOG", p=policy())), listener="twice"))
HEADERS = [
    decided("header_exact", header("x-a", **text(exact="1")), ("x-a", "1")),
    decided("header_exact_other", header("x-a", **text(exact="1")), ("x-a", "2")),
    decided("header_missing", header("x-a", **text(exact="1"))),
    decided("header_missing_inverted", header("x-a", invert_match=True, **text(exact="1"))),
    decided("header_missing_not_rule", {"not_rule": header("x-a", **text(exact="1"))}),
    decided("header_missing_as_empty", header("x-a", treat_missing_header_as_empty=True, **text(exact=""))),
    decided(
        "header_missing_as_empty_inverted",
        header("x-a", treat_missing_header_as_empty=True, invert_match=True, **text(exact="1")),
    ),
    decided("header_inverted", header("x-a", invert_match=True, **text(exact="1")), ("x-a", "2")),
    decided("header_inverted_same", header("x-a", invert_match=True, **text(exact="1")), ("x-a", "1")),
    decided("header_present", header("x-a", present_match=True), ("x-a", "")),
    decided("header_present_missing", header("x-a", present_match=True)),
    decided("header_absent", header("x-a", present_match=False)),
    decided("header_absent_there", header("x-a", present_match=False), ("x-a", "1")),
    decided("header_range", header("x-a", range_match={"start": 1, "end": 5}), ("x-a", "4")),
    decided("header_range_end", header("x-a", range_match={"start": 1, "end": 5}), ("x-a", "5")),
    decided("header_regex", header("x-a", **text(safe_regex={"regex": "[a-c]+"})), ("x-a", "abc")),
    decided("header_regex_part", header("x-a", **text(safe_regex={"regex": "[a-c]+"})), ("x-a", "abcd")),
    decided("header_ignoring_case", header("x-a", **text(prefix="AB", ignore_case=True)), ("x-a", "abc")),
    decided("header_method", header(":method", **text(exact="GET"))),
    decided("header_path_has_query", header(":path", **text(exact="/p?q=1")), target="/p?q=1"),
    decided("header_authority", header(":authority", **text(exact="header-authority.test"))),
    decided("header_host", header("host", **text(exact="header-host.test"))),
    decided("header_scheme", header(":scheme", **text(exact="http"))),
    *(
        decided(f"headers_{name}_{order}", header("x-a", **fields), *(("x-a", value) for value in given))
        for name, fields in {
            "exact": text(exact="1"),
            "joined": text(exact="1,2"),
            "suffix": text(suffix="2"),
            "inverted": {"invert_match": True} | text(exact="1"),
            "joined_inverted": {"invert_match": True} | text(exact="1,2"),
            "present": {"present_match": True},
            "absent": {"present_match": False},
            "present_inverted": {"present_match": True, "invert_match": True},
            "range": {"range_match": {"start": 2, "end": 3}},
        }.items()
        for order, given in {"12": ("1", "2"), "21": ("2", "1"), "11": ("1", "1"), "one": ("1,2",)}.items()
    ),
    decided("cookies", header("cookie", **text(exact="a=1; b=2")), ("cookie", "a=1"), ("cookie", "b=2")),
    identified("principal_header", header("x-a", **text(exact="1")), ("x-a", "1")),
    identified("principal_header_not", {"not_id": header("x-a", **text(exact="1"))}, ("x-a", "1")),
]
PATHS = [
    decided("path_exact", path(exact="/p")),
    decided("path_exact_query", path(exact="/p"), target="/p?q=/x"),
    decided("path_query_is_no_part", path(contains="q="), target="/p?q=/x"),
    decided("path_suffix", path(suffix="/x"), target="/p?q=/x"),
    decided("path_prefix_case", path(prefix="/P", ignore_case=True)),
    decided("path_regex", path(safe_regex={"regex": "/p/[0-9]+"}), target="/p/12?x"),
    decided("path_encoded", path(exact="/p q"), target="/p%20q"),
    decided("path_as_sent", path(exact="/a/../p"), target="/a/../p"),
    decided("path_as_normalized", path(exact="/p"), target="/a/../p"),
    decided("path_normalized", path(exact="/p"), target="/a/..//p", listener="normalizes"),
    decided("path_unescaped", path(exact="/a/p"), target="/a%2Fp", listener="normalizes"),
    decided("path_double_slash", path(exact="/p"), target="//p"),
    decided("path_parameter", path(exact="/p"), target="/p;x=1"),
    decided("path_absolute", path(exact="/p"), target="http://path-absolute.test/p?x"),
    identified("principal_path", path(exact="/p")),
    decided("template", template("/p/{id}"), target="/p/7"),
    decided("template_query", template("/p/{id}"), target="/p/7?x=/y"),
    decided("template_rest", template("/p/**"), target="/p/7/8"),
    decided("template_other", template("/p/*"), target="/p/7/8"),
]
XFF = ("x-forwarded-for", "10.1.2.3")
ADDRESSES = [
    identified("source", cidr("source_ip", "127.0.0.0", 8)),
    identified("source_other", cidr("source_ip", "128.0.0.0", 8)),
    identified("source_all", cidr("source_ip", "1.2.3.4", 0)),
    identified("source_without_length", cidr("source_ip", "127.0.0.1", None)),
    identified("source_with_host_bits", cidr("source_ip", "127.9.9.9", 8)),
    identified("source_v6_all", cidr("source_ip", "::", 0)),
    identified("source_mapped", cidr("source_ip", "::ffff:127.0.0.1", 128)),
    *(
        identified(f"{kind}_forwarded_{listener}", cidr(kind, "10.1.0.0", 16), XFF, listener=listener)
        for kind in ("source_ip", "direct_remote_ip", "remote_ip")
        for listener in ("rbac", "forwarded")
    ),
    identified("remote_v6", cidr("remote_ip", "2001:db8::", 32), (XFF[0], "2001:db8::7"), listener="forwarded"),
    identified("remote_v6_other", cidr("remote_ip", "2001:db8::", 32), (XFF[0], "2001:db9::7"), listener="forwarded"),
    identified("remote_mapped", cidr("remote_ip", "10.1.0.0", 16), (XFF[0], "::ffff:10.1.2.3"), listener="forwarded"),
    identified("remote_bad", cidr("remote_ip", "127.0.0.0", 8), (XFF[0], "10.1.2"), listener="forwarded"),
    decided("destination", cidr("destination_ip", "127.0.0.1", 32)),
    decided("destination_other", cidr("destination_ip", "127.0.0.2", 32)),
    decided("port_other", {"destination_port": 1}),
    decided("port_range", {"destination_port_range": {"start": 1, "end": 65536}}),
    decided("port_range_other", {"destination_port_range": {"start": 1, "end": 2}}),
    decided("server_name_none", {"requested_server_name": {"exact": ""}}),
    decided("server_name_other", {"requested_server_name": {"exact": "a.test"}}),
]
SETS = [
    decided("and_true", {"and_rules": {"rules": [ANY, path(exact="/p")]}}),
    decided("and_false", {"and_rules": {"rules": [ANY, NEVER]}}),
    decided("or_true", {"or_rules": {"rules": [NEVER, path(exact="/p")]}}),
    decided("or_false", {"or_rules": {"rules": [NEVER, NEVER]}}),
    decided("not_not", {"not_rule": {"not_rule": path(exact="/p")}}),
    decided("permissions_are_alternatives", [NEVER, path(exact="/p")]),
    identified("principals_are_alternatives", [NOBODY, ANY]),
    identified("and_ids", {"and_ids": {"ids": [ANY, NOBODY]}}),
    identified("or_ids", {"or_ids": {"ids": [NOBODY, ANY]}}),
    identified("authenticated_on_plaintext", {"authenticated": {}}),
    identified("not_authenticated_on_plaintext", {"not_id": {"authenticated": {}}}),
]
TEXT_1 = {"string_match": {"exact": "1"}}
METADATA = [
    *(
        Case(
            f"{source}_metadata_{name}",
            get("/p", ("x-user", "1")),
            route=on_route(
                "match: { prefix: / }\nroute: { cluster: a }\nmetadata: { filter_metadata: { app: { route: '1' } } }\n",
                rules=rules(p=policy(condition)),
            ),
            listener="metadata",
        )
        for source, kind in {"plain": None, "dynamic": "DYNAMIC", "route": "ROUTE"}.items()
        for name, matcher in {
            "user": metadata("app", "user", TEXT_1),
            "user_other": metadata("app", "user", {"string_match": {"exact": "2"}}),
            "user_inverted": metadata("app", "user", TEXT_1, invert=True),
            "route": metadata("app", "route", TEXT_1),
            "route_inverted": metadata("app", "route", TEXT_1, invert=True),
            "missing": metadata("none", "route", TEXT_1),
            "missing_inverted": metadata("none", "route", TEXT_1, invert=True),
            "present": metadata("app", "user", {"present_match": True}),
        }.items()
        for condition in [
            {"metadata": matcher}
            if kind is None
            else {"sourced_metadata": {"metadata_matcher": matcher, "metadata_source": kind}}
        ]
    ),
    Case(
        "no_route_metadata_inverted",
        get("/p"),
        route="match: { prefix: /other }\nroute: { cluster: a }",
        listener="route_metadata",
    ),
    identified(
        "principal_metadata", {"metadata": metadata("app", "user", TEXT_1)}, ("x-user", "1"), listener="metadata"
    ),
    identified("filter_state_missing", {"filter_state": {"key": "k", "string_match": {"exact": ""}}}),
    identified("not_filter_state_missing", {"not_id": {"filter_state": {"key": "k", "string_match": {"exact": ""}}}}),
]
DENIED = on_route(rules=rules("DENY", p=policy()))
FORMS = [
    Case("denied_head", request("HEAD", "/p"), route=DENIED, listener="rbac", methods=(b"HEAD",)),
    Case("denied_with_body", post("/p", b"hello"), route=DENIED, listener="rbac"),
    Case("denied_grpc", post("/s/m", b"", ("content-type", "application/grpc")), route=DENIED, listener="rbac"),
    Case(
        "denied_websocket",
        get("/p", ("connection", "upgrade"), ("upgrade", "websocket")),
        route=DENIED,
        listener="upgrades",
    ),
    Case(
        "denied_connect",
        request("CONNECT", "$HOST:443"),
        route=on_route(
            "match: { connect_matcher: {} }\nroute: { cluster: a, upgrade_configs: [{ upgrade_type: CONNECT }] }\n",
            rules=rules("ALLOW", p=policy(path(prefix="/"))),
        ),
        listener="upgrades",
        probe=False,
    ),
    Case(
        "denied_twice",
        (get("/p"), Receive(), get("/p"), Receive(), Connect(), get("/p"), Receive()),
        route=DENIED,
        listener="rbac",
    ),
]

SET_METADATA = json.dumps(
    {
        "name": "to_metadata",
        "typed_config": {
            "@type": PREFIX + "header_to_metadata.v3.Config",
            "request_rules": [
                {"header": "x-user", "on_header_present": {"metadata_namespace": "app", "key": "user"}, "remove": False}
            ],
        },
    }
)
NORMALIZES = "\nnormalize_path: true\nmerge_slashes: true\npath_with_escaped_slashes_action: UNESCAPE_AND_FORWARD"
TOPIC = Topic(
    cases=[*ACTIONS, *SHADOWS, *ROUTES, *HEADERS, *PATHS, *ADDRESSES, *SETS, *METADATA, *FORMS],
    listeners={
        "rbac": filters(rbac()) + TOLD,
        "prefixed": filters(rbac(rules_stat_prefix="enforced.", shadow_rules_stat_prefix="dry_run_")) + TOLD,
        "denies": filters(rbac(rules=rules())) + TOLD,
        "twice": filters(
            rbac(rules=rules("DENY", q=policy(path(exact="/q")))), rbac(rules=rules(p=policy(path(prefix="/p"))))
        )
        + TOLD,
        "normalizes": filters(rbac()) + TOLD + NORMALIZES,
        "forwarded": filters(rbac()) + TOLD + "\nuse_remote_address: false\nxff_num_trusted_hops: 0",
        "metadata": filters(SET_METADATA, rbac()) + TOLD,
        "route_metadata": filters(
            rbac(
                rules=rules(
                    p=policy(
                        {
                            "sourced_metadata": {
                                "metadata_matcher": metadata("app", "route", TEXT_1, invert=True),
                                "metadata_source": "ROUTE",
                            }
                        }
                    )
                )
            )
        )
        + TOLD,
        "upgrades": filters(rbac())
        + TOLD
        + "\nupgrade_configs: [{ upgrade_type: websocket }, { upgrade_type: CONNECT }]",
    },
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def counted(side: Side) -> dict[str, int]:
    """The counters of the filters."""
    return {name: value for name, value in values(side, "http.").items() if name.split(".")[2] == "rbac"}


def test_stats(pair: Pair) -> None:
    for case in (*ROUTES, *SHADOWS):
        pair.run(case)
    expected = counted(pair.reference)
    assert expected["http.denies.rbac.denied"] > 0
    assert expected["http.prefixed.rbac.enforced.policy.r.denied"] > 0
    assert counted(pair.subject) == expected
