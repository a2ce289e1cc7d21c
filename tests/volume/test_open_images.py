"""Open images: of too many the least recently used is closed; one takes another's place in one step."""

import errno
import os
from pathlib import Path

import pytest

from fusemirror.identifiers import InodeNumber
from fusemirror.seams import Seams
from fusemirror.volume.images import Images

NUMBERS = [InodeNumber(number) for number in range(1, 5)]


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path, Seams())


def test_the_least_recently_used_is_closed(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusemirror.volume.open_images.OPEN_IMAGES_MAX", 2)
    for number in NUMBERS[:3]:
        images.write(number, 0, b"a", 1)
        images.write(NUMBERS[0], 0, b"b", 2)
    assert list(images._open.descriptors) == [NUMBERS[2], NUMBERS[0]]
    images.close()
    assert not images._open.descriptors


def test_an_empty_image_takes_the_place_of_one(images: Images) -> None:
    (one, *_) = NUMBERS
    images.write(one, 0, b"old", 1)
    assert images._open.replace(one, 7)
    facts = images.facts(one)
    assert facts is not None
    assert (facts.size, facts.ctime_ns) == (0, 7)
    images.write(one, 0, b"new", 8)
    assert images.path(one).read_bytes() == b"new"
    assert not images.discarded.is_empty
    images.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPERM])
def test_a_disk_without_room_or_links_replaces_nothing(
    images: Images, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (one, *_) = NUMBERS
    images.write(one, 0, b"old", 1)

    def refuse(*_: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "link", refuse)
    assert not images._open.replace(one, 7)
    assert images.read(one, 0, 9) == b"old"
    images.close()
