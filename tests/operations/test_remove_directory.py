"""RemoveDirectory: only the empty one that was meant, and the counts of its parent."""

import errno

import pytest

from fusemirror.identifiers import InodeNumber
from fusemirror.operations import Operation, RemoveDirectory, Rename
from tests.operations.conftest import DIRECTORY, ROOT, Decider, Examples, Tree, refused

EXAMPLES: Examples = [
    (RemoveDirectory(InodeNumber(3), b"n", InodeNumber(9)), "940603c4016e09"),
    (RemoveDirectory(InodeNumber(3), b"dir"), "940603c40364697200"),
]

ERRORS = {
    "another directory than expected": (RemoveDirectory(ROOT, b"dir", ROOT), errno.ESTALE),
    "no such name": (RemoveDirectory(ROOT, b"none"), errno.ENOENT),
    "a file": (RemoveDirectory(ROOT, b"file"), errno.ENOTDIR),
    "not empty": (RemoveDirectory(ROOT, b"dir"), errno.ENOTEMPTY),
}


@pytest.mark.parametrize(("operation", "expected"), ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_has_its_errno_and_changes_nothing(
    decider: Decider, tree: Tree, operation: Operation, expected: int
) -> None:
    refused(decider, operation, expected)


def test_where_the_expected_one_is_removed_already_the_one_there_now_is(decider: Decider) -> None:
    expected = decider.create(b"name", DIRECTORY)
    decider.do(RemoveDirectory(ROOT, b"name"))
    for gone in (expected, InodeNumber(expected + 100)):
        decider.create(b"name", DIRECTORY)
        decider.do(RemoveDirectory(ROOT, b"name", gone))
        assert decider.names() == []
    decider.create(b"name", DIRECTORY)
    decider.do(Rename(ROOT, b"name", ROOT, b"moved"))
    refused(decider, RemoveDirectory(ROOT, b"name", expected), errno.ENOENT)


def test_directories_count_the_directories_in_them(decider: Decider) -> None:
    one, other = decider.create(b"one", DIRECTORY), decider.create(b"other", DIRECTORY)
    child = decider.create(b"child", DIRECTORY, one)

    def counts() -> list[int]:
        return [decider.inode(number).nlink for number in (ROOT, one, other, child)]

    assert counts() == [4, 3, 2, 2]
    decider.do(Rename(one, b"child", other, b"child"))
    assert counts() == [4, 2, 3, 2]
    assert decider.inode(child).parent == other
    decider.do(Rename(other, b"child", ROOT, b"one"))  # over an empty one
    assert counts() == [4, 0, 2, 2]
    decider.do(RemoveDirectory(ROOT, b"one"))
    assert counts() == [3, 0, 2, 0]
    assert decider.catalog.orphans() == [one, child]


def test_the_directory_must_be_empty(decider: Decider, tree: Tree) -> None:
    assert RemoveDirectory(ROOT, b"empty").must_be_empty(decider.catalog) == tree.empty
    assert RemoveDirectory(ROOT, b"none").must_be_empty(decider.catalog) is None
