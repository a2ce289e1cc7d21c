"""Space: how much a volume may still take, so that a full disk never meets it in the middle of something.

Some of the disk is kept in reserve. Changes that need room are refused while they would reach into
it; the journal, the catalog and everything that removes live on it, so files can be deleted, cut and
renamed on a full disk. Asking the disk costs a system call, so an answer is good for half of the room
that it found; whoever else writes to the disk meanwhile takes from the reserve.
"""

import os
from collections.abc import Callable
from pathlib import Path

from fusemirror.change import AnyChange, NamespaceChange, WriteChange
from fusemirror.limits import (
    COUNTER_MAX,
    SPACE_ANSWER_BYTES_MAX,
    SPACE_GROWN_INODES,
    SPACE_PER_CHANGE_BYTES,
    SPACE_RESERVE_BYTES_MAX,
    SPACE_RESERVE_INODES,
    SPACE_RESERVE_PART,
    WRITE_BYTES_MAX,
)


def room_of(change: AnyChange) -> tuple[int, int]:
    """The most bytes and inodes of the disk that a change takes. Both hosts count the same."""
    if type(change) is WriteChange:  # as almost all
        return SPACE_PER_CHANGE_BYTES + change.length, 0
    return SPACE_PER_CHANGE_BYTES + change.taken_bytes, int(type(change) is NamespaceChange)


class Space:
    """The room of one volume above its reserve."""

    def __init__(self, directory: Path, statvfs: Callable[[Path], os.statvfs_result]) -> None:
        self._directory = directory
        self._statvfs = statvfs
        self._left = self._inodes_left = 0  # of the last answer
        self._free = self._free_at_end = (0, 0)  # bytes and inodes: of it, and when a change did not fit last
        self.inodes = 0
        """The inodes above the reserve, as of the last answer; `COUNTER_MAX` where the disk counts none."""
        self.short = False
        """Whether a large write had no room any more, as of the last answer."""
        self.lacks_inodes = False
        """Whether inodes will be missing soon, as of the last answer: none is to be kept for later."""

    def measure(self) -> int:
        """The room above the reserve in bytes, 0 where there is none. OSError."""
        found = self._statvfs(self._directory)
        self._free = found.f_bavail * found.f_frsize, found.f_favail
        room = self._free[0] - reserve_bytes(found)
        # Filesystems that make inodes as they are needed say 0 of 0.
        self.lacks_inodes = found.f_files > 0 and found.f_favail < 2 * SPACE_RESERVE_INODES
        self.inodes = max(found.f_favail - SPACE_RESERVE_INODES, 0) if found.f_files > 0 else COUNTER_MAX
        if self.inodes == 0:
            room = 0  # each image takes one
        self.short = room < WRITE_BYTES_MAX
        self._left = min(room // 2, SPACE_ANSWER_BYTES_MAX)
        self._inodes_left = self.inodes // 2
        return max(room, 0)

    def statvfs(self) -> os.statvfs_result:
        """What the disk says, its free space less the reserve. OSError."""
        found = self._statvfs(self._directory)
        free = max(0, found.f_bavail - -(-reserve_bytes(found) // found.f_frsize))
        inodes = max(0, found.f_favail - SPACE_RESERVE_INODES)
        return os.statvfs_result((*found[:4], free, found.f_files, inodes, inodes, *found[8:]))

    def note_end(self) -> None:
        """A change did not fit, which the reserve was there for. OSError."""
        self.measure()
        self._free_at_end = self._free

    def has_grown(self) -> bool:
        """Whether that change may fit now: something is above the reserve, or clearly more of it is free. It
        need not be whole: deletions live on it, and they may give back all that it lacks. OSError.
        """
        if self.measure() > 0:
            return True
        (free_bytes, free_inodes), (then_bytes, then_inodes) = self._free, self._free_at_end
        return free_bytes - then_bytes >= WRITE_BYTES_MAX or free_inodes - then_inodes >= SPACE_GROWN_INODES

    def take(self, size_bytes: int, inodes: int = 0) -> bool:
        """Whether there is room for so much; it then counts as taken. OSError."""
        assert size_bytes >= 0, "what is taken makes no room"
        asks_disk = size_bytes > self._left or inodes > self._inodes_left
        if asks_disk and (size_bytes > self.measure() or inodes > self.inodes):
            return False
        self._left -= size_bytes
        self._inodes_left -= inodes
        return True


def reserve_bytes(found: os.statvfs_result) -> int:
    """What is kept free of a disk: enough for the journal, a commit of the catalog, and to delete."""
    return min(found.f_blocks * found.f_frsize // SPACE_RESERVE_PART, SPACE_RESERVE_BYTES_MAX)
