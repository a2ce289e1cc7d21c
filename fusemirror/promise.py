"""A promise: one value or one error, given once, waited for by one task, or by a coroutine that has none.

The path of a write waits exactly once, so this is the leanest wait that trio allows: no event, no
parking lot, and no checkpoint where the value is there already. And a coroutine that waits for promises
alone needs no task at all: `begin` begins with it, and whoever settles the promise goes on with it at once.
"""

import types
from collections.abc import Callable, Coroutine, Generator
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
        self._settle(outcome.Value(value))

    def reject(self, error: Exception) -> None:
        """The waiting task, now or later, gets `error` raised."""
        self._settle(outcome.Error(error))

    def _settle(self, result: outcome.Outcome[T]) -> None:
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
        if self._outcome is not None:
            return self._outcome.unwrap()
        if _Step.is_taken:
            given: outcome.Outcome[T] = await _trap(self)
            return given.unwrap()
        assert self._task is None, "one task waits for a promise"
        self._task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        result: T = await trio.lowlevel.wait_task_rescheduled(abort)
        return result


# --- without a task -------------------------------------------------------------------------------------


class _Step:
    """Whether the code that runs now is that of a coroutine without a task."""

    is_taken = False


class NeedsTask(BaseException):
    """The coroutine that runs has no task, and would wait for something that is no promise."""


def check_task() -> None:
    """Call it before a wait that is for no promise. NeedsTask, which passes all handlers of errors, as a
    cancellation does; nothing may have been changed by then."""
    if _Step.is_taken:
        raise NeedsTask


@types.coroutine
def _trap(promise: Promise[Any]) -> Generator[Any, Any, Any]:
    """Hand the promise to who goes on with the coroutine, and get its outcome."""
    return (yield promise)


class Ending(Protocol[T_in]):
    """What becomes of a coroutine without a task. Neither may raise."""

    def ended(self, result: "outcome.Outcome[T_in]") -> None:
        """It has returned, or raised."""

    def failed(self, error: "outcome.Outcome[Any]") -> None:
        """The promise that it waits for was rejected. What it waits for next may be no promise, so it needs a
        task, which sends it the error.
        """


def begin(coroutine: Coroutine[Any, Any, T]) -> Promise[Any]:
    """The promise that a coroutine without a task waits for first. StopIteration with its result where it has
    ended at once; NeedsTask where it has to be begun anew in a task; else what it raises. Who calls this
    knows that it waits for nothing but promises, or calls `check_task` first, unless one is rejected.
    """
    before, _Step.is_taken = _Step.is_taken, True
    try:
        promise: Promise[Any] = coroutine.send(None)
    finally:
        _Step.is_taken = before
    return promise


def go_on_after(promise: Promise[Any], coroutine: Coroutine[Any, Any, T], ending: Ending[T]) -> None:
    """Go on with a coroutine that has begun when the promise is settled that it waits for; `ending` hears of
    its end."""
    promise.when_settled(partial(_go_on_with, coroutine, ending))


def _go_on_with(
    coroutine: Coroutine[Any, Any, T], ending: Ending[T], settled: "outcome.Outcome[Any]"
) -> None:
    if isinstance(settled, outcome.Error):
        ending.failed(settled)
        return
    before, _Step.is_taken = _Step.is_taken, True
    result = outcome.capture(coroutine.send, settled)
    _Step.is_taken = before
    if isinstance(result, outcome.Value):
        go_on_after(result.value, coroutine, ending)
    elif isinstance(result.error, StopIteration):
        ending.ended(outcome.Value(result.error.value))
    else:
        ending.ended(result)


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
