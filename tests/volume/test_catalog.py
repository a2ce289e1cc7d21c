import resource
import tempfile
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fusemirror.change import Row, Table
from fusemirror.errors import DiskFailed, FusemirrorError, VolumeDamaged
from fusemirror.identifiers import ROOT_INODE, ChangeNumber, InodeNumber
from fusemirror.limits import INODES_CACHED_MAX
from fusemirror.volume.catalog import (
    Catalog,
    Entry,
    entry_key,
    inode_key,
    key_inode,
    pack_entry,
    unpack_entry,
    xattr_key,
)
from fusemirror.volume.inode import Inode
from fusemirror.volume.rows import INODES_FROM_KEY, check_rows
from fusemirror.xattrs import CAPABILITY


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


def test_a_catalog_whose_transaction_is_gone_says_so_as_an_error_of_the_disk(catalog: Catalog) -> None:
    catalog._txn.abort()
    number = InodeNumber(4711)
    for ask in (
        lambda: catalog.inode(number),
        lambda: catalog.entry(number, b"name"),
        lambda: catalog.listing(number, 0, 1),
        lambda: catalog.is_empty(number),
        lambda: catalog.xattr(number, b"user.x"),
        lambda: catalog.xattrs(number),
        lambda: catalog.has_xattrs(number),
        lambda: catalog.meta(b"name"),
        lambda: catalog.rows(Table.INODES, None, 1),
        lambda: catalog.digest(Table.INODES, b"", b"\xff"),
        catalog.inode_count,
    ):
        with pytest.raises(DiskFailed):
            ask()


def test_a_new_catalog_holds_a_root_directory(catalog: Catalog) -> None:
    root = catalog.inode(ROOT_INODE)
    assert root is not None
    assert (root.mode, root.nlink, root.size, root.parent) == (0o040755, 2, 4096, ROOT_INODE)
    assert catalog.inode_count() == 1
    assert catalog.next_inode == 2
    assert catalog.is_empty(ROOT_INODE)
    assert (catalog.number, catalog.finished) == (0, True)


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


def test_it_is_remembered_and_never_wrong_whether_an_inode_has_a_capability(catalog: Catalog) -> None:
    catalog.apply_rows([inode_row(file_inode(2))])
    inode = catalog.inode(InodeNumber(2))
    assert inode is not None
    for value in (None, b"value", b"another", None):
        catalog.apply_rows([(Table.XATTRS, xattr_key(inode.number, CAPABILITY), value)])
        assert catalog.has_capability(inode) is (value is not None)
        assert inode.capable is (value is not None)


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


def test_touched_attributes_reach_rows_digests_and_commits(tmp_path: Path) -> None:
    Catalog.create(tmp_path / "catalog")
    catalog = Catalog(tmp_path / "catalog")
    catalog.apply_rows([inode_row(file_inode(2))])
    commit(catalog, 1)
    inode = catalog.inode(InodeNumber(2))
    assert inode is not None
    before = catalog.digest(Table.INODES, b"", b"\xff" * 9)
    inode.size = 123
    catalog.touch(inode)
    catalog.touch(inode)
    assert catalog.changes_since_commit == 1
    assert catalog.digest(Table.INODES, b"", b"\xff" * 9) != before
    assert dict(catalog.rows(Table.INODES, None, 10))[inode_key(2)] == inode.pack()
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
    assert dict(catalog.rows(Table.INODES, None, 10))[inode_key(2)] == file_inode(2, size=5).pack()


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
    catalog.flush_touched()
    for number in range(2, count):
        catalog.inode(InodeNumber(number))
    assert [catalog.inode(inode.number) for inode in touched] == touched
    assert len(catalog._cached) <= INODES_CACHED_MAX
    catalog.close()


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
    assert catalog.derived_rows_wrong() == 0


def test_a_listing_ends_with_its_directory(catalog: Catalog) -> None:
    two = InodeNumber(2)
    catalog.apply_rows([entry_row(b"a", 5, 2), entry_row(b"b", 5, 4, parent=two)])
    assert names(catalog) == [b"a"]
    assert [entry for _, _, entry in catalog.listing(two, 0, 10)] == [Entry(InodeNumber(5), 8, 4)]
    assert not catalog.is_empty(two)
    assert catalog.is_empty(InodeNumber(3))


def test_names_that_no_directory_can_hold_are_not_there(catalog: Catalog) -> None:
    assert catalog.entry(ROOT_INODE, b"") is None
    assert catalog.entry(ROOT_INODE, b"x" * 256) is None
    assert catalog.entry(ROOT_INODE, b"x" * 5000) is None
    assert catalog.xattr(ROOT_INODE, b"x" * 5000) is None


