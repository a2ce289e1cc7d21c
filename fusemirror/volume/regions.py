"""The changed-region map: which regions of images may differ from the peer's.

A mark is written before the first write to its region, and kept until both volumes are known to hold
the same durably. Marks stand in epochs, one append-only file each. To let go of the old ones: begin
a new epoch (`rotate`), make both volumes durable, then `drop` the epoch that was closed; what was
written meanwhile is marked in the new one.

A record has 24 bytes, and is one of three. Programs before ranges knew the first two; to them the third is
a damaged record, for which they compare every image: more than is needed, and never less.

    u64 inode · i64 region · u64 checksum             one region
    u64 inode · i64 -1 - region · u64 checksum        all regions from there on
    u64 inode · u48 first · u48 count · u32 checksum  a range with an end

Marks are written but not synced: a killed process loses none, and after a power cut every image is
compared anyway. Each epoch ends by the one rule of logs (`tails.py`): what is no torn tail stops the opening.
Source: DRBD's activity log and bitmap.
"""

import os
import re
import struct
from functools import partial
from pathlib import Path

import xxhash

from fusemirror.errors import VolumeDamaged
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import RANGES_PER_IMAGE_MIN, REGION_BYTES, WRITE_BYTES_MAX
from fusemirror.volume import tails
from fusemirror.volume.durable import append_behind, sync_directory
from fusemirror.volume.region_set import REGIONS_END, RegionSet, ranges_allowed
from fusemirror.volume.tails import Whole

_FRESH = "fresh"
_EPOCH_NAME = re.compile(r"[0-9a-f]{16}")
_MARK = struct.Struct("<Qq")
_RANGE_BYTES = 20
_RECORD_BYTES = 24
_SINGLE_MAX = WRITE_BYTES_MAX // REGION_BYTES + 1  # what a write marks, programs before ranges read too

Marks = dict[InodeNumber, RegionSet]

assert REGIONS_END < 1 << 48, "a range has six bytes for each number"


