"""The local rate limit filters: how many requests and connections pass, what is answered to the others, what is counted."""

import pytest

from tests.differential.cases import Case, Connect, Receive, get, post, request
from tests.differential.pair import Pair, Side
from tests.differential.test_filters import PREFIX, ROUTE, filters, per_route
from tests.differential.test_stats import values
from tests.differential.topic import Topic

KIND = "local_ratelimit.v3.LocalRateLimit"
ON = "{ default_value: { numerator: 100 } }"
OFF = "{ default_value: { numerator: 0 } }"
ENABLED = f"filter_enabled: {ON}"
BOTH = f"{ENABLED}, filter_enforced: {ON}"
HEADERS = "enable_x_ratelimit_headers: DRAFT_VERSION_03"
NEVER = "1000000s"
CLUSTER = "match: { prefix: / }\nroute: { cluster: a, "


def bucket(tokens: int, interval: str = NEVER, per_fill: int = 1) -> str:
    """A bucket that is not filled again while a test runs."""
    return f"token_bucket: {{ max_tokens: {tokens}, tokens_per_fill: {per_fill}, fill_interval: {interval} }}"


def limit(name: str, *fields: str) -> str:
    """A LocalRateLimit on a route, with stats of its own."""
    return per_route("limit", KIND, ", ".join((f"stat_prefix: {name}", *fields)))


def descriptors(*entries: tuple[str, int], more: str = "") -> str:
    """`descriptors`: entries as `key=value/key=value`, each with the tokens of its bucket."""
    return f"descriptors: [{', '.join(descriptor(text, tokens) for text, tokens in entries)}]{more}"


def descriptor(text: str, tokens: int) -> str:
    pairs = [pair.partition("=") for pair in text.split("|")]
    listed = ", ".join(f"{{ key: '{key}', value: '{value}' }}" for key, _, value in pairs)
    return f"{{ entries: [{listed}], {bucket(tokens)} }}"


def actions(*each: str, more: str = "") -> str:
    """A RateLimit."""
    return f"{{ actions: [{', '.join(f'{{ {one} }}' for one in each)}]{more} }}"


def limits(*each: str) -> str:
    """`rate_limits`."""
    return f"rate_limits: [{', '.join(each)}]"


def times(count: int, one: bytes) -> tuple[bytes | Receive, ...]:
    """A request so often."""
    return tuple(step for _ in range(count) for step in (one, Receive()))


def embedded(name: str, tokens: tuple[tuple[str, int], ...], *rates: str, more: str = "") -> str:
    """A route whose filter has descriptors and rate limits of its own."""
    return ROUTE + limit(name, BOTH, bucket(100), HEADERS, descriptors(*tokens), limits(*rates)) + more


GENERIC = "generic_key: { descriptor_value: v }"
BY_USER = "request_headers: { header_name: x-user, descriptor_key: user }"
ANN = ("x-user", "ann")
BOB = ("x-user", "bob")

