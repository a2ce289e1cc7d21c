"""Exclusive access of two hosts in one process: who stands by for whom, and what has travelled meanwhile."""

import errno
import stat
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
import trio.testing

from fusemirror.control.backup import BackupUnit
from fusemirror.control.landing import Landing
from fusemirror.control.primary import PrimaryUnit
from fusemirror.errors import OperationFailed, PrimaryUnreachable
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import STATUS_AHEAD_BYTES
from fusemirror.operations import Create, Reserve, SetXattr, Write
from fusemirror.settings import Access
from tests.admin.conftest import Pair, network, pair

__all__ = ["network", "pair"]

FILE = stat.S_IFREG | 0o644
DATA = b"0123456789"


class Both:
    """The two control units, and a file of 100 bytes."""

    def __init__(self, primary: PrimaryUnit, backup: BackupUnit, file: InodeNumber) -> None:
        self.primary = primary
        self.backup = backup
        self.file = file

    @property
    def access(self) -> list[Access]:
        """In effect at the primary and at the backup."""
        return [self.primary.access, self.backup.access]

    @property
    def forwarded_data_bytes(self) -> int:
        assert self.backup.link is not None
        return self.backup.link.forward.counters.sent_data_bytes


@pytest.fixture
async def both(pair: Pair) -> AsyncIterator[Both]:
    primary, backup = pair.primary.unit, pair.backup.unit
    assert isinstance(primary, PrimaryUnit)
    assert isinstance(backup, BackupUnit)
    await primary.change_access(Access.EXCLUSIVE)
    made = await backup.perform(Create(ROOT_INODE, b"file", FILE, 0, 0))
    assert made is not None
    await backup.perform(Write(made.number, 0), bytes(100))
    assert backup.access is Access.EXCLUSIVE
    yield Both(primary, backup, made.number)
    for unit in (primary, backup):
        await until(unit.exclusive.is_idle)


class Task:
    """Something under way in a nursery."""

    def __init__(self, nursery: trio.Nursery, call: Callable[[], object]) -> None:
        self.done = False
        self._call = call
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        await self._call()  # type: ignore[misc]
        self.done = True


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - what it waits for sends no word
            await trio.sleep(0.001)


async def test_a_backup_that_finds_main_exclusive_gives_up_and_its_data_travels_once(both: Both) -> None:
    claim, before = both.primary.exclusive.ranges.claim(both.file, 5, 6), both.forwarded_data_bytes
    async with trio.open_nursery() as nursery:
        write = Task(nursery, lambda: both.backup.perform(Write(both.file, 0), DATA))
        await until(lambda: both.backup.exclusive.given_up_total == 1)
        assert not write.done
        assert both.primary.exclusive.ranges.standing_by == 1
        assert both.backup.exclusive.status() == {
            "held": 0,
            "standing_by": 0,
            "stood_by_total": 0,
            "given_up_total": 1,
        }
        # Having given up, it keeps nobody off: neither a reader here nor main's own write.
        assert await both.backup.reads.read(both.file, 0, 10) == bytes(10)
        both.primary.exclusive.ranges.release(claim)
    assert await both.backup.reads.read(both.file, 0, 10) == DATA
    assert both.forwarded_data_bytes - before == len(DATA)


async def test_a_write_of_the_backup_stands_by_for_its_own_host_before_it_asks(both: Both) -> None:
    claim, before = (
        both.backup.exclusive.ranges.claim(both.file, 0, 1),
        both.backup.forwarding.forwarded_total,
    )
    async with trio.open_nursery() as nursery:
        write = Task(nursery, lambda: both.backup.perform(Write(both.file, 0), DATA))
        read = Task(nursery, lambda: both.backup.reads.read(both.file, 0, 10))
        await until(lambda: both.backup.exclusive.stood_by_total == 2)
        assert both.backup.forwarding.forwarded_total == before
        assert await both.backup.reads.read(both.file, 10, 10) == bytes(10), "bytes that nobody holds"
        assert not write.done
        assert not read.done
        # Main's own write comes through: the subvolume's status keeps it off nowhere.
        await both.primary.perform(Write(both.file, 0), b"main")
        both.backup.exclusive.ranges.release(claim)
    assert await both.primary.reads.read(both.file, 0, 10) == DATA


async def test_writes_and_reads_of_the_primary_stand_by_for_a_write_of_the_backup(both: Both) -> None:
    claim = both.primary.exclusive.ranges.claim(both.file, 0, 1)  # as a granted request's is
    async with trio.open_nursery() as nursery:
        tasks = [
            Task(nursery, lambda: both.primary.perform(Write(both.file, 0), DATA)),
            Task(nursery, lambda: both.primary.reads.read(both.file, 0, 10)),
        ]
        await until(lambda: both.primary.exclusive.stood_by_total == 2)
        assert not any(task.done for task in tasks)
        await both.primary.perform(SetXattr(both.file, b"user.x", b"names and attributes are free"))
        await both.primary.perform(Write(both.file, 50), DATA)
        both.primary.exclusive.ranges.release(claim)


