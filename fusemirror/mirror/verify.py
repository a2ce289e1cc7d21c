"""Verify: proves by checksums that both volumes hold the same, while both are in use.

The primary takes the checksum of some rows, or of some regions of an image, and sends it in the
stream of changes; the backup compares it with its own at the same place of the stream. So both look
at the same moment of the one order, nothing is locked, and no difference is reported that is not
one (G5).
"""

from collections import deque
from collections.abc import Iterator

import msgspec
import trio

from fusemirror.change import Table
from fusemirror.errors import ConnectionLost, RefusedForSafety
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import (
    DIFFERENCES_LISTED_MAX,
    DIGESTS_PER_MESSAGE,
    REGION_BYTES,
    ROWS_PER_MESSAGE,
    VERIFY_WINDOW_MESSAGES,
)
from fusemirror.mirror.sending import Mirror
from fusemirror.mirror.states import PrimaryState
from fusemirror.mirror.stream import Stream
from fusemirror.promise import Promise
from fusemirror.protocol.messages import Digests, Reply, RowsDigest
from fusemirror.volume.catalog import key_inode

_LAST_KEY = b"\xff" * 511  # LMDB's longest key: no key stands after it
_WHAT = {Table.INODES: "inode", Table.ENTRIES: "directory", Table.XATTRS: "extended attribute of inode"}


class Report(msgspec.Struct):
    """How far a comparison is, and what it found. Sizes in bytes."""

    running: bool = True
    done_bytes: int = 0
    total_bytes: int = 0
    images: int = 0
    rows: int = 0
    differences: list[str] = msgspec.field(default_factory=list)
    failed: str | None = None

    def found(self, difference: str) -> None:
        if len(self.differences) < DIFFERENCES_LISTED_MAX:
            self.differences.append(difference)


class Verifier:
    """One comparison of everything; `report` can be read while it runs."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._volume = mirror.volume
        self.report = Report()
        self.ended = trio.Event()

    async def run(self) -> None:
        """Compare all rows and all images. The outcome is in `report`; it never raises."""
        try:
            stream = self._mirror.stream
            if stream is None or self._mirror.state is not PrimaryState.NORMAL:
                raise RefusedForSafety(
                    f"the mirror is {self._mirror.state.name.lower()}, and only a normal one can be "
                    "compared; see `fusemirror wait --for normal`"
                )
            await self._measure()
            await self._compare_rows(stream)
            await self._compare_images(stream)
        except (ConnectionLost, RefusedForSafety) as error:
            self.report.failed = str(error)
        finally:
            self.report.running = False
            self.ended.set()

    # --- rows ---------------------------------------------------------------------------------------------

    async def _compare_rows(self, stream: Stream) -> None:
        for table in Table:
            after: bytes | None = None
            while True:
                rows = self._volume.catalog.rows(table, after, ROWS_PER_MESSAGE)
                whole_table = len(rows) < ROWS_PER_MESSAGE
                last = _LAST_KEY if whole_table else rows[-1][0]
                await self._compare_range(stream, table, after, last)
                self.report.rows += len(rows)
                if whole_table:
                    break
                after = last

    async def _compare_range(self, stream: Stream, table: Table, after: bytes | None, last: bytes) -> None:
        """Compare the rows with after < key <= last; where they differ, halve until single rows are left."""
        first = b"" if after is None else after + b"\x00"  # the key that follows at once
        count, digest = self._volume.catalog.digest(table, first, last)
        reply = stream.ask(lambda token: RowsDigest(token, table, first, last, count, digest))
        if not (await reply.wait()).values:
            return
        rows = self._volume.catalog.rows(table, after, ROWS_PER_MESSAGE)
        keys = [key for key, _ in rows if key <= last]
        if len(keys) <= 1:
            self.report.found(f"catalog: {_describe(table, keys[0] if keys else first)}")
            return
        middle = keys[len(keys) // 2 - 1]
        await self._compare_range(stream, table, after, middle)
        await self._compare_range(stream, table, middle, last)

    # --- images -------------------------------------------------------------------------------------------

    async def _compare_images(self, stream: Stream) -> None:
        under_way: deque[tuple[InodeNumber, int, Promise[Reply]]] = deque()
        for inode in self._regular_inodes():
            self.report.images += 1
            first = 0
            while True:
                under_way.append(self._ask(stream, inode, first))
                if len(under_way) >= VERIFY_WINDOW_MESSAGES:
                    await self._finish(*under_way.popleft())
                first += DIGESTS_PER_MESSAGE
                if first * REGION_BYTES >= self._size(inode):
                    break
        while under_way:
            await self._finish(*under_way.popleft())

    def _regular_inodes(self) -> Iterator[InodeNumber]:
        """Every regular file with content, in the order of inode numbers, also those made meanwhile."""
        after: bytes | None = None
        while rows := self._volume.catalog.rows(Table.INODES, after, ROWS_PER_MESSAGE):
            for key, _ in rows:
                inode = self._volume.catalog.inode(key_inode(key))
                if inode is not None and inode.is_regular and inode.size:
                    yield inode.number
            after = rows[-1][0]

    async def _measure(self) -> None:
        """How much there is to compare, for those who watch."""
        for count, inode in enumerate(self._regular_inodes()):
            self.report.total_bytes += self._size(inode)
            if count % ROWS_PER_MESSAGE == 0:
                await trio.lowlevel.checkpoint()

    def _size(self, number: InodeNumber) -> int:
        inode = self._volume.catalog.inode(number)
        return 0 if inode is None else inode.size

    def _ask(self, stream: Stream, inode: InodeNumber, first: int) -> tuple[InodeNumber, int, Promise[Reply]]:
        size = self._size(inode)
        if first == 0 and self._volume.images.size(inode) != size:
            self.report.found(f"image of inode {inode}: length at the primary")
        digests = self._volume.images.region_digests(inode, first, DIGESTS_PER_MESSAGE)
        reply = stream.ask(lambda token: Digests(token, inode, size, first, digests, mend=False))
        return inode, min(len(digests) * REGION_BYTES, max(0, size - first * REGION_BYTES)), reply

    async def _finish(self, inode: InodeNumber, size_bytes: int, reply: Promise[Reply]) -> None:
        for region in (await reply.wait()).values:
            start = region * REGION_BYTES
            what = "length" if region < 0 else f"bytes {start}-{start + REGION_BYTES - 1}"
            self.report.found(f"image of inode {inode}: {what}")
        self.report.done_bytes += size_bytes


def _describe(table: Table, key: bytes) -> str:
    """A row's key for people: what it is about, and its name where it has one."""
    if table is Table.META:
        return f"row {key.decode(errors='backslashreplace')}"
    inode, name = key_inode(key), key[8:].decode(errors="backslashreplace")
    return f"{_WHAT[table]} {inode}" + (f", name {name!r}" if name else "")
