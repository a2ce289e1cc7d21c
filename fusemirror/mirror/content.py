"""Content: the backup's half of copying, comparing and repair.

What a message asks of the subvolume's content is done, or answered, at its place of the stream. So a
checksum is compared with what stands there between the same two changes as at the primary, and nothing is
locked.
"""

from collections.abc import Callable
from typing import Any

from fusemirror.change import Table
from fusemirror.channel.session import Session
from fusemirror.errors import BadChange, BadRow
from fusemirror.identifiers import InodeNumber
from fusemirror.mirror.fetching import fetch_region, fetch_rows, replace_rows
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import (
    CatalogRows,
    Digests,
    FetchRegion,
    FetchRows,
    Hole,
    RegionData,
    ReplaceRows,
    Reply,
    RowsDigest,
)
from fusemirror.volume.contradictions import contradiction_of
from fusemirror.volume.entries import key_inode
from fusemirror.volume.inode import Inode
from fusemirror.volume.volume import Volume

OF_IMAGES = frozenset({Digests, Hole, RegionData})
"""What is about one image, as a resync brings it or a comparison asks."""


class Content:
    """See the module. Each handler takes a message, the data beside it, and the session to answer over;
    BadRow and BadChange for one that this volume cannot take, before anything is changed.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.handlers: dict[type, Callable[[Any, Buffer, Session], None]] = {
            CatalogRows: self._catalog_rows,
            Digests: self._digests,
            Hole: self._hole,
            RegionData: self._region_data,
            RowsDigest: self._rows_digest,
            ReplaceRows: self._replace_rows,
            FetchRows: self._fetch_rows,
            FetchRegion: self._fetch_region,
        }

    def _catalog_rows(self, message: CatalogRows, _: Buffer, session: Session) -> None:
        if not self._volume.catalog.copying:
            self._check_attributes(message)
        self._volume.copy_rows(message.rows)

    def _check_attributes(self, message: CatalogRows) -> None:
        """But for a copy of the catalog, rows bring only attributes of files that are here. BadRow."""
        for table, key, _ in message.rows:
            inode = self._volume.catalog.stored_inode(key_inode(key)) if table == Table.INODES else None
            if inode is None or not inode.is_regular:
                raise BadRow(f"table {table}, key {key.hex()}: not of a file that is here")
        contradiction = contradiction_of(self._volume.catalog, message.rows)
        if contradiction is not None:
            raise BadRow(contradiction)

    def _digests(self, message: Digests, _: Buffer, session: Session) -> None:
        if self._file(message.inode) is not None and message.repair:
            self._volume.copy_size(message.inode, message.size)
        ours = self._volume.images.content.region_digests(
            message.inode, message.first_region, len(message.digests)
        )
        differing = [
            message.first_region + index
            for index, digest in enumerate(message.digests)
            if index >= len(ours) or ours[index] != digest
        ]
        if not message.repair and self._volume.images.size(message.inode) != message.size:
            differing.append(-1)
        session.send(Reply(message.token, values=tuple(differing)))

    def _hole(self, message: Hole, _: Buffer, session: Session) -> None:
        differing: list[int] = []
        if message.repair:
            looked = message.end_region
            if self._file(message.inode) is not None:
                self._volume.copy_size(message.inode, message.size)
                looked = self._volume.files.put_hole(message.inode, message.first_region, message.end_region)
        else:
            images = self._volume.images
            differing, looked = images.content.data_in(
                message.inode, message.first_region, message.end_region
            )
            if images.size(message.inode) != message.size:
                differing.append(-1)
        session.send(Reply(message.token, values=(looked, *differing)))

    def _file(self, number: InodeNumber) -> Inode | None:
        """The file whose image a message is about; None where it has gone meanwhile, or its row is damaged
        here: the primary sends the row first. BadChange."""
        inode = self._volume.catalog.sound_inode(number)
        if inode is not None and not inode.is_regular:
            raise BadChange(f"inode {number} is no file")
        return inode

    def _region_data(self, message: RegionData, data: Buffer, session: Session) -> None:
        inode = self._file(message.inode)
        if inode is None:
            raise BadChange(f"there is no inode {message.inode}")
        kept = data[: max(0, inode.size - message.offset)]
        if kept:
            self._volume.files.put_data(message.inode, message.offset, kept)

    def _rows_digest(self, message: RowsDigest, _: Buffer, session: Session) -> None:
        count, digest = self._volume.catalog.tables.digest(
            message.table, message.first, message.last, message.count
        )
        same = (count, digest) == (message.count, message.digest)
        session.send(Reply(message.token, values=() if same else (count,)))

    def _replace_rows(self, message: ReplaceRows, _: Buffer, session: Session) -> None:
        replace_rows(self._volume, message)

    def _fetch_rows(self, message: FetchRows, _: Buffer, session: Session) -> None:
        session.send(fetch_rows(self._volume, message))

    def _fetch_region(self, message: FetchRegion, _: Buffer, session: Session) -> None:
        session.send(fetch_region(self._volume, message))
