"""Image files: the data of each regular file, as one sparse file named by inode number.

An image's own time stamps are slots: its mtime holds the file's mtime and its atime holds the file's
ctime, so that both survive a killed process with the data and cost no record. A missing image
is an empty one. Images that are no longer needed are emptied and kept as spares for new ones: a name
costs a filesystem less than an inode does, and ext4 searches long for one where many were freed just now.
What stands under an image's name and is no regular file, such as a link, is an error that names it.
An image that takes long to cut to nothing, or to remove, as it lies in very many places, is discarded: it
stands under another name at once, and is freed later, a little at a time (`free_some`). Where a file goes on,
an empty image takes its name in one step, so that a crash finds the old one or the new.
Descriptors are cached; what another thread does opens a descriptor of its own, so that the cache
belongs to the event loop's thread alone.
"""

import contextlib
import errno
import itertools
import os
import re
import stat
import threading
from array import array
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import xxhash

from fusemirror.change import ZERO_RANGE
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import (
    DIGESTS_PER_MESSAGE,
    FILE_BYTES_MAX,
    HOLE_PIECE_BYTES,
    IMAGES_PER_DIRECTORY,
    MIB,
    OPEN_IMAGES_MAX,
    REGION_BYTES,
    SPARE_IMAGES_MAX,
)
from fusemirror.seams import Seams
from fusemirror.volume.beneath import check_plain, open_plain
from fusemirror.volume.durable import allocate, punch_hole, sync_directory, sync_filesystem
from fusemirror.volume.extents import (
    allocated,
    boundaries,
    cut_points,
    extents_of,
    next_data_at,
    next_hole_at,
    takes_long,
)

_SYNCED_SINGLY_MAX = 32  # with more, one sync of the filesystem costs less
_NAMES_UNSYNCED_MAX = 65_536  # of images that were prepared and never written to: some MiB of memory
_HEXADECIMAL = re.compile(r"[0-9a-f]+")
_ZEROS_DIGEST = xxhash.xxh3_64_intdigest(bytes(REGION_BYTES))


class ImageFacts(NamedTuple):
    """What an image says of its file."""

    size: int
    mtime_ns: int
    ctime_ns: int


class Piece(NamedTuple):
    """Regions of an image from `first` to before `end`: all of them hold data, or none of them any."""

    first: int
    end: int
    is_hole: bool


