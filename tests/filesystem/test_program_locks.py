"""Locks as the kernel asks for them: one kernel at a primary without a peer."""

import errno
import fcntl
import os
from typing import Any

import pytest
import trio
import trio.testing
from pyfuse3 import FUSEError

from fusemirror.coherence.lock_table import END_OF_FILE, Owner
from fusemirror.control.unit import ControlUnit
from fusemirror.errors import VolumeDamaged
from fusemirror.filesystem.callers import Caller
from fusemirror.filesystem.errnos import ErrorLog
from fusemirror.filesystem.kernel_cache import KernelCache
from fusemirror.filesystem.operations import Operations
from fusemirror.filesystem.program_locks import ProgramLocks
from fusemirror.identifiers import ROOT_INODE
from fusemirror.kernel.codec import FileLock, InHeader, LockWanted
from tests.filesystem.conftest import cache, dropped, never, notified, operations, unit
from tests.volume.conftest import directory, volume

__all__ = ["cache", "directory", "dropped", "notified", "operations", "unit", "volume"]

CALLER = Caller(0, 0, 4711, 0)


def asker(unique: int = 2) -> InHeader:
    return InHeader(40, 33, unique, 1, 0, 0, 4711, 0, 0)


@pytest.fixture
async def fh(operations: Operations) -> int:
    info, _ = await operations.create(ROOT_INODE, b"file", 0o644, os.O_RDWR, CALLER)  # type: ignore[arg-type]
    return int(info.fh)


@pytest.fixture
def locks(operations: Operations) -> ProgramLocks:
    return operations.program_locks


def wanted(
    fh: int, owner: int = 1, start: int = 0, end: int = END_OF_FILE, kind: int = fcntl.F_WRLCK, **more: Any
) -> LockWanted:
    return LockWanted(fh, owner, FileLock(start, end, kind, 100 + owner), more.get("of_flock", False))


async def errno_of(locks: ProgramLocks, asked: LockWanted, *, waits: bool = False, unique: int = 2) -> int:
    try:
        await locks.set(asker(unique), asked, waits=waits)
    except FUSEError as error:
        return int(error.errno)
    return 0


async def test_locks_are_taken_found_and_given_up(locks: ProgramLocks, fh: int) -> None:
    assert await errno_of(locks, wanted(fh, 1, 10, 19)) == 0
    assert await errno_of(locks, wanted(fh, 2, 15, 15)) == errno.EAGAIN
    assert await errno_of(locks, wanted(fh, 2, of_flock=True)) == 0
    assert await locks.find(asker(), wanted(fh, 2, 0, 99)) == FileLock(10, 19, fcntl.F_WRLCK, 101)
    assert (await locks.find(asker(), wanted(fh, 1, 0, 99))).type == fcntl.F_UNLCK
    assert await errno_of(locks, wanted(fh, 1, 15, 19, kind=fcntl.F_UNLCK)) == 0
    assert await errno_of(locks, wanted(fh, 2, 15, 15)) == 0
    assert await errno_of(locks, wanted(fh, 2, 9, 5)) == errno.EINVAL


async def test_a_signal_ends_the_wait(locks: ProgramLocks, fh: int) -> None:
    assert await errno_of(locks, wanted(fh, 1)) == 0
    ended: list[int] = []

    async def wait() -> None:
        ended.append(await errno_of(locks, wanted(fh, 2), waits=True, unique=9))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        locks.interrupt(7)
        locks.interrupt(9)
    assert ended == [errno.EINTR]


async def test_a_close_ends_what_the_process_holds_and_a_release_what_the_open_file_does(
    locks: ProgramLocks, operations: Operations, fh: int, unit: ControlUnit
) -> None:
    assert await errno_of(locks, wanted(fh, 1, 0, 9)) == 0
    assert await errno_of(locks, wanted(fh, 2, 10, 19)) == 0
    assert await errno_of(locks, wanted(fh, 3, of_flock=True)) == 0
    locks.closed_by(fh, 1)
    assert unit.locks.status()["held"] == 2
    await operations.release(fh)
    assert unit.locks.status()["held"] == 0


async def test_of_open_files_no_circle_is_looked_for(
    unit: ControlUnit, cache: KernelCache, fh: int, operations: Operations
) -> None:
    files = operations.files._files
    for as_open_file, expected in ((False, errno.EDEADLK), (True, errno.EINTR)):
        locks = ProgramLocks(unit, cache, files, ErrorLog(never), lambda _, answer=as_open_file: answer)  # type: ignore[misc]
        assert await errno_of(locks, wanted(fh, 1, 0, 0)) == 0
        assert await errno_of(locks, wanted(fh, 2, 1, 1)) == 0
        ended: list[int] = []
        async with trio.open_nursery() as nursery:

            async def wait(
                owner: int, start: int, locks: ProgramLocks = locks, ended: list[int] = ended
            ) -> None:
                asked = wanted(fh, owner, start, start)
                ended.append(await errno_of(locks, asked, waits=True, unique=owner))

            nursery.start_soon(wait, 1, 1)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(wait, 2, 0)
            await trio.testing.wait_all_tasks_blocked()
            locks.interrupt(2)
            await trio.testing.wait_all_tasks_blocked()
            locks.interrupt(1)
        assert ended[0] == expected
        for owner in (1, 2):
            locks.closed_by(fh, owner)


@pytest.mark.expects_warnings
async def test_through_a_file_whose_lock_is_lost_nothing_goes_until_it_is_closed(
    locks: ProgramLocks, operations: Operations, fh: int, unit: ControlUnit, notified: list[Any]
) -> None:
    assert await errno_of(locks, wanted(fh, 1)) == 0
    unit.locks.lose_all("a test")
    assert await errno_of(locks, wanted(fh, 1)) == errno.EIO
    for request in (
        lambda: operations.read(fh, 0, 1),
        lambda: operations.write(fh, 0, b"x"),
        lambda: operations.fsync(fh, False),
    ):
        with pytest.raises(FUSEError) as caught:
            await request()
        assert caught.value.errno == errno.EIO
    await operations.release(fh)
    assert unit.locks.lost == set()


async def test_a_grant_waits_for_pages_that_are_still_to_go(
    locks: ProgramLocks, fh: int, cache: KernelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled: list[int] = []

    async def wait(inode: int) -> None:
        settled.append(inode)

    monkeypatch.setattr(cache.pages, "dropped", wait)
    assert await errno_of(locks, wanted(fh, 1)) == 0
    assert await errno_of(locks, wanted(fh, 2)) == errno.EAGAIN
    assert len(settled) == 1


async def test_what_cannot_be_said_to_be_held_is_not(
    locks: ProgramLocks, fh: int, cache: KernelCache, unit: ControlUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_: int) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(cache.pages, "dropped", never)
    unit.locks.io_timeout_s = 0.01
    assert await errno_of(locks, wanted(fh, 1)) == errno.EIO
    assert not unit.locks.table.holds(Owner(unit.locks.host, 1), ROOT_INODE)
    assert unit.locks.status()["held"] == 0


@pytest.mark.expects_warnings
async def test_a_damage_met_by_a_lock_is_told_and_no_bug(
    locks: ProgramLocks,
    fh: int,
    unit: ControlUnit,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def damaged(inode: object) -> None:
        raise VolumeDamaged("/volume", "a test")

    monkeypatch.setattr(unit, "showable", damaged)
    assert await errno_of(locks, wanted(fh, 1)) == errno.EIO
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "a test" in line
    assert (await locks.find(asker(), wanted(fh, 2))).type == fcntl.F_UNLCK, "it is not held"
