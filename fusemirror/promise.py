"""A promise: one value or one error, given once, waited for by one task, or by a coroutine that has none.

The path of a write waits exactly once, so this is the leanest wait that trio allows: no event, no
parking lot, and no checkpoint where the value is there already. And a coroutine that waits for nothing
after that (`wait_last`) needs no task to wait in: `begin` begins with it in a task that is free then, and
whoever settles the promise goes on with it at once. Where it has to wait for something else first, it keeps
that task; so only what comes after `wait_last` needs to know of this.
"""

import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import outcome
import trio

T = TypeVar("T")
T_in = TypeVar("T_in", contravariant=True)


class Promise(Generic[T]):
    """Resolved or rejected at most once that counts: later calls change nothing."""

    __slots__ = ("_action", "_outcome", "_task")

    def __init__(self) -> None:
        self._outcome: outcome.Outcome[T] | None = None
        self._task: trio.lowlevel.Task | None = None
        self._action: Callable[[outcome.Outcome[T]], None] | None = None

    @property
    def settled(self) -> bool:
        return self._outcome is not None

    def resolve(self, value: T) -> None:
        """The waiting task, now or later, gets `value`."""
        self.settle(outcome.Value(value))

    def reject(self, error: Exception) -> None:
        """The waiting task, now or later, gets `error` raised."""
        self.settle(outcome.Error(error))

    def settle(self, result: outcome.Outcome[T]) -> None:
        """The waiting task, now or later, gets this value, or this error raised."""
        if self._outcome is not None:
            return
        self._outcome = result
        if self._task is not None:
            trio.lowlevel.reschedule(self._task, result)
            self._task = None
        elif self._action is not None:
            action, self._action = self._action, None
            action(result)

    def when_settled(self, action: Callable[[outcome.Outcome[T]], None]) -> None:
        """Call `action` with the value or the error, instead of a task that waits. It must not raise."""
        if self._outcome is not None:
            action(self._outcome)
            return
        assert self._action is None, "one waits for a promise"
        assert self._task is None, "one waits for a promise"
        self._action = action

    async def wait(self) -> T:
        """The value, or the error raised. Cancellation leaves the promise as it was."""
        return await self._wait(self._abort)

    async def wait_through(self) -> T:
        """`wait`, whatever is cancelled: that counts at the next wait."""
        return await self._wait(_go_on)

    async def _wait(self, abort: "Callable[[trio.lowlevel.RaiseCancelT], trio.lowlevel.Abort]") -> T:
        if self._outcome is not None:
            return self._outcome.unwrap()
        assert self._task is None, "one task waits for a promise"
        self._task = trio.lowlevel.current_task()
        result: T = await trio.lowlevel.wait_task_rescheduled(abort)
        return result

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def wait_last(self) -> Awaitable[T]:
        """`wait`, where nothing is waited for afterwards unless this is rejected: it may take no task."""
        return _trap(self) if self._outcome is None and _Step.is_taken else self.wait()


def _go_on(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


# --- without a task -------------------------------------------------------------------------------------


class _Step:
    """Whether the code that runs now is that of a coroutine that may go on without a task."""

    is_taken = False


@types.coroutine
def _trap(promise: Promise[T]) -> Generator[Any, Any, T]:
    """Hand the promise to who goes on with the coroutine, and get its outcome; the value of that."""
    given: outcome.Outcome[T] = yield promise
    return given.unwrap()


class Ending(Protocol[T_in]):
    """What becomes of a coroutine without a task. Neither may raise."""

    def ended(self, result: "outcome.Outcome[T_in]") -> None:
        """It has returned, or raised."""

    def failed(self, error: "outcome.Outcome[Any]") -> None:
        """The promise that it waits for was rejected. What it waits for next may be no promise, so it needs a
        task, which sends it the error.
        """


def begin(coroutine: Coroutine[Any, Any, T]) -> Any:
    """Begin with a coroutine in the current task. The promise that it waits for last: the task is free, and
    `go_on_after` goes on with it. Or what it has yielded to trio: it goes on in this task, by `resumed`.
    StopIteration with its result where it has ended at once; else what it raises.
    """
    before, _Step.is_taken = _Step.is_taken, True
    try:
        return coroutine.send(None)
    finally:
        _Step.is_taken = before


def go_on_after(promise: Promise[Any], coroutine: Coroutine[Any, Any, T], ending: Ending[T]) -> None:
    """Go on with a coroutine that has begun when the promise is settled that it waits for last; `ending`
    hears of its end."""
    promise.when_settled(partial(_go_on_with, coroutine, ending))


def _go_on_with(
    coroutine: Coroutine[Any, Any, T], ending: Ending[T], settled: "outcome.Outcome[Any]"
) -> None:
    if type(settled) is outcome.Value:
        ending.ended(outcome.capture(_end_of, coroutine, settled))
    else:
        ending.failed(settled)


def _end_of(coroutine: Coroutine[Any, Any, T], settled: "outcome.Outcome[Any]") -> T:
    try:
        coroutine.send(settled)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise AssertionError("it waits once more after it waited last")


# --- and in a task again --------------------------------------------------------------------------------


@types.coroutine
def resumed(coroutine: Coroutine[Any, Any, T], trap: Any) -> Generator[Any, Any, T]:
    """Go on in this task with a coroutine that it began by `send(None)`, and that has yielded `trap` to trio.

    trio sends outcomes, also of a cancellation, and throws nothing.
    """
    while True:
        try:
            trap = coroutine.send((yield trap))
        except StopIteration as end:
            result: T = end.value
            return result


async def gone_on(coroutine: Coroutine[Any, Any, T], given: "outcome.Outcome[Any]") -> T:
    """Go on in this task with a coroutine that had none, and is given what became of what it waited for."""
    try:
        trap = coroutine.send(given)
    except StopIteration as end:
        result: T = end.value
        return result
    return await resumed(coroutine, trap)
