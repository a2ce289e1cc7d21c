"""Copying: images that differ, or may differ, become equal, while both hosts go on.

For each marked region the primary sends a checksum in the stream of changes; the backup compares it
with its own content at the same place of the stream and names what differs; the primary sends those
regions as they are by then. Changes made meanwhile travel in the same stream, so nothing is locked.
Only regions that differ cross the network (G5).
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import trio

from fusemirror.change import Table
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import DIGESTS_PER_MESSAGE, REGION_BYTES, RESYNC_BACKLOG_BYTES_MAX, RESYNC_WINDOW_BYTES
from fusemirror.mirror.out_of_sync import OutOfSync
from fusemirror.mirror.pace import CopyProgress, Pace
from fusemirror.mirror.stream import Stream
from fusemirror.promise import Promise
from fusemirror.protocol.messages import (
    CatalogRows,
    Digests,
    ImageCopied,
    PurgeOffer,
    RegionData,
    Reply,
    Resync,
)
from fusemirror.volume.catalog import inode_key
from fusemirror.volume.volume import Volume

_WINDOW_REGIONS = RESYNC_WINDOW_BYTES // REGION_BYTES
_WINDOW_BATCHES = 64  # of small images
_BATCHES_CONFIRMED_AT_ONCE = 256  # by one answer
_CONFIRM_INTERVAL_S = 0.5


@dataclass(frozen=True)
class _Batch:
    """Some regions of an image under comparison; the last of an image says so."""

    inode: InodeNumber
    first: int
    count: int
    reply: Promise[Reply]
    last: bool
    version: int  # of the image's marks, when its copy began


class Copier:
    """Copies images over one stream. A lost link ends it with `ConnectionLost`; what is left stays marked."""

    def __init__(
        self, volume: Volume, stream: Stream, out_of_sync: OutOfSync, pace: Pace, progress: CopyProgress
    ) -> None:
        self._volume = volume
        self._stream = stream
        self._out_of_sync = out_of_sync
        self._pace = pace
        self._progress = progress
        self._sent: list[_Batch] = []  # not confirmed yet
        self._confirmed_at = trio.current_time()
        out_of_sync.give_back()  # what was under way over the link before
        progress.begin(self._marked_bytes())

    def _marked_bytes(self) -> int:
        sizes = {inode: self._size(inode) for inode in self._out_of_sync.whole_images()}
        return self._out_of_sync.size_bytes(sizes)

    def _size(self, number: InodeNumber) -> int:
        inode = self._volume.catalog.inode(number)
        return 0 if inode is None else inode.size

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
            yield _Batch(number, 0, 0, nothing, last=True, version=version)
            return
        self._stream.send(CatalogRows(((Table.INODES, inode_key(number), inode.pack()),)))
        pieces = list(_consecutive(self._out_of_sync.regions(number, inode.size)))
        for index, (first, count) in enumerate(pieces or [(0, 0)]):
            self._out_of_sync.take(number, first, count)
            size = self._size(number)  # as it is when this piece is asked about
            digests = self._volume.images.region_digests(number, first, count) if count else ()
            reply = self._stream.ask(
                lambda token, size=size, first=first, digests=digests: Digests(  # type: ignore[misc]
                    token, number, size, first, digests, mend=True
                )
            )
            yield _Batch(number, first, count, reply, last=index >= len(pieces) - 1, version=version)

    async def _finish(self, batch: _Batch, *, at_once: bool) -> None:
        reply = await batch.reply.wait()
        for region in reply.values:
            if not at_once:
                await self._pace.take(REGION_BYTES)
            # An inode that was purged meanwhile may still have its image here, but no longer there.
            if self._volume.catalog.inode(batch.inode) is not None:
                self._send_region(batch.inode, region * REGION_BYTES)
        if batch.last:
            self._stream.send(ImageCopied(batch.inode))
        self._sent.append(batch)

    def _send_region(self, inode: InodeNumber, offset: int) -> None:
        data = self._volume.images.read(inode, offset, REGION_BYTES)
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
            self._out_of_sync.confirm(batch.inode, batch.first, batch.count)
            if batch.last:
                self._out_of_sync.finish(batch.inode, batch.version)
            if self._progress.advance(batch.count * REGION_BYTES):
                self.tell()

    def tell(self) -> None:
        """Let the backup know how far it is, for its status."""
        self._stream.send(Resync(**self._progress.as_status(self._pace)))


def _regions_of(batches: Iterable[_Batch]) -> int:
    return sum(batch.count for batch in batches)


def _consecutive(regions: list[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive regions as (first, count), none longer than a message may be."""
    start = 0
    for index in range(1, len(regions) + 1):
        run_ends = index == len(regions) or regions[index] != regions[index - 1] + 1
        if run_ends or index - start == DIGESTS_PER_MESSAGE:
            yield regions[start], index - start
            start = index
