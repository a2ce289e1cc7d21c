"""A promise: one value or one error, given once, waited for by one task.

The path of a write waits exactly once, so this is the leanest wait that trio allows: no event, no
parking lot, and no checkpoint where the value is there already.
"""

from typing import Generic, TypeVar

import outcome
import trio

T = TypeVar("T")


class Promise(Generic[T]):
    """Resolved or rejected at most once that counts: later calls change nothing."""

    __slots__ = ("_outcome", "_task")

    def __init__(self) -> None:
        self._outcome: outcome.Outcome[T] | None = None
        self._task: trio.lowlevel.Task | None = None

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

    async def wait(self) -> T:
        """The value, or the error raised. Cancellation leaves the promise as it was."""
        if self._outcome is not None:
            return self._outcome.unwrap()
        assert self._task is None, "one task waits for a promise"
        self._task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        result: T = await trio.lowlevel.wait_task_rescheduled(abort)
        return result
