"""The backup's control unit: stages every request, forwards it, and serves reads from the subvolume.

A request waits here until the change that names it has come back and is applied, or until the
primary says that it made no change. Reads are served from the subvolume while the primary's lease
lasts: the primary shows no effect that is not here yet, and goes on alone only once the lease is
over, so what is read here is never old (G2). Source: seed [0050], [0051] (JOB1, JOB3), [0061].
"""

import logging
from typing import Any, TypeVar

import msgspec
import trio

from fusemirror.channel.link import Link
from fusemirror.coherence.directory_leases import LeaseRequests
from fusemirror.coherence.lock_asking import Asking
from fusemirror.coherence.locks import expire
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.control import committing
from fusemirror.control.arrivals import Arrivals
from fusemirror.control.backup_modes import BackupModes
from fusemirror.control.backup_reads import BackupReads
from fusemirror.control.backup_service import BackupService
from fusemirror.control.comparing import PrimaryComparisons
from fusemirror.control.degraded import DegradedBackup
from fusemirror.control.exclusive import ExclusiveAccess
from fusemirror.control.forwarding import Forwarding
from fusemirror.control.host_state import HostState
from fusemirror.control.landing import Landing
from fusemirror.control.life import RoleChange, RoleLife
from fusemirror.control.meeting import PeerMeeting
from fusemirror.control.patience import Patience
from fusemirror.control.primary_words import PrimaryWords
from fusemirror.control.role import Role
from fusemirror.control.states import RoleEvent, RoleState
from fusemirror.errors import (
    CheckReport,
    OperationFailed,
    RefusedForSafety,
    RoleChanged,
    TimedOut,
)
from fusemirror.identifiers import NO_CHANGE, ChangeNumber, InodeNumber
from fusemirror.limits import (
    PRIMARY_AWAY_PATIENCE_S,
)
from fusemirror.mirror.applying import Applier
from fusemirror.mirror.states import WORDS, BackupState, MirrorWord
from fusemirror.mirror.waits import Waits
from fusemirror.operations import AnyOperation, Write
from fusemirror.printable import counted
from fusemirror.promise import Promise
from fusemirror.protocol.calls import (
    ChangeAccess,
    ChangePace,
    Flush,
    SwitchRoles,
)
from fusemirror.settings import Access, Acknowledge, Settings
from fusemirror.volume.inode import Inode

log = logging.getLogger(__name__)

T = TypeVar("T")


