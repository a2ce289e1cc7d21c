"""Requests staged inside the subvolume's own store (seed [0065]-[0069], second example).

There is no communication volume to define: requests stand in append-only files in the volume's
directory, and share its free space. One fdatasync makes durable all that came together. A record:

    u64 checksum of the rest · u64 serial · u32 request length · u32 data length · request · data

One without a request says that everything with a lower serial has ended. A file is removed once all
in it have; where nothing is pending, the last one is cut to nothing. What a crash left half written
is the end of the last file, and is cut off at the next opening.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from fusemirror.communication.volume import CommunicationVolume, Entry
from fusemirror.errors import DiskFailed
from fusemirror.limits import STAGING_SEGMENT_BYTES
from fusemirror.seams import Seams
from fusemirror.volume.durable import append_whole, sync_directory

_CHECKSUM = struct.Struct("<Q")
_RECORD = struct.Struct("<QII")
_PREFIX_BYTES = _CHECKSUM.size + _RECORD.size
_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class _Segment:
    """One file, and the highest serial in it."""

    __slots__ = ("last", "path", "size_bytes")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = 0
        self.size_bytes = 0


class SubvolumeCommunicationVolume(CommunicationVolume):
    """The store belongs to one thread at a time: `run` awaits each batch before the next."""

    kind = "subvolume"

    def __init__(self, directory: Path, capacity_bytes: int, seams: Seams) -> None:
        super().__init__(capacity_bytes)
        self._directory = directory
        self._seams = seams
        directory.mkdir(mode=0o700, exist_ok=True)
        self._floor = 0
        self._segments: list[_Segment] = []
        found: list[Entry] = []
        for path in sorted(directory.glob("*.staged")):
            found.extend(self._load(path))
        self._serial = max(0, self._floor - 1)
        self._take_up(entry for entry in found if entry[0] >= self._floor)
        if not self._segments:
            self._segments = [_Segment(directory / f"{self._serial + 1:016x}.staged")]
        self._descriptor = os.open(self._segments[-1].path, _APPEND, 0o600)
        sync_directory(directory)

    def _load(self, path: Path) -> list[Entry]:
        """The entries of a file, which is cut behind its last whole record."""
        segment = _Segment(path)
        entries = []
        for serial, request, data, end in _records(path.read_bytes()):
            segment.size_bytes = end
            if request:
                entries.append((serial, request, data))
                segment.last = serial
            else:
                self._floor = serial
        os.truncate(path, segment.size_bytes)
        self._segments.append(segment)
        return entries

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
        else:
            records = [_pack(*entry) for entry in entries]
            if floor > self._floor:
                records.append(_pack(floor, b"", b""))
            self._append(b"".join(records), last=max((serial for serial, _, _ in entries), default=0))
        self._seams.fdatasync(self._descriptor)
        self._floor = floor
        while len(self._segments) > 1 and self._segments[0].last < floor:
            # The oldest goes first, so that what is left is always the end.
            os.unlink(self._segments.pop(0).path)

    def _append(self, records: bytes, *, last: int) -> None:
        if self._segments[-1].size_bytes >= STAGING_SEGMENT_BYTES:
            self._begin_segment()
        segment = self._segments[-1]
        try:
            append_whole(self._descriptor, records)
        except OSError:
            os.ftruncate(self._descriptor, segment.size_bytes)
            raise
        segment.size_bytes += len(records)
        segment.last = max(segment.last, last)

    def _begin_segment(self) -> None:
        # The next file may only count once this one is whole: a floor in it stands on these records.
        self._seams.fdatasync(self._descriptor)
        segment = _Segment(self._directory / f"{self._segments[-1].last + 1:016x}.staged")
        descriptor = os.open(segment.path, _APPEND, 0o600)
        sync_directory(self._directory)
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._segments.append(segment)

    def _clear(self) -> None:
        for segment in self._segments[:-1]:
            os.unlink(segment.path)
        del self._segments[:-1]
        os.ftruncate(self._descriptor, 0)
        self._segments[0].size_bytes = 0

    def stored_count(self) -> int:
        return sum(staged.destaged for staged in self._staged.values()) + len(self._leaving + self._removing)

    def close(self) -> None:
        os.close(self._descriptor)


def _pack(serial: int, request: bytes, data: bytes) -> bytes:
    body = _RECORD.pack(serial, len(request), len(data)) + request + data
    return _CHECKSUM.pack(xxhash.xxh3_64_intdigest(body)) + body


def _records(content: bytes) -> Iterator[tuple[int, bytes, bytes, int]]:
    """Serial, request, data and end of each record, up to the first that is not whole."""
    start = 0
    while start + _PREFIX_BYTES <= len(content):
        serial, request_bytes, data_bytes = _RECORD.unpack_from(content, start + _CHECKSUM.size)
        middle = start + _PREFIX_BYTES + request_bytes
        end = middle + data_bytes
        body = content[start + _CHECKSUM.size : end]
        if end > len(content) or _CHECKSUM.unpack_from(content, start)[0] != xxhash.xxh3_64_intdigest(body):
            return
        yield serial, content[start + _PREFIX_BYTES : middle], content[middle:end], end
        start = end
