"""Open files and directories: what the kernel's handle numbers stand for."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from fusemirror.control.unit import ControlUnit
from fusemirror.identifiers import InodeNumber


class FileHandle:
    """One open of a file, and what that open asked for."""

    __slots__ = (
        "append",
        "cached",
        "clear_privileges",
        "failures_seen",
        "inode",
        "leaves_access_time",
        "writes",
    )

    def __init__(
        self, inode: InodeNumber, flags: int, uid: int, failures_seen: int = 0, *, cached: bool = False
    ) -> None:
        self.inode = inode
        self.cached = cached  # the kernel keeps the content
        self.writes = flags & os.O_ACCMODE != os.O_RDONLY
        self.leaves_access_time = bool(flags & os.O_NOATIME)
        self.failures_seen = failures_seen  # see `control/failed_writes.py`
        # The kernel's idea of where the file ends may be old; the primary knows.
        self.append = bool(flags & os.O_APPEND)
        # A write by anyone but root ends set-user-id and set-group-id (inode(7)).
        self.clear_privileges = uid != 0


class DirectoryHandle:
    """One open of a directory, and where its listing ends."""

    __slots__ = ("end", "inode")

    def __init__(self, inode: InodeNumber, end: int) -> None:
        self.inode = inode
        # The first cookie that is not listed. Names put after a listing began stay out of it: else a
        # program that renames what it lists would never come to the end.
        self.end = end


Handle = TypeVar("Handle")


class Handles(Generic[Handle]):
    """Numbers of what is open; a number is never reused."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._handles: dict[int, Handle] = {}

    def add(self, handle: Handle) -> int:
        number = next(self._numbers)
        self._handles[number] = handle
        return number

    def __getitem__(self, number: int) -> Handle:
        return self._handles[number]

    def remove(self, number: int) -> Handle:
        return self._handles.pop(number)


@contextmanager
def opening(unit: ControlUnit, inode: InodeNumber) -> Iterator[None]:
    """The inode is open; and stays so, unless what is done meanwhile fails. OperationFailed."""
    unit.open_inodes.add(inode)  # first, so that it does not go while the rest waits
    try:
        yield
    except BaseException:
        unit.open_inodes.remove(inode)
        raise
