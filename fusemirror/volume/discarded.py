"""Discarded: images that nobody needs and that take long to free, as they lie in very many places.

Such an image stands under another name at once, and is freed later, a little at a time.
"""

import contextlib
import itertools
import os
import re
import stat
from collections import deque
from collections.abc import Iterator

from fusemirror.identifiers import InodeNumber
from fusemirror.volume.durable import sync_directory
from fusemirror.volume.extents import cut_points, takes_long
from fusemirror.volume.image_files import ImageFiles

_HEXADECIMAL = re.compile(r"[0-9a-f]+")


class Discarded:
    """The discarded images of one volume, those of earlier mounts too."""

    def __init__(self, files: ImageFiles) -> None:
        """OSError."""
        self._files = files
        self._directory = f"{files.directory}/discarded"
        self._serials = itertools.count(1)
        self._waiting: deque[str] = deque()  # paths; any thread appends
        self._freeing: Iterator[None] | None = None
        with contextlib.suppress(FileNotFoundError):
            self._waiting.extend(f"{self._directory}/{name}" for name in os.listdir(self._directory))

    @property
    def is_empty(self) -> bool:
        """Nothing waits for `free_some`."""
        return not self._waiting

    def take(self, inode: InodeNumber) -> None:
        """On return there is no such image under its name. In any thread. OSError."""
        path = self._files.path(inode)
        if os.path.lexists(path):
            discarded = self.new_path(inode)
            os.rename(path, discarded)
            self.add(discarded)

    def new_path(self, inode: InodeNumber) -> str:
        """A path that nothing has, in a directory that is there; the inode's number stands in it. OSError."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._directory, 0o700)
        while True:
            path = f"{self._directory}/{inode:x}-{next(self._serials)}"
            if not os.path.lexists(path):  # an earlier mount counted too
                return path

    def add(self, path: str) -> None:
        """What stands at a `new_path` is to be freed."""
        self._waiting.append(path)

    def free_some(self) -> bool:
        """Free a part of what discarded images held, that does not take long; whether there may be more.

        For one thread at a time. OSError: what it concerns may be tried again.
        """
        if self._freeing is None:
            self._freeing = self._free_all()
        try:
            next(self._freeing)
        except StopIteration:
            self._freeing = None
        except OSError:
            self._freeing = None
            raise
        return self._freeing is not None

    def _free_all(self) -> Iterator[None]:
        """Free what is discarded by now, and stop after each part."""
        waiting = list(self._waiting)
        # What has taken their names must be there after a power cut, or what is left of them would be.
        for directory in {os.path.dirname(path) for path in map(self._path_before, waiting) if path}:
            with contextlib.suppress(FileNotFoundError):
                sync_directory(directory)
        for path in waiting:
            with contextlib.suppress(FileNotFoundError):
                yield from self._free_one(path)
            self._waiting.remove(path)

    def _path_before(self, discarded: str) -> str | None:
        """Where a discarded image stood."""
        number = os.path.basename(discarded).partition("-")[0]
        return self._files.path(InodeNumber(int(number, 16))) if _HEXADECIMAL.fullmatch(number) else None

    def _free_one(self, path: str) -> Iterator[None]:
        status = os.lstat(path)
        # What stood there may have been no file; and killed between two steps, an image may have this name
        # beside its own.
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            yield from self._empty_slowly(path)
        os.unlink(path)
        yield

    def _empty_slowly(self, path: str) -> Iterator[None]:
        descriptor = self._files.open(path)
        try:
            if takes_long(descriptor, 0):
                for size in cut_points(descriptor, 0):
                    os.ftruncate(descriptor, size)
                    yield
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Stop in the middle of what is being freed; the next mount goes on."""
        self._freeing = None
