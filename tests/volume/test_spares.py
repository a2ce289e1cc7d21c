"""Spares: what is left becomes an empty image for another file, unless it is used again before."""

from pathlib import Path

import pytest

from fusemirror.identifiers import InodeNumber
from fusemirror.seams import Seams
from fusemirror.volume.images import Images

ONE, TWO, THREE = (InodeNumber(number) for number in (1, 2, 3))


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path, Seams())


def test_a_spare_holds_nothing_of_what_it_was(images: Images, tmp_path: Path) -> None:
    images.write(ONE, 0, b"secret", 1)
    images.leave(ONE)
    assert images.spares.recycle([ONE]) == []
    assert not images.exists(ONE)
    assert images.spares.take() == str(tmp_path / "spare" / "1")
    assert images.spares.take() is None
    assert (tmp_path / "spare" / "1").read_bytes() == b""
    images.close()


def test_what_is_used_again_stays(images: Images) -> None:
    images.write(ONE, 0, b"kept", 1)
    images.leave(ONE)
    images.write(ONE, 4, b" on", 2)
    assert images.spares.recycle([ONE]) == [ONE]
    assert images.read(ONE, 0, 99) == b"kept on"
    images.close()


def test_without_inodes_to_spare_what_is_left_goes(images: Images, tmp_path: Path) -> None:
    for number in (ONE, TWO):
        images.write(number, 0, b"a", 1)
        images.leave(number)
    images.spares.recycle([ONE])
    images.spares.keep(False)
    images.spares.recycle([TWO])
    assert images.spares.take() is None
    assert not images.exists(TWO)
    images.write(THREE, 0, b"a", 1)
    images.leave(THREE)
    images.spares.keep_all()
    assert images.spares.recycle([THREE]) == [THREE], "nothing is left any more"
    images.close()
