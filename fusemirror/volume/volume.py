"""Volume: one host's replica as a whole, and the one place where changes take effect.

The order of steps makes each change whole when the process is killed between any two of them:

- A namespace change is in the journal first, and then in the catalog's open transaction. What the
  transaction loses, opening puts again from the journal.
- A data change marks its regions first, then changes the image, then the image's time stamps. What
  the catalog had not committed of size and times, opening takes from the marked images. So the
  catalog is committed before marks are dropped.
- A data change that answers a request of the peer, or carries rows, is in the journal before all that.
  Opening tells from the image whether the last such record took effect (`_took_effect`). Rows come last.

And for a power cut: the journal is durable before the catalog that holds its records; an image is
removed only when the record that says so is durable; an image that no inode has is set aside, and times
that a record is judged by are durable with the data; everything else is compared with the peer.
"""

import contextlib
import errno
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio
import xxhash

from fusemirror.change import (
    NEWEST_TAG,
    AllocateChange,
    AnyChange,
    DataChange,
    NamespaceChange,
    Row,
    Table,
    TruncateChange,
    WriteChange,
    decode_change,
    encode_change,
    tag_of,
)
from fusemirror.errors import (
    BadChange,
    DiskFailed,
    FusemirrorError,
    OperationFailed,
    SequenceGap,
    VolumeDamaged,
    VolumeError,
    VolumeFormat,
)
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import (
    CATALOG_CHANGES_PER_COMMIT_MAX,
    CATALOG_CHANGES_PER_COMMIT_SHORT,
    CLOCK_DIFFERENCE_MAX_S,
    FILE_BYTES_MAX,
    HOLE_PIECE_BYTES,
    JOURNAL_BYTES_MAX,
    JOURNAL_SEGMENT_BYTES,
    MIB,
    REGION_BYTES,
    SPACE_RESERVE_INODES,
)
from fusemirror.seams import Seams
from fusemirror.volume.catalog import Catalog, Entry, SetBack, key_inode, set_back_row
from fusemirror.volume.durable import sync_directory, unused
from fusemirror.volume.health import Health, noting, noting_async
from fusemirror.volume.identity import Identity, State, VolumeLock, boot_id
from fusemirror.volume.images import ImageFacts, Images
from fusemirror.volume.inode import Inode
from fusemirror.volume.journal import Journal, Record
from fusemirror.volume.private import check_plain_volume, make_private
from fusemirror.volume.regions import Marks, Regions
from fusemirror.volume.rows import SET_BACK_KEY, check_rows
from fusemirror.volume.space import Space, reserve_bytes
from fusemirror.volume.watcher import Nobody, Watcher

_log = logging.getLogger(__name__)

_INODES_PER_TURN = 4096
_REAL = Seams()
T = TypeVar("T")
_CONTENT_NOTE = 1 << 63
_CLOCK_DIFFERENCE_MAX_NS = round(CLOCK_DIFFERENCE_MAX_S * 10**9)
_NO_IMAGE = ImageFacts(size=0, mtime_ns=0, ctime_ns=0)


@dataclass(frozen=True)
class Recovery:
    """What opening found and did. `change_in_doubt` did not take effect, whole or at all."""

    clean: bool
    same_boot: bool
    replayed: int
    cut_bytes: int
    change_in_doubt: DataChange | None

    @property
    def last_request_in_doubt(self) -> RequestId:
        return NO_REQUEST if self.change_in_doubt is None else self.change_in_doubt.request


