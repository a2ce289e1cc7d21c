"""Volume: one host's replica as a whole, and the one place where changes take effect.

The order of steps makes each change whole when the process is killed between any two of them:

- A namespace change is in the journal first, and then in the catalog's open transaction. What the
  transaction loses, opening puts again from the journal.
- A data change marks its regions first, then changes the image, then the image's time stamps. What
  the catalog had not committed of size and times, opening takes from the marked images. So the
  catalog is committed before marks are dropped.
- A data change that answers a request of the peer, or carries rows, is in the journal before all that.
  Opening tells from the image whether the last such record took effect. Rows come last.

And for a power cut: the journal is durable before the catalog that holds its records; an image is
removed only when the record that says so is durable; an image that no inode has is put aside, and times
that a record is judged by are durable with the data; everything else is compared with the peer.

What opening does about it stands in `recovery.py`, as a table.
"""

import contextlib
import errno
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from fusemirror.change import (
    AnyChange,
    DataChange,
    NamespaceChange,
    Row,
    Table,
    TruncateChange,
    encode_change,
)
from fusemirror.errors import DiskFailed, OperationFailed, SequenceGap, VolumeDamaged, VolumeError
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.limits import FILE_BYTES_MAX
from fusemirror.seams import Seams
from fusemirror.volume import catalog_copy
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.clock import Clock
from fusemirror.volume.commits import Commits
from fusemirror.volume.durable import sync_directory
from fusemirror.volume.effects import Effects
from fusemirror.volume.entries import key_inode
from fusemirror.volume.files import Files
from fusemirror.volume.health import Health, noting, noting_async
from fusemirror.volume.identity import Identity, KnownPeer, Shutdown, boot_id
from fusemirror.volume.images import Images
from fusemirror.volume.invalidation import CacheInvalidator, Nobody
from fusemirror.volume.journal import Journal, check_is_there
from fusemirror.volume.parts import Home, Parts, Recovery
from fusemirror.volume.private import check_plain_volume, make_private
from fusemirror.volume.recovery import Recovered, recover, recover_attributes
from fusemirror.volume.regions import Marks, Regions
from fusemirror.volume.removal import Removal
from fusemirror.volume.requests_done import done_by
from fusemirror.volume.rows import check_rows
from fusemirror.volume.space import Space
from fusemirror.volume.syncing import Syncing

_REAL = Seams()
T = TypeVar("T")


