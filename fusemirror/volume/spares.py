"""Spares: emptied images that are kept for new ones.

A name costs a filesystem less than an inode does, and ext4 searches long for one where many were freed just
now. Images whose inodes were removed are left here, and recycled by a thread unless they are used again
before: a copy of the catalog may bring their inodes back.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterable

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import SPARE_IMAGES_MAX
from fusemirror.volume.discarded import Discarded
from fusemirror.volume.extents import takes_long
from fusemirror.volume.image_files import ImageFiles
from fusemirror.volume.unsynced import Unsynced


class Spares:
    """The spare images of one volume, and those that are to become some."""

    def __init__(self, files: ImageFiles, unsynced: Unsynced, discarded: Discarded) -> None:
        """With the spares of earlier mounts. OSError."""
        self._files = files
        self._unsynced = unsynced
        self._discarded = discarded
        self._directory = f"{files.directory}/spare"
        self._paths: deque[str] = deque()  # any thread appends
        self._keeps = True
        self._leaving: set[InodeNumber] = set()  # to be recycled
        self._recycling = threading.Lock()
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._directory):
                path = f"{self._directory}/{name}"
                if os.stat(path).st_size == 0:
                    self._paths.append(path)

    def take(self) -> str | None:
        """Where a spare stands, for who renames it; None where there is none."""
        return self._paths.pop() if self._paths else None

    def leave(self, inode: InodeNumber) -> None:
        """A released image is to be recycled, unless it is used again before."""
        self._leaving.add(inode)

    def use(self, inode: InodeNumber) -> None:
        """An image is used: where it was left it stays. It waits for one image under way."""
        if inode in self._leaving:
            with self._recycling:
                self._leaving.discard(inode)

    def keep(self, wanted: bool) -> None:
        """Whether images that are recycled become spares from now on. If not, the spares that there are go,
        and with them their inodes, of which the disk has too few. OSError."""
        self._keeps = wanted
        while not wanted and self._paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._paths.pop())

    def keep_all(self) -> None:
        """What was left is not recycled, but for what has been. It waits for one image under way."""
        with self._recycling:
            self._leaving.clear()

    def _has_place(self, coming: int) -> bool:
        return self._keeps and len(self._paths) + coming < SPARE_IMAGES_MAX

    def recycle(self, inodes: Iterable[InodeNumber]) -> list[InodeNumber]:
        """On return images that were left are spares, or are there no more; those that were used again
        meanwhile are returned, and stay. Thread-safe. OSError.
        """
        emptied: list[InodeNumber] = []
        used: list[InodeNumber] = []
        for inode in inodes:
            if self._has_place(len(emptied)) and self._empty(inode):
                emptied.append(inode)
            elif not self._remove_left(inode):
                used.append(inode)
        # Before a new file can get one: a power cut must not bring back what it held.
        self._unsynced.sync_all(emptied)
        rest = [inode for inode in emptied if not self._make_spare(inode)]
        return [*used, *(inode for inode in rest if not self._remove_left(inode))]

    def _empty(self, inode: InodeNumber) -> bool:
        """Whether it was left, and is empty now: on a full or failing disk it can perhaps only be removed."""
        with self._recycling, contextlib.suppress(OSError):
            if inode in self._leaving:
                descriptor = self._files.open(self._files.path(inode))
                try:
                    if takes_long(descriptor, 0):
                        return False
                    os.ftruncate(descriptor, 0)
                    os.utime(descriptor, ns=(0, 0))
                finally:
                    os.close(descriptor)
                return True
        return False

    def _make_spare(self, inode: InodeNumber) -> bool:
        """Whether it was left still, and is a spare now."""
        spare = f"{self._directory}/{inode:x}"
        with self._recycling, contextlib.suppress(OSError):
            if inode in self._leaving:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self._directory, 0o700)
                os.rename(self._files.path(inode), spare)
                self._leaving.discard(inode)
                self._paths.append(spare)
                return True
        return False

    def _remove_left(self, inode: InodeNumber) -> bool:
        """Whether it was left still, and is there no more."""
        with self._recycling:
            if inode not in self._leaving:
                return False
            self._leaving.discard(inode)
            try:
                self._discarded.take(inode)
            except OSError:  # a full disk may have no room for another name
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._files.path(inode))
            return True
