"""`/.fusemirror-conflicts`: root's own directory, for the files of a host that gave way."""

import errno
import os
import stat
from typing import Any

import trio

from fusemirror.errors import OperationFailed
from fusemirror.identifiers import ROOT_INODE
from fusemirror.limits import (
    DIFFERENCE_PATH_BYTES_MAX,
    DIFFERENCES_TOLD_BYTES_MAX,
    DIFFERENCES_TOLD_MAX,
)
from fusemirror.operations import Operation
from fusemirror.printable import path_shown, shortened
from fusemirror.volume.inode import Inode
from fusemirror.volume.volume import Volume

CONFLICTS_NAME = b".fusemirror-conflicts"
_ENTRIES_PER_TURN = 256


def check_reserved(operation: Operation, uid: int) -> None:
    """EPERM where a user would make, remove or rename `/.fusemirror-conflicts` itself: it is root's.

    Its name is reserved also where users may write to the root. One who made it beforehand, or who renames
    it in a root without the sticky bit, would own what root puts there of everybody's files. A user who
    mounts without being root has a filesystem of their own.
    """
    if uid in (0, os.geteuid()):
        return
    if (ROOT_INODE, CONFLICTS_NAME) in operation.touched_names():
        raise OperationFailed(errno.EPERM)


def is_roots_own(inode: Inode) -> bool:
    """Whether it is a directory in which nobody but root makes or renames anything."""
    return inode.is_directory and inode.uid == 0 and not inode.mode & (stat.S_IWGRP | stat.S_IWOTH)


async def published_files(volume: Volume) -> tuple[list[dict[str, Any]], int]:
    """The files below `/.fusemirror-conflicts`, as many as an answer holds, and how many there are."""
    entry = volume.catalog.entry(ROOT_INODE, CONFLICTS_NAME)
    directory = None if entry is None else volume.catalog.inode(entry.inode)
    if entry is None or directory is None or not is_roots_own(directory):
        return [], 0
    listed: list[dict[str, Any]] = []
    count = size_bytes = 0
    pending = [(entry.inode, b"", b"")]
    while pending:
        number, above, name = pending.pop()
        path = shortened(above + name, DIFFERENCE_PATH_BYTES_MAX)
        cookie = 0
        while entries := volume.catalog.listing(number, cookie, _ENTRIES_PER_TURN):
            cookie = entries[-1][0]
            for _, name, found in entries:
                inode = volume.catalog.inode(found.inode)
                if inode is not None and inode.is_directory:
                    pending.append((inode.number, path, b"/" + name))
                elif inode is not None:
                    count += 1
                    size_bytes += len(path) + 1 + len(name)
                    if count <= DIFFERENCES_TOLD_MAX and size_bytes <= DIFFERENCES_TOLD_BYTES_MAX:
                        listed.append(_described(path + b"/" + name, inode))
            await trio.lowlevel.checkpoint()
    return sorted(listed, key=lambda file: str(file["path"])), count


def _described(path: bytes, inode: Inode) -> dict[str, Any]:
    return {"path": path_shown(path), "size": inode.size, "modified": inode.mtime_ns / 1e9}
