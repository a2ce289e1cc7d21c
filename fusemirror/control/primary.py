"""The primary's control unit: decides every change, in one order.

A change is decided, applied to the main volume and published to the mirror in one step without a
wait in between, so the order of numbers is the order in both volumes. Then its requester waits for
the acknowledgement: a program of this host here, a program of the backup over there, where the
change that comes back is its answer. Source: seed [0053]-[0057] (JOB4, JOB5).
"""

import errno
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import trio

from fusemirror.change import NamespaceChange, Row, Table, encode_change
from fusemirror.channel.link import Link
from fusemirror.channel.session import Session
from fusemirror.coherence.directory_leases import LeaseGrants
from fusemirror.coherence.lock_deciding import Deciding
from fusemirror.coherence.locks import expire
from fusemirror.communication.volume import Staged
from fusemirror.control import steps
from fusemirror.control.exclusive import ExclusiveAccess, ExclusiveWrite
from fusemirror.control.purging import purge_rows
from fusemirror.control.reservations import check_reserved
from fusemirror.control.steps import Found
from fusemirror.control.unit import VERIFY_UNDER_WAY, ControlUnit, RoleChange, found
from fusemirror.errors import (
    BadChange,
    ChannelError,
    CheckReport,
    ConnectionLost,
    DiskFailed,
    FusemirrorError,
    OperationFailed,
    RefusedForSafety,
    RoleChanged,
    TimedOut,
)
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import (
    FILE_BYTES_MAX,
    INODES_SKIPPED,
    PURGE_AFTER_S,
    PURGE_BATCH_MAX,
    PURGE_LOOKS_PER_S,
    PURGE_RECORDS_MAX,
    REQUESTS_BESIDE_MAX,
)
from fusemirror.mirror.histories import Step, claim_of, generations_of, meet
from fusemirror.mirror.repair import FromBackup, FromPrimary
from fusemirror.mirror.sending import Mirror
from fusemirror.mirror.states import PRIMARY_TAKES, WORDS, PrimaryState
from fusemirror.mirror.verify import Repair, Report, Verifier
from fusemirror.operations import AnyOperation, Key, Operation, Release, SetAttributes, Write
from fusemirror.operations.draft import Decision, Draft
from fusemirror.promise import check_task
from fusemirror.protocol.calls import (
    Call,
    ChangeAccess,
    ChangePace,
    Flush,
    Read,
    Seek,
    StartVerify,
    SwitchRoles,
    VerifyProgress,
    place_value,
)
from fusemirror.protocol.codec import refusal
from fusemirror.protocol.connection import Received
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import (
    Answer,
    AnyMessage,
    AskLock,
    CancelLock,
    DiskSpace,
    Ended,
    Excluded,
    HandOver,
    ListLocks,
    ReclaimLocks,
    ReleaseLock,
    Request,
    WantBack,
    WantNames,
)
from fusemirror.seams import Seams
from fusemirror.settings import Access, Acknowledge, Fence, Settings
from fusemirror.volume.catalog import key_inode
from fusemirror.volume.inode import Inode
from fusemirror.volume.rows import INODES_FROM_KEY
from fusemirror.volume.volume import Volume
from fusemirror.witness.permission import Permission

log = logging.getLogger(__name__)

_NAMES_WANTED_MAX = 64  # directories waiting to be asked for; more are asked for another time


