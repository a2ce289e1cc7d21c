"""Fetching: what the backup gives for a repair, and what it lets be replaced."""

import pytest

from fusemirror.change import Table
from fusemirror.errors import BadRow
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.mirror.fetching import fetch_region, fetch_rows, replace_rows
from fusemirror.protocol.messages import FetchRegion, FetchRows, ReplaceRows
from fusemirror.volume.entries import inode_key
from fusemirror.volume.rows import GENERATIONS_KEY
from fusemirror.volume.volume import Volume
from tests.volume.conftest import Writer

END = b"\xff" * 8


@pytest.fixture
def files(writer: Writer) -> tuple[InodeNumber, InodeNumber]:
    made = writer.create(b"one"), writer.create(b"other")
    writer.write(made[0], 0, b"content")
    return made


def test_rows_of_a_range_come_in_their_order(volume: Volume, files: tuple[InodeNumber, ...]) -> None:
    keys = [inode_key(each) for each in (ROOT_INODE, *files)]
    given = fetch_rows(volume, FetchRows(5, Table.INODES, b"", END))
    assert given.token == 5
    assert [key for _, key, _ in given.rows] == keys
    part = fetch_rows(volume, FetchRows(5, Table.INODES, keys[1], keys[1])).rows
    assert [key for _, key, _ in part] == [keys[1]]
    assert not fetch_rows(volume, FetchRows(5, Table.INODES, END, END)).rows


def test_content_is_what_programs_read(volume: Volume, files: tuple[InodeNumber, ...]) -> None:
    given = fetch_region(volume, FetchRegion(5, files[0], 3, 100))
    assert (given.size, bytes(given.data)) == (7, b"tent")
    assert fetch_region(volume, FetchRegion(5, InodeNumber(999), 0, 100)).size < 0


def test_rows_that_are_not_kept_go_with_their_images(volume: Volume, files: tuple[InodeNumber, ...]) -> None:
    one, other = files
    kept = volume.catalog.inode(other)
    assert kept is not None
    name = inode_key(ROOT_INODE) + b"one"
    replace_rows(volume, ReplaceRows(Table.ENTRIES, name, name, ()))
    row = (Table.INODES, inode_key(other), kept.pack())
    replace_rows(volume, ReplaceRows(Table.INODES, inode_key(one), inode_key(other), (row,)))
    assert volume.catalog.stored_inode(one) is None
    assert volume.catalog.stored_inode(other) is not None
    assert volume.images.size(one) == 0


@pytest.mark.parametrize(
    ("table", "key"), [(Table.INODES, inode_key(ROOT_INODE)), (Table.META, GENERATIONS_KEY)]
)
def test_what_every_volume_needs_never_goes(volume: Volume, writer: Writer, table: Table, key: bytes) -> None:
    rows = dict(volume.catalog.tables.rows(table, None, 100))
    with pytest.raises(BadRow, match="never goes"):
        replace_rows(volume, ReplaceRows(table, key, key, ()))
    assert dict(volume.catalog.tables.rows(table, None, 100)) == rows
