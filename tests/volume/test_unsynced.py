"""What a power cut could take of the images: a sync settles what it began with, and no more."""

from dataclasses import replace
from pathlib import Path

import pytest

from fusemirror.identifiers import InodeNumber
from fusemirror.seams import Seams
from fusemirror.volume.images import Images

ONE, TWO = InodeNumber(1), InodeNumber(2)


class Syncs:
    """Which of the two syncs was asked for, in their order."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def seams(self) -> Seams:
        return replace(
            Seams(),
            fsync=lambda _descriptor: self.asked.append("all"),
            fdatasync=lambda _descriptor: self.asked.append("data"),
        )


@pytest.fixture
def syncs() -> Syncs:
    return Syncs()


@pytest.fixture
def images(tmp_path: Path, syncs: Syncs) -> Images:
    return Images(tmp_path, syncs.seams())


def test_what_changed_during_a_sync_is_dirty_still(images: Images) -> None:
    images.write(ONE, 0, b"a", 1)
    images.write(TWO, 0, b"a", 1)
    began = dict(images.unsynced.dirty)
    images.write(TWO, 1, b"b", 2)
    images.unsynced.synced(began)
    assert set(images.unsynced.dirty) == {TWO}
    images.close()


def test_times_that_a_record_is_judged_by_are_synced_once(images: Images, syncs: Syncs) -> None:
    images.write(ONE, 0, b"a", 1)
    images.unsynced.sync(ONE)
    images.unsynced.keep_times(ONE)
    images.unsynced.sync(ONE)
    images.unsynced.sync(ONE)
    images.unsynced.sync(InodeNumber(99))  # what is not there needs none
    assert syncs.asked == ["data", "all", "data"]
    images.close()


def test_a_name_is_made_durable_once(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[object] = []
    images.write(ONE, 0, b"a", 1)
    monkeypatch.setattr("fusemirror.volume.unsynced.sync_directory", synced.append)
    images.unsynced.sync(ONE)
    images.unsynced.sync(ONE)
    images.unsynced.sync_names()
    assert synced == [str(images.path(ONE).parent)]
    images.close()


def test_what_a_killed_process_wrote_is_synced_with_its_times(images: Images, syncs: Syncs) -> None:
    images.write(ONE, 0, b"a", 1)
    images.unsynced.synced(dict(images.unsynced.dirty))
    images.unsynced.inherit([ONE])
    assert set(images.unsynced.dirty) == {ONE}
    images.unsynced.sync_all(images.unsynced.dirty)
    assert syncs.asked == ["all"]
    images.close()
