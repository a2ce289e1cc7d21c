"""The room of the disk where requests are staged: its reserve, what is applied there, what is asked."""

import logging
import os
from pathlib import Path

import pytest

from fusemirror.communication.staging_space import StagingSpace
from fusemirror.limits import MIB, SPACE_PER_CHANGE_BYTES, SPACE_RESERVE_BYTES_MAX
from fusemirror.volume.space import Space

pytestmark = pytest.mark.expects_warnings  # of the full disk

BLOCK = 4096
LARGE = 1 << 40


class Disk:
    """One that says what it is told to."""

    def __init__(self, available_bytes: int) -> None:
        self.available_bytes = available_bytes
        self.asked = 0

    def statvfs(self, _: Path) -> os.statvfs_result:
        self.asked += 1
        free = (self.available_bytes + SPACE_RESERVE_BYTES_MAX) // BLOCK
        return os.statvfs_result((BLOCK, BLOCK, LARGE // BLOCK, free, free, 0, 0, 0, 0, 255))


def room(disk: Disk, *, applies_here: bool = False, spare_bytes: int = 0) -> StagingSpace:
    return StagingSpace(
        Space(Path(), disk.statvfs), applies_here=applies_here, spare_bytes=lambda: spare_bytes
    )


@pytest.mark.parametrize(
    ("applies_here", "spare_bytes", "pending_bytes", "available_bytes"),
    [
        (False, 0, 0, 10 * MIB),
        (False, 2 * MIB, 9 * MIB, 12 * MIB),  # what is pending is in the store already
        (True, 0, 0, 5 * MIB),  # staged, and applied
        (True, 0, 4 * MIB, 3 * MIB),  # what is pending is yet to be applied
        (True, 4 * MIB, 0, 7 * MIB),
        (True, 100 * MIB, 0, 10 * MIB),  # what is applied needs the disk
        (True, 0, 11 * MIB, 0),
    ],
)
def test_what_fits(applies_here: bool, spare_bytes: int, pending_bytes: int, available_bytes: int) -> None:
    of_disk = room(Disk(10 * MIB), applies_here=applies_here, spare_bytes=spare_bytes)
    assert of_disk.available_bytes(pending_bytes) == available_bytes


@pytest.mark.parametrize(("more", "fits"), [(0, True), (1, False)])
def test_the_reserve_is_not_taken(more: int, fits: bool) -> None:
    assert room(Disk(MIB)).take(MIB - SPACE_PER_CHANGE_BYTES + more, 0) is fits


def test_no_more_is_taken_than_there_is_and_the_disk_is_seldom_asked() -> None:
    disk = Disk(8 * MIB)
    of_disk = room(disk)
    taken = 0
    while of_disk.take(4 * BLOCK, 0):
        taken += 4 * BLOCK + SPACE_PER_CHANGE_BYTES
        disk.available_bytes = 8 * MIB - taken
    assert 8 * MIB - 8 * BLOCK <= taken <= 8 * MIB
    assert disk.asked < 20


def test_the_log_says_once_that_it_is_full_and_that_it_is_not_any_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    disk = Disk(0)
    of_disk = room(disk)
    for available_bytes in (0, 0, 9 * MIB, 9 * MIB):
        disk.available_bytes = available_bytes
        of_disk.take(MIB, 0)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "the disk of the communication volume is full",
        "the disk of the communication volume has room again",
    ]
