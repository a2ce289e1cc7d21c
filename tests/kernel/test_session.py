"""The session over a socket that gives it the kernel's bytes one request at a time, as /dev/fuse does."""

import errno
import os
import socket
import tracemalloc
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import outcome
import pytest
import trio
import trio.testing

from fusemirror import hot
from fusemirror.errors import MalformedRequest
from fusemirror.kernel import codec, session, waiting
from fusemirror.kernel.codec import FuseReply, InHeader, Opcode
from fusemirror.kernel.session import FuseSession
from fusemirror.limits import KIB, REQUESTS_IDLE, REQUESTS_WAITING_MAX, TURNS_PER_LOOK
from fusemirror.promise import Promise

READ = codec.READ_IN.pack(1, 0, 10, 0, 0, 0, 0)
DEADLINE_S = 5.0


class Served:
    """A server that answers READ with what the test says, and counts."""

    def __init__(self) -> None:
        self.gates: dict[int, trio.Event] = {}  # requests that wait, by their number
        self.started: list[int] = []
        self.tasks: dict[int, trio.lowlevel.Task] = {}
        self.interrupted: list[int] = []
        self.forgotten: list[tuple[int, int]] = []
        self.untaken_replies: list[tuple[InHeader, bytes, FuseReply]] = []
        self.doubts: list[tuple[int, bytes]] = []
        self.promises: dict[int, Promise[int]] = {}  # of writes, which wait without a task
        self.begun: dict[int, BegunWrite] = {}  # writes that wait for nothing else

    def begin_write(self, header: InHeader, _: memoryview) -> "BegunWrite | None":
        if header.unique in self.begun:
            self.started.append(header.unique)
        return self.begun.get(header.unique)

    def reply_to_write(
        self, header: InHeader, begun: "BegunWrite", result: "outcome.Outcome[int]"
    ) -> FuseReply | None:
        begun.asked += 1
        return codec.write_reply(header.unique, 7) if type(result) is outcome.Value else None

    async def end_write(self, header: InHeader, _: "BegunWrite", result: "outcome.Outcome[int]") -> FuseReply:
        await trio.lowlevel.checkpoint()
        try:
            return codec.write_reply(header.unique, result.unwrap())
        except ValueError:
            return codec.error_reply(header.unique, errno.EROFS)

    def serve(self, header: InHeader, body: memoryview) -> Coroutine[Any, Any, FuseReply] | None:
        if header.opcode in (Opcode.READ, Opcode.RENAME):
            return self._read(header, body)
        if header.opcode in (Opcode.WRITE, Opcode.UNLINK):
            return self._write(header)
        if header.opcode == Opcode.BATCH_FORGET:
            self.forgotten += codec.forgotten_in(body)
        return None

    async def _write(self, header: InHeader) -> FuseReply:
        if header.nodeid == 15:
            with trio.move_on_after(0.001):  # as where a lease has run out
                await trio.sleep_forever()
        self.started.append(header.unique)
        try:
            written = await self.promises[header.unique].wait_last() if header.unique in self.promises else 0
        except ValueError:
            await trio.lowlevel.checkpoint()
            return codec.error_reply(header.unique, errno.EROFS)
        if header.nodeid == 13:
            raise KeyError("a mistake")
        if header.nodeid == 14:
            raise MalformedRequest("late")
        if header.nodeid == 16:
            return codec.error_reply(header.unique, errno.EIO)
        return codec.write_reply(header.unique, written)

    async def _read(self, header: InHeader, body: memoryview) -> FuseReply:
        asked = codec.READ_IN.read(body)
        self.started.append(header.unique)
        self.tasks[header.unique] = trio.lowlevel.current_task()
        if header.unique in self.gates:
            await self.gates[header.unique].wait()
            assert self.tasks[header.unique] is trio.lowlevel.current_task()
        if header.nodeid == 13:
            raise KeyError("a mistake")
        if header.nodeid == 14:
            raise MalformedRequest("late")
        if header.nodeid == 16:
            return codec.error_reply(header.unique, errno.EIO)
        return codec.data_reply(header.unique, bytes(asked.size if header.opcode == Opcode.READ else 0))

    def interrupt(self, unique: int) -> None:
        self.interrupted.append(unique)

    async def untaken(self, header: InHeader, body: bytes, reply: FuseReply) -> None:
        self.untaken_replies.append((header, body, reply))

    def in_doubt(self, header: InHeader, body: bytes) -> None:
        self.doubts.append((header.unique, body))


