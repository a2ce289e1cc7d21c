"""Purging: what goes with an inode that has no names."""

from fusemirror.change import Table
from fusemirror.control.purging import purge_rows
from fusemirror.identifiers import ROOT_INODE
from fusemirror.operations import CreateUnnamed, LinkUnnamed, SetXattr
from fusemirror.volume.entries import inode_key
from tests.operations.conftest import Decider, Tree, decider, tree

__all__ = ["decider", "tree"]


def test_what_has_got_a_name_meanwhile_stays(decider: Decider) -> None:
    made = decider.do(CreateUnnamed(ROOT_INODE, 0o100644, 0, 0)).inode
    decider.do(LinkUnnamed(made, ROOT_INODE, b"name"))
    assert purge_rows(decider.catalog, [made]) == ()


def test_a_purge_takes_the_attributes_with_the_inode(decider: Decider, tree: Tree) -> None:
    before = decider.rows()
    for name in (b"user.a", b"user.b"):
        decider.do(SetXattr(tree.unlinked, name, b"value"))
    decider.catalog.apply_rows(purge_rows(decider.catalog, [tree.unlinked, tree.removed]))
    gone = {(Table.INODES, inode_key(number)) for number in (tree.unlinked, tree.removed)}
    assert decider.rows() == {key: row for key, row in before.items() if key not in gone}
    assert not decider.catalog.orphans()
