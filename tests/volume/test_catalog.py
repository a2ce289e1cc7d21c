import resource
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fusemirror.change import Row, Table
from fusemirror.errors import DiskFailed, FusemirrorError, VolumeDamaged
from fusemirror.identifiers import ROOT_INODE, ChangeNumber, InodeNumber
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.entries import (
    Entry,
    entry_key,
    inode_key,
    key_inode,
    pack_entry,
    unpack_entry,
    xattr_key,
)
from fusemirror.volume.inode import Inode
from fusemirror.volume.rows import check_rows
from tests.volume.conftest import inode_count


@pytest.fixture
def catalog(tmp_path: Path) -> Any:
    Catalog.create(tmp_path / "catalog")
    opened = Catalog(tmp_path / "catalog")
    yield opened
    opened.close()


def file_inode(number: int, nlink: int = 1, size: int = 0) -> Inode:
    return Inode(InodeNumber(number), 0o100644, nlink, 0, 0, 0, size, 0, 0, 0)


def inode_row(inode: Inode) -> Row:
    return Table.INODES, inode_key(inode.number), inode.pack()


def entry_row(name: bytes, inode: int, cookie: int, parent: InodeNumber = ROOT_INODE) -> Row:
    return Table.ENTRIES, entry_key(parent, name), pack_entry(Entry(InodeNumber(inode), 8, cookie))


def commit(catalog: Catalog, number: int) -> None:
    catalog.commit(ChangeNumber(number), ChangeNumber(number), number)


def names(catalog: Catalog, after: int = 0, limit: int = 100) -> list[bytes]:
    return [name for _, name, _ in catalog.listing(ROOT_INODE, after, limit)]


def test_a_new_catalog_holds_a_root_directory(catalog: Catalog) -> None:
    root = catalog.inode(ROOT_INODE)
    assert root is not None
    assert (root.mode, root.nlink, root.size, root.parent) == (0o040755, 2, 4096, ROOT_INODE)
    assert inode_count(catalog) == 1
    assert catalog.next_inode == 2
    assert catalog.is_empty(ROOT_INODE)
    assert (catalog.number, catalog.meta.has_place) == (0, True)


def test_what_was_committed_is_there_after_reopening_and_the_rest_is_not(tmp_path: Path) -> None:
    Catalog.create(tmp_path / "catalog")
    catalog = Catalog(tmp_path / "catalog")
    catalog.apply_rows([inode_row(file_inode(5)), entry_row(b"a", 5, 2)])
    commit(catalog, 7)
    catalog.apply_rows([entry_row(b"b", 5, 4)])
    catalog.close()
    catalog = Catalog(tmp_path / "catalog")
    assert names(catalog) == [b"a"]
    assert (catalog.number, catalog.journal_number, catalog.time_ns, catalog.next_inode) == (7, 7, 7, 6)
    catalog.close()


def test_an_inode_is_one_object_that_rows_change_in_place(catalog: Catalog) -> None:
    catalog.apply_rows([inode_row(file_inode(2))], ChangeNumber(4))
    inode = catalog.inode(InodeNumber(2))
    assert inode is catalog.inode(InodeNumber(2))
    assert inode is not None
    assert inode.changed == 4
    catalog.apply_rows([inode_row(file_inode(2, size=77))], ChangeNumber(5))
    assert (inode.size, inode.changed) == (77, 5)
    catalog.apply_rows([(Table.INODES, inode_key(2), None)])
    assert catalog.inode(InodeNumber(2)) is None


def test_names_that_no_directory_can_hold_are_not_there(catalog: Catalog) -> None:
    assert catalog.entry(ROOT_INODE, b"") is None
    assert catalog.entry(ROOT_INODE, b"x" * 256) is None
    assert catalog.entry(ROOT_INODE, b"x" * 5000) is None
    assert catalog.xattrs.value(ROOT_INODE, b"x" * 5000) is None


GOOD = inode_row(file_inode(2))


@pytest.mark.parametrize(
    "row",
    [
        (9, b"key", b"value"),
        (Table.INODES, b"short", GOOD[2]),
        (Table.INODES, inode_key(2), b"short"),
        (Table.ENTRIES, inode_key(1), pack_entry(Entry(InodeNumber(2), 8, 2))),
        (Table.ENTRIES, entry_key(ROOT_INODE, b"x" * 256), pack_entry(Entry(InodeNumber(2), 8, 2))),
        (Table.ENTRIES, entry_key(ROOT_INODE, b"x"), b"short"),
        (Table.ENTRIES, entry_key(ROOT_INODE, b"x"), pack_entry(Entry(InodeNumber(2), 3, 2))),
        (Table.ENTRIES, entry_key(ROOT_INODE, b"x"), pack_entry(Entry(InodeNumber(2), 8, 1 << 62))),
        (Table.XATTRS, inode_key(2), b"value"),
        (Table.META, b"", b"value"),
        (Table.META, b"number", b"\x00" * 8),
    ],
)
def test_rows_that_no_catalog_can_hold_are_refused(row: Row) -> None:
    with pytest.raises(FusemirrorError, match="no catalog can hold"):
        check_rows([GOOD, row])


def test_a_short_inode_on_the_disk_is_damage(catalog: Catalog) -> None:
    catalog._store.txn.put(inode_key(7), b"short", db=catalog._store.inodes)
    with pytest.raises(VolumeDamaged, match="INODES"):
        catalog.inode(InodeNumber(7))


