import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusemirror.change import KEEP_SIZE
from fusemirror.limits import CUT_BYTES_MAX, CUT_EXTENTS_MAX, FILE_BYTES_MAX
from fusemirror.volume.durable import allocate
from fusemirror.volume.extents import (
    allocated,
    boundaries,
    cut_points,
    extents_of,
    is_scattered_beyond_end,
    takes_long,
)

BLOCK = 4096
COUNT = 3 * CUT_EXTENTS_MAX + 5


@pytest.fixture(params=[True, False], ids=["extents", "data and holes"])
def scattered(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[int]:
    """A file of COUNT blocks with holes between, on a disk that tells its extents, or data from holes."""
    if not request.param:

        def refuse(*_arguments: object) -> None:
            raise OSError(95, "not supported")

        monkeypatch.setattr(fcntl, "ioctl", refuse)
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    for place in range(COUNT):
        os.pwrite(descriptor, b"x" * BLOCK, place * 16 * BLOCK)
    os.fsync(descriptor)
    yield descriptor
    os.close(descriptor)


def pieces_of(descriptor: int) -> int:
    return sum(1 for _ in extents_of(descriptor, FILE_BYTES_MAX))


@pytest.mark.parametrize("left", [0, 1, CUT_EXTENTS_MAX + 1, COUNT])
def test_no_step_frees_more_than_the_limit_and_the_last_one_arrives(scattered: int, left: int) -> None:
    size = left * 16 * BLOCK
    points = cut_points(scattered, size)
    assert points[-1] == size
    assert list(points) == sorted(points, reverse=True)
    for point in points:
        before = pieces_of(scattered)
        os.ftruncate(scattered, point)
        assert before - pieces_of(scattered) <= CUT_EXTENTS_MAX
    assert pieces_of(scattered) == left


@pytest.fixture
def reserved(tmp_path: Path) -> Iterator[int]:
    """A file of one byte, and COUNT blocks with gaps between reserved beyond its end."""
    descriptor = os.open(tmp_path / "reserved", os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(descriptor, b"x", 0)
    for place in range(1, COUNT + 1):
        allocate(descriptor, KEEP_SIZE, place * 2 * BLOCK, BLOCK)
    os.fsync(descriptor)
    yield descriptor
    os.close(descriptor)


def tells_extents(descriptor: int) -> bool:
    return sum(1 for _ in allocated(descriptor, 0)) > COUNT


def test_room_reserved_beyond_the_end_is_cut_in_steps(reserved: int) -> None:
    """ext4 frees none of it before the file is cut, and then all that lies beyond its new end."""
    if not tells_extents(reserved):
        pytest.skip("this disk tells of no extents")
    points = cut_points(reserved, 0)
    assert list(points) == sorted(points, reverse=True)
    for point in points:
        before = len(list(allocated(reserved, 0)))
        os.ftruncate(reserved, point)
        assert before - len(list(allocated(reserved, 0))) <= CUT_EXTENTS_MAX
    assert os.fstat(reserved).st_blocks == 0


def test_room_reserved_beyond_the_end_takes_long(reserved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if tells_extents(reserved):
        assert takes_long(reserved, 0)
        assert is_scattered_beyond_end(reserved)

    def refuse(*_arguments: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    assert takes_long(reserved, 0), "it has blocks that are no data"
    assert not is_scattered_beyond_end(reserved), "nobody knows"


def test_a_reservation_in_one_place_is_nothing_special(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        allocate(descriptor, KEEP_SIZE, 0, 64 * BLOCK)
        assert not is_scattered_beyond_end(descriptor)
        os.ftruncate(descriptor, 0)
        assert not takes_long(descriptor, 0)
    finally:
        os.close(descriptor)


def test_beyond_what_the_disk_can_hold_there_is_nothing(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(descriptor, b"x" * BLOCK, 0)
        assert list(allocated(descriptor, FILE_BYTES_MAX - 1)) == []
        assert list(allocated(descriptor, FILE_BYTES_MAX)) == []
    finally:
        os.close(descriptor)


def test_only_what_lies_in_many_places_takes_long(scattered: int) -> None:
    assert takes_long(scattered, 0)
    assert not takes_long(scattered, (COUNT - CUT_EXTENTS_MAX) * 16 * BLOCK)


def test_one_extent_is_cut_by_bytes_too(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, CUT_BYTES_MAX + BLOCK)
        assert list(boundaries(descriptor, BLOCK)) == []
        assert len(list(boundaries(descriptor, 0))) == 1
    finally:
        os.close(descriptor)


def test_an_empty_file_has_one_step(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        assert list(cut_points(descriptor, 0)) == [0]
        assert not takes_long(descriptor, 0)
    finally:
        os.close(descriptor)
