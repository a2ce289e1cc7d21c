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

**Rules for a function that is called so.** It runs in the place of the task that waits, which trio takes for
the current one. It may wake tasks, start some, and close what it reads from. What it raises is raised in that
task. It must not wait itself, but it may begin a coroutine by `send(None)`: where that yields to trio, the
function returns it as a `Trapped`, and the task waits for what the coroutine waits for. So whatever code
runs here needs to know nothing of it.
"""

import logging
import select
import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import outcome
import trio

from fusemirror.limits import HOT_CALLS_PER_TURN, HOT_EVENTS

log = logging.getLogger(__name__)


class Trapped:
    """What a coroutine has yielded to trio that was begun in the place of a task, and what trio gave it."""

    __slots__ = ("given", "message")

    def __init__(self, message: Any) -> None:
        self.message = message
        self.given: outcome.Outcome[Any] | None = None


Ready = Callable[[], "bool | Trapped"]
"""Called when there is something to read; whether its task is to go on, or what it waits for now."""

_TASK = {"_abort_func", "_attempt_delivery_of_any_pending_cancel"}  # what is private of a task

_loop: "trio.lowlevel.RunVar[HotLoop | None]" = trio.lowlevel.RunVar("hot loop", None)


def readable(descriptor: int, ready: Ready) -> Awaitable[Trapped | None]:
    """Return when `ready`, called whenever the descriptor is readable, has returned True; or with the
    `Trapped` that it has returned, once that has been given what it waits for, be it a cancellation.

    It raises what `ready` raises, and `trio.ClosedResourceError` after `notify_closing`, unless `ready` has
    called that and returned True: the task is to know of what it took. One task may wait so for a descriptor,
    and none does after a `Trapped`. Cancellation: atomic.
    """
    loop = _loop.get()
    return _readable_in_task(descriptor, ready) if loop is None else loop.readable(descriptor, ready)


async def _readable_in_task(descriptor: int, ready: Ready) -> Trapped | None:
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        result = ready()
        if isinstance(result, Trapped):
            result.given = await _given_for(result.message)
            return result
        if result:
            return None


@types.coroutine
def _given_for(message: Any) -> Generator[Any, Any, "outcome.Outcome[Any]"]:
    """Yield to trio in the place of the coroutine that did."""
    given: outcome.Outcome[Any] = yield message
    return given


def notify_closing(descriptor: int) -> None:
    """Call it before the descriptor is closed: whoever waits for it is told."""
    trio.lowlevel.notify_closing(descriptor)
    loop = _loop.get()
    if loop is not None:
        loop.notify_closing(descriptor)


class _Waiter:
    """A task that waits for a descriptor."""

    __slots__ = ("closed", "ready", "task", "trapped")

    def __init__(self, ready: Ready, task: Any) -> None:
        self.ready = ready
        self.task = task
        self.closed = False
        self.trapped: Trapped | None = None


class HotLoop:
    """The poller of one run of trio's loop, and who waits in it."""

    def __init__(self, manager: Any, runnable: Any, context: Any) -> None:
        """`manager` is trio's I/O manager, `runnable` its collection of tasks that can run, `context` what
        says which task is the current one."""
        self._poller = select.epoll()
        self._trio_poller: select.epoll = manager._epoll
        self._trio_descriptor = self._trio_poller.fileno()
        self._poller.register(self._trio_descriptor, select.EPOLLIN)
        self._registered_by_trio = manager._registered
        self._runnable = runnable
        self._context = context
        self._now = trio.lowlevel.current_clock().current_time  # `trio.current_time`, without the way to it
        self._polled: set[int] = set()
        self._waiters: dict[int, _Waiter] = {}
        self._called: _Waiter | None = None  # its function runs

    def close(self) -> None:
        """The run has ended."""
        self._poller.close()

    # --- waiting ----------------------------------------------------------------------------------------

    async def readable(self, descriptor: int, ready: Ready) -> Trapped | None:
        if descriptor in self._waiters:
            raise trio.BusyResourceError("another task waits for this descriptor")
        if descriptor not in self._polled:
            self._poller.register(descriptor, select.EPOLLIN)
            self._polled.add(descriptor)
        waiter = self._waiters[descriptor] = _Waiter(ready, trio.lowlevel.current_task())

        def abort(_: object) -> trio.lowlevel.Abort:
            del self._waiters[descriptor]
            return trio.lowlevel.Abort.SUCCEEDED

        given = await outcome.acapture(trio.lowlevel.wait_task_rescheduled, abort)
        if waiter.trapped is not None:
            waiter.trapped.given = given
            return waiter.trapped
        given.unwrap()
        return None

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
        until = self._now() + timeout_s
        calls = 0
        while True:
            events = self._poller.poll(timeout_s, HOT_EVENTS)
            of_trio = trapped = False
            for descriptor, _ in events:
                if descriptor == self._trio_descriptor:
                    of_trio = True
                else:
                    trapped |= self._call(descriptor)
                    calls += 1
            if of_trio:
                return self._trio_poller.poll(0, max(1, len(self._registered_by_trio)))
            if not events or self._runnable or trapped or calls >= HOT_CALLS_PER_TURN:
                return []
            timeout_s = until - self._now()
            if timeout_s <= 0:
                return []

    def _call(self, descriptor: int) -> bool:
        """Call who waits for a descriptor, if anybody does; whether something waits in its task now, perhaps
        for a deadline."""
        waiter = self._waiters.get(descriptor)
        if waiter is None:  # nobody wants to know for now, and the event would come again at once
            self._forget(descriptor)
            return False
        task = waiter.task
        # As a task that runs: it is the current one, and a cancellation reaches it at its next wait.
        abort, task._abort_func = task._abort_func, None
        self._context.task = task
        self._called = waiter
        try:
            try:
                result = waiter.ready()
            finally:
                self._called = None
                del self._context.task
        except BaseException as error:  # noqa: BLE001 - it is raised in the task
            self._wake(descriptor, waiter, outcome.Error(error))
            return False
        if not result and not waiter.closed:  # as almost always
            task._abort_func = abort
            task._attempt_delivery_of_any_pending_cancel()
        elif isinstance(result, Trapped):
            self._trap(descriptor, waiter, result)
            return True
        else:
            self._wake(descriptor, waiter, outcome.Value(None) if result else outcome.Error(_closed()))
        return False

    def _trap(self, descriptor: int, waiter: _Waiter, trapped: Trapped) -> None:
        """Do what trio does with what a task yields."""
        waiter.trapped = trapped
        abort = getattr(trapped.message, "abort_func", None)
        if abort is None:  # a checkpoint that cannot be cancelled
            self._wake(descriptor, waiter, outcome.Value(None))
            return
        del self._waiters[descriptor]
        waiter.task._abort_func = abort
        waiter.task._attempt_delivery_of_any_pending_cancel()


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
        and set(dir(trio.lowlevel.Task)) >= _TASK
        and getattr(context, "task", None) is trio.lowlevel.current_task()
    )
    if not known:
        log.info("the loop stays as trio %s has it, and small writes take longer", trio.__version__)
        return False
    loop = HotLoop(manager, runnable, context)
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
