"""The story: the stage, four acts, an epilogue, and a summary in which each claim is checked against what was seen."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path
from typing import Final

from meshproxy.demo import checks, security
from meshproxy.demo.board import board, ios, one_line, others
from meshproxy.demo.checks import Finding
from meshproxy.demo.clients import STAYING_CONNECTED, TESTER, Traffic
from meshproxy.demo.identities import Lifetimes
from meshproxy.demo.processes import DemoError, Processes
from meshproxy.demo.rules import CANARY, SERVICE_PORT, with_canary_share
from meshproxy.demo.screen import BOLD, DIM, GREEN, RED, Screen
from meshproxy.demo.stage import Stage
from meshproxy.demo.tally import Ledger
from meshproxy.demo.trace import show_a_trace

ACT_1: Final = "Act 1"
PUSH_2: Final = "between acts 1 and 2"
ACT_2: Final = "Act 2"
KILL: Final = "between acts 2 and 3"
ACT_3: Final = "Act 3"
PUSH_4: Final = "between acts 3 and 4"
ACT_4: Final = "Act 4"

# What the example says, and what acts 2 and 4 make of it.
PERCENT: Final = 5
MORE_PERCENT: Final = 50
CHAOS_PERCENT: Final = 20
CHAOS_MS: Final = 200.0

DEAD: Final = "v2-b"
TWIN: Final = "v2-a"

_SHORTEST_S: Final = 8.0  # that a certificate lasts, however short the acts
_TICK_S: Final = 0.1
_TICKS_PER_LOOK: Final = 5  # at the statistics of the users' sidecar
_MANAGER: Final = f"http.outbound_127.0.0.1_{SERVICE_PORT}"
_CLUSTER: Final = f"cluster.outbound|{SERVICE_PORT}|%s|shop.example;"
_WATCHED: Final = "^(http.outbound_|cluster.outbound)"


class Story:
    """Call the methods in the order in which they stand here. All raise DemoError when the show cannot go on."""

    def __init__(self, screen: Screen, canary: str, source: str, act_s: float) -> None:
        self._screen = screen
        self._canary = canary
        self._source = source
        self._act_s = act_s
        self._ledger = Ledger()
        self._pushes: dict[int, float] = {}  # seconds until all sidecars had that share

    async def set_the_stage(self, processes: Processes, directory: Path) -> None:
        """Start everything, on free ports. Raises ExampleError for a file that does not fit."""
        with_canary_share(self._canary, MORE_PERCENT)
        certificate_s = max(_SHORTEST_S, self._act_s)
        self._stage = Stage(processes, directory, self._canary, Lifetimes(certificate_s, certificate_s / 4))
        await self._stage.start(self._screen)
        self._root = await self._stage.pilot.signs()
        self._stage.introduce(self._screen, self._source)

    async def play(self) -> None:
        """The four acts, under load from before the first to after the last."""
        self._traffic = Traffic(self._stage.users.port, self._ledger)
        try:
            await self._play()
            await self._traffic.stop()
        finally:
            self._traffic.abandon()

    async def _play(self) -> None:
        self._ledger.act = ACT_1
        self._traffic.start()
        await self._act(
            ACT_1,
            f"{PERCENT} % of the iOS users get version 2",
            "The VirtualService's route `ios` matches their user-agent and splits by weight: v1 95, v2 5.",
            "Everyone else falls through to the next route: version 1. One kind of client asks for the fault: slow.",
        )
        await self._stage.authority.rotate()
        await self._push(PUSH_2, MORE_PERCENT)
        await self._act(
            ACT_2,
            f"now {MORE_PERCENT} %, without a restart",
            f"The weights in {CANARY} were rewritten under load: the pilot told {len(self._stage.sidecars)} sidecars,",
            f"and the last one had it {self._pushes[MORE_PERCENT]:.2f} s later. Every connection stayed.",
            "Meanwhile their certificates are renewed every few seconds, and the authority's root is replaced.",
        )
        self._ledger.act = KILL
        await self._stage.instances[DEAD].child.kill()
        await self._act(
            ACT_3,
            f"{DEAD} is dead (SIGKILL), and no user notices",
            "`retries` send a request that met it once more, to the other instance (previous_hosts);",
            "`outlierDetection` takes it out of the rotation after three failures.",
        )
        await self._push(PUSH_4, 0)
        await self._act(
            ACT_4,
            "rolled back: version 2 is seen by nobody",
            "Weights 100 and 0, by the same way.",
        )
        await security.until_renewed(self._stage, self._root)  # short acts may be over before

    async def _push(self, meanwhile: str, percent: int) -> None:
        self._ledger.act = meanwhile
        text = with_canary_share(self._canary, percent)
        self._pushes[percent] = await self._stage.pilot.push(CANARY, text, len(self._stage.sidecars))

    async def _act(self, act: str, title: str, *explained: str) -> None:
        """One act: a title, what in the file makes it so, and the live table."""
        self._ledger.act = act
        self._screen.say(f"{act}: {title}", BOLD)
        for line in explained:
            self._screen.say(f"  {line}")
        self._screen.begin()
        loop = asyncio.get_running_loop()
        start = loop.time()
        proxy = await self._of_the_users()
        tick = 0
        while (elapsed_s := loop.time() - start) < self._act_s:
            await asyncio.sleep(_TICK_S)
            self._traffic.check()
            tick += 1
            if tick % _TICKS_PER_LOOK == 0:
                proxy = await self._of_the_users()
            if self._screen.is_due():
                self._show(act, proxy, elapsed_s)
        self._screen.settle(board(self._ledger, act, self._traffic.kinds, await self._of_the_users()))
        self._screen.say()

    def _show(self, act: str, proxy: str, elapsed_s: float) -> None:
        if self._screen.draws:
            self._screen.draw(board(self._ledger, act, self._traffic.kinds, proxy))
        else:
            self._screen.say(one_line(self._ledger, act, self._traffic.kinds, elapsed_s))

    async def _of_the_users(self) -> str:
        """What their sidecar counts itself, from its admin interface. Raises DemoError when it is gone."""
        stats = await self._stage.users.stats(_WATCHED)
        retries = sum(stats.get(f"{_CLUSTER % version}.upstream_rq_retry", 0) for version in ("v1", "v2"))
        ejected = stats.get(f"{_CLUSTER % 'v2'}.outlier_detection.ejections_active", 0)
        requests = stats.get(f"{_MANAGER}.downstream_rq_total", 0)
        delayed = stats.get(f"{_MANAGER}.fault.delays_injected", 0)
        return f"{requests:,} requests so far; retried {retries}; delayed on purpose {delayed}; hosts ejected {ejected}"

    async def show_a_trace(self, processes: Processes, directory: Path) -> None:
        """One request on its way through two more proxies."""
        self._traced = await show_a_trace(self._screen, processes, directory, self._stage.instances["v1-a"].port)

    async def sum_up(self) -> bool:
        """Print each claim with whether it holds; returns whether all do."""
        findings = await self._findings()
        self._screen.say("Summary", BOLD)
        for finding in findings:
            self._screen.say(f"  {'✔' if finding.holds else '✘'} {finding.text}", GREEN if finding.holds else RED)
        for failure in self._ledger.failures:
            self._screen.say(f"    failed, {failure}", RED)
        holds = all(finding.holds for finding in findings)
        self._screen.say()
        if not holds:
            self._screen.say("Not everything was as it should be. The last words of the users' sidecar:", RED)
            self._screen.say(self._stage.users.child.log_end(), DIM)
        return holds

    async def _findings(self) -> list[Finding]:
        ledger, kinds = self._ledger, self._traffic.kinds
        ios_kinds = ios(kinds)
        stats = await self._stage.users.stats(_WATCHED)
        pilot = self._stage.pilot
        return [
            checks.nobody_failed(ledger),
            checks.everyone_took_part(ledger, [kind.name for kind in kinds]),
            checks.share_is(ACT_1, ledger.total({ACT_1}, ios_kinds), PERCENT),
            checks.share_is(ACT_2, ledger.total({ACT_2}, ios_kinds), MORE_PERCENT),
            checks.share_is(ACT_3, ledger.total({ACT_3}, ios_kinds), MORE_PERCENT),
            checks.nobody_sees_v2(ACT_4, ledger.total({ACT_4}, ios_kinds)),
            checks.others_stay(ledger.total(None, others(kinds))),
            checks.connections_lived(ledger, {kind.name: kind.count for kind in STAYING_CONNECTED}),
            *checks.dead_stay_silent(
                ledger.total({ACT_1, PUSH_2, ACT_2, KILL}, ios_kinds),
                ledger.total({ACT_3, PUSH_4, ACT_4}, ios_kinds),
                DEAD,
                TWIN,
                stats.get(f"{_CLUSTER % 'v2'}.upstream_rq_retry_success", 0),
            ),
            checks.faults_were_injected(
                ledger.total(None, {TESTER.name}),
                stats.get(f"{_MANAGER}.fault.delays_injected", 0),
                CHAOS_PERCENT,
                CHAOS_MS,
            ),
            checks.counts_agree(ledger, stats.get(f"{_MANAGER}.downstream_rq_total", 0)),
            checks.rules_are_the_same(await pilot.routes(), len(self._stage.sidecars), self._pushes),
            checks.nothing_was_refused(await pilot.refusals()),
            *await security.findings(self._stage, self._root),
            self._traced,
        ]

    async def stay(self) -> None:
        """Leave everything running, say what to try, and return when a signal comes.

        Raises DemoError when the pilot or the users' sidecar ends.
        """
        stage, say = self._stage, self._screen.say
        url = f"-H 'host: shop.example' http://127.0.0.1:{stage.users.port}/"
        say("Still running; Ctrl-C ends it. Try:", BOLD)
        say(f"  curl {url}                     # everyone: v1")
        say(f"  curl -A iPhone {url}           # iOS: v1, since all was rolled back")
        say(f"  curl -H 'x-chaos: slow' {url}  # one in five waits 0.2 s")
        say(f"  curl http://{stage.pilot.admin}/debug/clients   # also /debug/snapshots, /debug/rejections, /metrics")
        say(f"  curl http://{stage.users.admin}/clusters   # also /stats, /config_dump, /explain?path=/")
        say(f"  $EDITOR {shlex.quote(str(stage.pilot.rules / CANARY))}   # save, and it is in force")
        try:
            while stage.users.child.runs and stage.pilot.child.runs:
                await asyncio.sleep(_TICK_S)
        except asyncio.CancelledError:
            say("\nstopped")
            return
        gone = stage.pilot if stage.users.child.runs else stage.users
        raise DemoError(f"{gone.name} ended:\n{gone.child.log_end()}")
