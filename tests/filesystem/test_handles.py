"""Open files: what each open asked for, under numbers that are never used again."""

import os

import pytest

from fusemirror.filesystem.handles import DirectoryHandle, FileHandle, Handles
from fusemirror.identifiers import InodeNumber

INODE = InodeNumber(5)


def test_each_open_has_its_own_number_and_gets_its_own_handle() -> None:
    handles = Handles[FileHandle]()
    made = [FileHandle(INODE, os.O_RDONLY, 0) for _ in range(3)]
    numbers = [handles.add(handle) for handle in made]
    assert len(set(numbers)) == 3
    assert [handles[number] for number in numbers] == made


def test_a_number_is_not_used_again_after_the_handle_was_removed() -> None:
    handles = Handles[DirectoryHandle]()
    first = DirectoryHandle(INODE, 0)
    number = handles.add(first)
    assert handles.remove(number) is first
    assert handles.add(DirectoryHandle(INODE, 0)) != number


def test_a_number_that_was_never_given_or_is_over_is_a_bug() -> None:
    handles = Handles[FileHandle]()
    number = handles.add(FileHandle(INODE, 0, 0))
    handles.remove(number)
    for unknown in (number, 0, 77):
        with pytest.raises(KeyError):
            handles[unknown]
        with pytest.raises(KeyError):
            handles.remove(unknown)


@pytest.mark.parametrize(
    ("flags", "append"),
    [(os.O_RDWR, False), (os.O_WRONLY | os.O_APPEND, True), (os.O_RDWR | os.O_APPEND | os.O_SYNC, True)],
)
def test_a_file_opened_to_append_appends(flags: int, append: bool) -> None:
    assert FileHandle(INODE, flags, 0).append is append


def test_only_root_writes_without_clearing_privileges() -> None:
    assert not FileHandle(INODE, os.O_RDWR, 0).clear_privileges
    assert FileHandle(INODE, os.O_RDWR, 1000).clear_privileges