PLAIN = [
    Case("none", times(2, get()), route=ROUTE, listener="limit"),
    Case("one_of_two", times(2, get()), route=ROUTE + limit("two", BOTH, bucket(1)), listener="limit"),
    Case(
        "one_of_two_direct",
        times(2, get()),
        route="match: { prefix: / }\ndirect_response: { status: 200 }\n" + limit("direct", BOTH, bucket(1)),
        listener="limit",
    ),
    Case("three_of_five", times(5, get()), route=ROUTE + limit("five", BOTH, bucket(3)), listener="limit"),
    Case(
        "headers",
        times(3, get()),
        route=ROUTE + limit("headers", BOTH, bucket(2), HEADERS),
        listener="limit",
    ),
    Case(
        "headers_fast",
        times(1, get()),
        route=ROUTE + limit("fast", BOTH, bucket(1, "0.9s", 1), HEADERS),
        listener="limit",
    ),
    Case(
        "headers_10s",
        times(3, get()),
        route=ROUTE + limit("tens", BOTH, bucket(2, "10s", 1), HEADERS),
        listener="limit",
    ),
    Case(
        "headers_direct",
        times(2, get()),
        route="match: { prefix: / }\ndirect_response: { status: 200 }\n" + limit("hdirect", BOTH, bucket(1), HEADERS),
        listener="limit",
    ),
    Case("post", times(2, post()), route=ROUTE + limit("post", BOTH, bucket(1)), listener="limit"),
    Case(
        "head",
        (get(), Receive(), request("HEAD", "/"), Receive()),
        methods=(b"GET", b"HEAD"),
        route=ROUTE + limit("head", BOTH, bucket(1)),
        listener="limit",
    ),
    Case("not_enabled", times(2, get()), route=ROUTE + limit("disabled", bucket(1), HEADERS), listener="limit"),
    Case(
        "enabled_0",
        times(2, get()),
        route=ROUTE + limit("off0", f"filter_enabled: {OFF}, filter_enforced: {ON}", bucket(1), HEADERS),
        listener="limit",
    ),
    Case(
        "not_enforced",
        times(2, get()),
        route=ROUTE
        + limit(
            "shadow",
            ENABLED,
            bucket(1),
            HEADERS,
            "request_headers_to_add_when_not_enforced: [{ header: { key: x-limited, value: 'yes %REQ(:path)%' } }], response_headers_to_add: [{ header: { key: x-never, value: never } }]",
        ),
        listener="limit",
    ),
    Case(
        "status",
        times(2, get()),
        route=ROUTE + limit("status", BOTH, bucket(1), "status: { code: ServiceUnavailable }"),
        listener="limit",
    ),
    Case(
        "status_below_400",
        times(2, get()),
        route=ROUTE + limit("statuslow", BOTH, bucket(1), "status: { code: Found }"),
        listener="limit",
    ),
    Case(
        "status_unset",
        times(2, get()),
        route=ROUTE + limit("statusunset", BOTH, bucket(1), "status: { code: BadRequest }"),
        listener="limit",
    ),
    Case(
        "response_headers",
        times(2, get("/p")),
        route=ROUTE
        + limit(
            "add",
            BOTH,
            bucket(1),
            "response_headers_to_add: [{ header: { key: x-local-rate-limit, value: 'true' } }, { header: { key: x-path, value: '%REQ(:path)%' } }, "
            "{ header: { key: x-flags, value: '%RESPONSE_FLAGS%' } }, { header: { key: content-type, value: text/html }, append_action: OVERWRITE_IF_EXISTS_OR_ADD }]",
        ),
        listener="limit",
    ),
    Case(
        "grpc",
        times(2, post("/s/m", b"", ("content-type", "application/grpc"))),
        route=ROUTE + limit("grpc", BOTH, bucket(1)),
        listener="limit",
    ),
    Case(
        "grpc_exhausted",
        times(2, post("/s/m", b"", ("content-type", "application/grpc"))),
        route=ROUTE + limit("grpcex", BOTH, bucket(1), "rate_limited_as_resource_exhausted: true"),
        listener="limit",
    ),
    Case(
        "exhausted_not_grpc",
        times(2, get()),
        route=ROUTE + limit("ex", BOTH, bucket(1), "rate_limited_as_resource_exhausted: true"),
        listener="limit",
    ),
    Case("vhost", times(2, get()), route=ROUTE, vhost=limit("vhost", BOTH, bucket(1)), listener="limit"),
    Case(
        "route_over_vhost",
        times(3, get()),
        route=ROUTE + limit("over", BOTH, bucket(2)),
        vhost=limit("under", BOTH, bucket(1)),
        listener="limit",
    ),
    Case(
        "per_connection",
        (*times(2, get()), Connect(), *times(2, get())),
        route=ROUTE + limit("percx", BOTH, bucket(1), "local_rate_limit_per_downstream_connection: true", HEADERS),
        listener="limit",
    ),
    Case(
        "per_connection_first_wins",
        (*times(1, get("/a")), *times(3, get("/b"))),
        route="\n".join(
            "- "
            + (
                f"match: {{ prefix: /{path} }}\nroute: {{ cluster: a }}\n"
                + limit(f"cx{path}", BOTH, bucket(tokens), "local_rate_limit_per_downstream_connection: true")
            ).replace("\n", "\n  ")
            for path, tokens in (("a", 3), ("b", 9))
        ),
        listener="limit",
    ),
    Case("filter_itself", times(3, get()), route=ROUTE, listener="own"),
    Case(
        "no_route",
        times(1, get("/none")),
        route="match: { path: /some }\nroute: { cluster: a }",
        listener="own_no_route",
    ),
]

