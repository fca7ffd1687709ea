"""The credential_injector filter: its secrets stand in the bootstrap, or in files (`path_config_source`) that change."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.differential.cases import Case, get
from tests.differential.pair import SUBJECT_IS_ENVOY, Pair, Side, start_pair
from tests.differential.test_filters import PREFIX, ROUTE, filters
from tests.differential.test_secrets import Files
from tests.differential.topic import SERVERS, TYPE, Topic, Yaml
from tests.support.polling import wait_for
from tests.support.proxy import start_envoy, start_meshproxy

OURS = ("authorization", "mine")


def generic(name: str, fields: str = "", source: str = "") -> str:
    """The extension that injects a generic secret; `source` is the path of its file."""
    sds = f", sds_config: {{ path_config_source: {{ path: '{source}' }}, resource_api_version: V3 }}" if source else ""
    kind = f"'@type': {TYPE}http.injected_credentials.generic.v3.Generic"
    return f"{{ name: generic, typed_config: {{ {kind}, credential: {{ name: {name}{sds} }}, {fields} }} }}"


def injector(credential: str, fields: str = "", name: str = "injector") -> str:
    kind = f"'@type': {PREFIX}credential_injector.v3.CredentialInjector"
    return f"{{ name: {name}, typed_config: {{ {kind}, credential: {credential}, {fields} }} }}"


def case(name: str, listener: str, *headers: tuple[str, str]) -> Case:
    """Without a probe behind it, which the filter might answer too."""
    return Case(name, get("/", *headers), route=ROUTE, listener=listener, probe=False)


def inline(name: str, text: str) -> str:
    return f'{{ name: {name}, generic_secret: {{ secret: {{ inline_string: "{text}" }} }} }}'


TOPIC = Topic(
    [
        case("injected", "plain"),
        case("kept", "plain", OURS),
        case("kept_empty", "plain", ("authorization", "")),
        case("kept_twice", "header", ("x-api-key", "mine"), ("X-Api-Key", "too")),
        case("overwritten", "overwrite", OURS),
        case("overwritten_twice", "overwrite", OURS, ("x", "y"), ("Authorization", "too")),
        case("overwritten_none", "overwrite"),
        case("header", "header"),
        case("header_kept", "header", ("x-api-key", "mine")),
        case("header_beside", "header", OURS),
        case("two", "two"),
        case("two_of_one", "two", ("x-api-key", "mine")),
        case("line_end", "line_end"),
        case("line_ends", "line_ends"),
        case("not_ascii", "not_ascii"),
        case("tab", "tab"),
    ],
    listeners={
        "plain": filters(injector(generic("token"))),
        "overwrite": filters(injector(generic("token"), "overwrite: true")),
        "header": filters(injector(generic("token", "header: X-Api-Key"))),
        "two": filters(
            injector(generic("token"), name="one"), injector(generic("tab", "header: x-api-key"), name="other")
        ),
        "line_end": filters(injector(generic("line_end"))),
        "line_ends": filters(injector(generic("line_ends"))),
        "not_ascii": filters(injector(generic("not_ascii"))),
        "tab": filters(injector(generic("tab"))),
    },
    secrets="["
    + ", ".join(
        [
            inline("token", "Bearer abc"),
            inline("line_end", "abc\\n"),
            inline("line_ends", "abc\\r\\n\\r\\n\\n"),
            inline("tab", "a\\tb"),
            "{ name: not_ascii, generic_secret: { secret: { inline_bytes: 'dP9r' } } }",
        ]
    )
    + "]",
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


COUNTED = "credential_injector"


def test_what_is_counted(pair: Pair) -> None:
    for each in TOPIC.cases[:3]:
        pair.check(each)
    counted = [side.proxy.stats(COUNTED) for side in (pair.reference, pair.subject)]
    assert counted[0] == counted[1]
    assert counted[0]["http.plain.credential_injector.already_exists"] > 0


# -- secrets in files

NAMES = ("token", "missing", "other_kind", "optional", "with_file", "empty", "rotated", "appears", "bytes")
SDS_CASES = {name: case(name, name) for name in (*NAMES, "late")}
ALL_CASES = (*(SDS_CASES[name] for name in NAMES), case("missing_kept", "missing", OURS))


@pytest.fixture(scope="module")
def files() -> Iterator[Files]:
    with Files() as files:
        for name in ("token", "rotated", "bytes"):
            put(files, name, inline_string=f"{name} 1")
        for name in ("missing", "optional", "appears"):
            files.put(name)
        files.put("other_kind", validation_context={"trusted_ca": {"inline_string": "garbage"}})
        put(files, "empty", inline_string="")
        put(files, "with_file", filename=files.path("held"))
        hold(files, "held 1\n")
        yield files


def put(files: Files, name: str, **source: str) -> None:
    files.put(name, generic_secret={"secret": source})


def hold(files: Files, text: str) -> None:
    """What the file holds that a secret names."""
    fresh = Path(files.path("held") + ".new")
    fresh.write_text(text)
    os.replace(fresh, files.path("held"))


@pytest.fixture(scope="module")
def of_files(files: Files) -> Iterator[Pair]:
    listeners = {}
    for name in NAMES:
        optional = "allow_request_without_credential: true" if name == "optional" else ""
        listeners[name] = filters(injector(generic(name, source=files.path(name)), optional))
    with start_pair(Topic(ALL_CASES, listeners)) as pair:
        yield pair


@pytest.mark.parametrize("each", ALL_CASES, ids=lambda each: each.name)
def test_secrets_in_files(of_files: Pair, each: Case) -> None:
    of_files.check(each)


def settle(side: Side, name: str, counter: str, count: int) -> None:
    """It has counted so many updates of a secret."""
    stat = f"sds.{name}.{counter}"
    wait_for(lambda: side.proxy.stats(f"^{stat}$").get(stat) == count, f"{stat} of {side.name}")


def settle_both(pair: Pair, name: str, counter: str, count: int) -> None:
    for side in (pair.reference, pair.subject):
        settle(side, name, counter, count)


def settle_where_ours_refuses(pair: Pair, name: str, taken: int) -> None:
    """Envoy has counted so many that it took; we one that we refused."""
    settle(pair.reference, name, "update_success", taken)
    settle(pair.subject, name, *(("update_success", taken) if SUBJECT_IS_ENVOY else ("update_rejected", 1)))


def seen(pair: Pair, name: str) -> list[list[bytes | None]]:
    """The credentials that upstreams saw, Envoy's first."""
    return [[each.message.get(b"authorization") for each in outcome.seen] for outcome in pair.run(SDS_CASES[name])]


