"""One root follows another, and nobody ever meets a certificate that he does not believe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.pilot.authority.certificates import Validity, make_root, read_certificates, to_pem
from meshproxy.pilot.authority.keys import Seal, make_key
from meshproxy.pilot.authority.rotation import advance, due_at, is_due, new_root, signs_itself
from meshproxy.pilot.authority.settings import AuthorityError, AuthoritySettings
from meshproxy.pilot.authority.state import RETIRING, SIGNING, TRUSTED, Issuer, Revoked, State
from meshproxy.pilot.authority.store import Record
from tests.pilot.authority.support import PASSPHRASE, START, seconds

SETTINGS = seconds()
EMPTY = State("cluster.local")
_ROOT: Final = to_pem([make_root(make_key("P-256"), "a", Validity(int(START), int(START) + 10**7))])


@pytest.fixture(scope="module")
def seal() -> Seal:
    return Seal(PASSPHRASE)


def phases(state: State) -> list[str]:
    return [each.phase for each in state.issuers]


def test_the_first_root_signs_at_once_and_the_next_is_only_trusted(seal: Seal) -> None:
    state = new_root(EMPTY, SETTINGS, seal, START)
    assert phases(state) == [SIGNING]
    state = new_root(state, SETTINGS, seal, START + 1)
    assert phases(state) == [SIGNING, TRUSTED]
    assert len({each.name for each in state.issuers}) == 2
    assert signs_itself(state)


def test_a_root_lives_as_long_as_it_is_told(seal: Seal) -> None:
    (issuer,) = new_root(EMPTY, SETTINGS, seal, START).issuers
    (root,) = read_certificates(issuer.chain, "root")
    assert root.not_valid_before_utc.timestamp() == START - SETTINGS.skew_s
    assert root.not_valid_after_utc.timestamp() == START + SETTINGS.root_lifetime_s


def test_a_successor_is_due_at_two_thirds_or_at_the_age_that_is_set(seal: Seal) -> None:
    state = new_root(EMPTY, SETTINGS, seal, START)
    begin, end = START - SETTINGS.skew_s, START + SETTINGS.root_lifetime_s
    due = begin + (end - begin) * 2 / 3
    assert due_at(state.issuers[0], SETTINGS) == pytest.approx(due)
    assert due_at(state.issuers[0], replace(SETTINGS, overlap_s=300.0)) == end - 300.0 - SETTINGS.longest_lifetime_s
    assert not is_due(state, SETTINGS, due - 1)
    assert is_due(state, SETTINGS, due + 1)
    sooner = replace(SETTINGS, rotate_after_s=50.0)
    assert not is_due(state, sooner, START + 49)
    assert is_due(state, sooner, START + 50)
    assert not is_due(new_root(state, sooner, seal, START + 50), sooner, START + 60)


def test_the_whole_way_of_two_roots(seal: Seal) -> None:
    state = new_root(new_root(EMPTY, SETTINGS, seal, START), SETTINGS, seal, START)
    assert advance(state, SETTINGS, START + SETTINGS.overlap_s - 1, []) == state
    switched = START + SETTINGS.overlap_s
    state = advance(state, SETTINGS, switched, [])
    assert sorted(phases(state)) == [RETIRING, SIGNING]
    over = switched + SETTINGS.longest_lifetime_s + SETTINGS.skew_s
    assert advance(state, SETTINGS, over, []) == state
    assert phases(advance(state, SETTINGS, over + 1, [])) == [SIGNING]


def test_a_root_stays_while_anything_that_it_signed_is_out(seal: Seal) -> None:
    state = new_root(new_root(EMPTY, SETTINGS, seal, START), SETTINGS, seal, START)
    state = advance(state, SETTINGS, START + 30, [])
    (old,) = state.in_phase(RETIRING)
    out = [Record(1, old.name, "spiffe://a/ns/b/sa/c", START + 10_000)]
    assert advance(state, SETTINGS, START + 1000, out) == state
    others = [replace(out[0], issuer="another")]
    assert phases(advance(state, SETTINGS, START + 1000, others)) == [SIGNING]


def test_where_the_old_root_has_ended_the_new_one_does_not_wait(seal: Seal) -> None:
    state = new_root(EMPTY, SETTINGS, seal, START)
    late = START + SETTINGS.root_lifetime_s + 1
    state = new_root(state, SETTINGS, seal, late)
    assert sorted(phases(advance(state, SETTINGS, late, []))) == [RETIRING, SIGNING]


def test_an_operator_in_a_hurry_takes_one_step_at_a_time(seal: Seal) -> None:
    state = new_root(new_root(EMPTY, SETTINGS, seal, START), SETTINGS, seal, START)
    state = advance(state, SETTINGS, START, [], hurry=True)
    assert sorted(phases(state)) == [RETIRING, SIGNING]
    state = advance(state, SETTINGS, START, [], hurry=True)
    assert phases(state) == [SIGNING]
    assert advance(state, SETTINGS, START, [], hurry=True) == state


def test_the_revoked_are_forgotten_when_they_have_ended_anyhow() -> None:
    state = State("a", (Issuer("i", SIGNING, START, b"", _ROOT),)).with_revoked([Revoked(1, "i", START, START + 10)])
    assert advance(state, SETTINGS, START + 300, []) == state
    after = advance(state, SETTINGS, START + 311, [])
    assert after.revoked == ()
    assert after.crl_number == state.crl_number + 1


@dataclass
class _Leaf:
    issuer: str
    not_after: float


@given(pauses=st.lists(st.floats(0.5, 40.0), min_size=10, max_size=80), lag=st.floats(0.0, 25.0))
def test_what_was_signed_is_believed_as_long_as_it_lasts(pauses: list[float], lag: float) -> None:
    """Also by who learns of the bundle `lag` late, where that is within the overlap."""
    settings = replace(SETTINGS, rotate_after_s=60.0, overlap_s=30.0)
    state = State("a", (Issuer("0", SIGNING, START, b"", _ROOT),))
    now, made = START, 0
    leaves: list[_Leaf] = []
    bundles: list[tuple[float, frozenset[str]]] = [(now, frozenset({"0"}))]
    for pause in pauses:
        now += pause
        signing = state.signing
        assert signing is not None
        if not state.in_phase(TRUSTED) and now >= signing.since + settings.rotate_after_s:
            made += 1
            state = state.with_issuer(Issuer(str(made), TRUSTED, now, b"", _ROOT))
        leaves = [leaf for leaf in leaves if leaf.not_after > now]
        state = advance(state, settings, now, [Record(1, leaf.issuer, "", leaf.not_after) for leaf in leaves])
        bundles.append((now, frozenset(each.name for each in state.trusted)))
        signing = state.signing
        assert signing is not None
        leaves.append(_Leaf(signing.name, now + settings.longest_lifetime_s))
        current = {each.name for each in state.trusted}
        late = next(names for at, names in reversed(bundles) if at <= max(START, now - lag))
        for leaf in leaves:
            assert leaf.issuer in current
            assert leaf.issuer in late


@pytest.mark.parametrize(
    "change",
    [
        {"lifetime_s": 0.5},
        {"lifetime_s": 100.0},
        {"longest_lifetime_s": 1e6},
        {"skew_s": -1.0},
        {"overlap_s": -1.0},
        {"rotate_after_s": -1.0},
        {"crl_lifetime_s": 1.0},
        {"root_lifetime_s": 1e10},
        {"root_lifetime_s": 50.0},
        {"rate": 0.0},
        {"identity_burst": 0.5},
    ],
    ids=str,
)
def test_times_that_do_not_fit_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(AuthorityError):
        seconds(**change)


def test_a_kind_of_key_that_is_unknown_is_refused() -> None:
    with pytest.raises(AuthorityError, match="P-256, P-384, RSA-2048"):
        AuthoritySettings(key_type="Ed25519")
