"""The live table: who asked, which version answered, how fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from meshproxy.demo.clients import Kind
from meshproxy.demo.screen import BOLD, DIM, PLAIN, RED, Line
from meshproxy.demo.tally import Ledger, Tally

_BAR: Final = 40
_HEADER: Final = f"  {'':<27}{'requests':>9}{'v1':>8}{'v2':>8}{'on v2':>9}{'p50 ms':>9}{'p99 ms':>9}{'failed':>8}"


def ios(kinds: Sequence[Kind]) -> set[str]:
    """The names of the kinds that the route `ios` is for."""
    return {kind.name for kind in kinds if kind.is_ios}


def others(kinds: Sequence[Kind]) -> set[str]:
    """The names of all other kinds."""
    return {kind.name for kind in kinds if not kind.is_ios}


def board(ledger: Ledger, act: str, kinds: Sequence[Kind], proxy: str) -> list[Line]:
    """The table of one act; `proxy` is what the proxy says of itself."""
    rows: list[Line] = [(DIM, _HEADER)]
    rows += [_row(kind.name, ledger.total({act}, {kind.name}), PLAIN) for kind in kinds]
    ios_tally = ledger.total({act}, ios(kinds))
    rows.append(_row("iOS users together", ios_tally, BOLD))
    rows.append(_row("everybody else", ledger.total({act}, others(kinds)), BOLD))
    rows.append((PLAIN, f"  iOS users    {_bar(ios_tally)}"))
    rows.append((PLAIN, f"  instances    {_instances(ledger.total({act}).by_instance)}"))
    rows.append((DIM, f"  proxy        {proxy}"))
    return rows


def one_line(ledger: Ledger, act: str, kinds: Sequence[Kind], elapsed_s: float) -> str:
    """The same in one line, for a log."""
    total = ledger.total({act})
    ios_tally = ledger.total({act}, ios(kinds))
    rest = ledger.total({act}, others(kinds))
    return (
        f"  {elapsed_s:3.0f} s   on v2: {_percent(ios_tally):>6} of {ios_tally.answered:,} iOS, "
        f"{_percent(rest)} of {rest.answered:,} others   "
        f"p50 {total.percentile_ms(0.5):.1f} ms  p99 {total.percentile_ms(0.99):.1f} ms   failed {total.failed}"
    )


def _row(name: str, tally: Tally, style: str) -> Line:
    p50, p99 = (f"{tally.percentile_ms(share):.1f}" for share in (0.5, 0.99))
    text = (
        f"  {name:<27}{tally.requests:>9,}{tally.on('v1'):>8,}{tally.on('v2'):>8,}{_percent(tally):>9}"
        f"{p50:>9}{p99:>9}{tally.failed:>8,}"
    )
    return (RED if tally.failed else style, text)


def _percent(tally: Tally) -> str:
    share = tally.share_on("v2")
    return f"{100 * share:.1f} %" if share else "0 %"


def _bar(tally: Tally) -> str:
    on_v2 = round(_BAR * tally.share_on("v2")) if tally.answered else 0
    return f"v1 {'░' * (_BAR - on_v2)}{'█' * on_v2} v2   {_percent(tally)}"


def _instances(by_instance: Mapping[str, int]) -> str:
    return "   ".join(f"{name} {by_instance[name]:,}" for name in sorted(by_instance))
