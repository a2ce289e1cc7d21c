"""The session with the kernel: reads requests from /dev/fuse, lets them be served, writes the replies.

One task reads at a time, in the kernel's order, without blocking, until there is nothing more. A request's
handler starts in the reader's own task, where that waits for the device (`hot.py`). What need not wait is
answered there, without a turn of the loop; at the first wait of a handler another task becomes the reader,
and the handler goes on in the task in which it began. So the number of tasks is that of the requests that
wait, and a few that are ready to read.

**Limits.** So many requests wait (`waiting.py`); beyond, nothing is read, and the kernel keeps the others.

**Without a task.** What makes, moves or removes a name, and waits for its promise last
(`promise.begin`), leaves the reader its task, and whoever settles the promise writes the reply. Where the
promise is rejected, or a name is in doubt, the handler goes on in a task of its own. A write, of all requests
the most frequent, has not even a coroutine (`Server.begin_write`), unless something else is in its way.

**Interrupts.** A signal to a program that waits is no reason to answer: a SIGCHLD would make programs
fail that do not expect EINTR of a file. Only a wait for a lock ends (`Server.interrupt`), as on a local disk;
the kernel restarts the call by itself where the program's handler says so.
But a program that is being killed is let go: its request is
answered with EINTR, which nobody sees, while the handler goes on, so that a change that is under way
takes effect once, or not at all. What its answer would have handed to the kernel is taken back, and the
kernel drops what it has of what the request changed (`Server.untaken`).

**Notifications** are pyfuse3's: libfuse writes them to the same descriptor, one call for each.

**Mistakes.** A request that cannot be read is answered with EIO. Any other exception that leaves a handler
or the reader ends `run`: handlers answer for their own mistakes.
"""

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Protocol

import outcome
import trio

from fusemirror import hot
from fusemirror.errors import MalformedRequest
from fusemirror.kernel import codec
from fusemirror.kernel.callers import is_dying
from fusemirror.kernel.codec import IN_HEADER, FuseReply, InHeader, Opcode, error_reply
from fusemirror.kernel.pruning import Pruning
from fusemirror.kernel.waiting import WaitingRequest, WaitingRequests
from fusemirror.limits import (
    CALLER_LOOK_S,
    REQUESTS_IDLE,
    REQUESTS_PER_TURN,
    TURNS_PER_LOOK,
    WRITE_BYTES_MAX,
)
from fusemirror.promise import Promise, begin, go_on_after, gone_on

log = logging.getLogger(__name__)

# libfuse's, by which it answers FUSE_INIT: the kernel reads into none that is smaller than the largest write.
BUFFER_BYTES = WRITE_BYTES_MAX + 4096
_ABORTED = errno.ENOENT  # the request, before it was read or answered
_UNMOUNTED = {errno.ENODEV, errno.ECONNABORTED}

_WITHOUT_REPLY = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT}

_WRITE = Opcode.WRITE
_WAITS_LAST = frozenset(
    (
        _WRITE,
        Opcode.CREATE,
        Opcode.MKNOD,
        Opcode.MKDIR,
        Opcode.SYMLINK,
        Opcode.LINK,
        Opcode.UNLINK,
        Opcode.RMDIR,
        Opcode.RENAME,
        Opcode.RENAME2,
    )
)
"""Their handlers wait for nothing more once the change that they ask for is acknowledged."""

Handling = Coroutine[Any, Any, FuseReply]

Start = Callable[..., None]
"""Starts a task: `Nursery.start_soon`."""


class Server(Protocol):
    """What serves the requests. All that it keeps of a request's body it must copy before it waits."""

    def begin_write(self, header: InHeader, body: memoryview) -> Any:
        """A write that waits for its `promise`, and goes on by `reply_to_write` or `end_write`. None: nothing
        was done, and `serve` is to do it."""

    def reply_to_write(
        self, header: InHeader, begun: Any, result: "outcome.Outcome[Any]"
    ) -> FuseReply | None:
        """The reply, and nothing more is to be done; None where `end_write` does it. It must not raise."""

    def end_write(self, header: InHeader, begun: Any, result: "outcome.Outcome[Any]") -> Handling:
        """Begin with the rest of a write whose promise has become that."""

    def serve(self, header: InHeader, body: memoryview) -> Handling | None:
        """Begin with a request; None for one that has no reply, and for one that is unknown: ENOSYS."""

    def interrupt(self, unique: int) -> None:
        """A signal came to the program whose request this is: a wait for a lock ends, and nothing else."""

    async def untaken(self, header: InHeader, body: bytes, reply: FuseReply) -> None:
        """The kernel did not get this reply: what it hands out is taken back on return, and what it would
        have told of a change is told otherwise. `body` is that of a request that changes names, else empty.
        """

    def in_doubt(self, header: InHeader, body: bytes) -> None:
        """The reply is EIO, and goes to the kernel next. Names that the request was to change may be changed
        all the same, and the kernel would go by what they were. `body` as for `untaken`."""


