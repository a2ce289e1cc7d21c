"""Repair: makes equal what verify found to differ, by the version of the host that is to be kept.

The primary's version is copied to the backup as a resync does it, at a place of the stream. The
backup's version is fetched, and becomes a change like any other: it gets a number, and both volumes
apply it. Where a program wrote meanwhile, the program's write stands.
"""

from functools import partial
from typing import Protocol

from fusemirror.change import Row, Table, row_bytes
from fusemirror.errors import RemoteProtocolError
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import REGION_BYTES, ROW_BYTES_PER_MESSAGE, ROW_BYTES_PER_RECORD, ROWS_PER_MESSAGE
from fusemirror.mirror.copying import Copier
from fusemirror.mirror.out_of_sync import OutOfSyncMap
from fusemirror.mirror.pace import CopyProgress, Pace
from fusemirror.mirror.sending import Mirror
from fusemirror.mirror.stream import Stream
from fusemirror.mirror.verify import LENGTH_HERE, Suspect, SuspectRegions, SuspectRows, after_key
from fusemirror.pieces import pieces
from fusemirror.protocol.messages import FetchRegion, FetchRows, ReplaceRows
from fusemirror.volume.entries import key_inode
from fusemirror.volume.volume import Volume


class Restorer(Protocol):
    """Makes the backup's version a change; what the primary's control unit does for a repair."""

    def restore_rows(self, rows: tuple[Row, ...]) -> None: ...

    def restore_length(self, inode: InodeNumber) -> None: ...

    def restore_data(self, inode: InodeNumber, offset: int, data: bytes) -> None: ...


class FromPrimary:
    """The primary's version replaces the backup's."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    async def __call__(self, stream: Stream, suspects: list[Suspect]) -> None:
        marked = OutOfSyncMap()
        for suspect in suspects:
            if isinstance(suspect, SuspectRows):
                await self._send_rows(stream, suspect)
                if suspect.table is Table.INODES and suspect.key is not None:
                    marked.add_whole(key_inode(suspect.key))
            elif suspect.first == LENGTH_HERE:
                # The row is what programs were shown; the image follows it.
                inode = self._volume.catalog.stored_inode(suspect.inode)
                if inode is not None:
                    self._volume.copy_size(suspect.inode, inode.size)
                    marked.add_whole(suspect.inode)
            else:
                first = max(suspect.first, 0)
                marked.add_regions(suspect.inode, first, max(suspect.end, first + 1))
        copier = Copier(self._volume, stream, marked, Pace(0, paused=False), CopyProgress())
        await copier.copy(marked.inodes())

    async def _send_rows(self, stream: Stream, suspect: SuspectRows) -> None:
        """Piece by piece, each as it is at its place of the stream: there may be many by now."""
        table, after = suspect.table, suspect.after
        while True:
            rows = self._volume.catalog.tables.rows(table, after, ROWS_PER_MESSAGE, ROW_BYTES_PER_MESSAGE)
            kept = tuple((table, key, value) for key, value in rows if key <= suspect.last)
            ends = not rows or len(kept) < len(rows)
            last = suspect.last if ends else rows[-1][0]
            stream.send(ReplaceRows(table, after_key(after), last, kept))
            if ends:
                return
            after = last
            await stream.wait_room()


class FromBackup:
    """The backup's version replaces the primary's."""

    def __init__(self, mirror: Mirror, restorer: Restorer) -> None:
        self._mirror = mirror
        self._volume = mirror.volume
        self._restorer = restorer

    async def __call__(self, stream: Stream, suspects: list[Suspect]) -> None:
        for suspect in suspects:
            if isinstance(suspect, SuspectRows):
                await self._fetch_rows(stream, suspect)
        for suspect in suspects:
            if isinstance(suspect, SuspectRegions):
                for region in range(suspect.first, suspect.end):
                    await self._fetch_region(stream, suspect.inode, region)
            elif suspect.table is Table.INODES and suspect.key is not None:
                await self._fetch_region(stream, key_inode(suspect.key), LENGTH_HERE)

    async def _fetch_rows(self, stream: Stream, suspect: SuspectRows) -> None:
        """Piece by piece, each made a change before the next is asked for."""
        table, first = suspect.table, suspect.first
        while first <= suspect.last:
            asked_at = self._volume.number
            question = partial(FetchRows, table=table, first=first, last=suspect.last)
            theirs = (await stream.fetch(question).wait()).rows
            if any(row[0] != table or not first <= row[1] <= suspect.last for row in theirs):
                raise RemoteProtocolError(
                    stream.session.peer_name, "it gave other rows than it was asked for"
                )
            if self._volume.number != asked_at:
                return  # rows may have changed meanwhile; the next round looks again
            last = theirs[-1][1] if theirs else suspect.last
            gone = self._gone(table, first, last, {key for _, key, _ in theirs})
            for piece in pieces((*gone, *theirs), row_bytes, ROW_BYTES_PER_RECORD):
                self._restorer.restore_rows(tuple(piece))
            if not theirs:
                return
            first = after_key(last)

    def _gone(self, table: Table, first: bytes, last: bytes, there: set[bytes]) -> list[Row]:
        """The ends of our rows in a range of which the backup has only `there`."""
        gone: list[Row] = []
        for key in self._volume.catalog.tables.keys_from(table, first or b"\x00"):
            if key > last:
                break
            if key not in there and self._volume.catalog.tables.is_shared(table, key):
                gone.append((table, key, None))
        return gone

    async def _fetch_region(self, stream: Stream, number: InodeNumber, region: int) -> None:
        """Of a length too, which is told as a region below 0."""
        if self._volume.catalog.stored_inode(number) is not None and region < 0:
            # Of the row both have the same by now; the images are made as long as it says.
            self._restorer.restore_length(number)
        offset = max(region, 0) * REGION_BYTES
        written: list[tuple[InodeNumber, int, int]] = []
        self._mirror.written = written
        promise = stream.fetch(lambda token: FetchRegion(token, number, offset, REGION_BYTES))
        theirs = await promise.wait()
        end = offset + REGION_BYTES
        if any(inode == number and first < end and offset < last for inode, first, last in written):
            return  # a program's write is newer; the next round looks again
        inode = self._volume.catalog.stored_inode(number)
        if inode is not None and theirs.size >= 0:
            self._restorer.restore_data(number, offset, theirs.data[: max(0, inode.size - offset)])