class Volume:
    """An open volume. Methods belong to the event loop's thread; only what is awaited leaves it."""

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
        Shutdown(clean=True, boot_id=boot_id()).store(directory)
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
            home = Home(directory)
            undoing.callback(home.release)
            state = Shutdown.load(directory)
            check_is_there(directory)
            for name in ("images", "regions"):
                if not (directory / name).is_dir():
                    raise VolumeDamaged(directory, f"{name} is missing")
            images = Images(directory / "images", seams)
            undoing.callback(images.close)
            journal = Journal(directory / "journal", seams, lost_power=state.lost_power)
            undoing.callback(journal.close)
            catalog_copy.finish_or_discard(directory, journal, images)
            regions = Regions(directory / "regions", lost_power=state.lost_power)
            undoing.callback(regions.close)
            catalog = Catalog(directory / "catalog")
            undoing.callback(catalog.close)
            health, space, clock = Health(), Space(directory, seams.statvfs), Clock(seams, catalog)
            commits = Commits(catalog, journal, clock, space)
            removal = Removal(catalog, images, journal, regions, space, health, seams)
            parts = Parts(
                home,
                seams,
                health,
                images,
                journal,
                regions,
                catalog,
                space,
                clock,
                commits,
                removal,
                Effects(catalog, images, journal, regions, removal, commits, health),
                contextlib.ExitStack(),
            )
            volume = Volume(parts, recover(parts, state))
            parts.undoing.enter_context(undoing.pop_all())
            return volume

    def __init__(self, parts: Parts, recovered: Recovered) -> None:
        """Use `open`."""
        self._parts = parts
        self.journal = parts.journal
        self.images = parts.images
        self.regions = parts.regions
        self.catalog = parts.catalog
        self.health = parts.health
        self.space = parts.space
        self.clock = parts.clock
        self.syncing = Syncing(parts)
        self.files = Files(
            parts.catalog, parts.images, parts.regions, parts.removal, parts.health, parts.seams
        )
        self.invalidator: CacheInvalidator = Nobody()
        self.requests_done = recovered.requests_done
        """The peer's requests that took effect: the change, and the inode its requester asks for."""
        self.number = recovered.number
        """The last change applied."""
        self._passed = recovered.number

    def close(self) -> None:
        """Make everything durable and record that the volume was closed in good order.

        On return, and after an error too, nothing stays open. DiskFailed, OSError: then the next
        opening recovers. So it does where the disk has failed before: a change that met that may be half
        done, and a sync may be told of success although what it was for is lost.
        """
        try:
            self.syncing.sync(dict(self.images.unsynced.dirty))
            # The next process does not know which were made and not written to: it would sync data alone.
            self.images.unsynced.sync_names()
            self.files.removal.remove_blocking()
            self.commit()
            self.regions.sync()
            self.requests_done.store_untold(self.directory, self.journal.first_number)
            # The next opening looks at nothing where this says clean.
            assert self.catalog.copying or self.journal.is_durable, "what was written is durable"
            clean = not self.catalog.copying and self.health.failure is None
            Shutdown(clean=clean, boot_id=boot_id()).store(self.directory)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Release everything as the end of the process would; nothing is written."""
        self._parts.undoing.close()

    # --- what it is ----------------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        return self._parts.home.directory

    @property
    def identity(self) -> Identity:
        return self._parts.home.identity

    @property
    def recovery(self) -> Recovery:
        return self._parts.home.recovery

    @noting
    def update_identity(self, **changes: Any) -> None:
        """On return the identity is durably changed. OSError."""
        self._parts.home.update_identity(changes)

    def update_peer(self, known: KnownPeer, **changes: Any) -> None:
        """The same of what it says of one peer. OSError."""
        self.update_identity(peers=self.identity.peers_with(known, **changes))

    @property
    def file_bytes_max(self) -> int:
        """How long a file may be: what all hosts' disks take, as far as this host knows."""
        size_bytes = self.images.disk.file_bytes_max
        for peer in self._parts.home.identity.peers:
            size_bytes = min(size_bytes, peer.file_bytes_max or FILE_BYTES_MAX)
        return size_bytes

    def advance(self, number: ChangeNumber) -> None:
        """Leave out numbers: the next change is above `number`. For a primary whose last numbers died
        with its process, while the peer holds data changes that had them."""
        self.number = max(self.number, number)

    def rewind(self) -> None:
        """Go back to the last record. Numbers of data changes die with the process that gave them, so what
        comes next may have numbers that data changes had before; no record has a number twice."""
        self._passed = self.reached
        self.number = self.journal.last_number

    @property
    def reached(self) -> ChangeNumber:
        """The highest number of a change that was applied since the volume was opened, `rewind` or not: what
        the images hold is no newer."""
        return max(self._passed, self.number)

    async def run_blocking(self, function: Callable[..., T], *args: Any) -> T:
        """What `function` returns; it blocks on the disk, and nobody else waits for it. On return it has
        ended, even when cancelled."""
        return await self._parts.seams.run_blocking(function, *args)

    # --- changes -------------------------------------------------------------------------------------

    def apply(
        self,
        change: AnyChange,
        data: bytes | memoryview = b"",
        *,
        encoded: bytes | memoryview | None = None,
        journal_request: bool = False,
        are_checked: bool = False,
        own: bool = False,
    ) -> None:
        """On return the change has taken effect, and the end of the process cannot undo it.

        `encoded` is the change as bytes, where the caller has them; `journal_request` puts a
        data change into the journal, for the request that it answers; one with rows always is there.
        `are_checked`: the rows of a change of the namespace went through `check_rows` before, as those of a
        message have. `own`: a program of this host asked for it.

        SequenceGap unless its number is above all before; OperationFailed (ESTALE) for data of an inode
        that is not there. OSError of a full or failing disk: the change did not take effect, though bytes of
        marked regions may differ.
        """
        if change.number <= self.number:
            raise SequenceGap(self.number, change.number)
        journals = journal_request or bool(change.rows)
        try:
            self.catalog.check_usable()  # or its record would be in the journal, and its rows nowhere
            if isinstance(change, NamespaceChange):
                if not are_checked:
                    check_rows(change.rows)
                self._parts.effects.make_names(change, encode_change(change) if encoded is None else encoded)
            else:
                if encoded is None and journals:
                    encoded = encode_change(change)
                record = encoded if journals and not self.catalog.copying else None
                self._parts.effects.make_data(change, data, record)
            self.number = change.number
            if self.clock.follow(change):  # recovery is to find rows of before there
                self._commit_or_later()
            if change.rows:
                self.invalidator.rows_changed(change.rows, own=own)
            if type(change) is not NamespaceChange:
                self.invalidator.data_changed(change.inode, own=own)
            if change.request:
                self.requests_done[change.request] = done_by(change)
            if self.catalog.changes_since_commit >= self._parts.commits.due_at:
                self._commit_or_later()
        except (OSError, DiskFailed) as error:
            self.health.note(error)
            raise

    def _commit_or_later(self) -> None:
        """As `Commits` does. The change has taken effect: a disk that fails ends the service of this host and
        not the change. DiskFailed while copying."""
        try:
            self._parts.commits.commit_or_later(self.number)
        except DiskFailed as error:
            if self.catalog.copying:
                raise
            self.health.note(error)

    def pass_over(self, change: DataChange) -> None:
        """Go on behind a change of data, without rows, that `apply` had an error of the disk for.

        The catalog says of the file what the peer's does; its image differs, and is marked. OSError.
        """
        assert change.number > self.number, "the change did not take effect"
        assert not change.rows, "they would need a record, and its data"
        inode = self.catalog.inode(change.inode)
        old_size = 0 if inode is None else inode.size
        if isinstance(change, TruncateChange):
            self.regions.mark_length(change.inode, old_size, change.size)
        else:
            self.regions.mark(*change.data_range())  # it may be what failed
        if inode is not None:
            inode.size = change.size_after(old_size)
            inode.mtime_ns = inode.ctime_ns = change.time_ns
            inode.changed = change.number
            self.catalog.touch(inode)
        self.number = change.number
        self.clock.follow(change)
        self.invalidator.image_suspect(change.inode)

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
        assert len(data) <= length, "an image gives no more than it is asked for"
        return data if len(data) == length else data + bytes(length - len(data))

    # --- durability ----------------------------------------------------------------------------------

    @noting_async
    async def make_durable(self) -> ChangeNumber:
        """The number up to which every change is durable on return, the data too. It is read at the call.

        Images whose removal is durable are then removed. Cancelled, it may have done all or a part.
        DiskFailed, OSError.
        """
        number = self.number
        await self.syncing.flush_all()
        return number

    @noting
    def commit(self) -> None:
        """On return the catalog is durable. DiskFailed: nothing is lost, and it may be tried again."""
        self._parts.commits.commit(self.number)

    def begin_checkpoint(self, checkpoint: int) -> None:
        """On return it is durably known that a checkpoint began. DiskFailed, OSError."""
        self.catalog.note_checkpoints(checkpoint, self.catalog.checkpoints.ended)
        self.commit()

    def end_checkpoint(self, checkpoint: int) -> None:
        """On return it is durably known that this volume is durable up to a checkpoint. DiskFailed, OSError.

        So a volume that was put back from an older copy can be told from one that is as its peer left it.
        """
        self.catalog.note_checkpoints(checkpoint, checkpoint)
        self.commit()

    @noting
    def drop_marks(self, epoch: int, keep: Marks | None = None) -> None:
        """Forget the marks of `regions.rotate()` and before: both volumes hold durably what they stood for,
        but for `keep`.

        The catalog is committed first, since marks tell recovery where to look. DiskFailed, OSError.
        """
        self.commit()
        self.regions.drop(epoch, keep)

    # --- what a resync brings: rows and content as they are at the peer ----------------------------------

    @noting
    def copy_rows(self, rows: Iterable[Row]) -> None:
        """Put rows of the peer's catalog. No journal holds them: a crash may lose them. DiskFailed."""
        rows = list(rows)
        check_rows(rows)
        try:
            self.catalog.apply_rows(rows, self.number)
        except DiskFailed:
            if not self.catalog.copying:
                self._parts.commits.rebuild()
            raise
        if not self.catalog.copying:
            # No record would bring these inodes back if a full disk refuses the commit (`Commits.rebuild`).
            for table, key, value in rows:
                inode = self.catalog.inode(key_inode(key)) if table == Table.INODES and value else None
                if inode is not None:
                    self.catalog.touch(inode)
        self.invalidator.rows_changed(rows, own=False)
        if self.catalog.changes_since_commit >= self._parts.commits.due_at:
            self._commit_or_later()

    def copy_size(self, inode: InodeNumber, size: int) -> None:
        """`Files.put_size`, and the kernel hears of it. OSError."""
        if self.files.put_size(inode, size):
            self.invalidator.data_changed(inode, own=False)

    def begin_catalog_copy(self) -> None:
        """From now on rows and changes go into a new, empty catalog; a copy under way is thrown away.

        Until `finish_catalog_copy` a crash leaves the old catalog and its journal, known to be
        incomplete. Nothing can be looked up meanwhile but what has been copied. VolumeError, DiskFailed,
        OSError: of this copy comes nothing, and another may begin.
        """
        self.update_identity(complete=False)
        if not self.catalog.copying:
            self.commit()
        self._passed, self.number = self.reached, ChangeNumber(0)
        self.requests_done.clear()
        catalog_copy.begin(self._parts)

    def finish_catalog_copy(
        self, number: ChangeNumber, journal_number: ChangeNumber, time_ns: int = 0
    ) -> None:
        """On return the new catalog durably stands in the place of the old, complete up to `number`, and to
        the peer's record `journal_number`. `time_ns`: the time of change `number`; 0 where it is not known.

        Images of no inode are removed; the journal is empty. DiskFailed, OSError: the next opening
        finishes it or goes back, and until then another copy may begin.
        """
        self.number = max(self.number, number)
        catalog_copy.finish(self._parts, self.number, journal_number, time_ns)
        self.invalidator.catalog_replaced()

    def abandon_catalog_copy(self) -> None:
        """Go back to the catalog that was there before a copy under way; every image and row is suspect.

        Images may have got content of the copy meanwhile. VolumeError, DiskFailed, OSError: the copy may
        still be there, and the next opening decides; nothing may be changed before that.
        """
        catalog_copy.abandon(self._parts)
        self._passed, self.number = self.reached, max(self.catalog.number, self.journal.last_number)
        self.update_identity(compare_all=True)
        recover_attributes(self._parts, self.number, everything=True)
