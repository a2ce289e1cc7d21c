import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusemirror.limits import CUT_BYTES_MAX, CUT_EXTENTS_MAX, FILE_BYTES_MAX
from fusemirror.volume.extents import boundaries, cut_points, extents_of, takes_long

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