class BegunWrite:
    """One that waits for its promise alone; how often its reply was asked for."""

    def __init__(self) -> None:
        self.promise: Promise[int] = Promise()
        self.asked = 0


class Kernel:
    """The other end: it asks, and takes the answers."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, opcode: int, unique: int, body: bytes = READ, *, nodeid: int = 1, pid: int = 0) -> None:
        size = codec.IN_HEADER.size + len(body)
        self._end.send(codec.IN_HEADER.pack(size, opcode, unique, nodeid, 0, 0, pid, 0, 0) + body)

    def send_bytes(self, data: bytes) -> None:
        self._end.send(data)

    async def is_read_from(self) -> None:
        """There is room for another request."""
        with trio.fail_after(DEADLINE_S):
            await trio.lowlevel.wait_writable(self._end)

    async def answer(self) -> tuple[int, int]:
        """The number of the request that is answered next, and the error."""
        with trio.fail_after(DEADLINE_S):
            await trio.lowlevel.wait_readable(self._end)
        data = self._end.recv(1 << 16)
        found = codec.OUT_HEADER.read(data)
        assert found.len == len(data)
        return found.unique, -found.error

    def is_quiet(self) -> bool:
        with pytest.raises(BlockingIOError):
            self._end.recv(1)
        return True


@pytest.fixture(params=["hot", "in tasks"])
async def server(request: pytest.FixtureRequest) -> Served:
    """In a loop that is hot, and in one that is not: what is seen is the same."""
    if request.param == "hot":
        assert hot.install()
    return Served()


@contextmanager
def opened(server: Served) -> Iterator[tuple[socket.socket, FuseSession]]:
    """The kernel's end, and a session that is to run."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    with ours, theirs:
        yield theirs, FuseSession(ours.fileno(), server)


@asynccontextmanager
async def serving(server: Served) -> AsyncIterator[tuple[Kernel, FuseSession]]:
    with opened(server) as (theirs, served):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            yield Kernel(theirs), served
            served.stop()
            nursery.cancel_scope.deadline = trio.current_time() + DEADLINE_S


async def test_what_need_not_wait_is_answered_in_the_task_that_reads(server: Served) -> None:
    async with serving(server) as (kernel, _):
        for unique in (2, 4, 6):
            kernel.send(Opcode.READ, unique)
        assert [await kernel.answer() for _ in range(3)] == [(2, 0), (4, 0), (6, 0)]
        assert len(set(server.tasks.values())) == 1


