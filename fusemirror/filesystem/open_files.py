"""Open files: which handles this host's kernel has, and which of them read through its page cache."""

import os
from collections import Counter

from fusemirror.filesystem.handles import FileHandle
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import REST_S
from fusemirror.recent import Recent


class OpenFiles:
    """See the module."""

    def __init__(self) -> None:
        self.maps_direct_io = False
        """Whether the kernel maps files shared that are open for direct I/O (`kernel/negotiation.py`)."""
        self.all: Counter[InodeNumber] = Counter()
        self.writers: Counter[InodeNumber] = Counter()  # handles open for writing,
        self.readers: Counter[InodeNumber] = Counter()  # and those that read through the page cache
        self.moved = Recent[InodeNumber](REST_S)  # inodes whose data changed just now

    def negotiated(self, *, maps_direct_io: bool) -> None:
        self.maps_direct_io = maps_direct_io

    def keeps_content(self, inode: InodeNumber, flags: int) -> bool:
        """Whether a file that is opened with `flags` now is for the page cache.

        One that is opened for both reading and writing is only where it could not be mapped otherwise:
        the kernel asks for `security.capability` before each write then, which takes half as long.
        """
        access = flags & os.O_ACCMODE
        if flags & os.O_DIRECT or access == os.O_WRONLY:
            return False
        if access == os.O_RDWR:
            return not self.maps_direct_io
        return not (inode in self.writers or inode in self.moved)

    def opened(self, handle: FileHandle) -> None:
        self.all[handle.inode] += 1
        if handle.writes:
            self.writers[handle.inode] += 1
        elif handle.cached:
            self.readers[handle.inode] += 1

    def closed(self, handle: FileHandle) -> None:
        count_down(self.all, handle.inode)
        if handle.writes:
            count_down(self.writers, handle.inode)
        elif handle.cached:
            count_down(self.readers, handle.inode)


def count_down(counter: Counter[InodeNumber], inode: InodeNumber) -> None:
    """One less; none is not kept."""
    count = counter.pop(inode) - 1
    if count:
        counter[inode] = count
