"""Which simulated process a task belongs to, and what only this process sees: its clock and its pauses.

A task inherits its process from the task that started it. Each host's clocks run at a rate of their own and
from a beginning of their own, so the product's modules see trio's clock through `_HostTrio`. A paused
process (SIGSTOP, a frozen virtual machine) keeps its sockets and its deadlines, and none of its tasks runs.
"""

import itertools
import math
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from heapq import heappop, heappush
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

import trio
from trio.lowlevel import Task

if TYPE_CHECKING:
    from tests.simulation.disk import Disk

_NOT_OF_A_HOST = frozenset({"tests.memory_network"})


class Clock:
    """A host's monotonic clock: `rate` of its seconds go by in one of the world's."""

    def __init__(self, rate: float = 1.0, beginning: float = 0.0) -> None:
        self._rate = rate
        self.beginning = beginning

    def now(self) -> float:
        return self._shown_at(trio.current_time())

    def when(self, shown: float) -> float:
        """The world's time at which the clock shows at least `shown`."""
        if math.isinf(shown):
            return shown
        time = (shown - self.beginning) / self._rate
        while self._shown_at(time) < shown:  # or who waits for it would wake too early, for ever
            time = math.nextafter(time, math.inf)
        return time

    def _shown_at(self, time: float) -> float:
        return self.beginning + time * self._rate


class Process:
    """One life of a host's mount process."""

    def __init__(self, name: str, disk: "Disk", clock: Clock) -> None:
        self.name = name
        self.disk = disk
        self.clock = clock
        self.paused: list[Task] | None = None
        """The tasks that would run, while the process is paused."""
        self.steps = 0
        """How often one of its tasks became able to run."""
        self.pause_at: int | None = None
        """The step before which it is paused."""
        self.stands_still = trio.Event()
        """Set when it was paused by that."""

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.pause_at:
            self.pause()
            self.stands_still.set()

    def pause(self) -> None:
        if self.paused is None:
            self.paused = []

    def resume(self) -> None:
        paused, self.paused = self.paused, None
        _runner().runq.extend(paused or ())


current: ContextVar[Process | None] = ContextVar("current", default=None)


def _runner() -> Any:
    return trio._core._run.GLOBAL_RUN_CONTEXT.runner


class _RunQueue(deque[Task]):
    """Trio's queue of the tasks that can run: those of a paused process stand aside."""

    def append(self, task: Task) -> None:
        process = task.context.get(current)
        if process is not None:
            process.step()
        if process is not None and process.paused is not None:
            process.paused.append(task)
        else:
            super().append(task)


def allow_pauses() -> None:
    """From now on processes can be paused in this run of trio."""
    runner = _runner()
    runner.runq = _RunQueue(runner.runq)


# --- clocks -----------------------------------------------------------------------------------------------


@dataclass(order=True, slots=True)
class _Sleeper:
    until: float
    serial: int
    task: Task | None = field(compare=False)
    """None once it was cancelled."""


class SimulatedTime(trio.abc.Clock):
    """The world's clock: it stands while a task can run, and then is at once at what somebody waits for.

    So does a MockClock that jumps by itself, with the same result and in twice the turns of trio's loop. Most
    of what a simulated host does is to sleep until the next round of something, for which a cancel scope of
    its own each time is half of the work: `sleep_until` does without.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._sleepers: list[_Sleeper] = []
        self._serials = itertools.count()

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Trio asks when no task can run, and only then."""
        sleepers = self._sleepers
        while sleepers and sleepers[0].task is None:
            heappop(sleepers)
        until = min(deadline, sleepers[0].until) if sleepers else deadline
        if self._now < until < math.inf:
            self._now += until - self._now
        while sleepers and sleepers[0].until <= self._now:
            if (task := heappop(sleepers).task) is not None:
                trio.lowlevel.reschedule(task)
        return 0.0

    async def sleep_until(self, time: float) -> None:
        """As `trio.sleep_until`, in as many steps of the task, whatever is cancelled meanwhile."""
        if not self._now < time < math.inf:
            await trio.sleep_until(time)
            return
        task: Any = trio.lowlevel.current_task()
        sleeper = _Sleeper(time, next(self._serials), task)
        heappush(self._sleepers, sleeper)

        def abort(_raise: object) -> trio.lowlevel.Abort:
            sleeper.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if task._cancel_status.effectively_cancelled:  # since it was woken
            raise trio.Cancelled._create(source="unknown")


_WORLD = Clock()


def _clock() -> Clock:
    process = current.get()
    return _WORLD if process is None else process.clock


def host_time() -> float:
    """What the clock of the host shows whose task this is."""
    return _clock().now()


class _HostTrio:
    """The module `trio`, with the clock of whatever host calls."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(trio, name)
        setattr(self, name, value)
        return value

    def current_time(self) -> float:
        return _clock().now()

    async def sleep_until(self, deadline: float) -> None:
        await _sleep_until(_clock().when(deadline))

    def move_on_at(self, deadline: float) -> trio.CancelScope:
        return trio.move_on_at(_clock().when(deadline))

    def move_on_after(self, seconds: float) -> trio.CancelScope:
        clock = _clock()
        return trio.move_on_at(clock.when(clock.now() + seconds))

    def fail_after(self, seconds: float) -> Any:
        clock = _clock()
        return trio.fail_at(clock.when(clock.now() + seconds))

    async def sleep(self, seconds: float) -> None:
        clock = _clock()
        await _sleep_until(clock.when(clock.now() + seconds))


async def _sleep_until(time: float) -> None:
    world = _runner().clock
    await (world if isinstance(world, SimulatedTime) else trio).sleep_until(time)


@contextmanager
def clocks_of_hosts() -> Iterator[None]:
    """While this lasts, the product's modules see the clock of the host for which they run."""
    host_trio = _HostTrio()
    with ExitStack() as stack:
        for module in _modules():
            stack.enter_context(mock.patch.object(module, "trio", host_trio))
        yield


def _modules() -> list[ModuleType]:
    return [
        module
        for name, module in sorted(sys.modules.items())
        if name.startswith("fusemirror.")
        and name not in _NOT_OF_A_HOST
        and getattr(module, "trio", None) is trio
    ]
