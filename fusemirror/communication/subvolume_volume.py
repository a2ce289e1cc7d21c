"""Requests staged inside the subvolume's own store (seed [0065]-[0069], second example).

There is no communication volume to define: requests stand in append-only files in the volume's directory.
They take of its room above the reserve, and have no capacity of their own. One fdatasync makes durable all
that came together. A file has a header:

    8s magic · u32 format version · u32 zero · u64 seed · u64 checksum of all that

and records, whose checksums are made with the seed:

    u64 checksum of the rest · u64 index · u64 durable · u64 floor · u64 serial
    u32 request length · u32 data length · request · data

Everything with a serial below the floor has ended; a record without a request says only that. The index
counts records, over all files, and a file is named by that of its first. `durable` is the index up to which
they were known to be durable when this one was written. A file is removed once all in it have ended; where
nothing is pending, the last one is cut to its header. What a crash left half written is the end of the last
file, and is cut off at the next opening; all else that is not whole is damage (`volume/tails.py`). Files of
the version before, `*.staged`, are read up to their first record that is not whole.
"""

import errno
import math
import os
import shutil
import struct
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fusemirror.communication.staged import StoredEntry, StoredRequest
from fusemirror.communication.staging_space import StagingSpace
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.errors import DiskFailed, StoreInDoubt, VolumeDamaged
from fusemirror.limits import DATA_BYTES_MAX, MESSAGE_BYTES_MAX, STAGING_SEGMENT_BYTES
from fusemirror.printable import counted
from fusemirror.seams import Seams
from fusemirror.volume import tails
from fusemirror.volume.durable import append_behind, check_movable, sync_directory, unused
from fusemirror.volume.identity import Shutdown, boot_id
from fusemirror.volume.log import (
    CHECKSUM_BYTES,
    cut_torn_tail,
    in_order,
    is_checked,
    is_sealed,
    make_file,
    seal,
    with_checksum,
)
from fusemirror.volume.space import Space
from fusemirror.volume.tails import SEED_BYTES, Whole

_MAGIC = b"fmstaged"
_VERSION = 2
_HEADER = struct.Struct("<8sII")
_SEED_AT = _HEADER.size
_HEADER_BYTES = _SEED_AT + SEED_BYTES + CHECKSUM_BYTES
_RECORD = struct.Struct("<QQQQII")
_PREFIX_BYTES = CHECKSUM_BYTES + _RECORD.size
_RECORD_BEFORE = struct.Struct("<QII")  # of version 1
_PREFIX_BEFORE_BYTES = CHECKSUM_BYTES + _RECORD_BEFORE.size
_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class _Segment:
    """One file, the highest serial in it, and where the data of each request begins."""

    __slots__ = ("_offsets", "_serials", "last", "path", "seed", "size_bytes")

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.seed = seed
        self.last = 0
        self.size_bytes = _HEADER_BYTES
        self._serials = array("Q")  # ascending
        self._offsets = array("Q")

    def add(self, serial: int, data_offset: int) -> None:
        """A request stands in it, behind the others."""
        self.last = max(self.last, serial)
        # Versions before stored a batch again that could not be synced, and only the last copy counts.
        while self._serials and self._serials[-1] >= serial:
            del self._serials[-1], self._offsets[-1]
        self._offsets.append(data_offset)
        self._serials.append(serial)  # last: who looks meanwhile finds both

    def place_of(self, serial: int) -> int | None:
        """Where the data of a request begins, or None."""
        index = bisect_left(self._serials, serial)
        found = self._serials[index : index + 1]
        return self._offsets[index] if found and found[0] == serial else None

    def clear(self) -> None:
        """Nothing of it counts any more."""
        self.last, self.size_bytes = 0, _HEADER_BYTES
        del self._serials[:], self._offsets[:]


class _Staged(NamedTuple):
    """A record as it stands in a file."""

    number: int
    durable: int
    floor: int
    serial: int
    request: bytes
    data: bytes


