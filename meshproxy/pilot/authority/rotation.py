"""How one root follows another: pure decisions over the state, the time and the settings.

A successor is trusted for a while before it signs, and its predecessor for as long as anything that it signed is
valid: nobody who has learnt of the bundle in time ever meets a certificate that he does not believe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from meshproxy.pilot.authority.certificates import Validity, make_root, name_of, read_certificates, to_pem
from meshproxy.pilot.authority.keys import Seal, make_key
from meshproxy.pilot.authority.settings import AuthoritySettings
from meshproxy.pilot.authority.state import RETIRING, SIGNING, TRUSTED, Issuer, State
from meshproxy.pilot.authority.store import Record

_SHARE: Final = 2 / 3
_LAG_S: Final = 300.0  # clocks of others may lag so far: a revoked certificate that ends is kept in mind


def new_root(state: State, settings: AuthoritySettings, seal: Seal, now: float) -> State:
    """With one root more, which signs at once where nobody does."""
    key = make_key(settings.key_type)
    certificate = make_root(
        key, state.trust_domain, Validity(int(now - settings.skew_s), int(now + settings.root_lifetime_s))
    )
    phase = TRUSTED if state.signing is not None else SIGNING
    return state.with_issuer(Issuer(name_of(key), phase, now, seal.lock(key), to_pem([certificate])))


def signs_itself(state: State) -> bool:
    """Whether a root of ours signs: of an intermediate only the outside authority can make a successor."""
    signing = state.signing
    return signing is not None and len(read_certificates(signing.chain, signing.name)) == 1


def is_due(state: State, settings: AuthoritySettings, now: float) -> bool:
    """Whether the root that signs is so old that it needs a successor, and has none."""
    signing = state.signing
    return signing is not None and not state.in_phase(TRUSTED) and now >= due_at(signing, settings)


def due_at(issuer: Issuer, settings: AuthoritySettings) -> float:
    """When it wants a successor: at the age that is set or at two thirds of its lifetime, whatever is earlier; and so
    early that no certificate has to be cut short before the successor signs."""
    certificate = read_certificates(issuer.chain, issuer.name)[0]
    begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    due = min(begin + _SHARE * (end - begin), end - settings.overlap_s - settings.longest_lifetime_s)
    return min(due, issuer.since + settings.rotate_after_s) if settings.rotate_after_s else due


def advance(
    state: State, settings: AuthoritySettings, now: float, records: Sequence[Record], *, hurry: bool = False
) -> State:
    """The state after the steps that are due. `records` are the certificates that are out; `hurry`: an operator does
    not want to wait for the next step."""
    state = _forget_revoked(state, now)
    successor = next(iter(state.in_phase(TRUSTED)), None)
    for old in state.in_phase(RETIRING):
        if _is_over(old, settings, now, records) or (hurry and successor is None):
            state = state.without_issuer(old.name)
    if successor is not None and (hurry or now >= successor.since + settings.overlap_s or _has_ended(state, now)):
        state = _hand_over(state, successor, now)
    return state


def _has_ended(state: State, now: float) -> bool:
    """The one that signs: nothing is lost by not waiting any longer."""
    signing = state.signing
    if signing is None:
        return True
    return now > read_certificates(signing.chain, signing.name)[0].not_valid_after_utc.timestamp()


def _hand_over(state: State, successor: Issuer, now: float) -> State:
    for each in state.in_phase(SIGNING):
        state = state.with_issuer(replace(each, phase=RETIRING, since=now))
    return state.with_issuer(replace(successor, phase=SIGNING, since=now))


def _is_over(old: Issuer, settings: AuthoritySettings, now: float, records: Sequence[Record]) -> bool:
    """Nothing that it signed is valid any more: neither by our settings, nor by what any pilot has written down."""
    longest = settings.longest_lifetime_s + settings.skew_s
    return now > old.since + longest and not any(each.issuer == old.name for each in records)


def _forget_revoked(state: State, now: float) -> State:
    """Those that have ended by themselves, with room for clocks that lag."""
    kept = tuple(each for each in state.revoked if each.not_after + _LAG_S >= now)
    if len(kept) == len(state.revoked):
        return state
    return replace(state, revoked=kept, crl_number=state.crl_number + 1)
