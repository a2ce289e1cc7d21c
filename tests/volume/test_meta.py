"""Where a catalog stands: its own rows, which are shown to nobody."""

from pathlib import Path

from fusemirror.change import Table
from fusemirror.identifiers import InodeNumber
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.entries import (
    inode_key,
)
from fusemirror.volume.rows import INODES_FROM_KEY
from tests.volume.test_catalog import catalog, commit, file_inode, inode_row

__all__ = ["catalog"]


def test_numbers_of_removed_inodes_are_not_given_again(tmp_path: Path) -> None:
    Catalog.create(tmp_path / "catalog")
    catalog = Catalog(tmp_path / "catalog")
    catalog.apply_rows([inode_row(file_inode(9))])
    assert catalog.apply_rows([(Table.INODES, inode_key(9), None)]) == [9]
    commit(catalog, 1)
    catalog.close()
    catalog = Catalog(tmp_path / "catalog")
    assert catalog.inode(InodeNumber(9)) is None
    assert catalog.next_inode == 10
    catalog.close()


def test_a_row_leaves_out_inode_numbers(catalog: Catalog) -> None:
    catalog.apply_rows([(Table.META, INODES_FROM_KEY, (4711).to_bytes(8, "big"))])
    assert catalog.next_inode == 4711


def test_the_catalogs_own_place_is_in_no_rows_and_no_digest(catalog: Catalog) -> None:
    catalog.apply_rows([(Table.META, b"generations", b"opaque")])
    digest = catalog.tables.digest(Table.META, b"", b"\xff")
    commit(catalog, 99)
    assert catalog.tables.rows(Table.META, None, 10) == [(b"generations", b"opaque")]
    assert catalog.tables.digest(Table.META, b"", b"\xff") == digest
    assert digest[0] == 1
    assert catalog.meta.value(b"generations") == b"opaque"