class Regions:
    """The map of one volume, in memory and on disk. Epoch numbers only grow."""

    def __init__(self, directory: Path, *, lost_power: bool = False) -> None:
        """Read the marks of all epochs and begin a new one.

        `lost_power`: what the last process had not synced may be lost, and every image is compared.
        VolumeDamaged for a damage that no crash explains, OSError.
        """
        self._directory = directory
        # All of them stay until a checkpoint of this process: how far the last one of an earlier process came
        # nobody knows.
        self._older: dict[int, Marks] = {}
        self.marks_lost = False  # the end of an epoch could not be read: every image is suspect
        for path in directory.iterdir():
            if _EPOCH_NAME.fullmatch(path.name):
                self._older[int(path.name, 16)] = self._read(path, lost_power=lost_power)
        # Never on with a file that was there: its end may be torn, and a mark behind that would be damage.
        self._epoch = max(self._older, default=0) + 1
        self._current: Marks = {}
        self._descriptor = -1
        self._end = 0  # of the records in the file of the current epoch

    def mark(self, inode: InodeNumber, offset: int, end: int) -> None:
        """On return every region that holds bytes from `offset` to before `end` is marked. OSError."""
        first, behind = offset // REGION_BYTES, -(-end // REGION_BYTES)
        # Older epochs do not count: their marks may be dropped while the write that asks is not durable yet.
        marked = self._current.get(inode)
        if marked is None or not marked.covers(first, behind):
            self._add(inode, first, behind)

    def mark_whole(self, inode: InodeNumber) -> None:
        """On return the whole image is marked, whatever its size becomes. OSError."""
        self.mark(inode, 0, REGIONS_END * REGION_BYTES)

    def mark_length(self, inode: InodeNumber, old_size: int, size: int) -> None:
        """On return what a truncation cuts off is marked. One that extends is marked for the new size alone.
        OSError.
        """
        # One region at least, where nothing is cut off: sizes are compared of images that have a mark.
        self.mark(inode, min(size, old_size), max(old_size, min(size, old_size) + 1))

    def marks(self) -> Marks:
        """A copy of all marks of all epochs; perhaps coarser than what was marked."""
        union: Marks = {}
        for epoch in (*self._older.values(), self._current):
            for inode, marked in epoch.items():
                union.setdefault(inode, RegionSet()).update(marked)
        # Coarser costs time, as more is compared. Finer than it is would lose a difference (G5).
        allowed = ranges_allowed(len(union))
        for marked in union.values():
            marked.coarsen(allowed)
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
        assert closed not in self._older, "its marks would go with those of an epoch that was dropped before"
        # It has a file, which `drop` is to remove, even where all that was marked has been purged since.
        if self._descriptor >= 0:
            self._older[closed] = self._current
            self._current = {}
        # Closed here, so that the next mark begins the next file.
        self._close_file()
        assert not self._current, "marks without a file would be lost"
        # Also where nothing was marked: whoever closed this one drops it later, and must not drop what is
        # marked from now on.
        self._epoch += 1
        return closed

    def drop(self, epoch: int, keep: Marks | None = None) -> None:
        """Forget the marks of `epoch` and all before it, but for `keep`, which takes their place.

        Call `Volume.drop_marks`, which knows what else must be durable first. A crash leaves the old marks
        or the new ones. OSError."""
        assert epoch < self._epoch, "marks that are still made stay"
        # First what stays: a crash in between leaves both, and more is compared than is needed.
        if keep:
            self._put(epoch, keep)
        # With `keep` the file of `epoch` is the new one by now.
        for old in [number for number in self._older if number <= epoch - bool(keep)]:
            del self._older[old]
            # What cannot be removed counts again at the next opening, and costs a comparison.
            self._path(old).unlink(missing_ok=True)

    def _put(self, epoch: int, marks: Marks) -> None:
        # Under a name that no opening reads until it is whole: a part of it would pass for all of the marks.
        fresh = self._directory / _FRESH
        fresh.write_bytes(
            b"".join(_records(inode, first, end) for inode, marked in marks.items() for first, end in marked)
        )
        fresh.replace(self._path(epoch))
        self._older[epoch] = marks

    def forget(self, inode: InodeNumber) -> None:
        """Forget an image that was purged. Its records stay until their epochs go."""
        # In memory alone: what a crash brings back is of a number that is never given again, and marks
        # nothing.
        for epoch in (*self._older.values(), self._current):
            epoch.pop(inode, None)

    def sync(self) -> None:
        """On return all marks are durable: a volume closed in good order may be trusted after a power cut."""
        # Those of earlier processes as well: what they wrote may never have been synced.
        for path in self._directory.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_directory(self._directory)

    def close(self) -> None:
        self._close_file()

    def _add(self, inode: InodeNumber, first: int, end: int) -> None:
        marked = self._current.get(inode)
        # On the disk before memory: a region that only memory calls marked is written to without a mark, and
        # one whose mark failed is asked for again.
        self._append(_records(inode, first, end, marked))
        if marked is None:
            marked = self._current[inode] = RegionSet()
        marked.add(first, end)
        # How many images there are is looked at only where it may matter: a write waits for this.
        if len(marked) > RANGES_PER_IMAGE_MIN and len(marked) > (
            allowed := ranges_allowed(len(self._current))
        ):
            coarse = marked.copy()
            # Half of what is allowed, so that it is not done again at the next mark.
            coarse.coarsen(max(1, allowed // 2))
            # On the disk first: no record comes any more of what lies in the gaps.
            self._append(b"".join(_records(inode, *each) for each in coarse))
            self._current[inode] = coarse

    def _append(self, records: bytes) -> None:
        # Made with its first mark: a host that only reads begins no file at each checkpoint.
        if self._descriptor < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self._path(self._epoch), flags, 0o600)
            self._end = 0
        append_behind(self._descriptor, records, self._end)
        # Whole records alone count: what failed halfway is cut off before the next (`append_behind`).
        self._end += len(records)

    def _read(self, path: Path, *, lost_power: bool) -> Marks:
        marks: Marks = {}
        content = path.read_bytes()
        end = 0
        while (found := _parsed(content[end : end + _RECORD_BYTES])) is not None:
            end += _RECORD_BYTES
            inode, first, behind = found
            marked = marks.setdefault(InodeNumber(inode), RegionSet())
            marked.add(first, behind)
            # While it is read: a file of very many single regions must not fill the memory first.
            allowed = ranges_allowed(len(marks))
            if len(marked) > allowed:
                marked.coarsen(max(1, allowed // 2))
        if tails.is_damage(partial(_whole_at, content), len(content), end, end, lost_power=lost_power):
            why = "a mark cannot be read, and was whole: others follow it"
            raise VolumeDamaged(self._directory.parent, f"regions: {path.name} at byte {end}: {why}")
        # A part of a record was never followed by its write to the image. More than that no killed process
        # leaves, and nobody knows what it said.
        self.marks_lost |= len(content) - end >= _RECORD_BYTES
        if lost_power and end < len(
            content
        ):  # or it would be damage after the next crash; every image is compared now
            os.truncate(path, end)
        return marks

    def _path(self, epoch: int) -> Path:
        return self._directory / f"{epoch:016x}"

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _records(inode: int, first: int, end: int, known: RegionSet | None = None) -> bytes:
    """What marks a range, but for single regions that are `known`."""
    assert 0 <= first <= end <= REGIONS_END, "another number would be read as another kind of mark"
    if end - first == 1:
        return _single(inode, first)
    if end >= REGIONS_END:
        return _single(inode, -1 - first)
    if end - first > _SINGLE_MAX:
        mark = inode.to_bytes(8, "little") + first.to_bytes(6, "little") + (end - first).to_bytes(6, "little")
        return mark + _checksum(mark)
    regions = range(first, end)
    return b"".join(
        _single(inode, region) for region in regions if known is None or not known.covers(region, region + 1)
    )


def _single(inode: int, index: int) -> bytes:
    mark = _MARK.pack(inode, index)
    return mark + xxhash.xxh3_64_digest(mark)


def _checksum(mark: bytes) -> bytes:
    # Four bytes are left in a record as long as the others. They tell what a crash or a bad disk leaves, and
    # users choose nothing in a mark but numbers.
    return xxhash.xxh3_64_digest(mark)[:4]


def _whole_at(content: bytes, start: int) -> Whole | None:
    """Marks have no number of their own: each counts as the place where it ends."""
    end = start + _RECORD_BYTES
    # Durable it never says to be: marks are synced at a close alone.
    return None if _parsed(content[start:end]) is None else Whole(end, 0, end)


def _parsed(record: bytes) -> tuple[int, int, int] | None:
    """The inode, the first region and the one behind the last; None for what is no record."""
    if len(record) < _RECORD_BYTES:
        return None
    inode, index = _MARK.unpack_from(record)
    # First the kind with the longer checksum: one of the other kind passes for it less often.
    if record == _single(inode, index):
        return (inode, -1 - index, REGIONS_END) if index < 0 else (inode, index, index + 1)
    mark = record[:_RANGE_BYTES]
    if record[_RANGE_BYTES:] != _checksum(mark):
        return None
    first, count = int.from_bytes(mark[8:14], "little"), int.from_bytes(mark[14:], "little")
    return inode, first, first + count
