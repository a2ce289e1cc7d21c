"""Rename: over what, exchanged with what, and never a directory into itself."""

import errno

import pytest

from fusemirror.errors import OperationFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.operations import Create, HardLink, Operation, RemoveDirectory, Rename, rename
from fusemirror.operations.draft import Decision
from fusemirror.operations.rename import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.operations.conftest import DIRECTORY, ROOT, TOO_LONG, Decider, Examples, Tree, refused

EXAMPLES: Examples = [
    (
        Rename(InodeNumber(2), b"a", InodeNumber(3), b"b", flags=1, expected=InodeNumber(3)),
        "970702c4016103c401620103",
    ),
    (
        Rename(InodeNumber(3), b"second", InodeNumber(3), b"third"),
        "970703c4067365636f6e6403c40574686972640000",
    ),
]

ERRORS = {
    "another directory than expected": (Rename(ROOT, b"file", ROOT, b"new", 0, ROOT), errno.ESTALE),
    "no such name": (Rename(ROOT, b"none", ROOT, b"new"), errno.ENOENT),
    "the old name is too long": (Rename(ROOT, TOO_LONG, ROOT, b"new"), errno.ENAMETOOLONG),
    "the new name is too long": (Rename(ROOT, b"file", ROOT, TOO_LONG), errno.ENAMETOOLONG),
    "dot": (Rename(ROOT, b".", ROOT, b"new"), errno.EINVAL),
    "to dot dot": (Rename(ROOT, b"dir", ROOT, b".."), errno.EINVAL),
    "flags that nobody knows": (Rename(ROOT, b"file", ROOT, b"new", 4), errno.EINVAL),
    "both flags": (Rename(ROOT, b"file", ROOT, b"new", 3), errno.EINVAL),
    "a file over a directory": (Rename(ROOT, b"file", ROOT, b"empty"), errno.EISDIR),
    "a directory over a file": (Rename(ROOT, b"empty", ROOT, b"file"), errno.ENOTDIR),
    "over a directory with names": (Rename(ROOT, b"empty", ROOT, b"dir"), errno.ENOTEMPTY),
    "a directory into itself": (Rename(ROOT, b"dir", InodeNumber(2), b"new"), errno.EINVAL),
    "rename without replacing: the name is there": (
        Rename(ROOT, b"file", ROOT, b"empty", RENAME_NOREPLACE),
        errno.EEXIST,
    ),
    "exchange: no such new name": (Rename(ROOT, b"file", ROOT, b"none", RENAME_EXCHANGE), errno.ENOENT),
    "exchange: a directory with what is in it": (
        Rename(ROOT, b"dir", InodeNumber(2), b"inner", RENAME_EXCHANGE),
        errno.EINVAL,
    ),
    "exchange: what is in a directory with it": (
        Rename(InodeNumber(2), b"inner", ROOT, b"dir", RENAME_EXCHANGE),
        errno.EINVAL,
    ),
}


@pytest.mark.parametrize(("operation", "expected"), ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_has_its_errno_and_changes_nothing(
    decider: Decider, tree: Tree, operation: Operation, expected: int
) -> None:
    refused(decider, operation, expected)


@pytest.mark.parametrize("another", [False, True])
def test_where_the_expected_one_is_removed_already_the_rename_is_done(
    decider: Decider, *, another: bool
) -> None:
    moved, expected = decider.create(b"moved", DIRECTORY), decider.create(b"name", DIRECTORY)
    decider.do(RemoveDirectory(ROOT, b"name"))
    replaced = [decider.create(b"name", DIRECTORY)] if another else []
    decider.do(Rename(ROOT, b"moved", ROOT, b"name", 0, expected))
    assert decider.names() == [b"name"]
    assert decider.inode(moved).nlink == 2
    assert decider.catalog.orphans() == [expected, *replaced]


def test_a_rename_over_a_file_takes_one_link_of_it(decider: Decider) -> None:
    old, new = decider.create(b"old"), decider.create(b"new")
    decider.do(HardLink(new, ROOT, b"second"))
    decider.do(Rename(ROOT, b"old", ROOT, b"new"))
    assert decider.names() == [b"new", b"second"]
    assert (decider.inode(old).nlink, decider.inode(new).nlink) == (1, 1)
    assert decider.inode(new).ctime_ns == decider.time_ns


def test_a_rename_between_two_names_of_one_file_changes_nothing(decider: Decider) -> None:
    file = decider.create(b"file")
    decider.do(HardLink(file, ROOT, b"second"))
    decision = decider.do(Rename(ROOT, b"file", ROOT, b"second"))
    assert decision == Decision(None, file)
    assert decider.names() == [b"file", b"second"]


def test_an_exchange_moves_a_directory_and_a_file_at_once(decider: Decider) -> None:
    outer = decider.create(b"outer", DIRECTORY)
    directory, file = decider.create(b"dir", DIRECTORY, outer), decider.create(b"file")
    decider.do(Rename(outer, b"dir", ROOT, b"file", RENAME_EXCHANGE))
    found = [decider.catalog.listing(number, 0, 10)[-1] for number in (ROOT, outer)]
    assert [(name, entry.inode) for _, name, entry in found] == [(b"file", directory), (b"dir", file)]
    assert found[0][0] != found[1][0], "each name has a cookie of its own"
    assert decider.inode(directory).parent == ROOT
    assert [decider.inode(number).nlink for number in (ROOT, outer, directory, file)] == [4, 2, 2, 1]


def test_a_directory_may_not_move_below_itself_however_deep(decider: Decider) -> None:
    chain = [decider.create(b"0", DIRECTORY)]
    for depth in range(1, 5):
        chain.append(decider.create(b"%d" % depth, DIRECTORY, chain[-1]))
    for below in chain:
        with pytest.raises(OperationFailed) as caught:
            decider.do(Rename(ROOT, b"0", below, b"loop"))
        assert caught.value.errno == errno.EINVAL
    decider.do(Rename(chain[3], b"4", ROOT, b"up"))


def test_a_directory_goes_nowhere_so_deep_that_it_takes_too_long_to_look_up_from_there(
    decider: Decider, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tree.directory
    for _ in range(6):
        parent = decider.do(Create(parent, b"deeper", 0o040755, 0, 0)).inode
    moved = decider.do(Create(ROOT, b"moved", 0o040755, 0, 0)).inode
    monkeypatch.setattr(rename, "ANCESTORS_MAX", 3)
    decider.do(Rename(ROOT, b"moved", ROOT, b"still here"))
    with pytest.raises(OperationFailed) as caught:
        decider.do(Rename(ROOT, b"still here", parent, b"moved"))
    assert caught.value.errno == errno.ELOOP
    monkeypatch.undo()
    decider.do(Rename(ROOT, b"still here", parent, b"moved"))
    assert decider.inode(moved).parent == parent


def test_both_names_and_what_has_them_are_touched(decider: Decider, tree: Tree) -> None:
    rename = Rename(ROOT, b"file", tree.directory, b"inner")
    assert rename.touched_names() == ((ROOT, b"file"), (tree.directory, b"inner"))
    assert list(rename.touched_inodes(decider.catalog)) == [tree.file, tree.inner]
    assert rename.must_be_empty(decider.catalog) == tree.inner
    assert Rename(ROOT, b"file", ROOT, b"new").must_be_empty(decider.catalog) is None
