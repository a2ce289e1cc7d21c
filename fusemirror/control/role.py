"""What a role of this host is to those above it: one interface for the primary's unit and the backup's.

A unit serves one role, from when this host has it until it has the other one (`life.py`). It is made of parts
that it holds; what stays when the role changes is the host's (`host_state.py`).
"""

from abc import ABC, abstractmethod
from typing import Any

import trio

from fusemirror.channel.link import Link
from fusemirror.control.degraded import Degraded
from fusemirror.control.exclusive import ExclusiveAccess
from fusemirror.control.host_state import HostState
from fusemirror.control.life import RoleChange, RoleLife
from fusemirror.control.meeting import PeerMeeting
from fusemirror.identifiers import InodeNumber
from fusemirror.mirror.states import MirrorWord
from fusemirror.operations import AnyOperation, Key, Write
from fusemirror.promise import Promise
from fusemirror.settings import Access, Settings
from fusemirror.volume.inode import Inode
from fusemirror.volume.volume import Volume

VERIFY_UNDER_WAY = "another verify is running with different options; wait for it to end"


class Reads(ABC):
    """What programs of this host may see, and when (G2)."""

    @abstractmethod
    async def showable(self, key: Key) -> None:
        """Return when what the catalog says of `key` may be shown: the other host sees it too."""

    @abstractmethod
    def cacheable_s(self, key: Key) -> float:
        """Seconds for which this host's kernel may keep what the catalog says of `key` now; 0 for not at
        all. What changes meanwhile of inodes the volume's cache invalidator hears (`volume/invalidation.py`).
        """

    @abstractmethod
    def want_lease(self, directory: InodeNumber) -> None:
        """Try to get a lease of the names of a directory (`coherence/directory_leases.py`)."""

    @abstractmethod
    async def free_directory(self, directory: InodeNumber, *, of_change: bool) -> None:
        """Return when the other host is not in the way of a program that looks into a directory, or
        changes a name in it; a check report after `io_timeout`.
        """

    @abstractmethod
    async def read(self, inode: InodeNumber, offset: int, length: int) -> bytes:
        """Content of a regular file; shorter than `length` only at its end."""

    @abstractmethod
    async def seek(self, inode: InodeNumber, offset: int, *, data: bool) -> int:
        """Where, from `offset` on, a regular file has data, or else a hole, as its end is one; ENXIO where
        there is none, or the file ends before. By the rules of reading.
        """

    @abstractmethod
    def shown(self, inode: Inode) -> Inode:
        """The inode as this host shows it: its own acknowledged writes are in it, applied or not."""

    @abstractmethod
    def allocated_bytes(self, inode: Inode) -> int:
        """How much of the disk of this host the data of an inode takes."""


class Comparing(ABC):
    """The comparison of both volumes. The primary makes it, whoever is asked."""

    @abstractmethod
    async def begin(self, keep: str = "") -> None:
        """Begin a comparison of the volumes, or join the one under way (`calls.StartVerify`)."""

    @abstractmethod
    async def report(self) -> dict[str, Any]:
        """How far the comparison is (`mirror.verify.VerifyReport`)."""


class RoleModes(ABC):
    """What was asked for of the pair's modes, as far as it can be had."""

    @abstractmethod
    def in_effect(self) -> dict[str, str]:
        """Modes of the pair, by their key, as far as this host's own settings do not decide them."""