class Volume:
    """An open volume. Methods belong to the event loop's thread; only what is awaited leaves it."""

    catalog: Catalog
    recovery: Recovery

    # --- making, opening, closing --------------------------------------------------------------------

    @staticmethod
    def create(directory: Path, identity: Identity, seams: Seams = _REAL) -> None:
        """On return there durably is an empty volume. VolumeError unless the directory is empty.

        RefusedForSafety for a link or somebody else's; OSError.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_private(directory)
        if any(directory.iterdir()):
            raise VolumeError(directory, "the directory is not empty; choose another")
        for name in ("journal", "images", "regions"):
            (directory / name).mkdir(mode=0o700)
        Catalog.create(directory / "catalog")
        Journal(directory / "journal", seams).close()
        sync_directory(directory / "journal")
        State(clean=True, boot_id=boot_id()).store(directory)
        identity.store(directory)  # last: a directory without it is no volume
        sync_directory(directory.parent)

    @staticmethod
    def open(directory: Path, seams: Seams = _REAL) -> "Volume":
        """The volume, recovered from whatever ended its last use; nobody else can open it now.

        VolumeMissing, VolumeInUse, VolumeFormat, VolumeDamaged, OSError: then nothing stays open.
        """
        Identity.load(directory)  # before the lock, which would make a file in any directory
        check_plain_volume(directory)
        with contextlib.ExitStack() as undoing:
            lock = VolumeLock(directory)
            undoing.callback(lock.release)
            state = State.load(directory)
            for name in ("journal", "images", "regions"):
                if not (directory / name).is_dir():
                    raise VolumeDamaged(directory, f"{name} is missing")
            images = Images(directory / "images", seams)
            undoing.callback(images.close)
            journal = Journal(directory / "journal", seams, lost_power=state.lost_power)
            undoing.callback(journal.close)
            _settle_catalog_copy(directory, journal, images)
            regions = Regions(directory / "regions", lost_power=state.lost_power)
            undoing.callback(regions.close)
            volume = Volume(directory, seams, lock, journal, images, regions)
            undoing.callback(volume.catalog.close)
            volume._recover(state)
            undoing.pop_all()
            return volume

    def __init__(
        self,
        directory: Path,
        seams: Seams,
        lock: VolumeLock,
        journal: Journal,
        images: Images,
        regions: Regions,
    ) -> None:
        """Use `open`."""
        self.directory = directory
        self.journal = journal
        self.images = images
        self.regions = regions
        self.catalog = Catalog(directory / "catalog")
        self.watcher: Watcher = Nobody()
        self.copying = False
        self.health = Health()
        self.space = Space(directory, seams.statvfs)
        self.requests_done: dict[RequestId, tuple[ChangeNumber, InodeNumber]] = {}
        """The peer's requests that took effect: the change, and the inode its requester asks for."""
        self._seams = seams
        self._lock = lock
        self._identity = Identity.load(directory)
        self._time_ns = self.catalog.time_ns
        self._staging_time_ns = 0
        # Images to remove, once the record that says so is durable.
        self._purged: deque[tuple[ChangeNumber, InodeNumber]] = deque()
        self._discarded = trio.Event()
        self._commit_at = CATALOG_CHANGES_PER_COMMIT_MAX
        self.number = max(self.catalog.number, journal.last_number)
        """The last change applied."""

    def close(self) -> None:
        """Make everything durable and record that the volume was closed in good order.

        On return, and after an error too, nothing stays open. DiskFailed, OSError: then the next
        opening recovers.
        """
        try:
            self._sync(dict(self.images.dirty))
            # The next process does not know which were made and not written to: it would sync data alone.
            self.images.sync_names()
            self.images.recycle(self._release_purged(self.journal.durable_number))
            self.commit()
            self.regions.sync()
            State(clean=not self.copying, boot_id=boot_id()).store(self.directory)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Release everything as the end of the process would; nothing is written."""
        self.catalog.close()
        self.regions.close()
        self.journal.close()
        self.images.close()
        self._lock.release()

    # --- what it is ----------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity:
        return self._identity

    @noting
    def update_identity(self, **changes: Any) -> None:
        """On return the identity is durably changed. OSError."""
        identity = msgspec.structs.replace(self._identity, **changes)
        if identity != self._identity:
            identity.store(self.directory)
            self._identity = identity

    @property
    def file_bytes_max(self) -> int:
        """How long a file may be: what both hosts' disks take, as far as this host knows."""
        return min(self.images.file_bytes_max, self._identity.peer_file_bytes_max or FILE_BYTES_MAX)

    @property
    def journal_number(self) -> ChangeNumber:
        """The last change with a record: of the namespace, or a data change that answers a request."""
        return self.journal.last_number

    def time_ns(self) -> int:
        """The time for a new change: later than that of every change before, over restarts too.

        Like a number it counts from when a change with it is applied: one that was refused leaves nothing of
        a wrong clock.
        """
        return max(self._seams.now_ns(), self._time_ns + 1)

    @property
    def newest_time_ns(self) -> int:
        """The time of the newest change."""
        return self._time_ns

    def staging_time_ns(self) -> int:
        """The time that a write shows before it is decided: later than that of those before, as far as this
        host's clock allows.
        """
        now_ns = self._seams.now_ns()
        follows = not 0 <= self._staging_time_ns - now_ns <= _CLOCK_DIFFERENCE_MAX_NS
        self._staging_time_ns = now_ns if follows else self._staging_time_ns + 1
        return self._staging_time_ns

    def now_ns(self) -> int:
        """This host's time of day."""
        return self._seams.now_ns()

    def clock_behind_s(self) -> float:
        """How far this host's clock is behind the newest change; below 0 if it is not."""
        return (self._time_ns - self._seams.now_ns()) / 1e9

    def set_back(self) -> tuple[Row, int] | None:
        """The row and the time of a change after which changes follow this host's clock again.

        None where the newest change is not further ahead of it than CLOCK_DIFFERENCE_MAX_S. Only such a
        change may have an earlier time than one before.
        """
        now_ns = self._seams.now_ns()
        if self._time_ns - now_ns <= _CLOCK_DIFFERENCE_MAX_NS:
            return None
        from_ns = max(self._time_ns, self.catalog.set_back.from_ns)
        return set_back_row(SetBack(from_ns, max(0, now_ns))), now_ns

    def advance(self, number: ChangeNumber) -> None:
        """Leave out numbers: the next change is above `number`. For a primary whose last numbers died
        with its process, while the peer holds data changes that had them."""
        self.number = max(self.number, number)

    def rewind(self) -> None:
        """Go back to the last record. Numbers of data changes die with the process that gave them, so what
        comes next may have numbers that data changes had before; no record has a number twice."""
        self.number = self.journal.last_number

    def advance_past_cookie(self, cookie: int) -> None:
        """The changes to come give cookies above `cookie`. (A backup's numbers are its primary's.)"""
        if self._identity.role == "primary":
            self.advance(ChangeNumber(cookie // 2))

    def statvfs(self) -> os.statvfs_result:
        """What the disk says, its free space less the reserve."""
        found = self._seams.statvfs(self.directory)
        free = max(0, found.f_bavail - -(-reserve_bytes(found) // found.f_frsize))
        inodes = max(0, found.f_favail - SPACE_RESERVE_INODES)
        return os.statvfs_result((*found[:4], free, found.f_files, inodes, inodes, *found[8:]))

    async def run_blocking(self, function: Callable[..., T], *args: Any) -> T:
        """What `function` returns; it blocks on the disk, and nobody else waits for it. On return it has
        ended, even when cancelled."""
        return await self._seams.run_blocking(function, *args)

    # --- changes -------------------------------------------------------------------------------------

    @noting
    def apply(
        self,
        change: AnyChange,
        data: bytes | memoryview = b"",
        *,
        encoded: bytes | memoryview | None = None,
        journal_request: bool = False,
        are_checked: bool = False,
    ) -> None:
        """On return the change has taken effect, and the end of the process cannot undo it.

        `encoded` is the change as bytes, where the caller has them; `journal_request` puts a
        data change into the journal, for the request that it answers; one with rows always is there.
        `are_checked`: the rows of a change of the namespace went through `check_rows` before, as those of a
        message have.

        SequenceGap unless its number is above all before; OperationFailed (ESTALE) for data of an inode
        that is not there. OSError of a full or failing disk: the change did not take effect, though bytes of
        marked regions may differ.
        """
        if change.number <= self.number:
            raise SequenceGap(self.number, change.number)
        journals = journal_request or bool(change.rows)
        if encoded is None and (journals or type(change) is NamespaceChange):
            encoded = encode_change(change)
        record = encoded if journals and not self.copying else None
        if type(change) is WriteChange:
            self._apply_write(change, data, record)
        elif type(change) is TruncateChange:
            self._apply_truncate(change, record)
        elif type(change) is AllocateChange:
            self._apply_allocate(change, record)
        elif type(change) is NamespaceChange and encoded is not None:
            if not are_checked:
                check_rows(change.rows)
            self._apply_namespace(change, encoded)
        self.number = change.number
        if change.time_ns > self._time_ns:
            self._time_ns = change.time_ns
        elif change.time_ns < self._time_ns and _sets_clock_back(change):
            self._time_ns = change.time_ns
            self._commit_or_later()  # so that recovery finds rows of before in the catalog
        own = (change.request == NO_REQUEST) == (self._identity.role == "primary")
        if change.rows:
            self.watcher.rows_changed(change.rows, own=own)
        if type(change) is not NamespaceChange:
            self.watcher.data_changed(change.inode, own=own)
        if change.request:
            self.requests_done[change.request] = (change.number, change.inode)
        if self.catalog.changes_since_commit >= self._commit_at:
            self._commit_or_later()

    def check_change(self, change: AnyChange) -> None:
        """Refuse a change whose rows would contradict the catalog, or each other. BadChange."""
        contradiction = self.catalog.contradiction(change.rows, partial=self.copying)
        if contradiction is not None:
            raise BadChange(contradiction)

    def prepare_image(self, number: InodeNumber) -> None:
        """Make the image of a file before it is written to: for a moment when the peer is waited for.

        An error of the disk is left to the write.
        """
        inode = self.catalog.inode(number)
        if inode is not None and inode.is_regular:
            with contextlib.suppress(OSError):
                self.images.prepare(number)

    def ending(self, number: InodeNumber) -> tuple[int, bytes] | None:
        """Where the last byte of a file is, and that byte; None for an empty file, or where there is none.

        Of an image that is out of sync the place is right, and the byte may not be. OSError.
        """
        inode = self.catalog.inode(number)
        if inode is None or not inode.is_regular or inode.size == 0:
            return None
        last = inode.size - 1
        return last, self.images.read(number, last, 1) or b"\0"

    def forget_request(self, request: RequestId) -> None:
        """The peer has the answer and will not ask again."""
        self.requests_done.pop(request, None)

    def _apply_namespace(self, change: NamespaceChange, encoded: bytes | memoryview) -> None:
        if not self.copying:
            self.journal.append(change.number, encoded)
        try:
            removed = self.catalog.apply_rows(change.rows, change.number)
        except DiskFailed:
            if self.copying:
                raise
            self._rebuild_catalog()
            removed = _removed_inodes(change)
        for inode in removed:
            self._purged.append((change.number, inode))

    def _apply_write(
        self, change: WriteChange, data: bytes | memoryview, record: bytes | memoryview | None
    ) -> None:
        number, offset, time_ns = change.inode, change.offset, change.time_ns
        end = offset + change.length
        if change.length != len(data):
            raise BadChange(f"it came with {len(data)} of {change.length} bytes")
        if change.rows:
            check_rows(change.rows)
        inode = self._inode_of_data(number)
        if record is not None:
            if time_ns <= self.catalog.set_back.from_ns:
                self.images.make_older(number, time_ns)  # the record will be judged by that
            size = 0 if inode is None else inode.size
            self.journal.append(change.number, record, note=size if end > size else _content_note(data))
        try:
            self.regions.mark(number, offset, end)
            self.images.write(number, offset, data, time_ns)
        except OSError:
            self._take_back(change, inode, journalled=record is not None)
            raise
        if record is not None:
            self.images.keep_times(number)
        if inode is None:
            return
        if end > inode.size:
            inode.size = end
        inode.mtime_ns = inode.ctime_ns = time_ns
        inode.changed = change.number
        self.catalog.touch(inode)
        if change.rows:
            self._put_rows_of_data(change)

    def _put_rows_of_data(self, change: DataChange) -> None:
        """Put what a data change carries. DiskFailed while copying; else the journal holds it."""
        try:
            self.catalog.apply_rows(change.rows, change.number)
        except DiskFailed:
            if self.copying:
                raise
            self._rebuild_catalog()
            self.catalog.apply_rows(change.rows, change.number)  # over what only memory held

    def _apply_truncate(self, change: TruncateChange, record: bytes | memoryview | None) -> None:
        if change.rows:
            check_rows(change.rows)
        inode = self._inode_of_data(change.inode)
        old_size = change.size if inode is None else inode.size
        if record is not None:
            if change.time_ns <= self.catalog.set_back.from_ns:
                self.images.make_older(change.inode, change.time_ns)
            self.journal.append(change.number, record, note=0 if inode is None else inode.size)
        try:
            self._mark_length(change.inode, old_size, change.size)
            self.images.truncate(change.inode, change.size, change.time_ns)
        except OSError:
            self._take_back(change, inode, journalled=record is not None)
            raise
        self._look_at_discarded()
        if record is not None:
            self.images.keep_times(change.inode)
        if inode is None:
            return
        inode.size = change.size
        inode.mtime_ns = inode.ctime_ns = change.time_ns
        inode.changed = change.number
        self.catalog.touch(inode)
        if change.rows:
            self._put_rows_of_data(change)

    def _apply_allocate(self, change: AllocateChange, record: bytes | memoryview | None) -> None:
        if change.rows:
            check_rows(change.rows)
        inode = self._inode_of_data(change.inode)
        if record is not None:
            if change.time_ns <= self.catalog.set_back.from_ns:
                self.images.make_older(change.inode, change.time_ns)
            self.journal.append(change.number, record, note=0 if inode is None else inode.size)
        try:
            self.regions.mark(change.inode, change.offset, change.end)
            self.images.allocate(change.inode, change.offset, change.end, change.mode, change.time_ns)
        except OSError:
            self._take_back(change, inode, journalled=record is not None)
            raise
        if record is not None:
            self.images.keep_times(change.inode)
        if inode is None:
            return
        inode.size = change.size_after(inode.size)
        inode.mtime_ns = inode.ctime_ns = change.time_ns
        inode.changed = change.number
        self.catalog.touch(inode)
        if change.rows:
            self._put_rows_of_data(change)

    def _mark_length(self, inode: InodeNumber, old_size: int, size: int) -> None:
        """Mark what a truncation cuts off. One that extends is marked for the new size alone."""
        self.regions.mark(inode, min(size, old_size), max(old_size, min(size, old_size) + 1))

    def _inode_of_data(self, number: InodeNumber) -> Inode | None:
        """The inode that a data change concerns; None where a catalog copy has yet to bring it."""
        inode = self.catalog.inode(number)
        if inode is None:
            if not self.copying:
                raise OperationFailed(errno.ESTALE)
        elif not inode.is_regular:
            raise BadChange(f"inode {number} is no file")
        return inode

    def _take_back(self, change: DataChange, inode: Inode | None, *, journalled: bool) -> None:
        """A data change met an error of the disk: leave its image as long as it was, and no record."""
        if inode is not None:
            with contextlib.suppress(OSError):
                self.images.cut(change.inode, inode.size)
                self.images.set_times(change.inode, inode.mtime_ns, inode.ctime_ns)
        if journalled:
            self.journal.retract(change.number)

    # --- reading -------------------------------------------------------------------------------------

    @noting
    def read(self, inode: InodeNumber, offset: int, length: int) -> bytes:
        """The bytes at `offset`, fewer at the end of the file. OperationFailed (ESTALE), OSError."""
        found = self.catalog.inode(inode)
        if found is None:
            raise OperationFailed(errno.ESTALE)
        length = min(length, found.size - offset)
        if length <= 0:
            return b""
        data = self.images.read(inode, offset, length)
        return data if len(data) == length else data + bytes(length - len(data))

    @noting
    def next_data(self, inode: InodeNumber, offset: int, size: int) -> int:
        """Where, from `offset` on, a file of so many bytes has data; `size` where a hole ends it. OSError."""
        return self.images.next_data(inode, offset, size)

    @noting
    def next_hole(self, inode: InodeNumber, offset: int, size: int) -> int:
        """Where, from `offset` on, a file of so many bytes has a hole; its end is one. OSError."""
        return self.images.next_hole(inode, offset, size)

    def allocated_bytes(self, inode: Inode) -> int:
        """How much of the disk the data of an inode takes; where the disk cannot be asked, as if it had no
        holes."""
        if inode.is_regular:
            with contextlib.suppress(OSError):  # whoever reads or writes there meets it
                return self.images.data_bytes(inode.number)
        return inode.size

    def inode_of(self, directory: InodeNumber, name: bytes, entry: Entry) -> Inode | None:
        """The inode of an entry; None where a copy under way has yet to bring it. VolumeDamaged."""
        inode = self.catalog.inode(entry.inode)
        if inode is None and not self.copying:
            raise self.catalog.lacks(entry.inode, f"name {name!r} of directory {directory}")
        return inode

    def inodes(self) -> Iterator[Inode]:
        """Every inode, as an object of its own; what is added meanwhile may be missing."""
        after: bytes | None = None
        while rows := self.catalog.rows(Table.INODES, after, _INODES_PER_TURN):
            for key, row in rows:
                yield Inode.unpack(key_inode(key), row)
            after = rows[-1][0]

    def measure(self, number: InodeNumber) -> tuple[int, int]:
        """How long a file is, and about how much data it holds: holes do not count, unless the disk cannot be
        asked about them.
        """
        inode = self.catalog.inode(number)
        if inode is None or not inode.is_regular:
            return 0, 0
        size = data_bytes = inode.size
        if size > MIB:
            with contextlib.suppress(OSError):  # whoever reads or writes there meets it
                data_bytes = min(size, self.images.data_bytes(number))
        return size, data_bytes

    # --- durability ----------------------------------------------------------------------------------

    @noting_async
    async def flush(self, inode: InodeNumber) -> None:
        """On return what was written to the inode, and all of the namespace, is durable; inode 0 is none.

        Without a checkpoint where there is nothing to do. Cancelled, it may have done all or a part.
        DiskFailed, OSError.
        """
        serial = self.images.dirty.get(inode)
        dirty = {} if serial is None else {inode: serial}
        if dirty or not self.journal.is_durable:
            await self._seams.run_blocking(self._sync, dirty)
            self.images.settle(dirty)

    @noting_async
    async def make_durable(self) -> ChangeNumber:
        """The number up to which every change is durable on return, the data too. It is read at the call.

        Images whose removal is durable are then removed. Cancelled, it may have done all or a part.
        DiskFailed, OSError.
        """
        number = self.number
        dirty = dict(self.images.dirty)
        if dirty or not self.journal.is_durable:
            await self._seams.run_blocking(self._sync, dirty)
            self.images.settle(dirty)
        await self.remove_purged()
        return number

    @noting_async
    async def remove_purged(self) -> None:
        """Remove the images of inodes whose end is durable. Cancelled, some may stay a while. OSError."""
        durable = self.journal.durable_number
        self.images.keep_spares(not self.space.lacks_inodes)
        if purged := self._release_purged(durable):
            used = set(await self._seams.run_blocking(self.images.recycle, purged))
            gone = list[tuple[ChangeNumber, InodeNumber]]()
            while self._purged and self._purged[0][0] <= durable:
                gone.append(self._purged.popleft())
            # A comparison that was in the middle of one opened it again: it goes the next time.
            self._purged.extendleft(
                (number, inode)
                for number, inode in reversed(gone)
                if inode in used and self.catalog.inode(inode) is None
            )
        self._look_at_discarded()

    @noting_async
    async def free_discarded(self) -> None:
        """Wait until images are discarded, and free what they held, in a thread. Cancelled, it goes on with
        the rest another time. OSError.

        It hears at once of images that were cut, and of all others when their end is made durable.
        """
        self._look_at_discarded()
        await self._discarded.wait()
        self._discarded = trio.Event()
        while await self._seams.run_blocking(self.images.free_some):
            pass

    def _look_at_discarded(self) -> None:
        if self.images.has_discarded:
            self._discarded.set()

    async def step_points(self, inode: InodeNumber, start: int, end: int) -> Sequence[int]:
        """Where, between two places of a file, work on its disk space stops so that nobody waits long, the
        first place first. OSError.
        """
        return await self._seams.run_blocking(self.images.step_points, inode, start, end)

    def _sync(self, dirty: Collection[InodeNumber]) -> None:
        """Runs in any thread."""
        self.images.sync_all(dirty)
        self.journal.sync()

    def _release_purged(self, durable: ChangeNumber) -> list[InodeNumber]:
        """The images that durable records removed, let go of. They stay in the queue, for `trim`."""
        inodes = [inode for number, inode in self._purged if number <= durable]
        for inode in inodes:
            self.images.leave(inode)
            self.regions.forget(inode)
        return inodes

    @noting
    def commit(self) -> None:
        """On return the catalog is durable. DiskFailed: nothing is lost, and it may be tried again."""
        if self.copying:
            self._keep_usable(self.catalog.commit_unfinished)
            return
        if self.catalog.changes_since_commit == 0:
            return
        # Or a power cut could leave a catalog that holds changes which no journal tells of.
        self.journal.sync()
        try:
            self.catalog.commit(self.number, self.journal.last_number, self._time_ns)
        except DiskFailed:
            self._rebuild_catalog()
            raise
        self._commit_at = self._changes_per_commit()

    def _commit_or_later(self) -> None:
        try:
            self.commit()
        except DiskFailed as error:
            if self.copying:
                raise
            # The change itself is safe in the journal; the timer's commit reports to who can act.
            _log.warning("%s", error)
            self._commit_at = self.catalog.changes_since_commit + self._changes_per_commit()

    def _changes_per_commit(self) -> int:
        """A commit needs room for every page that it changes."""
        return CATALOG_CHANGES_PER_COMMIT_SHORT if self.space.short else CATALOG_CHANGES_PER_COMMIT_MAX

    def _rebuild_catalog(self) -> None:
        """LMDB lost its transaction: put again what the journal holds, and what only memory held."""
        unsaved = self.catalog.rollback()
        for number, payload in self.journal.records(self.catalog.journal_number):
            change = decode_change(payload)
            if change.rows:
                self.catalog.apply_rows(change.rows, number)
        for inode in unsaved:
            self.catalog.adopt(inode)

    @noting
    def trim(self, peer_durable: ChangeNumber) -> None:
        """Let go of records that nobody needs: the peer has them durably, the catalog holds them, and no
        request is remembered that they answered.

        Beyond JOURNAL_BYTES_MAX, and on a full disk at once, the peer is not waited for. OSError.
        """
        held = self.catalog.journal_number
        if self._purged:
            # A record that removed an inode is needed until the image is removed too.
            held = min(held, ChangeNumber(self._purged[0][0] - 1))
        if self.requests_done and self._identity.role == "primary":
            # The record of a request that may be sent again says that it was done, after a restart too.
            oldest = next(iter(self.requests_done.values()))[0]
            peer_durable = min(peer_durable, ChangeNumber(oldest - 1))
        self.journal.trim(min(peer_durable, held))
        kept = JOURNAL_SEGMENT_BYTES if self.space.short else JOURNAL_BYTES_MAX
        self.journal.trim(held, keep_bytes=kept)

    @property
    def checkpoint_begun(self) -> int:
        """The last checkpoint with the peer that this volume knows of; it may not have come to its end."""
        return self.catalog.checkpoints[0]

    @property
    def checkpoint(self) -> int:
        """The last checkpoint with the peer up to which this volume is known to be durable."""
        return self.catalog.checkpoints[1]

    def begin_checkpoint(self, checkpoint: int) -> None:
        """On return it is durably known that a checkpoint began. DiskFailed, OSError."""
        self._set_checkpoints(checkpoint, self.checkpoint)

    def end_checkpoint(self, checkpoint: int) -> None:
        """On return it is durably known that this volume is durable up to a checkpoint. DiskFailed, OSError.

        So a volume that was put back from an older copy can be told from one that is as its peer left it.
        """
        self._set_checkpoints(checkpoint, checkpoint)

    def _set_checkpoints(self, begun: int, ended: int) -> None:
        self.catalog.checkpoints = begun, ended
        self.catalog.changes_since_commit += 1
        self.commit()

    @noting
    def drop_marks(self, epoch: int, keep: Marks | None = None) -> None:
        """Forget the marks of `regions.rotate()` and before: both volumes hold durably what they stood for,
        but for `keep`.

        The catalog is committed first, since marks tell recovery where to look. DiskFailed, OSError.
        """
        self.commit()
        self.regions.drop(epoch, keep)

    # --- what resync brings: content as it is at the peer, no change of its own ---------------------------

    @noting
    def copy_rows(self, rows: Iterable[Row]) -> None:
        """Put rows of the peer's catalog. No journal holds them: a crash may lose them. DiskFailed."""
        rows = list(rows)
        check_rows(rows)
        try:
            self.catalog.apply_rows(rows, self.number)
        except DiskFailed:
            if not self.copying:
                self._rebuild_catalog()
            raise
        if not self.copying:
            self._hold_in_memory(rows)
        self.watcher.rows_changed(rows, own=False)
        if self.catalog.changes_since_commit >= self._commit_at:
            self._commit_or_later()

    def _hold_in_memory(self, rows: Iterable[Row]) -> None:
        """No record would bring these inodes back if a full disk refuses the commit (`_rebuild_catalog`)."""
        for table, key, value in rows:
            inode = self.catalog.inode(key_inode(key)) if table == Table.INODES and value else None
            if inode is not None:
                self.catalog.touch(inode)

    @noting
    def copy_data(self, inode: InodeNumber, offset: int, data: bytes | memoryview) -> None:
        """Put content into an image; size and times of the inode are left as they are. OSError."""
        found = self.catalog.inode(inode)
        mtime_ns, ctime_ns = (0, 0) if found is None else (found.mtime_ns, found.ctime_ns)
        self.regions.mark(inode, offset, offset + len(data))
        self.images.write(inode, offset, data, ctime_ns)
        self.images.set_times(inode, mtime_ns, ctime_ns)

    @noting
    def copy_size(self, inode: InodeNumber, size: int) -> None:
        """Make an image and its inode `size` bytes long; the times are left as they are. OSError."""
        found = self.catalog.inode(inode)
        facts = self.images.facts(inode) or _NO_IMAGE
        mtime_ns, ctime_ns = (0, 0) if found is None else (found.mtime_ns, found.ctime_ns)
        if facts.size != size:
            self._mark_length(inode, facts.size, size)
            self.images.truncate(inode, size, ctime_ns)
            self._look_at_discarded()
            self.images.set_times(inode, mtime_ns, ctime_ns)
        if found is not None and found.size != size:
            found.size = size
            self.catalog.touch(found)
            self.watcher.data_changed(inode, own=False)

    @noting
    def copy_hole(self, inode: InodeNumber, first: int, end: int) -> int:
        """Make a hole of regions of an image, from `first` to before `end`, as far as can be done at once;
        how far. Size and times are left as they are. OSError.
        """
        piece = self.images.piece(inode, first, end)
        if piece.is_hole:
            first = piece.end
        if first >= end:
            return end
        stop = min(end, first + HOLE_PIECE_BYTES // REGION_BYTES)
        facts = self.images.facts(inode) or _NO_IMAGE
        self.regions.mark(inode, first * REGION_BYTES, stop * REGION_BYTES)
        done = self.images.punch(inode, first, stop)
        self.images.set_times(inode, facts.mtime_ns, facts.ctime_ns)
        return done

    # --- a new catalog ---------------------------------------------------------------------------------

    @noting
    def begin_catalog_copy(self) -> None:
        """From now on rows and changes go into a new, empty catalog; a copy under way is thrown away.

        Until `finish_catalog_copy` a crash leaves the old catalog and its journal, known to be
        incomplete. Nothing can be looked up meanwhile but what has been copied. VolumeError, DiskFailed,
        OSError: of this copy comes nothing, and another may begin.
        """
        self.update_identity(complete=False)
        if not self.copying:
            self.commit()
        self.catalog.close()
        self.copying = True
        self._purged.clear()  # whatever is in no catalog goes at the end
        self.images.keep_all()
        self.requests_done.clear()
        self.number = ChangeNumber(0)
        fresh = self.directory / "catalog.new"
        with self._reopening("catalog"):
            _remove_tree(fresh)
            self.catalog = Catalog(fresh, create=True)

    @noting
    def finish_catalog_copy(
        self, number: ChangeNumber, journal_number: ChangeNumber, time_ns: int = 0
    ) -> None:
        """On return the new catalog durably stands in the place of the old, complete up to `number`, and to
        the peer's record `journal_number`. `time_ns`: the time of change `number`; 0 where it is not known.

        Images of no inode are removed; the journal is empty. DiskFailed, OSError: the next opening
        finishes it or goes back, and until then another copy may begin.
        """
        self.number = max(self.number, number)
        self._time_ns = time_ns or self._time_ns
        # From here on it will be finished.
        self._keep_usable(self.catalog.commit, self.number, journal_number, self._time_ns)
        self.catalog.close()
        with self._reopening("catalog.new", "catalog"):
            _settle_catalog_copy(self.directory, self.journal, self.images)
            self.catalog = Catalog(self.directory / "catalog")
        self.copying = False
        if self._was_given_before(self._time_ns):
            self._time_ns = self.catalog.set_back.to_ns  # an earlier version did not tell the time
        self.watcher.catalog_replaced()

    @noting
    def abandon_catalog_copy(self) -> None:
        """Go back to the catalog that was there before a copy under way; every image and row is suspect.

        Images may have got content of the copy meanwhile. VolumeError, DiskFailed, OSError: the copy may
        still be there, and the next opening decides; nothing may be changed before that.
        """
        self.catalog.close()
        with self._reopening("catalog"):
            _remove_tree(self.directory / "catalog.new")
            self.catalog = Catalog(self.directory / "catalog")
        self.copying = False
        self.number = max(self.catalog.number, self.journal.last_number)
        self.update_identity(compare_all=True)
        self._recover_attributes(everything=True)

    @contextlib.contextmanager
    def _reopening(self, *names: str) -> Iterator[None]:
        """For what opens another catalog in the place of one that is closed. After an error the first of
        `names` that is there is opened; where that fails too this host has none, and stops serving."""
        try:
            yield
        except (OSError, FusemirrorError):
            there = [self.directory / name for name in names if (self.directory / name).is_dir()]
            try:
                self.catalog = Catalog(there[0] if there else self.directory / names[-1])
            except FusemirrorError as error:
                self.health.fail(str(error))
                raise
            raise

    def _keep_usable(self, commit: Callable[..., None], *place: Any) -> None:
        """Commit a catalog under copy. A commit that fails ends LMDB's transaction; what it held is gone."""
        try:
            commit(*place)
        except DiskFailed:
            self.catalog.rollback()
            raise

    # --- recovery ------------------------------------------------------------------------------------

    def _recover(self, state: State) -> None:
        """Bring catalog and images to where the last process left them; see the page's docstring."""
        same_boot = state.boot_id == boot_id()
        power_cut = state.lost_power
        if self.journal.last_number < self.catalog.journal_number:
            _log.warning("volume %s: the journal lost records; everything is compared", self.directory)
            self.journal.restart(self.catalog.journal_number)
            self.number = max(self.number, self.journal.last_number)
            self.update_identity(compare_all=True)
        if power_cut or self.regions.marks_lost:
            self.update_identity(compare_all=True)
        replayed, removed, last = self._replay()
        in_doubt = None
        if not state.clean:
            if same_boot:
                marked: Iterable[InodeNumber] = self.regions.inodes()
                self.images.inherit(self.images.numbers() if self.regions.marks_lost else marked)
            in_doubt = self._settle_last_record(last)
            if last is not None and in_doubt is None:
                replayed += self._put_again(*last)
            for inode in removed:
                self.images.discard(inode)
            # On a backup that is not whole images wait for their data, and the rows are right.
            if self._identity.whole or self._identity.role == "primary":
                self._recover_attributes(everything=power_cut or self.regions.marks_lost)
                if power_cut and state.boot_id:  # `check`, which made a catalog anew, adopts them instead
                    self._set_strays_aside()
            self.commit()
        self.recovery = Recovery(state.clean, same_boot, replayed, self.journal.cut_bytes, in_doubt)
        # Last: until here another crash must find what this one left.
        State(clean=False, boot_id=boot_id()).store(self.directory)

    def _replay(self) -> tuple[int, list[InodeNumber], tuple[DataChange, Record] | None]:
        """Put records that the catalog lacks; how many, which inodes any record removed, and the last
        record where it is one of a data change: its rows are for later."""
        replayed = 0
        removed: list[InodeNumber] = []
        last: tuple[DataChange, Record] | None = None
        for record in self.journal.notes(0):
            change = self._decode(record)
            if record.number > self.catalog.journal_number or not self.catalog.time_ns:
                back = _sets_clock_back(change)
                self._time_ns = change.time_ns if back else max(self._time_ns, change.time_ns)
            if change.request:
                self.requests_done[change.request] = (change.number, change.inode)
            if last is not None:
                replayed += self._put_again(*last)
            if isinstance(change, NamespaceChange):
                last = None
                removed.extend(_removed_inodes(change))
                replayed += self._put_again(change, record)
            else:
                last = change, record
        return replayed, removed, last

    def _put_again(self, change: AnyChange, record: Record) -> int:
        """Put a record's rows unless the catalog has them; how many records that are. DiskFailed."""
        if record.number <= self.catalog.journal_number:
            return 0
        if change.rows:
            self.catalog.apply_rows(change.rows)
        return int(isinstance(change, NamespaceChange) or bool(change.rows))

    def _decode(self, record: Record) -> AnyChange:
        try:
            return decode_change(record.payload)
        except msgspec.DecodeError as error:
            tag = tag_of(record.payload)
            if tag > NEWEST_TAG:
                raise VolumeFormat(self.directory, f"{tag} of its changes", NEWEST_TAG) from error
            raise VolumeDamaged(self.directory, f"journal: record {record.number}: {error}") from error

    def _settle_last_record(self, last: tuple[DataChange, Record] | None) -> DataChange | None:
        """The last data change of the journal if it did not take effect; what it began is then undone."""
        if last is None:
            return None
        change, record = last
        facts = self.images.facts(change.inode) or _NO_IMAGE
        content = b""
        if isinstance(change, WriteChange):
            content = self.images.read(change.inode, change.offset, change.length)
        if _took_effect(change, facts, content, note=record.note):
            if facts.ctime_ns < change.time_ns:
                self.images.set_times(change.inode, change.time_ns, change.time_ns)
            return None
        if not isinstance(change, TruncateChange):
            self.images.cut(change.inode, record.note)  # nothing, where the note is no size
            self.images.set_times(change.inode, facts.ctime_ns, facts.ctime_ns)
        self.requests_done.pop(change.request, None)
        self.regions.mark_whole(change.inode)  # its size is not what its row says
        self.journal.retract(change.number)  # or the next opening would take it for done
        self.catalog.changes_since_commit += 1  # nor may the catalog go on telling of the record
        return change

    def set_image_aside(self, inode: InodeNumber) -> None:
        """Move an image that no inode has into VOLUME_DIR/lost-images, unless it is empty. OSError."""
        if not self.images.size(inode):
            self.images.remove(inode)
            return
        lost = self.directory / "lost-images"
        lost.mkdir(mode=0o700, exist_ok=True)
        self.images.release(inode)
        self.images.path(inode).rename(unused(lost / f"{inode:x}"))

    def _set_strays_aside(self) -> None:
        """An image may survive a power cut that its file's making did not: another file will get its number,
        and must not begin with its bytes."""
        for number in list(self.images.numbers()):
            inode = self.catalog.inode(number)
            if inode is None or not inode.is_regular:
                _log.info("volume %s: image %x of no file goes to lost-images", self.directory, number)
                self.set_image_aside(number)

    def _recover_attributes(self, *, everything: bool) -> None:
        """Size and times that only memory held, from the images that were written to."""
        marked = self.regions.inodes()
        numbers = (inode.number for inode in self.inodes()) if everything else iter(marked)
        for number in numbers:
            inode = self.catalog.inode(number)
            if inode is None or not inode.is_regular:
                continue
            facts = self.images.facts(number) or _NO_IMAGE
            is_of_before = self._was_given_before(facts.ctime_ns)
            if not is_of_before:
                self._time_ns = max(self._time_ns, facts.ctime_ns)
            if self._was_given_before(inode.ctime_ns):
                is_newer = not is_of_before and facts.ctime_ns >= self.catalog.set_back.to_ns
            else:
                is_newer = not is_of_before and facts.ctime_ns > inode.ctime_ns
            if is_newer:
                # A data change sets both alike. The image's mtime moves by itself in a write cut short.
                inode.mtime_ns = inode.ctime_ns = facts.ctime_ns
            elif facts.size == inode.size:
                continue
            inode.size = facts.size
            self.catalog.touch(inode)
            if self.catalog.changes_since_commit >= CATALOG_CHANGES_PER_COMMIT_MAX:
                self.commit()

    def _was_given_before(self, time_ns: int) -> bool:
        """Whether a time is of before the clock was set back: else it would be ahead of the clock now."""
        ahead_ns = time_ns - self._seams.now_ns()
        return ahead_ns > _CLOCK_DIFFERENCE_MAX_NS and time_ns <= self.catalog.set_back.from_ns


def _sets_clock_back(change: AnyChange) -> bool:
    return any(table == Table.META and key == SET_BACK_KEY for table, key, _ in change.rows)


def _content_note(content: bytes | memoryview) -> int:
    """What a record notes of a write within the file. One that changes the size notes the size before,
    which is always less.
    """
    return _CONTENT_NOTE | xxhash.xxh3_64_intdigest(content) >> 1


def _took_effect(change: DataChange, facts: ImageFacts, content: bytes, *, note: int) -> bool:
    """Whether the last data change of the journal was done when the process was killed. `content` is what
    the image has where a write belongs.

    | image's ctime is the change's or later | all was done: times are set last                      |
    | a write, and the image has grown to    | all bytes are there, since a file grows behind its     |
    | the end of the write                   | bytes; only the times are missing                      |
    | a write within the file, and the image | done; only the times are missing                       |
    | holds its bytes                        |                                                        |
    | an allocation, or a hole               | not known: doing it again changes nothing, once what   |
    |                                        | it added at the end is cut off                         |
    | a truncation, and the image has got    | done; only the times are missing                       |
    | the new size                           |                                                        |
    | anything else                          | not done: doing it again is right, once a write that   |
    |                                        | grew the file halfway is cut off, or it would append   |
    |                                        | behind its own beginning                               |
    """
    if facts.ctime_ns >= change.time_ns:
        return True
    if isinstance(change, AllocateChange):
        return False
    if isinstance(change, TruncateChange):
        return facts.size == change.size != note
    if note >= _CONTENT_NOTE:
        return _content_note(content) == note
    return facts.size > note and facts.size >= change.offset + change.length


def _removed_inodes(change: NamespaceChange) -> list[InodeNumber]:
    return [key_inode(key) for table, key, value in change.rows if table == Table.INODES and value is None]


def _settle_catalog_copy(directory: Path, journal: Journal, images: Images) -> None:
    """Finish a catalog copy whose new catalog is complete, throw away one that is not; each step may
    be done again after a crash."""
    fresh, old = directory / "catalog.new", directory / "catalog"
    if not fresh.is_dir():
        return
    number = _settle_images(fresh, images) if (fresh / "data.mdb").exists() else None
    if number is None:
        shutil.rmtree(fresh)
        return
    journal.restart(number)
    _remove_tree(old)
    fresh.rename(old)
    sync_directory(directory)


def _remove_tree(directory: Path) -> None:
    """On return there is no such directory. OSError: some of it may be there still."""
    if directory.is_dir():
        shutil.rmtree(directory)


def _settle_images(fresh: Path, images: Images) -> ChangeNumber | None:
    """Where the copied catalog stands, with images of no inode in it removed; None if it is unfinished."""
    try:
        catalog = Catalog(fresh)
    except VolumeDamaged:
        return None  # killed before its first commit
    try:
        if not catalog.finished:
            return None
        for number in images.numbers():
            inode = catalog.inode(number)
            # An empty file needs no image, and what an old one holds would be compared with nothing.
            if inode is None or not inode.is_regular or inode.size == 0:
                images.discard(number)
        return catalog.journal_number
    finally:
        catalog.close()
