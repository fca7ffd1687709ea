"""`meshproxy explain` and `/explain`: what they say is what requests get, and whatever is passed over has a reason."""

from __future__ import annotations

import json
import random
import urllib.parse
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from envoy.config.listener.v3.listener_components_pb2 import FilterChain
from google.protobuf import json_format
from hypothesis import strategies as st

import meshproxy.filters.builtin  # noqa: F401  filters are registered
from meshproxy.cli import main
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.regex import Regex
from meshproxy.config.runtime import Runtime
from meshproxy.config.string_matcher import (
    ContainsMatcher,
    ExactMatcher,
    IgnoreCaseMatcher,
    PrefixMatcher,
    RegexMatcher,
    StringMatcher,
    SuffixMatcher,
)
from meshproxy.observe.stats import StatsRegistry
from meshproxy.route.path_matcher import (
    ConnectMatcher,
    PathExact,
    PathIgnoreCase,
    PathMatcher,
    PathPrefix,
    PathRegex,
    PathSeparatedPrefix,
    PathTemplateMatcher,
)
from meshproxy.route.path_template import compile_template
from meshproxy.server.explain.chains import passed_over
from meshproxy.server.explain.command import configured_world
from meshproxy.server.explain.explanation import Explanation, World
from meshproxy.server.explain.question import QuestionError, build_question
from meshproxy.server.explain.text import render
from meshproxy.server.explain.words import UNNAMED, path_words, string_words
from meshproxy.server.resources import ResourceBuilder
from tests.route import generate
from tests.server.chains import build, expected_chain, random_chains, random_connection
from tests.support.downstream import RawDownstream
from tests.support.proxy import ProxyProcess, start_meshproxy
from tests.tls.certificates import world as certificates

Yaml = dict[str, Any]
Plain = dict[str, Any]

TYPE = "type.googleapis.com/envoy.extensions."
FILTERS = TYPE + "filters."
MANAGER = FILTERS + "network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = {"name": "router", "typed_config": {"@type": FILTERS + "http.router.v3.Router"}}
FAULT = {"name": "fault", "typed_config": {"@type": FILTERS + "http.fault.v3.HTTPFault"}}
CORS = {"name": "cors", "typed_config": {"@type": FILTERS + "http.cors.v3.Cors"}}
FIRST = "static_resources.listeners[0].filter_chains[0]"
HOSTS = FIRST + ".filters[0].typed_config.route_config.virtual_hosts"


def address(port: int, ip: str = "127.0.0.1") -> Yaml:
    return {"socket_address": {"address": ip, "port_value": port}}


def manager(hosts: list[Yaml], **fields: Any) -> Yaml:
    """A network filter for these virtual hosts; `route_config` has further fields of theirs."""
    config = {"@type": MANAGER, "stat_prefix": "x", "http_filters": [ROUTER], **fields}
    config["route_config"] = {"virtual_hosts": hosts, **fields.get("route_config", {})}
    return {"name": "hcm", "typed_config": config}


def listener(name: str, port: int, *chains: Yaml, ip: str = "127.0.0.1", **fields: Any) -> Yaml:
    return {"name": name, "address": address(port, ip), "filter_chains": list(chains), **fields}


def chain(terminal: Yaml, name: str = "", **match: Any) -> Yaml:
    return {"name": name, "filters": [terminal], "filter_chain_match": match}


def cluster(name: str, *endpoints: Yaml) -> Yaml:
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": list(endpoints)}]},
    }


def endpoint(port: int, **fields: Any) -> Yaml:
    return {"endpoint": {"address": address(port, "10.0.0.1")}, **fields}


def bootstrap(listeners: list[Yaml], clusters: list[Yaml] | None = None) -> Yaml:
    return {"static_resources": {"listeners": listeners, "clusters": clusters or []}}


def host(routes: list[Yaml], name: str = "v", domains: tuple[str, ...] = ("*",), **fields: Any) -> Yaml:
    return {"name": name, "domains": list(domains), "routes": routes, **fields}


def world_of(tree: Yaml) -> World:
    """What a bootstrap says."""
    errors = ConfigErrors()
    stats = StatsRegistry()
    runtime = Runtime(stats=stats)
    resources = ResourceBuilder(json_format.ParseDict(tree, Bootstrap()), None, runtime, stats, errors).build()
    assert not errors, str(errors)
    runtime.replace_layers(resources.layers)
    return configured_world(resources)


def ask(world: World, *pairs: tuple[str, str]) -> Plain:
    explanation = Explanation(world, build_question(pairs))
    for _ in explanation.steps():
        pass
    return explanation.plain


def simple(routes: list[Yaml], clusters: list[Yaml] | None = None, **fields: Any) -> World:
    """One listener, one virtual host."""
    return world_of(bootstrap([listener("main", 10000, chain(manager([host(routes)], **fields)))], clusters))