def test_xattrs_belong_to_their_inode(catalog: Catalog) -> None:
    two, three = InodeNumber(2), InodeNumber(3)
    catalog.apply_rows(
        [
            (Table.XATTRS, xattr_key(two, b"user.b"), b"1"),
            (Table.XATTRS, xattr_key(two, b"user.a"), b""),
            (Table.XATTRS, xattr_key(three, b"user.c"), bytes(65536)),
        ]
    )
    assert catalog.xattrs(two) == [b"user.a", b"user.b"]
    assert catalog.xattr(two, b"user.a") == b""
    assert catalog.xattr(two, b"user.c") is None
    assert catalog.xattr(three, b"user.c") == bytes(65536)
    catalog.apply_rows([(Table.XATTRS, xattr_key(two, name), None) for name in (b"user.a", b"user.b")])
    assert not catalog.has_xattrs(two)
    assert catalog.has_xattrs(three)


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
    assert catalog.derived_rows_wrong() == 0
    catalog.close()


def test_the_catalogs_own_place_is_in_no_rows_and_no_digest(catalog: Catalog) -> None:
    catalog.apply_rows([(Table.META, b"generations", b"opaque")])
    digest = catalog.digest(Table.META, b"", b"\xff")
    commit(catalog, 99)
    assert catalog.rows(Table.META, None, 10) == [(b"generations", b"opaque")]
    assert catalog.digest(Table.META, b"", b"\xff") == digest
    assert digest[0] == 1
    assert catalog.meta(b"generations") == b"opaque"


@given(
    rows=st.dictionaries(st.binary(min_size=9, max_size=20), st.binary(max_size=20), max_size=20),
    limit=st.integers(1, 5),
    bounds=st.tuples(st.binary(max_size=20), st.binary(max_size=20)),
)
@settings(max_examples=30)
def test_rows_and_digests_cover_exactly_their_range(
    tmp_path_factory: pytest.TempPathFactory,
    rows: dict[bytes, bytes],
    limit: int,
    bounds: tuple[bytes, bytes],
) -> None:
    directory = tmp_path_factory.mktemp("catalog") / "catalog"
    catalog = Catalog(directory, create=True)
    catalog.apply_rows([(Table.XATTRS, key, value) for key, value in rows.items()])
    found: list[tuple[bytes, bytes]] = []
    while page := catalog.rows(Table.XATTRS, found[-1][0] if found else None, limit):
        assert len(page) <= limit
        found.extend(page)
    assert found == sorted(rows.items())
    expected = xxhash.xxh3_64()
    inside = [(key, value) for key, value in found if bounds[0] <= key <= bounds[1]]
    for key, value in inside:
        expected.update(len(key).to_bytes(4, "little") + len(value).to_bytes(4, "little") + key + value)
    assert catalog.digest(Table.XATTRS, *bounds) == (len(inside), expected.intdigest())
    catalog.close()


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


@pytest.mark.parametrize("value", [b"", b"short", pack_entry(Entry(InodeNumber(2), 3, 2))])
def test_an_entry_on_the_disk_that_is_none_is_damage(catalog: Catalog, value: bytes) -> None:
    catalog._txn.put(entry_key(ROOT_INODE, b"a"), value, db=catalog._entries)
    with pytest.raises(VolumeDamaged, match="ENTRIES"):
        catalog.entry(ROOT_INODE, b"a")
    with pytest.raises(ValueError, match="not an entry"):
        unpack_entry(value)


def test_a_short_inode_on_the_disk_is_damage(catalog: Catalog) -> None:
    catalog._txn.put(inode_key(7), b"short", db=catalog._inodes)
    with pytest.raises(VolumeDamaged, match="INODES"):
        catalog.inode(InodeNumber(7))


def test_a_listing_that_disagrees_with_the_entries_is_damage(catalog: Catalog) -> None:
    catalog.apply_rows([entry_row(b"a", 5, 2)])
    catalog._txn.put(inode_key(1) + inode_key(8), b"gone", db=catalog._listing)
    with pytest.raises(VolumeDamaged, match="gone"):
        catalog.listing(ROOT_INODE, 0, 10)
    assert catalog.derived_rows_wrong() == 1
    catalog.rebuild_derived()
    assert names(catalog) == [b"a"]


