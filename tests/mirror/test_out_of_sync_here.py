"""How many bytes of the subvolume may be old: as the primary says, or else all of such images."""

from fusemirror.control.unit import ControlUnit
from fusemirror.identifiers import ROOT_INODE
from fusemirror.mirror.out_of_sync_here import OutOfSyncHere
from fusemirror.operations import Create, Write
from fusemirror.protocol.messages import Resync
from tests.filesystem.conftest import unit

__all__ = ["unit"]


async def test_images_count_whole_until_the_primary_says_how_far_it_is(unit: ControlUnit) -> None:
    here = OutOfSyncHere(unit.volume)
    assert here.size_bytes == 0
    made = await unit.perform(Create(ROOT_INODE, b"file", 0o100644, 0, 0))
    assert made is not None
    await unit.perform(Write(made.number, 0), b"x" * 1000)
    here.images.add(made.number)
    assert here.size_bytes == 1000
    here.resync = Resync(300, 900, 0, 0, None, False, 0)
    assert here.size_bytes == 600
    here.resync = Resync(900, 300, 0, 0, None, False, 0)
    assert here.size_bytes == 0, "it is never less than nothing"
