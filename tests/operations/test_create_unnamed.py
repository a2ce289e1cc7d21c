"""A file that is made without a name."""

import errno

import pytest

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import SPACE_PER_CHANGE_BYTES
from fusemirror.operations import Create, CreateUnnamed
from tests.operations.conftest import NOWHERE, Decider, Examples, Tree, refused

EXAMPLES: Examples = [
    (CreateUnnamed(InodeNumber(2), 0o100644, 1, 2, umask=0o22), "962a02cd81a4010212"),
    (CreateUnnamed(InodeNumber(3), 0o100644, 0, 0, umask=0o22), "962a03cd81a4000012"),
]

FILE = 0o100666


@pytest.mark.parametrize(
    ("directory", "expected"), [("nowhere", "ESTALE"), ("file", "ENOTDIR"), ("removed", "ENOENT")]
)
def test_what_cannot_be_has_its_errno(decider: Decider, tree: Tree, directory: str, expected: str) -> None:
    number = getattr(tree, directory, NOWHERE)
    refused(decider, CreateUnnamed(number, FILE, 0, 0), getattr(errno, expected))


def test_it_has_what_a_named_one_would_inherit_and_no_name(decider: Decider, tree: Tree) -> None:
    parent = decider.inode(tree.directory).copy()
    parent.mode |= 0o2000
    parent.gid = 7
    decider.put(parent)
    before, names = decider.inode(tree.directory).pack(), decider.names(tree.directory)
    asked = CreateUnnamed(tree.directory, FILE, 5, 6, 0o22)
    decision = decider.do(asked)
    made = decider.inode(decision.inode)
    named = decider.inode(decider.do(Create(tree.directory, b"named", FILE, 5, 6, umask=0o22)).inode)
    assert (made.mode, made.uid, made.gid, made.nlink) == (named.mode, 5, 7, 0)
    assert decider.catalog.derived.is_orphan(made.number)
    assert decision.new_file
    assert decision.keys == (made.number,)
    assert asked.space_needed(0) == SPACE_PER_CHANGE_BYTES
    assert before != decider.inode(tree.directory).pack(), "by the named one"
    assert decider.names(tree.directory) == [*names, b"named"]


def test_its_directory_stays_as_it_is(decider: Decider, tree: Tree) -> None:
    before = decider.inode(tree.directory).pack()
    decider.do(CreateUnnamed(tree.directory, FILE, 0, 0))
    assert decider.inode(tree.directory).pack() == before
