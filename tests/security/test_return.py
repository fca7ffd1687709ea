"""The authority is gone for longer than a third of a lifetime, and back: a thousand agents ask the real one again, by
the policy that agents go by. Time and chance are the test's own."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from pathlib import Path

from meshproxy.agent.renewal import RenewalPolicy
from meshproxy.pilot.authority.contract import Caller, Issued
from meshproxy.pilot.authority.limits import Limits
from meshproxy.tls.spiffe import Identity
from tests.pilot.authority.support import START, Clock, Running, csr, opened

AGENTS = 1_000
LIFE_S = 6 * 3600.0
GONE = START + 0.55 * LIFE_S
BACK = START + 0.95 * LIFE_S
CALLERS = [
    Caller(Identity("cluster.local", "shop", f"agent-{number}"), "jwt", "10.0.0.7:1") for number in range(AGENTS)
]
_CSR = csr()


class Mesh:
    """All agents begin within a minute."""

    def __init__(self, running: Running, clock: Clock) -> None:
        self.issued: list[list[tuple[float, Issued]]] = [[] for _ in range(AGENTS)]
        self.refused = 0  # attempts while it was gone
        # A tenth of what the authority takes by default a second, and of what it takes at once.
        self._limits = Limits((2.0, 20.0), (20.0, 200.0), START)
        self._running = running
        self._clock = clock
        chance = random.Random(8)
        self._policies = [RenewalPolicy(chance.uniform) for _ in range(AGENTS)]
        self._due = [(START + chance.uniform(0.0, 60.0), number) for number in range(AGENTS)]
        heapq.heapify(self._due)

    async def run(self, until: float) -> None:
        while self._due[0][0] < until:
            now, number = self._due[0]
            self._clock.now = now
            heapq.heapreplace(self._due, (now + await self._attempt(number, now), number))

    async def _attempt(self, number: int, now: float) -> float:
        """Seconds until the next one."""
        policy = self._policies[number]
        if GONE <= now < BACK:
            self.refused += 1
            return policy.failed()
        assert self._limits.refusal(CALLERS[number].identity.uri, now) == ""
        issued = await self._running.authority.sign(_CSR, CALLERS[number], LIFE_S)
        self.issued[number].append((now, issued))
        return policy.issued(issued.not_after - now)


async def test_nobody_runs_out_and_there_is_no_stampede(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock=clock) as running:
        mesh = Mesh(running, clock)
        await mesh.run(GONE)
        assert {len(each) for each in mesh.issued} == {1}
        await mesh.run(BACK)
        assert mesh.refused > AGENTS
        assert {len(each) for each in mesh.issued} == {1}
        await mesh.run(BACK + 120.0)
        assert {len(each) for each in mesh.issued} == {2}
        assert all(again < first.not_after for (_, first), (again, _) in mesh.issued)
        late = sorted(again - BACK for _, (again, _) in mesh.issued)
        assert late[-1] <= 60.0
        # 1,000 in 54 s are 19 a second on average.
        assert max(Counter(int(each) for each in late).values()) <= 50
        assert 0.2 < late[AGENTS // 2] / 60.0 < 0.6  # all over the minute, not at its beginning
        assert running.counted("issued_total", proof="jwt") == 2 * AGENTS
        assert [line["event"] for line in running.audit()].count("issued") == 2 * AGENTS
        assert "refused" not in {line["event"] for line in running.audit()}
        # And then they are parted for good: nobody is due again in the same minute as more than a few others.
        assert max(Counter(int(due // 60.0) for due, _ in mesh._due).values()) <= 45
