"""What was read is told a little later, together, and only where it says something new."""

import os
from collections.abc import Callable
from typing import Any, cast

import pytest
import trio

from fusemirror.control.primary import PrimaryUnit
from fusemirror.control.unit import ControlUnit
from fusemirror.filesystem import access_times
from fusemirror.filesystem.access_times import AccessTimes
from fusemirror.filesystem.kernel_cache import KernelCache
from fusemirror.filesystem.operations import Operations
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import ACCESSED_INTERVAL_S, ACCESSED_PER_CHANGE
from fusemirror.operations import Accessed, Create, Write
from tests.filesystem.conftest import ROOT_USER, directory, never, unit, volume

__all__ = ["directory", "unit", "volume"]

ROOT = InodeNumber(1)


@pytest.fixture
def times(unit: ControlUnit) -> AccessTimes:
    return AccessTimes(unit)


async def make(unit: ControlUnit, name: bytes = b"file") -> InodeNumber:
    made = await unit.perform(Create(ROOT, name, 0o100644, 0, 0))
    assert made is not None
    await unit.perform(Write(made.number, 0), b"content")
    return made.number


def atime_of(unit: ControlUnit, number: InodeNumber) -> int:
    inode = unit.volume.catalog.inode(number)
    assert inode is not None
    return inode.atime_ns


async def test_a_read_changes_it_and_an_open_that_asks_for_none_does_not(
    unit: ControlUnit, times: AccessTimes
) -> None:
    operations, caller = Operations(unit, KernelCache(), never, access_times=times), cast(Any, ROOT_USER)
    file = await make(unit)
    for flags, is_noted in ((os.O_RDONLY | os.O_NOATIME, False), (os.O_RDONLY, True)):
        before = atime_of(unit, file)
        opened = await operations.open(file, flags, caller)
        await times.tell()
        assert atime_of(unit, file) == before, "it was opened, and not read"
        await operations.read(opened.fh, 0, 3)
        number = unit.volume.number
        assert atime_of(unit, file) == before, "nobody waits for it"
        await times.tell()
        assert (atime_of(unit, file) > before) is is_noted
        assert unit.volume.number == number + is_noted
        await operations.release(opened.fh)


async def test_what_is_read_again_is_told_once_and_many_are_told_together(
    unit: ControlUnit, times: AccessTimes
) -> None:
    files = [await make(unit, b"%d" % index) for index in range(ACCESSED_PER_CHANGE + 1)]
    for change_count in (2, 0):
        number = unit.volume.number
        for file in files:
            times.note(file)
        await times.tell()
        assert unit.volume.number == number + change_count
    assert min(atime_of(unit, file) for file in files) > 0


async def test_no_more_is_remembered_than_has_a_bound(
    unit: ControlUnit, times: AccessTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_times, "ACCESSED_NOTED_MAX", 3)
    for number in range(9):
        times.note(InodeNumber(number))
    assert len(times._noted) == 3
    await times.tell()  # of those that are not there nothing is told
    assert not times._noted


async def test_a_host_that_has_just_lost_the_other_does_not_part_from_it_by_reading(
    unit: ControlUnit, times: AccessTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await make(unit)
    role = unit.unit
    assert isinstance(role, PrimaryUnit)
    role.replica.progress.shares_line = True
    number, before = unit.volume.number, atime_of(unit, file)
    times.note(file)
    await times.tell()
    assert (unit.volume.number, atime_of(unit, file)) == (number, before)
    await unit.perform(Write(file, 0), b"x")  # begins a line of its own
    await unit.perform(Accessed((file,)))
    assert atime_of(unit, file) > before


async def test_it_is_told_in_time(
    unit: ControlUnit, times: AccessTimes, autojump_clock: Callable[[], float]
) -> None:
    file = await make(unit)
    before = atime_of(unit, file)
    async with trio.open_nursery() as nursery:
        await nursery.start(times.run)
        times.note(file)
        await trio.sleep(ACCESSED_INTERVAL_S * 1.5)
        assert atime_of(unit, file) > before
        nursery.cancel_scope.cancel()
