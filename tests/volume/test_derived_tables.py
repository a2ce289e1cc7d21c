"""Listings and orphans follow from the other tables."""

from pathlib import Path

import pytest

from fusemirror.change import Table
from fusemirror.errors import VolumeDamaged
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.entries import (
    Entry,
    entry_key,
    inode_key,
)
from tests.volume.test_catalog import catalog, commit, entry_row, file_inode, inode_row, names

__all__ = ["catalog"]


def test_a_listing_goes_on_after_its_cookie_while_names_come_and_go(catalog: Catalog) -> None:
    catalog.apply_rows([entry_row(b"%d" % n, 5, n * 2) for n in range(1, 11)])
    first = catalog.listing(ROOT_INODE, 0, 4)
    assert [name for _, name, _ in first] == [b"1", b"2", b"3", b"4"]
    catalog.apply_rows(
        [
            (Table.ENTRIES, entry_key(ROOT_INODE, b"2"), None),
            (Table.ENTRIES, entry_key(ROOT_INODE, b"6"), None),
            entry_row(b"0 sorts first by name", 5, 22),
            entry_row(b"7", 6, 24),  # replaced by a rename: the same name, another cookie
        ]
    )
    rest = names(catalog, after=first[-1][0])
    assert rest == [b"5", b"8", b"9", b"10", b"0 sorts first by name", b"7"]
    assert catalog.derived.wrong() == 0


def test_a_listing_ends_with_its_directory(catalog: Catalog) -> None:
    two = InodeNumber(2)
    catalog.apply_rows([entry_row(b"a", 5, 2), entry_row(b"b", 5, 4, parent=two)])
    assert names(catalog) == [b"a"]
    assert [entry for _, _, entry in catalog.listing(two, 0, 10)] == [Entry(InodeNumber(5), 8, 4)]
    assert not catalog.is_empty(two)
    assert catalog.is_empty(InodeNumber(3))


def test_orphans_are_inodes_without_names_and_last_over_reopening(tmp_path: Path) -> None:
    Catalog.create(tmp_path / "catalog")
    catalog = Catalog(tmp_path / "catalog")
    catalog.apply_rows([inode_row(file_inode(n, nlink=n % 2)) for n in range(2, 8)])
    assert catalog.orphans() == [2, 4, 6]
    catalog.apply_rows([inode_row(file_inode(2)), (Table.INODES, inode_key(4), None)])
    assert catalog.orphans() == [6]
    commit(catalog, 1)
    catalog.close()
    catalog = Catalog(tmp_path / "catalog")
    assert catalog.orphans() == [6]
    assert catalog.derived.wrong() == 0
    catalog.close()


def test_a_listing_that_disagrees_with_the_entries_is_damage(catalog: Catalog) -> None:
    catalog.apply_rows([entry_row(b"a", 5, 2)])
    catalog._store.txn.put(inode_key(1) + inode_key(8), b"gone", db=catalog._store.listing)
    with pytest.raises(VolumeDamaged, match="gone"):
        catalog.listing(ROOT_INODE, 0, 10)
    assert catalog.derived.wrong() == 1
    catalog.derived.rebuild()
    assert names(catalog) == [b"a"]