ANSWER = {"direct_response": {"status": 200, "body": {"inline_string": "hello"}}}
SHOP = bootstrap(
    [
        listener(
            "main",
            10000,
            chain(
                manager(
                    [
                        host([{"match": {"prefix": "/"}, **ANSWER}], "other", ("other.test", "*.x.test")),
                        host(
                            [
                                {"match": {"prefix": "/api"}, "route": {"cluster": "a"}},
                                {
                                    "name": "beta",
                                    "match": {
                                        "prefix": "/cart",
                                        "headers": [{"name": "x-user", "string_match": {"exact": "bob"}}],
                                    },
                                    "route": {"cluster": "b"},
                                },
                                {
                                    "name": "cart",
                                    "match": {"prefix": "/cart"},
                                    "route": {"cluster": "a", "prefix_rewrite": "/v2"},
                                },
                                {"match": {"prefix": "/old"}, "redirect": {"path_redirect": "/new"}},
                                {"match": {"prefix": "/hello"}, **ANSWER},
                            ],
                            "shop",
                            ("shop.test",),
                        ),
                        host([], "any"),
                    ],
                    normalize_path=True,
                )
            ),
        )
    ],
    [cluster("a", endpoint(80), endpoint(81, health_status="UNHEALTHY", load_balancing_weight=3)), cluster("b")],
)


@pytest.fixture
def shop(tmp_path: Path) -> str:
    """The path of a configuration."""
    path = tmp_path / "envoy.yaml"
    path.write_text(yaml.dump(SHOP))
    return str(path)


# -- the command


def test_a_route_with_its_way_and_its_hosts(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "-c", shop, "http://shop.test/./cart/1?q=2", "-H", "X-User: alice"]) == 0
    assert (
        capsys.readouterr().out
        == f"""\
→ GET http://shop.test/./cart/1?q=2 from 127.0.0.1
✓ listener "main" at 127.0.0.1:10000  [static_resources.listeners[0]]
  ✓ filter chain, plaintext  [{FIRST}]
      network filters: hcm
      request taken as: path /cart/1?q=2, client 127.0.0.1 (external)
    ✗ virtual host[0] "other": its domains do not match shop.test: other.test, *.x.test
    ✗ virtual host[2] "any": its domain * matches, but shop.test is more specific
    ✓ virtual host "shop", whose domain shop.test matches  [{HOSTS}[1]]
      ✗ route[0]: path does not begin with /api
      ✗ route[1] "beta": header x-user is "alice", and must be "bob"
      ✓ route[2] "cart": path begins with /cart  [{HOSTS}[1].routes[2]]
          filter router
        ✓ cluster "a": ROUND_ROBIN  [static_resources.clusters[0]]
            host 10.0.0.1:80, healthy, weight 1, priority 0
          ✗ host 10.0.0.1:81, /failed_eds_health, weight 3, priority 0
→ sent to the cluster a
    the upstream sees the path /v2/1?q=2 for shop.test
"""
    )


def test_json_has_the_same(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "-c", shop, "--authority", "shop.test", "--path", "/old/x", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["found"] is True
    assert shown["route"] == {"name": "", "path": f"{HOSTS}[1].routes[3]", "conditions": ["path begins with /old"]}
    assert [each["reason"] for each in shown["routes_passed_over"]][-1] == "path does not begin with /cart"
    assert shown["outcome"]["kind"] == "redirect"
    assert shown["outcome"]["location"] == "http://shop.test/new"
    assert shown["outcome"]["status"] == 301


def test_a_direct_response(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "-c", shop, "shop.test/hello"]) == 0
    assert capsys.readouterr().out.endswith('→ answered here with 200\n    "hello"\n')


@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (["http://shop.test/nothing"], "→ no route matches: 404"),
        (["http://nobody.test/"], "→ no route matches: 404"),
        (
            ["https://shop.test/cart"],
            "→ the filter chain does not speak TLS, and the client does: the connection fails",
        ),
        (["/x", "-H", "host: a", "-H", "host: b"], "→ the codec refuses the request: http1.codec_error"),
        (["/%00"], "→ refused before any route is looked at: 400 path_normalization_failed"),
    ],
)
def test_nothing_matches(shop: str, arguments: list[str], last: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "-c", shop, *arguments]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == last


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--port", "1"], "no listener has port 1; there are: main (127.0.0.1:10000)"),
        (["--listener", "x"], "there is no listener 'x'; there are: main (127.0.0.1:10000)"),
        (["-H", "nothing"], "header: 'nothing' is not of the form 'name: value'"),
        (["--source", "localhost"], "source: 'localhost' is no IP address, with or without a port"),
        (["ftp://x/"], "url: 'ftp://x/' is no http or https URL with a host"),
    ],
)
def test_a_question_that_cannot_be_answered(
    shop: str, arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "-c", shop, *arguments]) == 2
    assert capsys.readouterr().err == f"meshproxy: {error}\n"