class BackupUnit(Role):
    """See the module."""

    is_primary = False
    reads: BackupReads
    modes: BackupModes

    def __init__(
        self,
        host: HostState,
        communication: CommunicationVolume,
        *,
        io_timeout_s: float,
        stale_reads: bool,
        may_take_over: bool = False,
    ) -> None:
        """`may_take_over`: there is a witness, so a primary that is away may be replaced without a person."""
        volume = host.volume
        self.host = host
        self.life = RoleLife(RoleState.SERVING)
        self.meeting = PeerMeeting(host, self.life, self._show_diverged)
        self.exclusive = ExclusiveAccess(volume, of_main=False)
        landing = Landing(self.exclusive)
        lease_requests = LeaseRequests(host.leases, communication)
        waits = Waits()
        asking = Asking(
            host.locks,
            communication,
            waits,
            lambda: self.patience.report(),
            lambda: self.forwarding.send_gathered(),
        )
        host.locks.attach(asking)
        host.locks.io_timeout_s = io_timeout_s

        def take_role(term: int) -> None:
            self.life.ask(RoleChange("primary", "the other host handed over the role", term))

        self.applier = Applier(
            volume,
            communication,
            host.open_inodes.give_up,
            take_role,
            PrimaryWords(host, landing, lease_requests, asking, lambda: self.applier.serves).handlers(),
            access=host.access,
            landing=landing.begin,
            refused=lambda staged, error: arrivals.refused(staged, error),
        )
        self.communication = communication
        self.modes = BackupModes(host, communication)
        self.patience = Patience(
            self.applier, communication, host.links, waits, io_timeout_s, may_take_over=may_take_over
        )
        self.degraded = DegradedBackup(self.applier, self.patience)
        self.forwarding = Forwarding(
            host,
            self.life,
            communication,
            self.applier,
            landing,
            asking,
            self.patience,
            lambda: self.reads,
        )
        arrivals = Arrivals(host, communication, self.applier, self.forwarding.calls, landing)
        self.service = BackupService(
            host,
            self.meeting,
            self.applier,
            self.patience,
            self.forwarding,
            arrivals,
            landing,
            lease_requests,
            asking,
        )
        self.comparisons = PrimaryComparisons(self.forwarding, host.links)
        self.reads = BackupReads(
            host,
            self.life,
            self.applier,
            communication,
            self.exclusive,
            landing,
            asking,
            lease_requests,
            self.patience,
            self.forwarding.call,
            stale_reads=stale_reads,
        )

    def configure(self, settings: Settings) -> None:
        self.modes.configure(settings)
        self.host.locks.io_timeout_s = settings.io_timeout
        self.patience.configure(settings)
        self.reads.stale = settings.stale_reads
        self.communication.configure(settings.communication_capacity, settings.communication_memory)

    # --- changing: JOB1 stages and waits, JOB3 transfers ---------------------------------------------------

    async def perform(self, operation: AnyOperation, data: bytes = b"") -> Inode | None:
        self.host.check_disk()  # before anything is looked up
        asynchronous = self.modes.acknowledge is Acknowledge.ASYNC
        if self.host.access.in_effect is Access.EXCLUSIVE:
            number = await self.forwarding.request_exclusively(operation, data, early=asynchronous)
        else:
            kept = asynchronous and self.forwarding.writes_behind(operation, data)
            number = await self.forwarding.request(operation, data, kept=kept)
        self.host.leases.change(operation)
        self.host.check_disk()  # it failed meanwhile: nothing is looked up there any more
        inode = self.volume.catalog.inode(number) if number else None
        return inode and self.reads.shown(inode)

    async def may_refuse(self) -> None:
        """The primary has waited."""

    def begin_write(self, operation: Write, data: bytes) -> Promise[Any] | None:
        if (
            self.life.state is not RoleState.SERVING
            or self.host.access.in_effect is not Access.ROUTED
            or self.modes.acknowledge is not Acknowledge.SYNC
            or self.host.volume.health.failure is not None
        ):
            return None
        return self.forwarding.begin_write(operation, data)

    async def flush(self, inode: InodeNumber) -> None:
        # The primary makes both volumes durable: this one hears of it over the mirror path.
        last = self.communication.kept.newest(inode)
        await self.forwarding.call(Flush(inode))
        await self.patience.while_progressing(self.communication.kept.wait_ended, inode, last)

    async def drain(self, inode: InodeNumber) -> None:
        last = self.communication.kept.newest(inode)
        self.forwarding.send_gathered()
        await self.patience.while_progressing(self.communication.kept.wait_ended, inode, last)

    # --- links --------------------------------------------------------------------------------------------

    async def run(
        self,
        links: "trio.MemoryReceiveChannel[Link]",
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve one link after the other, and give check reports to what waits too long, for ever."""

        async def commit_in_time() -> None:
            await committing.wait_commit_due(self.host)
            self.host.clocks.look()
            if self.applier.state is not BackupState.CATCHING_UP:
                await committing.commit_names(self.host, NO_CHANGE)

        async with trio.open_nursery() as nursery:
            late = self.forwarding.expire
            nursery.start_soon(self.host.background.repeat, "requests that wait too long", late)
            nursery.start_soon(self.host.background.repeat, "commit", commit_in_time)
            nursery.start_soon(
                self.host.background.repeat, "freeing", self.volume.files.removal.free_discarded
            )
            nursery.start_soon(self.host.background.repeat, "lease", self.reads.watch_lease)
            nursery.start_soon(self.host.background.repeat, "patience", self.patience.watch)
            nursery.start_soon(self.host.background.repeat, "locks", lambda: expire(self.host.locks))
            task_status.started()
            async for link in links:
                await self.meeting.serve(link, self.service.run)

    # --- roles --------------------------------------------------------------------------------------------

    def _show_diverged(self, reason: str) -> None:
        self.applier.differ(reason)
        self.patience.look()

    @property
    def word(self) -> MirrorWord:
        word = WORDS[self.applier.state]
        return MirrorWord.RESYNCING if word is MirrorWord.NORMAL and not self.is_normal else word

    @property
    def is_normal(self) -> bool:
        return self.applier.is_normal

    def begin(self, change: RoleChange, kernel_forgets_at: float) -> None:
        """The primary decides what comes next."""

    async def ask_to_switch(self) -> None:
        if not self.is_normal:
            raise RefusedForSafety(f"the mirror state is {self.word.value}, not normal; wait for it")
        try:
            await self.forwarding.call(SwitchRoles())
        except OperationFailed:
            raise RefusedForSafety("the mirror state is not normal at the primary; wait for it") from None
        except CheckReport:
            pass
        raise TimedOut(self.patience.io_timeout_s, "the primary did not hand over its role; see its log")

    async def prepare_hand_over(self) -> None:
        raise RefusedForSafety("this host is not the primary any more")

    async def hand_over(self) -> None:
        raise RefusedForSafety("this host is not the primary any more")

    @property
    def _peer_change(self) -> ChangeNumber:
        return max(self.host.peer_durable, self.applier.durability.primary_durable)

    def retire(self, change: RoleChange) -> None:
        """What is left in the communication volume the unit of the other role carries out."""
        self.life.meet(RoleEvent.RETIRE)
        self.host.peer_durable = self._peer_change
        self.exclusive.ranges.end(RoleChanged())
        self.service.retire()
        self.applier.changed.set()  # nothing waits for it again: each looks first whether this has retired

    # --- the life of a mount ------------------------------------------------------------------------------

    @property
    def access(self) -> Access:
        return self.host.access.in_effect

    async def change_access(self, access: Access) -> None:
        changed = self.host.access.changed
        await self.forwarding.call(ChangeAccess(access))
        if self.host.access.in_effect is not access:  # the word of it comes by the other path
            await self.patience.in_time(changed.wait)

    async def wait_connected(self) -> None:
        while self.host.links.link is None:
            self.life.check()
            await self.applier.changed.wait()

    async def wait_normal(self) -> None:
        while not self.is_normal:
            self.life.check()
            await self.applier.changed.wait()

    async def wait_drained(self) -> None:
        await self.communication.wait_empty()

    async def wait_safe(self) -> None:
        """The primary is waited for while it is there, or while something is kept by this
        process alone; else for a moment, since it may be about to connect."""
        while True:
            with trio.move_on_after(PRIMARY_AWAY_PATIENCE_S):
                await self.wait_drained()
                return
            if self.host.links.link is None and self.communication.keeps_all:
                count, size = len(self.communication), self.communication.pending_bytes
                what = f"{counted(count, 'request')} ({counted(size, 'byte')})"
                log.info("waiting here: %s; sent after the next mount", what)
                return

    async def stop(self, reason: str) -> None:
        if self.host.links.link is not None and self.applier.serves:
            # Else the primary marks what is under way, to compare it when this host is back.
            self.applier.acknowledging.say_delayed(self.host.links.link.mirror)
        await self.host.links.say_goodbye(reason)

    async def change_pace(self, *, rate_bytes: int | None = None, paused: bool | None = None) -> None:
        await self.forwarding.call(ChangePace(rate_bytes, paused))

    def status(self) -> dict[str, Any]:
        communication, applier = self.communication, self.applier
        oldest, store = communication.order.oldest_since, communication.status()
        reason_of_disk = "the disk of the communication volume is full" if store["full"] else None
        if store["failure"] is not None:
            reason_of_disk = f"the disk of the communication volume failed: {store['failure']}"
        return {
            "role": "backup",
            "mirror_state": self.word.value,
            "state": applier.state.name.lower(),
            "reason": self.patience.shown_reason or reason_of_disk,
            "change": self.volume.number,
            "peer_change": self._peer_change,
            "disk": self.host.news.disks.status(),
            "nameless": self.host.open_inodes.nameless_status(),
            "out_of_sync": {
                "images": len(applier.out_of_sync.images),
                "bytes": applier.out_of_sync.size_bytes,
            },
            "resync": applier.out_of_sync.resync and msgspec.structs.asdict(applier.out_of_sync.resync),
            "communication": {
                "pending_requests": len(communication),
                "pending_bytes": communication.pending_bytes,
                "oldest_seconds": 0.0 if oldest is None else round(trio.current_time() - oldest, 3),
                **store,
                "staged_total": communication.staged_total,
                "forwarded_total": self.forwarding.forwarded_total,
                "answered_total": communication.ended.total,
            },
        }