class SubvolumeCommunicationVolume(CommunicationVolume):
    """The store belongs to one thread at a time: `run` awaits each batch before the next."""

    kind = "subvolume"

    def __init__(self, directory: Path, memory_bytes: int, seams: Seams, space: Space | None = None) -> None:
        """`space` of the subvolume."""
        room = None if space is None else StagingSpace(space, applies_here=True)
        super().__init__(math.inf, memory_bytes, seams, room)
        self._directory = directory
        self.directory = str(directory)
        directory.mkdir(mode=0o700, exist_ok=True)
        self._floor = 0
        self._index = 0  # of the last record
        self._durable = 0  # what a killed process left may not be durable
        self._has_surplus = False  # the last file may hold more than counts
        self._removed_any = False  # of the files, and the directory may not durably say so
        self._segments: list[_Segment] = []
        state = Shutdown.load(directory)
        found = [entry for path in sorted(directory.glob("*.staged")) for entry in self._load_before(path)]
        paths = sorted(directory.glob("*.requests"))
        for path in paths:
            may_be_torn = path == paths[-1]
            found.extend(self._load(path, may_be_torn=may_be_torn, lost_power=state.lost_power))
        self.order.last_serial = max(0, self._floor - 1)
        self._take_up(entry for entry in found if entry[0] >= self._floor)
        if not paths:
            self._segments.append(self._make_segment())
        self._descriptor = os.open(self._segments[-1].path, _APPEND, 0o600)
        if paths and not state.clean:
            # A killed process may have left unsynced what it wrote or cut off. The primary goes by what
            # stands here now: it forgets what is not taken up, and no power cut may bring that back (G4).
            seams.fdatasync(self._descriptor)
        Shutdown(clean=False, boot_id=boot_id()).store(directory)  # when what there is has been judged

    def _load_before(self, path: Path) -> list[StoredRequest]:
        """The entries of a file of version 1, which is cut behind its last whole record."""
        segment = _Segment(path, 0)
        segment.size_bytes = 0
        entries = []
        for serial, request, data_bytes, end in _records_before(path.read_bytes()):
            segment.size_bytes = end
            if request:
                entries.append((serial, request, data_bytes))
                segment.add(serial, end - data_bytes)
            else:
                self._floor = serial
        os.truncate(path, segment.size_bytes)
        self._segments.append(segment)
        return entries

    def _load(self, path: Path, *, may_be_torn: bool, lost_power: bool) -> list[StoredRequest]:
        """The entries of a file, which is cut behind its last whole record. VolumeDamaged, OSError."""
        content = path.read_bytes()
        seed = _seed_of(content)
        if seed is None:
            raise self._damaged(path, 0, "its header cannot be read")
        segment = _Segment(path, seed)
        # Of a file that was cut to its header its name alone says how far records had got. What comes next
        # stands in files of higher names.
        self._index = max(self._index, self._first_index(path) - 1)
        entries = []
        read_at = partial(_whole_at, memoryview(content), seed)
        for offset, whole in in_order(read_at, segment.size_bytes, self._index):
            record = _record_at(content, offset)
            segment.size_bytes, self._index = whole.end, record.number
            self._floor = max(self._floor, record.floor)
            if record.request:
                entries.append((record.serial, record.request, len(record.data)))
                segment.add(record.serial, whole.end - len(record.data))
        cut_torn_tail(
            path,
            len(content),
            read_at,
            bad=segment.size_bytes,
            last=self._index,
            may_be_torn=may_be_torn,
            lost_power=lost_power,
            damaged=self._damaged,
        )
        self._segments.append(segment)
        return entries

    def _first_index(self, path: Path) -> int:
        try:
            return int(path.stem, 16)
        except ValueError:
            raise self._damaged(path, 0, "no file of a store has such a name") from None

    def _damaged(
        self, path: Path, offset: int, why: str = "a record cannot be read, and was whole: others follow it"
    ) -> VolumeDamaged:
        return VolumeDamaged(self._directory.parent, f"staged requests: {path.name} at byte {offset}: {why}")

    def _make_segment(self) -> _Segment:
        """A new, empty file under its name: its header is whole after any crash that leaves the name."""
        seed = self._seams.random_bytes(SEED_BYTES)
        header = _HEADER.pack(_MAGIC, _VERSION, 0) + seed
        path = self._directory / f"{self._index + 1:016x}.requests"
        make_file(path, with_checksum(header), self._seams)
        sync_directory(self._directory)
        return _Segment(path, int.from_bytes(seed, "little"))

    def configure(self, capacity_bytes: float, memory_bytes: float) -> None:
        super().configure(math.inf, memory_bytes)

    async def _store(self, entries: Iterable[StoredEntry], ended: Iterable[int]) -> None:
        first = self.order.oldest
        floor = self.order.last_serial + 1 if first is None else first.serial
        await self._seams.run_blocking(self._store_blocking, list(entries), floor)

    def _store_blocking(self, entries: list[StoredEntry], floor: int) -> None:
        try:
            self._write(entries, floor)
        except OSError as error:
            raise DiskFailed(self._directory, error) from error

    def _write(self, entries: list[StoredEntry], floor: int) -> None:
        """Durably on return. OSError: nothing of the entries is there; StoreInDoubt: it may be."""
        self._cut_surplus()
        if not entries and all(segment.last < floor for segment in self._segments):
            self._clear(floor)
        elif entries or floor > self._floor:
            self._append(entries or [(0, b"", b"")], floor)
        self._floor = floor
        with suppress(OSError):  # the entries are there all the same; it is tried again at the next write
            self._remove_ended(floor)

    def _append(self, entries: list[StoredEntry], floor: int) -> None:
        if self._segments[-1].size_bytes >= STAGING_SEGMENT_BYTES:
            self._begin_segment()
        segment = self._segments[-1]
        records = [
            _pack(_Staged(self._index + count, self._durable, floor, *entry), segment.seed)
            for count, entry in enumerate(entries, 1)
        ]
        try:
            append_behind(self._descriptor, b"".join(records), segment.size_bytes)
            self._seams.fdatasync(self._descriptor)
        except OSError as error:
            # Some of it may stand there whole, for the next mount to take up, and the primary's answers come
            # first now. So it is cut off, and durably: a sync that fails says nothing of what the disk has.
            self._has_surplus = True
            try:
                self._cut_surplus()
            except OSError:
                raise StoreInDoubt(self._directory, error) from error
            raise
        # Counted now and not before, so that all that counts is durable: the kernel may have dropped what a
        # failed sync was for, and then the next one that succeeds says nothing of it.
        self._index += len(entries)
        self._durable = self._index
        for (serial, request, data), record in zip(entries, records, strict=True):
            segment.size_bytes += len(record)
            if request:
                segment.add(serial, segment.size_bytes - len(data))

    def _cut_surplus(self) -> None:
        """On return the last file durably ends where what counts does. OSError."""
        if self._has_surplus:
            os.ftruncate(self._descriptor, self._segments[-1].size_bytes)
            self._seams.fdatasync(self._descriptor)
            self._has_surplus = False

    def _begin_segment(self) -> None:
        # The next file may only count once this one is whole: a floor in it stands on these records.
        self._seams.fdatasync(self._descriptor)
        segment = self._make_segment()
        descriptor = os.open(segment.path, _APPEND, 0o600)
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._segments.append(segment)

    def _clear(self, floor: int) -> None:
        """All has ended: one empty file is left. OSError: all that was there may be, or a part."""
        self._remove_ended(floor)
        if self._removed_any:
            # Only the floor in the last file says that those had ended, should a power cut bring them back.
            sync_directory(self._directory)
            self._removed_any = False
        self._segments[-1].clear()
        self._has_surplus = True
        self._cut_surplus()

    def _remove_ended(self, floor: int) -> None:
        """Remove the files below the floor, which is durable or is not needed, but for the last. OSError."""
        while len(self._segments) > 1 and self._segments[0].last < floor:
            # The oldest goes first, so that what is left is always the end.
            self._segments[0].path.unlink(missing_ok=True)
            del self._segments[0]
            self._removed_any = True

    def _read(self, serial: int, start: int, end: int) -> bytes:
        for segment in reversed(self._segments):
            place = segment.place_of(serial)
            if place is not None:
                descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    return os.pread(descriptor, end - start, place + start)
                finally:
                    os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._directory))

    def stored_count(self) -> int:
        return sum(staged.destaged for staged in self._staged.values()) + len(self.destaging.in_store)

    def close(self) -> None:
        with suppress(OSError):  # on a full disk; it then counts as that of a killed process
            self._cut_surplus()
            Shutdown(clean=True, boot_id=boot_id()).store(self._directory)
        os.close(self._descriptor)