def test_a_broken_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "envoy.yaml"
    path.write_text(yaml.dump(bootstrap([listener("main", 10000, chain(manager([host([{"match": {}}])])))])))
    assert main(["explain", "-c", str(path), "/"]) == 2
    assert "virtual_hosts[0].routes[0]" in capsys.readouterr().err
    assert main(["explain", "/"]) == 2
    assert "a configuration is required" in capsys.readouterr().err


def test_colours_only_on_a_terminal(shop: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["explain", "-c", shop, "http://shop.test/cart"])
    assert "\x1b" not in capsys.readouterr().out
    assert "\x1b[32m" in render(ask(world_of(SHOP), ("url", "http://shop.test/cart")), colours=True)


def test_the_shell_completes_it(capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    script = capsys.readouterr().out
    assert "explain)" in script
    assert "--server-name" in script


# -- the question


@pytest.mark.parametrize(
    ("url", "authority", "target", "tls", "server_name", "port"),
    [
        ("http://a.test", "a.test", "/", False, "", 0),
        ("https://a.test/x?y=1#z", "a.test", "/x?y=1", True, "a.test", 0),
        ("https://10.0.0.1:8443/", "10.0.0.1:8443", "/", True, "", 8443),
        ("http://user@a.test:80/", "a.test:80", "/", False, "", 80),
        ("a.test:81/b", "a.test:81", "/b", None, "", 81),
        ("http://[::1]:9/", "[::1]:9", "/", False, "", 9),
        ("/only/path?q", "", "/only/path?q", None, "", 0),
    ],
)
def test_urls(url: str, authority: str, target: str, tls: bool | None, server_name: str, port: int) -> None:
    question = build_question([("url", url)])
    assert (question.authority, question.target, question.tls) == (authority, target, tls)
    assert (question.server_name, question.url_port) == (server_name, port)


def test_flags_say_more_than_the_url() -> None:
    pairs = [("authority", "b"), ("url", "https://a.test/x"), ("tls", "false"), ("path", "/y")]
    question = build_question(pairs)
    assert (question.authority, question.target, question.tls) == ("b", "/y", False)


@pytest.mark.parametrize(
    "pair",
    [
        *(("path", "/a b"), ("path", ""), ("header", "a: b\r\nc: d"), ("header", ": x"), ("port", "70000")),
        *(("tls", "maybe"), ("method", "G T"), ("authority", "a\0"), ("url", "http://:80/"), ("url", "http://a:b/")),
        *(("random", "-1"), ("x", "y"), ("source", "[::1]:x")),
    ],
)
def test_nonsense(pair: tuple[str, str]) -> None:
    with pytest.raises(QuestionError):
        build_question([pair])


def test_a_url_names_the_listener_by_its_port() -> None:
    routes = [host([{"match": {"prefix": "/"}, **ANSWER}])]
    two = world_of(bootstrap([listener(name, port, chain(manager(routes))) for name, port in (("a", 81), ("b", 82))]))
    assert ask(two, ("url", "http://h:82/"))["listener"]["name"] == "b"
    assert ask(two, ("port", "81"))["listener"]["name"] == "a"
    assert ask(two, ("listener", "b"), ("url", "http://h:81/"))["listener"]["name"] == "b"
    with pytest.raises(QuestionError, match="which listener"):
        ask(two, ("url", "http://h/"))


# -- the verdict is the served one


@hypothesis.given(st.integers(0, 2**32))
@hypothesis.settings(max_examples=40, deadline=None)
def test_every_route_before_the_one_that_serves_has_a_reason(seed: int) -> None:
    rng = random.Random(seed)
    routes = generate.random_routes(rng, 30)
    world = simple(routes)
    for _ in range(6):
        target, fields = generate.random_request(rng)
        shown = ask(world, ("path", target), *[("header", f"{name}: {value}") for name, value in fields])
        wanted = generate.first_route(routes, target, fields)
        assert shown["outcome"].get("body") == wanted
        assert shown["found"] == (wanted is not None)
        before = len(routes) if wanted is None else int(wanted[1:])
        assert [each["path"] for each in shown["routes_passed_over"]] == [
            f"{HOSTS}[0].routes[{index}]" for index in range(before)
        ]
        assert all(UNNAMED not in each["reason"] for each in shown["routes_passed_over"])


@hypothesis.given(st.integers(0, 2**32))
@hypothesis.settings(max_examples=150, deadline=None)
def test_every_filter_chain_but_the_one_that_matches_has_a_reason(seed: int) -> None:
    rng = random.Random(seed)
    matches = random_chains(rng)
    messages = [json_format.ParseDict({"filter_chain_match": match}, FilterChain()) for match in matches]
    labels = [f"c{index}" for index in range(len(matches))]
    matcher, _ = build(*matches)
    assert matcher is not None
    for _ in range(10):
        accepted = random_connection(rng)
        reasons = passed_over(messages, labels, accepted)
        found = matcher.find(accepted)
        assert found == expected_chain(matches, accepted)
        assert [index for index, reason in enumerate(reasons) if not reason] == ([] if found is None else [found])


LIVE_ROUTES = 40
LIVE_REQUESTS = 150


@pytest.fixture(scope="module", params=[1, 2], ids=["one_process", "two_workers"])
def live(request: pytest.FixtureRequest) -> Iterator[ProxyProcess]:
    """A proxy that serves random routes, splits and redirects."""
    with ExitStack() as stack:
        yield stack.enter_context(start_meshproxy(json.dumps(live_tree()), "--concurrency", str(request.param)))


# What a response of a route has.
NAMED = {
    "response_headers_to_add": [
        {"header": {"key": "x-route", "value": "%ROUTE_NAME%"}},
        {"header": {"key": "x-cluster", "value": "%UPSTREAM_CLUSTER%"}},
    ]
}


def live_tree() -> Yaml:
    rng = random.Random(20240701)
    routes = [
        {"name": f"r{index}", "match": generate.random_match(rng), **NAMED, **random_action(rng, index)}
        for index in range(LIVE_ROUTES)
    ]
    hosts = [
        host(routes, "all"),
        host(routes[::-1], "suffix", ("*.x.test", "x.test")),
        host([], "secure", ("tls.test",), require_tls="ALL"),
    ]
    fields = {"normalize_path": True, "merge_slashes": True, "use_remote_address": True, "strip_any_host_port": True}
    tree = bootstrap(
        [listener("main", 0, chain(manager(hosts, http_filters=[FAULT, ROUTER], xff_num_trusted_hops=1, **fields)))],
        [cluster(name) for name in "ab"],
    )
    return tree | {"admin": {"address": address(0)}}


def random_action(rng: random.Random, index: int) -> Yaml:
    """A direct response, a redirect, or a cluster without hosts, whose 503 has the route's name."""
    kind = rng.choice(("direct", "direct", "redirect", "cluster", "split", "missing"))
    if kind == "direct":
        return {"direct_response": {"status": 200, "body": {"inline_string": f"r{index}"}}}
    if kind == "redirect":
        return {"redirect": {"path_redirect": f"/r{index}"}}
    if kind == "cluster":
        return {"route": {"cluster": rng.choice("ab")}}
    if kind == "missing":
        return {"route": {"cluster_header": "x-cluster"}}
    weighted = {"use_hash_policy": True, "clusters": [{"name": name, "weight": 50} for name in "ab"]}
    metadata = {"metadata": {"filter_metadata": {"meshproxy": {"weighted_clusters": "rendezvous"}}}}
    policy = [{"header": {"header_name": "x-1"}}, {"header": {"header_name": "x-user"}}]
    own = metadata if rng.random() < 0.5 else {}
    return {"route": {"weighted_clusters": weighted, "hash_policy": policy}, **own}


def random_live_request(rng: random.Random) -> tuple[str, str, list[tuple[str, str]]]:
    """Authority, target and fields; always with a user, so that no split goes by chance."""
    target, fields = generate.random_request(rng)
    if rng.random() < 0.2:
        target = rng.choice(("/.", "//", "/b/..", "/%61")) + target
    authority = rng.choice(("h", "x.test", "a.X.test:80", "tls.test", "x.test.:8080"))
    more = [("x-user", str(rng.randint(0, 99)))]
    if rng.random() < 0.2:
        more.append(rng.choice([("x-forwarded-for", "10.1.1.1"), ("x-forwarded-proto", "https"), ("x-cluster", "a")]))
    return authority, target, [*fields, *more]


def test_a_live_proxy_serves_what_it_explains(live: ProxyProcess) -> None:
    rng = random.Random(7)
    kinds = set()
    with RawDownstream(live.listener_ports()["main"]) as downstream:
        for _ in range(LIVE_REQUESTS):
            authority, target, fields = random_live_request(rng)
            lines = [f"GET {target} HTTP/1.1", f"host: {authority}", *[f"{name}: {value}" for name, value in fields]]
            downstream.send("\r\n".join([*lines, "", ""]).encode())
            response = downstream.receive()
            pairs = [("authority", authority), ("path", target), *[("header", f"{n}:{v}") for n, v in fields]]
            query = urllib.parse.urlencode(pairs, quote_via=urllib.parse.quote)
            status, text = live.admin(f"/explain?format=json&{query}")
            assert status == 200, text
            shown = json.loads(text)
            served = outcome_of(response.status, response.get(b"location"), response.get(b"x-cluster"), response.body)
            assert explained(shown["outcome"]) == served, (lines, shown)
            assert (shown.get("route") or {}).get("name", "") == (response.get(b"x-route") or b"").decode()
            assert all(UNNAMED not in each["reason"] for each in shown["routes_passed_over"])
            kinds.add(shown["outcome"]["kind"])
    assert kinds == {"direct_response", "redirect", "forward", "local_reply"}


Served = tuple[int, str]


def outcome_of(status: int, location: bytes | None, served_by: bytes | None, body: bytes) -> Served:
    if status == 503 and served_by not in (None, b"-"):
        return 503, (served_by or b"").decode()
    return status, (location or body).decode()


def explained(outcome: Plain) -> Served:
    """What a client sees of it: the clusters have no hosts."""
    if outcome["kind"] == "forward":
        return 503, outcome["cluster"]
    return outcome["status"], outcome.get("location") or outcome.get("body", "")


def test_a_live_proxy_answers_in_words_and_refuses_nonsense(live: ProxyProcess) -> None:
    status, text = live.admin("/explain?url=http://h/nowhere&header=a:b")
    assert status == 200
    assert text.startswith('→ GET http://h/nowhere from 127.0.0.1\n✓ listener "main"')
    assert live.admin("/explain?path=x%0d%0a") == (400, "path: a line break or NUL can stand in no request\n")
    assert live.admin("/explain?format=xml") == (400, "format: 'xml' is neither text nor json\n")
    assert live.admin("/explain?listener=x")[0] == 400


# -- one thing at a time


def test_a_split_shows_its_shares_and_the_side_of_this_user() -> None:
    weighted = {"clusters": [{"name": "a", "weight": 1}, {"name": "b", "weight": 3}], "use_hash_policy": True}
    action = {"weighted_clusters": weighted, "hash_policy": [{"header": {"header_name": "x-user"}}]}
    world = simple([{"match": {"prefix": "/"}, "route": action}], [cluster("a"), cluster("b")])
    shown = ask(world, ("header", "x-user: 1"))
    assert [(each["name"], each["weight"], each["share"]) for each in shown["split"]["clusters"]] == [
        ("a", 1, 0.25),
        ("b", 3, 0.75),
    ]
    assert shown["split"]["decided_by"] == "the hash policy"
    taken = [each["name"] for each in shown["split"]["clusters"] if each["taken"]]
    assert taken == [shown["outcome"]["cluster"]] == ["ab"[shown["split"]["number"] % 4 > 0]]
    drawn = [ask(world, ("random", str(number))) for number in (0, 1)]
    assert [each["outcome"]["cluster"] for each in drawn] == ["a", "b"]
    assert drawn[0]["split"]["decided_by"] == "chance: the hash policy finds nothing in the request"
    assert 'cluster "a": 25 % (weight 1) this time' in render(drawn[0])


def test_filters_that_a_route_switches() -> None:
    off = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
    on = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}}
    routes = [
        {"match": {"prefix": "/off"}, "typed_per_filter_config": {"fault": off}, **ANSWER},
        {"match": {"prefix": "/on"}, "typed_per_filter_config": {"cors": on}, **ANSWER},
    ]
    world = simple(routes, http_filters=[FAULT, CORS | {"disabled": True}, ROUTER])
    by_path = {}
    for path in ("/off", "/on", "/none"):
        filters = ask(world, ("path", path))["http_filters"]
        by_path[path] = [(each["name"], each["runs"], each.get("reason", "")) for each in filters]
    disabled = "disabled, and not enabled on this route"
    assert by_path == {
        "/off": [("fault", False, "disabled on this route"), ("cors", False, disabled), ("router", True, "")],
        "/on": [("fault", True, ""), ("cors", True, "enabled on this route"), ("router", True, "")],
        "/none": [("fault", True, ""), ("cors", False, disabled), ("router", True, "")],
    }


