"""The backup's control unit: stages every request, forwards it, and serves reads from the subvolume.

A request waits here until the change that names it has come back and is applied, or until the
primary says that it made no change. Reads are served from the subvolume while the primary's lease
lasts: the primary shows no effect that is not here yet, and goes on alone only once the lease is
over, so what is read here is never old (G2). Source: seed [0050], [0051] (JOB1, JOB3), [0061].
"""

import errno
import logging
from typing import Any, TypeVar

import msgspec
import trio

from fusemirror.channel.link import Link
from fusemirror.channel.session import Session
from fusemirror.coherence.directory_leases import LeaseRequests
from fusemirror.coherence.lock_asking import Asking
from fusemirror.coherence.locks import expire
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.control import committing
from fusemirror.control.arrivals import Arrivals
from fusemirror.control.backup_reads import BackupReads
from fusemirror.control.degraded import DegradedBackup
from fusemirror.control.exclusive import ExclusiveAccess
from fusemirror.control.forwarding import Forwarding
from fusemirror.control.host_state import HostState
from fusemirror.control.landing import Landing
from fusemirror.control.life import RoleChange, RoleLife
from fusemirror.control.meeting import PeerMeeting
from fusemirror.control.patience import Patience
from fusemirror.control.role import VERIFY_UNDER_WAY, Role
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
from fusemirror.mirror.applying import Applier, Handler
from fusemirror.mirror.states import WORDS, BackupState, MirrorWord
from fusemirror.mirror.verify import VerifyReport
from fusemirror.mirror.waits import Waits
from fusemirror.operations import AnyOperation, Write
from fusemirror.printable import counted
from fusemirror.promise import Promise
from fusemirror.protocol.calls import (
    ChangeAccess,
    ChangePace,
    Flush,
    StartVerify,
    SwitchRoles,
    VerifyProgress,
)
from fusemirror.protocol.codec import refusal
from fusemirror.protocol.messages import (
    AccessInEffect,
    DiskSpace,
    FreeNames,
    HoldNames,
    KeyNews,
    LendNames,
    LockAnswer,
    LocksListed,
    LocksReclaimed,
    Modes,
    RecallNames,
    ShareNames,
    StatusTaken,
    TakeStatus,
)
from fusemirror.settings import Access, Acknowledge, Communication, Settings
from fusemirror.volume.inode import Inode

log = logging.getLogger(__name__)

T = TypeVar("T")


