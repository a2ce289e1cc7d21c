"""This host's own volume, and where it has data, with pending writes on top."""

import errno

import pytest

from fusemirror.control.host_state import HostState
from fusemirror.control.local_reads import found, read_here, seek_here, size_to_seek
from fusemirror.control.unit import ControlUnit
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.operations import Create, Write
from fusemirror.volume.volume import Volume
from tests.filesystem.conftest import unit
from tests.volume.conftest import directory, volume

__all__ = ["directory", "unit", "volume"]


async def _file(unit: ControlUnit) -> InodeNumber:
    made = await unit.perform(Create(ROOT_INODE, b"file", 0o100644, 0, 0))
    assert made is not None
    await unit.perform(Write(made.number, 1 << 20), b"data")
    return made.number


def test_what_is_not_there_has_its_errno() -> None:
    with pytest.raises(OperationFailed) as refused:
        found(None, errno.ESTALE)
    assert refused.value.errno == errno.ESTALE


async def test_a_read_is_counted_and_shorter_at_the_end(unit: ControlUnit) -> None:
    inode, host = await _file(unit), unit.host
    before = host.reads.local
    assert read_here(host, inode, (1 << 20) - 2, 100) == b"\0\0data"
    assert host.reads.local == before + 1


async def test_data_and_holes_are_found_and_nothing_behind_the_end(unit: ControlUnit) -> None:
    inode, host = await _file(unit), unit.host
    end = (1 << 20) + 4
    assert seek_here(host, inode, 0, data=False) == 0
    assert 0 < seek_here(host, inode, 0, data=True) <= 1 << 20
    assert seek_here(host, inode, 1 << 20, data=False) == end
    assert size_to_seek(host, inode, 0) == end
    for data in (True, False):
        with pytest.raises(OperationFailed) as refused:
            seek_here(host, inode, end, data=data)
        assert refused.value.errno == errno.ENXIO


async def test_an_error_of_the_disk_is_the_programs(
    unit: ControlUnit, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = await _file(unit)
    host: HostState = unit.host

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(volume, "read", fail)
    with pytest.raises(OperationFailed) as refused:
        read_here(host, inode, 0, 1)
    assert refused.value.errno == errno.EIO
