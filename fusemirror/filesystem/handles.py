"""Open files and directories: what the kernel's handle numbers stand for."""

import itertools
import os

from fusemirror.identifiers import InodeNumber


class FileHandle:
    """One open of a file, and what that open asked for."""

    __slots__ = ("append", "clear_privileges", "inode")

    def __init__(self, inode: InodeNumber, flags: int, uid: int) -> None:
        self.inode = inode
        # The kernel's idea of where the file ends may be old; the primary knows.
        self.append = bool(flags & os.O_APPEND)
        # A write by anyone but root ends set-user-id and set-group-id (inode(7)).
        self.clear_privileges = uid != 0


class Handles:
    """Numbers of open files; a number is never reused."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._files: dict[int, FileHandle] = {}

    def add(self, handle: FileHandle) -> int:
        number = next(self._numbers)
        self._files[number] = handle
        return number

    def __getitem__(self, number: int) -> FileHandle:
        return self._files[number]

    def remove(self, number: int) -> FileHandle:
        return self._files.pop(number)
