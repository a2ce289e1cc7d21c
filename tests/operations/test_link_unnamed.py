"""The first name of a file that was made without one."""

import errno

from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.operations import CreateUnnamed, HardLink, LinkUnnamed
from tests.operations.conftest import Decider, Examples, Tree, refused

EXAMPLES: Examples = [
    (LinkUnnamed(InodeNumber(2), InodeNumber(3), b"n"), "942b0203c4016e"),
    (LinkUnnamed(InodeNumber(2), InodeNumber(3), b"first"), "942b0203c4056669727374"),
]


def test_only_its_host_can_give_it_a_name(decider: Decider, tree: Tree) -> None:
    made = decider.do(CreateUnnamed(tree.directory, 0o100644, 0, 0)).inode
    refused(decider, HardLink(made, ROOT_INODE, b"name"), errno.ENOENT)
    refused(decider, LinkUnnamed(made, ROOT_INODE, b"file"), errno.EEXIST)
    decider.do(LinkUnnamed(made, ROOT_INODE, b"name"))
    assert decider.inode(made).nlink == 1
    assert not decider.catalog.derived.is_orphan(made)
    assert b"name" in decider.names()
    decider.do(LinkUnnamed(made, ROOT_INODE, b"asked for again"))
    assert decider.inode(made).nlink == 2
    refused(decider, LinkUnnamed(tree.directory, ROOT_INODE, b"dir2"), errno.EPERM)
