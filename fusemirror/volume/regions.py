"""The changed-region map: which regions of images may differ from the peer's.

A mark is written before the first write to its region, and kept until both volumes are known to hold
the same durably. Marks stand in epochs, one append-only file each. To let go of the old ones: begin
a new epoch (`rotate`), make both volumes durable, then `drop` the epoch that was closed; what was
written meanwhile is marked in the new one.

Marks are written but not synced: a killed process loses none, and after a power cut every image is
compared anyway. Source: DRBD's activity log and bitmap.
"""

import os
import re
import struct
from pathlib import Path

import xxhash

from fusemirror.identifiers import InodeNumber, RegionIndex
from fusemirror.limits import REGION_BYTES, REGIONS_PER_IMAGE_MAX
from fusemirror.volume.durable import append_whole, sync_directory

WHOLE_IMAGE = RegionIndex(-1)

_FRESH = "fresh"
_EPOCH_NAME = re.compile(r"[0-9a-f]{16}")
_MARK = struct.Struct("<Qq")
_RECORD_BYTES = _MARK.size + 8  # and its checksum

Marks = dict[InodeNumber, set[RegionIndex]]


class Regions:
    """The map of one volume, in memory and on disk. Epoch numbers only grow."""

    def __init__(self, directory: Path) -> None:
        """Read the marks of all epochs and begin a new one. OSError."""
        self._directory = directory
        self._older: dict[int, Marks] = {}
        self.marks_lost = False  # a record could not be read: every image is suspect
        for path in directory.iterdir():
            if _EPOCH_NAME.fullmatch(path.name):
                self._older[int(path.name, 16)] = self._read(path)
        self._epoch = max(self._older, default=0) + 1
        self._current: Marks = {}
        self._descriptor = -1

    def mark(self, inode: InodeNumber, offset: int, end: int) -> None:
        """On return every region that holds bytes from `offset` to before `end` is marked. OSError."""
        first = offset // REGION_BYTES
        last = (end - 1) // REGION_BYTES
        marked = self._current.get(inode)
        if marked is not None and ((first == last and first in marked) or WHOLE_IMAGE in marked):
            return
        if last - first + 1 + len(marked or ()) > REGIONS_PER_IMAGE_MAX:
            self.mark_whole(inode)
            return
        fresh = {RegionIndex(index) for index in range(first, last + 1)} - (marked or set())
        if fresh:
            self._add(inode, fresh)

    def mark_whole(self, inode: InodeNumber) -> None:
        """On return the whole image is marked, whatever its size becomes. OSError."""
        if WHOLE_IMAGE not in self._current.get(inode, ()):
            self._add(inode, {WHOLE_IMAGE})

    def marks(self) -> Marks:
        """A copy of all marks of all epochs; WHOLE_IMAGE may stand beside others.

        A negative mark -1 - n, of which WHOLE_IMAGE is the first, stands for all regions from n on.
        """
        union: Marks = {}
        for epoch in (*self._older.values(), self._current):
            for inode, indexes in epoch.items():
                union.setdefault(inode, set()).update(indexes)
        return union

    def inodes(self) -> set[InodeNumber]:
        """The images that have a mark."""
        return set(self._current).union(*self._older.values())

    def has(self, inode: InodeNumber) -> bool:
        """Whether any region of the image is marked."""
        return inode in self._current or any(inode in epoch for epoch in self._older.values())

    @property
    def is_empty(self) -> bool:
        return not self._current and not any(self._older.values())

    def rotate(self) -> int:
        """Begin a new epoch; the number of the one just closed, for `drop`."""
        closed = self._epoch
        self._close_file()
        if self._current:
            self._older[closed] = self._current
            self._current = {}
        self._epoch += 1
        return closed

    def drop(self, epoch: int, keep: Marks | None = None) -> None:
        """Forget the marks of `epoch` and all before it, but for `keep`, which takes their place.

        Call `Volume.drop_marks`, which knows what else must be durable first. A crash leaves the old marks
        or the new ones. OSError."""
        if keep:
            self._put(epoch, keep)
        for old in [number for number in self._older if number <= epoch - bool(keep)]:
            del self._older[old]
            self._path(old).unlink(missing_ok=True)

    def _put(self, epoch: int, marks: Marks) -> None:
        fresh = self._directory / _FRESH
        fresh.write_bytes(
            b"".join(_record(inode, index) for inode, indexes in marks.items() for index in indexes)
        )
        fresh.replace(self._path(epoch))
        self._older[epoch] = marks

    def forget(self, inode: InodeNumber) -> None:
        """Forget an image that was purged. Its records stay until their epochs go."""
        for epoch in (*self._older.values(), self._current):
            epoch.pop(inode, None)

    def sync(self) -> None:
        """On return all marks are durable: a volume closed in good order may be trusted after a power cut."""
        for path in self._directory.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_directory(self._directory)

    def close(self) -> None:
        self._close_file()

    def _add(self, inode: InodeNumber, indexes: set[RegionIndex]) -> None:
        records = b"".join(_record(inode, index) for index in indexes)
        if self._descriptor < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self._path(self._epoch), flags, 0o600)
        end = os.fstat(self._descriptor).st_size
        try:
            append_whole(self._descriptor, records)
        except OSError:
            os.ftruncate(self._descriptor, end)
            raise
        self._current.setdefault(inode, set()).update(indexes)

    def _read(self, path: Path) -> Marks:
        marks: Marks = {}
        content = path.read_bytes()
        # A last record that is cut short was never followed by its write to the image.
        for start in range(0, len(content) - _RECORD_BYTES + 1, _RECORD_BYTES):
            record = content[start : start + _RECORD_BYTES]
            inode, index = _MARK.unpack_from(record)
            if record == _record(inode, index):
                marks.setdefault(InodeNumber(inode), set()).add(RegionIndex(index))
            else:
                self.marks_lost = True
        return marks

    def _path(self, epoch: int) -> Path:
        return self._directory / f"{epoch:016x}"

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _record(inode: int, index: int) -> bytes:
    mark = _MARK.pack(inode, index)
    return mark + xxhash.xxh3_64_digest(mark)
