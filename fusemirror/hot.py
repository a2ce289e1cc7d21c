"""The hot loop: what is read most is served where trio's loop waits, without a task and without a turn of it.

A turn of trio's loop with a task in it costs as much as all else that a small mirrored write needs. So
`readable` calls a function, again and again, whenever a descriptor is readable, and wakes its task only where
that function says so. A poller of our own holds these descriptors and that of trio's own poller; it runs
them in trio's place where trio would wait, and hands over as soon as trio has anything to do:
an event, a task that can run, or a deadline. At most `HOT_CALLS_PER_TURN` functions run before trio has
its turn, and each poll shows trio's events too, so neither starves the other.

**Footing.** trio has no public place for this: `install` gives the I/O manager of the running loop another
`get_events`, which is private. It does so only where trio looks as it is known here; elsewhere, and where it
is not called, `readable` waits in its task and calls the function there. A caller sees no difference.

**Rules for a function that is called so.** It runs outside of any task: it must not wait, set a deadline,
or ask for the current task. It may wake tasks, start some, and close what it reads from. What it raises is
raised in the task that waits.
"""

import logging
import select
from collections.abc import Awaitable, Callable
from typing import Any

import outcome
import trio

from fusemirror.limits import HOT_CALLS_PER_TURN, HOT_EVENTS

log = logging.getLogger(__name__)

Ready = Callable[[], bool]
"""Called when there is something to read; whether its task is to go on."""

_loop: "trio.lowlevel.RunVar[HotLoop | None]" = trio.lowlevel.RunVar("hot loop", None)


def readable(descriptor: int, ready: Ready) -> Awaitable[None]:
    """Return when `ready`, called whenever the descriptor is readable, has returned True.

    It raises what `ready` raises, and `trio.ClosedResourceError` after `notify_closing`. One task may wait so
    for a descriptor. Cancellation: atomic.
    """
    loop = _loop.get()
    return _readable_in_task(descriptor, ready) if loop is None else loop.readable(descriptor, ready)


async def _readable_in_task(descriptor: int, ready: Ready) -> None:
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        if ready():
            return


def notify_closing(descriptor: int) -> None:
    """Call it before the descriptor is closed: whoever waits for it is told."""
    trio.lowlevel.notify_closing(descriptor)
    loop = _loop.get()
    if loop is not None:
        loop.notify_closing(descriptor)


class _Waiter:
    """A task that waits for a descriptor."""

    __slots__ = ("closed", "ready", "task")

    def __init__(self, ready: Ready, task: trio.lowlevel.Task) -> None:
        self.ready = ready
        self.task = task
        self.closed = False


class HotLoop:
    """The poller of one run of trio's loop, and who waits in it."""

    def __init__(self, manager: Any, runnable: Any) -> None:
        """`manager` is trio's I/O manager, `runnable` its collection of tasks that can run."""
        self._poller = select.epoll()
        self._trio_poller: select.epoll = manager._epoll
        self._trio_descriptor = self._trio_poller.fileno()
        self._poller.register(self._trio_descriptor, select.EPOLLIN)
        self._registered_by_trio = manager._registered
        self._runnable = runnable
        self._polled: set[int] = set()
        self._waiters: dict[int, _Waiter] = {}
        self._called: _Waiter | None = None  # its function runs

    def close(self) -> None:
        """The run has ended."""
        self._poller.close()

    # --- waiting ----------------------------------------------------------------------------------------

    async def readable(self, descriptor: int, ready: Ready) -> None:
        if descriptor in self._waiters:
            raise trio.BusyResourceError("another task waits for this descriptor")
        if descriptor not in self._polled:
            self._poller.register(descriptor, select.EPOLLIN)
            self._polled.add(descriptor)
        self._waiters[descriptor] = _Waiter(ready, trio.lowlevel.current_task())

        def abort(_: object) -> trio.lowlevel.Abort:
            del self._waiters[descriptor]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def notify_closing(self, descriptor: int) -> None:
        self._forget(descriptor)
        waiter = self._waiters.get(descriptor)
        if waiter is None:
            return
        if waiter is self._called:
            waiter.closed = True  # it closes what it reads from, and may yet say why
            return
        self._wake(descriptor, waiter, outcome.Error(_closed()))

    def _forget(self, descriptor: int) -> None:
        if descriptor in self._polled:
            self._polled.remove(descriptor)
            self._poller.unregister(descriptor)

    def _wake(self, descriptor: int, waiter: _Waiter, result: "outcome.Outcome[Any]") -> None:
        del self._waiters[descriptor]
        trio.lowlevel.reschedule(waiter.task, result)

    # --- the loop ---------------------------------------------------------------------------------------

    def get_events(self, timeout_s: float) -> list[tuple[int, int]]:
        """Call what is ready, for as long as trio would wait; the events that trio has then."""
        until = trio.current_time() + timeout_s
        calls = 0
        while True:
            events = self._poller.poll(timeout_s, HOT_EVENTS)
            of_trio = False
            for descriptor, _ in events:
                if descriptor == self._trio_descriptor:
                    of_trio = True
                else:
                    self._call(descriptor)
                    calls += 1
            if of_trio:
                return self._trio_poller.poll(0, max(1, len(self._registered_by_trio)))
            if not events or self._runnable or calls >= HOT_CALLS_PER_TURN:
                return []
            timeout_s = until - trio.current_time()
            if timeout_s <= 0:
                return []

    def _call(self, descriptor: int) -> None:
        waiter = self._waiters.get(descriptor)
        if waiter is None:  # nobody wants to know for now, and the event would come again at once
            self._forget(descriptor)
            return
        self._called = waiter
        result = outcome.capture(waiter.ready)
        self._called = None
        if self._waiters.get(descriptor) is not waiter:
            return  # cancelled meanwhile
        if isinstance(result, outcome.Error):
            self._wake(descriptor, waiter, result)
        elif waiter.closed:
            self._wake(descriptor, waiter, outcome.Error(_closed()))
        elif result.value:
            self._wake(descriptor, waiter, result)


def _closed() -> trio.ClosedResourceError:
    return trio.ClosedResourceError("another task closed this descriptor")


def install() -> bool:
    """From now on this run of trio's loop is hot, to its end; false where trio is not as it is known here."""
    context = getattr(getattr(trio._core, "_run", None), "GLOBAL_RUN_CONTEXT", None)
    runner = getattr(context, "runner", None)
    manager = getattr(runner, "io_manager", None)
    runnable = getattr(runner, "runq", None)
    known = (
        isinstance(getattr(manager, "_epoll", None), select.epoll)
        and hasattr(manager, "_registered")
        and callable(getattr(manager, "get_events", None))
        and hasattr(runnable, "__len__")
    )
    if not known:
        log.info("the loop stays as trio %s has it, and small writes take longer", trio.__version__)
        return False
    loop = HotLoop(manager, runnable)
    _loop.set(loop)
    kind: Any = type(manager)

    def get_events(_: Any, timeout_s: float) -> list[tuple[int, int]]:
        return loop.get_events(timeout_s)

    def close(its: Any) -> None:
        loop.close()
        kind.close(its)

    # A class of this run's own, so that no other loop of this process is touched.
    own = {"__slots__": (), "get_events": get_events, "close": close}
    manager.__class__ = type(kind.__name__, (kind,), own)
    return True
