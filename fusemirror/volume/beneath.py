"""Beneath: how root reaches files by names that stand in a catalog or on a disk, and stays where it began.

A catalog may be damaged, or made by somebody who means no good: a stored name may be absolute, hold `..`
or NUL, or go through a symbolic link. So a tree is walked by descriptors, one checked name at a time, and
no link is followed anywhere. Where a file is expected, a link, a pipe or a device is refused by name.
"""

import errno
import os
import stat
from pathlib import Path

from fusemirror.limits import NAME_BYTES_MAX

PathName = bytes | str | Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A pipe would keep who opens it waiting; to a regular file O_NONBLOCK is nothing.
_PLAIN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def is_name(name: bytes) -> bool:
    """Whether it is one name of a directory: no path, no way up, nothing that the kernel would cut."""
    return 0 < len(name) <= NAME_BYTES_MAX and name not in (b".", b"..") and not set(name) & {0, ord("/")}


def open_plain(path: PathName, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
    """A descriptor of a regular file, whose last name is no link. OSError, ELOOP where it is no such file."""
    try:
        descriptor = os.open(path, flags | _PLAIN, mode, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link; a pipe or socket; a directory
            raise _not_plain(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_plain(path)
    return descriptor


def read_plain(path: str | Path, limit_bytes: int) -> bytes:
    """The content of a regular file of at most so many bytes. OSError, EFBIG for a longer one."""
    with open(open_plain(path, os.O_RDONLY), "rb") as file:
        content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"longer than {limit_bytes} bytes", str(path))
    return content


def check_plain(status: os.stat_result, path: str | Path) -> None:
    """OSError (ELOOP) unless the status, which was taken without following a link, is a regular file's."""
    if not stat.S_ISREG(status.st_mode):
        raise _not_plain(path)


def _not_plain(path: PathName) -> OSError:
    what = "a link, a device or a pipe, and no file; run `fusemirror fsck`"
    return OSError(errno.ELOOP, what, os.fsdecode(path))


class Walk:
    """A descriptor that moves through a tree of directories, down by a name, and up to where it came from."""

    def __init__(self, directory: Path) -> None:
        """Begin in `directory`, which is no link. OSError."""
        self.descriptor = os.open(directory, _DIRECTORY)
        self._above: list[tuple[int, int]] = []  # which directories it came through

    def down(self, name: bytes) -> None:
        """Go into a directory of the present one. OSError, ENOTDIR for a link; then nothing has moved."""
        assert is_name(name), "checked where it was read"
        below = os.open(name, _DIRECTORY, dir_fd=self.descriptor)
        self._above.append(_identity(self.descriptor))
        self._move(below)

    def up(self) -> None:
        """Go back. OSError, EXDEV where the directory was moved meanwhile."""
        above = os.open("..", _DIRECTORY, dir_fd=self.descriptor)
        if _identity(above) != self._above[-1]:
            os.close(above)
            raise OSError(errno.EXDEV, "the directory was moved while it was used")
        self._above.pop()
        self._move(above)

    def _move(self, descriptor: int) -> None:
        os.close(self.descriptor)
        self.descriptor = descriptor

    def close(self) -> None:
        os.close(self.descriptor)


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