def _pack(staged: _Staged, seed: int) -> bytes:
    number, durable, floor, serial, request, data = staged
    body = _RECORD.pack(number, durable, floor, serial, len(request), len(data)) + request + data
    return seal(body, seed)


def _seed_of(content: bytes) -> int | None:
    """None where the header is not whole, or is of another version."""
    header = content[: _SEED_AT + SEED_BYTES]
    if len(content) < _HEADER_BYTES or not is_checked(content[:_HEADER_BYTES]):
        return None
    magic, version, _ = _HEADER.unpack_from(header)
    return int.from_bytes(header[_SEED_AT:], "little") if (magic, version) == (_MAGIC, _VERSION) else None


def _whole_at(view: memoryview, seed: int, start: int) -> Whole | None:
    if start + _PREFIX_BYTES > len(view):
        return None
    index, durable, _, _, request_bytes, data_bytes = _RECORD.unpack_from(view, start + CHECKSUM_BYTES)
    end = start + _PREFIX_BYTES + request_bytes + data_bytes
    if end > len(view) or request_bytes + data_bytes > MESSAGE_BYTES_MAX + DATA_BYTES_MAX:
        return None
    if not is_sealed(view, start, end, seed):
        return None
    return Whole(index, durable, end)


def _record_at(content: bytes, start: int) -> _Staged:
    """The record that begins there; it is whole."""
    *numbers, request_bytes, data_bytes = _RECORD.unpack_from(content, start + CHECKSUM_BYTES)
    number, durable, floor, serial = numbers
    middle = start + _PREFIX_BYTES + request_bytes
    request, data = content[start + _PREFIX_BYTES : middle], content[middle : middle + data_bytes]
    return _Staged(number, durable, floor, serial, request, data)


