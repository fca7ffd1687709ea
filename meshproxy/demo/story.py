"""The story: the stage, three acts, an epilogue, and a summary in which each claim is checked against what was seen."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path
from typing import Final

from meshproxy.demo import checks
from meshproxy.demo.board import board, ios, one_line, others
from meshproxy.demo.checks import Finding
from meshproxy.demo.clients import STAYING_CONNECTED, TESTER, Traffic
from meshproxy.demo.example import (
    ADMIN_PORT,
    INSTANCES,
    LISTENER,
    LISTENER_PORT,
    STAT_PREFIX,
    with_canary_share,
    with_ports,
)
from meshproxy.demo.processes import DemoError, Instance, Processes, Proxy
from meshproxy.demo.screen import BOLD, DIM, GREEN, RED, Screen
from meshproxy.demo.tally import Ledger
from meshproxy.demo.trace import show_a_trace

ACT_1: Final = "Act 1"
RELOAD: Final = "between acts 1 and 2"
ACT_2: Final = "Act 2"
KILL: Final = "between acts 2 and 3"
ACT_3: Final = "Act 3"

# What the example says, and what act 2 makes of it.
PERCENT: Final = 5
MORE_PERCENT: Final = 50
CHAOS_PERCENT: Final = 20
CHAOS_MS: Final = 200.0

DEAD: Final = "v2-b"
TWIN: Final = "v2-a"

_TICK_S: Final = 0.1
_TICKS_PER_LOOK: Final = 5  # at the proxy's statistics


class Story:
    """Call the methods in the order in which they stand here. All raise DemoError when the show cannot go on."""

    def __init__(self, screen: Screen, example: str, source: str, act_s: float) -> None:
        self._screen = screen
        self._example = example
        self._source = source
        self._act_s = act_s
        self._ledger = Ledger()

    async def set_the_stage(self, processes: Processes, directory: Path) -> None:
        """Start the application and the proxy, each on free ports. Raises ExampleError for a file that does not fit."""
        self._instances = {name: Instance(processes, name) for name in INSTANCES.values()}
        for instance in self._instances.values():
            await instance.wait_until_it_serves()
        ports = {port: self._instances[name].port for port, name in INSTANCES.items()}
        self._text = with_ports(self._example, {ADMIN_PORT: 0, LISTENER_PORT: 0, **ports})
        config = directory / "envoy.yaml"
        config.write_text(self._text, encoding="utf-8")
        self._proxy = Proxy(processes, config)
        await self._proxy.wait_until_it_serves(LISTENER)
        self._introduce()

    def _introduce(self) -> None:
        say = self._screen.say
        say("A canary release, with real processes and real traffic", BOLD)
        say()
        say(f"  proxy   http://127.0.0.1:{self._proxy.port}   process {self._proxy.child.pid}")
        say(f"          meshproxy run -c {self._proxy.config}", DIM)
        say(f"          which is {self._source} on free ports", DIM)
        for version in ("v1", "v2"):
            ran = [instance for name, instance in self._instances.items() if name.startswith(version)]
            say(f"  {version}      " + ", ".join(f"{one.name} on {one.port} (process {one.child.pid})" for one in ran))
        say()

    async def play(self) -> None:
        """The three acts, under load from before the first to after the last."""
        self._traffic = Traffic(self._proxy.port, self._ledger)
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
            "The route `ios` matches their user-agent and splits by weight: shop-v1 95, shop-v2 5.",
            "Everyone else falls through to the next route: version 1. One kind of client asks for the fault: slow.",
        )
        self._ledger.act = RELOAD
        await self._proxy.reload(with_canary_share(self._text, MORE_PERCENT))
        await self._act(
            ACT_2,
            f"now {MORE_PERCENT} %, without a restart",
            "The two weights in the file were rewritten under load; the proxy saw it and swapped its routes.",
            "Requests under way went on, and so did every connection.",
        )
        self._ledger.act = KILL
        await self._instances[DEAD].child.kill()
        await self._act(
            ACT_3,
            f"{DEAD} is dead (SIGKILL), and no user notices",
            "`retry_policy` sends a request that met it once more, to the other instance (previous_hosts);",
            "`outlier_detection` takes it out of the rotation after three failures.",
        )

    async def _act(self, act: str, title: str, *explained: str) -> None:
        """One act: a title, what in the file makes it so, and the live table."""
        self._ledger.act = act
        self._screen.say(f"{act}: {title}", BOLD)
        for line in explained:
            self._screen.say(f"  {line}")
        self._screen.begin()
        loop = asyncio.get_running_loop()
        start = loop.time()
        proxy = await self._of_the_proxy()
        tick = 0
        while (elapsed_s := loop.time() - start) < self._act_s:
            await asyncio.sleep(_TICK_S)
            self._traffic.check()
            tick += 1
            if tick % _TICKS_PER_LOOK == 0:
                proxy = await self._of_the_proxy()
            if self._screen.is_due():
                self._show(act, proxy, elapsed_s)
        self._screen.settle(board(self._ledger, act, self._traffic.kinds, await self._of_the_proxy()))
        self._screen.say()

    def _show(self, act: str, proxy: str, elapsed_s: float) -> None:
        if self._screen.draws:
            self._screen.draw(board(self._ledger, act, self._traffic.kinds, proxy))
        else:
            self._screen.say(one_line(self._ledger, act, self._traffic.kinds, elapsed_s))

    async def _of_the_proxy(self) -> str:
        """What the proxy counts itself, from its admin interface. Raises DemoError when it is gone."""
        stats = await self._proxy.stats("^(http|cluster).shop")
        retries = sum(stats.get(f"cluster.shop-{version}.upstream_rq_retry", 0) for version in ("v1", "v2"))
        ejected = stats.get("cluster.shop-v2.outlier_detection.ejections_active", 0)
        requests = stats.get(f"http.{STAT_PREFIX}.downstream_rq_total", 0)
        delayed = stats.get(f"http.{STAT_PREFIX}.fault.delays_injected", 0)
        return f"{requests:,} requests so far; retried {retries}; delayed on purpose {delayed}; hosts ejected {ejected}"

    async def show_a_trace(self, processes: Processes, directory: Path) -> None:
        """One request on its way through two more proxies."""
        self._traced = await show_a_trace(self._screen, processes, directory, self._instances["v1-a"].port)

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
            self._screen.say("Not everything was as it should be. The proxy's last words:", RED)
            self._screen.say(self._proxy.child.log_end(), DIM)
        return holds

    async def _findings(self) -> list[Finding]:
        ledger, kinds = self._ledger, self._traffic.kinds
        ios_kinds = ios(kinds)
        stats = await self._proxy.stats("^(http|cluster).shop")
        return [
            checks.nobody_failed(ledger),
            checks.everyone_took_part(ledger, [kind.name for kind in kinds]),
            checks.share_is(ACT_1, ledger.total({ACT_1}, ios_kinds), PERCENT),
            checks.share_is(ACT_2, ledger.total({ACT_2}, ios_kinds), MORE_PERCENT),
            checks.share_is(ACT_3, ledger.total({ACT_3}, ios_kinds), MORE_PERCENT),
            checks.others_stay(ledger.total(None, others(kinds))),
            checks.connections_lived(ledger, {kind.name: kind.count for kind in STAYING_CONNECTED}),
            *checks.dead_stay_silent(
                ledger.total({ACT_1, RELOAD, ACT_2, KILL}, ios_kinds),
                ledger.total({ACT_3}, ios_kinds),
                DEAD,
                TWIN,
                stats.get("cluster.shop-v2.upstream_rq_retry_success", 0),
            ),
            checks.faults_were_injected(
                ledger.total(None, {TESTER.name}),
                stats.get(f"http.{STAT_PREFIX}.fault.delays_injected", 0),
                CHAOS_PERCENT,
                CHAOS_MS,
            ),
            checks.counts_agree(ledger, stats.get(f"http.{STAT_PREFIX}.downstream_rq_total", 0)),
            self._traced,
        ]

    async def stay(self) -> None:
        """Leave everything running, say what to try, and return when a signal comes.

        Raises DemoError when the proxy ends.
        """
        url = f"http://127.0.0.1:{self._proxy.port}/"
        say = self._screen.say
        say("Still running; Ctrl-C ends it. Try:", BOLD)
        say(f"  curl {url}                         # everyone: v1")
        say(f"  curl -A iPhone {url}               # iOS: v1 or v2, {MORE_PERCENT} % each")
        say(f"  curl -H 'x-chaos: slow' {url}      # one in five waits 0.2 s")
        say(f"  curl http://{self._proxy.admin}/clusters   # also /stats, /stats/prometheus, /listeners, /config_dump")
        say(f"  tail -f {self._proxy.child.output}   # the access log")
        say(f"  $EDITOR {shlex.quote(str(self._proxy.config))}   # save, and it is in force")
        try:
            while self._proxy.child.runs:
                await asyncio.sleep(_TICK_S)
        except asyncio.CancelledError:
            say("\nstopped")
            return
        raise DemoError(f"the proxy ended:\n{self._proxy.child.log_end()}")
