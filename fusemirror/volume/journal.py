"""The journal: numbered records in their order, in append-only files called segments.

A segment is named by, and begins at, the number after the last record before it. Its header:

    8s magic · u32 format version · u32 flags · u64 first number · u64 checksum of all that
    u64 seed · u64 checksum of all that

Its records, whose checksums are made with the seed:

    u64 checksum of the rest · u32 payload length · u64 number · u64 note · u64 durable · payload

The note is one number of the writer's own; `durable` is the number up to which the journal was known to be
durable when the record was written. Segments of version 1 have no seed and their records no such number;
they are read, and not written to. Numbers grow and may leave gaps. What a killed process or a power cut
leaves half written is the end of the last segment; it is cut off at the next opening. Anything else that is
not whole is damage, see `tails.py`: opening stops, and `salvage` says what is whole all the same.
A segment flagged as a fresh start makes everything before it void.
"""

import contextlib
import os
import re
import struct
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import xxhash

from fusemirror.errors import DiskFailed, FusemirrorError, RepairCutShort, VolumeDamaged, VolumeFormat
from fusemirror.identifiers import ChangeNumber
from fusemirror.limits import JOURNAL_RECORD_BYTES_MAX, JOURNAL_SEGMENT_BYTES
from fusemirror.seams import Seams
from fusemirror.volume import tails
from fusemirror.volume.durable import append_whole, sync_directory
from fusemirror.volume.log import (
    CHECKSUM,
    CHECKSUM_BYTES,
    cut_torn_tail,
    in_order,
    is_checked,
    is_sealed,
    make_file,
    seal,
    with_checksum,
)
from fusemirror.volume.tails import SEED_BYTES, Whole

_SEGMENT_NAME = re.compile(r"[0-9a-f]{16}\.log")
_MAGIC = b"fmjourna"
JOURNAL_VERSION = _VERSION = 2
_FRESH_START = 1
_HEADER = struct.Struct("<8sIIQ")
_SEED_AT = _HEADER.size + CHECKSUM_BYTES
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC


class Record(NamedTuple):
    """One record and the writer's own note."""

    number: ChangeNumber
    payload: bytes
    note: int


class _Format(NamedTuple):
    """The layout of a version. What it lacks is 0 there: the seed, and what was durable."""

    header_bytes: int
    record: struct.Struct

    @property
    def prefix_bytes(self) -> int:
        return CHECKSUM_BYTES + self.record.size


# Version 1 stays readable: a volume of an earlier program brings such segments along, and they stay until
# they are trimmed as any other.
_FORMATS = {
    1: _Format(_SEED_AT, struct.Struct("<IQQ")),
    2: _Format(_SEED_AT + 2 * CHECKSUM_BYTES, struct.Struct("<IQQQ")),
}
_NEWEST = _FORMATS[_VERSION]


class _Header(NamedTuple):
    """What a segment says of itself; `whole` is False where it is not what was written."""

    format: _Format
    flags: int
    first: int
    seed: int
    whole: bool


class _Segment:
    """A file of the journal: numbers from `first` to `last` (first - 1 while it is empty)."""

    __slots__ = ("first", "flags", "format", "last", "path", "seed", "size_bytes")

    def __init__(self, path: Path, header: _Header) -> None:
        self.path = path
        self.first = header.first
        self.last = header.first - 1
        self.format = header.format
        self.flags = header.flags
        self.seed = header.seed
        self.size_bytes = header.format.header_bytes

    @property
    def is_empty(self) -> bool:
        return self.last < self.first


class _Place(NamedTuple):
    """Where the record after record `number` begins."""

    number: int
    segment: _Segment | None
    offset: int