def one_route(match: Yaml, *pairs: tuple[str, str]) -> str:
    """Why a route passes a request over."""
    (passed,) = ask(simple([{"match": match, **ANSWER}]), *pairs)["routes_passed_over"]
    reason: str = passed["reason"]
    return reason


@pytest.mark.parametrize(
    ("match", "pair", "reason"),
    [
        ({"path": "/a"}, ("path", "/b"), "path is not /a"),
        ({"prefix": "/A", "case_sensitive": False}, ("path", "/b"), "path does not begin with /a, in whatever case"),
        ({"path_separated_prefix": "/a"}, ("path", "/ab"), "path is neither /a nor below it"),
        ({"safe_regex": {"regex": "/a+"}}, ("path", "/b"), "path does not match the regex /a+"),
        ({"connect_matcher": {}}, ("path", "/"), "it is no CONNECT request"),
        ({"prefix": "/", "grpc": {}}, ("path", "/"), "it is no gRPC request (content-type)"),
        (
            {"prefix": "/", "runtime_fraction": {"default_value": {"numerator": 30}}},
            ("random", "30"),
            "it takes a share of 30 in 100 of all requests, and the number drawn (30) is not among them",
        ),
        (
            {"prefix": "/", "query_parameters": [{"name": "q", "string_match": {"prefix": "a"}}]},
            ("path", "/?q=b"),
            'query parameter q is "b", and must begin with "a"',
        ),
        (
            {"prefix": "/", "query_parameters": [{"name": "q", "present_match": False}]},
            ("path", "/?q=b"),
            "query parameter q is present",
        ),
        (
            {"prefix": "/", "tls_context": {"presented": True}},
            ("path", "/"),
            "no client certificate is presented",
        ),
        (
            {
                "prefix": "/",
                "dynamic_metadata": [{"filter": "f", "path": [{"key": "k"}], "value": {"present_match": True}}],
            },
            ("path", "/"),
            "dynamic metadata f.k does not match",
        ),
        (
            {"prefix": "/", "filter_state": [{"key": "k", "string_match": {"exact": "v"}}]},
            ("path", "/"),
            'filter state k must be "v", and does not',
        ),
        (
            {"prefix": "/", "headers": [{"name": "a", "present_match": True}, {"name": "b", "present_match": True}]},
            ("path", "/"),
            "header a is absent; header b is absent",
        ),
    ],
)
def test_reasons_of_routes(match: Yaml, pair: tuple[str, str], reason: str) -> None:
    assert one_route(match, pair) == reason


