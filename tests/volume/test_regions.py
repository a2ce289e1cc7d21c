import errno
import os
import struct
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.errors import VolumeDamaged
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import FILE_BYTES_MAX, RANGES_PER_IMAGE_MAX, REGION_BYTES
from fusemirror.volume.region_set import REGIONS_END, RegionSet
from fusemirror.volume.regions import Regions
from tests.volume.conftest import broken_file

ONE, TWO = InodeNumber(1), InodeNumber(2)


def regions_in(*indexes: int) -> RegionSet:
    return RegionSet((index, index + 1) for index in indexes)


def reopened(regions: Regions, directory: Path) -> Regions:
    regions.close()
    return Regions(directory)


@given(
    writes=st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 10 * REGION_BYTES), st.integers(1, 3 * REGION_BYTES))
    )
)
def test_every_byte_written_lies_in_a_marked_region_after_reopening(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, int, int]]
) -> None:
    directory = tmp_path_factory.mktemp("regions")
    regions = Regions(directory)
    expected: dict[int, RegionSet] = {}
    for inode, offset, length in writes:
        regions.mark(InodeNumber(inode), offset, offset + length)
        touched = range(offset // REGION_BYTES, (offset + length - 1) // REGION_BYTES + 1)
        expected.setdefault(inode, RegionSet()).update(regions_in(*touched))
    assert regions.marks() == expected
    assert reopened(regions, directory).marks() == expected


def test_a_mark_stands_on_the_disk_when_mark_returns(tmp_path: Path) -> None:
    regions = Regions(tmp_path)
    regions.mark(ONE, 0, 1)
    assert Regions(tmp_path).marks() == {ONE: regions_in(0)}
    regions.close()


def test_a_region_is_written_once_in_an_epoch_and_again_in_the_next(tmp_path: Path) -> None:
    regions = Regions(tmp_path)
    for _ in range(3):
        regions.mark(ONE, 0, 2 * REGION_BYTES)
    (path,) = tmp_path.iterdir()
    size = path.stat().st_size
    regions.mark(ONE, REGION_BYTES, REGION_BYTES + 1)
    assert path.stat().st_size == size
    closed = regions.rotate()
    regions.mark(ONE, 0, 1)
    regions.drop(closed)
    assert regions.marks() == {ONE: regions_in(0)}
    assert reopened(regions, tmp_path).marks() == {ONE: regions_in(0)}


def test_dropping_forgets_that_epoch_and_those_before_only(tmp_path: Path) -> None:
    regions = Regions(tmp_path)
    regions.mark(ONE, 0, 1)
    regions.rotate()
    regions.mark(ONE, REGION_BYTES, REGION_BYTES + 1)
    second = regions.rotate()
    regions.mark(TWO, 0, 1)
    regions.drop(second)
    assert regions.marks() == {TWO: regions_in(0)}
    regions.drop(regions.rotate())
    assert regions.is_empty
    assert reopened(regions, tmp_path).is_empty
    assert not list(tmp_path.iterdir())


def test_the_file_of_an_epoch_whose_images_were_all_purged_is_dropped_with_it(tmp_path: Path) -> None:
    regions = Regions(tmp_path)
    regions.mark(ONE, 0, 1)
    regions.forget(ONE)
    assert [*tmp_path.iterdir()]
    regions.drop(regions.rotate())
    assert not [*tmp_path.iterdir()]
    assert regions.is_empty
    regions.close()


def test_an_empty_epoch_can_be_closed_and_dropped(tmp_path: Path) -> None:
    regions = Regions(tmp_path)
    first, second = regions.rotate(), regions.rotate()
    assert second > first
    regions.drop(second)
    assert regions.is_empty


@pytest.mark.parametrize("size", [1 << 40, 2 << 40, 15 << 40, FILE_BYTES_MAX])
def test_a_mark_of_any_length_is_one_record(tmp_path: Path, size: int) -> None:
    """One set member for each region was 2 GiB of memory for 2 TiB of a hole."""
    regions = Regions(tmp_path)
    regions.mark(ONE, 5, size)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size == 24
    expected = {ONE: RegionSet([(0, -(-size // REGION_BYTES))])}
    assert regions.marks() == expected
    assert reopened(regions, tmp_path).marks() == expected


def test_a_mark_within_a_whole_image_is_not_written(tmp_path: Path) -> None:
    regions = Regions(tmp_path)
    regions.mark_whole(ONE)
    regions.mark(ONE, 5 * REGION_BYTES, 1 << 50)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size == 24
    assert reopened(regions, tmp_path).marks() == {ONE: RegionSet([(0, REGIONS_END)])}


def test_too_many_ranges_become_coarser_and_stay_so_after_reopening(tmp_path: Path) -> None:
    """What lies in the gaps that were filled gets no record of its own any more."""
    regions = Regions(tmp_path)
    for index in range(RANGES_PER_IMAGE_MAX + 1):
        regions.mark(ONE, 2 * index * REGION_BYTES, 2 * index * REGION_BYTES + 1)
    (path,) = tmp_path.iterdir()
    size = path.stat().st_size
    filled = next(first + 1 for first, end in regions.marks()[ONE] if end - first > 1)
    regions.mark(ONE, filled * REGION_BYTES, filled * REGION_BYTES + 1)
    marked = regions.marks()[ONE]
    assert len(marked) <= RANGES_PER_IMAGE_MAX // 2
    assert all(marked.covers(2 * index, 2 * index + 1) for index in range(RANGES_PER_IMAGE_MAX + 1))
    assert path.stat().st_size == size, "the region between two marked ones is marked by now"
    read = reopened(regions, tmp_path).marks()[ONE]
    assert all(read.covers(first, end) for first, end in marked)


def read_by_a_program_before_ranges(path: Path) -> tuple[dict[int, set[int]], bool]:
    """What it finds, and whether it takes marks for lost, and so compares every image."""
    marks: dict[int, set[int]] = {}
    lost = False
    content = path.read_bytes()
    for start in range(0, len(content) - 23, 24):
        record = content[start : start + 24]
        inode, index = struct.unpack_from("<Qq", record)
        if record[16:] == xxhash.xxh3_64_digest(record[:16]):
            marks.setdefault(inode, set()).add(index)
        else:
            lost = True
    return marks, lost


@given(
    ranges=st.lists(
        st.tuples(st.integers(0, 50), st.one_of(st.integers(1, 40), st.just(REGIONS_END))), min_size=1
    )
)
def test_a_program_before_ranges_finds_no_less_than_what_is_marked(
    tmp_path_factory: pytest.TempPathFactory, ranges: list[tuple[int, int]]
) -> None:
    directory = tmp_path_factory.mktemp("regions")
    regions = Regions(directory)
    for first, count in ranges:
        end = min(REGIONS_END, first + count)
        regions.mark(ONE, first * REGION_BYTES, end * REGION_BYTES)
    (path,) = directory.iterdir()
    marks, lost = read_by_a_program_before_ranges(path)
    whole_from = min((-1 - index for index in marks.get(1, ()) if index < 0), default=REGIONS_END)
    assert lost or all(
        region in marks[1] or region >= whole_from
        for first, end in regions.marks()[ONE]
        for region in range(first, min(end, 100))
    )
    regions.close()


def test_what_a_program_before_ranges_has_marked_is_read(tmp_path: Path) -> None:
    records = [struct.pack("<Qq", 1, index) for index in (3, 4, -1 - 9)]
    content = b"".join(record + xxhash.xxh3_64_digest(record) for record in records)
    (tmp_path / f"{7:016x}").write_bytes(content)
    regions = Regions(tmp_path)
    assert regions.marks() == {ONE: RegionSet([(3, 5), (9, REGIONS_END)])}
    assert not regions.marks_lost


def test_a_forgotten_image_has_no_marks(tmp_path: Path) -> None:
    regions = Regions(tmp_path)
    regions.mark(ONE, 0, 1)
    regions.rotate()
    regions.mark_whole(ONE)
    assert regions.has(ONE)
    regions.forget(ONE)
    assert not regions.has(ONE)
    assert regions.marks() == {}
    regions.close()


@given(cut=st.integers(0, 71), flip=st.none() | st.tuples(st.integers(0, 71), st.integers(0, 7)))
def test_a_torn_file_keeps_its_whole_marks_and_a_flipped_one_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: tuple[int, int] | None
) -> None:
    directory = tmp_path_factory.mktemp("regions")
    regions = Regions(directory)
    for index in range(3):
        regions.mark(ONE, index * REGION_BYTES, index * REGION_BYTES + 1)
    regions.close()
    (path,) = directory.iterdir()
    content = bytearray(path.read_bytes())
    assert len(content) == 72
    if flip is not None:
        content[flip[0]] ^= 1 << flip[1]
    path.write_bytes(content if flip is not None else content[:cut])
    if flip is not None and flip[0] < 48:
        bad = flip[0] // 24 * 24
        with pytest.raises(VolumeDamaged, match=f"regions: {path.name} at byte {bad}: .*others follow.*fsck"):
            Regions(directory)
        return
    read = Regions(directory)
    assert read.marks().get(ONE, RegionSet()) == regions_in(*range(2 if flip is not None else cut // 24))
    assert read.marks_lost is (flip is not None)


@pytest.mark.parametrize("shift", [0, 10])
def test_what_lost_power_left_is_no_damage_and_none_after_the_next_crash(tmp_path: Path, shift: int) -> None:
    """Later blocks may be on the disk, and earlier ones not; every image is compared then."""
    regions = Regions(tmp_path)
    for index in range(4):
        regions.mark(ONE, index * REGION_BYTES, index * REGION_BYTES + 1)
    regions.close()
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:24] + bytes(24 + shift) + content[48:])
    with pytest.raises(VolumeDamaged, match="at byte 24"):
        Regions(tmp_path)
    read = Regions(tmp_path, lost_power=True)
    assert read.marks_lost
    assert read.marks() == {ONE: regions_in(0)}
    assert reopened(read, tmp_path).marks() == {ONE: regions_in(0)}


def test_a_mark_that_could_not_be_written_leaves_no_half_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions = Regions(tmp_path)
    regions.mark(ONE, 0, 1)
    real_write = os.write

    def full_disk(descriptor: int, data: bytes) -> int:
        return real_write(descriptor, data[:10])

    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(OSError, match="space") as raised:
        regions.mark(ONE, REGION_BYTES, REGION_BYTES + 1)
    assert raised.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert regions.marks() == {ONE: regions_in(0)}
    regions.mark(TWO, 0, 1)
    read = reopened(regions, tmp_path)
    assert read.marks() == {ONE: regions_in(0), TWO: regions_in(0)}
    assert not read.marks_lost


def test_no_mark_stands_behind_half_of_one_that_could_not_be_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions = Regions(tmp_path)
    regions.mark(ONE, 0, 1)
    broken_file(monkeypatch)
    with pytest.raises(OSError, match="space"):
        regions.mark(ONE, REGION_BYTES, REGION_BYTES + 1)
    with pytest.raises(OSError, match="broken"):
        regions.mark(TWO, 0, 1)
    monkeypatch.undo()
    regions.mark(TWO, 0, 1)
    assert reopened(regions, tmp_path).marks() == {ONE: regions_in(0), TWO: regions_in(0)}


def test_files_that_are_no_epochs_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("not mine")
    assert Regions(tmp_path).is_empty
    assert (tmp_path / "notes").exists()


def test_syncing_covers_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regions = Regions(tmp_path)
    regions.mark(ONE, 0, 1)
    regions.rotate()
    regions.mark(ONE, 0, 1)
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    regions.sync()
    assert set(synced) == {str(tmp_path), *map(str, tmp_path.iterdir())}
    regions.close()
