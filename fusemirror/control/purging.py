"""Purging: the rows by which inodes without names end, with all that they have."""

from collections.abc import Iterable, Iterator

from fusemirror.change import Row, Table, row_bytes
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import ROW_BYTES_PER_RECORD
from fusemirror.pieces import first_piece
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.entries import inode_key, xattr_key
from fusemirror.volume.reservations import reservation_row


def purge_rows(catalog: Catalog, inodes: Iterable[InodeNumber]) -> tuple[Row, ...]:
    """Rows that end inodes without names, with all that they have: as many as one change should carry.

    Once these are applied, the next call gives the next of them; none where all inodes are ended. An inode
    goes last of what belongs to it: one whose purge was cut short anywhere is still there to be purged.
    """
    rows = (row for number in inodes for row in _rows_of_end(catalog, number))
    return tuple(first_piece(rows, row_bytes, ROW_BYTES_PER_RECORD))


def _rows_of_end(catalog: Catalog, number: InodeNumber) -> Iterator[Row]:
    if not catalog.derived.is_orphan(number):
        return  # it is ended, or has got a name meanwhile
    for name in catalog.xattrs.walk(number):
        yield (Table.XATTRS, xattr_key(number, name), None)
    if number in catalog.reservations:
        yield reservation_row(number, None)
    yield (Table.INODES, inode_key(number), None)