def kinds_of(base: type[Any]) -> set[type[Any]]:
    """The package's own subclasses."""
    return {kind for kind in base.__subclasses__() if kind.__module__.startswith("meshproxy.")}


def test_every_kind_of_condition_has_words() -> None:
    prefix, regex = PathPrefix(b"/a"), Regex("/a")
    paths: list[PathMatcher] = [prefix, PathExact(b"/a"), PathSeparatedPrefix(b"/a"), PathIgnoreCase(prefix)]
    paths += [PathRegex(regex), PathTemplateMatcher(compile_template("/{a}")), ConnectMatcher()]
    assert {type(each) for each in paths} == kinds_of(PathMatcher)
    said = [path_words(each, negated) for each in paths for negated in (False, True)]
    assert len(set(said)) == len(said)
    strings: list[StringMatcher] = [ExactMatcher(b"a"), PrefixMatcher(b"a"), SuffixMatcher(b"a"), ContainsMatcher(b"a")]
    strings += [IgnoreCaseMatcher(strings[0]), RegexMatcher(regex)]
    assert {type(each) for each in strings} == kinds_of(StringMatcher)
    asked = [string_words(each) for each in strings]
    assert len(set(asked)) == len(asked)
    assert not any(UNNAMED in each for each in said + asked)


@pytest.mark.parametrize(
    ("matcher", "values", "reason"),
    [
        ({"string_match": {"suffix": "z"}}, ["a"], 'header n is "a", and must end with "z"'),
        (
            {"string_match": {"contains": "z", "ignore_case": True}},
            ["a"],
            'header n is "a", and must contain "z" in whatever case',
        ),
        (
            {"string_match": {"safe_regex": {"regex": "z+"}}},
            ["a", "b"],
            'header n is "a", "b", and must match the regex z+',
        ),
        ({"string_match": {"exact": "a"}, "invert_match": True}, ["a"], 'header n is "a", and must not be "a"'),
        (
            {"range_match": {"start": 1, "end": 5}},
            ["5"],
            'header n is "5", and must be a number from 1 up to, but not, 5',
        ),
        ({"present_match": False}, ["a"], "header n is present"),
        (
            {"string_match": {"exact": "a"}, "treat_missing_header_as_empty": True},
            [],
            'header n is absent; header n must be "a" (absent counts as empty)',
        ),
    ],
)
def test_reasons_of_headers(matcher: Yaml, values: list[str], reason: str) -> None:
    match = {"prefix": "/", "headers": [{"name": "n", **matcher}]}
    assert one_route(match, *[("header", f"n: {value}") for value in values]) == reason


