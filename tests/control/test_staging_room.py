"""A write that is acknowledged early needs room on the communication volume's disk, before it is made."""

import errno

import pytest
import trio
from trio.testing import MockClock

from fusemirror.communication.staging_space import StagingSpace
from fusemirror.control.backup import BackupUnit
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import MIB
from fusemirror.operations import Unlink, Write
from tests.admin.conftest import Pair, network, pair
from tests.communication.test_staging_space import Disk, room
from tests.control.test_gathering import SLOWNESS_S, file, unit
from tests.control.test_roles import content, until
from tests.memory_network import MemoryNetwork

__all__ = ["file", "network", "pair", "unit"]

pytestmark = pytest.mark.expects_warnings  # of the full disk


@pytest.fixture
def disk(unit: BackupUnit, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Of the communication volume; it is full."""
    found = Disk(0)
    of_disk: StagingSpace = room(found)
    monkeypatch.setattr(unit.communication, "_room", of_disk)
    return found


async def test_without_room_it_is_refused_before_anything_changes_and_the_status_says_why(
    pair: Pair, file: InodeNumber, unit: BackupUnit, disk: Disk, autojump_clock: MockClock
) -> None:
    before = unit.volume.number
    with trio.fail_after(SLOWNESS_S / 10), pytest.raises(OperationFailed) as raised:
        await pair.backup.roles.perform(Write(file, 0), b"new")
    assert raised.value.errno == errno.ENOSPC
    assert (len(unit.communication), unit.volume.number) == (0, before)
    status = unit.status()
    assert status["communication"]["full"]
    assert status["communication"]["available_bytes"] == 0
    assert status["reason"] == "the disk of the communication volume is full"
    await pair.backup.roles.perform(Unlink(ROOT_INODE, b"file"))
    disk.available_bytes = 100 * MIB
    assert unit.status()["reason"] is None


async def test_a_disk_that_does_not_answer_stands_in_the_status(
    unit: BackupUnit, disk: Disk, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    def broken() -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(unit.communication._room, "_spare_bytes", broken)
    assert unit.status()["reason"] == "the disk of the communication volume failed: [Errno 5] broken"


async def test_with_room_again_it_is_acknowledged_early(
    pair: Pair, file: InodeNumber, unit: BackupUnit, disk: Disk, autojump_clock: MockClock
) -> None:
    disk.available_bytes = 100 * MIB
    with trio.fail_after(SLOWNESS_S / 2):
        await pair.backup.roles.perform(Write(file, 0), b"data")
    assert len(unit.communication) == 1
    await pair.backup.roles.wait_drained()


async def test_what_needs_no_room_in_the_volumes_waits_for_the_primary(
    pair: Pair, file: InodeNumber, unit: BackupUnit, disk: Disk, autojump_clock: MockClock
) -> None:
    disk.available_bytes = 100 * MIB
    await pair.backup.roles.perform(Write(file, 0), bytes(4096))
    await pair.backup.roles.wait_drained()
    disk.available_bytes = 0
    unit.communication._room._left = 0  # type: ignore[union-attr]
    began = trio.current_time()
    await pair.backup.roles.perform(Write(file, 0), b"over")
    assert trio.current_time() - began > SLOWNESS_S / 2
    assert content(pair.primary, file)[:4] == b"over"


async def test_where_pending_ones_take_the_room_it_waits_behind_them_while_the_primary_is_there(
    pair: Pair, file: InodeNumber, unit: BackupUnit, disk: Disk, autojump_clock: MockClock
) -> None:
    disk.available_bytes = MIB
    await pair.backup.roles.perform(Write(file, 0), b"first")
    disk.available_bytes = 0
    unit.communication._room._left = 0  # type: ignore[union-attr]
    assert len(unit.communication) == 1
    await pair.backup.roles.perform(Write(file, 100), b"second")
    assert len(unit.communication) == 0
    assert content(pair.primary, file)[100:] == b"second"


async def test_while_the_primary_is_away_it_is_refused_at_once(
    pair: Pair,
    network: MemoryNetwork,
    file: InodeNumber,
    unit: BackupUnit,
    disk: Disk,
    autojump_clock: MockClock,
) -> None:
    disk.available_bytes = MIB
    await pair.backup.roles.perform(Write(file, 0), b"first")
    disk.available_bytes = 0
    unit.communication._room._left = 0  # type: ignore[union-attr]
    network.cut("alpha", "beta")
    await until(lambda: unit.link is None)
    with pytest.raises(OperationFailed) as raised:
        await pair.backup.roles.perform(Write(file, 100), b"second")
    assert raised.value.errno == errno.ENOSPC
