import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import REGION_BYTES, REGIONS_PER_IMAGE_MAX
from fusemirror.volume.regions import WHOLE_IMAGE, Regions

ONE, TWO = InodeNumber(1), InodeNumber(2)


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
    expected: dict[int, set[int]] = {}
    for inode, offset, length in writes:
        regions.mark(InodeNumber(inode), offset, offset + length)
        touched = range(offset // REGION_BYTES, (offset + length - 1) // REGION_BYTES + 1)
        expected.setdefault(inode, set()).update(touched)
    assert regions.marks() == expected
    assert reopened(regions, directory).marks() == expected


def test_a_mark_stands_on_the_disk_when_mark_returns(tmp_path: Path) -> None:
    regions = Regions(tmp_path)
    regions.mark(ONE, 0, 1)
    assert Regions(tmp_path).marks() == {ONE: {0}}
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
    assert regions.marks() == {ONE: {0}}
    assert reopened(regions, tmp_path).marks() == {ONE: {0}}


def test_dropping_forgets_that_epoch_and_those_before_only(tmp_path: Path) -> None:
    regions = Regions(tmp_path)
    regions.mark(ONE, 0, 1)
    regions.rotate()
    regions.mark(ONE, REGION_BYTES, REGION_BYTES + 1)
    second = regions.rotate()
    regions.mark(TWO, 0, 1)
    regions.drop(second)
    assert regions.marks() == {TWO: {0}}
    regions.drop(regions.rotate())
    assert regions.is_empty
    assert reopened(regions, tmp_path).is_empty
    assert not list(tmp_path.iterdir())


def test_an_empty_epoch_can_be_closed_and_dropped(tmp_path: Path) -> None:
    regions = Regions(tmp_path)
    first, second = regions.rotate(), regions.rotate()
    assert second > first
    regions.drop(second)
    assert regions.is_empty


def test_too_many_marks_become_one_of_the_whole_image(tmp_path: Path) -> None:
    regions = Regions(tmp_path)
    regions.mark(ONE, 0, 1)
    regions.mark(ONE, 0, (REGIONS_PER_IMAGE_MAX + 1) * REGION_BYTES)
    assert WHOLE_IMAGE in regions.marks()[ONE]
    assert len(regions.marks()[ONE]) == 2
    regions.mark(ONE, 5 * REGION_BYTES, 5 * REGION_BYTES + 1)
    assert len(regions.marks()[ONE]) == 2
    regions.close()


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
    read = Regions(directory)
    damaged = flip[0] // 24 if flip is not None else None
    whole = {index for index in range(3 if flip is not None else cut // 24) if index != damaged}
    assert read.marks().get(ONE, set()) == whole
    assert read.marks_lost is (flip is not None)


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
    assert regions.marks() == {ONE: {0}}
    regions.mark(TWO, 0, 1)
    read = reopened(regions, tmp_path)
    assert read.marks() == {ONE: {0}, TWO: {0}}
    assert not read.marks_lost


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
