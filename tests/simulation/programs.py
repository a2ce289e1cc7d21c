"""Programs of both hosts: they draw operations, ask their control unit, and keep the history."""

import errno
import stat
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from random import Random
from typing import Any

import outcome
import trio

from fusemirror.change import ALLOCATION_MODES
from fusemirror.coherence.lock_table import LockKind
from fusemirror.control.primary import PrimaryUnit
from fusemirror.errors import (
    ChangesRefused,
    CheckReport,
    DiskFailed,
    OperationFailed,
    PeerUnreachable,
    ReservationConflict,
)
from fusemirror.flags import INHERITED, Flag
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import NAME_BYTES_MAX
from fusemirror.mirror.states import PRIMARY_ACKNOWLEDGES_ALONE, PrimaryState
from fusemirror.operations import (
    Accessed,
    Allocate,
    AnyOperation,
    Copy,
    Create,
    CreateUnnamed,
    HardLink,
    LinkUnnamed,
    RemoveDirectory,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetFlags,
    SetXattr,
    Unlink,
    Write,
)
from fusemirror.promise import Promise, begin, go_on_after, gone_on, resumed
from fusemirror.settings import Access, Fence
from fusemirror.volume.inode import Inode
from fusemirror.volume.reservations import EVERYTHING
from fusemirror.xattrs import CAPABILITY
from tests.simulation.guarding import Guarded
from tests.simulation.history import DOUBT, History, Operation, Target, short
from tests.simulation.kernel import Name
from tests.simulation.model import LARGEST_BYTES, ROOT_TAG
from tests.simulation.options import LOOKS, WEIGHTS
from tests.simulation.world import SimulatedHost, World

NAMES: Target = ("names", 0)
XATTR = b"user.simulated"
_PILED_MAX = 30  # changes of one file without a pause
BURIED = b"buried "  # directories in the root that no history tells of
FILE_MODE, DIRECTORY_MODE = 0o644, 0o755
READ_ALL = 1 << 20

GIANTS = (1 << 33, (1 << 40) + 100, 15 << 40, LARGEST_BYTES - 70_000, LARGEST_BYTES)
"""Where a program writes or ends a file that is large for its little data."""

_EDGES = (0, 0, 1, 100, 4096, 65_530, 65_536, 65_600, 131_070)
_LENGTHS = (0, 1, 7, 30, 200, 4096)


class Atlas:
    """What programs have seen: the inode of each tag, and which tags are directories."""

    def __init__(self) -> None:
        self.inodes: dict[int, InodeNumber] = {ROOT_TAG: ROOT_INODE}
        self.tags: dict[InodeNumber, int] = {ROOT_INODE: ROOT_TAG}
        """Of all inodes: no number is given twice, but after a loss of power."""
        self.directories: set[int] = {ROOT_TAG}
        self.busy_file = ROOT_TAG
        self.busy_name = ROOT_TAG, b"n0"
        self.guarded: Guarded | None = None

    def see(self, inode: Inode) -> int:
        """A program has been shown an inode; its owner tells which operation created it."""
        known = self.inodes.setdefault(inode.uid, inode.number)
        assert known == inode.number, f"#{inode.uid} was inode {known} and is inode {inode.number} now"
        tag = self.tags.setdefault(inode.number, inode.uid)
        assert tag == inode.uid, f"inode {inode.number} was #{tag} and is #{inode.uid} now"
        if inode.is_directory:
            self.directories.add(inode.uid)
        elif self.busy_file == ROOT_TAG:
            self.busy_file = inode.uid
        return inode.uid

    @property
    def files(self) -> list[int]:
        return [tag for tag in self.inodes if tag not in self.directories]


def _is_fenced(host: SimulatedHost) -> bool:
    """The primary has given its backup up, and may not go on alone."""
    unit = host.present
    if not isinstance(unit, PrimaryUnit):
        return False
    return unit.mirror.authority.fence is Fence.DATA and unit.replica.state is PrimaryState.ALONE


def _locked(
    host: SimulatedHost, *directories: InodeNumber, operation: AnyOperation | None = None
) -> AbstractAsyncContextManager[None]:
    """As by the host's kernel, for a call that works on the names in directories."""
    if host.kernel is None:
        return nullcontext()

    def emptied() -> InodeNumber | None:
        if operation is None:
            return None
        return operation.must_be_empty(host.unit.volume.catalog)

    return host.kernel.locked(*directories, emptied=emptied)


