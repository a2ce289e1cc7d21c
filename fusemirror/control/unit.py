"""The control unit: the one interface by which anything above drives the mirrored filesystem.

The same for a kernel, a test and a simulation: operations in, inodes and bytes out, errors raised as
`OperationFailed` (the ordinary errno of a filesystem) or `CheckReport` (the mirror state forbids it).
Reads show nothing that the other host could not see too (G2).
"""

import errno
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import pairwise
from typing import Any

import trio

from fusemirror.background import Background
from fusemirror.channel.link import Link
from fusemirror.channel.renewal import Renewal
from fusemirror.channel.session import Session
from fusemirror.coherence.directory_leases import DirectoryLeases
from fusemirror.coherence.locks import Locks
from fusemirror.communication.volume import Staged
from fusemirror.control.exclusive import ExclusiveAccess
from fusemirror.control.failed_writes import FailedWrites
from fusemirror.control.open_inodes import OpenInodes
from fusemirror.control.overlay import data_with, hole_with
from fusemirror.control.traffic import Traffic
from fusemirror.divergence.exchange import DivergenceExchange
from fusemirror.errors import (
    ChannelError,
    ConnectionLost,
    DiskStopped,
    HostReplaced,
    OperationFailed,
    ReservationConflict,
    RoleChanged,
)
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.limits import (
    CLOCK_DIFFERENCE_MAX_S,
    COMMIT_INTERVAL_S,
    FILE_BYTES_MAX,
    NAMELESS_SUMMED_MAX,
    SPACE_LOOK_INTERVAL_S,
)
from fusemirror.mirror.histories import Relation, Step, history_of, relation
from fusemirror.operations import AnyOperation, Key, Operation, Release, Reserve
from fusemirror.operations.reserve import conflicts
from fusemirror.printable import path_shown
from fusemirror.promise import Promise
from fusemirror.protocol.messages import Bye, DiskSpace, Hello, History
from fusemirror.settings import Access, Settings, is_host_name
from fusemirror.volume.catalog import Entry
from fusemirror.volume.inode import Inode
from fusemirror.volume.volume import Volume
from fusemirror.xattrs import has_namespace, namespace_of

log = logging.getLogger(__name__)

NO_CHANGE = ChangeNumber(0)

VERIFY_UNDER_WAY = "a comparison is under way that was asked for otherwise; wait for its end"


@dataclass(frozen=True)
class RoleChange:
    """What a unit of one role asks for: that this host takes the other role.

    A backup becomes the primary: `alone`, without the other host, or handed the role under `term`. A
    primary becomes the backup: by `hand_over` while the link lives, or because the peer is the primary
    already. `known` is the last change of this host that the peer holds, `quarantines` says that
    what differs here is to go to quarantine. `done` is settled at the end.
    """

    role: str
    reason: str
    term: int = 0
    alone: bool = False
    hand_over: bool = False
    quarantines: bool = False
    known: ChangeNumber = NO_CHANGE
    done: Promise[None] = field(default_factory=Promise)


