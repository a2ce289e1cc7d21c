"""What is remembered of the directories that threads were told."""

import pytest

from fusemirror.filesystem import told_directories
from fusemirror.filesystem.told_directories import ToldDirectories
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.volume.catalog import new_directory
from fusemirror.volume.inode import Inode

FILE = Inode(InodeNumber(9), 0o100644, 1, 0, 0, 0, 0, 0, 0, 0)
ONE, OTHER = 101, 102


def directory(number: int) -> Inode:
    return new_directory(InodeNumber(number), ROOT_INODE, 0)


def test_what_the_thread_itself_was_told_last_counts_once() -> None:
    told = ToldDirectories()
    for number in (2, 3):
        told.tell(ONE, ROOT_INODE, b"name", directory(number))
    told.tell(OTHER, ROOT_INODE, b"name", directory(4))
    assert told.take(ONE, ROOT_INODE, b"other") == 0
    assert [told.take(ONE, ROOT_INODE, b"name") for _ in range(2)] == [3, 0]
    assert told.take(OTHER, ROOT_INODE, b"name") == 4


def test_a_file_or_nothing_under_the_name_is_no_directory() -> None:
    told = ToldDirectories()
    told.tell(ONE, ROOT_INODE, b"name", directory(2))
    told.tell(ONE, ROOT_INODE, b"name", FILE)
    assert told.take(ONE, ROOT_INODE, b"name") == 0
    told.tell(ONE, ROOT_INODE, b"name", directory(2))
    told.forget(ONE, ROOT_INODE, b"name")
    assert told.take(ONE, ROOT_INODE, b"name") == 0


def test_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told_directories, "DIRECTORIES_TOLD_MAX", 2)
    told = ToldDirectories()
    for number in (2, 3, 2, 4):
        told.tell(ONE, ROOT_INODE, b"%d" % number, directory(number))
    assert [told.take(ONE, ROOT_INODE, b"%d" % number) for number in (2, 3, 4)] == [2, 0, 4]