DESCRIPTORS = [
    Case(
        "generic",
        times(3, get()),
        route=embedded("generic", (("generic_key=v", 2),), actions(GENERIC)),
        listener="limit",
    ),
    Case(
        "generic_key",
        times(3, get()),
        route=embedded("generickey", (("k=v", 2),), actions("generic_key: { descriptor_key: k, descriptor_value: v }")),
        listener="limit",
    ),
    Case(
        "generic_other",
        times(2, get()),
        route=embedded("genother", (("generic_key=w", 1),), actions(GENERIC)),
        listener="limit",
    ),
    Case(
        "by_user",
        (*times(2, get("/", ANN)), *times(2, get("/", BOB)), *times(1, get())),
        route=embedded("user", (("user=ann", 1),), actions(BY_USER)),
        listener="limit",
    ),
    Case(
        "two_entries",
        (*times(2, get("/", ANN)), *times(1, get("/", BOB))),
        route=embedded("twoe", (("user=ann|generic_key=v", 1),), actions(BY_USER, GENERIC)),
        listener="limit",
    ),
    Case(
        "two_entries_other_order",
        times(2, get("/", ANN)),
        route=embedded("order", (("user=ann|generic_key=v", 1),), actions(GENERIC, BY_USER)),
        listener="limit",
    ),
    Case(
        "skip_if_absent",
        times(2, get()),
        route=embedded(
            "skip",
            (("generic_key=v", 1),),
            actions("request_headers: { header_name: x-user, descriptor_key: user, skip_if_absent: true }", GENERIC),
        ),
        listener="limit",
    ),
    Case(
        "only_absent",
        times(2, get()),
        route=embedded(
            "absent",
            (("generic_key=v", 1),),
            actions("request_headers: { header_name: x-user, descriptor_key: user, skip_if_absent: true }"),
        ),
        listener="limit",
    ),
    Case(
        "empty_header",
        times(2, get("/", ("x-user", ""))),
        route=embedded("empty", (("user=", 1),), actions(BY_USER)),
        listener="limit",
    ),
    Case(
        "path_header",
        times(2, get("/q?x")),
        route=embedded(
            "path", (("p=/q?x", 1),), actions("request_headers: { header_name: ':path', descriptor_key: p }")
        ),
        listener="limit",
    ),
    Case(
        "two_values",
        times(2, get("/", ANN, BOB)),
        route=embedded("values", (("user=ann", 1),), actions(BY_USER)),
        listener="limit",
    ),
    Case(
        "header_match",
        (*times(2, get("/", ANN)), *times(1, get("/", BOB))),
        route=embedded(
            "hmatch",
            (("header_match=is-ann", 1),),
            actions(
                "header_value_match: { descriptor_value: is-ann, headers: [{ name: x-user, string_match: { exact: ann } }] }"
            ),
        ),
        listener="limit",
    ),
    Case(
        "header_not_match",
        (*times(1, get("/", ANN)), *times(2, get("/", BOB))),
        route=embedded(
            "hnmatch",
            (("k=other", 1),),
            actions(
                "header_value_match: { descriptor_key: k, descriptor_value: other, expect_match: false, headers: [{ name: x-user, string_match: { exact: ann } }] }"
            ),
        ),
        listener="limit",
    ),
    Case(
        "query_match",
        (*times(2, get("/?a=1")), *times(1, get("/?a=2")), *times(1, get("/"))),
        route=embedded(
            "qmatch",
            (("query_match=one", 1),),
            actions(
                "query_parameter_value_match: { descriptor_value: one, query_parameters: [{ name: a, string_match: { exact: '1' } }] }"
            ),
        ),
        listener="limit",
    ),
    Case(
        "query_match_encoded",
        (*times(2, get("/?a=%41")), *times(1, get("/?a=A"))),
        route=embedded(
            "qenc",
            (("query_match=one", 1),),
            actions(
                "query_parameter_value_match: { descriptor_value: one, query_parameters: [{ name: a, string_match: { exact: 'A' } }] }"
            ),
        ),
        listener="limit",
    ),
    Case(
        "query_parameters",
        (*times(2, get("/?a=%41&a=2")), *times(1, get("/?b=1")), *times(1, get("/"))),
        route=embedded(
            "qparam", (("q=A", 1),), actions("query_parameters: { query_parameter_name: a, descriptor_key: q }")
        ),
        listener="limit",
    ),
    Case(
        "query_parameters_raw",
        times(2, get("/?a=%41")),
        route=embedded(
            "qraw", (("q=%41", 1),), actions("query_parameters: { query_parameter_name: a, descriptor_key: q }")
        ),
        listener="limit",
    ),
    Case(
        "query_parameters_skip",
        times(2, get("/?b=1")),
        route=embedded(
            "qskip",
            (("generic_key=v", 1),),
            actions("query_parameters: { query_parameter_name: a, descriptor_key: q, skip_if_absent: true }", GENERIC),
        ),
        listener="limit",
    ),
    Case(
        "query_parameters_empty",
        times(2, get("/?a=")),
        route=embedded(
            "qempty", (("q=", 1),), actions("query_parameters: { query_parameter_name: a, descriptor_key: q }")
        ),
        listener="limit",
    ),
    Case(
        "query_plus",
        times(2, get("/?a=x+y")),
        route=embedded(
            "qplus", (("q=x y", 1),), actions("query_parameters: { query_parameter_name: a, descriptor_key: q }")
        ),
        listener="limit",
    ),
    Case(
        "remote",
        times(2, get()),
        route=embedded("remote", (("remote_address=127.0.0.1", 1),), actions("remote_address: {}")),
        listener="limit",
    ),
    Case(
        "remote_xff",
        times(2, get("/", ("x-forwarded-for", "10.1.2.3"))),
        route=embedded("xff", (("remote_address=10.1.2.3", 1),), actions("remote_address: {}")),
        listener="limit",
    ),
    Case(
        "masked",
        times(2, get("/", ("x-forwarded-for", "10.1.2.3"))),
        route=embedded(
            "masked",
            (("masked_remote_address=10.1.0.0/16", 1),),
            actions("masked_remote_address: { v4_prefix_mask_len: 16 }"),
        ),
        listener="limit",
    ),
    Case(
        "masked_default",
        times(2, get("/", ("x-forwarded-for", "10.1.2.3"))),
        route=embedded("maskedd", (("masked_remote_address=10.1.2.3/32", 1),), actions("masked_remote_address: {}")),
        listener="limit",
    ),
    Case(
        "masked_v6",
        times(2, get("/", ("x-forwarded-for", "2001:db8:1:2:3::4"))),
        route=embedded(
            "masked6",
            (("masked_remote_address=2001:db8:1::/48", 1),),
            actions("masked_remote_address: { v6_prefix_mask_len: 48 }"),
        ),
        listener="limit",
    ),
    Case(
        "masked_0",
        times(2, get("/", ("x-forwarded-for", "10.1.2.3"))),
        route=embedded(
            "masked0",
            (("masked_remote_address=0.0.0.0/0", 1),),
            actions("masked_remote_address: { v4_prefix_mask_len: 0 }"),
        ),
        listener="limit",
    ),
    Case(
        "clusters",
        times(2, get()),
        route=embedded(
            "clusters",
            (("source_cluster=differential|destination_cluster=a", 1),),
            actions("source_cluster: {}", "destination_cluster: {}"),
        ),
        listener="limit",
    ),
    Case(
        "destination_direct",
        times(2, get()),
        route="match: { prefix: / }\ndirect_response: { status: 200 }\n"
        + limit(
            "ddirect",
            BOTH,
            bucket(9),
            HEADERS,
            descriptors(("destination_cluster=", 1)),
            limits(actions("destination_cluster: {}")),
        ),
        listener="limit",
    ),
    Case(
        "generic_direct",
        times(2, get()),
        route="match: { prefix: / }\ndirect_response: { status: 200 }\n"
        + limit("gdirect", BOTH, bucket(9), HEADERS, descriptors(("generic_key=v", 1)), limits(actions(GENERIC))),
        listener="limit",
    ),
    Case(
        "route_metadata",
        times(2, get()),
        route=embedded(
            "rmeta",
            (("m=gold", 1),),
            actions(
                "metadata: { descriptor_key: m, source: ROUTE_ENTRY, metadata_key: { key: ns, path: [{ key: a }, { key: b }] } }"
            ),
            more="metadata: { filter_metadata: { ns: { a: { b: gold } } } }\n",
        ),
        listener="limit",
    ),
    Case(
        "route_metadata_number",
        times(2, get()),
        route=embedded(
            "rmetan",
            (("m=1", 1),),
            actions(
                "metadata: { descriptor_key: m, source: ROUTE_ENTRY, metadata_key: { key: ns, path: [{ key: a }] } }"
            ),
            more="metadata: { filter_metadata: { ns: { a: 1 } } }\n",
        ),
        listener="limit",
    ),
    Case(
        "metadata_default",
        times(2, get()),
        route=embedded(
            "mdef",
            (("m=d", 1),),
            actions("metadata: { descriptor_key: m, default_value: d, metadata_key: { key: ns, path: [{ key: a }] } }"),
        ),
        listener="limit",
    ),
    Case(
        "metadata_absent",
        times(2, get()),
        route=embedded(
            "mabs",
            (("generic_key=v", 1),),
            actions("metadata: { descriptor_key: m, metadata_key: { key: ns, path: [{ key: a }] } }", GENERIC),
        ),
        listener="limit",
    ),
    Case(
        "metadata_skip",
        times(2, get()),
        route=embedded(
            "mskip",
            (("generic_key=v", 1),),
            actions(
                "metadata: { descriptor_key: m, skip_if_absent: true, metadata_key: { key: ns, path: [{ key: a }] } }",
                GENERIC,
            ),
        ),
        listener="limit",
    ),
    Case(
        "strictest_first",
        times(3, get()),
        route=ROUTE
        + limit(
            "strict",
            BOTH,
            bucket(100),
            HEADERS,
            f"descriptors: [{{ entries: [{{ key: generic_key, value: fast }}], {bucket(1, NEVER, 50)} }}, {{ entries: [{{ key: generic_key, value: slow }}], {bucket(2)} }}]",
            limits(
                actions("generic_key: { descriptor_value: fast }"), actions("generic_key: { descriptor_value: slow }")
            ),
        ),
        listener="limit",
    ),
    Case(
        "default_too",
        times(3, get()),
        route=ROUTE
        + limit("deftoo", BOTH, bucket(2), HEADERS, descriptors(("generic_key=v", 3)), limits(actions(GENERIC))),
        listener="limit",
    ),
    Case(
        "default_not",
        times(4, get()),
        route=ROUTE
        + limit(
            "defnot",
            BOTH,
            bucket(2),
            HEADERS,
            "always_consume_default_token_bucket: false",
            descriptors(("generic_key=v", 3)),
            limits(actions(GENERIC)),
        ),
        listener="limit",
    ),
    Case(
        "descriptors_per_connection",
        (*times(2, get("/", ANN)), Connect(), *times(2, get("/", ANN))),
        route=embedded("dpc", (("user=ann", 1),), actions(BY_USER), more="")
        .replace("HEADERS", "")
        .replace("stat_prefix", "local_rate_limit_per_downstream_connection: true, stat_prefix"),
        listener="limit",
    ),
    Case(
        "wildcard",
        (*times(2, get("/", ANN)), *times(2, get("/", BOB)), *times(1, get())),
        route=embedded("wild", (("user=", 1),), actions(BY_USER)),
        listener="limit",
    ),
    Case(
        "wildcard_and_exact",
        (*times(3, get("/", ANN)), *times(2, get("/", BOB))),
        route=embedded("wildex", (("user=", 1), ("user=ann", 2)), actions(BY_USER)),
        listener="limit",
    ),
    Case(
        "wildcard_part",
        (*times(2, get("/", ANN)), *times(2, get("/", BOB))),
        route=embedded("wildpart", (("generic_key=v|user=", 1),), actions(GENERIC, BY_USER)),
        listener="limit",
    ),
    Case(
        "wildcard_evicted",
        (*times(2, get("/", ANN)), *times(1, get("/", BOB)), *times(1, get("/", ANN))),
        route=ROUTE
        + limit(
            "evict",
            BOTH,
            bucket(100),
            "max_dynamic_descriptors: 1",
            descriptors(("user=", 1)),
            limits(actions(BY_USER)),
        ),
        listener="limit",
    ),
    Case(
        "wildcard_lru",
        (
            *times(1, get("/", ANN)),
            *times(1, get("/", BOB)),
            *times(1, get("/", ANN)),
            *times(1, get("/", ("x-user", "eve"))),
            *times(1, get("/", ANN)),
            *times(1, get("/", BOB)),
        ),
        route=ROUTE
        + limit(
            "lru", BOTH, bucket(100), "max_dynamic_descriptors: 2", descriptors(("user=", 1)), limits(actions(BY_USER))
        ),
        listener="limit",
    ),
    Case(
        "hits",
        times(3, get()),
        route=embedded("hits", (("generic_key=v", 5),), actions(GENERIC, more=", hits_addend: { number: 2 }")),
        listener="limit",
    ),
    Case(
        "hits_0",
        times(2, get()),
        route=embedded("hits0", (("generic_key=v", 5),), actions(GENERIC, more=", hits_addend: { number: 0 }")),
        listener="limit",
    ),
    Case(
        "hits_format",
        (
            *times(1, get("/", ("x-hits", "3"))),
            *times(1, get("/", ("x-hits", "1.9"))),
            *times(1, get("/", ("x-hits", "no"))),
            *times(1, get()),
        ),
        route=embedded(
            "hitsf", (("generic_key=v", 5),), actions(GENERIC, more=", hits_addend: { format: '%REQ(x-hits)%' }")
        ),
        listener="limit",
    ),
    Case(
        "on_stream_done",
        times(2, get()),
        route=embedded("osd", (("generic_key=v", 1),), actions(GENERIC, more=", apply_on_stream_done: true")),
        listener="limit",
        refused="apply_on_stream_done: is for a rate limit service",
    ),
    Case("no_default_bucket", times(2, get("/", ANN)), route=ROUTE, listener="descriptors_only"),
    Case("no_default_bucket_no_match", times(2, get("/", BOB)), route=ROUTE, listener="descriptors_only"),
]


