"""Which coding a client gets. What is expected was recorded from Envoy 1.40, where a filter answered so."""

from __future__ import annotations

import pytest

from meshproxy.http.compression.accept_encoding import (
    NAMED,
    NO_CODING,
    NOT_VALID,
    WILDCARD,
    choose,
    has_token,
    parse,
    with_encoding,
)

BOTH = {b"gzip": False, b"br": False}
BR_FIRST = {b"gzip": False, b"br": True}


@pytest.mark.parametrize(
    ("accepted", "offers", "encoding", "kind"),
    [
        (b"gzip", BOTH, b"gzip", NAMED),
        (b"br;q=0.5, gzip;q=0.4", BOTH, b"br", NAMED),
        (b"gzip, br", BOTH, b"gzip", NAMED),
        (b"gzip, br", BR_FIRST, b"br", NAMED),
        (b"gzip, br;q=0.9", BR_FIRST, b"gzip", NAMED),
        (b"br, gzip", BR_FIRST, b"br", NAMED),
        (b"identity;q=0.5, gzip;q=0.5", BOTH, b"identity", NO_CODING),
        (b"gzip;q=0.5, identity;q=0.5", BOTH, b"gzip", NAMED),
        (b"identity", BOTH, b"identity", NO_CODING),
        (b"*", BOTH, b"gzip", WILDCARD),
        (b"gzip;q=0, *", BOTH, b"br", WILDCARD),
        (b"gzip;q=0, br;q=0, *", BOTH, b"identity", NOT_VALID),
        (b"deflate, *;q=0.1", BOTH, b"gzip", WILDCARD),
        (b"*;q=0, gzip", BOTH, b"gzip", NAMED),
        (b"gzip;q=0", BOTH, b"identity", NOT_VALID),
        (b"gzip, gzip;q=0", BOTH, b"identity", NOT_VALID),
        (b"gzip;q=-1", BOTH, b"identity", NOT_VALID),
        (b"gzip;q=nan", BOTH, b"identity", NOT_VALID),
        (b"GZIP", BOTH, b"identity", NOT_VALID),
        (b"deflate", BOTH, b"identity", NOT_VALID),
        (b"", BOTH, b"identity", NOT_VALID),
        (b"gzip", {}, b"identity", NOT_VALID),
    ],
)
def test_the_coding_that_is_chosen(accepted: bytes, offers: dict[bytes, bool], encoding: bytes, kind: int) -> None:
    choice = choose(accepted, offers)
    assert (choice.encoding, choice.kind) == (encoding, kind)


@pytest.mark.parametrize(
    ("accepted", "parsed"),
    [
        (b"gzip ; q = 0.5 ,br", [(b"gzip", 0.5), (b"br", 1.0)]),
        (b"gzip;Q=0", [(b"gzip", 0.0)]),
        (b"gzip;q=1e-3", [(b"gzip", 0.001)]),
        (b"gzip;level=1;q=0", [(b"gzip", 1.0)]),
        (b"gzip;q=0;level=1, br", [(b"br", 1.0)]),
        (b"gzip;q=, br", [(b"br", 1.0)]),
        (b",,gzip,,", [(b"gzip", 1.0)]),
    ],
)
def test_codings_and_their_weights(accepted: bytes, parsed: list[tuple[bytes, float]]) -> None:
    assert parse(accepted) == parsed


@pytest.mark.parametrize(
    ("accepted", "result"),
    [
        (None, b"gzip"),
        (b"", b"gzip"),
        (b"br ,  deflate;q=0.1", b"br,deflate;q=0.1,gzip"),
        (b"gzip;q=0, br", b"br,gzip"),
        (b"x-gzip, gzip", b"x-gzip,gzip"),
        (b"GZIP", b"GZIP,gzip"),
    ],
)
def test_a_coding_that_is_added(accepted: bytes | None, result: bytes) -> None:
    assert with_encoding(accepted, b"gzip") == result


def test_a_token_of_a_list() -> None:
    assert has_token(b"max-age=1, No-Transform ", b"no-transform")
    assert not has_token(b"no-transformation", b"no-transform")
    assert not has_token(None, b"no-transform")
