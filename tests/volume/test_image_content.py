"""What images hold, by regions: data, holes, and checksums that a hole and zeros have alike."""

from pathlib import Path

import pytest

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import REGION_BYTES
from fusemirror.seams import Seams
from fusemirror.volume.image_content import ImageContent, Piece, zeros_digest
from fusemirror.volume.images import Images

ONE, NOBODY = InodeNumber(1), InodeNumber(9)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """Regions: data, hole, hole, zeros that were written."""
    images = Images(tmp_path, Seams())
    images.write(ONE, 0, b"x" * REGION_BYTES, 1)
    images.write(ONE, 3 * REGION_BYTES, bytes(REGION_BYTES), 1)
    return images


@pytest.fixture
def content(images: Images) -> ImageContent:
    return images.content


def test_zeros_are_told_like_a_hole(content: ImageContent) -> None:
    digests = content.region_digests(ONE, 0, 9)
    assert len(digests) == 4
    assert digests[1:] == (zeros_digest(REGION_BYTES),) * 3
    assert content.data_in(ONE, 0, 4) == ([0], 4)
    assert content.region_digests(NOBODY, 0, 9) == ()


def test_pieces_are_data_or_holes(content: ImageContent) -> None:
    assert content.piece(ONE, 0, 4) == Piece(0, 1, is_hole=False)
    assert content.piece(ONE, 1, 4) == Piece(1, 3, is_hole=True)
    assert content.piece(NOBODY, 0, 4) == Piece(0, 4, is_hole=True)


def test_a_hole_takes_the_place_of_data(content: ImageContent, images: Images) -> None:
    assert content.punch(ONE, 0, 1) == 1
    assert images.read(ONE, 0, REGION_BYTES) == bytes(REGION_BYTES)
    assert images.size(ONE) == 4 * REGION_BYTES
    assert content.punch(NOBODY, 0, 1) == 1


def test_only_data_is_copied_out(content: ImageContent, tmp_path: Path) -> None:
    with (tmp_path / "copy").open("wb") as copy:
        assert content.copy_out(ONE, copy.fileno(), 0, REGION_BYTES) == 3 * REGION_BYTES
    assert (tmp_path / "copy").read_bytes() == b"x" * REGION_BYTES


def test_room_is_there_where_blocks_are(content: ImageContent, images: Images) -> None:
    images.unsynced.sync_filesystem()
    assert content.is_allocated(ONE, 0, REGION_BYTES)
    assert not content.is_allocated(ONE, 0, 2 * REGION_BYTES)
    assert not content.is_allocated(NOBODY, 0, 1)
    assert content.data_bytes(ONE) >= REGION_BYTES
    assert content.data_bytes(NOBODY) == 0
    assert list(content.step_points(ONE, 0, REGION_BYTES)) == []
    images.close()
