"""Fetching: the backup's half of a repair: what is asked and put stands at its place of the stream."""

from collections.abc import Iterator

from fusemirror.change import Row, Table, row_bytes
from fusemirror.errors import BadRow
from fusemirror.identifiers import ROOT_INODE
from fusemirror.limits import ROW_BYTES_PER_MESSAGE, ROWS_PER_MESSAGE
from fusemirror.pieces import first_piece
from fusemirror.protocol.messages import Fetched, FetchRegion, FetchRows, ReplaceRows
from fusemirror.volume.entries import inode_key, key_inode
from fusemirror.volume.rows import GENERATIONS_KEY
from fusemirror.volume.volume import Volume

_NEVER_GONE = ((Table.INODES, inode_key(ROOT_INODE)), (Table.META, GENERATIONS_KEY))


def replace_rows(volume: Volume, message: ReplaceRows) -> None:
    """The backup's side: from now on these rows are all that stand in their range. DiskFailed; BadRow, and
    nothing is changed, where the root directory or the generations would be gone.
    """
    catalog, table = volume.catalog, Table(message.table)
    catalog.cache.flush()
    kept = {key: value for _, key, value in message.rows}
    for of, lasting in _NEVER_GONE:
        if table == of and message.first <= lasting <= message.last and lasting not in kept:
            raise BadRow(f"table {table}, key {lasting.hex()}: it never goes")
    extra: list[bytes] = []
    for key, row in catalog.tables.rows_from(table, message.first or b"\x00"):
        if key > message.last:
            break
        # An old row of a key that is kept may be none that can be read.
        if kept.get(key) != row and catalog.tables.is_shared(table, key):
            extra.append(key)
    for key in extra:
        catalog.discard(table, key)
        if table is Table.INODES and len(key) == 8 and key not in kept:
            volume.images.discard(key_inode(key))
    volume.copy_rows(message.rows)
    catalog.derived.rebuild()


def fetch_rows(volume: Volume, message: FetchRows) -> Fetched:
    """The first rows of a range, no more than one message holds; none only where there is none. OSError."""
    volume.catalog.cache.flush()
    rows = _rows_between(volume, Table(message.table), message.first, message.last)
    piece = first_piece(rows, row_bytes, ROW_BYTES_PER_MESSAGE, ROWS_PER_MESSAGE)
    return Fetched(message.token, rows=tuple(piece))


def _rows_between(volume: Volume, table: Table, first: bytes, last: bytes) -> Iterator[Row]:
    for key, value in volume.catalog.tables.rows_from(table, first or b"\x00"):
        if key > last:
            return
        if volume.catalog.tables.is_shared(table, key):
            yield (table, key, value)


def fetch_region(volume: Volume, message: FetchRegion) -> Fetched:
    """The bytes of an image, as programs read them. OSError."""
    inode = volume.catalog.inode(message.inode)
    if inode is None:
        return Fetched(message.token)
    return Fetched(message.token, inode.size, volume.read(message.inode, message.offset, message.length))