def test_a_failed_commit_loses_nothing_that_can_be_put_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Catalog.create(tmp_path / "catalog")
    catalog = Catalog(tmp_path / "catalog")
    catalog.apply_rows([inode_row(file_inode(2)), inode_row(file_inode(3))])
    commit(catalog, 1)
    inode = catalog.inode(InodeNumber(2))
    assert inode is not None
    inode.size = 55
    catalog.touch(inode)
    catalog.apply_rows([inode_row(file_inode(4, nlink=0)), (Table.INODES, inode_key(3), None)])
    _fail_next_commit(catalog, monkeypatch)
    with pytest.raises(DiskFailed, match="catalog"):
        commit(catalog, 2)
    unsaved = catalog.rollback()
    assert unsaved == [inode]
    assert catalog.inode(InodeNumber(4)) is None
    assert catalog.orphans() == []
    for lost in unsaved:
        catalog.touch(lost)
    assert catalog.inode(InodeNumber(2)) is inode
    commit(catalog, 2)
    catalog.close()
    catalog = Catalog(tmp_path / "catalog")
    found = catalog.inode(InodeNumber(2))
    assert found is not None
    assert found.size == 55
    catalog.close()


def _fail_next_commit(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """While no file may grow at all, LMDB's own write fails as on a full disk."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    real_commit = catalog.commit

    def failing(*arguments: Any) -> None:
        monkeypatch.undo()
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
        try:
            real_commit(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    monkeypatch.setattr(catalog, "commit", failing)


class CatalogAgainstDictionaries(RuleBasedStateMachine):
    """The catalog does what plain dictionaries do, over commits, reopenings and rollbacks."""

    numbers = st.integers(2, 6)
    names = st.sampled_from([b"a", b"b", b"longer name", b"\xff"])

    @initialize()
    def start(self) -> None:
        self._home = tempfile.TemporaryDirectory()
        self.path = Path(self._home.name) / "catalog"
        Catalog.create(self.path)
        self.catalog = Catalog(self.path)
        self.rows: dict[tuple[int, bytes], bytes] = {
            (table, key): row for table in Table for key, row in self.catalog.tables.rows(table, None, 10)
        }
        self.committed = dict(self.rows)
        self.number = 0

    def apply(self, *rows: Row) -> None:
        check_rows(rows)
        self.catalog.apply_rows(rows)
        for table, key, value in rows:
            if value is None:
                self.rows.pop((table, key), None)
            else:
                self.rows[table, key] = value

    @rule(number=numbers, nlink=st.integers(0, 2))
    def put_inode(self, number: int, nlink: int) -> None:
        self.apply(inode_row(file_inode(number, nlink)))

    @rule(number=numbers)
    def remove_inode(self, number: int) -> None:
        self.apply((Table.INODES, inode_key(number), None))

    @rule(parent=numbers, name=names, number=numbers)
    def put_entry(self, parent: int, name: bytes, number: int) -> None:
        self.number += 1
        self.apply(entry_row(name, number, self.number, parent=InodeNumber(parent)))

    @rule(parent=numbers, name=names)
    def remove_entry(self, parent: int, name: bytes) -> None:
        self.apply((Table.ENTRIES, entry_key(InodeNumber(parent), name), None))

    @rule(number=numbers, name=names, value=st.none() | st.binary(max_size=3))
    def put_xattr(self, number: int, name: bytes, value: bytes | None) -> None:
        self.apply((Table.XATTRS, xattr_key(InodeNumber(number), name), value))

    @rule(number=numbers, size=st.integers(0, 100))
    def touch(self, number: int, size: int) -> None:
        inode = self.catalog.inode(InodeNumber(number))
        if inode is not None:
            inode.size = size
            self.catalog.touch(inode)
            self.rows[Table.INODES, inode_key(number)] = inode.pack()

    @rule()
    def commit(self) -> None:
        commit(self.catalog, self.number)
        self.committed = dict(self.rows)

    @rule()
    def kill(self) -> None:
        self.catalog.close()
        self.catalog = Catalog(self.path)
        self.rows = dict(self.committed)

    @rule()
    def roll_back(self) -> None:
        self.catalog.rollback()
        self.rows = dict(self.committed)

    @invariant()
    def it_holds_what_the_dictionaries_hold(self) -> None:
        found = {
            (table, key): row for table in Table for key, row in self.catalog.tables.rows(table, None, 1000)
        }
        assert found == self.rows
        assert self.catalog.derived.wrong() == 0
        entries = [(key, row) for (table, key), row in self.rows.items() if table == Table.ENTRIES]
        for parent in range(1, 8):
            mine = [(unpack_entry(row), key[8:]) for key, row in entries if key_inode(key) == parent]
            expected = sorted((entry.cookie, name, entry) for entry, name in mine)
            assert self.catalog.listing(InodeNumber(parent), 0, 1000) == expected
            assert self.catalog.is_empty(InodeNumber(parent)) is not bool(mine)

    def teardown(self) -> None:
        if hasattr(self, "catalog"):
            self.catalog.close()
            self._home.cleanup()


TestCatalogAgainstDictionaries = CatalogAgainstDictionaries.TestCase
TestCatalogAgainstDictionaries.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


# --- rows that contradict each other ---------------------------------------------------------------------
