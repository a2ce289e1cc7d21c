"""Threads: what blocks on a disk runs beside the loop, which hears of its end where it waits (`hot.py`).

An fsync needs a thread, and little else: trio's own way (`trio.to_thread`) takes two turns of its loop for
each call, and a lock for each of them. Here a call is put into a queue, one thread takes it, and says by an
event descriptor that it has ended.

The threads last as long as the run of trio's loop in which they were begun; its end waits for what they do.
"""

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import outcome
import trio

from fusemirror import hot
from fusemirror.limits import THREADS_MAX
from fusemirror.promise import Promise

T = TypeVar("T")

_threads: "trio.lowlevel.RunVar[_Threads | None]" = trio.lowlevel.RunVar("threads", None)


class _Call:
    __slots__ = ("arguments", "function", "promise", "result")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function = function
        self.arguments = arguments
        self.promise = Promise[Any]()
        self.result: outcome.Outcome[Any] | None = None


class _Threads:
    """Those of one run of trio's loop."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._ended: deque[_Call] = deque()
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._threads: list[Thread] = []
        self._under_way = 0

    def call(self, function: Callable[..., T], *arguments: Any) -> Promise[T]:
        call = _Call(function, arguments)
        self._under_way += 1
        if self._under_way > len(self._threads) < THREADS_MAX:
            thread = Thread(target=self._work, name=f"blocking {len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)
        self._calls.put(call)
        return call.promise

    def _work(self) -> None:
        """In a thread."""
        while (call := self._calls.get()) is not None:
            call.result = outcome.capture(call.function, *call.arguments)
            self._ended.append(call)
            del call  # it may hold much, and the next one may come late
            os.eventfd_write(self._event, 1)

    def _hear(self) -> bool:
        with suppress(BlockingIOError):
            os.eventfd_read(self._event)
        while self._ended:
            call = self._ended.popleft()
            self._under_way -= 1
            assert call.result is not None
            call.promise.settle(call.result)
        return False

    async def run(self) -> None:
        """Hear of what ends, to the end of the run."""
        try:
            await hot.readable(self._event, self._hear)
        finally:
            for _ in self._threads:
                self._calls.put(None)
            for thread in self._threads:
                thread.join()
            hot.notify_closing(self._event)
            os.close(self._event)


async def run_in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Run `function` in a thread. Cancellation waits for it: its effect is then whole."""
    await trio.lowlevel.checkpoint_if_cancelled()
    threads = _threads.get()
    if threads is None:
        threads = _Threads()
        _threads.set(threads)
        trio.lowlevel.spawn_system_task(threads.run)
    return await threads.call(function, *arguments).wait_through()
