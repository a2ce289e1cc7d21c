"""The journal: numbered records in their order, in append-only files called segments.

A segment is named by, and begins at, the number after the last record before it. Its header:

    8s magic · u32 format version · u32 flags · u64 first number · u64 checksum of all that

Its records:

    u64 checksum of the rest · u32 payload length · u64 number · u64 note · payload

The note is one number of the writer's own. Numbers grow and may leave gaps. What a killed process or
a power cut leaves half written is the end of the last segment; it is cut off at the next opening.
A segment flagged as a fresh start makes everything before it void.
"""

import contextlib
import os
import re
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash

from fusemirror.errors import DiskFailed, FusemirrorError, VolumeDamaged, VolumeFormat
from fusemirror.identifiers import ChangeNumber
from fusemirror.limits import JOURNAL_RECORD_BYTES_MAX, JOURNAL_SEGMENT_BYTES
from fusemirror.seams import Seams
from fusemirror.volume.durable import append_whole, sync_directory

_SEGMENT_NAME = re.compile(r"[0-9a-f]{16}\.log")
_MAGIC = b"fmjourna"
_VERSION = 1
_FRESH_START = 1
_HEADER = struct.Struct("<8sIIQ")
_HEADER_BYTES = _HEADER.size + 8
_CHECKSUM = struct.Struct("<Q")
_RECORD = struct.Struct("<IQQ")
_PREFIX_BYTES = _CHECKSUM.size + _RECORD.size
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC


class Record(NamedTuple):
    """One record and the writer's own note."""

    number: ChangeNumber
    payload: bytes
    note: int


class _Segment:
    """A file of the journal: numbers from `first` to `last` (first - 1 while it is empty)."""

    __slots__ = ("first", "last", "path", "size_bytes")

    def __init__(self, path: Path, first: int) -> None:
        self.path = path
        self.first = first
        self.last = first - 1
        self.size_bytes = _HEADER_BYTES


class _Place(NamedTuple):
    """Where the record after record `number` begins."""

    number: int
    segment: _Segment | None
    offset: int