def routed(name: str, rates: str, *fields: str, own: str = "", more: str = "") -> str:
    """A route with rate limits, and the filter's buckets for them."""
    return f"match: {{ prefix: / }}\nroute: {{ cluster: a, {rates}{more} }}\n" + limit(
        name, BOTH, bucket(100), HEADERS, *fields
    )


TWO = descriptors(("generic_key=route", 1), ("generic_key=vhost", 3))
R = limits(actions("generic_key: { descriptor_value: route }"))
V = limits(actions("generic_key: { descriptor_value: vhost }"))
LEVELS = [
    Case("route_limits", times(2, get()), route=routed("rl", R, TWO), listener="limit"),
    Case("vhost_limits", times(4, get()), route=routed("vl", "timeout: 5s", TWO), vhost=V, listener="limit"),
    Case(
        "route_before_vhost",
        times(4, get()),
        route=routed("rbv", limits(actions("generic_key: { descriptor_value: none }")), TWO),
        vhost=V,
        listener="limit",
    ),
    Case(
        "vhost_included",
        times(4, get()),
        route=routed(
            "vi", limits(actions("generic_key: { descriptor_value: none }")), TWO, more=", include_vh_rate_limits: true"
        ),
        vhost=V,
        listener="limit",
    ),
    Case(
        "vhost_included_by_filter",
        times(4, get()),
        route=routed("vif", limits(actions("generic_key: { descriptor_value: none }")), TWO, "vh_rate_limits: INCLUDE"),
        vhost=V,
        listener="limit",
    ),
    Case(
        "vhost_ignored",
        times(4, get()),
        route=routed("vig", "timeout: 5s", TWO, "vh_rate_limits: IGNORE"),
        vhost=V,
        listener="limit",
    ),
    Case(
        "vhost_ignored_but_included",
        times(4, get()),
        route=routed("vib", "timeout: 5s", TWO, "vh_rate_limits: IGNORE", more=", include_vh_rate_limits: true"),
        vhost=V,
        listener="limit",
    ),
    Case(
        "own_before_route",
        times(2, get()),
        route=routed("obr", R, TWO, limits(actions("generic_key: { descriptor_value: none }"))),
        listener="limit",
    ),
    Case(
        "stage",
        times(2, get()),
        route=routed("stage", limits(actions("generic_key: { descriptor_value: route }", more=", stage: 1")), TWO),
        listener="limit",
    ),
    Case(
        "stage_of_filter",
        times(2, get()),
        route=routed(
            "stagef", limits(actions("generic_key: { descriptor_value: route }", more=", stage: 1")), TWO, "stage: 1"
        ),
        listener="limit",
    ),
    Case(
        "stage_other_of_route",
        times(4, get()),
        route=routed("stageo", limits(actions("generic_key: { descriptor_value: route }", more=", stage: 1")), TWO),
        vhost=V,
        listener="limit",
    ),
    Case(
        "disable_key",
        times(2, get()),
        route=routed(
            "disable", limits(actions("generic_key: { descriptor_value: route }", more=", disable_key: k")), TWO
        ),
        listener="limit",
    ),
    Case(
        "route_hits",
        times(2, get()),
        route=routed(
            "rhits",
            limits(actions("generic_key: { descriptor_value: vhost }", more=", hits_addend: { number: 2 }")),
            TWO,
        ),
        listener="limit",
        refused="hits_addend: is for the rate_limits of a filter",
    ),
    Case(
        "route_on_stream_done",
        times(2, get()),
        route=routed(
            "rosd",
            limits(actions("generic_key: { descriptor_value: route }", more=", apply_on_stream_done: true")),
            TWO,
        ),
        listener="limit",
        refused="apply_on_stream_done: is for a rate limit service",
    ),
    Case(
        "route_dynamic_metadata",
        times(2, get()),
        route=routed(
            "rdyn",
            limits(
                actions(
                    "metadata: { source: DYNAMIC, descriptor_key: generic_key, default_value: route, metadata_key: { key: ns, path: [{ key: a }] } }"
                )
            ),
            TWO,
        ),
        listener="limit",
    ),
    Case(
        "route_query",
        times(2, get("/?a=route")),
        route=routed(
            "rq", limits(actions("query_parameters: { descriptor_key: generic_key, query_parameter_name: a }")), TWO
        ),
        listener="limit",
    ),
    Case(
        "route_limit_override",
        times(2, get("/?a=route")),
        route=routed(
            "rlo",
            limits(
                actions(
                    "generic_key: { descriptor_value: route }",
                    more=", limit: { dynamic_metadata: { metadata_key: { key: ns, path: [{ key: a }] } } }",
                )
            ),
            TWO,
        ),
        listener="limit",
        refused="limit: is for a rate limit service",
    ),
]


