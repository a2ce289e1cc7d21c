"""The primary's control unit: decides every change, in one order.

A change is decided, applied to the main volume and published to the mirror in one step without a
wait in between, so the order of numbers is the order in both volumes. Then its requester waits for
the acknowledgement: a program of this host here, a program of the backup over there, where the
change that comes back is its answer. Source: seed [0053]-[0057] (JOB4, JOB5).
"""

import errno
import logging
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from fusemirror.change import Table
from fusemirror.channel.link import Link
from fusemirror.coherence.directory_leases import LeaseGrants
from fusemirror.coherence.lock_deciding import Deciding
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.control.admission import Admission
from fusemirror.control.comparing import Comparisons
from fusemirror.control.decisions import Decisions
from fusemirror.control.degraded import DegradedPrimary
from fusemirror.control.exclusive import ExclusiveAccess
from fusemirror.control.granting import Granting
from fusemirror.control.host_state import HostState
from fusemirror.control.life import RoleChange, RoleLife
from fusemirror.control.local_reads import found
from fusemirror.control.meeting import PeerMeeting
from fusemirror.control.names import make_way
from fusemirror.control.peer_requests import PeerRequests
from fusemirror.control.primary_modes import PrimaryModes
from fusemirror.control.primary_reads import PrimaryReads, wait_ready
from fusemirror.control.primary_tasks import PrimaryTasks
from fusemirror.control.role import Role
from fusemirror.control.states import BEFORE_READY, RoleEvent, RoleState
from fusemirror.control.taking_up import TakingUp
from fusemirror.control.upkeep import Upkeep
from fusemirror.errors import (
    ConnectionLost,
    DiskFailed,
    FusemirrorError,
    OperationFailed,
    RefusedForSafety,
    RoleChanged,
    TimedOut,
)
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber
from fusemirror.limits import (
    INODES_SKIPPED,
)
from fusemirror.mirror.histories import generations_of, term_row
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.sending import Mirror
from fusemirror.mirror.states import WORDS, MirrorWord, PrimaryState
from fusemirror.operations import AnyOperation, Write
from fusemirror.promise import Promise
from fusemirror.protocol.messages import (
    DiskSpace,
    HandOver,
    Modes,
)
from fusemirror.seams import Seams
from fusemirror.settings import Access, Acknowledge, Communication, Fence, Settings
from fusemirror.volume.inode import Inode
from fusemirror.volume.rows import INODES_FROM_KEY
from fusemirror.witness.quorum import QuorumGrant

log = logging.getLogger(__name__)