def test_filter_chains_by_server_name_port_and_source() -> None:
    routes = manager([host([{"match": {"prefix": "/"}, **ANSWER}])])
    inspector = {"name": "tls", "typed_config": {"@type": FILTERS + "listener.tls_inspector.v3.TlsInspector"}}
    world = world_of(
        bootstrap(
            [
                listener(
                    "main",
                    10000,
                    chain(routes, "port", destination_port=443),
                    chain(routes, "name", server_names=["a.test"]),
                    chain(routes, "range", source_prefix_ranges=[{"address_prefix": "10.0.0.0", "prefix_len": 8}]),
                    chain(routes, "rest"),
                    listener_filters=[inspector],
                )
            ]
        )
    )
    shown = ask(world, ("source", "9.9.9.9:1"))
    assert shown["filter_chain"]["name"] == "rest"
    assert {each["name"]: each["reason"] for each in shown["filter_chains_passed_over"]} == {
        "port": "destination port is 10000, and must be 443",
        "name": "server name is not known, and must be a.test",
        "range": "source address is 9.9.9.9, and must be 10.0.0.0/8",
    }
    inside = ask(world, ("source", "10.9.9.9"))
    assert inside["filter_chain"]["name"] == "range"
    assert inside["filter_chains_passed_over"][2]["reason"] == (
        "source address: that of range is more specific, and there is no way back"
    )
    assert ask(world, ("server_name", "A.test"))["filter_chain"]["name"] == "name"


