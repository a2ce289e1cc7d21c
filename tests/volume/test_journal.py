import errno
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.errors import DiskFailed, FusemirrorError, VolumeDamaged, VolumeError, VolumeFormat
from fusemirror.identifiers import ChangeNumber
from fusemirror.limits import JOURNAL_RECORD_BYTES_MAX, JOURNAL_SEGMENT_BYTES
from fusemirror.seams import Seams
from fusemirror.volume.journal import Gap, Journal, Salvage, salvage
from fusemirror.volume.journal import _end_gap as end_gap

HEADER_BYTES = 48
QUARTER = bytes(JOURNAL_RECORD_BYTES_MAX)  # eight of them begin a new segment


def opened(directory: Path, seams: Seams | None = None) -> Journal:
    return Journal(directory, seams or Seams())


def reopened(journal: Journal, directory: Path) -> Journal:
    journal.close()
    return opened(directory)


def append(journal: Journal, *numbers: int, payload: bytes = b"payload") -> None:
    for number in numbers:
        journal.append(ChangeNumber(number), payload)


def numbers(journal: Journal, after: int = 0) -> list[int]:
    return [number for number, _ in journal.records(after)]


def fill_segments(journal: Journal, count: int) -> None:
    """Append until the journal has `count` segments, the last of them with one record."""
    while len(list(journal._directory.glob("*.log"))) < count:
        append(journal, journal.last_number + 1, payload=QUARTER)


