"""Health: which errors end the service of a host, and which are a program's to handle."""

import errno
import os
from pathlib import Path

import pytest

from fusemirror.errors import DiskFailed, DiskFull
from fusemirror.volume.health import Health, disk_error
from fusemirror.volume.volume import Volume
from tests.volume.conftest import Writer

VOLUME = Path("/volume")


def broken(*_arguments: object) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENOENT])
def test_an_ordinary_error_is_no_illness(number: int) -> None:
    health = Health()
    health.note(OSError(number, "text"))
    health.note(DiskFull(VOLUME, "full"))
    assert health.failure is None
    assert not health.failed.is_set()


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "text"), OSError(errno.EROFS, "text"), DiskFailed(VOLUME, "text")], ids=repr
)
def test_a_broken_disk_stays_so_and_the_first_error_says_why(error: OSError | DiskFailed) -> None:
    health = Health()
    health.note(error)
    health.note(OSError(errno.EIO, "another"))
    assert "text" in str(health.failure)
    assert health.failed.is_set()


def test_the_error_of_a_full_disk_is_told_from_that_of_a_broken_one() -> None:
    full, failed = (disk_error(VOLUME, OSError(number, "x")) for number in (errno.EDQUOT, errno.EIO))
    assert (type(full), full.errno) == (DiskFull, errno.ENOSPC)
    assert (type(failed), failed.errno) == (DiskFailed, errno.EIO)


@pytest.mark.parametrize("call", ["pwrite", "pread", "write"])
def test_a_volume_notes_what_its_disk_does(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    writer = Writer(volume)
    inode = writer.create(b"a")
    writer.write(inode, 0, b"old")
    monkeypatch.setattr(os, call, broken)
    use = (
        (lambda: volume.read(inode, 0, 3)) if call == "pread" else lambda: writer.write(inode, 1 << 20, b"x")
    )
    with pytest.raises(OSError, match="Input/output"):
        use()
    assert "Input/output" in str(volume.health.failure)