def secure_chain(terminal: Yaml) -> Yaml:
    """A filter chain that speaks TLS."""
    server = certificates().server
    pair = {
        "certificate_chain": {"inline_bytes": base64(server.pem)},
        "private_key": {"inline_bytes": base64(server.key_pem)},
    }
    context = {
        "@type": TYPE + "transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"tls_certificates": [pair]},
    }
    return {"filters": [terminal], "transport_socket": {"name": "tls", "typed_config": context}}


def base64(data: bytes) -> str:
    return b64encode(data).decode()


def test_tls_is_as_the_chain_has_it_unless_the_question_says() -> None:
    routes = [{"match": {"prefix": "/", "tls_context": {"presented": True, "validated": True}}, **ANSWER}]
    fields = {"forward_client_cert_details": "SANITIZE_SET", "set_current_client_cert_details": {"uri": True}}
    secure = world_of(bootstrap([listener("main", 443, secure_chain(manager([host(routes)], **fields)))]))
    assert ask(secure, ("path", "/"))["normalized"]["x_forwarded_proto"] == "https"
    assert ask(secure, ("url", "https://a.test/"))["request"]["server_name"] == "a.test"
    assert not ask(secure, ("url", "https://a.test/"))["found"]
    assert ask(secure, ("url", "https://a.test/"), ("client_cert", "true"))["found"]
    plain = ask(secure, ("url", "http://a.test/"))
    assert plain["outcome"]["reason"] == ("the filter chain speaks TLS, and the client does not: the connection fails")


def test_no_filter_chain() -> None:
    routes = manager([host([{"match": {"prefix": "/"}, **ANSWER}])])
    world = world_of(bootstrap([listener("main", 10000, chain(routes, "port", destination_port=443))]))
    shown = ask(world, ("path", "/"))
    assert (shown["found"], shown["outcome"]["kind"], shown["filter_chain"]) == (False, "close", None)
    assert '✗ filter chain[0] "port": destination port is 10000, and must be 443' in render(shown)


def test_a_redirected_connection_is_handed_to_the_listener_of_its_destination() -> None:
    routes = manager([host([{"match": {"prefix": "/"}, **ANSWER}])])
    original = {"name": "o", "typed_config": {"@type": FILTERS + "listener.original_dst.v3.OriginalDst"}}
    catch_all = listener("all", 15001, chain(routes), use_original_dst=True, listener_filters=[original])
    world = world_of(bootstrap([catch_all, listener("other", 80, chain(routes), ip="0.0.0.0", bind_to_port=False)]))
    shown = ask(world, ("listener", "all"), ("destination", "10.2.3.4:80"))
    assert (shown["handed_from"]["name"], shown["listener"]["name"]) == ("all", "other")
    assert shown["route"]["path"].startswith("static_resources.listeners[1]")
    assert "hands it to that of its destination" in render(shown)
    assert ask(world, ("listener", "all"), ("destination", "10.2.3.4:81"))["listener"]["name"] == "all"


def test_a_tcp_proxy_takes_all_bytes() -> None:
    proxy = {"@type": FILTERS + "network.tcp_proxy.v3.TcpProxy", "stat_prefix": "x", "cluster": "a"}
    terminal = {"name": "tcp", "typed_config": proxy}
    world = world_of(bootstrap([listener("main", 1, chain(terminal))], [cluster("a", endpoint(80))]))
    shown = ask(world, ("path", "/"))
    assert (shown["found"], shown["outcome"]["kind"], shown["cluster"]["name"]) == (True, "tcp", "a")
    assert "bytes are passed on to the cluster a" in render(shown)


