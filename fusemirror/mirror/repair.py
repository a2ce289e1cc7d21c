"""Repair: makes equal what verify found to differ, by the version of the host that is to be kept.

The primary's version is copied to the backup as a resync does it, at a place of the stream. The
backup's version is fetched, and becomes a change like any other: it gets a number, and both volumes
apply it. Where a program wrote meanwhile, the program's write stands.
"""

from typing import Protocol

from fusemirror.change import Row, Table
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import REGION_BYTES, ROWS_PER_MESSAGE
from fusemirror.mirror.copying import Copier
from fusemirror.mirror.out_of_sync import OutOfSync
from fusemirror.mirror.pace import CopyProgress, Pace
from fusemirror.mirror.sending import Mirror
from fusemirror.mirror.stream import Stream
from fusemirror.mirror.verify import LENGTH_HERE, Suspect, SuspectRegion, SuspectRows
from fusemirror.protocol.messages import FetchRegion, FetchRows, ReplaceRows
from fusemirror.volume.catalog import key_inode
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
        marked = OutOfSync()
        for suspect in suspects:
            if isinstance(suspect, SuspectRows):
                self._send_rows(stream, suspect)
                if suspect.table is Table.INODES and suspect.key is not None:
                    marked.add_whole(key_inode(suspect.key))
            elif suspect.region == LENGTH_HERE:
                # The row is what programs were shown; the image follows it.
                inode = self._volume.catalog.inode(suspect.inode)
                if inode is not None:
                    self._volume.copy_size(suspect.inode, inode.size)
                    marked.add_whole(suspect.inode)
            else:
                start = max(suspect.region, 0) * REGION_BYTES
                marked.add_range(suspect.inode, start, start + REGION_BYTES)
        copier = Copier(self._volume, stream, marked, Pace(0, paused=False), CopyProgress())
        await copier.copy(marked.inodes())

    def _send_rows(self, stream: Stream, suspect: SuspectRows) -> None:
        rows = self._volume.catalog.rows(suspect.table, suspect.after, ROWS_PER_MESSAGE)
        kept = tuple((suspect.table, key, value) for key, value in rows if key <= suspect.last)
        stream.send(ReplaceRows(suspect.table, suspect.first, suspect.last, kept))


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
            if isinstance(suspect, SuspectRegion):
                await self._fetch_region(stream, suspect)
            elif suspect.table is Table.INODES and suspect.key is not None:
                await self._fetch_region(stream, SuspectRegion(key_inode(suspect.key), LENGTH_HERE))

    async def _fetch_rows(self, stream: Stream, suspect: SuspectRows) -> None:
        asked_at = self._volume.number
        promise = stream.fetch(lambda token: FetchRows(token, suspect.table, suspect.first, suspect.last))
        theirs = (await promise.wait()).rows
        # Rows may have changed meanwhile, or be more than one answer holds; the next round looks again.
        if self._volume.number != asked_at or len(theirs) >= ROWS_PER_MESSAGE:
            return
        there = {key for _, key, _ in theirs}
        ours = self._volume.catalog.rows(suspect.table, suspect.after, ROWS_PER_MESSAGE)
        gone = [(suspect.table, key, None) for key, _ in ours if key <= suspect.last and key not in there]
        self._restorer.restore_rows((*gone, *theirs))

    async def _fetch_region(self, stream: Stream, suspect: SuspectRegion) -> None:
        if self._volume.catalog.inode(suspect.inode) is not None and suspect.region < 0:
            # Of the row both have the same by now; the images are made as long as it says.
            self._restorer.restore_length(suspect.inode)
        offset = max(suspect.region, 0) * REGION_BYTES
        written: list[tuple[InodeNumber, int, int]] = []
        self._mirror.written_since = written
        promise = stream.fetch(lambda token: FetchRegion(token, suspect.inode, offset, REGION_BYTES))
        theirs = await promise.wait()
        end = offset + REGION_BYTES
        if any(inode == suspect.inode and first < end and offset < last for inode, first, last in written):
            return  # a program's write is newer; the next round looks again
        inode = self._volume.catalog.inode(suspect.inode)
        if inode is not None and theirs.size >= 0:
            self._restorer.restore_data(suspect.inode, offset, theirs.data[: max(0, inode.size - offset)])
