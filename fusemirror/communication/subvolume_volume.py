"""Requests staged inside the subvolume's own store (seed [0065]-[0069], second example).

There is no communication volume to define: requests stand in append-only files in the volume's
directory, and share its free space. One fdatasync makes durable all that came together. A file has a header:

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

import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import xxhash

from fusemirror.communication.volume import CommunicationVolume, Entry
from fusemirror.errors import DiskFailed, VolumeDamaged
from fusemirror.limits import DATA_BYTES_MAX, MESSAGE_BYTES_MAX, STAGING_SEGMENT_BYTES
from fusemirror.printable import counted
from fusemirror.seams import Seams
from fusemirror.volume import tails
from fusemirror.volume.durable import append_behind, sync_directory, unused
from fusemirror.volume.identity import State, boot_id
from fusemirror.volume.tails import SEED_BYTES, Whole

_MAGIC = b"fmstaged"
_VERSION = 2
_HEADER = struct.Struct("<8sII")
_CHECKSUM = struct.Struct("<Q")
_SEED_AT = _HEADER.size
_HEADER_BYTES = _SEED_AT + SEED_BYTES + _CHECKSUM.size
_RECORD = struct.Struct("<QQQQII")
_PREFIX_BYTES = _CHECKSUM.size + _RECORD.size
_RECORD_BEFORE = struct.Struct("<QII")  # of version 1
_PREFIX_BEFORE_BYTES = _CHECKSUM.size + _RECORD_BEFORE.size
_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class _Segment:
    """One file, and the highest serial in it."""

    __slots__ = ("last", "path", "seed", "size_bytes")

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.seed = seed
        self.last = 0
        self.size_bytes = _HEADER_BYTES


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

    def __init__(self, directory: Path, capacity_bytes: int, seams: Seams) -> None:
        super().__init__(capacity_bytes)
        self._directory = directory
        self._seams = seams
        directory.mkdir(mode=0o700, exist_ok=True)
        self._floor = 0
        self._index = 0  # of the last record
        self._durable = 0  # what a killed process left may not be durable
        self._segments: list[_Segment] = []
        state = State.load(directory)
        found = [entry for path in sorted(directory.glob("*.staged")) for entry in self._load_before(path)]
        paths = sorted(directory.glob("*.requests"))
        for path in paths:
            may_be_torn = path == paths[-1]
            found.extend(self._load(path, may_be_torn=may_be_torn, lost_power=state.lost_power))
        self._serial = max(0, self._floor - 1)
        self._take_up(entry for entry in found if entry[0] >= self._floor)
        if not paths:
            self._segments.append(self._make_segment())
        self._descriptor = os.open(self._segments[-1].path, _APPEND, 0o600)
        State(clean=False, boot_id=boot_id()).store(directory)  # when what there is has been judged

    def _load_before(self, path: Path) -> list[Entry]:
        """The entries of a file of version 1, which is cut behind its last whole record."""
        segment = _Segment(path, 0)
        segment.size_bytes = 0
        entries = []
        for serial, request, data, end in _records_before(path.read_bytes()):
            segment.size_bytes = end
            if request:
                entries.append((serial, request, data))
                segment.last = serial
            else:
                self._floor = serial
        os.truncate(path, segment.size_bytes)
        self._segments.append(segment)
        return entries

    def _load(self, path: Path, *, may_be_torn: bool, lost_power: bool) -> list[Entry]:
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
        while (whole := read_at(segment.size_bytes)) is not None and whole.number > self._index:
            record = _record_at(content, segment.size_bytes)
            segment.size_bytes, self._index = whole.end, record.number
            self._floor = max(self._floor, record.floor)
            if record.request:
                entries.append((record.serial, record.request, record.data))
                segment.last = max(segment.last, record.serial)
        bad = segment.size_bytes
        if bad < len(content):
            if not may_be_torn or tails.is_damage(
                read_at, len(content), bad, self._index, lost_power=lost_power
            ):
                raise self._damaged(path, bad, "a record cannot be read, and was whole: others follow it")
            os.truncate(path, bad)
        self._segments.append(segment)
        return entries

    def _first_index(self, path: Path) -> int:
        try:
            return int(path.stem, 16)
        except ValueError:
            raise self._damaged(path, 0, "no file of a store has such a name") from None

    def _damaged(self, path: Path, offset: int, why: str) -> VolumeDamaged:
        return VolumeDamaged(self._directory.parent, f"staged requests: {path.name} at byte {offset}: {why}")

    def _make_segment(self) -> _Segment:
        """A new, empty file under its name: its header is whole after any crash that leaves the name."""
        seed = self._seams.random_bytes(SEED_BYTES)
        header = _HEADER.pack(_MAGIC, _VERSION, 0) + seed
        path = self._directory / f"{self._index + 1:016x}.requests"
        temporary = self._directory / "new"
        with temporary.open("wb") as file:
            file.write(header + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(header)))
            file.flush()
            self._seams.fsync(file.fileno())
        temporary.replace(path)
        sync_directory(self._directory)
        return _Segment(path, int.from_bytes(seed, "little"))

    def has_room(self, size_bytes: int) -> bool:
        """As everywhere; and at most half of what is free is taken at one go."""
        if not super().has_room(size_bytes):
            return False
        return not self._staged or 2 * size_bytes <= self._free_bytes()

    def _free_bytes(self) -> int:
        of_disk = os.statvfs(self._directory)
        return of_disk.f_bavail * of_disk.f_frsize

    async def _store(self, entries: Iterable[Entry], ended: Iterable[int]) -> None:
        first = next(iter(self._staged.values()), None)
        floor = self._serial + 1 if first is None else first.serial
        await self._seams.run_blocking(self._store_blocking, list(entries), floor)

    def _store_blocking(self, entries: list[Entry], floor: int) -> None:
        try:
            self._write(entries, floor)
        except OSError as error:
            raise DiskFailed(self._directory, error) from error

    def _write(self, entries: list[Entry], floor: int) -> None:
        if not entries and all(segment.last < floor for segment in self._segments):
            self._clear()
        elif entries or floor > self._floor:
            last = max((serial for serial, _, _ in entries), default=0)
            self._append(entries or [(0, b"", b"")], floor, last=last)
        self._seams.fdatasync(self._descriptor)
        self._durable = self._index
        self._floor = floor
        while len(self._segments) > 1 and self._segments[0].last < floor:
            # The oldest goes first, so that what is left is always the end.
            os.unlink(self._segments.pop(0).path)

    def _append(self, entries: list[Entry], floor: int, *, last: int) -> None:
        if self._segments[-1].size_bytes >= STAGING_SEGMENT_BYTES:
            self._begin_segment()
        segment = self._segments[-1]
        records = b"".join(
            _pack(_Staged(self._index + count, self._durable, floor, *entry), segment.seed)
            for count, entry in enumerate(entries, 1)
        )
        append_behind(self._descriptor, records, segment.size_bytes)
        self._index += len(entries)
        segment.size_bytes += len(records)
        segment.last = max(segment.last, last)

    def _begin_segment(self) -> None:
        # The next file may only count once this one is whole: a floor in it stands on these records.
        self._seams.fdatasync(self._descriptor)
        segment = self._make_segment()
        descriptor = os.open(segment.path, _APPEND, 0o600)
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._segments.append(segment)

    def _clear(self) -> None:
        for segment in self._segments[:-1]:
            os.unlink(segment.path)
        del self._segments[:-1]
        os.ftruncate(self._descriptor, _HEADER_BYTES)
        self._segments[0].size_bytes = _HEADER_BYTES
        self._segments[0].last = 0

    def stored_count(self) -> int:
        return sum(staged.destaged for staged in self._staged.values()) + len(self._leaving + self._removing)

    def close(self) -> None:
        os.close(self._descriptor)
        with suppress(OSError):  # on a full disk; it then counts as that of a killed process
            State(clean=True, boot_id=boot_id()).store(self._directory)


def _pack(staged: _Staged, seed: int) -> bytes:
    number, durable, floor, serial, request, data = staged
    body = _RECORD.pack(number, durable, floor, serial, len(request), len(data)) + request + data
    return _CHECKSUM.pack(xxhash.xxh3_64_intdigest(body, seed)) + body


def _seed_of(content: bytes) -> int | None:
    """None where the header is not whole, or is of another version."""
    header, checksum = content[: _SEED_AT + SEED_BYTES], content[_SEED_AT + SEED_BYTES : _HEADER_BYTES]
    if _CHECKSUM.pack(xxhash.xxh3_64_intdigest(header)) != checksum:
        return None
    magic, version, _ = _HEADER.unpack_from(header)
    return int.from_bytes(header[_SEED_AT:], "little") if (magic, version) == (_MAGIC, _VERSION) else None


def _whole_at(view: memoryview, seed: int, start: int) -> Whole | None:
    if start + _PREFIX_BYTES > len(view):
        return None
    index, durable, _, _, request_bytes, data_bytes = _RECORD.unpack_from(view, start + _CHECKSUM.size)
    end = start + _PREFIX_BYTES + request_bytes + data_bytes
    if end > len(view) or request_bytes + data_bytes > MESSAGE_BYTES_MAX + DATA_BYTES_MAX:
        return None
    (checksum,) = _CHECKSUM.unpack_from(view, start)
    if xxhash.xxh3_64_intdigest(view[start + _CHECKSUM.size : end], seed) != checksum:
        return None
    return Whole(index, durable, end)


def _record_at(content: bytes, start: int) -> _Staged:
    """The record that begins there; it is whole."""
    *numbers, request_bytes, data_bytes = _RECORD.unpack_from(content, start + _CHECKSUM.size)
    number, durable, floor, serial = numbers
    middle = start + _PREFIX_BYTES + request_bytes
    request, data = content[start + _PREFIX_BYTES : middle], content[middle : middle + data_bytes]
    return _Staged(number, durable, floor, serial, request, data)


def _records_before(content: bytes) -> Iterator[tuple[int, bytes, bytes, int]]:
    """Serial, request, data and end of each record of version 1, up to the first that is not whole."""
    start = 0
    while start + _PREFIX_BEFORE_BYTES <= len(content):
        serial, request_bytes, data_bytes = _RECORD_BEFORE.unpack_from(content, start + _CHECKSUM.size)
        middle = start + _PREFIX_BEFORE_BYTES + request_bytes
        end = middle + data_bytes
        body = content[start + _CHECKSUM.size : end]
        if end > len(content) or _CHECKSUM.unpack_from(content, start)[0] != xxhash.xxh3_64_intdigest(body):
            return
        yield serial, content[start + _PREFIX_BEFORE_BYTES : middle], content[middle:end], end
        start = end


# --- repair ---------------------------------------------------------------------------------------------


def check_staged(directory: Path, *, repair: bool, report: Callable[[str], None]) -> bool:
    """Whether the staged requests in `directory` can be read; with `repair` what is whole of them is kept.

    `report` gets a line for what is wrong, and one for what a repair kept. VolumeError, OSError.
    """
    if not any(directory.glob("*.requests")):
        return True
    try:
        SubvolumeCommunicationVolume(directory, 0, Seams()).close()
    except VolumeDamaged as error:
        report(f"{error}: mended" if repair else str(error))
        if repair:
            _salvage(directory, report)
        return False
    return True


def _salvage(directory: Path, report: Callable[[str], None]) -> None:
    """Put a fresh store with the whole records in the place of the old one, which is kept as lost-staged."""
    fresh = directory.with_name("staged.new")
    if fresh.is_dir():
        shutil.rmtree(fresh)
    floor, index, lost_bytes = 0, 0, 0
    kept: dict[int, Entry] = {}
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
    store = SubvolumeCommunicationVolume(fresh, 0, Seams())
    store._write(entries, floor)
    store.close()
    directory.rename(unused(directory.with_name("lost-staged")))
    fresh.rename(directory)
    sync_directory(directory.parent)
    staged, lost = counted(len(entries), "staged request"), counted(lost_bytes, "byte")
    report(
        f"kept: {staged}; lost: {lost} of others, writes of this host that were acknowledged early, which the"
        " other host may not have; the old files are in lost-staged"
    )
