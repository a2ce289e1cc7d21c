"""Small files and directory entries that must survive a power cut."""

import contextlib
import ctypes
import errno
import os
import stat
from contextlib import ExitStack
from pathlib import Path

from fusemirror.change import KEEP_SIZE, PUNCH_HOLE
from fusemirror.errors import RefusedForSafety

_libc = ctypes.CDLL(None, use_errno=True)


def sync_directory(directory: Path | str) -> None:
    """On return the names in `directory` are durable. OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_filesystem(directory: Path | str) -> None:
    """On return all that was written to the filesystem of `directory` is durable. OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes, *, like: os.stat_result | None = None) -> None:
    """On return `path` durably holds `content`; a crash before leaves the old content whole. OSError: the old
    content stays, and nothing beside it.

    The file is for its owner alone, or has the owner and the mode of the status `like`.
    """
    temporary = path.with_name(path.name + ".new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    with ExitStack() as undoing:
        undoing.callback(temporary.unlink, missing_ok=True)
        with open(descriptor, "wb") as file:
            if like is not None:
                os.fchown(descriptor, like.st_uid, like.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        undoing.pop_all()
    sync_directory(path.parent)


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """On return the file reads as zeros there, and takes no room for them; its size is as it was. OSError:
    EOPNOTSUPP where the filesystem cannot."""
    allocate(descriptor, KEEP_SIZE | PUNCH_HOLE, offset, length)


def allocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2). OSError: EOPNOTSUPP where the filesystem cannot; else a part may have been done."""
    if _libc.fallocate64(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def append_whole(descriptor: int, data: bytes) -> None:
    """Write all of `data` at the end in one call, or raise OSError: then the caller cuts what was begun."""
    if os.write(descriptor, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def append_behind(descriptor: int, data: bytes, end: int) -> None:
    """Write all of `data` behind the whole records of a log, which end at `end`, or raise OSError.

    A part of it that cannot be cut off again is cut before anything else is appended, and while that fails
    nothing is: a record behind half of another would make a torn tail into damage (`tails.py`).
    """
    if os.fstat(descriptor).st_size > end:
        os.ftruncate(descriptor, end)
    try:
        append_whole(descriptor, data)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, end)
        raise


def check_movable(path: Path) -> None:
    """RefusedForSafety where something is mounted on `path`: nothing is renamed over it, nor it. OSError."""
    if _mount_id(path) != _mount_id(path.parent):
        raise RefusedForSafety(
            f"something is mounted on {path}, so nothing else can take its place; unmount it, move what"
            " that disk holds into the directory itself, and try again"
        )


def _mount_id(path: Path) -> str:
    """Of the mount that a path is in; unlike the device it tells a bind mount within one filesystem."""
    descriptor = os.open(
        path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    )  # a damaged volume has anything there
    try:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii").splitlines()
    finally:
        os.close(descriptor)
    return next(line for line in lines if line.startswith("mnt_id:"))


def unused(path: Path) -> Path:
    """The path, with a number behind it where it is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
