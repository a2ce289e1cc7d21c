"""Ending inodes without names, however many there are."""

import pytest
import trio
from trio.testing import MockClock

from fusemirror.control import upkeep
from fusemirror.control.unit import ControlUnit
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import PURGE_AFTER_S
from fusemirror.operations import Create, Unlink
from tests.filesystem.conftest import unit
from tests.volume.conftest import directory, volume

__all__ = ["directory", "unit", "volume"]

FILES = 40


async def test_one_look_serves_all_batches(
    unit: ControlUnit, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """It goes over all inodes without names: one for each batch made a purge of a million last minutes."""
    monkeypatch.setattr(upkeep, "PURGE_BATCH_MAX", 1)
    catalog, looks = unit.volume.catalog, 0
    orphans = catalog.orphans

    def look() -> list[InodeNumber]:
        nonlocal looks
        looks += 1
        return orphans()

    monkeypatch.setattr(catalog, "orphans", look)
    for number in range(FILES):
        await unit.perform(Create(ROOT_INODE, b"%d" % number, 0o100644, 0, 0))
        await unit.perform(Unlink(ROOT_INODE, b"%d" % number))
    assert len(orphans()) == FILES
    await trio.sleep(3 * PURGE_AFTER_S)
    assert orphans() == []
    assert looks < FILES / 2