def _records_before(content: bytes) -> Iterator[tuple[int, bytes, int, int]]:
    """Serial, request, length of the data, and end of each record of version 1, up to the first that is not
    whole."""
    start = 0
    while start + _PREFIX_BEFORE_BYTES <= len(content):
        serial, request_bytes, data_bytes = _RECORD_BEFORE.unpack_from(content, start + CHECKSUM_BYTES)
        middle = start + _PREFIX_BEFORE_BYTES + request_bytes
        end = middle + data_bytes
        if end > len(content) or not is_sealed(memoryview(content), start, end, 0):
            return
        yield serial, content[start + _PREFIX_BEFORE_BYTES : middle], data_bytes, end
        start = end


# --- repair ---------------------------------------------------------------------------------------------


def check_staged(directory: Path, *, repair: bool, report: Callable[[str], None]) -> bool:
    """Whether the staged requests in `directory` can be read; with `repair` what is whole of them is kept.

    `report` gets a line for what is wrong, and one for what a repair kept. VolumeError, OSError;
    RefusedForSafety, with nothing changed, where something is mounted there that would have to be moved.
    """
    if was_cut_short(directory):
        what = "staged requests: a repair was cut short before what it kept had taken their place"
        report(f"{what}: finished" if repair else what)
        if repair:
            finish_repair(directory)
            check_staged(directory, repair=True, report=report)
        return False
    if not any(directory.glob("*.requests")):
        return True
    try:
        _opened_to_repair(directory).close()
    except VolumeDamaged as error:
        if repair:
            check_movable(directory)
        report(f"{error}: repaired" if repair else str(error))
        if repair:
            _salvage(directory, report)
        return False
    return True


def was_cut_short(directory: Path) -> bool:
    """Whether a repair of the staged requests in `directory` moved them away, and what it kept is not there
    yet."""
    return not directory.is_dir() and _fresh(directory).is_dir()


def finish_repair(directory: Path) -> None:
    """On return what a repair kept that was cut short is durably there. OSError: it can be done again."""
    if was_cut_short(directory):
        _fresh(directory).rename(directory)
        sync_directory(directory.parent)


def _fresh(directory: Path) -> Path:
    """Where a repair puts what it keeps. While the old store is there, too, it may be half made."""
    return directory.with_name("staged.new")


def _opened_to_repair(directory: Path) -> SubvolumeCommunicationVolume:
    """One that stages nothing."""
    return SubvolumeCommunicationVolume(directory, 0, Seams())


def _salvage(directory: Path, report: Callable[[str], None]) -> None:
    """Put a fresh store with the whole records in the place of the old one, which is kept as lost-staged."""
    fresh = _fresh(directory)
    if fresh.is_dir():
        shutil.rmtree(fresh)
    floor, index, lost_bytes = 0, 0, 0
    kept: dict[int, StoredEntry] = {}
    for path in sorted(directory.glob("*.requests")):
        content = path.read_bytes()
        seed = _seed_of(content)
        if seed is None:
            lost_bytes += len(content)
            continue
        end = _HEADER_BYTES
        # From the byte before the first record on: all of them stand behind that.
        for offset, whole in tails.records_behind(
            partial(_whole_at, memoryview(content), seed), len(content), end - 1, index
        ):
            record = _record_at(content, offset)
            lost_bytes += offset - end
            end, index, floor = whole.end, record.number, max(floor, record.floor)
            if record.request:
                kept[record.serial] = (record.serial, record.request, record.data)
        lost_bytes += len(content) - end
    entries = [entry for serial, entry in sorted(kept.items()) if serial >= floor]
    store = _opened_to_repair(fresh)
    store._write(entries, floor)
    store.close()
    # Whole and durable, with its name, before the old one goes: from then on `finish_repair` takes it.
    sync_directory(directory.parent)
    old = unused(directory.with_name("lost-staged"))
    staged, lost = counted(len(entries), "staged request"), counted(lost_bytes, "byte")
    report(
        f"kept: {staged}; lost: {lost} of others, writes of this host that were acknowledged early, which the"
        f" other host may not have; the old files are in {old.name}"
    )  # before it can be cut short: who finishes it does not know
    directory.rename(old)
    sync_directory(directory.parent)
    finish_repair(directory)
