"""Where a file has data, and how one that lies in very many places is cut, or freed, a little at a time.

A disk frees extents one by one, each within microseconds, or within most of a millisecond where it tells
the device of each (the mount option `discard` of ext4 without a journal). Whoever must not wait long cuts
from the end, and stops at each of these points.

Room may be reserved beyond a file's end, too (fallocate(2), FALLOC_FL_KEEP_SIZE). A truncation to the length
that the file has, or to a shorter one, frees all of it, one to a longer length none; and ext4 makes no holes
there. So no part of it alone can be freed while the file stays as long as it is: of a file that goes on, it
is kept to as few places as are freed at once, and a file that nobody needs grows over them first.
"""

import errno
import fcntl
import os
import struct
from array import array
from collections.abc import Iterator
from itertools import islice

from fusemirror.limits import CUT_BYTES_MAX, CUT_EXTENTS_MAX, CUT_SHORT_BYTES, FILE_BYTES_MAX

_FS_IOC_FIEMAP = 0xC020660B  # linux/fs.h
_HEAD = struct.Struct("=QQLLLL")  # linux/fiemap.h: start, length, flags, mapped, count, nothing
_EXTENT = struct.Struct("=QQQ2QL3L")  # logical, physical, length, nothing, flags, nothing
_LAST = 1  # of an extent's flags: none follows
_EXTENTS_PER_CALL = 4 * CUT_EXTENTS_MAX


def next_data_at(descriptor: int, offset: int, stop: int) -> int:
    """Where, from `offset` on, an open file has data; `stop` where a hole goes up to its end. OSError."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return stop


def next_hole_at(descriptor: int, offset: int, stop: int) -> int:
    """Where, from `offset` on, an open file has a hole, at the latest at its end; `stop` at most. OSError."""
    try:
        return min(os.lseek(descriptor, offset, os.SEEK_HOLE), stop)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return min(offset, stop)


def extents_of(descriptor: int, size: int, offset: int = 0) -> Iterator[tuple[int, int]]:
    """Where, from `offset` on, the first `size` bytes of a file hold data, as (offset, length). OSError."""
    size = min(size, os.fstat(descriptor).st_size)
    offset = next_data_at(descriptor, offset, size)
    while offset < size:
        end = min(os.lseek(descriptor, offset, os.SEEK_HOLE), size)
        yield offset, end - offset
        offset = next_data_at(descriptor, end, size)


def takes_long(descriptor: int, size: int) -> bool:
    """Whether an open file is better cut to `size` in steps than at once, or by who may wait. OSError."""
    room = os.fstat(descriptor).st_blocks * 512
    if room <= CUT_SHORT_BYTES:
        return False
    if next(boundaries(descriptor, size), None) is not None:
        return True
    # Where a disk tells of data alone, nobody knows how many places the rest lies in: it is beyond the end.
    return room - sum(length for _, length in allocated(descriptor, 0)) > CUT_SHORT_BYTES


def is_scattered_beyond_end(descriptor: int) -> bool:
    """Whether what is reserved beyond an open file's end lies in so many places that no more are to come: who
    cuts the file frees them all at once. OSError."""
    beyond = allocated(descriptor, os.fstat(descriptor).st_size)
    return sum(1 for _ in islice(beyond, CUT_EXTENTS_MAX)) == CUT_EXTENTS_MAX


def cut_points(descriptor: int, size: int) -> "array[int]":
    """The lengths that an open file takes on its way to `size`, the longest first; `size` is the last.

    No step frees more than the limits say, of the file as it is at the call. The first length is more than
    the file has where much lies beyond its end. OSError.
    """
    points = array("Q", (size,))
    points.extend(boundaries(descriptor, size))
    if points[-1] > os.fstat(descriptor).st_size:
        # It grows over all of that first, which frees nothing: any cut would free all beyond its end at once.
        end = max((start + length for start, length in allocated(descriptor, points[-1])), default=points[-1])
        points.append(min(end, FILE_BYTES_MAX))
    points.reverse()
    return points


def boundaries(descriptor: int, offset: int, stop: int = FILE_BYTES_MAX) -> Iterator[int]:
    """Where, from `offset` on and before `stop`, extents of an open file begin that are too much for one
    step. OSError."""
    extents = length = 0
    for start, size in allocated(descriptor, offset):
        place, end = max(start, offset), start + size
        while place < end:
            if place >= stop:
                return
            if extents == CUT_EXTENTS_MAX or length == CUT_BYTES_MAX:
                yield place
                extents = length = 0
            piece = min(end - place, CUT_BYTES_MAX - length)
            extents += 1
            length += piece
            place += piece


def allocated(descriptor: int, offset: int) -> Iterator[tuple[int, int]]:
    """The extents of a file that end behind `offset`, those beyond its end too; where the filesystem does not
    tell, those of data."""
    try:
        yield from _mapped(descriptor, offset)
    except OSError as error:
        if error.errno == errno.EFBIG:
            return  # no file is so long there
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY):
            raise
        yield from extents_of(descriptor, FILE_BYTES_MAX, offset)


def _mapped(descriptor: int, offset: int) -> Iterator[tuple[int, int]]:
    buffer = bytearray(_HEAD.size + _EXTENTS_PER_CALL * _EXTENT.size)
    while offset < FILE_BYTES_MAX:
        _HEAD.pack_into(buffer, 0, offset, FILE_BYTES_MAX - offset, 0, 0, _EXTENTS_PER_CALL, 0)
        fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, buffer)
        mapped = _HEAD.unpack_from(buffer)[3]
        if not mapped:
            return
        for index in range(mapped):
            place = _HEAD.size + index * _EXTENT.size
            start, _, length, _, _, flags, *_ = _EXTENT.unpack_from(buffer, place)
            yield start, length
        if flags & _LAST or start + length <= offset:
            return  # it tells nothing new
        offset = start + length
