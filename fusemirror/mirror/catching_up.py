"""Catching up: the backup's namespace becomes equal to the primary's.

Either the journal still holds every record that the backup missed, and those records are sent; or
the rows of the whole catalog are. Both end without a checkpoint of trio between their last message
and the return, so that the caller can send what comes after in the right order.
"""

from collections.abc import Iterable, Iterator

import trio

from fusemirror.change import NamespaceChange, Row, Table, decode_change, row_bytes
from fusemirror.errors import ConnectionLost
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber
from fusemirror.limits import (
    BACKLOG_BYTES_MAX,
    INODES_SENDINGS_MAX,
    INODES_SENT_AT_ONCE,
    ROW_BYTES_PER_MESSAGE,
    ROWS_PER_MESSAGE,
)
from fusemirror.mirror.out_of_sync import OutOfSyncMap
from fusemirror.mirror.stream import Stream
from fusemirror.pieces import pieces
from fusemirror.protocol.messages import CatalogRows
from fusemirror.volume.entries import inode_key
from fusemirror.volume.volume import Volume

_RECORDS_PER_TURN = 256  # other tasks run between turns
_RECORD_BYTES_PER_TURN = BACKLOG_BYTES_MAX // 8


async def send_records(stream: Stream, volume: Volume, after: ChangeNumber) -> ChangeNumber:
    """Send every namespace change with a number above `after`, up to the newest at the time of return; the
    number of the last record.
    """
    while True:
        if volume.journal.first_number > after + 1:
            raise ConnectionLost(stream.session.peer_name, "the journal was trimmed past what it missed")
        count = size_bytes = 0
        for number, payload in volume.journal.records(after):
            change = decode_change(payload)
            if isinstance(change, NamespaceChange):
                stream.send_encoded(payload)
            elif change.rows:
                # The images of data changes in the journal travel otherwise; what ended with them is news.
                rows = NamespaceChange(number, NO_REQUEST, change.time_ns, change.inode, change.rows)
                stream.send(rows)
            after = number
            count, size_bytes = count + 1, size_bytes + len(payload)
            if count >= _RECORDS_PER_TURN or size_bytes >= _RECORD_BYTES_PER_TURN:
                break
        if not count:
            return after
        await stream.wait_room()


async def send_catalog(stream: Stream, volume: Volume) -> None:
    """Send every row. Changes made meanwhile are sent by the caller as they are made: a row that has
    not been reached yet is sent later as it then is, and one that was sent is changed by them.
    """
    for table in Table:
        after: bytes | None = None
        while rows := volume.catalog.tables.rows(table, after, ROWS_PER_MESSAGE, ROW_BYTES_PER_MESSAGE):
            stream.send(CatalogRows(tuple((table, key, value) for key, value in rows)))
            after = rows[-1][0]
            await stream.wait_room()


async def send_attributes(
    stream: Stream, volume: Volume, out_of_sync: OutOfSyncMap, after: ChangeNumber | None
) -> None:
    """Send the attributes of all images that are out of sync, up to the moment of return: of sizes and times
    that writes changed no journal tells, and the backup shows them before it has the images.

    There may be a million, so others run meanwhile, and what they write is sent again. `after`: the last
    record that was sent; None where changes are sent as they are made.
    """
    sent = 0
    for _ in range(INODES_SENDINGS_MAX):
        inodes = out_of_sync.inodes_since(sent)
        if len(inodes) <= INODES_SENT_AT_ONCE:
            break
        sent = out_of_sync.newest_version
        for start in range(0, len(inodes), INODES_SENT_AT_ONCE):
            send_inodes(stream, volume, inodes[start : start + INODES_SENT_AT_ONCE])
            await trio.lowlevel.checkpoint()
            await stream.wait_room()
        if after is not None:
            after = await send_records(stream, volume, after)
    send_inodes(stream, volume, out_of_sync.inodes_since(sent))


def send_inodes(stream: Stream, volume: Volume, numbers: Iterable[InodeNumber]) -> None:
    """Send the attributes of these inodes, where they are still there, as they are now."""
    inodes = (inode for inode in map(volume.catalog.inode, numbers) if inode is not None)
    rows: Iterator[Row] = ((Table.INODES, inode_key(inode.number), inode.pack()) for inode in inodes)
    for piece in pieces(rows, row_bytes, ROW_BYTES_PER_MESSAGE):
        stream.send(CatalogRows(tuple(piece)))
