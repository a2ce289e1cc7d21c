"""Inodes that are newer than their rows: bounded, and none is lost before its row is committed."""

from pathlib import Path

import pytest

from fusemirror.change import Table
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import INODES_CACHED_MAX
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.entries import (
    inode_key,
)
from tests.volume.test_catalog import catalog, commit, file_inode, inode_row

__all__ = ["catalog"]


def test_the_cache_is_bounded_and_keeps_what_is_not_committed(tmp_path: Path) -> None:
    Catalog.create(tmp_path / "catalog")
    catalog = Catalog(tmp_path / "catalog")
    count = INODES_CACHED_MAX + INODES_CACHED_MAX // 2
    catalog.apply_rows([inode_row(file_inode(number)) for number in range(2, count)])
    assert len(catalog._cached) <= INODES_CACHED_MAX
    touched = []
    for number in range(2, 50):
        inode = catalog.inode(InodeNumber(number))
        assert inode is not None
        inode.size = number
        catalog.touch(inode)
        touched.append(inode)
    catalog.cache.flush()
    for number in range(2, count):
        catalog.inode(InodeNumber(number))
    assert [catalog.inode(inode.number) for inode in touched] == touched
    assert len(catalog._cached) <= INODES_CACHED_MAX
    catalog.close()


def test_an_inode_that_made_place_before_it_was_touched_is_what_the_cache_gives(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusemirror.volume.inode_cache.INODES_CACHED_MAX", 8)
    numbers = [InodeNumber(number) for number in range(2, 20)]
    catalog.apply_rows([inode_row(file_inode(number)) for number in numbers])
    commit(catalog, 1)
    first = catalog.inode(numbers[0])
    assert first is not None
    for number in numbers[1:]:
        catalog.inode(number)
    assert numbers[0] not in catalog.cache.cached
    first.size = 123
    catalog.touch(first)
    assert catalog.inode(numbers[0]) is first
    with pytest.raises(AssertionError):
        catalog.touch(first.copy())  # its row could hold the attributes of one of the two only


def test_touched_attributes_reach_rows_digests_and_commits(tmp_path: Path) -> None:
    Catalog.create(tmp_path / "catalog")
    catalog = Catalog(tmp_path / "catalog")
    catalog.apply_rows([inode_row(file_inode(2))])
    commit(catalog, 1)
    inode = catalog.inode(InodeNumber(2))
    assert inode is not None
    before = catalog.tables.digest(Table.INODES, b"", b"\xff" * 9)
    inode.size = 123
    catalog.touch(inode)
    catalog.touch(inode)
    assert catalog.changes_since_commit == 1
    assert catalog.tables.digest(Table.INODES, b"", b"\xff" * 9) != before
    assert dict(catalog.tables.rows(Table.INODES, None, 10))[inode_key(2)] == inode.pack()
    commit(catalog, 2)
    catalog.close()
    catalog = Catalog(tmp_path / "catalog")
    found = catalog.inode(InodeNumber(2))
    assert found is not None
    assert found.size == 123
    catalog.close()


def test_a_row_is_newer_than_what_was_touched_before(catalog: Catalog) -> None:
    catalog.apply_rows([inode_row(file_inode(2))])
    inode = catalog.inode(InodeNumber(2))
    assert inode is not None
    inode.size = 123
    catalog.touch(inode)
    catalog.apply_rows([inode_row(file_inode(2, size=5))])
    assert dict(catalog.tables.rows(Table.INODES, None, 10))[inode_key(2)] == file_inode(2, size=5).pack()