class _Begun(hot.Trapped):
    """A request that waits in the task that has read it."""

    __slots__ = ("handling", "waiting")

    def __init__(self, message: Any, waiting: WaitingRequest, handling: Handling) -> None:
        super().__init__(message)
        self.waiting = waiting
        self.handling = handling


def _may_be_in_doubt(waiting: WaitingRequest, reply: FuseReply) -> bool:
    return bool(waiting.body) and codec.error_of(reply) != 0


async def _given(result: "outcome.Outcome[FuseReply]") -> FuseReply:
    return result.unwrap()


class _WithoutTask:
    """A request whose handler waits without a task, and is answered when it has ended."""

    __slots__ = ("_handling", "_session", "_start", "_waiting")

    def __init__(
        self, session: "FuseSession", waiting: WaitingRequest, handling: Handling, start: Start
    ) -> None:
        self._session = session
        self._waiting = waiting
        self._handling = handling
        self._start = start

    def ended(self, result: "outcome.Outcome[FuseReply]") -> None:
        session, waiting = self._session, self._waiting
        if session.is_left:
            return
        session.requests.without_task -= 1
        if type(result) is not outcome.Value or waiting.answered or _may_be_in_doubt(waiting, result.value):
            self._start(session.finish, waiting, _given(result))
            return
        session.requests.remove(waiting)
        session.reply(result.value)

    def failed(self, error: "outcome.Outcome[Any]") -> None:
        session = self._session
        if session.is_left:
            self._handling.close()
            return
        session.requests.without_task -= 1
        self._start(session.finish, self._waiting, gone_on(self._handling, error))


class _Write(WaitingRequest):
    """A write that waits for its promise alone."""

    __slots__ = ("_begun", "_session", "_start")

    def __init__(self, session: "FuseSession", header: InHeader, begun: Any, start: Start) -> None:
        super().__init__(header, b"", session.now())
        self._session = session
        self._begun = begun
        self._start = start

    def settled(self, result: "outcome.Outcome[Any]") -> None:
        session, header, begun = self._session, self.header, self._begun
        if session.is_left:
            return
        session.requests.without_task -= 1
        reply = None if self.answered else session.server.reply_to_write(header, begun, result)
        if reply is None:
            self._start(session.finish, self, session.server.end_write(header, begun, result))
            return
        session.requests.remove(self)
        session.reply(reply)