class BackupUnit(Role):
    """See the module."""

    is_primary = False
    reads: BackupReads

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
        self.landing = Landing(self.exclusive)
        self.lease_requests = LeaseRequests(host.leases, communication)
        waits = Waits()
        self.asking = Asking(
            host.locks,
            communication,
            waits,
            lambda: self.patience.report(),
            lambda: self.forwarding.send_gathered(),
        )
        host.locks.attach(self.asking)
        host.locks.io_timeout_s = io_timeout_s

        def take_role(term: int) -> None:
            self.life.ask(RoleChange("primary", "the other host handed over the role", term))

        others: dict[type, Handler] = {
            LendNames: self.lease_requests.granted,
            HoldNames: self.lease_requests.taken,
            ShareNames: self.lease_requests.shared,
            RecallNames: self.lease_requests.recalled,
            FreeNames: self.lease_requests.freed,
            DiskSpace: lambda message, *_: host.news.disks.hear(message),
            Modes: lambda message, *_: host.news.modes.hear(message),
            KeyNews: lambda message, _, session: host.news.renewal.take(message, session),
            AccessInEffect: lambda message, *_: self._take_access(message.access),
            TakeStatus: lambda message, _, session: self._take_status(message, session),
            LockAnswer: self.asking.answered,
            LocksReclaimed: self.asking.taken,
            LocksListed: self.asking.listed,
        }
        self.applier = Applier(
            volume,
            communication,
            host.open_inodes.give_up,
            take_role,
            others,
            access=host.access,
            landing=self.landing.begin,
            refused=lambda staged, error: self.arrivals.refused(staged, error),
        )
        self.communication = communication
        self._acknowledge = Acknowledge.SYNC
        self.patience = Patience(
            self.applier, communication, host.links, waits, io_timeout_s, may_take_over=may_take_over
        )
        self.degraded = DegradedBackup(self.applier, self.patience)
        self.forwarding = Forwarding(
            host,
            self.life,
            communication,
            self.applier,
            self.landing,
            self.asking,
            self.patience,
            lambda: self.reads,
        )
        self.arrivals = Arrivals(host, communication, self.applier, self.forwarding.calls, self.landing)
        self.reads = BackupReads(
            host,
            self.life,
            self.applier,
            communication,
            self.exclusive,
            self.landing,
            self.asking,
            self.lease_requests,
            self.patience,
            self.forwarding.call,
            stale_reads=stale_reads,
        )

    def configure(self, settings: Settings) -> None:
        self._acknowledge = settings.acknowledge
        self.host.locks.io_timeout_s = settings.io_timeout
        self.patience.configure(settings)
        self.host.news.modes.set(Modes(settings.fence, Communication(self.communication.kind)))
        self.reads.stale = settings.stale_reads
        self.communication.configure(settings.communication_capacity, settings.communication_memory)

    def modes_in_effect(self) -> dict[str, str]:
        acknowledge, link = self._acknowledge, self.host.links.link
        if self.access is Access.EXCLUSIVE and link is not None and not link.peer.takes_statuses:
            acknowledge = Acknowledge.SYNC
        peer = self.host.news.modes.peer
        return ({} if peer is None else {"fence": str(peer.fence)}) | {
            "access": str(self.access),
            "acknowledge": str(acknowledge),
            "communication": self.communication.kind,
        }

    # --- changing: JOB1 stages and waits, JOB3 transfers ---------------------------------------------------

    async def perform(self, operation: AnyOperation, data: bytes = b"") -> Inode | None:
        self.host.check_disk()  # before anything is looked up
        if self.host.access.in_effect is Access.EXCLUSIVE:
            early = self._acknowledge is Acknowledge.ASYNC
            number = await self.forwarding.request_exclusively(operation, data, early=early)
        else:
            kept = self._acknowledge is Acknowledge.ASYNC and self.forwarding.writes_behind(operation, data)
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
            or self._acknowledge is not Acknowledge.SYNC
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
                await self.meeting.serve(link, self.run_link)

    async def run_link(self, link: Link) -> None:
        """Apply what the link brings and take its answers, until it is lost."""
        self.patience.begin_link()
        if not await self.meeting.begin(link):
            self.patience.look()
            return
        await self.host.leases.run_out()  # the primary knows nothing of what this host's kernel keeps
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.arrivals.run, link)
            nursery.start_soon(self.forwarding.run_forwarding, link)
            nursery.start_soon(self.forwarding.run_telling, link)
            nursery.start_soon(self.host.news.run, link)
            nursery.start_soon(self.forwarding.run_locks, link)
            reason = await self.applier.serve(link.mirror)
            link.close(reason)
            nursery.cancel_scope.cancel()
        self.host.end_link(link)
        self.patience.look()
        self.lease_requests.link_lost()
        self.asking.link_lost()
        self.arrivals.link_lost()
        self.landing.link_lost()
        self.forwarding.link_lost(link)

    def _take_access(self, access: Access) -> None:
        self.host.access.take(access)
        if access is Access.ROUTED:
            self.landing.forget_early()

    def _take_status(self, message: TakeStatus, session: Session) -> None:
        if self.applier.serves:  # else nobody here reads or writes
            self.landing.command(message)
            if message.answers:
                # The kernel first: the primary's program goes on by this word.
                self.volume.invalidator.data_changed(message.inode, own=False)
                session.send(StatusTaken(message.number))

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
        return max(self.host.peer.durable, self.applier.durability.primary_durable)

    def retire(self, change: RoleChange) -> None:
        """What is left in the communication volume the unit of the other role carries out."""
        self.life.meet(RoleEvent.RETIRE)
        self.host.peer.durable = self._peer_change
        self.exclusive.ranges.end(RoleChanged())
        self.landing.link_lost()
        self.host.retire_link()
        self.forwarding.retire()
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

    async def verify(self, keep: str = "") -> None:
        try:
            await self.forwarding.call(StartVerify(keep))
        except OperationFailed as error:
            if error.errno == errno.EBUSY:
                raise RefusedForSafety(VERIFY_UNDER_WAY) from None
            raise

    async def verify_report(self) -> dict[str, Any]:
        answer, _ = await self.forwarding.call(VerifyProgress())
        try:
            report = msgspec.json.decode(answer.value, type=VerifyReport)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if (link := self.host.links.link) is not None:
                why = f"value: no report of a comparison: {error}"
                link.end(link.forward, refusal(link.forward.peer_name, answer, why))
            raise OperationFailed(errno.EIO) from error
        return msgspec.structs.asdict(report)

    async def change_pace(self, *, rate_bytes: int | None = None, paused: bool | None = None) -> None:
        await self.forwarding.call(ChangePace(rate_bytes, paused))

    def status(self) -> dict[str, Any]:
        communication, applier = self.communication, self.applier
        oldest, store = communication.oldest_since, communication.status()
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
            "out_of_sync": {"images": len(applier.out_of_sync), "bytes": applier.out_of_sync_bytes()},
            "resync": applier.resync and msgspec.structs.asdict(applier.resync),
            "communication": {
                "pending_requests": len(communication),
                "pending_bytes": communication.pending_bytes,
                "oldest_seconds": 0.0 if oldest is None else round(trio.current_time() - oldest, 3),
                **store,
                "staged_total": communication.staged_total,
                "forwarded_total": self.forwarding.forwarded_total,
                "answered_total": communication.retired_total,
            },
        }
