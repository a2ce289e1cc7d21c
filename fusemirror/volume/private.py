"""Private: that nobody but their owner gets at the directories and files which make up a filesystem.

Whoever may write where the admin socket stands could put another in its place; whoever may look into a
volume reads everybody's files in its images and in what is staged. What root made under a careless umask,
or an earlier version left open, is closed again. What is a link, or belongs to somebody else, cannot be
made safe by closing it, and is refused.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from fusemirror.errors import RefusedForSafety, VolumeDamaged

_LISTED = ("catalog", "catalog.new", "communication", "journal", "journal.new", "regions", "staged")
"""Directories of a volume with few files. In the others there is a file for each of the users', made private
from the first moment, and out of reach for as long as the volume's directory is."""


def make_private(path: Path) -> bool:
    """On return nobody but the owner, root or who runs this, gets at `path`; whether others could before.

    RefusedForSafety for a link, and for what belongs to somebody else; OSError.
    """
    return _close(path, stat.S_IRWXG | stat.S_IRWXO)


def keep_from_writers(path: Path) -> bool:
    """On return nobody but its owner makes or renames anything in the directory `path`; whether others could.

    RefusedForSafety also for a directory that is meant for everybody, such as /tmp; OSError.
    """
    if path.is_dir() and not path.is_symlink() and path.stat().st_mode & stat.S_ISVTX:
        raise RefusedForSafety(f"{path} is a directory for everybody; choose one that only root writes to")
    return _close(path, stat.S_IWGRP | stat.S_IWOTH)


def _close(path: Path, bits: int) -> bool:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise RefusedForSafety(f"{path} is a symbolic link; put what it leads to in its place, or name that")
    if status.st_uid not in (0, os.geteuid()):
        raise RefusedForSafety(f"{path} belongs to user {status.st_uid}; make it root's own, or move it away")
    mode = stat.S_IMODE(status.st_mode)
    if not mode & bits:
        return False
    path.chmod(mode & ~bits)
    return True


def make_volume_private(directory: Path) -> list[Path]:
    """On return nobody but its owner gets at the volume; what others could get at before.

    The directory first: from then on nobody puts anything else into it, and where it was closed before,
    nobody got at what it holds. RefusedForSafety, OSError.
    """
    was_open = make_private(directory)
    closed = [path for path in _contents(directory) if make_private(path)]
    return [directory, *closed] if was_open else []


def check_plain_volume(directory: Path) -> None:
    """VolumeDamaged where a part of a volume is a link, a device or a pipe, not to be opened. OSError."""
    for path in _contents(directory):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            where = path.relative_to(directory)
            raise VolumeDamaged(directory, f"{where} is a link, a device or a pipe, and no file")
    images = directory / "images"
    for path in images.iterdir() if images.is_dir() else ():
        if path.is_symlink():
            raise VolumeDamaged(directory, f"images/{path.name} is a link, and no directory")


def _contents(directory: Path) -> Iterator[Path]:
    for path in directory.iterdir():
        yield path
        if path.name in _LISTED and path.is_dir() and not path.is_symlink():
            yield from path.iterdir()