class Role(ABC):
    """See the module. `run` serves links for ever; everything else may be called meanwhile."""

    host: HostState
    life: RoleLife
    meeting: PeerMeeting
    reads: Reads
    exclusive: ExclusiveAccess
    """The exclusive statuses of this host's volume."""
    degraded: Degraded
    comparisons: Comparing
    modes: RoleModes

    is_primary: bool

    @property
    def volume(self) -> Volume:
        """The volume of this host: main's, or the subvolume."""
        return self.host.volume

    # --- requests of programs -----------------------------------------------------------------------------

    @abstractmethod
    async def perform(self, operation: AnyOperation, data: bytes = b"") -> Inode | None:
        """Do it, in both volumes; the inode concerned, or None where it has gone meanwhile."""

    @abstractmethod
    def begin_write(self, operation: Write, data: bytes) -> Promise[Any] | None:
        """Make the write, or ask for it, where nothing else stands in its way. The promise is resolved, with
        whatever, when both volumes have it, and rejected with what `perform` would raise: an OperationFailed
        that is told behind `may_refuse`.

        None: nothing was done, and `perform` is to do it.
        """

    @abstractmethod
    async def may_refuse(self) -> None:
        """Return when a program may be told an error that is so because of what is here: the other host has
        that too. RoleChanged."""

    @abstractmethod
    async def flush(self, inode: InodeNumber) -> None:
        """fsync: what was done to the inode, and every name change so far, is durable in both volumes."""

    @abstractmethod
    async def drain(self, inode: InodeNumber) -> None:
        """close: what was done to the inode on this host so far is in both volumes."""

    # --- requests of people -------------------------------------------------------------------------------

    @abstractmethod
    async def change_pace(self, *, rate_bytes: int | None = None, paused: bool | None = None) -> None:
        """Let resyncs copy so many bytes a second at most (0: no limit), or pause, or go on; None changes
        nothing. The primary does it, whoever is asked; that it is paused outlives a restart."""

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

    @abstractmethod
    def configure(self, settings: Settings) -> None:
        """From now on these settings hold, as far as they concern the unit."""

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """The fields of `fusemirror status` that this unit knows (conventions.md)."""

    # --- waiting ------------------------------------------------------------------------------------------

    @abstractmethod
    async def wait_connected(self) -> None:
        """Return when there is a link to the peer."""

    @abstractmethod
    async def wait_normal(self) -> None:
        """Return when the mirror state is normal."""

    @abstractmethod
    async def wait_drained(self) -> None:
        """Return when nothing that was asked before is under way any more."""

    @abstractmethod
    async def wait_safe(self) -> None:
        """Return when this host may stop: what was asked here has ended, or is kept for the next mount, where
        nothing can be done about it now."""

    # --- serving ------------------------------------------------------------------------------------------

    @abstractmethod
    async def run(
        self,
        links: "trio.MemoryReceiveChannel[Link]",
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve one link after the other, for ever. Cancellation leaves the volume as it is."""

    @abstractmethod
    async def stop(self, reason: str) -> None:
        """Make both volumes durable where that can be done, and say goodbye to the peer."""

    # --- changes of the role ------------------------------------------------------------------------------

    @property
    @abstractmethod
    def word(self) -> MirrorWord:
        """The mirror state, as people read it."""

    @property
    @abstractmethod
    def is_normal(self) -> bool:
        """Both volumes hold the same up to the changes under way."""

    @property
    def link(self) -> Link | None:
        """The link to the peer, while there is one."""
        return self.host.links.link

    @abstractmethod
    def begin(self, change: RoleChange, kernel_forgets_at: float) -> None:
        """This host has taken the role by `change`, durably. FusemirrorError, OSError: the volume does not
        take the record of it. By `kernel_forgets_at` (trio time) the other host's kernel keeps nothing."""

    @abstractmethod
    async def ask_to_switch(self) -> None:
        """Ask for the other role. On return this host has it, or `RoleChanged` says so; RefusedForSafety,
        ConnectionLost, TimedOut."""

    @abstractmethod
    async def prepare_hand_over(self) -> None:
        """Make both volumes durable, so that little is compared afterwards. RefusedForSafety, TimedOut."""

    @abstractmethod
    async def hand_over(self) -> None:
        """Give the role to the peer. On return this host is the backup, durably, and the other has heard of
        it, or will when they meet again. On an error everything is as before, and the link is closed.
        RefusedForSafety, TimedOut."""

    @abstractmethod
    def retire(self, change: RoleChange) -> None:
        """This host has the other role now. The link is closed; whoever waits here gets `RoleChanged`,
        but for changes up to `change.known`, which are in both volumes, and those that may be."""
