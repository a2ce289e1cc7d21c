"""Disk limits: how long a file the disk of a volume takes, and whether it gives files room.

Both are found by trying, on a file that is removed at once.
"""

import errno
import os

from fusemirror.limits import FILE_BYTES_MAX
from fusemirror.volume.durable import allocate, punch_hole
from fusemirror.volume.extents import next_data_at
from fusemirror.volume.image_files import ImageFiles


class DiskLimits:
    """Those of the disk on which the images of one volume stand; asked for once."""

    def __init__(self, files: ImageFiles) -> None:
        self._files = files
        self._file_bytes_max: int | None = None
        self._takes_allocations = False

    @property
    def file_bytes_max(self) -> int:
        """How long a file the disk takes: beyond, it refuses to write and to extend. While that cannot be
        asked for an error of the disk, any length that there is.
        """
        if self._file_bytes_max is None:
            try:
                self._file_bytes_max = self._probe()
            except OSError:  # who writes meets it too
                return FILE_BYTES_MAX
        return self._file_bytes_max

    @property
    def takes_allocations(self) -> bool:
        """Whether the disk gives files room, and makes holes in them; False while it cannot be asked."""
        return bool(self.file_bytes_max) and self._takes_allocations

    def _probe(self) -> int:
        """Ask for lengths, halving between the longest that was taken and the shortest that was not.

        OSError.
        """
        path = f"{self._files.directory}/probe"
        descriptor = self._files.open(path, os.O_CREAT | os.O_TRUNC)
        try:
            os.unlink(path)  # nothing is left of it, however this ends
            taken, refused = 0, FILE_BYTES_MAX + 1
            asked = FILE_BYTES_MAX
            while taken + 1 < refused:
                if _takes_length(descriptor, asked):
                    taken = asked
                else:
                    refused = asked
                asked = (taken + refused) // 2
            # What tmpfs holds in the last page that there can be, SEEK_DATA does not find.
            last_page = FILE_BYTES_MAX + 1 - os.sysconf("SC_PAGE_SIZE")
            if taken > last_page and not _finds_last_byte(descriptor, taken):
                taken = last_page
            os.ftruncate(descriptor, 0)
            self._takes_allocations = _allocates(descriptor)
            return taken
        finally:
            os.close(descriptor)


def _takes_length(descriptor: int, size: int) -> bool:
    try:
        os.ftruncate(descriptor, size)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        return False
    return True


def _allocates(descriptor: int) -> bool:
    try:
        allocate(descriptor, 0, 0, 1)
        punch_hole(descriptor, 0, 1)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False
    return True


def _finds_last_byte(descriptor: int, size: int) -> bool:
    """Whether SEEK_DATA finds one that is written there."""
    os.ftruncate(descriptor, size)
    os.pwrite(descriptor, b"x", size - 1)
    return next_data_at(descriptor, size - 1, size) < size
