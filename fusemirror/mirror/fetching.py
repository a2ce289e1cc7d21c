"""Fetching: the backup's half of a repair: what is asked and put stands at its place of the stream."""

from fusemirror.change import Table
from fusemirror.limits import ROWS_PER_MESSAGE
from fusemirror.protocol.messages import Fetched, FetchRegion, FetchRows, ReplaceRows
from fusemirror.volume.catalog import key_inode
from fusemirror.volume.volume import Volume


def replace_rows(volume: Volume, message: ReplaceRows) -> None:
    """The backup's side: from now on these rows are all that stand in their range. DiskFailed."""
    catalog, table = volume.catalog, Table(message.table)
    catalog.flush_touched()
    kept = {key: value for _, key, value in message.rows}
    there = {
        key: row for key, row in catalog.rows_from(table, message.first or b"\x00") if key <= message.last
    }
    extra = [key for key in there if key not in kept and catalog.is_shared(table, key)]
    for key in extra:
        catalog.discard(table, key)
        if table is Table.INODES and len(key) == 8:
            volume.images.remove(key_inode(key))
    for key, value in kept.items():
        if there.get(key, value) != value:
            catalog.discard(table, key)  # the old row may be none that can be read
    volume.copy_rows(message.rows)
    catalog.rebuild_derived()


def fetch_rows(volume: Volume, message: FetchRows) -> Fetched:
    """The rows of a range, no more than one message holds. OSError."""
    table = Table(message.table)
    volume.catalog.flush_touched()
    rows = [
        (table, key, value)
        for key, value in volume.catalog.rows_from(table, message.first or b"\x00")
        if key <= message.last and volume.catalog.is_shared(table, key)
    ]
    return Fetched(message.token, rows=tuple(rows[:ROWS_PER_MESSAGE]))


def fetch_region(volume: Volume, message: FetchRegion) -> Fetched:
    """The bytes of an image, as programs read them. OSError."""
    inode = volume.catalog.inode(message.inode)
    if inode is None:
        return Fetched(message.token)
    return Fetched(message.token, inode.size, volume.read(message.inode, message.offset, message.length))
