"""Whether what was shown is so. A finding is a sentence, and whether it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from meshproxy.demo.tally import Ledger, Tally

# A correct proxy fails a check of chance once in a thousand million runs: beyond six standard deviations.
_IMPROBABLE: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the demonstration claims."""

    holds: bool
    text: str


def is_plausible(hits: int, trials: int, share: float) -> bool:
    """Whether `hits` of `trials` independent draws, each a hit with probability `share`, is nothing unheard-of."""
    if not trials:
        return False
    tail = range(hits + 1) if hits <= trials * share else range(hits, trials + 1)
    return math.fsum(_probability(count, trials, share) for count in tail) >= _IMPROBABLE


def _probability(hits: int, trials: int, share: float) -> float:
    """Of exactly so many hits: the binomial distribution, by logarithms."""
    ways = math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1)
    return math.exp(ways + hits * math.log(share) + (trials - hits) * math.log1p(-share))


def share_is(act: str, tally: Tally, percent: int) -> Finding:
    """`percent` of the answers came from v2, within chance."""
    seen = f"{100 * tally.share_on('v2'):.1f} % of {tally.answered:,} answers to iOS users came from v2"
    holds = is_plausible(tally.on("v2"), tally.answered, percent / 100)
    return Finding(holds, f"{act}: {seen}; the file says {percent} %")


def nobody_sees_v2(act: str, tally: Tally) -> Finding:
    """After the rollback."""
    seen = ", ".join(f"{name} {count:,}" for name, count in sorted(tally.by_instance.items()))
    text = f"{act}: {tally.on('v2')} of {tally.answered:,} answers to iOS users came from v2 ({seen})"
    return Finding(tally.on("v2") == 0 and tally.answered > 0, text)


def rules_are_the_same(routes: Mapping[str, str], sidecars: int, pushes: Mapping[int, float]) -> Finding:
    """`routes` is the version that each sidecar has, `pushes` the seconds until all had a share."""
    versions = set(routes.values())
    times = " and ".join(f"{seconds:.2f} s" for seconds in pushes.values())
    text = f"all {len(routes)} sidecars have the rules of version {', '.join(sorted(versions))}; pushes took {times}"
    return Finding(len(routes) == sidecars and len(versions) == 1 and "" not in versions and bool(pushes), text)


def nothing_was_refused(refusals: list[str]) -> Finding:
    return Finding(not refusals, "; ".join(refusals) or "no sidecar refused a resource, and the pilot no document")


def nobody_failed(ledger: Ledger) -> Finding:
    total = ledger.total()
    return Finding(total.failed == 0 and total.requests > 0, f"{total.failed} of {total.requests:,} requests failed")


def everyone_took_part(ledger: Ledger, kinds: list[str]) -> Finding:
    silent = [kind for kind in kinds if not ledger.total(kinds={kind}).answered]
    text = "no answer for " + ", ".join(silent) if silent else f"all {len(kinds)} kinds of clients got answers"
    return Finding(not silent, text)


def others_stay(others: Tally) -> Finding:
    text = f"{others.on('v2')} of {others.answered:,} answers to everybody else came from v2"
    return Finding(others.on("v2") == 0 and others.answered > 0, text)


def connections_lived(ledger: Ledger, expected: Mapping[str, int]) -> Finding:
    """The clients that stay connected never had to connect again, whatever was pushed."""
    opened = sum(ledger.connections[kind] for kind in expected)
    text = f"{sum(expected.values())} clients kept their connection through both pushes and the kill: {opened} opened"
    return Finding(all(ledger.connections[kind] == count for kind, count in expected.items()), text)


def dead_stay_silent(before: Tally, after: Tally, dead: str, twin: str, retries: int) -> list[Finding]:
    """`before` is what iOS users saw while `dead` lived, `after` what they saw of requests sent after its death."""
    answered = before.by_instance[dead]
    return [
        Finding(
            answered > 0 and after.by_instance[dead] == 0,
            f"{dead} gave {answered:,} answers in its life, and {after.by_instance[dead]} to requests after its death",
        ),
        Finding(
            after.by_instance[twin] > 0 and retries > 0,
            f"{twin} went on with {after.by_instance[twin]:,} answers; "
            f"{retries} requests met the dead instance, and the sidecar tried them again",
        ),
    ]


def faults_were_injected(tester: Tally, injected: int, percent: int, delay_ms: float) -> Finding:
    """As many delays as the file says, within chance, and each felt by a client."""
    felt = sum(latency_ms >= 0.9 * delay_ms for latency_ms in tester.latencies_ms)
    holds = is_plausible(injected, tester.requests, percent / 100) and felt >= injected
    return Finding(
        holds,
        f"the fault delayed {injected} of {tester.requests:,} requests with x-chaos (the file says {percent} %); "
        f"{felt} answers took so long",
    )


def counts_agree(ledger: Ledger, counted_by_proxy: int) -> Finding:
    """No client asked twice for what it counted once."""
    sent = ledger.total().requests
    return Finding(
        sent == counted_by_proxy, f"the clients sent {sent:,} requests; their sidecar counted {counted_by_proxy:,}"
    )
