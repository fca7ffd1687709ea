"""The timer wheel with a clock of the test's own: never early, at most a tick late, whatever callbacks do."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from meshproxy.clock import monotonic
from meshproxy.net.timers import TICK_MS, CallTimer, Timer, TimerWheel


class FakeWheel:
    """A wheel without a loop; `now` is a tick."""

    def __init__(self) -> None:
        self.wheel = TimerWheel(None)
        self.start = int(monotonic() * 1000.0) // TICK_MS + 10
        self.advance(0)

    @property
    def now(self) -> int:
        return self._now

    def advance(self, tick: int) -> None:
        """Let it be `tick` ticks after the start."""
        self._now = tick
        self.wheel.advance((self.start + tick) * TICK_MS)

    def arm(self, timer: Timer, tick: int) -> None:
        self.wheel.arm_at(timer, self.start + tick)


class Recorder(Timer):
    """Notes when it fires, and does what it is told to then."""

    def __init__(self, fake: FakeWheel, due: int, fired: list[tuple[int, int]]) -> None:
        super().__init__()
        self.fake = fake
        self.due = due
        self.fired = fired
        self.arm_other: tuple[Recorder, int] | None = None  # and how many ticks later
        self.disarm_other: Recorder | None = None

    def on_timer(self) -> None:
        self.fired.append((self.due, self.fake.now))
        if self.disarm_other is not None:
            self.disarm_other.disarm()
        if self.arm_other is not None:
            other, delay = self.arm_other
            self.arm_other = None
            other.due = self.fake.now + delay
            self.fake.arm(other, other.due)


_TICKS = st.integers(min_value=1, max_value=20_000)  # more than four turns of the wheel


@given(st.lists(_TICKS, max_size=40), st.lists(st.integers(1, 9_000), min_size=1, max_size=8))
def test_each_fires_once_never_early_and_in_the_first_advance_that_may(dues: list[int], steps: list[int]) -> None:
    fake = FakeWheel()
    fired: list[tuple[int, int]] = []
    timers = [Recorder(fake, due, fired) for due in dues]
    for timer in timers:
        fake.arm(timer, timer.due)
    moments = [0]
    for step in steps:
        moments.append(moments[-1] + step)
        fake.advance(moments[-1])
    expected = [(due, next(at for at in moments if at >= due)) for due in dues if due <= moments[-1]]
    assert sorted(fired) == sorted(expected)
    assert [timer.armed for timer in timers] == [due > moments[-1] for due in dues]


@given(st.lists(st.tuples(_TICKS, _TICKS, st.booleans()), min_size=1, max_size=30))
def test_armed_anew_or_disarmed_before_it_fires(plan: list[tuple[int, int, bool]]) -> None:
    fake = FakeWheel()
    fired: list[tuple[int, int]] = []
    expected = []
    for first, second, disarm in plan:
        timer = Recorder(fake, second, fired)
        fake.arm(timer, first)
        fake.arm(timer, second)
        if disarm:
            timer.disarm()
            timer.disarm()
        else:
            expected.append(second)
    for tick in range(0, 20_001, 2_000):
        fake.advance(tick)
    assert sorted(due for due, _ in fired) == sorted(expected)
    assert all(due <= at < due + 2_000 for due, at in fired)


@given(st.data())
def test_callbacks_arm_and_disarm_others(data: st.DataObject) -> None:
    """Whatever they do to others of the same tick, or to themselves: each fires in its tick, and none is lost."""
    fake = FakeWheel()
    fired: list[tuple[int, int]] = []
    count = data.draw(st.integers(2, 8))
    timers = [Recorder(fake, data.draw(st.integers(1, 300)), fired) for _ in range(count)]
    for timer in timers:
        fake.arm(timer, timer.due)
        other = timers[data.draw(st.integers(0, count - 1))]
        action = data.draw(st.sampled_from(["arm", "disarm", "nothing"]))
        if action == "arm":
            timer.arm_other = (other, data.draw(st.integers(1, 5_000)))
        elif action == "disarm" and other is not timer:
            timer.disarm_other = other
    while armed := [timer.due for timer in timers if timer.armed]:
        before = len(fired)
        fake.advance(min(armed))
        assert len(fired) > before
    assert all(due == at for due, at in fired)


def test_one_that_is_disarmed_by_another_of_the_same_tick_does_not_fire() -> None:
    fake = FakeWheel()
    fired: list[tuple[int, int]] = []
    one, two = Recorder(fake, 5, fired), Recorder(fake, 5, fired)
    one.disarm_other, two.disarm_other = two, one
    fake.arm(one, 5)
    fake.arm(two, 5)
    fake.advance(6)
    assert len(fired) == 1
    assert not one.armed
    assert not two.armed


def test_one_that_arms_itself_fires_again_and_again() -> None:
    fake = FakeWheel()
    fired: list[tuple[int, int]] = []
    timer = Recorder(fake, 1, fired)
    timer.arm_other = (timer, 3)
    fake.arm(timer, 1)
    fake.advance(10)
    assert fired == [(1, 10)]
    fake.advance(12)
    assert fired == [(1, 10)]
    fake.advance(13)
    assert fired == [(1, 10), (13, 13)]


def test_a_time_that_has_passed_is_the_next_tick() -> None:
    fake = FakeWheel()
    fired: list[tuple[int, int]] = []
    fake.advance(100)
    timer = Recorder(fake, 50, fired)
    fake.arm(timer, 50)
    assert fired == []
    fake.advance(101)
    assert fired == [(50, 101)]


def test_one_that_is_handed_on_stays_armed_if_it_fires_in_time() -> None:
    fake = FakeWheel()
    fired: list[tuple[int, int]] = []
    timer = Recorder(fake, 0, fired)
    fake.wheel.arm_by(timer, 1000.0)
    first = timer.deadline
    fake.wheel.arm_by(timer, 2000.0)
    assert timer.deadline == first
    fake.wheel.arm_by(timer, 100.0)
    assert 0 < timer.deadline < first
    timer.disarm()
    fake.wheel.arm_by(timer, 2000.0)
    assert timer.deadline > first


# -- on a loop


async def test_on_a_loop_it_is_never_early() -> None:
    wheel = TimerWheel(asyncio.get_running_loop())
    late: list[float] = []
    done = asyncio.Event()
    for index in range(50):
        timeout_ms = index * 1.7
        due = monotonic() + timeout_ms / 1000.0

        def fire(due: float = due) -> None:
            late.append(monotonic() - due)
            if len(late) == 50:
                done.set()

        wheel.arm(CallTimer(fire), timeout_ms)
    async with asyncio.timeout(10):
        await done.wait()
    wheel.close()
    assert min(late) >= 0.0


async def test_one_that_is_due_sooner_is_not_held_up_by_one_that_a_callback_arms() -> None:
    """The wheel goes to sleep until the next of all, not until the newest."""
    wheel = TimerWheel(asyncio.get_running_loop())
    order: list[str] = []
    done = asyncio.Event()
    hour = CallTimer(lambda: order.append("hour"))

    def first() -> None:
        order.append("first")
        wheel.arm(hour, 3_600_000.0)

    def second() -> None:
        order.append("second")
        done.set()

    wheel.arm(CallTimer(first), 5.0)
    wheel.arm(CallTimer(second), 40.0)
    async with asyncio.timeout(10):
        await done.wait()
    wheel.close()
    assert order == ["first", "second"]
    assert hour.armed


async def test_one_that_raises_does_not_stop_the_others() -> None:
    loop = asyncio.get_running_loop()
    told: list[dict[str, object]] = []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: told.append(context))
    wheel = TimerWheel(loop)
    done = asyncio.Event()

    def raises() -> None:
        raise ValueError("on purpose")

    wheel.arm(CallTimer(raises), 1.0)
    wheel.arm(CallTimer(done.set), 1.0)
    wheel.arm(CallTimer(raises), 1.0)
    async with asyncio.timeout(10):
        await done.wait()
    wheel.close()
    loop.set_exception_handler(before)
    assert all(str(context["exception"]) == "on purpose" for context in told)
    assert told