async def test_who_asks_alone_is_seldom_looked_beyond(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that finds nothing costs as much as much of a small write; where many ask it costs nothing."""
    empty = 0
    readv = os.readv

    def counted(descriptor: int, buffers: list[bytearray]) -> int:
        nonlocal empty
        try:
            return readv(descriptor, buffers)
        except BlockingIOError:
            empty += 1
            raise

    async with serving(server) as (kernel, _):
        monkeypatch.setattr(os, "readv", counted)
        for unique in range(2, 2 + 2 * 4 * TURNS_PER_LOOK, 2):
            kernel.send(Opcode.READ, unique)
            assert await kernel.answer() == (unique, 0)
        assert empty == 4
        for unique in range(1002, 1022, 2):
            kernel.send(Opcode.READ, unique)
        assert [await kernel.answer() for _ in range(10)] == [(each, 0) for each in range(1002, 1022, 2)]


async def test_what_waits_keeps_nobody_waiting(server: Served) -> None:
    server.gates = {2: trio.Event(), 4: trio.Event()}
    async with serving(server) as (kernel, _):
        for unique in (2, 4, 6):
            kernel.send(Opcode.READ, unique)
        assert await kernel.answer() == (6, 0)
        assert server.started == [2, 4, 6]
        server.gates[4].set()
        assert await kernel.answer() == (4, 0)
        server.gates[2].set()
        assert await kernel.answer() == (2, 0)


async def test_tasks_that_have_waited_read_again(server: Served) -> None:
    async with serving(server) as (kernel, _):
        for unique in range(2, 40, 2):
            server.gates[unique] = trio.Event()
            kernel.send(Opcode.READ, unique)
            kernel.send(Opcode.READ, unique + 100)
            assert await kernel.answer() == (unique + 100, 0)
            server.gates[unique].set()
            assert await kernel.answer() == (unique, 0)
        assert len(set(server.tasks.values())) == 2


async def test_only_a_few_tasks_stay_ready(server: Served) -> None:
    gate = trio.Event()
    server.gates = dict.fromkeys(range(2, 202, 2), gate)
    async with serving(server) as (kernel, served):
        for unique in server.gates:
            kernel.send(Opcode.READ, unique)
            await trio.testing.wait_all_tasks_blocked()
        gate.set()
        assert sorted([await kernel.answer() for _ in server.gates]) == [
            (unique, 0) for unique in server.gates
        ]
        await trio.testing.wait_all_tasks_blocked()
        assert len(served._parked) <= REQUESTS_IDLE


async def test_beyond_the_limit_nothing_is_read(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert REQUESTS_WAITING_MAX >= 1000
    monkeypatch.setattr(waiting, "REQUESTS_WAITING_MAX", 3)
    server.gates = {unique: trio.Event() for unique in (2, 4, 6)}
    async with serving(server) as (kernel, _):
        for unique in (2, 4, 6, 8):
            kernel.send(Opcode.READ, unique)
        await trio.testing.wait_all_tasks_blocked()
        assert server.started == [2, 4, 6]
        assert kernel.is_quiet()
        server.gates[4].set()
        assert {await kernel.answer(), await kernel.answer()} == {(4, 0), (8, 0)}
        server.gates[2].set()
        server.gates[6].set()


async def test_the_data_of_waiting_requests_is_bounded(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "REQUESTS_WAITING_BYTES_MAX", 1000)
    server.gates = {2: trio.Event()}
    async with serving(server) as (kernel, _):
        kernel.send(Opcode.READ, 2, READ + bytes(1000))
        kernel.send(Opcode.READ, 4)
        await trio.testing.wait_all_tasks_blocked()
        assert server.started == [2]
        server.gates[2].set()
        assert {await kernel.answer(), await kernel.answer()} == {(2, 0), (4, 0)}


async def test_of_ten_thousand_requests_that_wait_the_limit_bounds_the_memory(server: Served) -> None:
    """Those beyond it wait in the kernel, which has that memory anyway."""
    server.gates = {unique: trio.Event() for unique in range(2, 20_002, 2)}

    async def ask(kernel: Kernel) -> None:
        for unique in server.gates:
            await kernel.is_read_from()
            kernel.send(Opcode.READ, unique)

    async with serving(server) as (kernel, served), trio.open_nursery() as asking:
        tracemalloc.start()
        asking.start_soon(ask, kernel)
        await trio.testing.wait_all_tasks_blocked()
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(server.started) == REQUESTS_WAITING_MAX
        assert taken / REQUESTS_WAITING_MAX < 10 * KIB, "what limits.py says of each"
        asking.cancel_scope.cancel()
        served.stop()
        for unique in server.started:
            server.gates[unique].set()
            assert await kernel.answer() == (unique, 0)


async def test_an_unknown_request_is_refused_and_forgetting_has_no_answer(server: Served) -> None:
    async with serving(server) as (kernel, _):
        kernel.send(Opcode.BATCH_FORGET, 2, codec.BATCH_FORGET_IN.pack(1, 0) + codec.FORGET_ONE.pack(7, 3))
        kernel.send(4711, 4)
        assert await kernel.answer() == (4, errno.ENOSYS)
        assert server.forgotten == [(7, 3)]
        assert kernel.is_quiet()


@pytest.mark.expects_warnings
async def test_a_request_that_is_none_is_answered_with_eio(server: Served) -> None:
    async with serving(server) as (kernel, _):
        kernel.send(Opcode.READ, 2, b"short")
        assert await kernel.answer() == (2, errno.EIO)
        kernel.send_bytes(codec.IN_HEADER.pack(999, Opcode.READ, 4, 1, 0, 0, 0, 0, 0) + READ)
        assert await kernel.answer() == (4, errno.EIO)
        server.gates[6] = trio.Event()
        kernel.send(Opcode.READ, 6, nodeid=14)
        await trio.testing.wait_all_tasks_blocked()
        server.gates[6].set()
        assert await kernel.answer() == (6, errno.EIO)
        kernel.send(Opcode.READ, 8)
        assert await kernel.answer() == (8, 0)


async def test_a_mistake_ends_the_session_and_leaves_the_descriptor_to_libfuse(server: Served) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        Kernel(theirs).send(Opcode.READ, 2, nodeid=13)
        with pytest.RaisesGroup(pytest.RaisesGroup(KeyError)):
            await FuseSession(ours.fileno(), server).run()
        assert os.get_blocking(ours.fileno())


async def test_less_than_a_header_ends_the_session(server: Served) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        Kernel(theirs).send_bytes(b"short")
        with pytest.RaisesGroup(pytest.RaisesGroup(MalformedRequest)):
            await FuseSession(ours.fileno(), server).run()


async def test_the_end_waits_for_what_has_begun(server: Served) -> None:
    server.gates = {2: trio.Event()}
    async with serving(server) as (kernel, served):
        kernel.send(Opcode.READ, 2)
        await trio.testing.wait_all_tasks_blocked()
        served.stop()
        kernel.send(Opcode.READ, 4)
        await trio.testing.wait_all_tasks_blocked()
        assert server.started == [2]
        server.gates[2].set()
        assert await kernel.answer() == (2, 0)


async def test_the_end_of_the_connection_ends_the_session(server: Served) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        theirs.close()
        with trio.fail_after(DEADLINE_S):
            await FuseSession(ours.fileno(), server).run()


# --- interrupts -----------------------------------------------------------------------------------------


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Threads that are being killed."""
    threads: set[int] = set()
    monkeypatch.setattr(session, "is_dying", lambda thread: thread in threads)
    return threads


async def test_a_signal_is_no_answer(server: Served, dying: set[int]) -> None:
    server.gates = {2: trio.Event()}
    async with serving(server) as (kernel, _):
        kernel.send(Opcode.READ, 2, pid=77)
        kernel.send(Opcode.INTERRUPT, 3, codec.INTERRUPT_IN.pack(2))
        kernel.send(Opcode.INTERRUPT, 5, codec.INTERRUPT_IN.pack(4711))
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.is_quiet()
        assert server.interrupted == [2], "it would end a wait for a lock"
        server.gates[2].set()
        assert await kernel.answer() == (2, 0)


async def test_a_program_that_is_killed_is_let_go_while_its_request_goes_on(
    server: Served, dying: set[int]
) -> None:
    server.gates = {2: trio.Event()}
    async with serving(server) as (kernel, _):
        kernel.send(Opcode.READ, 2, pid=77)
        await trio.testing.wait_all_tasks_blocked()
        dying.add(77)
        kernel.send(Opcode.INTERRUPT, 3, codec.INTERRUPT_IN.pack(2))
        assert await kernel.answer() == (2, errno.EINTR)
        server.gates[2].set()
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.is_quiet()
        assert [(header.unique, body) for header, body, _ in server.untaken_replies] == [(2, b"")]


async def test_of_a_request_that_changes_names_they_are_kept_for_that(
    server: Served, dying: set[int]
) -> None:
    server.gates = {2: trio.Event()}
    body, other = b"a name of a rename\0" * 3, b"another request's  \0" * 3
    async with serving(server) as (kernel, _):
        kernel.send(Opcode.RENAME, 2, body, pid=77)
        kernel.send(Opcode.RENAME, 4, other)
        assert await kernel.answer() == (4, 0)
        dying.add(77)
        kernel.send(Opcode.INTERRUPT, 3, codec.INTERRUPT_IN.pack(2))
        assert await kernel.answer() == (2, errno.EINTR)
        server.gates[2].set()
        await trio.testing.wait_all_tasks_blocked()
        assert [body for _, body, _ in server.untaken_replies] == [body]


def doubts_before_replies(
    session: FuseSession, server: Served, monkeypatch: pytest.MonkeyPatch
) -> list[list[tuple[int, bytes]]]:
    """What the server had been told of when each reply went to the kernel."""
    told: list[list[tuple[int, bytes]]] = []
    reply = session.reply

    def reply_noted(data: FuseReply) -> None:
        told.append(list(server.doubts))
        reply(data)

    monkeypatch.setattr(session, "reply", reply_noted)
    return told


async def test_of_a_change_of_names_that_is_in_doubt_it_is_told_before_the_kernel_hears(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.gates = {2: trio.Event(), 4: trio.Event()}
    body = b"a name of a rename\0" * 3
    async with serving(server) as (kernel, session):
        kernel.send(Opcode.RENAME, 2, body, nodeid=16)
        kernel.send(Opcode.READ, 4, nodeid=16)
        await trio.testing.wait_all_tasks_blocked()
        told = doubts_before_replies(session, server, monkeypatch)
        for number, gate in server.gates.items():
            gate.set()
            assert await kernel.answer() == (number, errno.EIO)
    assert told == [[(2, body)]] * 2, "and nothing of what changes no names"


async def test_one_that_is_killed_without_an_interrupt_is_let_go_too(
    server: Served, dying: set[int], autojump_clock: trio.testing.MockClock
) -> None:
    server.gates = {2: trio.Event(), 4: trio.Event()}
    async with serving(server) as (kernel, _):
        kernel.send(Opcode.READ, 2, pid=77)
        kernel.send(Opcode.READ, 4, pid=78)
        await trio.testing.wait_all_tasks_blocked()
        dying.add(77)
        assert await kernel.answer() == (2, errno.EINTR)
        server.gates[2].set()
        server.gates[4].set()
        assert await kernel.answer() == (4, 0)


# --- telling the kernel ---------------------------------------------------------------------------------


async def test_after_the_end_nothing_is_written_to_what_was_the_kernels_descriptor(server: Served) -> None:
    with opened(server) as (theirs, served):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            await trio.testing.wait_all_tasks_blocked()
            await trio.to_thread.run_sync(served.pruning.prune, [7])
            assert theirs.recv(1000) == codec.prune_notice([7])
            served.stop()
        with pytest.raises(OSError, match="unmounted") as raised:
            served.pruning.prune([7])
        assert raised.value.errno == errno.ENODEV
        assert Kernel(theirs).is_quiet()


# --- without a task -------------------------------------------------------------------------------------


async def test_a_write_is_answered_by_who_settles_its_promise(server: Served) -> None:
    server.promises = {2: Promise(), 4: Promise()}
    async with serving(server) as (kernel, _):
        for unique in (2, 4, 6):
            kernel.send(Opcode.WRITE, unique)
        assert await kernel.answer() == (6, 0)
        server.promises[4].resolve(7)
        assert await kernel.answer() == (4, 0)
        server.promises[2].resolve(7)
        assert await kernel.answer() == (2, 0)
        assert server.started == [2, 4, 6]


@pytest.mark.parametrize("nodeid", [1, 16])
async def test_a_change_of_names_is_answered_so_too_and_what_is_in_doubt_is_told_before_the_kernel_hears(
    server: Served, monkeypatch: pytest.MonkeyPatch, nodeid: int
) -> None:
    server.promises = {2: Promise()}
    body = b"a name\0"
    async with serving(server) as (kernel, session):
        kernel.send(Opcode.UNLINK, 2, body, nodeid=nodeid)
        await trio.testing.wait_all_tasks_blocked()
        assert session.requests.without_task == 1
        told = doubts_before_replies(session, server, monkeypatch)
        server.promises[2].resolve(0)
        assert await kernel.answer() == (2, errno.EIO if nodeid == 16 else 0)
        assert session.requests.without_task == 0
    assert told == [[(2, body)] if nodeid == 16 else []]


async def test_a_write_that_waits_for_nothing_else_is_answered_by_who_settles_its_promise(
    server: Served,
) -> None:
    server.begun = {unique: BegunWrite() for unique in (2, 4, 8)}
    server.begun[8].promise.resolve(7)  # before it is begun with
    async with serving(server) as (kernel, session):
        for unique in (2, 4, 6, 8):
            kernel.send(Opcode.WRITE, unique)
        assert [await kernel.answer() for _ in range(2)] == [(6, 0), (8, 0)]
        assert session.requests.without_task == 2
        assert len(session.requests.by_number) == 2
        server.begun[4].promise.resolve(7)
        assert await kernel.answer() == (4, 0)
        server.begun[2].promise.reject(ValueError("another role"))
        assert await kernel.answer() == (2, errno.EROFS)
        assert server.started == [2, 4, 6, 8]
        assert [each.asked for each in server.begun.values()] == [1, 1, 1]
        assert (session.requests.without_task, session.requests.by_number, session.requests._bytes) == (
            0,
            {},
            0,
        )


async def test_such_a_write_of_a_killed_program_is_brought_to_its_end(
    server: Served, dying: set[int]
) -> None:
    server.begun = {2: BegunWrite()}
    async with serving(server) as (kernel, _):
        kernel.send(Opcode.WRITE, 2, pid=77)
        await trio.testing.wait_all_tasks_blocked()
        dying.add(77)
        kernel.send(Opcode.INTERRUPT, 3, codec.INTERRUPT_IN.pack(2))
        assert await kernel.answer() == (2, errno.EINTR)
        server.begun[2].promise.resolve(7)
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.is_quiet()
    assert [header.unique for header, *_ in server.untaken_replies] == [2]


async def test_nothing_is_written_for_a_write_that_outlasts_its_session(server: Served) -> None:
    server.begun = {2: BegunWrite()}
    async with serving(server) as (kernel, session):
        kernel.send(Opcode.WRITE, 2)
        await trio.testing.wait_all_tasks_blocked()
        session.is_left = True
        server.begun[2].promise.resolve(7)
        assert kernel.is_quiet()
        session.is_left = False
        session.requests.without_task -= 1
        session.requests.remove(session.requests.by_number[2])


async def test_requests_keep_their_order_with_a_task_or_without(server: Served) -> None:
    async with serving(server) as (kernel, _):
        order = [(Opcode.WRITE if unique % 3 else Opcode.READ, unique) for unique in range(2, 60, 2)]
        for opcode, unique in order:
            kernel.send(opcode, unique)
        for _, unique in order:
            assert await kernel.answer() == (unique, 0)
        assert server.started == [unique for _, unique in order]


async def test_a_write_whose_promise_is_rejected_goes_on_in_a_task(server: Served) -> None:
    server.promises = {2: Promise()}
    async with serving(server) as (kernel, _):
        kernel.send(Opcode.WRITE, 2)
        await trio.testing.wait_all_tasks_blocked()
        server.promises[2].reject(ValueError("another role"))
        assert await kernel.answer() == (2, errno.EROFS)


@pytest.mark.parametrize("waits", [False, True])
async def test_a_write_that_waits_for_something_else_first_has_a_task(server: Served, waits: bool) -> None:
    server.promises = {4: Promise()} if waits else {}
    async with serving(server) as (kernel, _):
        if waits:
            server.promises[4].resolve(0)
        for unique, nodeid in ((2, 1), (4, 15), (6, 1)):
            kernel.send(Opcode.WRITE, unique, nodeid=nodeid)
        assert sorted([await kernel.answer() for _ in range(3)]) == [(2, 0), (4, 0), (6, 0)]
        assert sorted(server.started) == [2, 4, 6]


async def test_the_session_ends_when_the_last_write_is_answered(server: Served) -> None:
    server.promises = {2: Promise()}
    async with serving(server) as (kernel, served):
        kernel.send(Opcode.WRITE, 2)
        await trio.testing.wait_all_tasks_blocked()
        served.stop()
        await trio.testing.wait_all_tasks_blocked()
        server.promises[2].resolve(7)
        assert await kernel.answer() == (2, 0)


async def test_a_write_answers_nothing_after_the_session_was_left(server: Served) -> None:
    server.promises = {2: Promise(), 4: Promise()}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(FuseSession(ours.fileno(), server).run)
            for unique in server.promises:
                Kernel(theirs).send(Opcode.WRITE, unique)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        server.promises[2].resolve(7)
        server.promises[4].reject(ValueError("another role"))
        assert Kernel(theirs).is_quiet()


@pytest.mark.expects_warnings
@pytest.mark.parametrize("waits", [False, True])
async def test_a_malformed_write_is_refused(server: Served, waits: bool) -> None:
    server.promises = {2: Promise()} if waits else {}
    async with serving(server) as (kernel, _):
        kernel.send(Opcode.WRITE, 2, nodeid=14)
        await trio.testing.wait_all_tasks_blocked()
        if waits:
            server.promises[2].resolve(7)
        assert await kernel.answer() == (2, errno.EIO)


@pytest.mark.parametrize("waits", [False, True])
async def test_a_mistake_in_a_write_ends_the_session(server: Served, waits: bool) -> None:
    server.promises = {2: Promise()} if waits else {}
    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with serving(server) as (kernel, _):
            kernel.send(Opcode.WRITE, 2, nodeid=13)
            await trio.testing.wait_all_tasks_blocked()
            if waits:
                server.promises[2].resolve(7)
            await trio.testing.wait_all_tasks_blocked()


async def test_a_write_of_a_killed_program_is_let_go(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    server.promises = {2: Promise()}
    monkeypatch.setattr(session, "is_dying", lambda pid: pid == 77)
    async with serving(server) as (kernel, _):
        kernel.send(Opcode.WRITE, 2, pid=77)
        await trio.testing.wait_all_tasks_blocked()
        kernel.send(Opcode.INTERRUPT, 3, codec.INTERRUPT_IN.pack(2))
        assert await kernel.answer() == (2, errno.EINTR)
        server.promises[2].resolve(7)
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.is_quiet()
        assert [header.unique for header, _, _ in server.untaken_replies] == [2]