class ControlUnit(ABC):
    """What both roles have: their volume, and who has which inode open here."""

    exclusive: ExclusiveAccess
    """The exclusive statuses of this host's volume."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.retired = False
        """This host has the other role now: whoever asks here gets `RoleChanged`."""
        self.met: Hello | None = None  # the peer as it was met last, where that changed what this host is
        self.role_change: Promise[RoleChange] = Promise()
        self.request_serial = 1  # of the next request of this process to the primary
        self.reads_local = 0
        self.reads_routed = 0
        self.link: Link | None = None
        self.link_ended = trio.Event()
        self.link_lost_at: float | None = None
        self.traffic = Traffic()
        self.host_identity = bytes.fromhex(volume.identity.host)
        self.peer_identity = bytes.fromhex(volume.identity.peer)
        self.failed_writes = FailedWrites()
        self.exchange = DivergenceExchange(volume)
        self.background = Background()
        self.renewal = Renewal()
        self._resumed = trio.Event()
        self.leases = DirectoryLeases()
        self.locks = Locks(volume)
        self.open_inodes = OpenInodes()
        self._clock_is_behind = self._clocks_differ = False
        self.clock_ahead_s: float | None = None
        """How far the peer's clock was ahead of this host's when the two met last."""
        self._told_full = self._told_peer_full = False  # in the log

    @property
    @abstractmethod
    def peer_disk(self) -> DiskSpace | None:
        """What the peer said last of its disk, over any link of this mount."""

    @property
    def peer_durable(self) -> ChangeNumber:
        """The peer has every change up to this number durably, as far as this host knows."""
        return ChangeNumber(0)

    # --- roles ------------------------------------------------------------------------------------------

    def inherit(self, before: "ControlUnit") -> None:
        """Go on with what a unit of the other role had: its open inodes and its counts."""
        self.open_inodes = before.open_inodes
        self.traffic = before.traffic
        self.link_lost_at = before.link_lost_at
        self.failed_writes = before.failed_writes
        self.leases = before.leases
        self.locks = before.locks
        self.leases.forget_link()
        self.met = before.met
        self._clock_is_behind, self._clocks_differ = before._clock_is_behind, before._clocks_differ
        self.clock_ahead_s = before.clock_ahead_s
        self._told_full, self._told_peer_full = before._told_full, before._told_peer_full
        self.exchange = before.exchange
        self.background = before.background
        self.renewal = before.renewal
        self.request_serial = before.request_serial
        self.reads_local, self.reads_routed = before.reads_local, before.reads_routed

    async def serve_link(self, link: Link) -> None:
        """`run_link`; an error that it does not know what to do about ends the link, and nothing else."""
        if link.closed:  # it may have ended while it waited to be taken
            return
        if not await self.background.attempt("link", partial(self.run_link, link)):
            link.close("it cannot be served; the log says why")
            self.end_link(link)

    @abstractmethod
    async def run_link(self, link: Link) -> None:
        """Serve a link until it is lost."""

    async def run_unmirrored(self, link: Link, step: Step) -> None:
        """Do what the histories ask for, which is not to mirror. Where only a person can help the link
        stays, and carries nothing, until it is lost; else it ends, and the peer is met anew."""
        self.meet_peer(link.peer, step)
        if step is not Step.DIVERGED:
            link.close(f"the roles are to change: {step.name.lower()}")
            return

        async def listen(session: Session) -> None:
            await session.discard()
            link.close("the other path was lost")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, link.forward)
            await self.exchange.run_over(link.mirror)
            link.close("the other path was lost")

    def end_link(self, link: Link) -> None:
        """The link is over. Nothing where this is known."""
        if self.link is link:
            self.link = None
            self.traffic.end(link)
            self.leases.forget_link()
            self.link_lost_at = trio.current_time()
            self.link_ended.set()

    @property
    def is_linked(self) -> bool:
        """Whether the other host can be reached, as far as this host knows yet."""
        return self.link is not None

    def last_contact_seconds(self) -> float | None:
        """How long ago the last link was lost; 0 while there is one, None if there was none yet."""
        if self.link is not None:
            return 0.0
        return None if self.link_lost_at is None else round(trio.current_time() - self.link_lost_at, 3)

    def learn_name(self, peer: Hello) -> None:
        """`create` knew the other host by its address only: from now on it has the name it has itself, and
        what it says of its disk counts. OSError.
        """
        if 0 <= peer.file_bytes_max <= FILE_BYTES_MAX:
            self.volume.update_identity(peer_file_bytes_max=peer.file_bytes_max)
        if is_host_name(peer.host_name):
            self.volume.update_identity(peer_name=peer.host_name)
        elif peer.host_name:
            log.warning("the name that the other host gives itself is not taken: %s", peer.host_name[:100])

    def meet_peer(self, peer: Hello, step: Step) -> None:
        """The peer was met, and `step` says what this host does about its role."""
        self.met = peer
        self.learn_name(peer)
        identity = self.volume.identity
        term = max(identity.term, peer.term) + 1
        if step in (Step.GIVE_WAY, Step.YIELD):
            known = _known_to(history_of(self.volume), peer.history)
            reason = "the other host holds the newer copy"
            self.role_change.resolve(
                RoleChange("backup", reason, term, quarantines=step is Step.YIELD, known=known)
            )
        elif step is Step.ACCEPT:
            self.role_change.resolve(RoleChange("primary", "the other host handed over the role", peer.term))
        elif step is Step.DIVERGED:
            self.differ(peer)

    def differ(self, peer: Hello) -> None:
        """The peer was met, and no copy is to be made equal to the other."""
        self.exchange.begin(peer.history)
        related = relation(history_of(self.volume), peer.history) is not Relation.UNRELATED
        whole = self.volume.identity.complete and peer.history.complete
        if not whole:
            self._show_diverged("neither host has a whole copy")
        elif related:
            self._show_diverged("split brain: both volumes were changed apart")
        else:
            self._show_diverged("the volumes have nothing in common")

    @abstractmethod
    def _show_diverged(self, reason: str) -> None:
        """The mirror state says so from now on."""

    def retire(self, known: ChangeNumber) -> None:
        """This host has the other role now. The link is closed; whoever waits here gets `RoleChanged`,
        but for changes up to `known`, which are in both volumes."""
        self.retired = True
        self.exclusive.ranges.end(RoleChanged())
        if self.link is not None:
            self.link.close("the roles changed")
            self.end_link(self.link)

    def suspend(self) -> None:
        """Until `resume`, or for ever, nothing is changed here: whoever asks gets `RoleChanged`."""
        self.retired = True
        self._resumed = trio.Event()

    def resume(self) -> None:
        """The roles stay as they are: go on."""
        self.retired = False
        self._resumed.set()

    async def not_suspended(self) -> None:
        """Return when changes may be made again; without a checkpoint if they may."""
        while self.retired:
            await self._resumed.wait()

    def check_not_retired(self) -> None:
        if self.retired:
            raise RoleChanged

    # --- handles ----------------------------------------------------------------------------------------

    def opened(self, inode: InodeNumber) -> None:
        """An inode without names stays from now on while it is open on either host.

        OperationFailed (ESTALE) where this host has said that nobody here opens it any more.
        """
        if self.open_inodes.is_given_up(inode) and self.volume.catalog.is_orphan(inode):
            raise OperationFailed(errno.ESTALE)
        self.open_inodes.add(inode)

    def closed(self, inode: InodeNumber) -> None:
        self.open_inodes.remove(inode)

    def is_open(self, inode: InodeNumber) -> bool:
        return inode in self.open_inodes

    def give_up(self, inodes: tuple[InodeNumber, ...]) -> tuple[InodeNumber, ...]:
        """Those of these inodes without names that are held here; the others nobody here opens any more."""
        let_go = frozenset(self.let_go(inodes))
        return self.open_inodes.give_up(inodes, let_go, self.volume.catalog.is_orphan)

    def let_go(self, inodes: Iterable[InodeNumber]) -> list[InodeNumber]:
        """Those of these inodes without names that no program here has open, and the kernel has let go of.

        Of directories it is not asked: names that it knows to be missing there keep them in its cache.
        """
        closed = [inode for inode in inodes if not self.is_open(inode)]
        asked = [inode for inode in closed if not self._is_directory(inode)]
        held = set(asked).difference(self.volume.watcher.has_let_go(asked))
        return [inode for inode in closed if inode not in held]

    def _is_directory(self, number: InodeNumber) -> bool:
        inode = self.volume.catalog.inode(number)
        return inode is not None and inode.is_directory

    def nameless_status(self) -> dict[str, int]:
        """Inodes without names that are not purged, for `status`. Sizes are those of the first of them."""
        orphans = self.volume.catalog.orphans()
        known = map(self.volume.catalog.inode, orphans[:NAMELESS_SUMMED_MAX])
        return {"inodes": len(orphans), "bytes": sum(inode.size for inode in known if inode)}

    def check_disk(self) -> None:
        """Raises DiskStopped once the disk of this host has failed, HostReplaced once another host is in its
        place: nothing is served any more."""
        health = self.volume.health
        if health.failure is not None:
            raise (
                HostReplaced(self.volume.identity.peer_name)
                if health.replaced
                else DiskStopped(health.failure)
            )

    def disk_status(self) -> dict[str, Any]:
        """How the disk of this host's volume is, for `status`."""
        health, theirs = self.volume.health, self.peer_disk
        return {
            "full": self.volume.space.short,
            "failure": None if health.replaced else health.failure,
            "peer_full": None if theirs is None else theirs.full,
            "peer_available_bytes": None if theirs is None else theirs.available_bytes,
        }

    def disk_space(self) -> DiskSpace:
        """What this host says of its disk. OSError."""
        found = self.volume.statvfs()
        return DiskSpace(
            size_bytes=found.f_blocks * found.f_frsize,
            free_bytes=found.f_bfree * found.f_frsize,
            available_bytes=found.f_bavail * found.f_frsize,
            inodes=found.f_files,
            inodes_available=found.f_favail,
            full=self.volume.space.short,
        )

    def statvfs(self) -> os.statvfs_result:
        """What there is room for on both hosts: bytes by the disk that has fewer available, inodes likewise.
        While the peer is away, by what it said last. OSError."""
        own, theirs = self.volume.statvfs(), self.peer_disk
        if theirs is None:
            return own
        unit = own.f_frsize
        blocks, inodes = tuple(own[2:5]), tuple(own[5:8])
        if theirs.available_bytes < own.f_bavail * unit:
            sizes = (theirs.size_bytes, theirs.free_bytes, theirs.available_bytes)
            blocks = tuple(size // unit for size in sizes)
        if theirs.inodes and (not own.f_files or theirs.inodes_available < own.f_favail):
            inodes = (theirs.inodes, theirs.inodes_available, theirs.inodes_available)
        return os.statvfs_result((*own[:2], *blocks, *inodes, *own[8:]))

    async def tell_disk(self, link: Link) -> None:
        """Tell the peer what the disk of this host has room for, whenever that has changed, until the link is
        lost."""
        if not link.peer.takes_disk_space:
            return
        told = None
        with suppress(ConnectionLost):
            while True:
                try:
                    space = self.disk_space()
                except OSError as error:
                    self.volume.health.note(error)
                    return
                if space != told:
                    link.mirror.send(space)
                    told = space
                await trio.sleep(SPACE_LOOK_INTERVAL_S)

    def look_at_disks(self) -> None:
        """Say in the log, once each time, which host's disk is full."""
        identity, theirs = self.volume.identity, self.peer_disk
        own_full, peer_full = self.volume.space.short, theirs is not None and theirs.full
        for name, is_full, told in (
            (identity.host_name, own_full, self._told_full),
            (identity.peer_name, peer_full, self._told_peer_full),
        ):
            if is_full and not told:
                log.warning(
                    "the disk of %s is full: what needs room gets ENOSPC on both hosts; delete something, or "
                    "make that disk larger",
                    name,
                )
            elif told and not is_full:
                log.info("the disk of %s has room again", name)
        self._told_full, self._told_peer_full = own_full, peer_full

    async def wait_commit_due(self) -> None:
        """Return when the names are to be made durable. On a full disk sooner: it frees what was deleted."""
        await trio.sleep(SPACE_LOOK_INTERVAL_S if self.volume.space.short else COMMIT_INTERVAL_S)

    def look_at_clock(self) -> None:
        """Warn, once each time, where this host's clock is too far behind the newest change."""
        behind_s = self.volume.clock_behind_s()
        is_behind = behind_s > CLOCK_DIFFERENCE_MAX_S
        if is_behind and not self._clock_is_behind:
            log.warning(
                "this host's clock is %s behind the newest change: one of the hosts had a wrong time; new "
                "changes get the time of the primary's clock, see that both hosts have the right one",
                in_words(behind_s),
            )
        self._clock_is_behind = is_behind

    def compare_clocks(self, peer: Hello) -> None:
        """Warn, once each time, where the clocks of the two hosts differ by too much."""
        if not peer.clock_ns:
            return  # of an earlier version
        ahead_s = (peer.clock_ns - self.volume.now_ns()) / 1e9
        self.clock_ahead_s = round(ahead_s, 3)
        differ = abs(ahead_s) > CLOCK_DIFFERENCE_MAX_S
        if differ and not self._clocks_differ:
            log.warning(
                "the clock of %s is %s %s this host's: set both by the same time service",
                self.volume.identity.peer_name,
                in_words(abs(ahead_s)),
                "ahead of" if ahead_s > 0 else "behind",
            )
        self._clocks_differ = differ

    async def make_names_durable(self) -> None:
        """What the timer does: the namespace so far is durable, as after a local disk's own commit.

        DiskFailed, OSError: nothing is lost, and it may be tried again.
        """
        if self.volume.health.failure is not None:
            return
        self.volume.space.measure()
        self.look_at_disks()
        await self.volume.flush(InodeNumber(0))
        await self.volume.remove_purged()
        self.volume.commit()
        self.volume.trim(self.peer_durable)

    # --- reading ----------------------------------------------------------------------------------------

    @abstractmethod
    async def showable(self, key: Key) -> None:
        """Return when what the catalog says of `key` may be shown: the other host sees it too (G2)."""

    @abstractmethod
    def shows_at_once(self, inode: InodeNumber) -> bool:
        """Whether `attributes` and `read` of the inode, called now, wait for nothing, and need no task."""

    @abstractmethod
    def cacheable_s(self, key: Key) -> float:
        """Seconds for which this host's kernel may keep what the catalog says of `key` now; 0 for not at
        all. What changes meanwhile of inodes the volume's watcher hears (`volume/watcher.py`).
        """

    def name_lifetime_s(self, parent: InodeNumber, name: bytes, keeping: int | None) -> float:
        """Seconds for which this host's kernel may keep that there is, or is not, the name; often 0.

        `keeping` is what `names.keeping` said of the parent before the catalog was asked.
        """
        if keeping is None or keeping != self.leases.keeping(parent):
            return 0.0
        return self.leases.lifetime_s(parent, self.cacheable_s((parent, name)))

    @abstractmethod
    def want_lease(self, directory: InodeNumber) -> None:
        """Try to keep the names of a directory (`names.py`)."""

    @abstractmethod
    async def free_directory(self, directory: InodeNumber, *, of_change: bool) -> None:
        """Return when the other host is not in the way of a program that looks into a directory, or
        changes a name in it; a check report after `io_timeout`.
        """

    async def make_way(self, operation: Operation) -> bool:
        """On return no kernel keeps names that `operation` changes, but for this one's what it holds.

        Whether that took a wait. A check report as for `free_directory`.
        """
        leases, waited = self.leases, False
        leases.change(operation)
        while leases.theirs or leases.shared:
            changed = [parent for parent, _ in operation.touched_names()]
            kept = [each for each in changed if leases.is_in_the_way(each, of_change=True)]
            emptied = operation.must_be_empty(self.volume.catalog)
            if kept:
                await self.free_directory(kept[0], of_change=True)
            elif emptied in leases.theirs:
                await self.free_directory(emptied, of_change=False)
            else:
                break
            waited = True
        return waited

    async def _names_showable(self, directory: InodeNumber, key: Key) -> None:
        if self.leases.look(directory):
            self.want_lease(directory)
        await self.showable(key)
        while directory in self.leases.theirs:
            await self.free_directory(directory, of_change=False)
            await self.showable(key)

    async def attributes(self, inode: InodeNumber) -> Inode:
        """The inode; ESTALE where it has gone. The object is the catalog's own: read it at once."""
        await self.showable(inode)
        return self.shown(found(self.volume.catalog.inode(inode), errno.ESTALE))

    def shown(self, inode: Inode) -> Inode:
        """The inode as this host shows it: its own acknowledged writes are in it, applied or not."""
        return inode

    async def lookup(self, parent: InodeNumber, name: bytes) -> Inode:
        """The inode of a name; ENOENT where there is none. VolumeDamaged where it stands for nothing."""
        await self._names_showable(parent, (parent, name))
        while (entry := self.volume.catalog.entry(parent, name)) is not None:
            try:
                return await self.attributes(entry.inode)
            except OperationFailed:
                # While this waited the name got another inode, and the one before was purged.
                await self._names_showable(parent, (parent, name))
                if self.volume.catalog.entry(parent, name) == entry:
                    self.volume.inode_of(parent, name, entry)
                    raise
        found(self.volume.catalog.inode(parent), errno.ESTALE)
        raise OperationFailed(errno.ENOENT)

    async def listing(
        self, directory: InodeNumber, after_cookie: int, limit: int
    ) -> list[tuple[int, bytes, Entry]]:
        """Entries with a cookie above `after_cookie`, in the order of cookies, at most `limit`."""
        await self._names_showable(directory, directory)
        return self.volume.catalog.listing(directory, after_cookie, limit)

    async def xattr(self, inode: InodeNumber, name: bytes) -> bytes:
        """The value of an extended attribute; ENODATA where there is none, EOPNOTSUPP where none can be."""
        namespace_of(name)
        await self.attributes(inode)
        value = self.volume.catalog.xattr(inode, name)
        if value is None:
            raise OperationFailed(errno.ENODATA)
        return value

    async def xattrs(self, inode: InodeNumber) -> list[bytes]:
        """The names of the extended attributes, but for those of no namespace (`xattrs.py`)."""
        await self.attributes(inode)
        return [name for name in self.volume.catalog.xattrs(inode) if has_namespace(name)]

    @abstractmethod
    async def read(self, inode: InodeNumber, offset: int, length: int) -> bytes:
        """Content of a regular file; shorter than `length` only at its end."""

    def read_here(self, inode: InodeNumber, offset: int, length: int) -> bytes:
        """Content as this host's volume has it."""
        self.reads_local += 1
        try:
            return self.volume.read(inode, offset, length)
        except OSError as error:
            raise OperationFailed(error.errno or errno.EIO) from error

    @abstractmethod
    async def seek(self, inode: InodeNumber, offset: int, *, data: bool) -> int:
        """Where, from `offset` on, a regular file has data, or else a hole, as its end is one; ENXIO where
        there is none, or the file ends before. By the rules of reading.
        """

    def seek_here(
        self, inode: InodeNumber, offset: int, *, data: bool, writes: Collection[Staged] = ()
    ) -> int:
        """`seek` in this host's volume, with these writes on top."""
        size = self._size_to_seek(inode, offset)
        try:
            if data:
                place = data_with(self.volume.next_data(inode, offset, size), offset, writes)
            else:
                place = hole_with(lambda at: self.volume.next_hole(inode, at, size), offset, writes)
        except OSError as error:
            raise OperationFailed(error.errno or errno.EIO) from error
        if data and place >= size:
            raise OperationFailed(errno.ENXIO)
        return min(place, size)

    def _size_to_seek(self, inode: InodeNumber, offset: int) -> int:
        """How long a file is that is looked into from `offset` on; ENXIO where that is behind its end."""
        size = self.shown(found(self.volume.catalog.inode(inode), errno.ESTALE)).size
        if offset >= size:
            raise OperationFailed(errno.ENXIO)
        return size

    def allocated_bytes(self, inode: Inode) -> int:
        """How much of the disk of this host the data of an inode takes."""
        return self.volume.allocated_bytes(inode)

    # --- changing ---------------------------------------------------------------------------------------

    @abstractmethod
    async def perform(self, operation: AnyOperation, data: bytes = b"") -> Inode | None:
        """Do it, in both volumes; the inode concerned, or None where it has gone meanwhile."""

    @abstractmethod
    def writes_at_once(self, data_bytes: int) -> bool:
        """Whether `perform` of a write with so much data, called now, waits for nothing but promises: then it
        needs no task (`promise.begin`), unless a promise is rejected.
        """

    @abstractmethod
    async def flush(self, inode: InodeNumber) -> None:
        """fsync: what was done to the inode, and every name change so far, is durable in both volumes."""

    @abstractmethod
    async def settle(self, inode: InodeNumber) -> None:
        """close: what was done to the inode on this host so far is in both volumes."""

    @abstractmethod
    def configure(self, settings: Settings) -> None:
        """From now on these settings hold, as far as they concern the unit."""

    def note_failed_write(self, staged: Staged, error: int) -> None:
        """A write failed that somebody was told had not: fsync or close says so, once to each."""
        inode = staged.operation.image
        log.warning("a write to inode %d failed after it was acknowledged: %s", inode, os.strerror(error))
        self.failed_writes.note(inode, error)
        self.volume.watcher.data_changed(inode, own=True)

    def modes_in_effect(self) -> dict[str, str]:
        """Modes that may be others than those of the settings, by their key."""
        return {}

    # --- access -----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def access(self) -> Access:
        """The access in effect: the primary's, which the backup follows."""

    @abstractmethod
    async def change_access(self, access: Access) -> None:
        """Take another access on both hosts. On return what was under way before has ended.

        Nothing stops meanwhile: both ways of access put changes into the same order, and a host may
        be ahead of the other. `PrimaryUnreachable` at a backup that cannot tell its primary.
        """

    # --- reservations -------------------------------------------------------------------------------------

    async def reserve(self, inode: InodeNumber, path: bytes, *, preempt: bool) -> None:
        """Hold a file, or with inode 0 everything, for this host. On return both volumes know it.

        `ReservationConflict` where the other host holds it and `preempt` is not given.
        """
        try:
            await self.perform(Reserve(inode, path, preempt))
        except OperationFailed as error:
            raise self._reservation_error(error, inode) from None

    async def release(self, inode: InodeNumber, *, preempt: bool) -> None:
        """End a reservation; there need be none. `ReservationConflict` as for `reserve`."""
        try:
            await self.perform(Release(inode, preempt))
        except OperationFailed as error:
            raise self._reservation_error(error, inode) from None

    def _reservation_error(self, error: OperationFailed, inode: InodeNumber) -> Exception:
        in_the_way = conflicts(self.volume.catalog, inode, self.host_identity)
        if error.errno != errno.EBUSY or not in_the_way:
            return error
        held_inode, held = next(iter(in_the_way.items()))
        what = path_shown(held.path) if held_inode else "everything"
        since = datetime.fromtimestamp(held.since_ns // 10**9).astimezone().isoformat(sep=" ")
        return ReservationConflict(what, self._host_name(held.holder), since)

    def reservations(self) -> list[dict[str, Any]]:
        """Who holds what, the oldest first; `inode` and `path` are None for the whole filesystem."""
        held = sorted(self.volume.catalog.reservations.items(), key=lambda item: item[1].since_ns)
        return [
            {
                "inode": inode or None,
                "path": path_shown(reservation.path) if inode else None,
                "holder": self._host_name(reservation.holder),
                "since": reservation.since_ns / 1e9,
            }
            for inode, reservation in held
        ]

    def _host_name(self, host: bytes) -> str:
        identity = self.volume.identity
        return identity.host_name if host == self.host_identity else identity.peer_name

    # --- the life of a mount ------------------------------------------------------------------------------

    @abstractmethod
    async def run(
        self,
        links: "trio.MemoryReceiveChannel[Link]",
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve one link after the other, for ever. Cancellation leaves the volume as it is."""

    @abstractmethod
    async def wait_connected(self) -> None:
        """Return when there is a link to the peer."""

    @abstractmethod
    async def wait_normal(self) -> None:
        """Return when the mirror state is normal."""

    @abstractmethod
    async def wait_drained(self) -> None:
        """Return when nothing that was asked before is under way any more."""

    async def wait_safe(self) -> None:
        """Return when this host may stop: what was asked here has ended, or is kept for the next mount, where
        nothing can be done about it now."""
        await self.wait_drained()

    @abstractmethod
    async def stop(self, reason: str) -> None:
        """Make both volumes durable where that can be done, and say goodbye to the peer."""

    async def say_goodbye(self, reason: str, *, mounted: bool = False) -> None:
        """End the link in good order: the peer hears that this host serves nothing from now on, but for
        what the kernel of one that stays mounted keeps.

        The peer ends it; closing it here could overtake the word.
        """
        if self.link is None:
            return
        try:
            await self.link.forward.wait_sent()
            self.link.mirror.send(Bye(reason, mounted))
            await self.link_ended.wait()
        except ChannelError as error:
            log.info("stopped without a goodbye: %s", error)

    @abstractmethod
    async def verify(self, keep: str = "") -> None:
        """Begin a comparison of the volumes, or join the one under way (`calls.StartVerify`)."""

    @abstractmethod
    async def verify_report(self) -> dict[str, Any]:
        """How far the comparison is (`mirror.verify.Report`)."""

    @abstractmethod
    async def change_pace(self, *, rate_bytes: int | None = None, paused: bool | None = None) -> None:
        """Let resyncs copy so many bytes a second at most (0: no limit), or pause, or go on; None changes
        nothing. The primary does it, whoever is asked; that it is paused outlives a restart."""

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """The fields of `fusemirror status` that this unit knows (conventions.md)."""


def in_words(seconds: float) -> str:
    """A time span as people say it."""
    for name, length_s in (("years", 365.25 * 86_400), ("days", 86_400.0), ("hours", 3_600.0)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {name}"
    return f"{seconds:.0f} s"


def _known_to(ours: History, theirs: History) -> ChangeNumber:
    """The last of our changes that they hold, where they went on in a line of their own."""
    if not ours.generations:
        return ChangeNumber(0)
    for newer, older in pairwise(theirs.generations):
        if older.identity == ours.generations[0].identity:
            return ChangeNumber(newer.first_change - 1)
    return ChangeNumber(0)


def found(inode: Inode | None, error: int) -> Inode:
    """The inode, or the errno raised."""
    if inode is None:
        raise OperationFailed(error)
    return inode
