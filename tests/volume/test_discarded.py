"""Discarded images: gone under their name at once, freed a little at a time, by the next mount if need be."""

from pathlib import Path

import pytest

from fusemirror.identifiers import InodeNumber
from fusemirror.seams import Seams
from fusemirror.volume.images import Images

ONE = InodeNumber(1)


def free_all(images: Images) -> int:
    steps = 1
    while images.discarded.free_some():
        steps += 1
    return steps


def test_what_one_mount_leaves_the_next_one_frees(tmp_path: Path) -> None:
    images = Images(tmp_path, Seams())
    for content in (b"a", b"b"):
        images.write(ONE, 0, content, 1)
        images.discard(ONE)
    images.write(ONE, 0, b"of a new file", 1)
    images.close()
    assert len(list((tmp_path / "discarded").iterdir())) == 2
    images = Images(tmp_path, Seams())
    waits = [not images.discarded.is_empty]
    free_all(images)
    assert [*waits, not images.discarded.is_empty] == [True, False]
    assert list((tmp_path / "discarded").iterdir()) == []
    assert images.read(ONE, 0, 99) == b"of a new file"
    images.close()


def test_an_error_leaves_the_rest_for_another_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images(tmp_path, Seams())
    images.write(ONE, 0, b"a", 1)
    images.discard(ONE)

    def broken(_path: object) -> None:
        raise OSError(5, "broken")

    monkeypatch.setattr("os.unlink", broken)
    with pytest.raises(OSError, match="broken"):
        free_all(images)
    monkeypatch.undo()
    waits = [not images.discarded.is_empty]
    free_all(images)
    assert [*waits, not images.discarded.is_empty] == [True, False]
    images.close()
