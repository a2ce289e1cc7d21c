"""Link: what may have one more name."""

import errno

import pytest

from fusemirror.change import Table
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import LINKS_MAX
from fusemirror.operations import HardLink, Operation
from fusemirror.volume.entries import inode_key
from tests.operations.conftest import NOWHERE, ROOT, TOO_LONG, Decider, Examples, Tree, refused

EXAMPLES: Examples = [
    (HardLink(InodeNumber(2), InodeNumber(3), b"n"), "94040203c4016e"),
    (HardLink(InodeNumber(2), InodeNumber(3), b"second"), "94040203c4067365636f6e64"),
]

ERRORS = {
    "the name is there": (HardLink(InodeNumber(4), ROOT, b"dir"), errno.EEXIST),
    "the name is too long": (HardLink(InodeNumber(4), ROOT, TOO_LONG), errno.ENAMETOOLONG),
    "to a directory": (HardLink(InodeNumber(2), ROOT, b"new"), errno.EPERM),
    "to an inode that is gone": (HardLink(NOWHERE, ROOT, b"new"), errno.ESTALE),
    "to an inode without names": (HardLink(InodeNumber(7), ROOT, b"new"), errno.ENOENT),
}


@pytest.mark.parametrize(("operation", "expected"), ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_has_its_errno_and_changes_nothing(
    decider: Decider, tree: Tree, operation: Operation, expected: int
) -> None:
    refused(decider, operation, expected)


def test_a_file_has_no_more_links_than_the_limit(decider: Decider) -> None:
    file = decider.create(b"file")
    inode = decider.inode(file).copy()
    inode.nlink = LINKS_MAX - 1
    decider.catalog.apply_rows([(Table.INODES, inode_key(file), inode.pack())])
    decider.do(HardLink(file, ROOT, b"last"))
    with pytest.raises(OperationFailed) as caught:
        decider.do(HardLink(file, ROOT, b"one too many"))
    assert caught.value.errno == errno.EMLINK


def test_the_name_and_the_inode_are_touched(decider: Decider, tree: Tree) -> None:
    link = HardLink(tree.file, tree.directory, b"new")
    assert link.touched_names() == ((tree.directory, b"new"),)
    assert list(link.touched_inodes(decider.catalog)) == [tree.file]
