"""Image files: the data of each regular file, as one sparse file named by inode number.

An image's own time stamps are slots: its mtime holds the file's mtime and its atime holds the file's
ctime, so that both survive a killed process with the data and cost no record. A missing image
is an empty one. Images that are no longer needed become spares for new ones (`spares.py`); what takes long to
cut to nothing, or to remove, is discarded (`discarded.py`). Where a file goes on, an empty image takes its
name in one step, so that a crash finds the old one or the new.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fusemirror.change import RESERVING_MODES, ZERO_RANGE
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import FILE_BYTES_MAX, MIB
from fusemirror.promise import Promise
from fusemirror.seams import Seams
from fusemirror.volume.beneath import check_plain
from fusemirror.volume.discarded import Discarded
from fusemirror.volume.disk_limits import DiskLimits
from fusemirror.volume.durable import allocate, punch_hole
from fusemirror.volume.extents import is_scattered_beyond_end, next_data_at, next_hole_at, takes_long
from fusemirror.volume.image_content import ImageContent
from fusemirror.volume.image_files import ImageFiles
from fusemirror.volume.open_images import OpenImages
from fusemirror.volume.spares import Spares
from fusemirror.volume.unsynced import Unsynced


class ImageFacts(NamedTuple):
    """What an image says of its file."""

    size: int
    mtime_ns: int
    ctime_ns: int


NO_IMAGE = ImageFacts(size=0, mtime_ns=0, ctime_ns=0)
"""What a missing image says: it is an empty one."""


class Images:
    """All image files of a volume. Methods are for the event loop's thread unless they say thread-safe."""

    def __init__(self, directory: Path, seams: Seams) -> None:
        """OSError."""
        self._files = ImageFiles(directory)
        self._seams = seams
        self.disk = DiskLimits(self._files)
        self.unsynced = Unsynced(self._files, seams)
        self.discarded = Discarded(self._files)
        self.spares = Spares(self._files, self.unsynced, self.discarded)
        self._open = OpenImages(self._files, self.unsynced, self.spares, self.discarded)
        self._descriptors = self._open.descriptors
        self.content = ImageContent(self._files, self._open, self.unsynced)

    def write(self, inode: InodeNumber, offset: int, data: bytes | memoryview, time_ns: int) -> None:
        """On return the image holds all of `data` at `offset` and both its times are `time_ns`.

        OSError: a part may have been written, and the times are the old ones. So they are where a full
        disk refuses them alone.
        """
        assert offset + len(data) <= FILE_BYTES_MAX, "no file is so long"
        descriptor = self._descriptors.get(inode)
        if descriptor is None:
            descriptor = self._open.open(inode, create=True)
        else:
            self._descriptors.move_to_end(inode)
        self.unsynced.dirty[inode] = next(self.unsynced.serials)
        written = os.pwrite(descriptor, data, offset)
        while written < len(data):
            written += os.pwrite(descriptor, memoryview(data)[written:], offset + written)
        try:
            os.utime(descriptor, ns=(time_ns, time_ns))
        except OSError as error:
            _check_times(error)

    def is_open(self, inode: InodeNumber) -> bool:
        """There is an image, and a write need not look for it."""
        return inode in self._descriptors

    def prepare(self, inode: InodeNumber) -> None:
        """On return there is an image, which a write would find or make first; its times are 0. OSError."""
        self._open.descriptor(inode, create=True)

    def begin_sync(self, inode: InodeNumber) -> Promise[None] | None:
        """Begin to make durable what was written to the image before the call; None where a thread must.
        OSError.
        """
        descriptor = self._open.descriptor(inode, create=False)
        return None if descriptor is None else self.unsynced.begin_sync(inode, descriptor)

    def truncate(self, inode: InodeNumber, size: int, time_ns: int) -> None:
        """On return the image is `size` bytes long and both its times are `time_ns`. OSError.

        Where a full disk refuses the times, they are the old ones.
        """
        assert 0 <= size <= FILE_BYTES_MAX, "no file is so long"
        descriptor = self._open.descriptor(inode, create=size > 0)
        if descriptor is not None:
            self.unsynced.dirty[inode] = next(self.unsynced.serials)
            if size or not takes_long(descriptor, 0) or not self._open.replace(inode, time_ns):
                os.ftruncate(descriptor, size)
                _set_times(descriptor, time_ns)

    def allocate(self, inode: InodeNumber, offset: int, end: int, mode: int, time_ns: int) -> None:
        """On return the image has room there, or a hole, by `mode`, and both its times are `time_ns`. Beyond
        its end no room is reserved where that lies in many places already.

        OSError: a part may have been done, and the times are the old ones.
        """
        descriptor = self._open.descriptor(inode, create=True)
        assert descriptor is not None
        assert 0 <= offset < end <= FILE_BYTES_MAX, "no file is so long"
        self.unsynced.dirty[inode] = next(self.unsynced.serials)
        if mode in RESERVING_MODES and is_scattered_beyond_end(descriptor):
            # A primary refuses this by its own image; here extents may lie otherwise. No byte depends on it.
            end = min(end, os.fstat(descriptor).st_size)
        if offset < end:
            _change_space(descriptor, mode, offset, end - offset)
        _set_times(descriptor, time_ns)

    def copy(
        self, inode: InodeNumber, offset: int, end: int, source: InodeNumber, source_offset: int, time_ns: int
    ) -> None:
        """On return the image holds there what that of `source` holds from `source_offset` on, holes as
        holes, and both its times are `time_ns`. The two ranges must not overlap.

        OSError: a part may have been copied, and the times are the old ones.
        """
        apart = inode != source or abs(source_offset - offset) >= end - offset
        assert apart, "piece by piece, a copy onto itself would copy what it has just written"
        target = self._open.descriptor(inode, create=True)
        copied = self._open.descriptor(source, create=False)
        assert target is not None
        self.unsynced.dirty[inode] = next(self.unsynced.serials)
        _copy_range(copied, source_offset, target, offset, end)
        _set_times(target, time_ns)

    def cut(self, inode: InodeNumber, size: int) -> None:
        """Take away what a write that failed left behind `size`; times stay as they are. OSError."""
        descriptor = self._open.descriptor(inode, create=False)
        if descriptor is not None and os.fstat(descriptor).st_size > size:
            os.ftruncate(descriptor, size)

    def set_times(self, inode: InodeNumber, mtime_ns: int, ctime_ns: int) -> None:
        """Put the times into the slots of the image, where there is one. OSError."""
        descriptor = self._open.descriptor(inode, create=False)
        if descriptor is not None:
            os.utime(descriptor, ns=(ctime_ns, mtime_ns))

    def make_older(self, inode: InodeNumber, time_ns: int) -> None:
        """On return the image durably says that it was last changed before `time_ns`. OSError."""
        descriptor = self._open.descriptor(inode, create=False)
        if descriptor is not None and os.fstat(descriptor).st_atime_ns >= time_ns:
            os.utime(descriptor, ns=(time_ns - 1, time_ns - 1))
            self._seams.fsync(descriptor)

    def read(self, inode: InodeNumber, offset: int, size: int) -> bytes:
        """The bytes at `offset`, fewer at the end of the image, none of a missing one. OSError."""
        descriptor = self._open.descriptor(inode, create=False)
        return b"" if descriptor is None else os.pread(descriptor, size, offset)

    def facts(self, inode: InodeNumber) -> ImageFacts | None:
        """Size and times of the image, None for a missing one. Thread-safe. OSError."""
        try:
            status = os.lstat(self._files.path(inode))
        except FileNotFoundError:
            return None
        check_plain(status, self._files.path(inode))
        return ImageFacts(status.st_size, status.st_mtime_ns, status.st_atime_ns)

    def size(self, inode: InodeNumber) -> int:
        """The length of an image in bytes; 0 for one that is not there. OSError."""
        facts = self.facts(inode)
        return 0 if facts is None else facts.size

    def exists(self, inode: InodeNumber) -> bool:
        return os.path.exists(self._files.path(inode))

    def path(self, inode: InodeNumber) -> Path:
        """Where the image is, or would be."""
        return Path(self._files.path(inode))

    def numbers(self) -> Iterator[InodeNumber]:
        """The inode numbers of all images on the disk, in no order. OSError."""
        return self._files.numbers()

    def release(self, inode: InodeNumber) -> None:
        """Let go of an image that is about to be removed."""
        self._open.release(inode)
        self.unsynced.forget(inode)

    def leave(self, inode: InodeNumber) -> None:
        """Let go of an image that is to be recycled, unless it is used again before."""
        self.release(inode)
        self.spares.leave(inode)

    def remove(self, inode: InodeNumber) -> None:
        """On return there is no such image. OSError."""
        self.release(inode)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._files.path(inode))

    def discard(self, inode: InodeNumber) -> None:
        """On return there is no such image; `Discarded.free_some` frees what it held, which takes long where
        that lies in very many places. OSError.
        """
        self.release(inode)
        self.discarded.take(inode)

    def close(self) -> None:
        """Release everything; nothing is written."""
        self.discarded.close()
        self._open.close()


