"""Verify: proves by checksums that both volumes hold the same, while both are in use.

The primary takes the checksum of some rows, or of some regions of an image, and sends it in the
stream of changes; the backup compares it with its own at the same place of the stream. Of a hole it says
only how far it goes, so what is compared is what either has as data, however long a file is. So both look
at the same moment of the one order, nothing is locked, and no difference is reported that is not
one (G5). What differs is looked at a second time before it counts: a write that failed halfway for a
full disk makes a difference that is being repaired already.

A lost link ends nothing: the comparison goes on where it was once the mirror is normal again. With
`keep` set, what differs is then made equal (`repair.py`) and looked at once more.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

import msgspec
import trio

from fusemirror.change import Table
from fusemirror.errors import ConnectionLost, FusemirrorError, RefusedForSafety, TimedOut
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import (
    DIFFERENCES_LISTED_BYTES_MAX,
    DIFFERENCES_LISTED_MAX,
    DIGESTS_PER_MESSAGE,
    RANGES_PER_IMAGE_MAX,
    REGION_BYTES,
    ROW_BYTES_PER_MESSAGE,
    ROWS_PER_MESSAGE,
    VERIFY_ROUNDS_MAX,
    VERIFY_WINDOW_MESSAGES,
)
from fusemirror.mirror.copying import answer_about
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.sending import Mirror
from fusemirror.mirror.states import PrimaryState
from fusemirror.mirror.stream import Stream
from fusemirror.pieces import first_piece
from fusemirror.promise import Promise
from fusemirror.protocol.messages import Digests, Hole, Reply, RowsDigest
from fusemirror.volume.entries import key_inode
from fusemirror.volume.image_content import Piece
from fusemirror.volume.region_set import REGIONS_END, RegionSet

_LAST_KEY = b"\xff" * 511  # LMDB's longest key: no key stands after it
_WHAT = {Table.INODES: "inode", Table.ENTRIES: "directory", Table.XATTRS: "extended attribute of inode"}
LENGTH_HERE, LENGTH_THERE = -2, -1


class VerifyReport(msgspec.Struct):
    """How far a comparison is, and what it found. Sizes in bytes."""

    running: bool = True
    done_bytes: int = 0
    total_bytes: int = 0
    images: int = 0
    rows: int = 0
    differences: list[str] = msgspec.field(default_factory=list)
    failed: str | None = None
    repaired: int = 0
    more: int = 0  # differences beside those that are listed


def after_key(key: bytes | None) -> bytes:
    """The first that may stand after a key; of a whole table without one."""
    return b"" if key is None else key + b"\x00"


class SuspectRows(NamedTuple):
    """Rows with after < key <= last, of which the primary has one at most."""

    table: Table
    after: bytes | None
    last: bytes
    key: bytes | None

    @property
    def first(self) -> bytes:
        return after_key(self.after)

    def __str__(self) -> str:
        return f"catalog: {_describe(self.table, self.key or self.first)}"


class SuspectRegions(NamedTuple):
    """Regions of an image from `first` to before `end`, or its length at either host."""

    inode: InodeNumber
    first: int
    end: int

    def __str__(self) -> str:
        lengths = {LENGTH_HERE: "length at the primary", LENGTH_THERE: "length"}
        what = lengths.get(self.first, f"bytes {self.first * REGION_BYTES}-{self.end * REGION_BYTES - 1}")
        return f"image of inode {self.inode}: {what}"


def _wrong_length(inode: InodeNumber, where: int) -> SuspectRegions:
    return SuspectRegions(inode, where, where + 1)


Suspect = SuspectRows | SuspectRegions
Repair = Callable[[Stream, list[Suspect]], Awaitable[None]]
"""Makes suspects equal on both hosts. ConnectionLost: some may be."""


class Verifier:
    """One comparison of everything with one replica; `report` can be read while it runs."""

    def __init__(
        self,
        mirror: Mirror,
        replica: Replica,
        *,
        bytes_per_second: int = 0,
        link_timeout_s: float = 0.0,
        repair: Repair | None,
    ) -> None:
        self._mirror = mirror
        self._replica = replica
        self._volume = mirror.volume
        self._bytes_per_second = bytes_per_second
        self._link_timeout_s = link_timeout_s
        self._repair = repair
        self._suspects: list[Suspect] = []
        # Where it is: rows up to this key of these tables, and images up to this inode, are done.
        self._tables = deque(Table)
        self._after: bytes | None = None
        self._image_after: bytes | None = None
        self._started = 0.0
        self.report = VerifyReport()
        self.ended = trio.Event()

    async def run(self) -> None:
        """Compare all rows and all images. The outcome is in `report`; it never raises."""
        try:
            if self._replica.state is not PrimaryState.NORMAL:
                raise RefusedForSafety(
                    f"the mirror is {self._replica.state.name.lower()}, and only a normal one can be "
                    "compared; see `fusemirror wait --for normal`"
                )
            await self._measure()
            self._started = trio.current_time()
            for phase in (self._compare_rows, self._compare_images, self._look_again):
                await self._through_cuts(phase)
        except (FusemirrorError, OSError) as error:
            self.report.failed = str(error)
        finally:
            self.report.running = False
            self.ended.set()

    async def _through_cuts(self, phase: Callable[[Stream], Awaitable[None]]) -> None:
        """Do a phase; after a lost link go on with it over the next one."""
        while True:
            stream = self._replica.stream
            if stream is not None and self._replica.state is PrimaryState.NORMAL:
                with suppress(ConnectionLost):
                    await phase(stream)
                    return
                while self._replica.stream is stream:  # the mirror has yet to hear that it is lost
                    await self._mirror.changed.wait()
            await self._wait_normal()

    async def _wait_normal(self) -> None:
        """Wait for a link, so long and no longer; with one, for the end of its resync."""
        while self._replica.state is not PrimaryState.NORMAL or self._replica.stream is None:
            changed = self._mirror.changed
            with trio.move_on_after(self._link_timeout_s):
                await changed.wait()
            if not changed.is_set() and self._replica.link is None:
                raise TimedOut(self._link_timeout_s, "verify waited for the backup to come back")

    # --- rows ---------------------------------------------------------------------------------------------

    async def _compare_rows(self, stream: Stream) -> None:
        while self._tables:
            table = self._tables[0]
            rows = self._rows(table, self._after)
            whole_table = not rows or not self._volume.catalog.tables.rows(table, rows[-1][0], 1)
            last = _LAST_KEY if whole_table else rows[-1][0]
            self._suspects += await self._differing_rows(stream, table, self._after, last)
            self.report.rows += len(rows)
            self._after = last
            if whole_table:
                self._tables.popleft()
                self._after = None

    def _rows(self, table: Table, after: bytes | None) -> list[tuple[bytes, bytes]]:
        return self._volume.catalog.tables.rows(table, after, ROWS_PER_MESSAGE, ROW_BYTES_PER_MESSAGE)

    async def _differing_rows(
        self, stream: Stream, table: Table, after: bytes | None, last: bytes
    ) -> list[Suspect]:
        """Compare the rows with after < key <= last; where they differ, halve until single rows are left."""
        suspect = SuspectRows(table, after, last, None)
        count, digest = self._volume.catalog.tables.digest(table, suspect.first, last)
        reply = stream.ask(lambda token: RowsDigest(token, table, suspect.first, last, count, digest))
        if not (await reply.wait()).values:
            return []
        rows = self._rows(table, after)
        keys = [key for key, _ in rows if key <= last]
        if len(keys) <= 1:
            return [suspect._replace(key=keys[0] if keys else None)]
        middle = keys[len(keys) // 2 - 1]
        return [
            *await self._differing_rows(stream, table, after, middle),
            *await self._differing_rows(stream, table, middle, last),
        ]

    # --- images -------------------------------------------------------------------------------------------

    async def _compare_images(self, stream: Stream) -> None:
        while rows := self._volume.catalog.tables.rows(Table.INODES, self._image_after, ROWS_PER_MESSAGE):
            for key, _ in rows:
                inode = key_inode(key)
                if self._has_content(inode):
                    self._suspects += await self._differing_regions(stream, inode)
                    self.report.images += 1
                self._image_after = key
            await trio.lowlevel.checkpoint()  # files without content ask the peer nothing: no wait otherwise

    def _has_content(self, number: InodeNumber) -> bool:
        inode = self._volume.catalog.stored_inode(number)
        return inode is not None and inode.is_regular and inode.size > 0

    async def _differing_regions(self, stream: Stream, inode: InodeNumber) -> list[Suspect]:
        """What differs of a whole image."""
        found: list[Suspect] = []
        if self._volume.images.size(inode) != self._volume.catalog.size(inode):
            found.append(_wrong_length(inode, LENGTH_HERE))
        differing, as_long = await self._compare_regions(stream, inode, 0, REGIONS_END)
        if not as_long:
            found.append(_wrong_length(inode, LENGTH_THERE))
        return found + [SuspectRegions(inode, *each) for each in differing]

    async def _compare_regions(
        self, stream: Stream, inode: InodeNumber, first: int, end: int
    ) -> tuple[RegionSet, bool]:
        """Which regions differ, and whether the backup's image is as long as it should be.

        Of more ranges than an image may have marked, the nearest are told as one.
        """
        differing, as_long = RegionSet(), True
        left = [(first, end)]  # what nobody was asked about yet
        under_way: deque[tuple[Piece, Promise[Reply]]] = deque()
        while left or under_way:
            if left and len(under_way) < VERIFY_WINDOW_MESSAGES:
                at, stop = left.pop()
                # The first question is asked in any case: it is about the length too.
                here = min(stop, max(first + 1, -(-self._length(inode) // REGION_BYTES)))
                if at < here:
                    piece = self._piece(stream, inode, at, here)
                    under_way.append((piece, self._ask(stream, inode, piece)))
                    left += [(piece.end, stop)] if piece.end < stop else []
                    await self._keep_rate()
                continue
            piece, reply = under_way.popleft()
            looked, found = answer_about(piece, await reply.wait(), stream.session.peer_name)
            as_long = as_long and LENGTH_THERE not in found
            for region in found:
                if region != LENGTH_THERE:
                    differing.add(region, region + 1)
            if len(differing) > RANGES_PER_IMAGE_MAX:
                differing.coarsen(RANGES_PER_IMAGE_MAX // 2)
            if looked < piece.end:
                left.append((looked, piece.end))
        return differing, as_long

    def _piece(self, stream: Stream, inode: InodeNumber, first: int, end: int) -> Piece:
        piece = self._volume.images.content.piece(inode, first, end)
        if not piece.is_hole:
            length = self._length(inode) - first * REGION_BYTES
            self.report.done_bytes += max(0, min(length, (piece.end - first) * REGION_BYTES))
            self.report.total_bytes = max(self.report.total_bytes, self.report.done_bytes)
        elif not stream.session.peer.takes_holes:
            return Piece(first, min(piece.end, first + DIGESTS_PER_MESSAGE), is_hole=False)
        return piece

    def _ask(self, stream: Stream, inode: InodeNumber, piece: Piece) -> Promise[Reply]:
        size = self._volume.catalog.size(inode)
        if piece.is_hole:
            return stream.ask(lambda token: Hole(token, inode, size, piece.first, piece.end, repair=False))
        digests = self._volume.images.content.region_digests(inode, piece.first, piece.end - piece.first)
        return stream.ask(lambda token: Digests(token, inode, size, piece.first, digests, repair=False))

    async def _measure(self) -> None:
        """How much there is to compare, for those who watch."""
        after: bytes | None = None
        while rows := self._volume.catalog.tables.rows(Table.INODES, after, ROWS_PER_MESSAGE):
            numbers = [key_inode(key) for key, _ in rows]
            self.report.total_bytes += sum(
                self._volume.files.measure(number)[1] for number in numbers if self._has_content(number)
            )
            after = rows[-1][0]
            await trio.lowlevel.checkpoint()

    async def _keep_rate(self) -> None:
        if self._bytes_per_second:
            due = self._started + self.report.done_bytes / self._bytes_per_second
            if due > trio.current_time():
                await trio.sleep_until(due)

    def _length(self, number: InodeNumber) -> int:
        """How much of an image there is to compare: what is missing of it is told as its length.

        A row that was damaged may say that it has exbibytes.
        """
        return min(self._volume.catalog.size(number), self._volume.images.size(number))

    # --- what differs -------------------------------------------------------------------------------------

    async def _look_again(self, stream: Stream) -> None:
        """Look again at what differed, repair it if that was asked for, and report what is left."""
        suspects = await self._still_differing(stream, self._suspects)
        found = _count(suspects)
        for _ in range(VERIFY_ROUNDS_MAX):
            if self._repair is None or not suspects:
                break
            await self._repair(stream, suspects)
            for inode in dict.fromkeys(_image_to_look_at(suspect) for suspect in suspects):
                if inode is not None and self._has_content(inode):
                    suspects += await self._differing_regions(stream, inode)
            suspects = await self._still_differing(stream, list(dict.fromkeys(suspects)))
        self.report.repaired = max(0, found - _count(suspects))
        self.report.differences = first_piece(
            map(str, suspects), _encoded_bytes, DIFFERENCES_LISTED_BYTES_MAX, DIFFERENCES_LISTED_MAX
        )
        self.report.more = len(suspects) - len(self.report.differences)

    async def _still_differing(self, stream: Stream, suspects: list[Suspect]) -> list[Suspect]:
        left: list[Suspect] = []
        for suspect in suspects:
            if isinstance(suspect, SuspectRows):
                left += await self._differing_rows(stream, suspect.table, suspect.after, suspect.last)
            # What is known to be out of sync is being repaired, and no secret.
            elif suspect.inode not in self._replica.out_of_sync:
                left += await self._still_differing_regions(stream, suspect)
        return left

    async def _still_differing_regions(self, stream: Stream, suspect: SuspectRegions) -> list[Suspect]:
        inode = suspect.inode
        if self._volume.catalog.stored_inode(inode) is None:
            return []  # deleted meanwhile
        if suspect.first == LENGTH_HERE:
            return [suspect] if self._volume.images.size(inode) != self._volume.catalog.size(inode) else []
        first = max(suspect.first, 0)
        differing, as_long = await self._compare_regions(stream, inode, first, max(suspect.end, first + 1))
        if suspect.first == LENGTH_THERE:
            return [] if as_long else [suspect]
        return [SuspectRegions(inode, *each) for each in differing]


def _count(suspects: list[Suspect]) -> int:
    """Each row, region and length is one."""
    return sum(each.end - each.first if isinstance(each, SuspectRegions) else 1 for each in suspects)


def _encoded_bytes(text: str) -> int:
    return len(msgspec.json.encode(text)) + 1  # and a comma


def _image_to_look_at(suspect: Suspect) -> InodeNumber | None:
    """An inode that came back brings its image, and an image that has got its length all of its content."""
    if isinstance(suspect, SuspectRegions):
        return suspect.inode if suspect.first < 0 else None
    return key_inode(suspect.key) if suspect.table is Table.INODES and suspect.key is not None else None


def _describe(table: Table, key: bytes) -> str:
    """A row's key for people: what it is about, and its name where it has one."""
    if table is Table.META:
        return f"row {key.decode(errors='backslashreplace')}"
    inode, name = key_inode(key), key[8:].decode(errors="backslashreplace")
    return f"{_WHAT[table]} {inode}" + (f", name {name!r}" if name else "")
