"""Copying: images that differ, or may differ, become equal, while both hosts go on.

For each marked region the primary sends a checksum in the stream of changes; the backup compares it
with its own content at the same place of the stream and names what differs; the primary sends those
regions as they are by then. Changes made meanwhile travel in the same stream, so nothing is locked.
Only regions that differ cross the network (G5).
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import trio

from fusemirror.change import Table
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import DIGESTS_PER_MESSAGE, REGION_BYTES, RESYNC_WINDOW_BYTES
from fusemirror.mirror.out_of_sync import OutOfSync
from fusemirror.mirror.stream import Stream
from fusemirror.promise import Promise
from fusemirror.protocol.messages import CatalogRows, Digests, ImageCopied, PurgeOffer, RegionData, Reply
from fusemirror.volume.catalog import inode_key
from fusemirror.volume.volume import Volume

_WINDOW = RESYNC_WINDOW_BYTES // (DIGESTS_PER_MESSAGE * REGION_BYTES)
_IMAGES_PER_GROUP = 256  # confirmed by one answer


@dataclass
class CopyProgress:
    """Bytes of marked regions: how many there are and how many are known to be equal, and since when."""

    total_bytes: int
    started: float
    done_bytes: int = 0
    sent_bytes: int = 0

    def as_status(self, now: float) -> dict[str, float | int | None]:
        elapsed = max(now - self.started, 1e-9)
        rate = self.done_bytes / elapsed
        left = (self.total_bytes - self.done_bytes) / rate if rate else None
        return {
            "done_bytes": self.done_bytes,
            "total_bytes": self.total_bytes,
            "bytes_per_second": round(rate),
            "seconds_left": None if left is None else round(left, 1),
        }


@dataclass(frozen=True)
class _Batch:
    """Some regions of an image under comparison; the last of an image says so."""

    inode: InodeNumber
    size_bytes: int
    reply: Promise[Reply]
    last: bool


class Copier:
    """Copies images over one stream. A lost link ends it with `ConnectionLost`; what is left stays marked."""

    def __init__(self, volume: Volume, stream: Stream, out_of_sync: OutOfSync) -> None:
        self._volume = volume
        self._stream = stream
        self._out_of_sync = out_of_sync
        self.progress = CopyProgress(self._marked_bytes(), trio.current_time())

    def _marked_bytes(self) -> int:
        sizes = {inode: self._size(inode) for inode in self._out_of_sync.whole_images()}
        return self._out_of_sync.size_bytes(sizes)

    def _size(self, number: InodeNumber) -> int:
        inode = self._volume.catalog.inode(number)
        return 0 if inode is None else inode.size

    async def copy(self, inodes: Iterable[InodeNumber]) -> None:
        """On return the backup holds these images as they are, and they are no longer marked."""
        waiting = iter(inodes)
        while group := list(islice(waiting, _IMAGES_PER_GROUP)):
            await self._copy_group(group)
            # Only an answer proves that what was sent has arrived: until then the marks stay.
            await self._stream.ask(lambda token: PurgeOffer(token, ())).wait()
            for inode in group:
                self._out_of_sync.discard(inode)

    async def _copy_group(self, inodes: list[InodeNumber]) -> None:
        under_way: deque[_Batch] = deque()
        for inode in inodes:
            for batch in self._batches(inode):
                under_way.append(batch)
                await self._stream.wait_room()
                if len(under_way) >= _WINDOW:
                    await self._finish(under_way.popleft())
        while under_way:
            await self._finish(under_way.popleft())

    def _batches(self, number: InodeNumber) -> Iterator[_Batch]:
        """Ask about an image piece by piece; the first piece makes its attributes and size equal."""
        inode = self._volume.catalog.inode(number)
        if inode is None or not inode.is_regular:
            self._stream.send(ImageCopied(number))
            return
        self._stream.send(CatalogRows(((Table.INODES, inode_key(number), inode.pack()),)))
        pieces = list(_consecutive(self._out_of_sync.regions(number, inode.size)))
        for index, (first, count) in enumerate(pieces or [(0, 0)]):
            size = self._size(number)  # as it is when this piece is asked about
            digests = self._volume.images.region_digests(number, first, count) if count else ()
            reply = self._stream.ask(
                lambda token, size=size, first=first, digests=digests: Digests(  # type: ignore[misc]
                    token, number, size, first, digests, mend=True
                )
            )
            yield _Batch(number, count * REGION_BYTES, reply, last=index >= len(pieces) - 1)

    async def _finish(self, batch: _Batch) -> None:
        reply = await batch.reply.wait()
        # An inode that was purged meanwhile may still have its image here, but no longer there.
        is_there = self._volume.catalog.inode(batch.inode) is not None
        for region in reply.values if is_there else ():
            offset = region * REGION_BYTES
            data = self._volume.images.read(batch.inode, offset, REGION_BYTES)
            if data:
                self._stream.send(RegionData(batch.inode, offset), data)
                self.progress.sent_bytes += len(data)
        self.progress.done_bytes += batch.size_bytes
        if batch.last:
            self._stream.send(ImageCopied(batch.inode))


def _consecutive(regions: list[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive regions as (first, count), none longer than a message may be."""
    start = 0
    for index in range(1, len(regions) + 1):
        run_ends = index == len(regions) or regions[index] != regions[index - 1] + 1
        if run_ends or index - start == DIGESTS_PER_MESSAGE:
            yield regions[start], index - start
            start = index
