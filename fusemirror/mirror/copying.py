"""Copying: images that differ, or may differ, become equal, while both hosts go on.

For each marked region the primary sends a checksum in the stream of changes; the backup compares it
with its own content at the same place of the stream and names what differs; the primary sends those
regions as they are by then. Of a hole it says only how far it goes, and the backup makes one of what it has
there. Changes made meanwhile travel in the same stream, so nothing is locked.
Only regions that differ cross the network (G5).
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import trio

from fusemirror.change import Table
from fusemirror.errors import RemoteProtocolError
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import (
    DIGESTS_PER_MESSAGE,
    FILE_BYTES_MAX,
    REGION_BYTES,
    RESYNC_BACKLOG_BYTES_MAX,
    RESYNC_WINDOW_BYTES,
)
from fusemirror.mirror.out_of_sync import OutOfSyncMap
from fusemirror.mirror.pace import CopyProgress, Pace
from fusemirror.mirror.stream import Stream
from fusemirror.promise import Promise
from fusemirror.protocol.messages import (
    CatalogRows,
    Digests,
    Hole,
    ImageCopied,
    PurgeOffer,
    RegionData,
    Reply,
    Resync,
)
from fusemirror.volume.entries import inode_key
from fusemirror.volume.image_content import Piece
from fusemirror.volume.volume import Volume

_WINDOW_REGIONS = RESYNC_WINDOW_BYTES // REGION_BYTES
_WINDOW_BATCHES = 64  # of small images
_BATCHES_CONFIRMED_AT_ONCE = 256  # by one answer
_CONFIRM_INTERVAL_S = 0.5


@dataclass(frozen=True)
class _Batch:
    """Some regions of an image under comparison; the last of an image says so."""

    inode: InodeNumber
    piece: Piece
    reply: Promise[Reply]
    last: bool
    version: int  # of the image's marks, when its copy began

    @property
    def data_regions(self) -> int:
        return 0 if self.piece.is_hole else self.piece.end - self.piece.first


_NO_REGIONS = Piece(0, 0, is_hole=False)


class Copier:
    """Copies images over one stream. A lost link ends it with `ConnectionLost`; what is left stays marked."""

    def __init__(
        self, volume: Volume, stream: Stream, out_of_sync: OutOfSyncMap, pace: Pace, progress: CopyProgress
    ) -> None:
        self._volume = volume
        self._stream = stream
        self._out_of_sync = out_of_sync
        self._pace = pace
        self._progress = progress
        self._takes_holes = stream.session.peer.takes_holes
        self._sent: list[_Batch] = []  # not confirmed yet
        self._confirmed_at = trio.current_time()
        out_of_sync.give_back()  # what was under way over the link before
        progress.begin(out_of_sync.size_bytes(volume.files.measure))

    async def copy(self, inodes: Iterable[InodeNumber], *, at_once: bool = False) -> None:
        """On return the backup holds these images as they are, and they are no longer marked.

        `at_once`: whatever the pace, because programs wait for them.
        """
        under_way: deque[_Batch] = deque()
        for inode in inodes:
            for batch in self._batches(inode):
                under_way.append(batch)
                await self._stream.wait_room(RESYNC_BACKLOG_BYTES_MAX)
                while len(under_way) >= _WINDOW_BATCHES or _regions_of(under_way) >= _WINDOW_REGIONS:
                    await self._finish(under_way.popleft(), at_once=at_once)
                if self._confirmation_is_due():
                    await self._confirm()
                if not at_once:
                    await self._pace.wait_running()
        while under_way:
            await self._finish(under_way.popleft(), at_once=at_once)
        await self._confirm()

    def _batches(self, number: InodeNumber) -> Iterator[_Batch]:
        """Ask about an image piece by piece; the first piece makes its attributes and size equal."""
        version = self._out_of_sync.version(number)
        inode = self._volume.catalog.inode(number)
        if inode is None or not inode.is_regular:
            self._stream.send(ImageCopied(number))
            nothing: Promise[Reply] = Promise()
            nothing.resolve(Reply(0))
            yield _Batch(number, _NO_REGIONS, nothing, last=True, version=version)
            return
        self._stream.send(CatalogRows(((Table.INODES, inode_key(number), inode.pack()),)))
        ranges = self._out_of_sync.ranges(number, inode.size)
        if not ranges:
            yield _Batch(number, _NO_REGIONS, self._ask(number, _NO_REGIONS), last=True, version=version)
        for first, end in ranges:
            while first < end:
                piece = self._piece(number, first, end)  # as it is when it is asked about
                assert first < piece.end <= end, "each piece goes on, and no further than what is marked"
                first = piece.end
                self._out_of_sync.take(number, piece.first, piece.end)
                last = first == end == ranges[-1][1]
                yield _Batch(number, piece, self._ask(number, piece), last=last, version=version)

    def _piece(self, inode: InodeNumber, first: int, end: int) -> Piece:
        piece = self._volume.images.content.piece(inode, first, end)
        if piece.is_hole and not self._takes_holes:
            return Piece(first, min(piece.end, first + DIGESTS_PER_MESSAGE), is_hole=False)
        return piece

    def _ask(self, inode: InodeNumber, piece: Piece) -> Promise[Reply]:
        size = self._volume.catalog.size(inode)
        if piece.is_hole:
            return self._stream.ask(
                lambda token: Hole(token, inode, size, piece.first, piece.end, repair=True)
            )
        digests: tuple[int, ...] = ()
        if piece.first < piece.end:
            digests = self._volume.images.content.region_digests(inode, piece.first, piece.end - piece.first)
        return self._stream.ask(lambda token: Digests(token, inode, size, piece.first, digests, repair=True))

    async def _finish(self, batch: _Batch, *, at_once: bool) -> None:
        await self._send_what_differs(batch.inode, batch.piece, batch.reply, at_once=at_once)
        if batch.last:
            self._stream.send(ImageCopied(batch.inode))
        self._sent.append(batch)

    async def _send_what_differs(
        self, inode: InodeNumber, piece: Piece, reply: Promise[Reply], *, at_once: bool
    ) -> None:
        """On return everything was sent that the backup lacks of a piece."""
        end = piece.end
        while True:
            looked, differing = answer_about(piece, await reply.wait(), self._stream.session.peer_name)
            for region in differing:
                if not at_once:
                    await self._pace.take(REGION_BYTES)
                # An inode that was purged meanwhile may still have its image here, but no longer there.
                if self._volume.catalog.inode(inode) is not None:
                    self._send_region(inode, region * REGION_BYTES)
            if looked >= end:
                return
            # It has more in a hole than it takes away at once; by now there may be data here.
            piece = self._piece(inode, looked, end)
            reply = self._ask(inode, piece)

    def _send_region(self, inode: InodeNumber, offset: int) -> None:
        data = self._volume.images.read(inode, offset, min(REGION_BYTES, FILE_BYTES_MAX - offset))
        if data:
            self._stream.send(RegionData(inode, offset), data)
            self._progress.sent_bytes += len(data)

    def _confirmation_is_due(self) -> bool:
        late = trio.current_time() - self._confirmed_at >= _CONFIRM_INTERVAL_S
        return len(self._sent) >= _BATCHES_CONFIRMED_AT_ONCE or (late and bool(self._sent))

    async def _confirm(self) -> None:
        """Only an answer proves that what was sent has arrived: until then the marks stay."""
        sent, self._sent = self._sent, []
        self._confirmed_at = trio.current_time()
        await self._stream.ask(lambda token: PurgeOffer(token, ())).wait()
        for batch in sent:
            self._out_of_sync.confirm(batch.inode, batch.piece.first, batch.piece.end)
            if batch.last:
                self._out_of_sync.finish(batch.inode, batch.version)
            if self._progress.advance(batch.data_regions * REGION_BYTES):
                self.tell()

    def tell(self) -> None:
        """Let the backup know how far it is, for its status."""
        self._stream.send(Resync(**self._progress.as_status(self._pace)))


def answer_about(piece: Piece, reply: Reply, peer_name: str) -> tuple[int, tuple[int, ...]]:
    """Before which region the backup has looked, and what differs before it. RemoteProtocolError."""
    if not piece.is_hole:
        return piece.end, reply.values
    if not reply.values or not piece.first < reply.values[0] <= piece.end:
        raise RemoteProtocolError(peer_name, f"it says of {piece} that it has looked at {reply.values[:1]}")
    return reply.values[0], reply.values[1:]


def _regions_of(batches: Iterable[_Batch]) -> int:
    return sum(batch.data_regions for batch in batches)