def _change_space(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2); a disk that cannot zero a range has a hole made there, and room for it."""
    try:
        allocate(descriptor, mode, offset, length)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP or not mode & ZERO_RANGE:
            raise
        punch_hole(descriptor, offset, length)
        allocate(descriptor, mode & ~ZERO_RANGE, offset, length)


def _copy_range(source: int | None, source_offset: int, target: int, offset: int, end: int) -> None:
    """Copy piece by piece, so that the target grows behind its bytes. A source that is not there, or ends
    before, has a hole there."""
    size, shift = os.fstat(target).st_size, offset - source_offset
    place, stop = source_offset, end - shift
    while place < stop:
        data = stop if source is None else min(next_data_at(source, place, stop), stop)
        if data > place and place + shift < size:
            _make_hole(target, place + shift, min(data + shift, size))
        place = data
        if source is not None and data < stop:
            place = next_hole_at(source, data, stop)
            _copy_data(source, data, target, data + shift, place - data)
    if os.fstat(target).st_size < end:
        os.ftruncate(target, end)


def _make_hole(descriptor: int, start: int, end: int) -> None:
    """Zeros; a hole where the disk makes any."""
    try:
        punch_hole(descriptor, start, end - start)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        while start < end:
            start += os.pwrite(descriptor, bytes(min(MIB, end - start)), start)


def _copy_data(source: int, source_offset: int, target: int, offset: int, length: int) -> None:
    """copy_file_range(2), by which a disk may share what it stores; through this process where it cannot."""
    while length:
        try:
            copied = os.copy_file_range(source, target, length, source_offset, offset)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            copied = 0
        if not copied:
            data = os.pread(source, min(length, MIB), source_offset)
            if not data:
                return  # it ends here: what follows is a hole
            copied = os.pwrite(target, data, offset)
        source_offset, offset, length = source_offset + copied, offset + copied, length - copied


def _set_times(descriptor: int, time_ns: int) -> None:
    try:
        os.utime(descriptor, ns=(time_ns, time_ns))
    except OSError as error:
        _check_times(error)


def _check_times(error: OSError) -> None:
    """A full disk may refuse the times. OSError where it is another error."""
    # What was cut or overwritten cannot be taken back: it is done, and recovery needs no times.
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise error