class Journal:
    """All but `sync`, which is thread-safe, belongs to the event loop's thread."""

    def __init__(self, directory: Path, seams: Seams, *, lost_power: bool = False) -> None:
        """Scan all segments, and cut off what the end of the last one holds only half.

        `lost_power`: what the last process had not synced may be lost. VolumeDamaged for a damage that no
        crash explains, VolumeFormat, OSError.
        """
        self._directory = directory
        self._seams = seams
        self._lock = threading.Lock()  # held by the one thread that syncs
        self._failed: str | None = None
        self._retractions = 0  # how often numbers were given back
        # Size and last number of the last segment before its last record.
        # Of one record only: the newest alone is ever taken back, for the change that it was for.
        self._before_last = (_NEWEST.header_bytes, 0)
        self.cut_bytes = 0
        # Where there is none the volume is being made. One that has lost them all begins at 1 as well, and
        # the catalog, which is further, tells (`recovery.py`).
        self._segments = self._scan(lost_power) or [self._create_segment(1, 0)]
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
            raise DiskFailed(self._directory.parent, self._failed)
        # Refused here, as a reader would end at such a record, and call all behind it damage.
        if number <= self.last_number or len(payload) > JOURNAL_RECORD_BYTES_MAX:
            raise FusemirrorError(f"record {number} of {len(payload)} bytes after record {self.last_number}")
        segment = self._segments[-1]
        # A segment ends behind the record that fills it: none is divided.
        # Not to one of version 1: without a seed, bytes of users could pass for records there.
        if segment.size_bytes >= JOURNAL_SEGMENT_BYTES or segment.format is not _NEWEST:
            segment = self._begin_segment(number)
        # A record that said more than is durable would make a torn tail into damage; one that stood elsewhere
        # would break the order.
        assert self.durable_number <= self.last_number == segment.last
        body = _NEWEST.record.pack(len(payload), number, note, self.durable_number) + payload
        # `seal`, without the call: each write that answers a request comes here.
        record = CHECKSUM.pack(xxhash.xxh3_64_intdigest(body, segment.seed)) + body
        try:
            append_whole(self._descriptor, record)
        except OSError:
            # Half a record with whole ones behind it would be damage at the next opening.
            self._cut(segment.size_bytes)
            raise
        # Counted only now: until here `_cut` goes back to what was counted before.
        self._before_last = segment.size_bytes, segment.last
        segment.size_bytes += len(record)
        segment.last = self.last_number = number

    def retract(self, number: ChangeNumber) -> None:
        """Take back record `number`, the newest, which came to nothing. Once only. DiskFailed."""
        with self._lock:  # a sync under way may be about to call it durable
            if number != self.last_number or number < self.first_number:
                raise FusemirrorError(f"record {number} is not the last of the journal")
            if self._segments[-1].is_empty:
                self._remove_empty()
            segment = self._segments[-1]
            assert self._before_last[0] < segment.size_bytes, "what is cut off is the end of this very file"
            # For `sync_beside`, which does not hold the lock.
            self._retractions += 1
            segment.size_bytes, segment.last = self._before_last
            # Cut off before the number counts as free: where that fails nothing is appended any more, and the
            # next opening finds the record and judges it anew.
            self._cut(segment.size_bytes)
            self.last_number = ChangeNumber(segment.last)
            assert self.last_number < number, "the record before it is an older one"
            # Else the next records would call durable a number that is another record's by then, and a torn
            # tail would be damage.
            self.durable_number = min(self.durable_number, self.last_number)

    def records(self, after: int) -> Iterator[tuple[ChangeNumber, bytes]]:
        """The records with numbers above `after`, in their order, as the files hold them."""
        for number, payload, _ in self.notes(after):
            yield number, payload

    def notes(self, after: int) -> Iterator[Record]:
        """The same with their notes. OSError, also where it was trimmed meanwhile."""
        resume = self._resume
        # A copy, as segments may be trimmed while the caller does something else between two records.
        for segment in list(self._segments):
            if segment.last <= after:
                continue
            # A reader that comes back for more goes on where it stopped. None comes back behind a record that
            # was taken back: nobody has heard of that, or all is compared, as after a power cut.
            resumes = resume.number == after and resume.segment is segment
            start = resume.offset if resumes else segment.format.header_bytes
            with segment.path.open("rb") as file:
                file.seek(start)
                # No further than what counts: behind it half a record may stand that could not be cut off.
                content = file.read(segment.size_bytes - start)
            for record, end in _records(content, segment.format, segment.seed):
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
                raise DiskFailed(self._directory.parent, self._failed)
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
                raise DiskFailed(self._directory.parent, error) from error
            # Not up to what is the last by now: the loop may have appended since the files were synced.
            self.durable_number = number
            assert number <= self.last_number, "nothing is durable that was taken back"

    async def sync_beside(self) -> None:
        """`sync`, beside the loop; in a thread only where more than the last segment is to be durable, or the
        kernel does not do it alone. Cancellation waits for it."""
        if self._failed is not None:
            raise DiskFailed(self._directory.parent, self._failed)
        # Before it begins: of what is appended meanwhile it says nothing. It holds no lock, for which the
        # loop would have to wait; what goes wrong without it is told by `_retractions`.
        number, retractions = self.last_number, self._retractions
        alone = not self._behind and not self._names_unsynced
        begun = self._seams.begin_sync(self._descriptor, data_only=True) if alone else None
        if begun is None:
            await self._seams.run_blocking(self.sync)
            return
        try:
            await begun.wait_through()
        except OSError as error:
            self._failed = str(error)
            raise DiskFailed(self._directory.parent, error) from error
        # A number that was taken back meanwhile may be another record's, of which this says nothing.
        if self._retractions == retractions:
            self.durable_number = max(self.durable_number, number)
            assert self.durable_number <= self.last_number, "nothing is durable that was taken back"

    def trim(self, number: int, *, keep_bytes: int = 0) -> None:
        """Remove segments that hold no record above `number`, while there are more than `keep_bytes`.

        The last segment stays. OSError.
        """
        while self.can_trim(number, keep_bytes):
            # The first name goes first, so that what is left is always the end of the journal.
            self._segments[0].path.unlink(missing_ok=True)
            # Only once it is gone: what an error leaves can still be sent to a peer (`first_number`).
            del self._segments[0]

    def can_trim(self, number: int, keep_bytes: int) -> bool:
        """Whether `trim` would remove anything."""
        # The last one stays, empty or not: its name says which number comes next, and none may be given
        # twice.
        first = self._segments[0]
        return len(self._segments) > 1 and first.last <= number and self.size_bytes > keep_bytes

    def restart(self, number: ChangeNumber) -> None:
        """On return the journal is durably empty, and its next record comes after `number`. OSError."""
        with self._lock:
            # A sync in its thread has ended by now: it would call durable what goes here, and sync what is
            # closed.
            old, active = self._segments, self._descriptor
            # They would stand behind the fresh start. The last goes first: a crash in between must leave no
            # gap, as a journal with one does not open.
            for path in [segment.path for segment in reversed(old) if segment.first > number]:
                path.unlink(missing_ok=True)
            # Before the older ones go: until its name is durable they are the journal.
            fresh = self._create_segment(number + 1, _FRESH_START)
            self._descriptor = os.open(fresh.path, _APPEND)
            sync_directory(self._directory)
            self._segments = [fresh]
            # What a sync beside the loop is about to call durable stood in the old files.
            self._retractions += 1
            # It holds nothing yet, and its name is durable, so all of it is.
            self.last_number = self.durable_number = number
            self._names_unsynced = False
            os.close(active)
            self._close_behind()
            # Not durable, and it need not be: what a power cut brings back stands before the fresh start, and
            # is void.
            for segment in old:
                if segment.path != fresh.path:
                    segment.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the files; nothing is synced."""
        with self._lock:
            # A sync in its thread uses these, and has ended by now.
            os.close(self._descriptor)
            self._close_behind()

    # --- writing -------------------------------------------------------------------------------------

    def _begin_segment(self, number: ChangeNumber) -> _Segment:
        # Or a power cut could leave the new one behind one that is torn: only the last may be.
        try:
            self._seams.fdatasync(self._descriptor)
        except OSError as error:
            self._failed = str(error)
            raise DiskFailed(self._directory.parent, error) from error
        # The new file is there and open before this object goes by it: after an error it is as it was before.
        before = self._segments[-1]
        # An empty one of the version before gives its name, and its meaning, to the new one.
        segment = self._create_segment(self.last_number + 1, before.flags if before.is_empty else 0)
        descriptor = os.open(segment.path, _APPEND)
        # Before it can get a record: the sync that calls the first one durable syncs the name as well.
        self._names_unsynced = True
        if before.is_empty:
            self._segments.pop()
        # Not closed here, as a sync in its thread may be using it. And put behind before the new one is the
        # last: that thread looks at the two in the other order (`sync`).
        self._behind.append(self._descriptor)
        self._descriptor = descriptor
        self._segments.append(segment)
        return segment

    def _create_segment(self, first: int, flags: int) -> _Segment:
        """A segment under its name: its header is whole after any crash that leaves the name."""
        header, seed = _new_header(first, flags, self._seams)
        path = _segment_path(self._directory, first)
        make_file(path, header, self._seams)
        return _Segment(path, _Header(_NEWEST, flags, first, seed, whole=True))

    def _remove_empty(self) -> None:
        """The last segment, whose records a power cut took, is durably gone on return. DiskFailed."""
        assert len(self._segments) > 1, "the record that is taken back stands in the one before"
        # Before a record of the other is cut off: else records would be missing before its first.
        try:
            # Opened before the other is closed: after an error there is still one, for `close`.
            descriptor = os.open(self._segments[-2].path, _APPEND)
            os.close(self._descriptor)
            self._descriptor = descriptor
            self._segments.pop().path.unlink()
            sync_directory(self._directory)
        except OSError as error:
            self._failed = str(error)
            raise DiskFailed(self._directory.parent, error) from error

    def _cut(self, size_bytes: int) -> None:
        try:
            os.ftruncate(self._descriptor, size_bytes)
        except OSError as error:
            self._failed = str(error)  # what stands behind can no longer be trusted
            raise DiskFailed(self._directory.parent, error) from error

    def _sync_files(self, active: int, behind: list[int]) -> None:
        # Taken back before the sync: a segment that the loop begins meanwhile asks for the next one.
        names_unsynced, self._names_unsynced = self._names_unsynced, False
        for descriptor in behind:
            self._seams.fdatasync(descriptor)
            # Out of the list before it is closed: its number may soon be that of another file.
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

    def _scan(self, lost_power: bool) -> list[_Segment]:
        with contextlib.suppress(FileNotFoundError):
            # It was never named, so nothing in it counts.
            (self._directory / "new").unlink()
        segments: list[_Segment] = []
        paths = self._since_fresh_start()
        for path in paths:
            segment = self._scan_segment(path, is_last=path == paths[-1], lost_power=lost_power)
            # No torn tail is like that: each segment was durable before the next one had its name.
            if segments and segments[-1].last + 1 != segment.first:
                raise VolumeDamaged(
                    self._directory.parent, f"journal: records before {path.name} are missing"
                )
            segments.append(segment)
        return segments

    def _since_fresh_start(self) -> list[Path]:
        """The segments that count. What a power cut brought back of those before is removed, torn or not."""
        paths = sorted(self._directory.glob("*.log"))
        for path in paths:
            # Not passed over: it may be a segment that somebody renamed, with records that are nowhere else.
            if not _SEGMENT_NAME.fullmatch(path.name):
                raise VolumeDamaged(self._directory.parent, f"journal: stray file {path.name}")
        # From the end: what stands before the last fresh start is void, and need not even be readable.
        for index in reversed(range(len(paths))):
            with paths[index].open("rb") as file:
                header = _read_header(file.read(_NEWEST.header_bytes), paths[index])
            # A header that is not whole makes nothing void: `_scan_segment` says that it is damaged.
            if header.whole and header.flags & _FRESH_START:
                for void in paths[:index]:
                    void.unlink()
                return paths[index:]
        return paths

    def _scan_segment(self, path: Path, *, is_last: bool, lost_power: bool) -> _Segment:
        content = path.read_bytes()
        header = _read_header(content, path)
        if not header.whole:
            # It was durable before the file got its name, so no crash leaves half of it.
            raise VolumeDamaged(
                self._directory.parent, f"journal: {path.name} at byte 0: its header cannot be read"
            )
        segment = _Segment(path, header)
        read_at = _reader(content, header.format, header.seed)
        for _, whole in in_order(read_at, header.format.header_bytes, segment.last):
            # For recovery, which may have to take the last record back (`recovery.py`).
            self._before_last = segment.size_bytes, segment.last
            segment.last, segment.size_bytes = whole.number, whole.end
        self.cut_bytes += cut_torn_tail(
            path,
            len(content),
            read_at,
            bad=segment.size_bytes,
            last=segment.last,
            may_be_torn=is_last,  # a segment was durable before the next one was begun
            lost_power=lost_power,
            damaged=self._damaged,
        )
        return segment

    def _damaged(self, path: Path, offset: int) -> VolumeDamaged:
        why = "a record cannot be read, and was whole: others follow it"
        return VolumeDamaged(self._directory.parent, f"journal: {path.name} at byte {offset}: {why}")


def check_is_there(volume: Path) -> None:
    """VolumeDamaged where the volume has no journal. RepairCutShort where it has one that a repair had made.

    Repairs of versions before renamed the old one to `lost-journal`, and then `journal.new`, which was
    durable by then, to `journal`.
    """
    if (volume / "journal").is_dir():
        return
    if (volume / "journal.new").is_dir():
        raise RepairCutShort(volume)
    raise VolumeDamaged(volume, "journal is missing")


class Gap(NamedTuple):
    """Bytes of a journal that are no whole records: what stands in them is lost."""

    file: str
    offset: int
    size_bytes: int
    after: int  # the number of the last whole record before
    before: int | None  # and of the first one behind; None where there is none


class Salvage(NamedTuple):
    """All whole records of a damaged journal, in their order, and what is between them."""

    records: list[Record]
    gaps: list[Gap]


def salvage(directory: Path) -> Salvage:
    """What can still be read of a journal that does not open. VolumeFormat, OSError.

    Segments of version 1 are read up to the first record that is not whole: behind that, bytes of users could
    pass for a record.
    """
    found = Salvage([], [])
    paths = _named_as_segments(directory)
    # What stood before the first file was trimmed, and is not lost.
    last = _first_number(paths[0]) - 1 if paths else 0
    for path in paths:
        first = _first_number(path)
        # A gap that is still open covers what is missing here, too.
        if first > last + 1 and not _has_open_gap(found):  # a file is missing
            found.gaps.append(Gap(path.name, 0, 0, last, None))
        last = _salvage_segment(found, path, max(last, first - 1))
    return found


def begin_anew(directory: Path, records: list[Record], behind: ChangeNumber, seams: Seams) -> None:
    """On return the journal in `directory` durably begins anew behind that number. OSError.

    `records` are all above it that `salvage` found, and it found no gap among them. One rename decides: a
    crash before leaves the damaged journal as it is, one after it the new one, and what nobody reads any
    more. The directory stays, so that it may be where a disk is mounted.
    """
    assert all(record.number > behind for record in records), "the catalog holds what stands before the gap"
    first = behind + 1
    last = max((record.number for record in records), default=behind)
    paths = _named_as_segments(directory)
    # Only the segment with the end of the last gap, which is followed by these records, is written anew.
    whole = [path for path in paths if first < _first_number(path) <= last]
    end = min(map(_first_number, whole), default=last + 1)
    # A fresh start: what a crash leaves of the damaged files, or a power cut brings back, is void.
    header, seed = _new_header(first, _FRESH_START, seams)
    content = [header]
    for record in records:
        if record.number < end:
            # As durable it says `behind`: that much is in the catalog, which was committed before this. More
            # is not known of what was salvaged.
            body = _NEWEST.record.pack(len(record.payload), record.number, record.note, behind)
            content.append(seal(body + record.payload, seed))
    fresh = _segment_path(directory, first)
    make_file(fresh, b"".join(content), seams)
    # Durable before anything goes: else a power cut could take the new one and the old ones.
    sync_directory(directory)
    for path in set(directory.glob("*.log")) - {fresh, *whole}:
        path.unlink()


def _named_as_segments(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.glob("*.log")) if _SEGMENT_NAME.fullmatch(path.name)]


def _salvage_segment(found: Salvage, path: Path, last: int) -> int:
    """Add what a segment holds; the number of the last record so far."""
    content = path.read_bytes()
    header = _read_header(content, path)
    form, seed = header.format, header.seed
    read_at = _reader(content, form, seed)
    end = form.header_bytes
    if not header.whole:
        found.gaps.append(Gap(path.name, 0, min(end, len(content)), last, None))
    while end < len(content):
        whole = read_at(end)
        if whole is None or whole.number <= last:
            # Only the first one behind: from there on the records are in order again, up to the next gap.
            behind = next(tails.records_behind(read_at, len(content), end, last), None) if seed else None
            start = len(content) if behind is None else behind.offset
            found.gaps.append(Gap(path.name, end, start - end, last, None))
            if behind is None:
                return last
            end, whole = behind.offset, behind.record
        _end_gap(found, whole.number)
        _, number, note = form.record.unpack_from(content, end + CHECKSUM_BYTES)[:3]
        payload = content[end + form.prefix_bytes : whole.end]
        found.records.append(Record(ChangeNumber(number), payload, note))
        last, end = whole.number, whole.end
    return last


def _end_gap(found: Salvage, number: int) -> None:
    """A record with this number ends the gaps before it."""
    # From the end: this is asked for each record, and a bad disk may leave very many gaps.
    index = len(found.gaps)
    while index and found.gaps[index - 1].before is None:
        index -= 1
        found.gaps[index] = found.gaps[index]._replace(before=number)


def _has_open_gap(found: Salvage) -> bool:
    """Those that no record has ended yet are the last ones."""
    return bool(found.gaps) and found.gaps[-1].before is None


def _first_number(path: Path) -> int:
    return int(path.stem, 16)


def _segment_path(directory: Path, first: int) -> Path:
    return directory / f"{first:016x}.log"


def _new_header(first: int, flags: int, seams: Seams) -> tuple[bytes, int]:
    """The header of a new segment, and its seed."""
    seed = seams.random_bytes(SEED_BYTES)
    # Two checksums: the version is to be known for sure before it says how long the header is.
    header = with_checksum(with_checksum(_HEADER.pack(_MAGIC, _VERSION, flags, first)) + seed)
    return header, int.from_bytes(seed, "little")


def _read_header(content: bytes, path: Path) -> _Header:
    """What a segment says of itself, as far as that can be read. VolumeFormat for a later version."""
    version, flags, first = _VERSION, 0, _first_number(path)
    whole = is_checked(content[:_SEED_AT])
    if whole:
        magic, version, flags, stored_first = _HEADER.unpack_from(content)
        # Not damage, which a repair would cut off: it is whole, and a later program knows what it says.
        if version not in _FORMATS:
            raise VolumeFormat(path.parent.parent, f"{version} of its journal", _VERSION)
        # By the name as well: under that of another its records would stand elsewhere in the order.
        whole = magic == _MAGIC and stored_first == first
    form = _FORMATS[version]
    seed = int.from_bytes(content[_SEED_AT : _SEED_AT + SEED_BYTES], "little") if version > 1 else 0
    # One cut to its first half would pass for a whole one: that ends with a checksum, too.
    whole = whole and len(content) >= form.header_bytes and is_checked(content[: form.header_bytes])
    return _Header(form, flags, first, seed, whole)


def _reader(content: bytes, form: _Format, seed: int) -> tails.ReadAt:
    return partial(_whole_at, memoryview(content), form, seed)


def _whole_at(view: memoryview, form: _Format, seed: int, start: int) -> Whole | None:
    if start + form.prefix_bytes > len(view):
        return None
    length, number, _, *durable = form.record.unpack_from(view, start + CHECKSUM_BYTES)
    end = start + form.prefix_bytes + length
    # Before the checksum, which would else be made of all the rest of the file, at each place behind a bad
    # one.
    if length > JOURNAL_RECORD_BYTES_MAX or end > len(view):
        return None
    if not is_sealed(view, start, end, seed):
        return None
    return Whole(number, durable[0] if durable else 0, end)


def _records(content: bytes, form: _Format, seed: int) -> Iterator[tuple[Record, int]]:
    """The whole records of some bytes, each with the offset of its end; stops at the first that is not."""
    start = 0
    view = memoryview(content)
    # At the opening all that is not whole was cut off, or refused: this one is the end of what was written.
    while (whole := _whole_at(view, form, seed, start)) is not None:
        _, number, note = form.record.unpack_from(content, start + CHECKSUM_BYTES)[:3]
        yield Record(number, content[start + form.prefix_bytes : whole.end], note), whole.end
        start = whole.end