class PrimaryUnit(ControlUnit):
    """See the module. `run` serves links for ever; `perform` and the reads may be called meanwhile."""

    def __init__(
        self,
        volume: Volume,
        seams: Seams,
        *,
        peer_timeout_s: float,
        io_timeout_s: float,
        fence: Fence = Fence.NEVER,
        resync_rate: int = 0,
        permission: Permission | None = None,
    ) -> None:
        super().__init__(volume)
        self.exclusive = ExclusiveAccess(volume, steps.MAIN)
        self.mirror = Mirror(
            volume,
            seams.random_bytes,
            peer_timeout_s=peer_timeout_s,
            io_timeout_s=io_timeout_s,
            fence=fence,
            resync_rate=resync_rate,
            permission=permission,
        )
        self.lease_grants = LeaseGrants(self.leases, self.mirror)
        self.lock_arbiter = Deciding(self.locks, self.mirror, seams.random_bytes, lambda: self.ready)
        self.locks.attach(self.lock_arbiter)
        self.locks.io_timeout_s = io_timeout_s
        self._names_wanted = trio.open_memory_channel[InodeNumber](_NAMES_WANTED_MAX)
        self.ready = False
        """Requests are served. Not before the other host was met, or this one goes on alone: the other may
        have taken over meanwhile, or hold changes that an earlier process of this one has lost."""
        self._made_ready = trio.Event()
        self._inherited: list[Staged] = []
        self._unanswered: list[tuple[Staged, ChangeNumber, InodeNumber]] = []
        self._own_requests: set[RequestId] = set()
        self._end_request: Callable[[RequestId], None] = volume.forget_request
        self._peer_timeout_s = peer_timeout_s
        self._acknowledge = self._acknowledge_set = Acknowledge.SYNC
        self._resync_rate = resync_rate
        self._handing_over = False
        self._hand_over_ended = trio.Event()
        self._verifier: Verifier | None = None
        self._verifier_keep = ""
        self.verify_rate = 0
        """Bytes of images per second that a comparison reads; 0 is no limit."""
        self._verify_wanted = trio.Event()
        self._orphans_since: dict[InodeNumber, float] = {}
        if not generations_of(volume):
            self.mirror.begin_generation()

    def inherit(self, before: ControlUnit) -> None:
        super().inherit(before)
        self.mirror.backup_disk = before.peer_disk
        self.mirror.renewal = self.renewal
        self.open_inodes.keep_all()
        self.lease_grants.leases = self.leases
        self.lock_arbiter.locks = self.locks
        self.locks.attach(self.lock_arbiter)

    def configure(self, settings: Settings) -> None:
        self._acknowledge_set = settings.acknowledge
        self._take_access(settings.access)
        self.verify_rate = settings.verify_rate
        self.mirror.io_timeout_s = self.locks.io_timeout_s = settings.io_timeout
        if settings.fence is not self.mirror.fence:
            self.mirror.set_fence(settings.fence)
        if settings.resync_rate != self._resync_rate:
            self._resync_rate = settings.resync_rate
            self.mirror.pace.change(rate_bytes=settings.resync_rate)

    # --- changing ---------------------------------------------------------------------------------------

    async def perform(self, operation: AnyOperation, data: bytes = b"") -> Inode | None:
        self.check_disk()
        if not self.ready:
            await self._wait_ready()
        if self.mirror.congested:
            await self.mirror.wait_room()
        try:
            write = await self._admit(operation, len(data))
            while operation.touched_names() and await self.make_way(operation):
                write = await self._admit(operation, len(data))
            inode = self._carry_out(operation, data, NO_REQUEST, write)
        except OperationFailed:
            # The error shows what is there now, so the backup must hold it too before it is told.
            if self._acknowledge is Acknowledge.SYNC:
                await self._wait_met()
                await self.mirror.settled(self.volume.number)
            raise
        number = self.volume.number
        self.leases.change(operation)
        if self._acknowledge is Acknowledge.SYNC and number > self.mirror.acknowledged_number:
            await self.mirror.acknowledged(number)
            self.check_disk()  # a host that stops serving has the change perhaps, and the other perhaps not
        return self.volume.catalog.inode(inode)

    def writes_at_once(self, data_bytes: int) -> bool:
        mirror = self.mirror
        return (
            self.ready and mirror.access is Access.ROUTED and not mirror.congested and self._may_make_changes
        )

    async def _admit(self, operation: Operation, length: int) -> ExclusiveWrite | None:
        """On return `operation` may be made, if it is at once: main is exclusive for it, where access is.

        Cancelled, nothing is left behind. `ChangesRefused`, `OperationFailed` for a reservation conflict.
        """
        while True:
            if self.mirror.fenced:
                await self.mirror.admit()
            if not self.mirror.entitled:
                await self.mirror.wait_entitled()
            if self.retired:
                raise RoleChanged
            if self._handing_over:  # it was asked before that began; what is made now nobody would ever have
                check_task()
                await self._hand_over_ended.wait()
                continue
            write = self._begin_exclusive(operation, length, self.host_identity)
            if write is None:
                return None
            await write.take_turn()
            if self._may_make_changes:
                return write
            write.meet(Found.FAILED)  # the backup, or the role, was lost while this stood by

    @property
    def _may_make_changes(self) -> bool:
        """What was decided now would not be lost, or unknown to the other host for ever."""
        mirror = self.mirror
        return not (mirror.fenced or self.retired or self._handing_over) and mirror.entitled

    def _begin_exclusive(self, operation: Operation, length: int, host: bytes) -> ExclusiveWrite | None:
        """A write that has begun to take main's exclusive status; None where none is taken."""
        if self.mirror.access is Access.ROUTED:
            return None
        return self.exclusive.begin(operation, length, host)

    def _carry_out(
        self, operation: Operation, data: Buffer, request: RequestId, write: ExclusiveWrite | None
    ) -> InodeNumber:
        """`_make`; a write keeps main's exclusive status until the backup has acknowledged."""
        if write is None or write.step is steps.Step.CONFLICT:
            return self._make(operation, data, request)
        try:
            inode = self._make(operation, data, request)
        except FusemirrorError:
            write.meet(Found.FAILED)
            raise
        self.mirror.when_settled(self.volume.number, write.transferred)
        return inode

    async def _wait_ready(self) -> None:
        check_task()
        while not self.ready:
            with trio.move_on_after(self.mirror.io_timeout_s):
                await self._made_ready.wait()
            self.check_not_retired()
            if not self.ready and not self.mirror.entitled:
                raise self.mirror.not_permitted()

    async def _get_ready(self) -> None:
        """Decide from now on; what this host had asked for as the backup goes first, in its order."""
        await self.mirror.settled_state()
        await self.not_suspended()
        inherited, self._inherited = self._inherited, []
        for staged in inherited:
            self._make_inherited(staged)
        self._follow_clock()
        self.ready = True
        self._made_ready.set()
        self.lock_arbiter.go_on()
        while self._unanswered:
            doubt: CheckReport | None = None
            try:
                await self.mirror.acknowledged(self._unanswered[0][1])
            except CheckReport as error:  # the backup was lost, and this host may not go on alone
                doubt = error
            staged, _, inode = self._unanswered.pop(0)
            if doubt is None:
                staged.answer.resolve(inode)
            else:
                staged.answer.reject(doubt)

    def _make_inherited(self, staged: Staged) -> None:
        """Carry out what the communication volume holds, once: a kept request may have been done before."""
        # Requests that no store takes up again need no name, which the journal would keep.
        identity = staged.request.identity if staged.request.kept else NO_REQUEST
        self._own_requests.add(identity)
        try:
            if identity in self.volume.requests_done:
                inode = self.volume.requests_done[identity][1]
            else:
                inode = self._make(staged.operation, staged.data, identity)
            self._unanswered.append((staged, self.volume.number, inode))
        except OperationFailed as error:
            staged.answer.reject(error)
            if self.volume.health.failure is not None:
                return  # it stays for the next mount
            if staged.acknowledged:
                self.note_failed_write(staged, error.errno)
        self._end_request(staged.request.identity)

    def _make(
        self, operation: Operation, data: Buffer, request: RequestId, *, repairs: bool = False
    ) -> InodeNumber:
        """Decide, apply and publish. On return the main volume holds it; raises `OperationFailed`.

        `repairs`: the data becomes what it was; no privileges end.
        """
        catalog = self.volume.catalog
        # Requests have an identity only where they come from the peer, or came to this host as the backup.
        of_peer = request != NO_REQUEST and request not in self._own_requests
        host = self.peer_identity if of_peer else self.host_identity
        if catalog.reservations:
            check_reserved(catalog, operation, host)
        if not self.mirror.backup_knows(operation):
            raise OperationFailed(errno.EOPNOTSUPP)
        data_bytes = len(data)
        try:
            needed = operation.space_needed(data_bytes)
            inodes = operation.inodes_needed
            if needed and not (
                self.volume.space.take(needed, inodes) and self.mirror.backup_takes(needed, inodes)
            ):
                self._check_in_place(operation, data_bytes)
            decision = self._decide(operation, data_bytes, request, host, repairs)
            change = decision.change
            if change is None:
                return decision.inode
            if change.rows and change.image and not self.mirror.backup_takes_rows:
                return self._make_in_steps(operation, data, request, host, of_peer=of_peer)
            self._publish(decision, data, is_there=of_peer)
        except OperationFailed:
            raise
        except (OSError, FusemirrorError) as error:
            if not isinstance(error, OSError | DiskFailed):
                log.error("%s failed: %s", type(operation).__name__, error)
            raise OperationFailed(error.errno or errno.EIO) from error
        if decision.new_file:
            self.volume.prepare_image(decision.inode)  # while the backup applies it: most are written next
        return decision.inode

    def _check_in_place(self, operation: Operation, data_bytes: int) -> None:
        """ENOSPC, but for what only overwrites bytes that have their room on the disk."""
        covered = operation.touched_range(self.volume.catalog, data_bytes)
        if covered is None or not self.volume.images.is_allocated(*covered):
            raise OperationFailed(errno.ENOSPC)

    def _decide(
        self, operation: Operation, data_bytes: int, request: RequestId, host: bytes, repairs: bool = False
    ) -> Decision:
        """What it does as the next change. OperationFailed."""
        volume = self.volume
        while True:
            number, time_ns = _next(volume), volume.time_ns()
            draft = Draft(volume.catalog, number, time_ns, request, host, volume.file_bytes_max, repairs)
            decision = operation.decide(draft, data_bytes)
            if decision.change is None or not self.mirror.must_begin_generation:
                return decision
            # Only now is it sure that there is a change; its number comes after the generation's.
            self.mirror.begin_generation()

    def _publish(self, decision: Decision, data: Buffer, *, is_there: bool = False) -> None:
        """Apply a change and send it. `is_there`: the backup holds the data of its own request, which crosses
        the network once.
        """
        change = decision.change
        assert change is not None
        encoded = encode_change(change)
        try:
            self.volume.apply(change, data, encoded=encoded, journal_request=change.request != NO_REQUEST)
        except (OSError, DiskFailed):
            if change.image:
                self.mirror.mend(change)
            raise
        self.mirror.publish(change, encoded, b"" if is_there else data, decision.keys, decision.old_size)

    def _make_in_steps(
        self, operation: Operation, data: Buffer, request: RequestId, host: bytes, *, of_peer: bool
    ) -> InodeNumber:
        """`_make` for a backup of an earlier version, which would leave out the rows of a change of data: it
        becomes several changes, and the last of them answers the request.
        """
        *before, last = operation.in_steps()
        for step in before:
            decision = self._decide(step, 0, NO_REQUEST, host)
            if decision.change is not None:
                self._publish(decision, b"")
        decision = self._decide(last, len(data), request, host)
        self._publish(decision, data, is_there=of_peer)
        return decision.inode

    def _publish_rows(self, rows: tuple[Row, ...], keys: tuple[Key, ...] = ()) -> None:
        """Make rows that nobody asked for a change. OSError, FusemirrorError."""
        number, time_ns = _next(self.volume), self.volume.time_ns()
        change = NamespaceChange(number, NO_REQUEST, time_ns, InodeNumber(0), rows)
        self._publish(Decision(change, InodeNumber(0), keys), b"")

    async def settle(self, inode: InodeNumber) -> None:
        number = self.mirror.unsettled(inode)
        if self._acknowledge is Acknowledge.ASYNC:
            await self.mirror.acknowledged(number)  # nobody was told yet that it may be in doubt
        else:
            await self.mirror.settled(number)

    async def flush(self, inode: InodeNumber) -> None:
        self.check_disk()
        await self.settle(inode)
        found(self.volume.catalog.inode(inode), errno.ESTALE)  # what was written to it is nowhere
        at_peer = self.mirror.ask_flush(inode)  # both disks work at the same time
        try:
            await self.volume.flush(inode)
        except (OSError, DiskFailed) as error:
            raise OperationFailed(error.errno or errno.EIO) from error
        failed = await self.mirror.flushed(inode, at_peer)
        if failed:
            raise OperationFailed(failed)

    @property
    def peer_durable(self) -> ChangeNumber:
        return self.mirror.peer_durable

    @property
    def peer_disk(self) -> DiskSpace | None:
        return self.mirror.backup_disk

    # --- reading ----------------------------------------------------------------------------------------

    async def _wait_met(self) -> None:
        if not self.ready:
            await self._wait_ready()

    async def showable(self, key: Key) -> None:
        self.check_disk()
        await self._wait_met()
        # In main's order this host sees what the backup sees a little later, if it need not wait for that.
        while self._acknowledge is Acknowledge.SYNC and (number := self.mirror.unsettled(key)):
            await self.mirror.settled(number)
        if not self.mirror.entitled:
            await self.mirror.wait_entitled()

    def shows_at_once(self, inode: InodeNumber) -> bool:
        mirror = self.mirror
        if self.retired or not self.ready or not mirror.entitled or mirror.unsettled(inode):
            return False
        return not self.exclusive.ranges.is_exclusive(inode, 0, FILE_BYTES_MAX)

    def cacheable_s(self, key: Key) -> float:
        # No longer than a backup would wait before it takes over from a killed process, whose mount is
        # still there with all that its kernel keeps.
        return 0.0 if self.mirror.unsettled(key) else self.mirror.shows_for_s(self._peer_timeout_s)

    def want_lease(self, directory: InodeNumber) -> None:
        with suppress(trio.WouldBlock):  # another time
            self._names_wanted[0].send_nowait(directory)

    async def _hold_names(self) -> None:
        directory = await self._names_wanted[1].receive()
        await self.lease_grants.take(directory)

    async def free_directory(self, directory: InodeNumber, *, of_change: bool) -> None:
        with trio.move_on_after(self.mirror.io_timeout_s):
            await self.lease_grants.free(directory, of_change=of_change)
            return
        raise self.mirror.not_permitted()

    async def read(self, inode: InodeNumber, offset: int, length: int) -> bytes:
        await self._wait_readable(inode, offset, length)
        return self.read_here(inode, offset, length)

    async def seek(self, inode: InodeNumber, offset: int, *, data: bool) -> int:
        await self._wait_readable(inode, offset, FILE_BYTES_MAX - offset)
        return self.seek_here(inode, offset, data=data)

    async def _wait_readable(self, inode: InodeNumber, offset: int, length: int) -> None:
        """Return when programs of this host may see these bytes; without a checkpoint since they may."""
        self.check_disk()
        await self._wait_met()
        claim = await self.exclusive.stand_by(inode, offset, offset + length)
        try:
            if self._acknowledge is Acknowledge.SYNC:
                await self._wait_settled(inode, offset, length)
            if not self.mirror.entitled:
                await self.mirror.wait_entitled()
        finally:
            if claim is not None:
                self.exclusive.ranges.release(claim)

    async def _wait_settled(self, inode: InodeNumber, offset: int, length: int) -> None:
        """Return when the backup holds these bytes as they are here."""
        while number := self.mirror.unsettled_range(inode, offset, offset + length):
            await self.mirror.settled(number)
        self.check_disk()

    # --- serving the backup -------------------------------------------------------------------------------

    async def run(
        self,
        links: "trio.MemoryReceiveChannel[Link]",
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve one link after the other, purge, and verify when asked, for ever."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.background.start, "watch", self.mirror.run_watch)
            nursery.start_soon(self._get_ready)
            for task, work in (
                ("purge", self._purge_in_time),
                ("names", self._hold_names),
                ("verify", self._verify_when_wanted),
                ("commit", self._commit_in_time),
                ("freeing", self.volume.free_discarded),
                ("locks", lambda: expire(self.locks)),
            ):
                nursery.start_soon(self.background.repeat, task, work)
            nursery.start_soon(self.lock_arbiter.run)
            task_status.started()
            async for link in links:
                await self.serve_link(link)

    async def run_link(self, link: Link) -> None:
        """Mirror over the link and answer its requests, until it is lost."""
        self.link, self.link_ended = link, trio.Event()
        step = meet(claim_of(self.volume), link.peer.claim)
        self.learn_name(link.peer)
        self.compare_clocks(link.peer)
        if step is not Step.LINK:
            await self.run_unmirrored(link, step)
            self.end_link(link)
            return
        await self.lease_grants.begin_link()
        self.lock_arbiter.begin_link()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.run_requests, link)
            nursery.start_soon(self._end_reservations_of_nobody)
            nursery.start_soon(self.tell_disk, link)
            nursery.start_soon(self.renewal.tell, link)
            await self.mirror.serve(link)
            nursery.cancel_scope.cancel()
        self.end_link(link)

    async def _end_reservations_of_nobody(self) -> None:
        """End what a host holds in whose place there is another now: that one could not release it."""
        hosts = (self.host_identity, self.peer_identity)
        left = [inode for inode, held in self.volume.catalog.reservations.items() if held.holder not in hosts]
        if not left:
            return
        await self.mirror.settled_state()
        for inode in left:
            with suppress(CheckReport, OperationFailed):  # the next link finds it still there
                await self.perform(Release(inode, preempt=True))

    async def run_requests(self, link: Link) -> None:
        """Read the forward path; what needs waiting is done beside it."""
        session = link.forward
        async with trio.open_nursery() as nursery:

            def serve_in_place(received: list[Received]) -> list[Received]:
                """Changes, where nothing else came with them."""
                if not all(_is_change(message) for message, _ in received):
                    return received
                self._serve_messages(link, received, nursery)
                return []

            try:
                while True:
                    self._serve_messages(link, await session.receive(serve_in_place), nursery)
            except ChannelError as error:
                link.end(session, error)
            except (FusemirrorError, OSError) as error:
                log.error("the requests of the backup cannot be served over this link: %s", error)
                link.close(str(error))
            nursery.cancel_scope.cancel()

    def _serve_messages(self, link: Link, received: list[Received], nursery: trio.Nursery) -> None:
        if len(received) == 1:
            self._serve_message(link.forward, *received[0], nursery)
            return
        with link.mirror.corked():  # what came together goes back together
            for message, data in received:
                self._serve_message(link.forward, message, data, nursery)

    def _serve_message(
        self, session: Session, message: AnyMessage, data: Buffer, nursery: trio.Nursery
    ) -> None:
        state = self.mirror.state
        if state not in PRIMARY_TAKES.get(type(message), ()):
            raise refusal(session.peer_name, message, f"it came when the mirror was {state.name.lower()}")
        if type(message) is Request:
            self._serve_request(session, message, data, nursery)
            return
        if len(nursery.child_tasks) >= REQUESTS_BESIDE_MAX:
            raise refusal(session.peer_name, message, "too many of its kind at once")
        if type(message) is Ended:
            self._forget_ended(message.oldest_live, session.peer.instance)
        elif type(message) is WantNames:
            nursery.start_soon(self.lease_grants.grant, message.directory)
        elif type(message) is WantBack:
            free = partial(self.lease_grants.free_for_peer, of_change=message.of_change)
            nursery.start_soon(free, message.directory)
        elif type(message) is AskLock:
            self.lock_arbiter.asked(session, message)
        elif type(message) is ReleaseLock:
            self.lock_arbiter.released(session, message)
        elif type(message) is CancelLock:
            self.lock_arbiter.cancelled(session, message)
        elif type(message) is ReclaimLocks:
            self.lock_arbiter.reclaimed(session, message)
        elif type(message) is ListLocks:
            self.lock_arbiter.list_own(session, message)
        else:
            raise refusal(session.peer_name, message, "it came on the wrong path")

    def _forget_ended(self, oldest_live: RequestId, instance: bytes) -> None:
        """Forget what was done of requests that stand before one in the backup's order.

        Those of the process that speaks come last. Of other processes the order is not known: theirs
        are forgotten once none of them is left.
        """
        theirs = oldest_live[: len(instance)]
        for request in list(self.volume.requests_done):
            ended = request < oldest_live if request.startswith(theirs) else theirs == instance
            if ended:
                self.volume.forget_request(request)

    def _serve_request(self, session: Session, request: Request, data: Buffer, nursery: trio.Nursery) -> None:
        operation, identity = request.operation, request.identity
        try:
            operation.check()
        except OperationFailed as error:
            _answer(session, Answer(identity, errno=error.errno, after=self.volume.number))
            return
        if isinstance(operation, Call):
            if len(nursery.child_tasks) >= REQUESTS_BESIDE_MAX:
                raise refusal(session.peer_name, request, "too many of its kind at once")
            nursery.start_soon(self._answer, session, identity, operation)
            return
        if self._handing_over:
            return  # the backup still has it, and carries it out as the primary
        if self.mirror.fenced or self.volume.health.failure is not None:
            return  # the link is ending; the backup asks again over the next
        done = self.volume.requests_done.get(identity)
        if done is not None:
            nursery.start_soon(partial(self._answer_again, session, identity, *done))
            return
        # A kept one comes from routed access: what its host asks after it must not pass it.
        write = None if request.kept else self._begin_exclusive(operation, len(data), self.peer_identity)
        if write is not None and write.step is steps.Step.STANDING_BY:
            # The task has the write before the link can be lost, so that it ends with it.
            nursery.start_soon(self._serve_in_turn, session, identity, operation, bytes(data), write)
            session.send(Excluded(identity))
            return
        try:
            self._carry_out(operation, data, identity, write)
        except OperationFailed as error:
            self._refuse(session, identity, error)

    def _refuse(self, session: Session, identity: RequestId, error: OperationFailed) -> None:
        """Answer that nothing was done. Not where the disk failed: the backup then keeps the request that it
        may have acknowledged, for the next mount of this host, or carries it out itself.
        """
        if self.volume.health.failure is None:
            _answer(session, Answer(identity, errno=error.errno, after=self.volume.number))

    async def _serve_in_turn(
        self, session: Session, identity: RequestId, operation: Operation, data: bytes, write: ExclusiveWrite
    ) -> None:
        """The backup has given up the subvolume's status; its data waits here, so that it travels once."""
        try:
            await write.take_turn()
            if self.mirror.fenced or self.retired or self._handing_over:
                write.meet(Found.FAILED)
                return  # the link is ending; the backup asks again over the next, or carries it out itself
            self._carry_out(operation, data, identity, write)
        except OperationFailed as error:
            self._refuse(session, identity, error)

    async def _answer_again(
        self, session: Session, identity: RequestId, number: ChangeNumber, inode: InodeNumber
    ) -> None:
        """A request sent again after a broken path took effect once already (G4); its success is told
        once both volumes have it.
        """
        await self.mirror.settled(number)
        _answer(session, Answer(identity, after=number, inode=inode))

    async def _answer(self, session: Session, identity: RequestId, call: Call) -> None:
        """Answer a call of the backup; a hand-over that succeeds ends the link instead."""
        data, value, error = b"", b"", 0
        try:
            match call:
                case Read(inode=inode, offset=offset, length=length):
                    # Whatever this host shows its own programs: the backup must not read ahead of its copy.
                    await self._wait_settled(inode, offset, length)
                    await session.wait_room()  # a peer that asks for much, and takes little, gets it later
                    data = self.read_here(inode, offset, length)
                case Seek(inode=inode, offset=offset, data=of_data):
                    await self._wait_settled(inode, offset, FILE_BYTES_MAX)
                    value = place_value(self.seek_here(inode, offset, data=of_data))
                case Flush(inode=inode):
                    await self.flush(inode)
                case StartVerify(keep=keep):
                    await self.verify(keep)
                case VerifyProgress():
                    value = msgspec.json.encode(await self.verify_report())
                case ChangePace(rate_bytes=rate_bytes, paused=paused):
                    await self.change_pace(rate_bytes=rate_bytes, paused=paused)
                case ChangeAccess(access=access):
                    await self.change_access(access)
                case SwitchRoles():
                    await self._switch_for_backup()
                    return
        except RefusedForSafety:
            error = errno.EBUSY
        except (FusemirrorError, OSError) as failed:
            error = failed.errno or errno.EIO
        _answer(session, Answer(identity, errno=error, value=value), data)

    async def _switch_for_backup(self) -> None:
        """Hand the role over. OperationFailed (EAGAIN) where that cannot be, or came to nothing."""
        if self.mirror.state is not PrimaryState.NORMAL or self.role_change.settled:
            raise OperationFailed(errno.EAGAIN)
        change = RoleChange("backup", "asked for by the backup", hand_over=True)
        self.role_change.resolve(change)
        try:
            await change.done.wait()
        except (FusemirrorError, OSError):
            raise OperationFailed(errno.EAGAIN) from None

    # --- roles --------------------------------------------------------------------------------------------

    def _show_diverged(self, reason: str) -> None:
        self.mirror.differ(reason)

    def take_up(self, pending: list[Staged], end: Callable[[RequestId], None]) -> None:
        """Carry out first what was asked of this host while it was the backup; `end` retires a request."""
        self._inherited, self._end_request = pending, end

    def go_alone(self, since: float) -> None:
        """Without the other host: in a line of its own, with inodes that it cannot give, and acknowledging
        alone from `since` on (trio time).
        """
        first = self.volume.catalog.next_inode + INODES_SKIPPED
        self.mirror.begin_generation((Table.META, INODES_FROM_KEY, first.to_bytes(8, "big")))
        self.mirror.hold_until(since, "taken over: the other host was not asked")

    async def prepare_hand_over(self) -> None:
        """Make both volumes durable, so that little is compared afterwards. RefusedForSafety, TimedOut."""
        stream = self.mirror.stream
        if stream is None or self.mirror.state is not PrimaryState.NORMAL:
            raise RefusedForSafety(
                f"the mirror state is {WORDS[self.mirror.state].value}, not normal; wait for it"
            )
        with trio.move_on_after(self.mirror.io_timeout_s) as limit:
            await self.mirror.checkpoint(stream)
            await self.lease_grants.recall_all()  # so that nobody waits for it when the hosts meet
        if limit.cancelled_caught:
            raise TimedOut(self.mirror.io_timeout_s, "a checkpoint was not answered")

    async def hand_over(self) -> None:
        """Give the role to the backup. Nothing may be asked of this unit meanwhile.

        On return this host is the backup, durably, and the other has heard of it, or will when they meet
        again. On an error everything is as before, and the link is closed. RefusedForSafety, TimedOut.
        """
        link = self.link
        self._handing_over, self._hand_over_ended = True, trio.Event()
        try:
            with trio.move_on_after(self.mirror.io_timeout_s) as limit:
                await self.mirror.acknowledged(self.volume.number)
            if limit.cancelled_caught:
                raise TimedOut(self.mirror.io_timeout_s, "a change was not acknowledged")
            stream = self.mirror.stream
            if link is None or stream is None or self.mirror.state is not PrimaryState.NORMAL:
                raise RefusedForSafety(
                    "the link was lost meanwhile; try again when the mirror state is normal"
                )
            term = max(self.volume.identity.term, link.peer.term) + 1
            # Durable before it is said: so there is never a second primary.
            self.volume.update_identity(role="backup", term=term, handed_over=True)
        except BaseException:
            self._handing_over = False
            self._hand_over_ended.set()
            if self.link is not None:  # perhaps another one than at the beginning
                self.link.close("the roles were not exchanged")  # so that the backup asks again
            raise
        with suppress(ConnectionLost):
            stream.send(HandOver(term))
        with trio.move_on_after(self._peer_timeout_s):
            await self.link_ended.wait()

    def retire(self, known: ChangeNumber) -> None:
        super().retire(known)
        self.mirror.retire(known)
        self._made_ready.set()
        self._hand_over_ended.set()
        # What was not made yet is still staged, and the backup of now forwards it.
        for staged, number, inode in self._unanswered:
            if number <= self.mirror.acknowledged_number:
                staged.answer.resolve(inode)
            else:
                staged.answer.reject(RoleChanged())

    # --- in the background --------------------------------------------------------------------------------

    async def _commit_in_time(self) -> None:
        await self.wait_commit_due()
        self._follow_clock()
        await self.make_names_durable()

    def _follow_clock(self) -> None:
        """Where the newest change is too far ahead of this host's clock, set it back.

        Not where that would be the first change without the backup: it is done with the one that is.
        """
        self.look_at_clock()
        if self.volume.set_back() is None or not self._may_make_changes or self.mirror.must_begin_generation:
            return
        try:
            self.mirror.record(())
        except (OSError, DiskFailed) as error:
            log.warning("changes do not follow this host's clock yet, which will be tried again: %s", error)

    async def _purge_in_time(self) -> None:
        await trio.sleep(max(PURGE_AFTER_S / 2, len(self._orphans_since) / PURGE_LOOKS_PER_S))
        await self._purge()

    async def _purge(self) -> None:
        """End inodes without names that neither host has open (`mirror/holdings.py`).

        They stay for `PURGE_AFTER_S`: a program on either host may have looked the name up just
        before it went, and may open the inode yet, as it could on a local disk.
        """
        if self.volume.health.failure is not None:
            return
        now, since = trio.current_time(), self._orphans_since
        self._orphans_since = {inode: since.get(inode, now) for inode in self.volume.catalog.orphans()}
        old = [inode for inode, since_s in self._orphans_since.items() if now - since_s >= PURGE_AFTER_S]
        for start in range(0, len(old), PURGE_BATCH_MAX):
            batch = self.let_go(old[start : start + PURGE_BATCH_MAX])
            while batch and await self._purge_some(batch):
                if self.mirror.congested:
                    await self.mirror.wait_room()
            await trio.lowlevel.checkpoint()

    async def _purge_some(self, inodes: list[InodeNumber]) -> bool:
        """End those of these inodes that neither host has open; whether some are left of what may go."""
        not_held = await self.mirror.not_held(inodes)
        # No program here opens one between this look and the purge: there is no checkpoint.
        free = [inode for inode in not_held if not self.is_open(inode)]
        if not self.ready or not self._may_make_changes or self.mirror.must_begin_generation:
            return False
        for _ in range(PURGE_RECORDS_MAX):
            rows = purge_rows(self.volume.catalog, free)
            if not rows:
                return False
            self._publish_rows(rows)
        return True

    async def _verify_when_wanted(self) -> None:
        await self._verify_wanted.wait()
        self._verify_wanted = trio.Event()
        assert self._verifier is not None
        await self._verifier.run()
        self.mirror.written_since = None

    @property
    def access(self) -> Access:
        return self.mirror.access

    async def change_access(self, access: Access) -> None:
        self._take_access(access)
        await self.wait_drained()

    def _take_access(self, access: Access) -> None:
        if access is not self.mirror.access:
            self.mirror.announce_access(access)
        # Whoever reads on the other host must see what was acknowledged here: exclusive access promises it.
        exclusive = access is Access.EXCLUSIVE
        self._acknowledge = Acknowledge.SYNC if exclusive else self._acknowledge_set

    def modes_in_effect(self) -> dict[str, str]:
        return {"access": str(self.access), "acknowledge": str(self._acknowledge)}

    async def wait_connected(self) -> None:
        while self.link is None or self.mirror.link is None:
            self.check_not_retired()
            await self.mirror.changed.wait()

    async def wait_normal(self) -> None:
        while self.mirror.state is not PrimaryState.NORMAL:
            self.check_not_retired()
            await self.mirror.changed.wait()

    async def wait_drained(self) -> None:
        await self.mirror.settled(self.volume.number)

    async def stop(self, reason: str) -> None:
        stream = self.mirror.stream
        if stream is not None and self.mirror.streams:
            try:
                await self.mirror.checkpoint(stream)
            except (FusemirrorError, OSError) as error:
                log.warning("the last checkpoint failed, the marks stay for the next mount: %s", error)
        await self.say_goodbye(reason)

    async def verify(self, keep: str = "") -> None:
        if self._verifier is not None and self._verifier.report.running:
            if self._verifier_keep != keep:
                raise RefusedForSafety(VERIFY_UNDER_WAY)
            return
        repair: Repair | None = None
        if keep:
            repair = FromPrimary(self.volume) if keep == "primary" else FromBackup(self.mirror, self)
        self._verifier_keep = keep
        self._verifier = Verifier(
            self.mirror,
            bytes_per_second=self.verify_rate,
            link_timeout_s=self.mirror.io_timeout_s,
            repair=repair,
        )
        self._verify_wanted.set()

    def restore_rows(self, rows: tuple[Row, ...]) -> None:
        """Make rows of the backup, found by a repair, a change of both volumes. FusemirrorError, OSError."""
        inodes = tuple({key_inode(key) for table, key, _ in rows if table != Table.META})
        contradiction = self.volume.catalog.contradiction(rows, retyped=True)
        if contradiction is not None:
            raise BadChange(contradiction)
        if rows:
            self._publish_rows(rows, inodes)

    def restore_length(self, inode: InodeNumber) -> None:
        """Make both images as long as the row says. OperationFailed."""
        size = found(self.volume.catalog.inode(inode), errno.ESTALE).size
        self._make(SetAttributes(inode, size=size), b"", NO_REQUEST, repairs=True)

    def restore_data(self, inode: InodeNumber, offset: int, data: bytes) -> None:
        """Make bytes of the backup a change of both volumes. OperationFailed."""
        self._make(Write(inode, offset), data, NO_REQUEST, repairs=True)

    async def verify_report(self) -> dict[str, Any]:
        report = self._verifier.report if self._verifier is not None else Report(running=False)
        return msgspec.structs.asdict(report)

    async def change_pace(self, *, rate_bytes: int | None = None, paused: bool | None = None) -> None:
        try:
            self.mirror.change_pace(rate_bytes=rate_bytes, paused=paused)
        except OSError as error:
            raise OperationFailed(error.errno or errno.EIO) from error

    def status(self) -> dict[str, Any]:
        mirror = self.mirror
        return {
            "role": "primary",
            "mirror_state": "degraded" if mirror.takes_nothing else WORDS[mirror.state].value,
            "state": mirror.state.name.lower(),
            "reason": mirror.told_reason,
            "change": self.volume.number,
            "peer_change": mirror.peer_durable,
            "disk": self.disk_status(),
            "nameless": self.nameless_status(),
            "out_of_sync": {
                "images": len(mirror.out_of_sync),
                "bytes": mirror.out_of_sync.size_bytes(self.volume.measure),
            },
            "resync": mirror.resync_status,
            "communication": mirror.pending_status(),
        }


def _is_change(message: AnyMessage) -> bool:
    """Whether it asks for a change, which is decided at once."""
    return type(message) is Request and isinstance(message.operation, Operation)


def _answer(session: Session, answer: Answer, data: Buffer = b"") -> None:
    """Answer, unless the session has ended, or ends by this: the backup then asks again over the next."""
    with suppress(ConnectionLost):
        session.send(answer, data)


def _next(volume: Volume) -> ChangeNumber:
    return ChangeNumber(volume.number + 1)
