"""What is remembered of the directories that threads were told."""

import pytest

from fusemirror.filesystem import looked_up
from fusemirror.filesystem.looked_up import LookedUpDentries
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.volume.catalog import new_directory
from fusemirror.volume.inode import Inode

FILE = Inode(InodeNumber(9), 0o100644, 1, 0, 0, 0, 0, 0, 0, 0)
ONE, OTHER = 101, 102


def directory(number: int) -> Inode:
    return new_directory(InodeNumber(number), ROOT_INODE, 0)


def test_what_the_thread_itself_was_told_last_counts_once() -> None:
    told = LookedUpDentries()
    for number in (2, 3):
        told.note(ONE, ROOT_INODE, b"name", directory(number))
    told.note(OTHER, ROOT_INODE, b"name", directory(4))
    assert told.pop(ONE, ROOT_INODE, b"other") == 0
    assert [told.pop(ONE, ROOT_INODE, b"name") for _ in range(2)] == [3, 0]
    assert told.pop(OTHER, ROOT_INODE, b"name") == 4


def test_a_file_or_nothing_under_the_name_is_no_directory() -> None:
    told = LookedUpDentries()
    told.note(ONE, ROOT_INODE, b"name", directory(2))
    told.note(ONE, ROOT_INODE, b"name", FILE)
    assert told.pop(ONE, ROOT_INODE, b"name") == 0
    told.note(ONE, ROOT_INODE, b"name", directory(2))
    told.forget(ONE, ROOT_INODE, b"name")
    assert told.pop(ONE, ROOT_INODE, b"name") == 0


def test_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looked_up, "DIRECTORIES_TOLD_MAX", 2)
    told = LookedUpDentries()
    for number in (2, 3, 2, 4):
        told.note(ONE, ROOT_INODE, b"%d" % number, directory(number))
    assert [told.pop(ONE, ROOT_INODE, b"%d" % number) for number in (2, 3, 4)] == [2, 0, 4]