class Journal:
    """Appending and cutting belong to the event loop's thread; `sync` is thread-safe."""

    def __init__(self, directory: Path, seams: Seams) -> None:
        """Scan all segments, and cut off what the end of the last one holds only half.

        VolumeDamaged for a damage that no crash explains, VolumeFormat, OSError.
        """
        self._directory = directory
        self._volume = directory.parent  # what messages name
        self._seams = seams
        self._lock = threading.Lock()  # held by the one thread that syncs
        self._failed: str | None = None
        self._before_last = (_HEADER_BYTES, 0)  # size and last number of the segment before its last record
        self.cut_bytes = 0
        self._segments = self._scan() or [self._create_segment(1, 0)]
        self.last_number = ChangeNumber(self._segments[-1].last)
        # What a killed process left may not be durable, so the first sync covers everything.
        self.durable_number = ChangeNumber(0)
        self._names_unsynced = True
        *behind, self._descriptor = [os.open(segment.path, _APPEND) for segment in self._segments]
        self._behind: list[int] = behind  # descriptors of full segments that are not durable yet
        self._resume = _Place(-1, None, 0)

    @property
    def first_number(self) -> ChangeNumber:
        """Every record with this number or a higher one is still held; last_number + 1 when empty."""
        return ChangeNumber(self._segments[0].first)

    @property
    def is_durable(self) -> bool:
        """Whether a sync has nothing to do."""
        return self.durable_number >= self.last_number

    @property
    def size_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self._segments)

    def append(self, number: ChangeNumber, payload: bytes | memoryview, note: int = 0) -> None:
        """On return the record is written, though not durable. OSError: nothing of it stays."""
        if self._failed is not None:
            raise DiskFailed(self._volume, self._failed)
        if number <= self.last_number or len(payload) > JOURNAL_RECORD_BYTES_MAX:
            raise FusemirrorError(f"record {number} of {len(payload)} bytes after record {self.last_number}")
        segment = self._segments[-1]
        if segment.size_bytes >= JOURNAL_SEGMENT_BYTES:
            segment = self._begin_segment(number)
        body = _RECORD.pack(len(payload), number, note) + payload
        record = _CHECKSUM.pack(xxhash.xxh3_64_intdigest(body)) + body
        try:
            append_whole(self._descriptor, record)
        except OSError:
            self._cut(segment.size_bytes)
            raise
        self._before_last = segment.size_bytes, segment.last
        segment.size_bytes += len(record)
        segment.last = self.last_number = number

    def retract(self, number: ChangeNumber) -> None:
        """Take back record `number`, the newest, which came to nothing. Once only. DiskFailed."""
        with self._lock:  # a sync under way may be about to call it durable
            if number != self.last_number:
                raise FusemirrorError(f"record {number} is not the last of the journal")
            segment = self._segments[-1]
            segment.size_bytes, segment.last = self._before_last
            self._cut(segment.size_bytes)
            self.last_number = ChangeNumber(segment.last)
            self.durable_number = min(self.durable_number, self.last_number)

    def records(self, after: int) -> Iterator[tuple[ChangeNumber, bytes]]:
        """The records with numbers above `after`, in their order, as the files hold them."""
        for number, payload, _ in self.notes(after):
            yield number, payload

    def notes(self, after: int) -> Iterator[Record]:
        """The same with their notes. OSError, also where it was trimmed meanwhile."""
        resume = self._resume
        for segment in list(self._segments):
            if segment.last <= after:
                continue
            # A reader that comes back for more goes on where it stopped.
            resumes = resume.number == after and resume.segment is segment
            start = resume.offset if resumes else _HEADER_BYTES
            with segment.path.open("rb") as file:
                file.seek(start)
                content = file.read(segment.size_bytes - start)
            for record, end in _records(content):
                if record.number > after:
                    self._resume = _Place(record.number, segment, start + end)
                    yield record

    def sync(self) -> None:
        """On return everything appended before the call is durable. Thread-safe.

        Concurrent calls share: one that waited while another did its work has nothing left to do.
        DiskFailed, and for ever: the kernel may have dropped what it could not write.
        """
        with self._lock:
            if self._failed is not None:
                raise DiskFailed(self._volume, self._failed)
            # In this order: a segment begun meanwhile has put the one before it into `_behind`.
            number = self.last_number
            if self.durable_number >= number:
                return
            active = self._descriptor
            behind = list(self._behind)
            try:
                self._sync_files(active, behind)
            except OSError as error:
                self._failed = str(error)
                raise DiskFailed(self._volume, error) from error
            self.durable_number = number

    def trim(self, number: int, *, keep_bytes: int = 0) -> None:
        """Remove segments that hold no record above `number`, while there are more than `keep_bytes`.

        The last segment stays. OSError.
        """
        while len(self._segments) > 1 and self._segments[0].last <= number and self.size_bytes > keep_bytes:
            # The first name goes first, so that what is left is always the end of the journal.
            self._segments[0].path.unlink(missing_ok=True)
            del self._segments[0]

    def restart(self, number: ChangeNumber) -> None:
        """On return the journal is durably empty, and its next record comes after `number`. OSError."""
        with self._lock:
            old, active = self._segments, self._descriptor
            for path in [segment.path for segment in old if segment.first > number]:
                path.unlink(missing_ok=True)  # they would stand behind the fresh start
            fresh = self._create_segment(number + 1, _FRESH_START)
            self._descriptor = os.open(fresh.path, _APPEND)
            sync_directory(self._directory)
            self._segments = [fresh]
            self.last_number = self.durable_number = number
            self._names_unsynced = False
            os.close(active)
            self._close_behind()
            for segment in old:
                if segment.path != fresh.path:
                    segment.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the files; nothing is synced."""
        with self._lock:
            os.close(self._descriptor)
            self._close_behind()

    # --- writing -------------------------------------------------------------------------------------

    def _begin_segment(self, number: ChangeNumber) -> _Segment:
        # Or a power cut could leave the new one behind one that is torn: only the last may be.
        try:
            self._seams.fdatasync(self._descriptor)
        except OSError as error:
            self._failed = str(error)
            raise DiskFailed(self._volume, error) from error
        segment = self._create_segment(self.last_number + 1, 0)
        descriptor = os.open(segment.path, _APPEND)
        self._names_unsynced = True
        self._behind.append(self._descriptor)
        self._descriptor = descriptor
        self._segments.append(segment)
        return segment

    def _create_segment(self, first: int, flags: int) -> _Segment:
        """A segment under its name: its header is whole after any crash that leaves the name."""
        header = _HEADER.pack(_MAGIC, _VERSION, flags, first)
        path = self._directory / f"{first:016x}.log"
        temporary = self._directory / "new"
        with temporary.open("wb") as file:
            file.write(header + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(header)))
            file.flush()
            self._seams.fsync(file.fileno())
        temporary.replace(path)
        return _Segment(path, first)

    def _cut(self, size_bytes: int) -> None:
        try:
            os.ftruncate(self._descriptor, size_bytes)
        except OSError as error:
            self._failed = str(error)  # what stands behind can no longer be trusted
            raise DiskFailed(self._volume, error) from error

    def _sync_files(self, active: int, behind: list[int]) -> None:
        names_unsynced, self._names_unsynced = self._names_unsynced, False
        for descriptor in behind:
            self._seams.fdatasync(descriptor)
            self._behind.remove(descriptor)
            os.close(descriptor)
        self._seams.fdatasync(active)
        if names_unsynced:
            sync_directory(self._directory)

    def _close_behind(self) -> None:
        for descriptor in self._behind:
            os.close(descriptor)
        self._behind.clear()

    # --- opening -------------------------------------------------------------------------------------

    def _scan(self) -> list[_Segment]:
        with contextlib.suppress(FileNotFoundError):
            (self._directory / "new").unlink()
        segments: list[_Segment] = []
        paths = self._since_fresh_start()
        for path in paths:
            segment = self._scan_segment(path, is_last=path == paths[-1])
            if segments and segments[-1].last + 1 != segment.first:
                raise VolumeDamaged(self._volume, f"journal: records before {path.name} are missing")
            segments.append(segment)
        return segments

    def _since_fresh_start(self) -> list[Path]:
        """The segments that count. What a power cut brought back of those before is removed, torn or not."""
        paths = sorted(self._directory.glob("*.log"))
        for path in paths:
            if not _SEGMENT_NAME.fullmatch(path.name):
                raise VolumeDamaged(self._volume, f"journal: stray file {path.name}")
        for index in reversed(range(len(paths))):
            with paths[index].open("rb") as file:
                flags = self._check_header(file.read(_HEADER_BYTES), _first_number(paths[index]))
            if flags is not None and flags & _FRESH_START:
                for void in paths[:index]:
                    void.unlink()
                return paths[index:]
        return paths

    def _scan_segment(self, path: Path, *, is_last: bool) -> _Segment:
        segment = _Segment(path, _first_number(path))
        content = path.read_bytes()
        if self._check_header(content, segment.first) is None:
            self._damage(path, 0, is_last)
            self.cut_bytes += len(content)
            return self._create_segment(segment.first, 0)
        for record, end in _records(content[_HEADER_BYTES:]):
            if record.number <= segment.last:
                break
            self._before_last = segment.size_bytes, segment.last
            segment.last, segment.size_bytes = record.number, _HEADER_BYTES + end
        if segment.size_bytes < len(content):
            self._damage(path, segment.size_bytes, is_last)
            self.cut_bytes += len(content) - segment.size_bytes
            os.truncate(path, segment.size_bytes)
        return segment

    def _check_header(self, content: bytes, first: int) -> int | None:
        """The flags of a segment; None where its header is not whole."""
        header, rest = content[: _HEADER.size], content[_HEADER.size : _HEADER_BYTES]
        if len(rest) < 8 or _CHECKSUM.pack(xxhash.xxh3_64_intdigest(header)) != rest:
            return None
        magic, version, flags, stored_first = _HEADER.unpack(header)
        if magic != _MAGIC or stored_first != first:
            return None
        if version != _VERSION:
            raise VolumeFormat(self._volume, f"{version} of its journal", _VERSION)
        return int(flags)

    def _damage(self, path: Path, offset: int, is_last: bool) -> None:
        if not is_last:
            raise VolumeDamaged(self._volume, f"journal: {path.name} at byte {offset}")


def _first_number(path: Path) -> int:
    return int(path.stem, 16)


def _records(content: bytes) -> Iterator[tuple[Record, int]]:
    """The whole records of some bytes, each with the offset of its end; stops at the first that is not."""
    start = 0
    view = memoryview(content)
    while start + _PREFIX_BYTES <= len(content):
        length, number, note = _RECORD.unpack_from(content, start + _CHECKSUM.size)
        end = start + _PREFIX_BYTES + length
        if end > len(content):
            return
        (checksum,) = _CHECKSUM.unpack_from(content, start)
        if xxhash.xxh3_64_intdigest(view[start + _CHECKSUM.size : end]) != checksum:
            return
        yield Record(number, content[start + _PREFIX_BYTES : end], note), end
        start = end
