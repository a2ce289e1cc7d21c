"""Open images: descriptors, cached, and the making of an image under its name.

The cache belongs to the event loop's thread alone; what another thread does opens a descriptor of its own.
"""

import contextlib
import errno
import os
from collections import OrderedDict

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import OPEN_IMAGES_MAX
from fusemirror.volume.discarded import Discarded
from fusemirror.volume.image_files import ImageFiles
from fusemirror.volume.spares import Spares
from fusemirror.volume.unsynced import Unsynced


class OpenImages:
    """The open images of one volume."""

    def __init__(self, files: ImageFiles, unsynced: Unsynced, spares: Spares, discarded: Discarded) -> None:
        self._files = files
        self._unsynced = unsynced
        self._spares = spares
        self._discarded = discarded
        self.descriptors: OrderedDict[InodeNumber, int] = OrderedDict()
        """The least recently used first; who looks here moves what was found to the end."""

    def descriptor(self, inode: InodeNumber, *, create: bool) -> int | None:
        """The descriptor of an image; None for a missing one that is not to be made. OSError."""
        descriptor = self.descriptors.get(inode)
        if descriptor is not None:
            self.descriptors.move_to_end(inode)
            return descriptor
        try:
            return self.open(inode, create=create)
        except FileNotFoundError:
            return None

    def open(self, inode: InodeNumber, *, create: bool) -> int:
        """The descriptor of an image that was not open. FileNotFoundError unless it is to be made.

        OSError.
        """
        self._spares.use(inode)  # another copy has it still: what is written to it is no spare
        if len(self.descriptors) >= OPEN_IMAGES_MAX:
            os.close(self.descriptors.popitem(last=False)[1])
        path = self._files.path(inode)
        try:
            descriptor = self._files.open(path)
        except FileNotFoundError:
            if not create:
                raise
            descriptor = self._create(path)
            self._unsynced.note_name(inode)
        self.descriptors[inode] = descriptor
        return descriptor

    def replace(self, inode: InodeNumber, time_ns: int) -> bool:
        """Put an empty image with these times in the place of an open one, which is discarded; false where
        the disk is too full for that, or knows no links. OSError: nothing was changed.
        """
        path = self._files.path(inode)
        try:
            discarded = self._discarded.new_path(inode)
            os.link(path, discarded)
            try:
                descriptor = self._create(path, time_ns)
            except OSError:
                os.unlink(discarded)
                raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                return False
            raise
        os.close(self.descriptors[inode])
        self.descriptors[inode] = descriptor
        self._unsynced.note_name(inode)
        self._discarded.add(discarded)
        return True

    def _create(self, path: str, time_ns: int = 0) -> int:
        """A new image under its name, in the place of what had that; open. It has its times from the first
        moment: those of 0 tell of no change yet. OSError: nothing was changed.
        """
        self._files.make_directory(os.path.dirname(path))
        while (spare := self._spares.take()) is not None:
            with contextlib.suppress(FileNotFoundError):  # a person may tidy up
                return self._name(spare, path, time_ns)
        return self._name(f"{self._files.directory}/new", path, time_ns, os.O_CREAT | os.O_TRUNC)

    def _name(self, temporary: str, path: str, time_ns: int, more_flags: int = 0) -> int:
        descriptor = self._files.open(temporary, more_flags)
        try:
            if time_ns or more_flags:  # spares have times of 0
                os.utime(descriptor, ns=(time_ns, time_ns))
            os.rename(temporary, path)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def release(self, inode: InodeNumber) -> None:
        """Let go of an image."""
        descriptor = self.descriptors.pop(inode, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()
