"""Image content: what images hold, by regions and by extents; holes are found, and not read."""

import errno
import os
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import xxhash

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import DIGESTS_PER_MESSAGE, FILE_BYTES_MAX, HOLE_PIECE_BYTES, MIB, REGION_BYTES
from fusemirror.volume.durable import punch_hole
from fusemirror.volume.extents import (
    allocated,
    boundaries,
    extents_of,
    is_scattered_beyond_end,
    next_data_at,
    next_hole_at,
)
from fusemirror.volume.image_files import ImageFiles
from fusemirror.volume.open_images import OpenImages
from fusemirror.volume.unsynced import Unsynced

_ZEROS_DIGEST = xxhash.xxh3_64_intdigest(bytes(REGION_BYTES))


class Piece(NamedTuple):
    """Regions of an image from `first` to before `end`: all of them hold data, or none of them any."""

    first: int
    end: int
    is_hole: bool


class ImageContent:
    """That of the images of one volume. Methods are for the event loop's thread unless they say
    thread-safe.
    """

    def __init__(self, files: ImageFiles, open_images: OpenImages, unsynced: Unsynced) -> None:
        self._files = files
        self._open = open_images
        self._unsynced = unsynced

    def data_bytes(self, inode: InodeNumber) -> int:
        """How much room an image takes on the disk. OSError."""
        descriptor = self._open.descriptors.get(inode)
        try:
            found = os.lstat(self._files.path(inode)) if descriptor is None else os.fstat(descriptor)
            return found.st_blocks * 512
        except FileNotFoundError:
            return 0

    def is_allocated(self, inode: InodeNumber, offset: int, end: int) -> bool:
        """Whether writing there takes no room: the image has blocks for all of it. OSError."""
        descriptor = self._open.descriptor(inode, create=False)
        if descriptor is None or os.fstat(descriptor).st_size < end:
            return False
        for start, length in allocated(descriptor, offset):  # room that was reserved is no data yet
            if start > offset:
                return False
            offset = start + length
            if offset >= end:
                return True
        return offset >= end

    def is_scattered_beyond_end(self, inode: InodeNumber) -> bool:
        """Whether no more room is to be reserved beyond the end of an image. OSError."""
        descriptor = self._open.descriptor(inode, create=False)
        return descriptor is not None and is_scattered_beyond_end(descriptor)

    def step_points(self, inode: InodeNumber, start: int, end: int) -> Sequence[int]:
        """Where, between two places of an image, work on its disk space stops to do a little at a time, the
        first place first. Thread-safe. OSError.
        """
        try:
            descriptor = self._files.open_to_read(inode)
        except FileNotFoundError:
            return ()
        try:
            return array("Q", boundaries(descriptor, start, end))
        finally:
            os.close(descriptor)

    def region_digests(self, inode: InodeNumber, first_region: int, count: int) -> tuple[int, ...]:
        """Checksums of regions, the last one short at the end of the image, none beyond. Thread-safe.

        OSError.
        """
        try:
            descriptor = self._files.open_to_read(inode)
        except FileNotFoundError:
            return ()
        try:
            size = os.fstat(descriptor).st_size
            stop = min(size, (first_region + count) * REGION_BYTES)
            return tuple(_digests(descriptor, first_region * REGION_BYTES, stop))
        finally:
            os.close(descriptor)

    def piece(self, inode: InodeNumber, first: int, end: int) -> Piece:
        """What the image holds from region `first` on, and how far: of data no more than one message tells
        of, of a hole as far as it goes, but not beyond `end`. A missing image is a hole. OSError.
        """
        descriptor = self._open.descriptor(inode, create=False)
        if descriptor is None:
            return Piece(first, end, is_hole=True)
        limit = end * REGION_BYTES
        data = next_data_at(descriptor, first * REGION_BYTES, limit)
        if data // REGION_BYTES > first:
            return Piece(first, min(data // REGION_BYTES, end), is_hole=True)
        stop, behind = min(end, first + DIGESTS_PER_MESSAGE), first
        while behind < stop and data // REGION_BYTES == behind:
            hole = os.lseek(descriptor, data, os.SEEK_HOLE)
            behind = -(-hole // REGION_BYTES)
            data = next_data_at(descriptor, behind * REGION_BYTES, limit) if behind < stop else limit
        return Piece(first, min(behind, stop), is_hole=False)

    def data_in(self, inode: InodeNumber, first: int, end: int) -> tuple[list[int], int]:
        """Which regions from `first` to before `end` are not zeros, and before which one that is known: no
        more data is read than one message tells of. OSError.
        """
        found: list[int] = []
        read = 0
        while first < end and read < DIGESTS_PER_MESSAGE:
            piece = self.piece(inode, first, end)
            if not piece.is_hole:
                read += piece.end - piece.first
                digests = self.region_digests(inode, piece.first, piece.end - piece.first)
                descriptor = self._open.descriptor(inode, create=False)
                size = 0 if descriptor is None else os.fstat(descriptor).st_size
                found += [
                    piece.first + index
                    for index, digest in enumerate(digests)
                    if digest != zeros_digest(min(REGION_BYTES, size - (piece.first + index) * REGION_BYTES))
                ]
            first = piece.end
        return found, first

    def punch(self, inode: InodeNumber, first: int, end: int) -> int:
        """Make a hole of what the image holds from region `first` to before `end`, as far as can be done at
        once; how far, as a region. Its size stays. OSError.
        """
        descriptor = self._open.descriptor(inode, create=False)
        if descriptor is None:
            return end
        stop = min(end * REGION_BYTES, os.fstat(descriptor).st_size)
        start = next_data_at(descriptor, first * REGION_BYTES, stop)
        if start >= stop:
            return end
        start -= start % REGION_BYTES
        enough = next(boundaries(descriptor, start), stop)
        stop = min(stop, start + HOLE_PIECE_BYTES, -(-enough // REGION_BYTES) * REGION_BYTES)
        self._unsynced.dirty[inode] = next(self._unsynced.serials)
        try:
            punch_hole(descriptor, start, stop - start)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            stop = min(stop, start + MIB)
            os.pwrite(descriptor, bytes(stop - start), start)
        return min(end, -(-stop // REGION_BYTES))

    def copy_out(self, inode: InodeNumber, target: int, offset: int, end: int) -> int:
        """Copy what the image holds from `offset` to before `end` to the same place of an open file; where
        there is more to copy, as far as that is known by then.

        Holes are left out. Thread-safe. OSError.
        """
        try:
            descriptor = self._files.open_to_read(inode)
        except FileNotFoundError:
            return FILE_BYTES_MAX
        try:
            start = next_data_at(descriptor, offset, FILE_BYTES_MAX)
            while start < end:
                stop = min(start + MIB, end, os.lseek(descriptor, start, os.SEEK_HOLE))
                os.pwrite(target, os.pread(descriptor, stop - start, start), start)
                start = next_data_at(descriptor, stop, FILE_BYTES_MAX)
        finally:
            os.close(descriptor)
        return start

    def extents(self, inode: InodeNumber, size: int) -> Iterator[tuple[int, int]]:
        """Where the first `size` bytes of an image hold data, as (offset, length); holes lie between."""
        descriptor = self._open.descriptor(inode, create=False)
        if descriptor is not None:
            yield from extents_of(descriptor, size)

    def next_data(self, inode: InodeNumber, offset: int, stop: int) -> int:
        """Where, from `offset` on, the image has data; `stop` at most. OSError."""
        descriptor = self._open.descriptor(inode, create=False)
        return stop if descriptor is None else min(next_data_at(descriptor, offset, stop), stop)

    def next_hole(self, inode: InodeNumber, offset: int, stop: int) -> int:
        """Where, from `offset` on, the image has a hole, as behind its end; `stop` at most. OSError."""
        descriptor = self._open.descriptor(inode, create=False)
        return min(offset, stop) if descriptor is None else next_hole_at(descriptor, offset, stop)


def _digests(descriptor: int, offset: int, stop: int) -> Iterator[int]:
    """The checksum of each region from `offset` to before `stop`; holes are found, not read."""
    next_data = -1
    while offset < stop:
        length = min(REGION_BYTES, stop - offset)
        if next_data < offset:
            next_data = next_data_at(descriptor, offset, stop)
        if next_data < offset + length:
            yield xxhash.xxh3_64_intdigest(os.pread(descriptor, length, offset))
        else:
            yield zeros_digest(length)
        offset += length


def zeros_digest(length: int) -> int:
    """The checksum of a region of so many zeros."""
    return _ZEROS_DIGEST if length == REGION_BYTES else xxhash.xxh3_64_intdigest(bytes(length))