async def test_a_command_of_main_takes_the_subvolume_before_its_data_is_there(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = b"x" * STATUS_AHEAD_BYTES
    await both.primary.perform(Write(both.file, 0), bytes(2 * len(large)))
    replica, data_under_way = both.primary.replica, list[tuple[Any, ...]]()
    send = replica.take
    monkeypatch.setattr(replica, "take", lambda *change: data_under_way.append(change))
    async with trio.open_nursery() as nursery:
        Task(nursery, lambda: both.primary.perform(Write(both.file, 0), large))
        await until(lambda: both.backup.exclusive.ranges.is_exclusive(both.file, 0, 1))
        tasks = [
            Task(nursery, lambda: both.backup.reads.read(both.file, 0, 10)),
            Task(nursery, lambda: both.backup.perform(Write(both.file, 0), DATA)),
        ]
        await until(lambda: both.backup.exclusive.stood_by_total == 2)
        assert await both.backup.reads.read(both.file, len(large), 10) == bytes(10), "bytes of nobody"
        assert not any(task.done for task in tasks)
        monkeypatch.undo()
        send(*data_under_way[0])
    assert await both.primary.reads.read(both.file, 0, 12) == DATA + b"xx"


async def test_small_data_is_its_own_command(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Landing, "command", lambda *_: pytest.fail("a message for nothing"))
    await both.primary.perform(Write(both.file, 0), b"x" * (STATUS_AHEAD_BYTES - 1))


async def test_main_is_held_until_the_backup_has_the_data(both: Both) -> None:
    assert both.backup.link is not None
    async with trio.open_nursery() as nursery:
        Task(nursery, lambda: both.primary.perform(Write(both.file, 0), DATA))
        while not both.primary.exclusive.ranges.is_exclusive(both.file, 0, 10):
            await trio.lowlevel.checkpoint()
        assert both.primary.mirror.window.acknowledged_number < both.primary.volume.number
    assert both.primary.mirror.window.acknowledged_number == both.primary.volume.number


async def test_a_reservation_is_a_conflict_that_needs_no_asking(both: Both) -> None:
    await both.primary.perform(Reserve(both.file, b"file", preempt=False))
    before = both.backup.forwarding.forwarded_total
    with pytest.raises(OperationFailed) as caught:
        await both.backup.perform(Write(both.file, 0), DATA)
    assert (caught.value.errno, both.backup.forwarding.forwarded_total) == (errno.EBUSY, before)


async def test_a_reservation_made_while_a_write_stands_by_is_a_conflict_at_main(both: Both) -> None:
    claim = both.primary.exclusive.ranges.claim(both.file, 0, 1)
    with pytest.RaisesGroup(OperationFailed):
        async with trio.open_nursery() as nursery:
            Task(nursery, lambda: both.backup.perform(Write(both.file, 0), DATA))
            await until(lambda: both.backup.exclusive.given_up_total == 1)
            await both.primary.perform(Reserve(both.file, b"file", preempt=False))
            both.primary.exclusive.ranges.release(claim)


@pytest.mark.expects_warnings
async def test_standing_by_has_a_limit(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(both.backup.patience, "io_timeout_s", 0.01)
    claim = both.backup.exclusive.ranges.claim(both.file, 0, 1)
    for call in (
        lambda: both.backup.perform(Write(both.file, 0), DATA),
        lambda: both.backup.reads.read(both.file, 0, 1),
    ):
        with pytest.raises(PrimaryUnreachable):
            await call()
    both.backup.exclusive.ranges.release(claim)


@pytest.mark.parametrize("role", ["primary", "backup"])
async def test_access_changes_with_requests_under_way(both: Both, role: str) -> None:
    unit = getattr(both, role)
    claim = both.primary.exclusive.ranges.claim(both.file, 0, 1)
    async with trio.open_nursery() as nursery:
        Task(nursery, lambda: both.backup.perform(Write(both.file, 0), DATA))
        await until(lambda: both.backup.exclusive.given_up_total == 1)
        await unit.change_access(Access.ROUTED)
        await both.backup.perform(
            Write(both.file, 0), b"routed"
        )  # it takes no status, and stands by for none
        assert both.primary.access is both.backup.access is Access.ROUTED
        both.primary.exclusive.ranges.release(claim)
    await unit.change_access(Access.EXCLUSIVE)
    await both.backup.flush(both.file)
    assert both.access == [Access.EXCLUSIVE] * 2
    assert await both.primary.reads.read(both.file, 0, 10) == DATA