def test_trust_and_the_port_in_the_host() -> None:
    internal: Yaml = {"internal_address_config": {"cidr_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}]}}
    routes = [{"match": {"prefix": "/", "headers": [{"name": "x-envoy-internal", "present_match": True}]}, **ANSWER}]
    trusting = simple(routes, use_remote_address=True, strip_any_host_port=True, **internal)
    shown = ask(trusting, ("source", "10.1.1.1"), ("authority", "h.test:99"))
    assert shown["found"]
    assert shown["normalized"]["internal"]
    assert shown["normalized"]["authority"] == "h.test"
    outside = ask(trusting, ("source", "8.8.8.8"), ("header", "x-envoy-internal: true"))
    assert not outside["found"]
    by_header = simple(routes, **internal)
    forwarded = ask(by_header, ("header", "x-forwarded-for: 10.5.5.5"))
    assert forwarded["normalized"]["downstream_remote_address"] == "10.5.5.5"


def test_an_upgrade_that_nobody_allows() -> None:
    fields = [("header", "connection: upgrade"), ("header", "upgrade: websocket")]
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "a"}}]
    refused = ask(simple(routes, [cluster("a")]), *fields)
    assert refused["outcome"] == {
        "kind": "local_reply",
        "reason": "nobody allows an upgrade to websocket: 403",
        "status": 403,
        "details": "upgrade_failed",
    }
    allowed = ask(simple(routes, [cluster("a")], upgrade_configs=[{"upgrade_type": "websocket"}]), *fields)
    assert allowed["outcome"]["kind"] == "forward"


def test_a_connect_request() -> None:
    upgrade: list[Yaml] = [{"upgrade_type": "CONNECT", "connect_config": {}}]
    routes: list[Yaml] = [
        {"match": {"prefix": "/"}, "route": {"cluster": "a"}},
        {"match": {"connect_matcher": {}}, "route": {"cluster": "a", "upgrade_configs": upgrade}},
    ]
    shown = ask(simple(routes, [cluster("a")]), ("method", "CONNECT"), ("authority", "h.test:443"))
    assert shown["route"]["path"].endswith("routes[1]")
    assert shown["routes_passed_over"][0]["reason"].startswith("the request is a CONNECT, and has no path")
    assert shown["outcome"]["kind"] == "forward"


def test_a_virtual_host_that_requires_tls() -> None:
    hosts = [host([{"match": {"prefix": "/"}, **ANSWER}], require_tls="ALL")]
    shown = ask(world_of(bootstrap([listener("main", 80, chain(manager(hosts)))])), ("url", "http://h/x"))
    assert shown["outcome"]["location"] == "https://h/x"
    assert shown["route"]["path"] == f"{HOSTS}[0].require_tls"


def test_many_candidates_are_cut_in_words_and_whole_in_json() -> None:
    shown = ask(simple([{"match": {"path": f"/{index}"}, **ANSWER} for index in range(200)]), ("path", "/199"))
    assert len(shown["routes_passed_over"]) == 199
    text = render(shown)
    assert "route[19]:" in text
    assert "route[20]:" not in text
    assert "… 174 more (JSON has all)" in text
    assert "route[198]: path is not /198" in text


def test_a_cluster_chosen_by_hash_shows_the_hash() -> None:
    action = {"cluster": "a", "hash_policy": [{"header": {"header_name": "x-u"}}]}
    world = simple(
        [{"match": {"prefix": "/"}, "route": action}], [cluster("a", endpoint(80)) | {"lb_policy": "RING_HASH"}]
    )
    assert isinstance(ask(world, ("header", "x-u: 1"))["cluster"]["hash"], int)
    assert "hash" not in ask(world)["cluster"]


def test_a_cluster_that_does_not_exist() -> None:
    shown = ask(simple([{"match": {"prefix": "/"}, "route": {"cluster_header": "x-c"}}]), ("header", "x-c: nope"))
    assert shown["found"]
    assert shown["outcome"]["reason"] == "there is no cluster 'nope': 503"


def test_a_cluster_that_is_discovered_on_demand() -> None:
    config = {"@type": FILTERS + "http.on_demand.v3.OnDemand", "odcds": {"source": {"ads": {}}}}
    off = {"on_demand": {"@type": FILTERS + "http.on_demand.v3.PerRouteConfig"}}
    routes: list[Yaml] = [
        {"match": {"prefix": "/off"}, "route": {"cluster_header": "x-c"}, "typed_per_filter_config": off},
        {"match": {"prefix": "/"}, "route": {"cluster_header": "x-c"}},
    ]
    world = simple(routes, http_filters=[{"name": "on_demand", "typed_config": config}, ROUTER])
    asked = ", unless the control plane, which is asked for it then, has one"
    for path, more in (("/", asked), ("/off", "")):
        shown = ask(world, ("header", "x-c: nope"), ("path", path))
        assert shown["outcome"]["reason"] == "there is no cluster 'nope': 503" + more