def filter_itself(*fields: str) -> str:
    """http_filters with a LocalRateLimit."""
    text = ", ".join(("stat_prefix: itself", *fields))
    return (
        filters(f"{{ name: limit, typed_config: {{ '@type': {PREFIX}{KIND}, {text} }} }}")
        + "\nuse_remote_address: false\n"
    )


TOPIC = Topic(
    cases=[*PLAIN, *DESCRIPTORS, *LEVELS],
    listeners={
        "limit": filter_itself(),
        "own": filter_itself(BOTH, bucket(2), HEADERS),
        "own_no_route": filter_itself(BOTH, bucket(2), HEADERS),
        "descriptors_only": filter_itself(BOTH, HEADERS, descriptors(("user=ann", 1)), limits(actions(BY_USER))),
    },
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


@pytest.fixture(scope="module")
def after_traffic(pair: Pair) -> Pair:
    """When every case has had its requests."""
    for case in TOPIC.cases:
        pair.reference.run(case)
        pair.subject.run(case)
    return pair


def limited(side: Side) -> dict[str, int]:
    """What the filters counted; descriptors have no `shadow_mode` in our version of the API."""
    counted = values(side, "")
    return {name: counted[name] for name in counted if ".http_local_rate_limit." in name and "shadow" not in name}


def test_counted_alike(after_traffic: Pair) -> None:
    expected, actual = (limited(side) for side in (after_traffic.reference, after_traffic.subject))
    assert len(expected) > 100
    assert actual == expected
