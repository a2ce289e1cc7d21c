"""Guarding a mountpoint: while nothing is mounted there, nobody can write into the directory, root neither.

The directory gets the attribute that chattr(1) calls `i`, immutable. What is mounted on it covers it.
"""

import errno
import fcntl
import os
import struct
from contextlib import ExitStack
from pathlib import Path

from fusemirror.cli.mounts import mount_at, real_path
from fusemirror.errors import RefusedForSafety

_GETFLAGS, _SETFLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10  # linux/fs.h: FS_IOC_GETFLAGS and so on
_UNKNOWN = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL)


def guard(mountpoint: Path, undoing: ExitStack) -> None:
    """On return the directory is there, empty, and immutable; `undoing` takes that back.

    RefusedForSafety where it is in use or cannot be guarded; OSError, PermissionError without privileges.
    """
    directory = Path(real_path(str(mountpoint)))
    if mount_at(str(directory)) is not None:
        raise RefusedForSafety(f"something is mounted on {mountpoint}; unmount it, then guard the directory")
    for path in (*reversed(directory.parents), directory):
        if not path.exists():
            path.mkdir()
            undoing.callback(path.rmdir)
            path.chmod(0o755)  # whatever the umask says: others are to get there, and meet an empty directory
    if not directory.is_dir() or any(directory.iterdir()):
        raise RefusedForSafety(f"{mountpoint} is not an empty directory; choose another mountpoint")
    if not _set_immutable(directory, True):
        undoing.callback(_set_immutable, directory, False)


def _set_immutable(directory: Path, immutable: bool) -> bool:
    """What it was before. RefusedForSafety where the filesystem has no such attribute; OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        (flags,) = struct.unpack("l", fcntl.ioctl(descriptor, _GETFLAGS, bytes(struct.calcsize("l"))))
        wanted = flags | _IMMUTABLE if immutable else flags & ~_IMMUTABLE
        fcntl.ioctl(descriptor, _SETFLAGS, struct.pack("l", wanted))
    except OSError as error:
        if error.errno in _UNKNOWN:
            raise RefusedForSafety(
                f"the filesystem of {directory} has no attribute against changes; leave --guard out"
            ) from error
        raise OSError(error.errno, error.strerror, str(directory)) from error
    finally:
        os.close(descriptor)
    return bool(flags & _IMMUTABLE)