class _Written:
    """A write that was begun without a task; one waits for it, and goes on with it where it needs one."""

    def __init__(self) -> None:
        self.promise: Promise[outcome.Outcome[Any] | None] = Promise()

    def ended(self, result: "outcome.Outcome[Inode | None]") -> None:
        if isinstance(result, outcome.Error):
            assert isinstance(result.error, Exception), "the process is going on"
            self.promise.reject(result.error)
        else:
            self.promise.resolve(None)

    def failed(self, error: "outcome.Outcome[Any]") -> None:
        self.promise.resolve(error)


async def _write(host: SimulatedHost, operation: Write, data: bytes) -> None:
    """Without a task where that can be, as `kernel/session.py` has it."""
    writing = host.unit.perform(operation, data)
    try:
        message = begin(writing)
    except StopIteration:
        return
    if not isinstance(message, Promise):
        await resumed(writing, message)
        return
    written = _Written()
    go_on_after(message, writing, written)
    error = await written.promise.wait()
    if error is not None:
        await gone_on(writing, error)


async def _change_names(
    host: SimulatedHost, call: Operation, operation: Unlink | RemoveDirectory | Rename, *names: Name
) -> None:
    change = host.unit.perform(operation)
    await (change if host.kernel is None else host.kernel.change(change, call.began, *names))