class FuseSession:
    """The one session of a mount, over the descriptor that leads to the kernel once FUSE_INIT is answered."""

    def __init__(self, device: int, server: Server) -> None:
        self._device = device
        self.server = server
        self._buffers = [bytearray(BUFFER_BYTES)]
        self._view = memoryview(self._buffers[0])
        self._ended = False
        self.requests = WaitingRequests()
        self._parked: list[trio.lowlevel.Task] = []
        self._stopped = trio.Event()
        self._turns = 0
        self.now = trio.current_time
        self._had_more = False  # than one request when it was looked last
        self.is_left = False
        self.pruning = Pruning(device)

    async def run(self) -> None:
        """Serve until unmounted or stopped, and until every handler that had begun has ended.

        Cancelled, or left by an exception, it answers nothing more: the mount is to be ended then.
        """
        self.now = trio.lowlevel.current_clock().current_time  # `trio.current_time`, without the way to it
        os.set_blocking(self._device, False)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_letting_go)
                try:
                    async with trio.open_nursery() as working:
                        working.start_soon(self._work, working)
                        working.start_soon(self._wait_for_the_rest)
                finally:
                    self.is_left = True
                nursery.cancel_scope.cancel()
        finally:
            self._ended = True
            hot.notify_closing(self._device)
            self.pruning.end()
            os.set_blocking(self._device, True)  # it is libfuse's again, which unmounts

    def stop(self) -> None:
        """Read no more; `run` ends when what has begun has ended. Nothing where it has ended already."""
        if not self._ended:
            self._end()
            hot.notify_closing(self._device)

    def _end(self) -> None:
        self._ended = True
        self._stopped.set()
        self.requests.stop()
        for task in self._parked:
            trio.lowlevel.reschedule(task)
        self._parked.clear()

    # --- tasks ----------------------------------------------------------------------------------------

    async def _work(self, nursery: trio.Nursery) -> None:
        """Read; go on with a request that has to wait, while another task reads; be at hand."""
        ready = partial(self._serve, nursery)
        while not self._ended:
            if self.requests.is_full():
                await self.requests.until_fewer()
                continue
            try:
                begun = await hot.readable(self._device, ready)
            except trio.ClosedResourceError:
                return
            if not isinstance(begun, _Begun):
                continue
            assert begun.given is not None
            await self.finish(begun.waiting, gone_on(begun.handling, begun.given))
            if self._ended or len(self._parked) >= REQUESTS_IDLE:
                return
            await self._park()

    async def _park(self) -> None:
        """Return as the reader, or at the end."""
        task = trio.lowlevel.current_task()
        self._parked.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def _serve(self, nursery: trio.Nursery) -> bool | _Begun:
        """Answer what need not wait. What has to wait in the task of who calls this, which reads no more; or
        whether it is to look how it goes on."""
        serve = self.server.serve
        self._turns += 1
        for count in range(REQUESTS_PER_TURN):
            if self._ended or self.requests.is_full():
                return True
            if count == 1 and not self._had_more and self._turns % TURNS_PER_LOOK:
                return False  # what one program asks is alone; and where it is not, this is called again
            request = self._next()
            if count:
                self._had_more = request is not None
            if request is None:
                return self._ended
            header, body = request
            try:
                if header.opcode == _WRITE and (begun := self.server.begin_write(header, body)) is not None:
                    write = _Write(self, header, begun, nursery.start_soon)
                    self.requests.add(write)
                    self.requests.without_task += 1
                    begun.promise.when_settled(write.settled)
                    continue
                handling = serve(header, body)
                if handling is None:
                    self._answer_itself(header, body)
                    continue
                message = begin(handling) if header.opcode in _WAITS_LAST else handling.send(None)
            except StopIteration as end:
                self.reply(end.value)
            except MalformedRequest as error:
                self._refuse(header, error)
            else:
                told = bytes(body) if header.opcode in codec.TELL_IN_BODY else b""
                waiting = WaitingRequest(header, told, self.now())
                self.requests.add(waiting)
                if type(message) is not Promise:
                    self._let_another_read(nursery)
                    return _Begun(message, waiting, handling)
                self.requests.without_task += 1
                go_on_after(message, handling, _WithoutTask(self, waiting, handling, nursery.start_soon))
        return False

    def _let_another_read(self, nursery: trio.Nursery) -> None:
        if self._parked:
            trio.lowlevel.reschedule(self._parked.pop())
        else:
            nursery.start_soon(self._work, nursery)

    def _next(self) -> tuple[InHeader, memoryview] | None:
        """The next request, whose body stands in the buffer until another is read; None where there is none
        for now, or for ever."""
        while True:
            try:
                size = os.readv(self._device, self._buffers)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno == _ABORTED:
                    continue
                if error.errno not in _UNMOUNTED:
                    raise
                size = 0
            if not size:
                self._end()
                return None
            header = IN_HEADER.read(self._view[:size])
            if header.len == size:
                return header, self._view[IN_HEADER.size : size]
            self._refuse(header, MalformedRequest(f"{size} bytes that say they are {header.len}"))

    async def _wait_for_the_rest(self) -> None:
        """Return when nothing more is read, and what has begun without a task has ended, or has one."""
        await self._stopped.wait()
        while self.requests.without_task:
            await self.requests.until_fewer()

    # --- those that wait ------------------------------------------------------------------------------------

    async def finish(self, waiting: WaitingRequest, going_on: Awaitable[FuseReply]) -> None:
        header = waiting.header
        try:
            reply = await going_on
        except MalformedRequest as error:
            self._refuse(header, error)
            return
        finally:
            self.requests.remove(waiting)
        if waiting.answered:
            await self.server.untaken(header, waiting.body, reply)
            return
        if waiting.body and codec.error_of(reply) == errno.EIO:
            self.server.in_doubt(header, waiting.body)
        self.reply(reply)

    # --- replies --------------------------------------------------------------------------------------

    def reply(self, reply: FuseReply) -> None:
        try:
            os.writev(self._device, reply)
        except OSError as error:
            # A request is only aborted with its connection: then the kernel gives nothing back any more.
            if error.errno != _ABORTED and error.errno not in _UNMOUNTED:
                raise

    def _refuse(self, header: InHeader, error: MalformedRequest) -> None:
        log.error("%s (opcode %d)", error, header.opcode)
        if header.opcode not in _WITHOUT_REPLY:
            self.reply(error_reply(header.unique, errno.EIO))

    def _answer_itself(self, header: InHeader, body: memoryview) -> None:
        """What the server has nothing to do with, or does not know."""
        opcode = header.opcode
        if opcode == Opcode.INTERRUPT:
            waiting = self.requests.by_number.get(codec.INTERRUPT_IN.read(body).unique)
            if waiting is not None:
                self.server.interrupt(waiting.header.unique)
                self._let_go_if_dying(waiting)
        elif opcode not in _WITHOUT_REPLY:
            self.reply(error_reply(header.unique, errno.ENOSYS))

    # --- programs that are killed -----------------------------------------------------------------------

    async def _run_letting_go(self) -> None:
        """Let those go whom no interrupt tells of: the kernel sends one for the first signal only."""
        while True:
            await trio.sleep(CALLER_LOOK_S)
            before = trio.current_time() - CALLER_LOOK_S
            for waiting in list(self.requests.by_number.values()):
                if waiting.since <= before:
                    self._let_go_if_dying(waiting)

    def _let_go_if_dying(self, waiting: WaitingRequest) -> None:
        if not waiting.answered and is_dying(waiting.header.pid):
            waiting.answered = True
            self.server.interrupt(waiting.header.unique)
            self.reply(error_reply(waiting.header.unique, errno.EINTR))
