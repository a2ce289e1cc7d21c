"""Whether rows of the peer would fit each other and those that are here."""

import pytest

from fusemirror.change import Row, Table
from fusemirror.identifiers import InodeNumber
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.contradictions import contradiction_of
from fusemirror.volume.entries import Entry, entry_key, inode_key, pack_entry
from fusemirror.volume.inode import Inode
from fusemirror.volume.rows import check_rows
from tests.volume.test_catalog import catalog, file_inode

__all__ = ["catalog"]


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
    assert what in (contradiction_of(catalog, rows) or "")


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
    assert contradiction_of(catalog, rows) is None


def test_in_a_part_of_a_catalog_only_what_is_there_contradicts(catalog: Catalog) -> None:
    assert contradiction_of(catalog, [name_row(1, b"nowhere", 99)], partial=True) is None
    assert contradiction_of(catalog, [directory_row(8, 9), directory_row(9, 8)], partial=True)
