"""What the disk takes is found by trying, and nothing is left of that."""

import errno
import os
from pathlib import Path

import pytest

from fusemirror.limits import FILE_BYTES_MAX, MIB
from fusemirror.volume.disk_limits import DiskLimits
from fusemirror.volume.image_files import ImageFiles


@pytest.fixture
def disk(tmp_path: Path) -> DiskLimits:
    return DiskLimits(ImageFiles(tmp_path))


def test_the_longest_file_is_found_and_nothing_is_left(
    disk: DiskLimits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truncate = os.ftruncate

    def short(descriptor: int, size: int) -> None:
        if size > 5 * MIB:
            raise OSError(errno.EFBIG, "too long")
        truncate(descriptor, size)

    monkeypatch.setattr(os, "ftruncate", short)
    assert disk.file_bytes_max == 5 * MIB
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert disk.file_bytes_max == 5 * MIB, "it is asked once"


def test_a_disk_that_cannot_be_asked_is_asked_again(
    disk: DiskLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "ftruncate", broken)
    assert disk.file_bytes_max == FILE_BYTES_MAX
    assert not disk.takes_allocations
    monkeypatch.undo()
    assert disk.file_bytes_max > MIB


def test_a_disk_without_allocations_says_so(disk: DiskLimits, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "it cannot")

    monkeypatch.setattr("fusemirror.volume.disk_limits.allocate", cannot)
    assert not disk.takes_allocations