class PrimaryUnit(Role):
    """See the module."""

    is_primary = True
    reads: PrimaryReads
    modes: PrimaryModes
    comparisons: Comparisons

    def __init__(
        self,
        host: HostState,
        seams: Seams,
        *,
        peer_timeout_s: float,
        io_timeout_s: float,
        fence: Fence = Fence.NEVER,
        resync_rate: int = 0,
        quorum: QuorumGrant | None = None,
        staged: CommunicationVolume | None = None,
    ) -> None:
        """`staged` holds what was asked of this host while it was the backup, which is carried out first."""
        volume = host.volume
        self.host = host
        self.life = RoleLife(RoleState.BEGINNING)
        self.meeting = PeerMeeting(host, self.life, lambda reason: self.mirror.differ(self.replica, reason))
        self.exclusive = ExclusiveAccess(volume, of_main=True)
        # The one peer of this host. An earlier process may have granted it a lease just before it ended.
        hold_until = trio.current_time() + peer_timeout_s
        self.replica = Replica(volume, volume.identity.only_peer, hold_until)
        self.mirror = Mirror(
            volume,
            (self.replica,),
            seams.random_bytes,
            io_timeout_s=io_timeout_s,
            fence=fence,
            resync_rate=resync_rate,
            quorum=quorum,
            renewal=host.news.renewal,
            others={DiskSpace: host.news.disks.hear, Modes: host.news.modes.hear},
            access=host.access,
        )
        host.open_inodes.keep_all()
        grants = LeaseGrants(host.leases, self.mirror, self.replica)
        arbiter = Deciding(host.locks, self.mirror, self.replica, seams.random_bytes, self.life.is_ready)
        host.locks.attach(arbiter)
        host.locks.io_timeout_s = io_timeout_s
        communication = None if staged is None else Communication(staged.kind)
        self.modes = PrimaryModes(self.mirror, host.news.modes, communication)
        granting = Granting(volume)
        self.reads = PrimaryReads(
            host, self.life, self.mirror, self.modes, self.exclusive, granting, grants, peer_timeout_s
        )
        decisions = Decisions(host, self.mirror)
        self.admission = Admission(host, self.life, self.mirror, self.exclusive, granting, decisions)
        self.requests = PeerRequests(
            self, self.mirror, self.replica, self.admission, granting, self.reads, grants, arbiter
        )
        upkeep = Upkeep(host, self.mirror, self.admission, decisions)
        self.comparisons = Comparisons(volume, self.mirror, self.replica, decisions)
        taking_up = TakingUp(host, self.mirror, granting, decisions, self.life, upkeep, arbiter, staged)
        self.tasks = PrimaryTasks(
            host, self.mirror, self.replica, granting, self.reads, upkeep, self.comparisons, taking_up
        )
        self.degraded = DegradedPrimary(self.life, host.links, self.mirror)
        if not generations_of(volume):
            self.mirror.begin_generation()

    def configure(self, settings: Settings) -> None:
        self.modes.configure(settings)
        self.comparisons.rate = settings.verify_rate
        self.host.locks.io_timeout_s = settings.io_timeout

    # --- changing ---------------------------------------------------------------------------------------

    async def perform(self, operation: AnyOperation, data: bytes = b"") -> Inode | None:
        self.host.check_disk()
        if self.life.state in BEFORE_READY:
            await wait_ready(self.life, self.mirror)
        if self.mirror.congested:
            await self.mirror.wait_room()
        try:
            write = await self.admission.admit(operation, len(data))
            free = self.reads.free_directory
            while operation.touched_names() and await make_way(self.host, operation, free):
                write = await self.admission.admit(operation, len(data))
            inode = self.admission.carry_out(operation, data, NO_REQUEST, write)
        except OperationFailed:
            await self.may_refuse()
            raise
        number = self.volume.number
        self.host.leases.change(operation)
        if not self.modes.shows_at_once and number > self.mirror.window.acknowledged_number:
            # What carries data has made a change of its own, so nobody else waits for its statuses.
            early = data and self.mirror.acknowledges_statuses
            if not early or not await self.mirror.statuses_taken(number):
                await self.mirror.window.acknowledged(number)
            # A host that stops serving has the change perhaps, and the other perhaps not.
            self.host.check_disk()
        return self.volume.catalog.inode(inode)

    async def may_refuse(self) -> None:
        # The error shows what is there now, so the backup must hold it too before it is told.
        if not self.modes.shows_at_once:
            if self.life.state in BEFORE_READY:
                await wait_ready(self.life, self.mirror)
            await self.mirror.window.settled(self.volume.number)
        # What is in doubt is settled, too: where the other host may have gone on, nothing is shown.
        if not self.mirror.authority.entitled:
            await self.mirror.authority.wait_entitled()

    def begin_write(self, operation: Write, data: bytes) -> Promise[Any] | None:
        mirror = self.mirror
        if (
            self.life.state is not RoleState.SERVING
            or self.modes.shows_at_once
            or self.host.access.in_effect is not Access.ROUTED
            or self.admission.granting.inodes
            or self.host.volume.health.failure is not None
            or not mirror.authority.entitled
        ):
            return None
        for replica in mirror.replicas:
            if replica.state is not PrimaryState.NORMAL or replica.congested:  # and so no fence counts
                return None
        try:
            number = self.admission.decisions.write(operation, data)
        except (OSError, FusemirrorError) as error:
            failed: Promise[Any] = Promise()
            failed.reject(self.admission.decisions.failure(operation, error))
            return failed
        return mirror.window.acknowledgement(number) if number else None

    async def drain(self, inode: InodeNumber) -> None:
        self.admission.decisions.check_recorded(inode)
        number = self.mirror.window.unsettled(inode)
        if self.modes.acknowledge is Acknowledge.ASYNC:
            await self.mirror.window.acknowledged(number)  # nobody was told yet that it may be in doubt
        else:
            await self.mirror.window.settled(number)

    async def flush(self, inode: InodeNumber) -> None:
        self.host.check_disk()
        await self.drain(inode)
        found(self.volume.catalog.inode(inode), errno.ESTALE)  # what was written to it is nowhere
        at_peer = self.mirror.durability.ask_flush(inode)  # both disks work at the same time
        try:
            await self.volume.syncing.flush(inode)
        except (OSError, DiskFailed) as error:
            raise OperationFailed(error.errno or errno.EIO) from error
        failed = await self.mirror.durability.flushed(inode, at_peer)
        if failed:
            raise OperationFailed(failed)

    # --- serving the backup -------------------------------------------------------------------------------

    async def run(
        self,
        links: "trio.MemoryReceiveChannel[Link]",
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve one link after the other, purge, and verify when asked, for ever."""
        async with trio.open_nursery() as nursery:
            await nursery.start(
                self.host.background.start, "watch", partial(self.mirror.run_watch, self.replica)
            )
            self.tasks.start(nursery)
            nursery.start_soon(self.requests.arbiter.run)
            task_status.started()
            async for link in links:
                await self.meeting.serve(link, self.run_link)

    async def run_link(self, link: Link) -> None:
        """Mirror over the link and answer its requests, until it is lost."""
        if not await self.meeting.begin(link):
            return
        await self.requests.grants.begin_link()
        self.requests.arbiter.begin_link()
        # Behind the last wait before the mirror has the link: until then its lease may end, and with it this.
        self.admission.granting.expect(owed=link.forward.peer.owes_writes)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.requests.run, link)
            nursery.start_soon(self.requests.end_reservations_of_nobody)
            nursery.start_soon(self.host.news.run, link)
            await self.mirror.serve(link, self.replica)
            nursery.cancel_scope.cancel()
        self.requests.arbiter.link_lost()
        self.host.end_link(link)

    # --- roles --------------------------------------------------------------------------------------------

    @property
    def word(self) -> MirrorWord:
        if self.replica.takes_nothing:
            return MirrorWord.DEGRADED
        word = WORDS[self.replica.state]
        return MirrorWord.RESYNCING if word is MirrorWord.NORMAL and not self.is_normal else word

    @property
    def is_normal(self) -> bool:
        return self.replica.state is PrimaryState.NORMAL and not self.replica.declined

    def begin(self, change: RoleChange, kernel_forgets_at: float) -> None:
        """Alone it begins a generation, with inodes that the other host cannot give, and acknowledges alone
        from `kernel_forgets_at` on.
        """
        # A backup that was being brought up to date holds data changes above its last record. What the other
        # host asked for in them must not count as left out, or it would do that again.
        self.volume.advance(self.volume.reached)
        if change.alone:
            first = self.volume.catalog.next_inode + INODES_SKIPPED
            self.mirror.begin_generation((Table.META, INODES_FROM_KEY, first.to_bytes(8, "big")))
            self.replica.hold(kernel_forgets_at, "taken over: the other host was not asked")
        else:
            # From here on this host is ahead, whatever the records of the two journals are.
            self.mirror.record((term_row(change.term),))

    async def ask_to_switch(self) -> None:
        await self.life.ask(RoleChange("backup", "asked for", hand_over=True)).until_done()

    async def prepare_hand_over(self) -> None:
        if self.replica.stream is None or not self.is_normal or not self.life.is_ready():
            raise RefusedForSafety(f"the mirror state is {self.word.value}, not normal; wait for it")
        with trio.move_on_after(self.mirror.authority.io_timeout_s) as limit:
            await self.mirror.durability.checkpoint()
            await self.requests.grants.recall_all()  # so that nobody waits for it when the hosts meet
        if limit.cancelled_caught:
            raise TimedOut(self.mirror.authority.io_timeout_s, "a checkpoint was not answered")

    async def hand_over(self) -> None:
        link = self.host.links.link
        try:
            with trio.move_on_after(self.mirror.authority.io_timeout_s) as limit:
                await self.admission.granting.run_out()
                self.life.meet(RoleEvent.HAND_OVER)
                await self.mirror.window.acknowledged(self.volume.number)
            if limit.cancelled_caught:
                raise TimedOut(self.mirror.authority.io_timeout_s, "a change was not acknowledged")
            stream = self.replica.stream
            if link is None or stream is None or not self.is_normal:
                raise RefusedForSafety(
                    "the link was lost meanwhile; try again when the mirror state is normal"
                )
            term = max(self.volume.identity.term, link.peer.term) + 1
            # Durable before it is said: so there is never a second primary.
            self.volume.update_identity(role="backup", term=term, handed_over=True)
        except BaseException:
            self.admission.granting.go_on()
            self.life.meet(RoleEvent.STAY)
            if self.host.links.link is not None:  # perhaps another one than at the beginning
                self.host.links.link.close("the roles were not exchanged")  # so that the backup asks again
            raise
        with suppress(ConnectionLost):
            stream.send(HandOver(term))
        with trio.move_on_after(self.reads.peer_timeout_s):
            await self.host.links.ended.wait()

    @property
    def _peer_change(self) -> ChangeNumber:
        return max(self.host.peer_durable, self.mirror.durability.peer_durable)

    def retire(self, change: RoleChange) -> None:
        self.life.meet(RoleEvent.RETIRE)
        self.host.peer_durable = self._peer_change
        self.exclusive.ranges.end(RoleChanged())
        self.admission.granting.free(self.admission.granting.granted)
        self.host.retire_link()
        self.mirror.retire(self.replica, change.known, change.peer)
        self.tasks.taking_up.retire()

    # --- in the background --------------------------------------------------------------------------------

    @property
    def access(self) -> Access:
        return self.host.access.in_effect

    async def change_access(self, access: Access) -> None:
        self.modes.take_access(access)
        await self.wait_drained()

    async def wait_connected(self) -> None:
        while self.host.links.link is None or self.replica.link is None:
            self.life.check()
            await self.mirror.changed.wait()

    async def wait_normal(self) -> None:
        while not self.is_normal:
            self.life.check()
            await self.mirror.changed.wait()

    async def wait_drained(self) -> None:
        await self.mirror.window.settled(self.volume.number)

    async def wait_safe(self) -> None:
        await self.wait_drained()

    async def stop(self, reason: str) -> None:
        if self.mirror.durability.may_checkpoint:
            try:
                await self.mirror.durability.checkpoint()
            except (FusemirrorError, OSError) as error:
                log.warning("the last checkpoint failed, the marks stay for the next mount: %s", error)
        await self.host.links.say_goodbye(reason)

    async def change_pace(self, *, rate_bytes: int | None = None, paused: bool | None = None) -> None:
        try:
            self.mirror.change_pace(rate_bytes=rate_bytes, paused=paused)
        except OSError as error:
            raise OperationFailed(error.errno or errno.EIO) from error

    def status(self) -> dict[str, Any]:
        mirror, replica, settings = self.mirror, self.replica, self.modes.settings
        return {
            "role": "primary",
            "mirror_state": self.word.value,
            "state": replica.state.name.lower(),
            "reason": mirror.shown_reason,
            "change": self.volume.number,
            "peer_change": self._peer_change,
            "disk": self.host.news.disks.status(),
            "nameless": self.host.open_inodes.nameless_status(),
            "out_of_sync": {
                "images": len(replica.out_of_sync),
                "bytes": replica.out_of_sync.size_bytes(self.volume.files.measure),
            },
            "resync": mirror.resync[replica].status,
            "communication": {
                **mirror.window.status(trio.current_time()),
                # Of this host's own, for when it is the backup.
                "capacity_bytes": 0 if settings is None else settings.communication_capacity,
            },
        }
