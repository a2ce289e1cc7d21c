"""Space: what is refused before the disk is full, and what is kept free."""

import os
from pathlib import Path

import pytest

from fusemirror.change import NamespaceChange, TruncateChange, WriteChange
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber
from fusemirror.limits import (
    GIB,
    KIB,
    MIB,
    SPACE_GROWN_INODES,
    SPACE_PER_CHANGE_BYTES,
    SPACE_RESERVE_BYTES_MAX,
    SPACE_RESERVE_INODES,
    WRITE_BYTES_MAX,
)
from fusemirror.volume.space import Space, reserve_bytes, room_of

BLOCK = 4 * KIB


class Disk:
    """Says what it is told to, and counts how often it was asked."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = self.free_bytes = size_bytes
        self.inodes = self.free_inodes = 10_000
        self.asked = 0

    def statvfs(self, _directory: Path) -> os.statvfs_result:
        self.asked += 1
        free = self.free_bytes // BLOCK
        counts = (self.size_bytes // BLOCK, free, free, self.inodes, self.free_inodes, self.free_inodes)
        return os.statvfs_result((BLOCK, BLOCK, *counts, 0, 255))


@pytest.fixture
def disk() -> Disk:
    return Disk(GIB)


@pytest.fixture
def space(disk: Disk) -> Space:
    return Space(Path("/volume"), disk.statvfs)


def test_a_large_disk_is_asked_seldom(space: Space, disk: Disk) -> None:
    for _ in range(1000):
        assert space.take(4 * KIB)
    assert disk.asked == 1
    assert not space.short


def test_the_reserve_is_kept(space: Space, disk: Disk) -> None:
    disk.free_bytes = SPACE_RESERVE_BYTES_MAX + 2 * MIB
    assert space.take(2 * MIB)
    disk.free_bytes = SPACE_RESERVE_BYTES_MAX + 8 * KIB
    assert not space.take(MIB)
    assert space.short is True
    assert space.take(8 * KIB)
    disk.free_bytes = SPACE_RESERVE_BYTES_MAX
    assert not space.take(4 * KIB)
    assert space.measure() == 0


def test_the_reserve_of_inodes_is_kept_however_fast_files_are_made(space: Space, disk: Disk) -> None:
    disk.free_inodes = SPACE_RESERVE_INODES + 1000
    made = 0
    while space.take(SPACE_PER_CHANGE_BYTES, 1):
        made += 1
        disk.free_inodes -= 1
    assert made == 1000
    assert disk.free_inodes == SPACE_RESERVE_INODES
    disk.free_inodes += 1
    assert space.take(MIB)  # one left, and data takes none
    assert not space.take(SPACE_PER_CHANGE_BYTES, 2)


def test_room_that_comes_back_is_seen_at_once(space: Space, disk: Disk) -> None:
    disk.free_bytes = 0
    assert not space.take(4 * KIB)
    disk.free_bytes = GIB
    assert space.take(4 * KIB)
    assert space.short is False


def test_an_answer_is_good_for_half_of_what_it_found(space: Space, disk: Disk) -> None:
    disk.free_bytes = SPACE_RESERVE_BYTES_MAX + 4 * MIB
    assert space.take(MIB)
    disk.free_bytes -= 2 * MIB
    assert space.take(MIB)
    disk.free_bytes -= MIB
    assert not space.take(MIB + 4 * KIB)


def test_a_disk_without_inodes_is_full_and_one_that_counts_none_is_not(space: Space, disk: Disk) -> None:
    disk.free_inodes = 3
    assert not space.take(4 * KIB)
    disk.inodes = disk.free_inodes = 0
    assert space.take(4 * KIB)


def test_a_small_disk_keeps_a_part_of_itself(disk: Disk) -> None:
    disk.size_bytes = 64 * MIB
    assert reserve_bytes(disk.statvfs(Path("/volume"))) == 8 * MIB


def test_a_change_takes_its_data_and_a_block() -> None:
    number, inode = ChangeNumber(1), InodeNumber(2)
    assert room_of(WriteChange(number, NO_REQUEST, 0, inode, 0, 1000)) == (SPACE_PER_CHANGE_BYTES + 1000, 0)
    assert room_of(TruncateChange(number, NO_REQUEST, 0, inode, 1 << 40)) == (SPACE_PER_CHANGE_BYTES, 0)
    assert room_of(NamespaceChange(number, NO_REQUEST, 0, inode, ())) == (SPACE_PER_CHANGE_BYTES, 1)


@pytest.mark.parametrize(
    ("more_bytes", "more_inodes", "grown"),
    [
        (0, 0, False),
        (WRITE_BYTES_MAX - BLOCK, SPACE_GROWN_INODES - 1, False),
        (WRITE_BYTES_MAX, 0, True),
        (0, SPACE_GROWN_INODES, True),
        (SPACE_RESERVE_BYTES_MAX, SPACE_RESERVE_INODES, True),
    ],
)
def test_what_did_not_fit_may_fit_once_clearly_more_is_free_though_the_reserve_is_not_whole(
    disk: Disk, more_bytes: int, more_inodes: int, grown: bool
) -> None:
    space = Space(Path("volume"), disk.statvfs)
    disk.free_bytes, disk.free_inodes = BLOCK, 1
    space.note_end()
    assert not space.has_grown()
    disk.free_bytes += more_bytes
    disk.free_inodes += more_inodes
    assert space.has_grown() == grown
    disk.free_bytes, disk.free_inodes = GIB, 10_000
    assert space.has_grown()