class Images:
    """All image files of a volume. Methods are for the event loop's thread unless they say thread-safe."""

    def __init__(self, directory: Path, seams: Seams) -> None:
        self._directory = str(directory)
        self._seams = seams
        self._open: OrderedDict[InodeNumber, int] = OrderedDict()  # the least recently used first
        self._flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOATIME
        self._unsynced_names: dict[InodeNumber, int] = {}  # with the serial of the last
        self._unsynced_times: set[InodeNumber] = set()
        self.dirty: dict[InodeNumber, int] = {}
        """Images changed since they were last durable, with the serial of their last change."""
        self._serial = 0
        self._spare_directory = f"{directory}/spare"
        self._spares = deque(self._spares_kept())  # paths; any thread appends
        self._keeps_spares = True
        self._leaving: set[InodeNumber] = set()  # to be recycled
        self._recycling = threading.Lock()
        self._made_directory = ""
        self._discarded_directory = f"{directory}/discarded"
        self._discarded_names = itertools.count(1)
        self._discarded = deque(self._discarded_before())  # paths; any thread appends
        self._freeing: Iterator[None] | None = None
        self._file_bytes_max: int | None = None
        self._takes_allocations = False

    @property
    def file_bytes_max(self) -> int:
        """How long a file the disk takes: beyond, it refuses to write and to extend. While that cannot be
        asked for an error of the disk, any length that there is.
        """
        if self._file_bytes_max is None:
            try:
                self._file_bytes_max = self._probe()
            except OSError:  # who writes meets it too
                return FILE_BYTES_MAX
        return self._file_bytes_max

    def _probe(self) -> int:
        """Ask for lengths, halving between the longest that was taken and the shortest that was not."""
        path = f"{self._directory}/probe"
        descriptor = self._open_path(path, os.O_CREAT | os.O_TRUNC)
        try:
            os.unlink(path)  # nothing is left of it, however this ends
            taken, refused = 0, FILE_BYTES_MAX + 1
            asked = FILE_BYTES_MAX
            while taken + 1 < refused:
                if _takes_length(descriptor, asked):
                    taken = asked
                else:
                    refused = asked
                asked = (taken + refused) // 2
            # What tmpfs holds in the last page that there can be, SEEK_DATA does not find.
            last_page = FILE_BYTES_MAX + 1 - os.sysconf("SC_PAGE_SIZE")
            if taken > last_page and not _finds_last_byte(descriptor, taken):
                taken = last_page
            os.ftruncate(descriptor, 0)
            self._takes_allocations = _allocates(descriptor)
            return taken
        finally:
            os.close(descriptor)

    @property
    def takes_allocations(self) -> bool:
        """Whether the disk gives files room, and makes holes in them; False while it cannot be asked."""
        return bool(self.file_bytes_max) and self._takes_allocations

    @property
    def has_discarded(self) -> bool:
        """Something waits for `free_some`."""
        return bool(self._discarded)

    def write(self, inode: InodeNumber, offset: int, data: bytes | memoryview, time_ns: int) -> None:
        """On return the image holds all of `data` at `offset` and both its times are `time_ns`.

        OSError: a part may have been written, and the times are the old ones. So they are where a full
        disk refuses them alone.
        """
        descriptor = self._open.get(inode)
        if descriptor is None:
            descriptor = self._open_image(inode, create=True)
        else:
            self._open.move_to_end(inode)
        self._serial += 1
        self.dirty[inode] = self._serial
        written = os.pwrite(descriptor, data, offset)
        while written < len(data):
            written += os.pwrite(descriptor, memoryview(data)[written:], offset + written)
        _set_times(descriptor, time_ns)

    def prepare(self, inode: InodeNumber) -> None:
        """On return there is an image, which a write would find or make first; its times are 0. OSError."""
        self._descriptor(inode, create=True)

    def truncate(self, inode: InodeNumber, size: int, time_ns: int) -> None:
        """On return the image is `size` bytes long and both its times are `time_ns`. OSError.

        Where a full disk refuses the times, they are the old ones.
        """
        descriptor = self._descriptor(inode, create=size > 0)
        if descriptor is not None:
            self._serial += 1
            self.dirty[inode] = self._serial
            if size or not takes_long(descriptor, 0) or not self._replace(inode, time_ns):
                os.ftruncate(descriptor, size)
                _set_times(descriptor, time_ns)

    def _replace(self, inode: InodeNumber, time_ns: int) -> bool:
        """Put an empty image with these times in the place of one, which is discarded; false where the disk
        is too full for that, or knows no links. OSError: nothing was changed.
        """
        path = self._path(inode)
        try:
            discarded = self._discarded_path(inode)
            os.link(path, discarded)
            try:
                descriptor = self._create_image(path, time_ns)
            except OSError:
                os.unlink(discarded)
                raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                return False
            raise
        os.close(self._open[inode])
        self._open[inode] = descriptor
        self._unsynced_names[inode] = self._serial
        self._discarded.append(discarded)
        return True

    def step_points(self, inode: InodeNumber, start: int, end: int) -> Sequence[int]:
        """Where, between two places of an image, work on its disk space stops to do a little at a time, the
        first place first. Thread-safe. OSError.
        """
        try:
            descriptor = open_plain(self._path(inode), self._flags & ~os.O_RDWR)
        except FileNotFoundError:
            return ()
        try:
            return array("Q", boundaries(descriptor, start, end))
        finally:
            os.close(descriptor)

    def allocate(self, inode: InodeNumber, offset: int, end: int, mode: int, time_ns: int) -> None:
        """On return the image has room there, or a hole, by `mode`, and both its times are `time_ns`.

        OSError: a part may have been done, and the times are the old ones.
        """
        descriptor = self._descriptor(inode, create=True)
        assert descriptor is not None
        self._serial += 1
        self.dirty[inode] = self._serial
        _change_space(descriptor, mode, offset, end - offset)
        _set_times(descriptor, time_ns)

    def keep_times(self, inode: InodeNumber) -> None:
        """The image's times as of now are to be durable with its next sync: a record is judged by them."""
        self._unsynced_times.add(inode)

    def cut(self, inode: InodeNumber, size: int) -> None:
        """Take away what a write that failed left behind `size`; times stay as they are. OSError."""
        descriptor = self._descriptor(inode, create=False)
        if descriptor is not None and os.fstat(descriptor).st_size > size:
            os.ftruncate(descriptor, size)

    def set_times(self, inode: InodeNumber, mtime_ns: int, ctime_ns: int) -> None:
        """Put the times into the slots of the image, where there is one. OSError."""
        descriptor = self._descriptor(inode, create=False)
        if descriptor is not None:
            os.utime(descriptor, ns=(ctime_ns, mtime_ns))

    def make_older(self, inode: InodeNumber, time_ns: int) -> None:
        """On return the image durably says that it was last changed before `time_ns`. OSError."""
        descriptor = self._descriptor(inode, create=False)
        if descriptor is not None and os.fstat(descriptor).st_atime_ns >= time_ns:
            os.utime(descriptor, ns=(time_ns - 1, time_ns - 1))
            self._seams.fsync(descriptor)

    def read(self, inode: InodeNumber, offset: int, size: int) -> bytes:
        """The bytes at `offset`, fewer at the end of the image, none of a missing one. OSError."""
        descriptor = self._descriptor(inode, create=False)
        return b"" if descriptor is None else os.pread(descriptor, size, offset)

    def facts(self, inode: InodeNumber) -> ImageFacts | None:
        """Size and times of the image, None for a missing one. Thread-safe. OSError."""
        try:
            status = os.lstat(self._path(inode))
        except FileNotFoundError:
            return None
        check_plain(status, self._path(inode))
        return ImageFacts(status.st_size, status.st_mtime_ns, status.st_atime_ns)

    def size(self, inode: InodeNumber) -> int:
        """The length of an image in bytes; 0 for one that is not there. OSError."""
        facts = self.facts(inode)
        return 0 if facts is None else facts.size

    def data_bytes(self, inode: InodeNumber) -> int:
        """How much room an image takes on the disk. OSError."""
        descriptor = self._open.get(inode)
        try:
            found = os.lstat(self._path(inode)) if descriptor is None else os.fstat(descriptor)
            return found.st_blocks * 512
        except FileNotFoundError:
            return 0

    def exists(self, inode: InodeNumber) -> bool:
        return os.path.exists(self._path(inode))

    def path(self, inode: InodeNumber) -> Path:
        """Where the image is, or would be."""
        return Path(self._path(inode))

    def is_allocated(self, inode: InodeNumber, offset: int, end: int) -> bool:
        """Whether writing there takes no room: the image has blocks for all of it. OSError."""
        descriptor = self._descriptor(inode, create=False)
        if descriptor is None or os.fstat(descriptor).st_size < end:
            return False
        for start, length in allocated(descriptor, offset):  # room that was reserved is no data yet
            if start > offset:
                return False
            offset = start + length
            if offset >= end:
                return True
        return offset >= end

    def release(self, inode: InodeNumber) -> None:
        """Let go of an image that is about to be removed."""
        descriptor = self._open.pop(inode, None)
        if descriptor is not None:
            os.close(descriptor)
        self.dirty.pop(inode, None)
        self._unsynced_times.discard(inode)
        self._unsynced_names.pop(inode, None)

    def unlink(self, inode: InodeNumber) -> None:
        """Remove a released image, where there is one. Thread-safe. OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(inode))

    def leave(self, inode: InodeNumber) -> None:
        """Let go of an image that is to be recycled, unless it is used again before."""
        self.release(inode)
        self._leaving.add(inode)

    def keep_spares(self, wanted: bool) -> None:
        """Whether images that are recycled become spares from now on. If not, the spares that there are go,
        and with them their inodes, of which the disk has too few. OSError."""
        self._keeps_spares = wanted
        while not wanted and self._spares:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._spares.pop())

    def _takes_spares(self, coming: int) -> bool:
        return self._keeps_spares and len(self._spares) + coming < SPARE_IMAGES_MAX

    def keep_all(self) -> None:
        """What was left is not recycled, but for what has been. It waits for one image under way."""
        with self._recycling:
            self._leaving.clear()

    def recycle(self, inodes: Iterable[InodeNumber]) -> list[InodeNumber]:
        """On return images that were left are spares, or are there no more; those that were used again
        meanwhile are returned, and stay. Thread-safe. OSError.
        """
        emptied: list[InodeNumber] = []
        used: list[InodeNumber] = []
        for inode in inodes:
            if self._takes_spares(len(emptied)) and self._empty(inode):
                emptied.append(inode)
            elif not self._remove_left(inode):
                used.append(inode)
        # Before a new file can get one: a power cut must not bring back what it held.
        self.sync_all(emptied)
        rest = [inode for inode in emptied if not self._make_spare(inode)]
        return [*used, *(inode for inode in rest if not self._remove_left(inode))]

    def _empty(self, inode: InodeNumber) -> bool:
        """Whether it was left, and is empty now: on a full or failing disk it can perhaps only be removed."""
        with self._recycling, contextlib.suppress(OSError):
            if inode in self._leaving:
                descriptor = self._open_path(self._path(inode))
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
        spare = f"{self._spare_directory}/{inode:x}"
        with self._recycling, contextlib.suppress(OSError):
            if inode in self._leaving:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self._spare_directory, 0o700)
                os.rename(self._path(inode), spare)
                self._leaving.discard(inode)
                self._spares.append(spare)
                return True
        return False

    def _remove_left(self, inode: InodeNumber) -> bool:
        """Whether it was left still, and is there no more."""
        with self._recycling:
            if inode not in self._leaving:
                return False
            self._leaving.discard(inode)
            try:
                self._move_to_discarded(inode)
            except OSError:  # a full disk may have no room for another name
                self.unlink(inode)
            return True

    def remove(self, inode: InodeNumber) -> None:
        """On return there is no such image. OSError."""
        self.release(inode)
        self.unlink(inode)

    def discard(self, inode: InodeNumber) -> None:
        """On return there is no such image; `free_some` frees what it held, which takes long where that lies
        in very many places. OSError.
        """
        self.release(inode)
        self._move_to_discarded(inode)

    def _move_to_discarded(self, inode: InodeNumber) -> None:
        path = self._path(inode)
        if os.path.lexists(path):
            discarded = self._discarded_path(inode)
            os.rename(path, discarded)
            self._discarded.append(discarded)

    def _discarded_path(self, inode: InodeNumber) -> str:
        """A path that nothing has, in a directory that is there; the inode's number stands in it. OSError."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._discarded_directory, 0o700)
        while True:
            path = f"{self._discarded_directory}/{inode:x}-{next(self._discarded_names)}"
            if not os.path.lexists(path):  # an earlier mount counted too
                return path

    def _discarded_before(self) -> Iterator[str]:
        """What earlier mounts have left to be freed. OSError."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._discarded_directory):
                yield f"{self._discarded_directory}/{name}"

    def free_some(self) -> bool:
        """Free a part of what discarded images held, that does not take long; whether there may be more.

        For one thread at a time. OSError: what it concerns may be tried again.
        """
        if self._freeing is None:
            self._freeing = self._free()
        try:
            next(self._freeing)
        except StopIteration:
            self._freeing = None
        except OSError:
            self._freeing = None
            raise
        return self._freeing is not None

    def _free(self) -> Iterator[None]:
        """Free what is discarded by now, and stop after each part."""
        waiting = list(self._discarded)
        # What has taken their names must be there after a power cut, or what is left of them would be.
        for directory in {os.path.dirname(path) for path in map(self._path_before, waiting) if path}:
            with contextlib.suppress(FileNotFoundError):
                sync_directory(directory)
        for path in waiting:
            with contextlib.suppress(FileNotFoundError):
                yield from self._free_one(path)
            self._discarded.remove(path)

    def _path_before(self, discarded: str) -> str | None:
        """Where a discarded image stood."""
        number = os.path.basename(discarded).partition("-")[0]
        return self._path(InodeNumber(int(number, 16))) if _HEXADECIMAL.fullmatch(number) else None

    def _free_one(self, path: str) -> Iterator[None]:
        status = os.lstat(path)
        # What stood there may have been no file; and killed between two steps, an image may have this name
        # beside its own.
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            yield from self._empty_slowly(path)
        os.unlink(path)
        yield

    def _empty_slowly(self, path: str) -> Iterator[None]:
        descriptor = self._open_path(path)
        try:
            if takes_long(descriptor, 0):
                for size in cut_points(descriptor, 0):
                    os.ftruncate(descriptor, size)
                    yield
        finally:
            os.close(descriptor)

    def numbers(self) -> Iterator[InodeNumber]:
        """The inode numbers of all images on the disk, in no order. OSError."""
        for directory in self._directories():
            for name in os.listdir(directory):
                if _HEXADECIMAL.fullmatch(name):
                    yield InodeNumber(int(name, 16))

    def _directories(self) -> list[str]:
        # Whole, as the names above: who stops half way would leave a directory open.
        with os.scandir(self._directory) as directories:
            return [
                directory.path
                for directory in directories
                if _HEXADECIMAL.fullmatch(directory.name) and directory.is_dir(follow_symlinks=False)
            ]

    def settle(self, synced: dict[InodeNumber, int]) -> None:
        """Take from `dirty` what is durable now: a copy of it made before a sync, less what changed since."""
        for inode, serial in synced.items():
            if self.dirty.get(inode) == serial:
                del self.dirty[inode]

    def sync(self, inode: InodeNumber) -> None:
        """On return what was written to the image before the call is durable. Thread-safe. OSError."""
        path = self._path(inode)
        try:
            # Errors of earlier writeback that nobody has seen are reported to a new descriptor too.
            descriptor = open_plain(path, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            if inode in self._unsynced_times:
                self._unsynced_times.discard(inode)  # before: what is set meanwhile is the next sync's
                self._seams.fsync(descriptor)
            else:
                self._seams.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        named = self._unsynced_names.get(inode)
        if named is not None:
            sync_directory(os.path.dirname(path))
            self._names_synced({inode: named})

    def sync_names(self) -> None:
        """On return every image has its name durably, also one that nobody wrote to. OSError."""
        named = dict(self._unsynced_names)
        for directory in {os.path.dirname(self._path(inode)) for inode in named}:
            sync_directory(directory)
        self._names_synced(named)

    def _names_synced(self, named: dict[InodeNumber, int]) -> None:
        """These are durable, but for an image that got its name, or another's, since. In any thread."""
        for inode, serial in named.items():
            if self._unsynced_names.get(inode) == serial:
                self._unsynced_names.pop(inode, None)

    def sync_all(self, inodes: Collection[InodeNumber]) -> None:
        """`sync` for many images. Thread-safe. OSError."""
        if len(inodes) > _SYNCED_SINGLY_MAX or len(self._unsynced_names) > _NAMES_UNSYNCED_MAX:
            self.sync_filesystem()
        else:
            for inode in inodes:
                self.sync(inode)

    def inherit(self, marked: Iterable[InodeNumber]) -> None:
        """A killed process wrote to the marked images: their next sync makes that durable too.

        On return the names of all images are durable, since which of them it made is not known. OSError.
        """
        for inode in marked:
            self._serial += 1
            self.dirty[inode] = self._serial
            self.keep_times(inode)
        for directory in self._directories():
            sync_directory(directory)
        sync_directory(self._directory)

    def sync_filesystem(self) -> None:
        """On return everything written before the call is durable. Thread-safe. OSError."""
        named = dict(self._unsynced_names)
        sync_filesystem(self._directory)
        self._names_synced(named)

    def region_digests(self, inode: InodeNumber, first_region: int, count: int) -> tuple[int, ...]:
        """Checksums of regions, the last one short at the end of the image, none beyond. Thread-safe.

        OSError.
        """
        try:
            descriptor = open_plain(self._path(inode), self._flags & ~os.O_RDWR)
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
        descriptor = self._descriptor(inode, create=False)
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
                size = self.size(inode)
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
        descriptor = self._descriptor(inode, create=False)
        if descriptor is None:
            return end
        stop = min(end * REGION_BYTES, os.fstat(descriptor).st_size)
        start = next_data_at(descriptor, first * REGION_BYTES, stop)
        if start >= stop:
            return end
        start -= start % REGION_BYTES
        enough = next(boundaries(descriptor, start), stop)
        stop = min(stop, start + HOLE_PIECE_BYTES, -(-enough // REGION_BYTES) * REGION_BYTES)
        self._serial += 1
        self.dirty[inode] = self._serial
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
            descriptor = open_plain(self._path(inode), self._flags & ~os.O_RDWR)
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
        descriptor = self._descriptor(inode, create=False)
        if descriptor is not None:
            yield from extents_of(descriptor, size)

    def next_data(self, inode: InodeNumber, offset: int, stop: int) -> int:
        """Where, from `offset` on, the image has data; `stop` at most. OSError."""
        descriptor = self._descriptor(inode, create=False)
        return stop if descriptor is None else min(next_data_at(descriptor, offset, stop), stop)

    def next_hole(self, inode: InodeNumber, offset: int, stop: int) -> int:
        """Where, from `offset` on, the image has a hole, as behind its end; `stop` at most. OSError."""
        descriptor = self._descriptor(inode, create=False)
        return min(offset, stop) if descriptor is None else next_hole_at(descriptor, offset, stop)

    def close(self) -> None:
        self._freeing = None
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def _path(self, inode: InodeNumber) -> str:
        return f"{self._directory}/{inode // IMAGES_PER_DIRECTORY:x}/{inode:x}"

    def _descriptor(self, inode: InodeNumber, *, create: bool) -> int | None:
        descriptor = self._open.get(inode)
        if descriptor is not None:
            self._open.move_to_end(inode)
            return descriptor
        try:
            return self._open_image(inode, create=create)
        except FileNotFoundError:
            return None

    def _open_image(self, inode: InodeNumber, *, create: bool) -> int:
        if inode in self._leaving:  # another copy has it still: what is written to it is no spare
            with self._recycling:
                self._leaving.discard(inode)
        if len(self._open) >= OPEN_IMAGES_MAX:
            os.close(self._open.popitem(last=False)[1])
        path = self._path(inode)
        try:
            descriptor = self._open_path(path)
        except FileNotFoundError:
            if not create:
                raise
            descriptor = self._create_image(path)
            self._serial += 1
            self._unsynced_names[inode] = self._serial
        self._open[inode] = descriptor
        return descriptor

    def _create_image(self, path: str, time_ns: int = 0) -> int:
        """A new image under its name, in the place of what had that; open. It has its times from the first
        moment: those of 0 tell of no change yet. OSError: nothing was changed.
        """
        self._make_directory(os.path.dirname(path))
        while self._spares:
            with contextlib.suppress(FileNotFoundError):  # a person may tidy up
                return self._name_image(self._spares.pop(), path, time_ns)
        return self._name_image(f"{self._directory}/new", path, time_ns, os.O_CREAT | os.O_TRUNC)

    def _name_image(self, temporary: str, path: str, time_ns: int, more_flags: int = 0) -> int:
        descriptor = self._open_path(temporary, more_flags)
        try:
            if time_ns or more_flags:  # spares have times of 0
                os.utime(descriptor, ns=(time_ns, time_ns))
            os.rename(temporary, path)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _spares_kept(self) -> Iterator[str]:
        """The spares of earlier mounts. OSError."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._spare_directory):
                path = f"{self._spare_directory}/{name}"
                if os.stat(path).st_size == 0:
                    yield path

    def _open_path(self, path: str, more_flags: int = 0) -> int:
        try:
            return open_plain(path, self._flags | more_flags)
        except OSError as error:
            # O_NOATIME is for the owner of a file; others still get what a mount without atime gives.
            if error.errno != errno.EPERM or not self._flags & os.O_NOATIME:
                raise
            self._flags &= ~os.O_NOATIME
            return open_plain(path, self._flags | more_flags)

    def _make_directory(self, path: str) -> None:
        if path == self._made_directory:
            return
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        else:
            sync_directory(self._directory)  # once for IMAGES_PER_DIRECTORY images
        self._made_directory = path


def misfits(directory: Path) -> Iterator[Path]:
    """What stands under the name of an image in a directory of images, and is no file. OSError."""
    with os.scandir(directory) as parts:
        found = [
            part.path
            for part in parts
            if _HEXADECIMAL.fullmatch(part.name) and part.is_dir(follow_symlinks=False)
        ]
    for path in found:
        with os.scandir(path) as images:
            for image in images:
                if _HEXADECIMAL.fullmatch(image.name) and not image.is_file(follow_symlinks=False):
                    yield Path(image.path)


def _takes_length(descriptor: int, size: int) -> bool:
    try:
        os.ftruncate(descriptor, size)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        return False
    return True


def _change_space(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2); a disk that cannot zero a range has a hole made there, and room for it."""
    try:
        allocate(descriptor, mode, offset, length)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP or not mode & ZERO_RANGE:
            raise
        punch_hole(descriptor, offset, length)
        allocate(descriptor, mode & ~ZERO_RANGE, offset, length)


def _allocates(descriptor: int) -> bool:
    try:
        allocate(descriptor, 0, 0, 1)
        punch_hole(descriptor, 0, 1)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False
    return True


def _finds_last_byte(descriptor: int, size: int) -> bool:
    """Whether SEEK_DATA finds one that is written there."""
    os.ftruncate(descriptor, size)
    os.pwrite(descriptor, b"x", size - 1)
    return next_data_at(descriptor, size - 1, size) < size


def _set_times(descriptor: int, time_ns: int) -> None:
    try:
        os.utime(descriptor, ns=(time_ns, time_ns))
    except OSError as error:
        # What was cut or overwritten cannot be taken back: it is done, and recovery needs no times.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


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