def test_a_rotation_counts_from_the_next_request_on(of_files: Pair, files: Files) -> None:
    assert seen(of_files, "rotated") == [[b"rotated 1"]] * 2
    put(files, "rotated", inline_string="rotated 2")
    settle_both(of_files, "rotated", "update_success", 2)
    assert seen(of_files, "rotated") == [[b"rotated 2"]] * 2
    put(files, "rotated", filename="/nonexistent")
    settle_both(of_files, "rotated", "update_rejected", 1)
    assert seen(of_files, "rotated") == [[b"rotated 2"]] * 2
    put(files, "appears", inline_string="here")
    settle_both(of_files, "appears", "update_success", 1)
    assert seen(of_files, "appears") == [[b"here"]] * 2


def test_a_file_that_a_secret_names_is_read_again(of_files: Pair, files: Files) -> None:
    hold(files, "held 2\n")
    for which in range(2):
        wait_for(lambda: seen(of_files, "with_file")[which] == [b"held 2"], "the file")  # noqa: B023


# -- what differs on purpose

DIFFERENCES = {"credential-header", "credential-value", "generic-secret"}


def test_a_credential_that_cannot_be_sent(of_files: Pair, files: Files) -> None:
    """The row `credential-value`: spaces at its ends are no part of it, and one that no header can hold is refused."""
    put(files, "bytes", inline_string="  abc ")
    settle_both(of_files, "bytes", "update_success", 2)
    assert seen(of_files, "bytes")[1] == [b"abc"]  # whoever reads Envoy's finds the same
    put(files, "bytes", inline_string="a\r\nx-other: b")
    settle_where_ours_refuses(of_files, "bytes", 3)
    theirs, ours = of_files.run(SDS_CASES["bytes"])
    assert theirs.statuses == (503,)
    assert ours.statuses == ((503,) if SUBJECT_IS_ENVOY else (200,))


@pytest.mark.long
@pytest.mark.parametrize("held", [{"generic_secret": {}}, {"validation_context": {}}], ids=["nothing", "other_kind"])
def test_a_secret_that_holds_nothing(files: Files, held: Yaml) -> None:
    """The row `generic-secret`: it takes the place of no good one."""
    put(files, "late", inline_string="good")
    listeners = {"late": filters(injector(generic("late", source=files.path("late"))))}
    with start_pair(Topic([SDS_CASES["late"]], listeners)) as pair:
        assert seen(pair, "late") == [[b"good"]] * 2
        files.put("late", **held)
        settle_where_ours_refuses(pair, "late", 2)
        theirs, ours = pair.run(SDS_CASES["late"])
        assert theirs.statuses == (401,)
        assert ours.statuses == ((401,) if SUBJECT_IS_ENVOY else (200,))


@pytest.mark.parametrize("header", [":path", "host", "content-length"])
def test_a_header_that_is_no_credential(header: str) -> None:
    """The row `credential-header`."""
    topic = Topic(
        listeners={"main": filters(injector(generic("token", f"header: '{header}'"), "overwrite: true"))},
        secrets=f"[{inline('token', '/abc')}]",
    )
    config = topic.bootstrap_yaml(dict.fromkeys((*SERVERS, "dead"), 1), "/dev/null")
    start_envoy(config).stop()
    if not SUBJECT_IS_ENVOY:
        with pytest.raises(RuntimeError, match=r"typed_config\.header: a credential cannot say where"):
            start_meshproxy(config)