def test_records_come_back_in_order_with_their_notes(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append(ChangeNumber(3), b"three", note=33)
    journal.append(ChangeNumber(7), memoryview(b"seven"))
    journal.append(ChangeNumber(8), b"")
    journal = reopened(journal, tmp_path)
    assert list(journal.records(0)) == [(3, b"three"), (7, b"seven"), (8, b"")]
    assert [record.note for record in journal.notes(0)] == [33, 0, 0]
    assert numbers(journal, after=3) == [7, 8]
    assert (journal.first_number, journal.last_number, journal.cut_bytes) == (1, 8, 0)
    journal.close()


def test_a_record_stands_in_the_file_when_append_returns(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    append(journal, 1)
    assert numbers(opened(tmp_path)) == [1]
    journal.close()


def test_numbers_must_grow_and_records_have_a_limit(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    append(journal, 5)
    for number, payload in ((5, b""), (4, b""), (6, bytes(JOURNAL_RECORD_BYTES_MAX + 1))):
        with pytest.raises(FusemirrorError, match=f"record {number} "):
            append(journal, number, payload=payload)
    assert numbers(journal) == [5]
    journal.close()


def test_a_reader_goes_on_where_it_stopped_and_sees_what_came_since(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    append(journal, 1, 2, 3)
    reader = journal.records(0)
    assert next(reader)[0] == 1
    assert next(reader)[0] == 2
    append(journal, 4)
    assert numbers(journal, after=2) == [3, 4]
    assert numbers(journal, after=4) == []
    append(journal, 5)
    assert numbers(journal, after=4) == [5]
    assert numbers(journal, after=0) == [1, 2, 3, 4, 5]
    journal.close()


def test_records_are_read_across_segments(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    fill_segments(journal, 3)
    last = journal.last_number
    expected = list(range(1, last + 1))
    assert numbers(journal) == expected
    got: list[int] = []
    while batch := [
        number for number, _ in zip(range(5), journal.records(got[-1] if got else 0), strict=False)
    ]:
        got.extend(number for number, _ in list(journal.records(got[-1] if got else 0))[: len(batch)])
    assert got == expected
    journal = reopened(journal, tmp_path)
    assert numbers(journal) == expected
    journal.close()


def test_the_last_record_is_taken_back_from_behind_a_segment_that_a_power_cut_has_emptied(
    tmp_path: Path,
) -> None:
    """Else the segment without records is made longer by zeros, and what comes after cannot be read."""
    journal = opened(tmp_path)
    fill_segments(journal, 3)
    last = ChangeNumber(journal.last_number - 1)  # of the segment before
    journal.close()
    *_, before, emptied = sorted(tmp_path.glob("*.log"))
    content = emptied.read_bytes()
    emptied.write_bytes(content[:HEADER_BYTES] + bytes(len(content) - HEADER_BYTES))
    journal = Journal(tmp_path, Seams(), lost_power=True)
    assert journal.last_number == last
    journal.retract(last)
    assert sorted(tmp_path.glob("*.log"))[-1] == before, "durably, before the record is cut off"
    append(journal, last, last + 1, payload=b"anew")
    journal = reopened(journal, tmp_path)
    assert numbers(journal) == list(range(1, last + 2))
    assert list(journal.records(last - 1)) == [(last, b"anew"), (last + 1, b"anew")]
    journal.close()


def test_trimming_removes_whole_segments_and_never_the_last(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    fill_segments(journal, 3)
    last = journal.last_number
    size = journal.size_bytes
    second_first = next(segment.first for segment in journal._segments[1:])
    journal.trim(second_first - 2)
    assert journal.first_number == 1
    journal.trim(second_first - 1)
    assert journal.first_number == second_first
    assert numbers(journal) == list(range(second_first, last + 1))
    assert journal.size_bytes < size
    journal.trim(last)
    journal = reopened(journal, tmp_path)
    assert numbers(journal) == [last]
    assert journal.size_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    journal.close()


def test_trimming_can_stop_at_a_size(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    fill_segments(journal, 4)
    journal.trim(journal.last_number, keep_bytes=2 * JOURNAL_SEGMENT_BYTES + JOURNAL_RECORD_BYTES_MAX * 3)
    assert len(list(tmp_path.iterdir())) == 3
    journal.close()


def test_an_empty_journal_still_knows_its_last_number(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    append(journal, 1, 2, 3)
    journal.restart(ChangeNumber(10))
    journal = reopened(journal, tmp_path)
    assert (journal.first_number, journal.last_number) == (11, 10)
    assert numbers(journal) == []
    with pytest.raises(FusemirrorError):
        append(journal, 10)
    append(journal, 11)
    assert numbers(reopened(journal, tmp_path)) == [11]


@pytest.mark.parametrize("restart_at", [0, 1, 2, 20, 1000])
def test_a_restart_voids_what_stood_before_even_with_higher_numbers(tmp_path: Path, restart_at: int) -> None:
    journal = opened(tmp_path)
    fill_segments(journal, 3)
    journal.restart(ChangeNumber(restart_at))
    assert journal.is_durable
    append(journal, restart_at + 5)
    journal = reopened(journal, tmp_path)
    assert numbers(journal) == [restart_at + 5]
    assert journal.first_number == restart_at + 1
    assert len(list(tmp_path.iterdir())) == 1
    journal.close()


def test_a_restart_that_was_killed_before_it_removed_the_old_segments_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(tmp_path)
    fill_segments(journal, 3)
    last = journal.last_number
    monkeypatch.setattr(Path, "unlink", lambda _path, missing_ok=False: None)
    journal.restart(ChangeNumber(last + 10))
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 4
    journal = reopened(journal, tmp_path)
    assert (journal.last_number, numbers(journal)) == (last + 10, [])
    assert len(list(tmp_path.iterdir())) == 1
    journal.close()


@pytest.mark.parametrize("removals", range(3))
def test_a_restart_that_was_killed_at_any_removal_leaves_a_journal_that_opens_and_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removals: int
) -> None:
    journal = opened(tmp_path)
    fill_segments(journal, 4)
    left = removals
    unlink = Path.unlink

    class Killed(Exception):
        pass

    def unlink_some(path: Path, missing_ok: bool = False) -> None:
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink_some)
    with pytest.raises(Killed):
        journal.restart(ChangeNumber(1))  # in the first of the segments
    monkeypatch.undo()
    journal = reopened(journal, tmp_path)
    assert numbers(journal) == list(range(1, journal.last_number + 1))
    journal.restart(ChangeNumber(1))
    append(journal, 2)
    assert numbers(reopened(journal, tmp_path)) == [2]


def test_old_segments_that_a_power_cut_brings_back_torn_stay_void(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(tmp_path)
    append(journal, 1, 2, 3)
    monkeypatch.setattr(Path, "unlink", lambda _path, missing_ok=False: None)
    journal.restart(ChangeNumber(10))
    monkeypatch.undo()
    old, _ = sorted(tmp_path.glob("*.log"))
    for size in (old.stat().st_size - 1, 3):
        os.truncate(old, size)
        void = old.read_bytes()
        journal = reopened(journal, tmp_path)
        assert (journal.last_number, numbers(journal)) == (10, [])
        assert not old.exists()
        old.write_bytes(void)
    journal.close()


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(tmp_path)
    append(journal, 1)
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:9]))
    with pytest.raises(OSError, match="space") as raised:
        append(journal, 2)
    assert raised.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert journal.last_number == 1
    append(journal, 2)
    journal = reopened(journal, tmp_path)
    assert (numbers(journal), journal.cut_bytes) == ([1, 2], 0)
    journal.close()


def test_a_half_record_that_cannot_be_cut_ends_all_appending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(tmp_path)

    def failing(*_arguments: object) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "write", failing)
    monkeypatch.setattr(os, "ftruncate", failing)
    with pytest.raises(DiskFailed, match="broken"):
        append(journal, 1)
    monkeypatch.undo()
    with pytest.raises(DiskFailed, match="broken"):
        append(journal, 1)
    journal.close()


@pytest.mark.parametrize("reopen", [False, True])
def test_a_record_can_be_taken_back(tmp_path: Path, reopen: bool) -> None:
    journal = opened(tmp_path)
    append(journal, 2)
    append(journal, 4, payload=b"taken back")
    journal.sync()
    if reopen:
        journal = reopened(journal, tmp_path)
    with pytest.raises(FusemirrorError):
        journal.retract(ChangeNumber(2))
    journal.retract(ChangeNumber(4))
    assert (journal.last_number, journal.durable_number <= 2) == (2, True)
    append(journal, 3, payload=b"instead")
    assert not journal.is_durable
    journal = reopened(journal, tmp_path)
    assert list(journal.records(0)) == [(2, b"payload"), (3, b"instead")]
    journal.close()


def test_the_first_record_of_a_segment_can_be_taken_back(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    fill_segments(journal, 2)
    last = journal.last_number
    journal.retract(last)
    assert journal.last_number == last - 1
    append(journal, last + 3)
    journal = reopened(journal, tmp_path)
    assert numbers(journal) == [*range(1, last), last + 3]
    journal.close()


def test_a_sync_covers_every_segment_and_the_names_of_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    journal = opened(tmp_path, Seams(fdatasync=note))
    monkeypatch.setattr(os, "fsync", note)
    fill_segments(journal, 3)
    synced.clear()
    journal.sync()
    assert synced == [*map(str, sorted(tmp_path.glob("*.log"))), str(tmp_path)]
    assert journal.durable_number == journal.last_number
    synced.clear()
    journal.sync()
    assert synced == []
    append(journal, journal.last_number + 1)
    journal.sync()
    assert synced == [str(max(tmp_path.glob("*.log")))]
    journal.close()


def test_what_a_killed_process_left_is_synced_before_it_is_called_durable(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    fill_segments(journal, 2)
    journal.close()
    synced: list[str] = []
    journal = opened(
        tmp_path,
        Seams(fdatasync=lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))),
    )
    assert not journal.is_durable
    journal.sync()
    assert synced == [*map(str, sorted(tmp_path.glob("*.log")))]
    journal.close()


def test_a_segment_is_begun_only_behind_one_that_is_durable(tmp_path: Path) -> None:
    """Or a power cut could leave a torn one that is not the last."""
    synced: list[str] = []
    journal = opened(
        tmp_path,
        Seams(fdatasync=lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))),
    )
    fill_segments(journal, 3)
    assert synced == [*map(str, sorted(tmp_path.glob("*.log"))[:-1])]
    journal.close()


def test_a_sync_that_failed_is_never_taken_back(tmp_path: Path) -> None:
    failures = iter([OSError(errno.EIO, "lost")])

    def fail_once(_descriptor: int) -> None:
        for failure in failures:
            raise failure

    journal = opened(tmp_path, Seams(fdatasync=fail_once))
    append(journal, 1)
    for _ in range(2):
        with pytest.raises(DiskFailed, match="lost"):
            journal.sync()
    with pytest.raises(DiskFailed, match="lost"):
        append(journal, 2)
    assert journal.durable_number == 0
    journal.close()


def test_a_sync_under_way_covers_only_what_was_there_when_it_began(tmp_path: Path) -> None:
    began, go_on = threading.Event(), threading.Event()

    def slow(_descriptor: int) -> None:
        began.set()
        assert go_on.wait(10)

    journal = opened(tmp_path, Seams(fdatasync=slow))
    append(journal, 1)
    thread = threading.Thread(target=journal.sync)
    thread.start()
    assert began.wait(10)
    append(journal, 2)
    go_on.set()
    thread.join()
    assert journal.durable_number == 1
    journal.close()


def written(directory: Path) -> tuple[Path, list[tuple[int, bytes]], list[int]]:
    """A journal of one segment: its file, its records, and where each ends."""
    journal = opened(directory)
    records, ends = [], []
    for number in (1, 2, 4, 9, 10):
        payload = b"payload" * number
        journal.append(ChangeNumber(number), payload, note=number)
        records.append((number, payload))
        ends.append(journal.size_bytes)
    journal.close()
    (path,) = directory.iterdir()
    return path, records, ends


def test_the_first_half_of_a_header_is_no_header(tmp_path: Path) -> None:
    """It ends with a checksum of its own, too."""
    path, _, _ = written(tmp_path)
    path.write_bytes(path.read_bytes()[: HEADER_BYTES - 16])
    with pytest.raises(VolumeDamaged, match="at byte 0"):
        opened(tmp_path)


@given(data=st.data())
def test_a_tail_cut_anywhere_loses_no_record_before_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    path, records, ends = written(directory)
    cut = data.draw(st.integers(0, ends[-1]))
    garbage = data.draw(st.binary(max_size=40))
    path.write_bytes(path.read_bytes()[:cut] + garbage)
    if cut < HEADER_BYTES:
        with pytest.raises(VolumeDamaged, match="at byte 0"):
            opened(directory)
        return
    journal = opened(directory)
    whole = [record for record, end in zip(records, ends, strict=True) if end <= cut]
    assert list(journal.records(0))[: len(whole)] == whole
    journal.append(ChangeNumber(11), b"next")
    journal = reopened(journal, directory)
    assert journal.cut_bytes == 0
    assert list(journal.records(0))[: len(whole)] == whole
    assert list(journal.records(0))[-1] == (11, b"next")
    journal.close()


@given(data=st.data())
def test_a_flip_is_a_torn_tail_in_the_last_record_and_damage_before_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    path, records, ends = written(directory)
    place = data.draw(st.integers(0, ends[-1] - 1))
    flip(path, place, bit=data.draw(st.integers(0, 7)))
    whole = [record for record, end in zip(records, ends, strict=True) if end <= place]
    if place < ends[-2]:
        at = max([0, HEADER_BYTES, *ends], key=lambda start: start if start <= place else -1)
        with pytest.raises(VolumeDamaged, match=f"{path.name} at byte {at}: .* run `fusemirror fsck"):
            opened(directory)
        assert path.stat().st_size == ends[-1], "nothing was cut off"
        if place < HEADER_BYTES:
            return
    journal = Journal(directory, Seams(), lost_power=True)  # nothing was synced: all of it may be lost
    assert list(journal.records(0)) == whole
    assert journal.cut_bytes > 0
    journal.close()


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize(("number", "is_damage"), [(1, True), (2, True), (3, False), (4, False)])
def test_after_a_power_cut_only_what_was_durable_is_damage(
    tmp_path: Path, number: int, is_damage: bool
) -> None:
    journal = opened(tmp_path)
    places = {}
    for each in (1, 2, 3, 4):
        places[each] = journal.size_bytes
        append(journal, each)
        if each == 2:
            journal.sync()
    journal.close()
    (path,) = tmp_path.iterdir()
    flip(path, places[number] + 10)
    if is_damage:
        with pytest.raises(VolumeDamaged, match=f"at byte {places[number]}"):
            Journal(tmp_path, Seams(), lost_power=True)
    else:
        journal = Journal(tmp_path, Seams(), lost_power=True)
        assert numbers(journal) == list(range(1, number))
        journal.close()


def test_holes_and_old_blocks_in_an_unsynced_tail_are_torn(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    append(journal, 1)
    journal.sync()
    start = journal.size_bytes
    append(journal, 2, 3, payload=bytes(5_000))
    append(journal, 4)
    journal.close()
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[start : start + 4_096] = bytes(4_096)
    path.write_bytes(content)
    journal = Journal(tmp_path, Seams(), lost_power=True)
    assert numbers(journal) == [1]
    journal.close()


def test_bytes_of_users_pass_for_no_record(tmp_path: Path) -> None:
    """One knows the format, and puts a record of a high number into a name; the process is killed there."""
    (tmp_path / "forger").mkdir()
    forger = opened(tmp_path / "forger")
    append(forger, 1, 1000)
    forger.close()
    forged = next((tmp_path / "forger").iterdir()).read_bytes()[HEADER_BYTES:]
    (tmp_path / "volume").mkdir()
    journal = opened(tmp_path / "volume")
    append(journal, 1)
    append(journal, 2, payload=forged + b"more")
    journal.close()
    (path,) = (tmp_path / "volume").iterdir()
    os.truncate(path, path.stat().st_size - 2)
    journal = opened(tmp_path / "volume")
    assert numbers(journal) == [1]
    journal.close()
    assert [record.number for record in salvage(tmp_path / "volume").records] == [1]


def test_what_is_whole_can_be_salvaged_and_what_is_not_is_named(tmp_path: Path) -> None:
    path, records, ends = written(tmp_path)
    flip(path, ends[0] + 30)
    found = salvage(tmp_path)
    assert [(record.number, record.payload) for record in found.records] == [records[0], *records[2:]]
    assert [record.note for record in found.records] == [1, 4, 9, 10]
    assert found.gaps == [Gap(path.name, ends[0], ends[1] - ends[0], after=1, before=4)]


def test_a_record_looks_at_no_gap_that_has_ended() -> None:
    """Else very many gaps cost as much again for each record behind them."""
    ended = [Gap("1.log", place, 1, after=place, before=place + 1) for place in range(100)]
    looked_at: list[int] = []

    class Gaps(list[Gap]):
        def __getitem__(self, index: Any) -> Any:
            looked_at.append(index)
            return super().__getitem__(index)

        def __iter__(self) -> Iterator[Gap]:
            looked_at.extend(range(len(self)))
            return super().__iter__()

    still_open = [Gap(name, 0, 0, after=100, before=None) for name in ("1.log", "2.log")]
    found = Salvage([], Gaps([*ended, *still_open]))
    end_gap(found, 103)
    assert set(looked_at) <= {99, 100, 101}
    assert list(found.gaps) == [*ended, *(gap._replace(before=103) for gap in still_open)]


def test_a_missing_segment_is_a_gap(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    fill_segments(journal, 3)
    last = journal.last_number
    journal.close()
    _, second, third = sorted(tmp_path.iterdir())
    first_of = {path: int(path.stem, 16) for path in (second, third)}
    second.unlink()
    found = salvage(tmp_path)
    assert [record.number for record in found.records] == [*range(1, first_of[second]), last]
    assert found.gaps == [Gap(third.name, 0, 0, after=first_of[second] - 1, before=last)]


def test_a_segment_of_the_version_before_is_read_and_not_written_to(tmp_path: Path) -> None:
    header = struct.pack("<8sIIQ", b"fmjourna", 1, 0, 1)
    body = struct.pack("<IQQ", 3, 1, 7) + b"old"
    old = b"".join(part + struct.pack("<Q", xxhash.xxh3_64_intdigest(part)) for part in (header,))
    old += struct.pack("<Q", xxhash.xxh3_64_intdigest(body)) + body
    path = tmp_path / f"{1:016x}.log"
    path.write_bytes(old + b"torn")
    journal = opened(tmp_path)
    assert list(journal.notes(0)) == [(1, b"old", 7)]
    append(journal, 2)
    journal = reopened(journal, tmp_path)
    assert numbers(journal) == [1, 2]
    assert path.read_bytes() == old
    journal.close()


def test_an_empty_segment_of_the_version_before_is_replaced(tmp_path: Path) -> None:
    header = struct.pack("<8sIIQ", b"fmjourna", 1, 1, 5)  # a fresh start
    path = tmp_path / f"{5:016x}.log"
    path.write_bytes(header + struct.pack("<Q", xxhash.xxh3_64_intdigest(header)))
    journal = opened(tmp_path)
    append(journal, 6)
    fill_segments(journal, 2)
    journal.trim(6)
    last = journal.last_number
    journal = reopened(journal, tmp_path)
    assert numbers(journal) == list(range(6, last + 1))
    (tmp_path / f"{1:016x}.log").write_bytes(b"void")
    assert reopened(journal, tmp_path).first_number == 5
    assert len(list(tmp_path.iterdir())) == 2


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7), cut=st.booleans())
def test_damage_before_the_last_segment_is_never_passed_over(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int, cut: bool
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    journal = opened(directory)
    append(journal, 1, 2, 3)
    journal._begin_segment(ChangeNumber(4))
    append(journal, 4, 5)
    journal.close()
    path = min(directory.iterdir())
    content = bytearray(path.read_bytes())
    place %= len(content)
    if cut:
        del content[place:]
    else:
        content[place] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(VolumeDamaged, match="journal"):
        opened(directory)


@pytest.mark.parametrize("number", [1, 2])
def test_a_missing_segment_is_damage(tmp_path: Path, number: int) -> None:
    journal = opened(tmp_path)
    fill_segments(journal, 4)
    journal.close()
    sorted(tmp_path.iterdir())[number].unlink()
    with pytest.raises(VolumeDamaged, match="missing"):
        opened(tmp_path)


def test_a_later_version_and_a_stray_file_are_refused(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fusemirror.volume.journal._VERSION", 3)
        journal.restart(ChangeNumber(1))
    with pytest.raises(VolumeFormat, match="3 of its journal"):
        reopened(journal, tmp_path)
    (tmp_path / "notes.log").write_text("not mine")
    with pytest.raises(VolumeError):
        opened(tmp_path)


def test_a_half_made_segment_under_its_temporary_name_is_removed(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "new").write_bytes(b"fme")
    journal = opened(tmp_path)
    assert not (tmp_path / "new").exists()
    journal.close()
