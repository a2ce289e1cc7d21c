"""Unsynced: what of the images a power cut could take, and making it durable.

Each change of an image has a serial, so that a sync that runs in a thread settles what it began with, and
nothing that came meanwhile. The name of an image is durable only with its directory.
"""

import itertools
import os
from collections.abc import Collection, Iterable

from fusemirror.identifiers import InodeNumber
from fusemirror.promise import Promise
from fusemirror.seams import Seams
from fusemirror.volume.beneath import open_plain
from fusemirror.volume.durable import sync_directory, sync_filesystem
from fusemirror.volume.image_files import ImageFiles

_SYNCED_SINGLY_MAX = 32  # with more, one sync of the filesystem costs less
_NAMES_UNSYNCED_MAX = 65_536  # of images that were prepared and never written to: some MiB of memory


class Unsynced:
    """What of one volume's images is not durable. Methods are for the event loop's thread unless they say
    thread-safe.
    """

    def __init__(self, files: ImageFiles, seams: Seams) -> None:
        self._files = files
        self._seams = seams
        self.serials = itertools.count(1)
        self.dirty: dict[InodeNumber, int] = {}
        """Images changed since they were last durable, with the serial of their last change."""
        self._names: dict[InodeNumber, int] = {}  # with the serial of the last
        self._times: set[InodeNumber] = set()

    def note_name(self, inode: InodeNumber) -> None:
        """An image got its name, or another one took that."""
        self._names[inode] = next(self.serials)

    def forget(self, inode: InodeNumber) -> None:
        """An image is about to be removed."""
        self.dirty.pop(inode, None)
        self._times.discard(inode)
        self._names.pop(inode, None)

    def keep_times(self, inode: InodeNumber) -> None:
        """The image's times as of now are to be durable with its next sync: a record is judged by them."""
        self._times.add(inode)

    def synced(self, synced: dict[InodeNumber, int]) -> None:
        """Take from `dirty` what is durable now: a copy of it made before a sync, less what changed since."""
        for inode, serial in synced.items():
            if self.dirty.get(inode) == serial:
                del self.dirty[inode]

    def begin_sync(self, inode: InodeNumber, descriptor: int) -> Promise[None] | None:
        """Begin to make durable what was written to the image, which is open; as `begin_sync` of the seams.
        None too where its name is not durable.
        """
        if inode in self._names:
            return None
        # What is set from here on is the next sync's.
        data_only = inode not in self._times
        begun = self._seams.begin_sync(descriptor, data_only=data_only)
        if begun is not None:
            self._times.discard(inode)
        return begun

    def sync(self, inode: InodeNumber) -> None:
        """On return what was written to the image before the call is durable. Thread-safe. OSError."""
        path = self._files.path(inode)
        try:
            # Errors of earlier writeback that nobody has seen are reported to a new descriptor too.
            descriptor = open_plain(path, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            if inode in self._times:
                self._times.discard(inode)  # before: what is set meanwhile is the next sync's
                self._seams.fsync(descriptor)
            else:
                self._seams.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        named = self._names.get(inode)
        if named is not None:
            sync_directory(os.path.dirname(path))
            self._names_synced({inode: named})

    def sync_names(self) -> None:
        """On return every image has its name durably, also one that nobody wrote to. OSError."""
        named = dict(self._names)
        for directory in {os.path.dirname(self._files.path(inode)) for inode in named}:
            sync_directory(directory)
        self._names_synced(named)

    def _names_synced(self, named: dict[InodeNumber, int]) -> None:
        """These are durable, but for an image that got its name, or another's, since. In any thread."""
        for inode, serial in named.items():
            if self._names.get(inode) == serial:
                self._names.pop(inode, None)

    def sync_all(self, inodes: Collection[InodeNumber]) -> None:
        """`sync` for many images. Thread-safe. OSError."""
        if len(inodes) > _SYNCED_SINGLY_MAX or len(self._names) > _NAMES_UNSYNCED_MAX:
            self.sync_filesystem()
        else:
            for inode in inodes:
                self.sync(inode)

    def inherit(self, marked: Iterable[InodeNumber]) -> None:
        """A killed process wrote to the marked images: their next sync makes that durable too.

        On return the names of all images are durable, since which of them it made is not known. OSError.
        """
        for inode in marked:
            self.dirty[inode] = next(self.serials)
            self.keep_times(inode)
        for directory in self._files.directories():
            sync_directory(directory)
        sync_directory(self._files.directory)

    def sync_filesystem(self) -> None:
        """On return everything written before the call is durable. Thread-safe. OSError."""
        named = dict(self._names)
        sync_filesystem(self._files.directory)
        self._names_synced(named)
