"""Work that nobody waits for: it never ends a mount.

A task of this kind that meets an error tells the log so in one line, waits, and tries again, ever later up to
a limit; `status` tells what fails, for as long as it does.

What must stop a mount does not come by this way. A volume that can no longer be trusted (its journal failed
in the middle of a record, its disk answers with EIO, it has no catalog) is told to its `health`
(`volume/health.py`), by whichever call met that, and the host stops serving in order, whatever becomes of the
task. So does a role that could not be made durable. And what is no error of ours, as a `KeyError`, is a bug:
nobody knows what it left behind, so it does end the mount, with its trace in the log.
"""

import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import trio

from fusemirror.errors import FusemirrorError
from fusemirror.limits import BACKGROUND_PAUSE_FIRST_S, BACKGROUND_PAUSE_MAX_S

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class _Failure:
    """Of one task: what it met last, since when it fails (trio time), and since when it is tried again."""

    error: str
    since: float
    pause_s: float = 0.0
    again_since: float = math.inf


class Background:
    """The tasks of one mount, by their names; which of them fail."""

    def __init__(self) -> None:
        self._failures: dict[str, _Failure] = {}

    async def repeat(self, task: str, work: Callable[[], Awaitable[Any]]) -> NoReturn:
        """Do `work` again and again. It waits for something each time, or goes on for ever by itself.

        Cancelled, it leaves what `work` leaves; what has ended fails no more, as with the role it was for.
        """
        try:
            while True:
                if not await self.attempt(task, work):
                    await self._pause(task)
        finally:
            self._failures.pop(task, None)

    async def until_done(
        self, task: str, work: Callable[[], Awaitable[T]], pause_max_s: float = BACKGROUND_PAUSE_MAX_S
    ) -> T:
        """What `work` gives once it goes well. Cancelled, it leaves what `work` leaves."""
        given: list[T] = []

        async def once() -> None:
            given.append(await work())

        try:
            while not await self.attempt(task, once):
                await self._pause(task, pause_max_s)
        finally:
            self._failures.pop(task, None)
        return given[0]

    async def start(
        self,
        task: str,
        work: Callable[..., Awaitable[Any]],
        *,
        task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """As `repeat`, for work that is started: an error before it has is its starter's to hear.

        On return the work has come to its end by itself.
        """
        once = _Once(task_status)
        while True:
            try:
                await work(task_status=once)
                return
            except (FusemirrorError, OSError, ExceptionGroup) as error:
                if not once.done:
                    raise
                self._failed(task, _ours(error))
            await self._pause(task)

    async def attempt(self, task: str, work: Callable[[], Awaitable[Any]]) -> bool:
        """Do `work` once; whether it went well."""
        failure = self._failures.get(task)
        if failure is not None:
            failure.again_since = trio.current_time()
        try:
            await work()
        except (FusemirrorError, OSError, ExceptionGroup) as error:
            self._failed(task, _ours(error))
            return False
        if self._failures.pop(task, None) is not None:
            log.info("%s: goes on", task)
        return True

    def status(self, now_ns: int) -> list[dict[str, Any]]:
        """What fails now, for `status`: since when in seconds of the epoch."""
        now = trio.current_time()
        return [
            {
                "task": task,
                "error": failure.error,
                "since": round(now_ns / 1e9 - (now - failure.since), 3),
            }
            for task, failure in self._failures.items()
            if now - failure.again_since < BACKGROUND_PAUSE_MAX_S  # else it has long gone well
        ]

    def _failed(self, task: str, error: FusemirrorError | OSError) -> None:
        now, text = trio.current_time(), str(error)
        failure = self._failures.get(task)
        if failure is None or now - failure.again_since >= BACKGROUND_PAUSE_MAX_S:
            failure = self._failures[task] = _Failure(text, now)
            log.error("%s: %s; it is tried again, see `fusemirror status`", task, text)
        elif failure.error != text:
            failure.error = text
            log.info("%s: still fails: %s", task, text)
        failure.again_since = math.inf

    async def _pause(self, task: str, pause_max_s: float = BACKGROUND_PAUSE_MAX_S) -> None:
        failure = self._failures[task]
        failure.pause_s = min(max(2 * failure.pause_s, BACKGROUND_PAUSE_FIRST_S), pause_max_s)
        await trio.sleep(failure.pause_s)
        failure.again_since = trio.current_time()


class _Once:
    """A task status that is told `started` by the first of several runs."""

    def __init__(self, status: trio.TaskStatus[Any]) -> None:
        self._status = status
        self.done = False

    def started(self, value: Any = None) -> None:
        if not self.done:
            self.done = True
            self._status.started(value)


def _ours(error: Exception) -> FusemirrorError | OSError:
    """The error itself, or the first that a nursery packed. One of a bug, or a bug's as well, is raised."""
    if isinstance(error, ExceptionGroup):
        found, rest = error.split((FusemirrorError, OSError))
        if found is None or rest is not None:
            raise error
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
    assert isinstance(error, FusemirrorError | OSError)
    return error