class Program:
    """One program; it goes on with what is left of its operations whenever its host serves again."""

    def __init__(self, world: World, history: History, atlas: Atlas, name: str, operation_count: int) -> None:
        self._world = world
        self._history = history
        self._atlas = atlas
        self._name = name
        self._random = Random(f"{world.random.random()} {name}")
        self.left = operation_count
        self.done = trio.Event()
        self._names = [b"n%d" % index for index in range(world.options.names)]
        self._kinds = world.options.kinds
        looks = tuple(kind for kind in self._kinds if kind in LOOKS)
        if looks and self._random.random() < 0.3:
            self._kinds = looks  # it is not stopped by what stops changes, and sees more of what is old

    async def run(self, host: SimulatedHost) -> None:
        while self.left and not host.stopping.is_set():
            await self._pause()
            self.left -= 1
            await self._anything(host)
        if not self.left:
            self.done.set()

    async def _pause(self) -> None:
        await trio.sleep(self._random.expovariate(1 / self._world.options.think_time))

    async def _anything(self, host: SimulatedHost) -> None:
        kind = self._random.choices(self._kinds, [WEIGHTS[kind] for kind in self._kinds])[0]
        try:
            await getattr(self, f"_{kind}")(host)
        except DiskFailed as error:  # before it asked: it looks at what the kernel knows from before
            assert host.unit.volume.health.failure is not None, "the disk had not failed"
            self._world.trace(f"{self._name} stops before {kind}: {error}")

    async def _ask(
        self,
        host: SimulatedHost,
        target: Target,
        name: str,
        *arguments: Any,
        call: Callable[[Operation], Awaitable[Any]],
    ) -> Any:
        """Ask, and record what was answered. A killed process answers nothing."""
        operation = self._history.begin(
            self._name, target, name, *arguments, host=host.name, early=host.acknowledges_early
        )
        self._world.trace(f"ask {operation}")
        promised, modes_set = host.acknowledges_now, self._world.modes_set
        fenced, began = _is_fenced(host), trio.current_time()
        result = await self._result(host, operation, call)
        # What a host shows of its own writes may still be on the way, whatever it promises by now.
        if not operation.looks and promised == host.acknowledges_now == "sync":
            operation.early = self._world.modes_set != modes_set
        self._history.end(operation, result)
        self._expect_bounded(trio.current_time() - began)
        if fenced and not host.disk.dead and _is_fenced(host) and result != DOUBT:
            assert operation.changes_nothing, f"{operation} succeeded behind the fence"
        self._world.trace(f"told #{operation.index} {short(result)}")
        return result

    async def _result(
        self, host: SimulatedHost, operation: Operation, call: Callable[[Operation], Awaitable[Any]]
    ) -> Any:
        try:
            result = await call(operation)
        except (OperationFailed, DiskFailed) as error:
            result = DOUBT if error.errno == errno.EIO else -error.errno  # a disk that failed
        except ChangesRefused:
            result = DOUBT
            if not host.disk.dead:
                self._history.refuse(operation)
        except CheckReport:
            result = DOUBT
        return DOUBT if host.disk.dead else result

    def _expect_bounded(self, took_s: float) -> None:
        """No call waits for ever (G8), unless its process is paused: each of its waits has a setting."""
        options = self._world.options
        if not any(fault.startswith("pause") for fault in options.faults):
            limit_s = 3 * (options.io_timeout + options.peer_timeout)
            if "pile" in options.kinds:
                # Who looks at a file waits while each change of it comes with the acknowledgement of the one
                # before: as long as its writer knows no pause, where all that is on its way arrives together.
                limit_s += _PILED_MAX * 4 * (options.latency + options.jitter)
            assert took_s <= limit_s, f"a call took {took_s:g} s, and may take {limit_s:g}"

    # --- content --------------------------------------------------------------------------------------

    def _any_file(self) -> tuple[int, InodeNumber]:
        """Often the one that someone is at; else mostly one that is never unlinked."""
        if self._random.random() > self._world.options.crowding:
            files = self._atlas.files
            self._atlas.busy_file = self._random.choice(files[: self._world.options.files] + files[-3:])
        tag = self._atlas.busy_file
        return tag, self._atlas.inodes[tag]

    def _appends_only(self, tag: int) -> bool:
        """With asynchronous acknowledgement a file is either appended to, or written anywhere.

        The former is judged as a whole, the latter byte by byte (`simulate.py`).
        """
        return self._world.options.asynchronous and tag % 2 == 1

    def _data(self, tag: int, length: int) -> bytes:
        """Bytes for the next operation, which no other writes."""
        if self._world.options.asynchronous and not self._appends_only(tag):
            return bytes([1 + self._history.next_index % 250]) * length
        stamp = b"%03d." % self._history.next_index
        return (stamp * (length // len(stamp) + 1))[:length]

    def _edge(self) -> int:
        """Where a write begins, or a file ends."""
        if self._random.random() < self._world.options.giants:
            self._world.faults["sparse giants"] += 1
            return self._random.choice(GIANTS)
        return self._random.choice(_EDGES)

    def _length(self) -> int:
        return self._random.choice((*_LENGTHS, *_LENGTHS, 70_000))

    async def _write(self, host: SimulatedHost) -> None:
        tag, inode = self._any_file()
        if self._appends_only(tag):
            await self._append_to(host, tag, inode)
            return
        await self._write_to(host, tag, inode)

    async def _write_to(self, host: SimulatedHost, tag: int, inode: InodeNumber) -> Any:
        offset, data = self._edge(), self._data(tag, self._length())

        async def call(_: Operation) -> str:
            boots = self._boots
            await _write(host, Write(inode, offset), data)
            # A power cut takes what it had acknowledged a moment ago, unless that was synced.
            if not host.acknowledges_early and self._boots == boots:
                self._expect_redundant(host, inode, offset, len(data))
            return "ok"

        return await self._ask(host, ("file", tag), "write", offset, data, call=call)

    @property
    def _boots(self) -> list[int]:
        return [each.boot for each in self._world.hosts]

    def _expect_redundant(self, host: SimulatedHost, inode: InodeNumber, offset: int, length: int) -> None:
        """Both volumes hold what was acknowledged, unless the primary goes on alone (G1)."""
        one, other = self._world.hosts
        if one.volume is None or other.volume is None:
            return
        primaries = [each for each in (one, other) if isinstance(each.present, PrimaryUnit)]
        if len(primaries) != 1:
            return  # the roles are being exchanged
        unit = primaries[0].present
        assert isinstance(unit, PrimaryUnit)
        mirror, replica = unit.mirror, unit.replica
        # A request that was done while the primary was alone is answered as soon as the backup is back.
        if host is not primaries[0] and inode in replica.out_of_sync:
            return
        if unit.volume.catalog.inode(inode) is None:
            return  # it had no name, nobody had it open, and it was purged
        # Where another change of the image is under way, it may have overwritten these bytes.
        if replica.state in PRIMARY_ACKNOWLEDGES_ALONE or mirror.window.unsettled(inode):
            return
        images = [volume.images.read(inode, offset, length) for volume in (one.volume, other.volume)]
        assert images[0] == images[1], (
            f"bytes {offset}-{offset + length} of inode {inode} are not in both volumes"
        )

    async def _append(self, host: SimulatedHost) -> None:
        tag, inode = self._any_file()
        if self._world.options.asynchronous and not self._appends_only(tag):
            await self._write_to(host, tag, inode)
            return
        await self._append_to(host, tag, inode)

    async def _append_to(self, host: SimulatedHost, tag: int, inode: InodeNumber) -> Any:
        data = self._data(tag, max(1, self._length() % 300))

        async def call(_: Operation) -> str:
            await _write(host, Write(inode, 0, append=True), data)
            return "ok"

        return await self._ask(host, ("file", tag), "append", data, call=call)

    async def _truncate(self, host: SimulatedHost) -> None:
        tag, inode = self._any_file()
        size = self._edge()

        async def call(_: Operation) -> str:
            await host.unit.perform(SetAttributes(inode, size=size))
            return "ok"

        await self._ask(host, ("file", tag), "truncate", size, call=call)

    async def _read(self, host: SimulatedHost) -> None:
        tag, inode = self._any_file()
        offset = self._edge()
        length = self._random.choice((10, 5000, READ_ALL))
        await self.read(host, tag, inode, offset, length)

    async def read(self, host: SimulatedHost, tag: int, inode: InodeNumber, offset: int, length: int) -> Any:
        async def call(_: Operation) -> bytes:
            return bytes(await host.unit.read(inode, offset, length))

        return await self._ask(host, ("file", tag), "read", offset, length, call=call)

    async def _seek(self, host: SimulatedHost) -> None:
        tag, inode = self._any_file()
        if self._world.options.asynchronous and not self._appends_only(tag):
            return  # it is judged byte by byte
        offset, data = self._edge(), self._random.random() < 0.5

        async def call(_: Operation) -> int:
            return await host.unit.seek(inode, offset, data=data)

        await self._ask(host, ("file", tag), "seek", offset, data, call=call)

    async def _allocate(self, host: SimulatedHost) -> None:
        tag, inode = self._any_file()
        if self._world.options.asynchronous and not self._appends_only(tag):
            return  # it is judged byte by byte
        offset, mode = self._random.choice(_EDGES), self._random.choice(sorted(ALLOCATION_MODES))
        end = offset + max(1, self._length())

        async def call(_: Operation) -> str:
            await host.unit.perform(Allocate(inode, offset, end, mode))
            return "ok"

        await self._ask(host, ("file", tag), "allocate", offset, end, mode, call=call)

    async def _copy(self, host: SimulatedHost) -> None:
        """Within one file; and, which no history tells of, from one file to the other."""
        tag, inode = self._any_file()
        source, offset = self._random.choice(_EDGES), self._random.choice(_EDGES)
        length = max(1, self._length())
        if self._random.random() < 0.3:
            await self._copy_buried(host, inode, source, length)
            return
        if self._world.options.asynchronous and not self._appends_only(tag):
            return  # it is judged byte by byte
        if abs(source - offset) < length:
            offset = source + length

        async def call(_: Operation) -> str:
            await host.unit.perform(Copy(inode, offset, offset + length, inode, source))
            return "ok"

        await self._ask(host, ("file", tag), "copy", source, offset, length, call=call)

    async def _copy_buried(self, host: SimulatedHost, source: InodeNumber, offset: int, length: int) -> None:
        name = BURIED + b"%b copy" % self._name.encode()
        made = await self._try(host, Create(ROOT_INODE, name, stat.S_IFREG | FILE_MODE, 0, 0))
        if made is None:
            with suppress(OperationFailed, CheckReport):
                made = await host.unit.lookup(ROOT_INODE, name)
        if made is not None:
            await self._try(host, Copy(made.number, offset, offset + length, source, offset))

    async def _size(self, host: SimulatedHost) -> None:
        await self.size(host, *self._any_file())

    async def size(self, host: SimulatedHost, tag: int, inode: InodeNumber) -> Any:
        async def call(_: Operation) -> int:
            return (await host.unit.attributes(inode)).size

        return await self._ask(host, ("file", tag), "size", call=call)

    async def _verify(self, host: SimulatedHost) -> None:
        """A comparison may not come to its end, but it never reports a difference that is not one (G5)."""
        with suppress(OperationFailed, CheckReport):
            await host.management.verify()
            while (report := await host.management.verify_report())["running"]:  # noqa: ASYNC110
                await trio.sleep(self._world.options.peer_timeout / 20)
            assert not report["differences"], report

    async def _hold(self, host: SimulatedHost) -> None:
        """Keep a file open for a while: it stays, whatever becomes of its names, if it has one by now."""
        tag, inode = self._any_file()
        await self._keep_open(host, tag, inode)

    async def _temporary(self, host: SimulatedHost) -> None:
        """Make a file, and remove its name while it is open, as tmpfile(3) does."""
        parent, name = self._any_directory(), self._random.choice(self._names)
        tag = await self.create(host, parent, name, is_directory=False)
        if isinstance(tag, int) and tag in self._atlas.inodes:
            unlink = Unlink(self._atlas.inodes[parent], name)
            await self._keep_open(
                host, tag, self._atlas.inodes[tag], lambda: self._remove(host, unlink, "unlink", parent)
            )

    async def _keep_open(
        self,
        host: SimulatedHost,
        tag: int,
        inode: InodeNumber,
        then: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Open a file, do `then`, and work on it for a while."""
        try:
            host.unit.open_inodes.add(inode)
        except OperationFailed:  # it has no name, and this host had given it up
            return
        row = host.unit.volume.catalog.inode(inode)
        named = row is not None and row.nlink > 0
        try:
            opened = await self.size(host, tag, inode)
            stays = named and opened not in (DOUBT, -errno.ESTALE)
            if then is not None:
                await then()
            for _ in range(self._random.randrange(6)):
                await self._pause()
                result = await self._work_on(host, tag, inode)
                assert not stays or result != -errno.ESTALE, f"#{tag} is open, and has gone"
        finally:
            if not host.disk.dead:
                host.unit.open_inodes.remove(inode)

    async def _refer(self, host: SimulatedHost) -> None:
        """Hold a file for a while as by an O_PATH descriptor, which is no open, and open it by that."""
        tag, inode = self._any_file()
        row = host.unit.volume.catalog.inode(inode)
        if row is None or not row.nlink:
            return
        with host.references.to(inode):
            stays = await self.size(host, tag, inode) not in (DOUBT, -errno.ESTALE)
            for _ in range(self._random.randrange(6)):
                await self._pause()
                try:
                    host.unit.open_inodes.add(inode)
                except OperationFailed:
                    assert not stays, f"the kernel refers to #{tag}, and it cannot be opened"
                    return
                try:
                    result = await self._work_on(host, tag, inode)
                    assert not stays or result != -errno.ESTALE, (
                        f"the kernel refers to #{tag}, and it has gone"
                    )
                finally:
                    if not host.disk.dead:
                        host.unit.open_inodes.remove(inode)

    async def _work_on(self, host: SimulatedHost, tag: int, inode: InodeNumber) -> Any:
        kind = self._random.choice(("size", "read", "write", "flush"))
        if kind == "size":
            return await self.size(host, tag, inode)
        if kind == "read":
            return await self.read(host, tag, inode, 0, READ_ALL)
        if kind == "flush":
            return await self._flush_file(host, tag, inode)
        if self._appends_only(tag):
            return await self._append_to(host, tag, inode)
        return await self._write_to(host, tag, inode)

    async def _reserve(self, host: SimulatedHost) -> None:
        """Hold a file or everything for a while; what the other host is refused has no effect."""
        tag, inode = self._any_file()
        held = self._random.choice((inode, EVERYTHING))
        with suppress(OperationFailed, CheckReport, ReservationConflict):
            await host.management.reserve(held, b"#%d" % tag, preempt=self._random.random() < 0.5)
            await self._pause()
            await host.management.release(held, preempt=False)

    async def _change_access(self, host: SimulatedHost) -> None:
        self._world.modes_set += 1
        with suppress(CheckReport, PeerUnreachable):
            await host.set_access(self._random.choice(list(Access)))
        self._world.modes_set += 1

    async def _flush(self, host: SimulatedHost) -> None:
        await self._flush_file(host, *self._any_file())

    async def _flush_file(self, host: SimulatedHost, tag: int, inode: InodeNumber) -> Any:
        before = self._history.now()
        durably = self._random.random() < 0.5

        async def call(_: Operation) -> bytes:
            await (host.unit.flush(inode) if durably else host.unit.drain(inode))
            return b""

        name, *arguments = ("flush",) if durably else ("read", 0, 0)
        result = await self._ask(host, ("file", tag), name, *arguments, call=call)
        if result == b"":
            for kind in ("file", "mode", "xattr", "flags"):
                self._history.settle(host.name, (kind, tag), before)
        return result

    async def _guarded(self, host: SimulatedHost) -> None:
        """Swap a value under a lock. That may take long: others hold it, and are stopped meanwhile."""
        guarded, space = self._atlas.guarded, self._random.choice(list(LockKind))
        assert guarded is not None
        value = b"%08d" % self._history.next_index
        operation = self._history.begin(self._name, ("guarded", space), "swap", value, host=host.name)
        self._world.trace(f"ask {operation}")
        think_s = self._world.options.think_time
        result = await self._result(
            host, operation, lambda _: guarded.swap(host, value, space, self._random, think_s)
        )
        self._history.end(operation, result)
        self._world.trace(f"told #{operation.index} {short(result)}")

    # --- names ----------------------------------------------------------------------------------------

    def _any_directory(self) -> int:
        """Mostly one of the oldest, which are never removed."""
        directories = sorted(self._atlas.directories)
        return self._random.choice(directories[:2] + directories[-1:])

    def _any_name(self) -> tuple[int, bytes]:
        """Often the one that someone is at."""
        if self._random.random() > self._world.options.crowding:
            self._atlas.busy_name = self._any_directory(), self._random.choice(self._names)
        return self._atlas.busy_name

    async def _create(self, host: SimulatedHost) -> None:
        parent, name = self._any_name()
        await self.create(host, parent, name, is_directory=self._random.random() < 0.25)

    async def create(self, host: SimulatedHost, parent: int, name: bytes, *, is_directory: bool) -> Any:
        mode = stat.S_IFDIR | DIRECTORY_MODE if is_directory else stat.S_IFREG | FILE_MODE
        directory = self._atlas.inodes[parent]

        async def call(operation: Operation) -> int:
            create = Create(directory, name, mode, uid=operation.index, gid=0)
            seen = await self._make_name(host, operation, create)
            return operation.index if seen is None else seen

        async with _locked(host, directory):
            return await self._ask(host, NAMES, "create", parent, name, is_directory, call=call)

    async def _make_name(
        self, host: SimulatedHost, call: Operation, operation: Create | HardLink
    ) -> int | None:
        make, name = partial(host.unit.perform, operation), (operation.parent, operation.name)
        if host.kernel is not None:
            return await host.kernel.create(host.unit, name, make, self._atlas.see, call.began)
        inode = await make()
        return None if inode is None else self._atlas.see(inode)

    async def _unnamed(self, host: SimulatedHost) -> None:
        """Make a file without a name, as with O_TMPFILE, and give it one: nobody sees it before."""
        parent, name = self._any_name()
        directory = self._atlas.inodes[parent]

        async def call(operation: Operation) -> int:
            unnamed = CreateUnnamed(directory, stat.S_IFREG | FILE_MODE, operation.index, 0)
            made = await host.unit.perform(unnamed)
            if made is None:
                raise OperationFailed(errno.EIO)  # it was so late that it has been ended: no effect
            try:
                host.unit.open_inodes.add(made.number)
            except OperationFailed:
                raise OperationFailed(errno.EIO) from None
            try:
                if self._random.random() < 0.3:
                    raise OperationFailed(errno.EIO)  # it stays without one
                seen = await self._make_name(host, operation, LinkUnnamed(made.number, directory, name))
            finally:
                if not host.disk.dead:
                    host.unit.open_inodes.remove(made.number)
            return operation.index if seen is None else seen

        async with _locked(host, directory):
            await self._ask(host, NAMES, "create", parent, name, False, call=call)

    async def _unlink(self, host: SimulatedHost) -> None:
        parent, name = self._any_name()
        await self._remove(host, Unlink(self._atlas.inodes[parent], name), "unlink", parent)

    async def _rmdir(self, host: SimulatedHost) -> None:
        parent, name = self._any_name()
        await self._remove(host, RemoveDirectory(self._atlas.inodes[parent], name), "rmdir", parent)

    async def _remove(
        self, host: SimulatedHost, what: Unlink | RemoveDirectory, name: str, parent: int
    ) -> None:
        async def call(operation: Operation) -> str:
            await _change_names(host, operation, what, (what.parent, what.name))
            return "ok"

        async with _locked(host, what.parent, operation=what):
            await self._ask(host, NAMES, name, parent, what.name, call=call)

    async def _rename(self, host: SimulatedHost) -> None:
        (parent, name), (new_parent, new_name) = self._any_name(), self._any_name()
        flags = self._random.choice((0, 0, 1, 2))
        old, new = (self._atlas.inodes[parent], name), (self._atlas.inodes[new_parent], new_name)

        what = Rename(*old, *new, flags)

        async def call(operation: Operation) -> str:
            await _change_names(host, operation, what, old, new)
            return "ok"

        async with _locked(host, old[0], new[0], operation=what):
            await self._ask(host, NAMES, "rename", parent, name, new_parent, new_name, flags, call=call)

    async def _link(self, host: SimulatedHost) -> None:
        (tag, inode), (parent, name) = self._any_file(), self._any_name()
        directory = self._atlas.inodes[parent]

        async def call(operation: Operation) -> int:
            seen = await self._make_name(host, operation, HardLink(inode, directory, name))
            return tag if seen is None else seen

        async with _locked(host, directory):
            await self._ask(host, NAMES, "link", tag, parent, name, call=call)

    async def _lookup(self, host: SimulatedHost) -> None:
        await self.lookup(host, *self._any_name())

    async def lookup(self, host: SimulatedHost, parent: int, name: bytes) -> Any:
        directory = self._atlas.inodes[parent]

        async def call(operation: Operation) -> int:
            if host.kernel is None:
                return self._atlas.see(await host.unit.lookup(directory, name))
            operation.shows_from = host.kernel.shows_from((directory, name))
            return await host.kernel.lookup(host.unit, (directory, name), self._atlas.see)

        return await self._ask(host, NAMES, "lookup", parent, name, call=call)

    async def _listing(self, host: SimulatedHost) -> None:
        await self.listing(host, self._any_directory())

    async def listing(self, host: SimulatedHost, parent: int) -> Any:
        directory = self._atlas.inodes[parent]

        async def call(_: Operation) -> frozenset[tuple[bytes, int]]:
            unit = host.unit
            listed = await unit.listing(directory, 0, 1000)
            inodes = [
                (name, unit.volume.catalog.inode(entry.inode))
                for _, name, entry in listed
                if not name.startswith(BURIED)
            ]
            assert all(inode is not None for _, inode in inodes), "a name of no inode"
            assert len(inodes) == len(dict(inodes)), "a name stands twice in a listing"
            return frozenset((name, self._atlas.see(inode)) for name, inode in inodes if inode)

        async with _locked(host, directory):
            return await self._ask(host, NAMES, "listing", parent, call=call)

    async def _nlink(self, host: SimulatedHost) -> None:
        await self.nlink(host, self._random.choice(sorted(set(self._atlas.inodes) - {ROOT_TAG})))

    async def nlink(self, host: SimulatedHost, tag: int) -> Any:
        inode = self._atlas.inodes[tag]

        async def call(_: Operation) -> int:
            return (await host.unit.attributes(inode)).nlink

        return await self._ask(host, NAMES, "nlink", tag, call=call)

    # --- attributes -----------------------------------------------------------------------------------

    async def _chmod(self, host: SimulatedHost) -> None:
        tag, inode = self._any_file()
        mode = self._random.randrange(0o1000)

        async def call(_: Operation) -> str:
            await host.unit.perform(SetAttributes(inode, mode=mode))
            return "ok"

        await self._ask(host, ("mode", tag), "set", (mode,), call=call)

    async def _mode(self, host: SimulatedHost) -> None:
        await self.mode(host, *self._any_file())

    async def mode(self, host: SimulatedHost, tag: int, inode: InodeNumber) -> Any:
        async def call(_: Operation) -> int:
            return stat.S_IMODE((await host.unit.attributes(inode)).mode)

        return await self._ask(host, ("mode", tag), "get", call=call)

    async def _set_xattr(self, host: SimulatedHost) -> None:
        tag, inode = self._any_file()
        value = self._random.randbytes(4).hex().encode()

        async def call(_: Operation) -> str:
            if value < b"8":  # the next change of its data ends this one; in the end both hosts have the same
                await host.unit.perform(SetXattr(inode, CAPABILITY, value))
            await host.unit.perform(SetXattr(inode, XATTR, value))
            return "ok"

        await self._ask(host, ("xattr", tag), "set", (value,), call=call)

    async def _remove_xattr(self, host: SimulatedHost) -> None:
        tag, inode = self._any_file()

        async def call(_: Operation) -> str:
            await host.unit.perform(RemoveXattr(inode, XATTR))
            return "ok"

        await self._ask(host, ("xattr", tag), "remove", call=call)

    async def _xattr(self, host: SimulatedHost) -> None:
        await self.xattr(host, *self._any_file())

    async def xattr(self, host: SimulatedHost, tag: int, inode: InodeNumber) -> Any:
        async def call(_: Operation) -> bytes:
            return await host.unit.xattr(inode, XATTR)

        return await self._ask(host, ("xattr", tag), "get", call=call)

    async def _flags(self, host: SimulatedHost) -> None:
        """Set those that forbid nothing, or look."""
        tag, inode = self._any_file()
        if self._random.random() < 0.5:
            await self.flags(host, tag, inode)
            return
        flags = self._random.choice((0, Flag.NODUMP, Flag.NOATIME, INHERITED))

        async def call(_: Operation) -> str:
            await host.unit.perform(SetFlags(inode, flags))
            return "ok"

        await self._ask(host, ("flags", tag), "set", (int(flags),), call=call)

    async def flags(self, host: SimulatedHost, tag: int, inode: InodeNumber) -> Any:
        async def call(_: Operation) -> int:
            return host.unit.volume.catalog.xattrs.flags(await host.unit.attributes(inode))

        return await self._ask(host, ("flags", tag), "get", call=call)

    async def _accessed(self, host: SimulatedHost) -> None:
        """Both volumes have the same times in the end; no history tells of them."""
        inodes = self._random.choices(sorted(self._atlas.inodes.values()), k=3)
        await self._try(host, Accessed(tuple(inodes)))

    # --- records at their limits ----------------------------------------------------------------------

    async def _pile(self, host: SimulatedHost) -> None:
        """Pile up attributes on a file, the largest that fit into a record each, and as many as are taken.

        They are judged by what both volumes hold in the end, and by nothing else. Others unlink.
        """
        _, inode = self._any_file()
        for index in range(self._random.choice((1, 4, _PILED_MAX))):
            name = b"user.%d." % index + b"p" * self._random.choice((1, 200))
            value = b"v" * self._random.choice((0, 10, 1000))
            await self._try(host, SetXattr(inode, name, value))

    async def _bury(self, host: SimulatedHost) -> None:
        """Make directories within each other with the longest names, links with long targets that replace
        each other, and remove what can be removed of it all, from the inside."""
        made, top = self._random.randrange(6), b"%b deep" % self._name.encode()
        path: list[tuple[InodeNumber, bytes]] = []
        parent, name = ROOT_INODE, BURIED + top
        for _ in range(made):
            path.append((parent, name))
            inode = await self._try(host, Create(parent, name, stat.S_IFDIR | DIRECTORY_MODE, 0, 0))
            if inode is None:
                break
            parent, name = inode.number, b"d" * NAME_BYTES_MAX
            for link in (b"l" * NAME_BYTES_MAX, b"m" * NAME_BYTES_MAX):
                await self._try(host, Create(parent, link, stat.S_IFLNK | 0o777, 0, 0, target=b"t" * 500))
            await self._try(host, Rename(parent, b"l" * NAME_BYTES_MAX, parent, b"m" * NAME_BYTES_MAX))
            path.append((parent, b"m" * NAME_BYTES_MAX))
        for parent, name in reversed(path):
            is_link = name.startswith(b"m")
            await self._try(host, Unlink(parent, name) if is_link else RemoveDirectory(parent, name))

    async def _try(self, host: SimulatedHost, operation: AnyOperation) -> Inode | None:
        with suppress(OperationFailed, CheckReport):
            return await host.unit.perform(operation)
        return None

    # --- everything -----------------------------------------------------------------------------------

    async def read_everything(self, host: SimulatedHost) -> None:
        """See on this host whatever any program could have changed."""
        for parent in sorted(self._atlas.directories):
            await self.listing(host, parent)
            for name in self._names:
                await self.lookup(host, parent, name)
        for tag, inode in sorted(self._atlas.inodes.items()):
            if tag == ROOT_TAG:
                continue
            await self.nlink(host, tag)
            if tag not in self._atlas.directories:
                await self.read(host, tag, inode, 0, READ_ALL)
                for offset in GIANTS if self._world.options.giants else ():
                    await self.read(host, tag, inode, offset, READ_ALL)
                await self.size(host, tag, inode)
                await self.mode(host, tag, inode)
                await self.xattr(host, tag, inode)
                await self.flags(host, tag, inode)
