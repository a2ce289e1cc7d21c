"""Extended attributes, as a catalog holds them."""

from fusemirror.change import Table
from fusemirror.identifiers import InodeNumber
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.entries import (
    xattr_key,
)
from fusemirror.xattrs import CAPABILITY
from tests.volume.test_catalog import catalog, file_inode, inode_row

__all__ = ["catalog"]


def test_it_is_remembered_and_never_wrong_whether_an_inode_has_a_capability(catalog: Catalog) -> None:
    catalog.apply_rows([inode_row(file_inode(2))])
    inode = catalog.inode(InodeNumber(2))
    assert inode is not None
    for value in (None, b"value", b"another", None):
        catalog.apply_rows([(Table.XATTRS, xattr_key(inode.number, CAPABILITY), value)])
        assert catalog.xattrs.has_capability(inode) is (value is not None)
        assert inode.capable is (value is not None)


def test_xattrs_belong_to_their_inode(catalog: Catalog) -> None:
    two, three = InodeNumber(2), InodeNumber(3)
    catalog.apply_rows(
        [
            (Table.XATTRS, xattr_key(two, b"user.b"), b"1"),
            (Table.XATTRS, xattr_key(two, b"user.a"), b""),
            (Table.XATTRS, xattr_key(three, b"user.c"), bytes(65536)),
        ]
    )
    assert catalog.xattrs.names(two) == [b"user.a", b"user.b"]
    assert catalog.xattrs.value(two, b"user.a") == b""
    assert catalog.xattrs.value(two, b"user.c") is None
    assert catalog.xattrs.value(three, b"user.c") == bytes(65536)
    catalog.apply_rows([(Table.XATTRS, xattr_key(two, name), None) for name in (b"user.a", b"user.b")])
    assert catalog.xattrs.names(two) == []
    assert catalog.xattrs.names(three) == [b"user.c"]
