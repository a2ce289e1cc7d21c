"""Catching up: the backup's namespace becomes equal to the primary's.

Either the journal still holds every record that the backup missed, and those records are sent; or
the rows of the whole catalog are. Both end without a checkpoint of trio between their last message
and the return, so that the caller can send what comes after in the right order.
"""

from collections.abc import Iterable
from itertools import islice

from fusemirror.change import NamespaceChange, Row, Table, decode_change
from fusemirror.errors import ConnectionLost
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.limits import ROWS_PER_MESSAGE
from fusemirror.mirror.stream import Stream
from fusemirror.protocol.messages import CatalogRows
from fusemirror.volume.catalog import inode_key
from fusemirror.volume.volume import Volume

_RECORDS_PER_TURN = 256  # other tasks run between turns
_ROW_BYTES_PER_MESSAGE = 256 * 1024


async def send_records(stream: Stream, volume: Volume, after: ChangeNumber) -> None:
    """Send every namespace change with a number above `after`, up to the newest at the time of return."""
    while True:
        if volume.journal.first_number > after + 1:
            raise ConnectionLost(stream.session.peer_name, "the journal was trimmed past what it missed")
        batch = list(islice(volume.journal.records(after), _RECORDS_PER_TURN))
        if not batch:
            return
        for number, payload in batch:
            # Requests of the backup for data stand in the journal too; images travel otherwise.
            if isinstance(decode_change(payload), NamespaceChange):
                stream.send_encoded(payload)
            after = number
        await stream.wait_room()


async def send_catalog(stream: Stream, volume: Volume) -> None:
    """Send every row. Changes made meanwhile are sent by the caller as they are made: a row that has
    not been reached yet is sent later as it then is, and one that was sent is changed by them.
    """
    for table in Table:
        after: bytes | None = None
        while rows := volume.catalog.rows(table, after, ROWS_PER_MESSAGE):
            for message in _messages([(table, key, value) for key, value in rows]):
                stream.send(message)
            after = rows[-1][0]
            await stream.wait_room()


def send_inodes(stream: Stream, volume: Volume, numbers: Iterable[InodeNumber]) -> None:
    """Send the attributes of these inodes, where they are still there: of sizes and times that writes
    changed no journal tells, and the backup shows them before it has the images.
    """
    inodes = [inode for inode in map(volume.catalog.inode, numbers) if inode is not None]
    for message in _messages([(Table.INODES, inode_key(inode.number), inode.pack()) for inode in inodes]):
        stream.send(message)


def _messages(rows: list[Row]) -> list[CatalogRows]:
    messages, chunk, size = [], list[Row](), 0
    for row in rows:
        size += len(row[1]) + len(row[2] or b"")
        chunk.append(row)
        if size >= _ROW_BYTES_PER_MESSAGE:
            messages.append(CatalogRows(tuple(chunk)))
            chunk, size = [], 0
    if chunk:
        messages.append(CatalogRows(tuple(chunk)))
    return messages