@pytest.mark.parametrize("content", [None, b"", b"not LMDB at all" * 1000])
def test_a_directory_that_holds_no_catalog_is_damage(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "catalog").mkdir()
    if content is not None:
        (tmp_path / "catalog" / "data.mdb").write_bytes(content)
    with pytest.raises(VolumeDamaged, match="catalog"):
        Catalog(tmp_path / "catalog")


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
        catalog.adopt(lost)
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
            (table, key): row for table in Table for key, row in self.catalog.rows(table, None, 10)
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
        found = {(table, key): row for table in Table for key, row in self.catalog.rows(table, None, 1000)}
        assert found == self.rows
        assert self.catalog.derived_rows_wrong() == 0
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


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_catalog_whose_file_was_cut_is_damaged_and_ends_no_process(tmp_path: Path, part: float) -> None:
    """LMDB maps its file: to read beyond the end is SIGBUS."""
    directory = tmp_path / "volume" / "catalog"
    directory.parent.mkdir()
    Catalog.create(directory)
    catalog = Catalog(directory)
    for number in range(2, 300):
        catalog.apply_rows([inode_row(file_inode(number)), entry_row(b"f%d" % number, number, number)])
    commit(catalog, 1)
    catalog.close()
    file = directory / "data.mdb"
    with file.open("r+b") as data:
        data.truncate(int(file.stat().st_size * part) // 4096 * 4096)
    with pytest.raises(VolumeDamaged, match="catalog: its file was cut short"):
        Catalog(directory)


# --- rows that contradict each other ---------------------------------------------------------------------


def directory_row(number: int, parent: int, nlink: int = 2) -> Row:
    made = Inode(InodeNumber(number), 0o040755, nlink, 0, 0, 0, 4096, 0, 0, 0, InodeNumber(parent))
    return Table.INODES, inode_key(number), made.pack()


def file_row(number: int) -> Row:
    return Table.INODES, inode_key(number), file_inode(number).pack()


def name_row(parent: int, name: bytes, number: int, kind: int = 8) -> Row:
    key = entry_key(InodeNumber(parent), name)
    return Table.ENTRIES, key, pack_entry(Entry(InodeNumber(number), kind, 100 + number))


HERE = [directory_row(2, 1), name_row(1, b"dir", 2, 4), file_row(3), name_row(2, b"file", 3)]

CONTRADICTIONS: list[tuple[str, list[Row]]] = [
    ("stands in, or for, nothing", [name_row(1, b"nowhere", 99)]),
    ("stands in, or for, nothing", [file_row(9), name_row(98, b"name", 9)]),
    ("stands in no directory", [file_row(9), name_row(3, b"in a file", 9)]),
    ("another type than its inode", [file_row(9), name_row(1, b"dir?", 9, 4)]),
    ("it was of another type", [directory_row(3, 1)]),
    ("second name of a directory", [name_row(2, b"again", 2, 4)]),
    ("second name of a directory", [directory_row(9, 2), name_row(1, b"new", 9, 4)]),
    ("inside itself", [directory_row(9, 9), name_row(9, b"self", 9, 4)]),
    ("inside itself", [directory_row(8, 9), directory_row(9, 8)]),
    ("inside itself", [directory_row(9, 2), directory_row(2, 9)]),
]


@pytest.mark.parametrize(("what", "rows"), CONTRADICTIONS)
def test_rows_that_contradict_each_other_are_found(catalog: Catalog, what: str, rows: list[Row]) -> None:
    catalog.apply_rows(HERE)
    check_rows(rows, received=True)
    assert what in (catalog.contradiction(rows) or "")


@pytest.mark.parametrize(
    "rows",
    [
        [directory_row(9, 2), name_row(2, b"new", 9, 4)],
        [directory_row(8, 1), directory_row(9, 8), name_row(1, b"one", 8, 4), name_row(8, b"two", 9, 4)],
        [file_row(3), name_row(1, b"second", 3)],
        [directory_row(2, 1), (Table.ENTRIES, entry_key(InodeNumber(2), b"file"), None)],
        [(Table.INODES, inode_key(3), None)],
    ],
)
def test_rows_that_fit_do_not(catalog: Catalog, rows: list[Row]) -> None:
    catalog.apply_rows(HERE)
    assert catalog.contradiction(rows) is None


def test_in_a_part_of_a_catalog_only_what_is_there_contradicts(catalog: Catalog) -> None:
    assert catalog.contradiction([name_row(1, b"nowhere", 99)], partial=True) is None
    assert catalog.contradiction([directory_row(8, 9), directory_row(9, 8)], partial=True)
