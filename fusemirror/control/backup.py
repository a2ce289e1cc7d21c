"""The backup's control unit: stages every request, forwards it, and serves reads from the subvolume.

A request waits here until the change that names it has come back and is applied, or until the
primary says that it made no change. Reads are served from the subvolume while the primary's lease
lasts: the primary shows no effect that is not here yet, and goes on alone only once the lease is
over, so what is read here is never old (G2). Source: seed [0050], [0051] (JOB1, JOB3), [0061].
"""

import errno
import logging
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import msgspec
import trio

from fusemirror.channel.link import Link
from fusemirror.channel.session import Session
from fusemirror.coherence.directory_leases import LeaseRequests
from fusemirror.coherence.lock_asking import Asking
from fusemirror.coherence.locks import expire
from fusemirror.communication.outstanding import Outstanding
from fusemirror.communication.volume import CommunicationVolume, Staged
from fusemirror.control import steps
from fusemirror.control.calling import Calls
from fusemirror.control.exclusive import ExclusiveAccess, ExclusiveWrite
from fusemirror.control.overlay import attributes_with, content_with
from fusemirror.control.steps import Found
from fusemirror.control.unit import VERIFY_UNDER_WAY, ControlUnit, RoleChange, found
from fusemirror.errors import (
    ChannelError,
    CheckReport,
    ConnectionLost,
    NamesMissing,
    OperationFailed,
    PrimaryUnreachable,
    RefusedForSafety,
    TimedOut,
)
from fusemirror.identifiers import ROOT_INODE, ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import (
    BACKLOG_BYTES_MAX,
    ENDED_INTERVAL_S,
    FILE_BYTES_MAX,
    GATHERED_BYTES_MAX,
    KERNEL_DELAY_S,
    PRIMARY_AWAY_PATIENCE_S,
    UNSENT_BYTES,
)
from fusemirror.mirror.applying import Applier, Handler
from fusemirror.mirror.histories import Step, claim_of, meet
from fusemirror.mirror.states import WORDS, BackupState
from fusemirror.mirror.verify import Report
from fusemirror.operations import AnyOperation, Key, Operation
from fusemirror.printable import counted
from fusemirror.promise import check_task
from fusemirror.protocol.calls import (
    AnyCall,
    ChangeAccess,
    ChangePace,
    Flush,
    Read,
    Seek,
    StartVerify,
    SwitchRoles,
    VerifyProgress,
    place_in,
)
from fusemirror.protocol.checks import check_answer
from fusemirror.protocol.codec import refusal
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import (
    Answer,
    DiskSpace,
    Ended,
    Excluded,
    FreeNames,
    HoldNames,
    KeyNews,
    LendNames,
    LockAnswer,
    LocksListed,
    LocksReclaimed,
    RecallNames,
    Request,
    ShareNames,
)
from fusemirror.settings import Access, Acknowledge, Settings
from fusemirror.volume.inode import Inode
from fusemirror.volume.volume import Volume

log = logging.getLogger(__name__)

T = TypeVar("T")

_IDENTITY = struct.Struct(">8sQ")


class BackupUnit(ControlUnit):
    """See the module. `run` serves links for ever; `perform` and the reads may be called meanwhile."""

    def __init__(
        self,
        volume: Volume,
        communication: CommunicationVolume,
        instance: bytes,
        *,
        io_timeout_s: float,
        stale_reads: bool,
        access: Access = Access.ROUTED,
    ) -> None:
        """`access` is in effect until the primary says which one is."""
        super().__init__(volume)
        self.exclusive = ExclusiveAccess(volume, steps.SUBVOLUME)
        self.lease_requests = LeaseRequests(self.leases, communication)
        self.asking = Asking(self.locks, communication, self._check_report, self._send_gathered)
        self.locks.attach(self.asking)
        self.locks.io_timeout_s = io_timeout_s
        others: dict[type, Handler] = {
            LendNames: self.lease_requests.granted,
            HoldNames: self.lease_requests.taken,
            ShareNames: self.lease_requests.shared,
            RecallNames: self.lease_requests.recalled,
            FreeNames: self.lease_requests.freed,
            DiskSpace: self._take_disk_space,
            KeyNews: lambda message, _, session: self.renewal.take(message, session),
            LockAnswer: self.asking.answered,
            LocksReclaimed: self.asking.taken,
            LocksListed: self.asking.listed,
        }
        self.applier = Applier(volume, communication, self.give_up, self._take_role, others)
        self.applier.access = access
        self.communication = communication
        self.calls = Calls()
        self._primary_disk: DiskSpace | None = None
        self.forwarded_total = 0
        """How often a staged request was sent."""
        self._instance = instance
        self._acknowledge = Acknowledge.SYNC
        self._io_timeout_s = io_timeout_s
        self._stale_reads = stale_reads
        self._reported = False
        self._queue: deque[Outstanding[Any]] | None = None  # what must go first, while there is a link
        self._queued = trio.Event()
        self._gathered_bytes = 0  # of data that waits in the queue for more to go with it
        self._last_kept: Outstanding[Any] | None = None  # the newest of the kept ones that were sent
        self._writes: dict[RequestId, ExclusiveWrite] = {}  # that ask main, by their request
        self._early: deque[tuple[Answer, bytes]] = deque()  # answers that a change must precede

    def inherit(self, before: ControlUnit) -> None:
        super().inherit(before)
        self._primary_disk = before.peer_disk
        self.lease_requests.leases = self.leases
        self.asking.locks = self.locks
        self.asking.in_doubt = bool(self.locks.own())
        self.locks.attach(self.asking)

    @property
    def peer_disk(self) -> DiskSpace | None:
        return self._primary_disk

    def _take_disk_space(self, message: DiskSpace, _: Buffer, __: Session) -> None:
        self._primary_disk = message

    def configure(self, settings: Settings) -> None:
        self._acknowledge = settings.acknowledge
        self._io_timeout_s = self.locks.io_timeout_s = settings.io_timeout
        self._stale_reads = settings.stale_reads
        self.communication.capacity_bytes = settings.communication_capacity

    def modes_in_effect(self) -> dict[str, str]:
        exclusive = self.access is Access.EXCLUSIVE
        return {
            "access": str(self.access),
            "acknowledge": str(Acknowledge.SYNC if exclusive else self._acknowledge),
            "communication": self.communication.kind,
        }

    # --- changing: JOB1 stages and waits, JOB3 transfers ---------------------------------------------------

    async def perform(self, operation: AnyOperation, data: bytes = b"") -> Inode | None:
        self.check_disk()
        if self.applier.access is Access.EXCLUSIVE:
            number = await self._request_exclusively(operation, data)
        else:
            kept = self._acknowledge is Acknowledge.ASYNC and self._writes_behind(operation, data)
            number = await self._request(operation, data, kept=kept)
        self.leases.change(operation)
        self.check_disk()  # it failed meanwhile: nothing is looked up there any more
        inode = self.volume.catalog.inode(number) if number else None
        return inode and self.shown(inode)

    def writes_at_once(self, data_bytes: int) -> bool:
        routed = self.applier.access is Access.ROUTED
        return routed and not self.retired and self.communication.has_room(data_bytes)

    async def _request_exclusively(self, operation: AnyOperation, data: bytes) -> InodeNumber:
        """`_request`, with the subvolume's exclusive status taken first (Fig. 17, steps 858-861)."""
        if self.volume.catalog.reservations:
            await self.showable(operation.image or ROOT_INODE)
        write = self.exclusive.begin(operation, len(data), self.host_identity)
        if write is None:
            return await self._request(operation, data)
        if write.step is not steps.Step.TRANSFERRING:
            await self._in_time(write.take_turn)
        try:
            number = await self._request(operation, data, write=write)
        except OperationFailed as error:
            write.meet(Found.RESERVED if error.errno == errno.EBUSY else Found.FAILED)
            raise
        except BaseException:
            write.meet(Found.FAILED)
            raise
        write.transferred()
        return number

    async def _in_time(self, wait: Callable[[], Awaitable[T]]) -> T:
        """What `wait` returns; a check report where that takes longer than `io_timeout`."""
        check_task()
        with trio.move_on_after(self._io_timeout_s):
            return await wait()
        raise self._check_report()

    def _main_is_exclusive(self, identity: RequestId) -> None:
        """Steps 832, 851, 833: give up the subvolume's status; the request stands by at main."""
        write = self._writes.pop(identity, None)
        if write is not None:
            write.meet(Found.MAIN_EXCLUSIVE)

    def _writes_behind(self, operation: Operation, data: bytes) -> bool:
        """Whether it is acknowledged as soon as it is staged. What is reserved the primary refuses, and the
        program is to hear so."""
        volume = self.volume
        may = operation.may_be_written_behind(volume.catalog, len(data), volume.file_bytes_max)
        return may and not self.exclusive.is_reserved(operation, self.host_identity)

    async def _request(
        self,
        operation: AnyOperation,
        data: bytes = b"",
        *,
        kept: bool = False,
        write: ExclusiveWrite | None = None,
    ) -> InodeNumber:
        """Stage a request, forward it, and return the inode that it answers with, or 0.

        A kept one is answered as soon as the communication volume holds it (Fig. 9), others when both
        volumes have the change (Fig. 8). Raises `OperationFailed` for the primary's refusal,
        `PrimaryUnreachable` after `io_timeout`. Cancelled, the request stays staged, and takes effect or not.
        """
        self.check_disk()
        if not self.communication.has_room(len(data)):
            await self._while_progressing(self.communication.wait_room, len(data))
        if operation.touched_names():
            await self.make_way(operation)
        self.check_not_retired()
        identity = self._next_identity()
        time_ns = self.volume.staging_time_ns() if kept else 0
        staged = self.communication.stage(Request(identity, operation, kept), data, time_ns)
        if kept:
            self.volume.watcher.data_changed(operation.image, own=True)  # the overlay shows it from soon on
        if write is None:
            self._forward(staged)
            if operation.carries_data:
                self.volume.prepare_image(operation.image)  # while the primary carries it out
            return await staged.answer.wait()
        self._writes[identity] = write
        try:
            self._forward(staged)
            return await staged.answer.wait()
        finally:
            self._writes.pop(identity, None)

    async def _call(self, call: AnyCall) -> tuple[Answer, bytes]:
        """Make a call behind all that was staged so far, and return its answer. Raises as `_request` does.

        Cancelled, it is made all the same, and nobody hears the answer.
        """
        self.check_disk()
        if self.calls.is_full():
            await self._in_time(self.calls.wait_room)
        self.check_not_retired()
        outstanding = self.calls.begin(Request(self._next_identity(), call), self.communication.next_serial)
        self._forward(outstanding)
        return await outstanding.answer.wait()

    def _next_identity(self) -> RequestId:
        self.request_serial += 1
        return self._identity(self.request_serial - 1)

    def _identity(self, serial: int) -> RequestId:
        return RequestId(_IDENTITY.pack(self._instance, serial))

    async def _while_progressing(self, wait: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Wait as long as requests end; `PrimaryUnreachable` once none did for `io_timeout`."""
        check_task()
        while True:
            retired = self.communication.retired_total
            with trio.move_on_after(self._io_timeout_s):
                await wait(*arguments)
                return
            if self.communication.retired_total == retired:
                raise self._check_report()

    def _forward(self, outstanding: Outstanding[Any]) -> None:
        """Send it at once, or after those that must go first.

        Nobody waits for kept requests. While some are on their way, others gather, and go together when
        those have ended: each costs both hosts less, and none waits for a clock (RFC 896).
        """
        if self._queue is None or self.link is None:
            return  # all that is pending is sent, in its order, once the backup serves
        gathers = outstanding.request.kept and not self.communication.answers_first
        before = self._last_kept if gathers else None
        if before is not None and not before.retired and self._gathered_bytes < GATHERED_BYTES_MAX:
            before.when_retired = self._send_gathered
            self._gathered_bytes += len(outstanding.data)
            self._queue.append(outstanding)
            return
        if self._queue or self.link.forward.backlog_bytes > BACKLOG_BYTES_MAX:
            self._queue.append(outstanding)
            self._send_gathered()
            return
        with suppress(ConnectionLost):  # it is sent again over the next link
            self._send(self.link, outstanding)

    def _send_gathered(self) -> None:
        if self._queue:
            self._queued.set()

    def _send(self, link: Link, outstanding: Outstanding[Any]) -> None:
        asked = outstanding.request.operation
        if asked.peer_says and not getattr(link.peer, asked.peer_says):
            self._end_unsent(outstanding)
            return
        outstanding.sent_at = trio.current_time()
        if outstanding.request.kept:
            self._last_kept = outstanding
        link.forward.send_encoded(outstanding.encoded, outstanding.data)
        self.forwarded_total += type(outstanding) is Staged

    def _end_unsent(self, outstanding: Outstanding[Any]) -> None:
        """EOPNOTSUPP for what the primary does not take, as it is of an earlier version."""
        identity = outstanding.request.identity
        if type(outstanding) is Staged:
            self.communication.retire(identity)
        else:
            self.calls.end(identity)
        outstanding.answer.reject(OperationFailed(errno.EOPNOTSUPP))

    async def _forward_for_ever(self, link: Link) -> None:
        """Once the namespace has caught up, send what is pending (G4), and then what comes, in its order."""
        while not self.applier.serves:
            await self.applier.changed.wait()
        try:
            await self._reclaim_locks(link)
            pending: list[Outstanding[Any]] = [*self.calls.pending(), *self.communication.pending()]
            self._queue = deque(sorted(pending, key=lambda each: each.serial))  # of one serial the call first
            while True:
                while self._queue:
                    await link.forward.wait_room()
                    self._send_together(link, self._queue)
                self._queued = trio.Event()
                await self._queued.wait()
        except ChannelError as error:
            link.close(error.why)
        finally:
            self._queue = None

    async def _reclaim_locks(self, link: Link) -> None:
        """On return this host's programs hold what they think they do, or know better. ChannelError.

        What was asked under a lock that is lost, and that nobody was told of yet, is not done.
        """
        lost = await self.asking.reclaim(link)
        for staged in self.communication.pending() if lost else ():
            operation = staged.request.operation
            if not staged.acknowledged and getattr(operation, "inode", None) in lost:
                staged.answer.reject(OperationFailed(errno.EIO))
                self.communication.retire(staged.request.identity)
        self.asking.open()

    async def _send_locks(self, link: Link) -> None:
        try:
            await self.asking.run_sending(link)
        except ChannelError as error:
            link.close(error.why)

    def _send_together(self, link: Link, queue: deque[Outstanding[Any]]) -> None:
        """Send what waits, or a part of it that the system takes in one piece."""
        self._gathered_bytes = 0
        sent_bytes = 0
        with link.forward.corked():
            while queue and sent_bytes < UNSENT_BYTES:
                outstanding = queue.popleft()
                if not outstanding.retired:
                    sent_bytes += len(outstanding.data)
                    self._send(link, outstanding)

    async def _tell_ended(self, link: Link) -> None:
        """Let the primary forget requests that are never sent again."""
        told = None
        with suppress(ConnectionLost):
            while True:
                live = self.communication.oldest_live or self._identity(self.request_serial)
                if live != told:
                    link.forward.send(Ended(live))
                    told = live
                await trio.sleep(ENDED_INTERVAL_S)

    async def flush(self, inode: InodeNumber) -> None:
        # The primary makes both volumes durable: this one hears of it over the mirror path.
        last = self.communication.newest_write(inode)
        await self._call(Flush(inode))
        await self._while_progressing(self.communication.wait_ended, inode, last)

    async def settle(self, inode: InodeNumber) -> None:
        last = self.communication.newest_write(inode)
        self._send_gathered()
        await self._while_progressing(self.communication.wait_ended, inode, last)

    # --- reading ----------------------------------------------------------------------------------------

    async def showable(self, key: Key) -> None:
        """The subvolume shows what is, while it is up to date and the lease lasts.

        With what this host's own writes put on top; one in doubt must have taken its place first.
        """
        self.check_disk()
        link = self.link
        serves = self.applier.serves and not self.asking.in_doubt
        if link is None or not serves or trio.current_time() >= link.mirror.lease_until:
            if self._stale_reads and link is None and self.volume.identity.whole:
                return
            await self._wait_readable()
        if not isinstance(key, tuple) and (last := self.communication.newest_in_doubt(key)):
            await self._while_progressing(self.communication.wait_ended, key, last)
            await self.showable(key)

    def shows_at_once(self, inode: InodeNumber) -> bool:
        link, applier = self.link, self.applier
        if self.retired or link is None or not applier.serves or self.asking.in_doubt:
            return False
        if inode in applier.out_of_sync:
            return False
        if trio.current_time() >= link.mirror.lease_until or self.communication.newest_in_doubt(inode):
            return False
        return not self.exclusive.ranges.is_exclusive(inode, 0, FILE_BYTES_MAX)

    def cacheable_s(self, key: Key) -> float:
        link = self.link
        if link is None or not self.applier.serves:
            return 0.0
        if not isinstance(key, tuple) and self.communication.writes_of(key):
            return 0.0
        # The kernel begins to count when it has taken the answer, a little later than now.
        return max(0.0, link.mirror.lease_until - trio.current_time() - KERNEL_DELAY_S)

    def want_lease(self, directory: InodeNumber) -> None:
        if self.link is not None and self.applier.state is BackupState.NORMAL:
            self.lease_requests.request(self.link.forward, directory)

    async def free_directory(self, directory: InodeNumber, *, of_change: bool) -> None:
        link = self.link
        if link is not None:
            with suppress(ConnectionLost):
                free = partial(self.lease_requests.free, link.forward, directory, of_change=of_change)
                await self._in_time(free)
                return
            await self._in_time(self.link_ended.wait)  # one of its paths was lost
        self.check_not_retired()
        await self._wait_readable()

    async def _wait_readable(self) -> None:
        check_task()
        with trio.move_on_after(self._io_timeout_s):
            while True:
                self.check_not_retired()
                link = self.link
                if link is None or not self.applier.serves:
                    await self.applier.changed.wait()
                elif self.asking.in_doubt and not link.mirror.closed:
                    await self.locks.changed.wait()
                elif trio.current_time() < link.mirror.lease_until:
                    return
                elif link.mirror.closed:  # the applier has yet to hear of it
                    await self.applier.changed.wait()
                else:
                    await link.mirror.wait_lease()
        raise self._check_report()

    def _check_report(self) -> CheckReport:
        """What a request gets that waited too long. The log says so once for each time apart."""
        catches_up = self.applier.state is BackupState.CATCHING_UP
        error = (NamesMissing if catches_up else PrimaryUnreachable)(self._io_timeout_s)
        if not self._reported:
            self._reported = True
            log.warning("%s (%s)", error, self.applier.reason or "it is there, but slow")
        return error

    async def read(self, inode: InodeNumber, offset: int, length: int) -> bytes:
        end = offset + length
        if not self.exclusive.ranges.is_exclusive(inode, offset, end):
            return await self._read(inode, offset, length)
        return await self._standing_by(inode, offset, end, partial(self._read, inode, offset, length))

    async def _standing_by(
        self, inode: InodeNumber, start: int, end: int, look: Callable[[], Awaitable[T]]
    ) -> T:
        """What `look` returns, while nobody else holds these bytes."""
        claim = await self._in_time(partial(self.exclusive.stand_by, inode, start, end))
        try:
            return await look()
        finally:
            if claim is not None:
                self.exclusive.ranges.release(claim)

    async def _read(self, inode: InodeNumber, offset: int, length: int) -> bytes:
        await self.showable(inode)
        if inode in self.applier.out_of_sync and self.link is not None:
            self.reads_routed += 1
            _, data = await self._call(Read(inode, offset, length))
            return data
        content = self.read_here(inode, offset, length)
        writes = self.communication.writes_of(inode)
        if not writes:
            return content
        size = found(self.volume.catalog.inode(inode), errno.ESTALE).size
        return content_with(content, offset, length, size, writes)

    async def seek(self, inode: InodeNumber, offset: int, *, data: bool) -> int:
        return await self._standing_by(
            inode, offset, FILE_BYTES_MAX, partial(self._seek, inode, offset, data=data)
        )

    async def _seek(self, inode: InodeNumber, offset: int, *, data: bool) -> int:
        await self.showable(inode)
        if inode not in self.applier.out_of_sync or self.link is None:
            return self.seek_here(inode, offset, data=data, writes=self.communication.writes_of(inode))
        size = self._size_to_seek(inode, offset)
        if not self.link.peer.takes_seeks:
            return offset if data else size  # as if it had no holes
        self.reads_routed += 1
        answer, _ = await self._call(Seek(inode, offset, data))
        return place_in(answer.value)

    def allocated_bytes(self, inode: Inode) -> int:
        """As if there were no holes, where this volume does not say it: programs take a file of no blocks
        for one great hole.
        """
        of_peer = inode.number in self.applier.out_of_sync or not self.volume.identity.whole
        if of_peer or self.communication.writes_of(inode.number):
            return inode.size
        return self.volume.allocated_bytes(inode)

    def shown(self, inode: Inode) -> Inode:
        writes = self.communication.writes_of(inode.number)
        return attributes_with(inode, writes) if writes else inode

    # --- links --------------------------------------------------------------------------------------------

    async def run(
        self,
        links: "trio.MemoryReceiveChannel[Link]",
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve one link after the other, and give check reports to what waits too long, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.background.repeat, "requests that wait too long", self._expire)
            nursery.start_soon(self.background.repeat, "commit", self._commit_in_time)
            nursery.start_soon(self.background.repeat, "freeing", self.volume.free_discarded)
            nursery.start_soon(self.background.repeat, "locks", lambda: expire(self.locks))
            task_status.started()
            async for link in links:
                await self.serve_link(link)

    async def run_link(self, link: Link) -> None:
        """Apply what the link brings and take its answers, until it is lost."""
        self.link, self.link_ended = link, trio.Event()
        self._reported = False
        # The primary asks the same of the same two histories: one of the two acts.
        step = meet(claim_of(self.volume), link.peer.claim)
        self.learn_name(link.peer)
        self.compare_clocks(link.peer)
        if step is not Step.LINK:
            await self.run_unmirrored(link, step)
            self.end_link(link)
            return
        await self.leases.run_out()  # the primary knows nothing of what this host's kernel keeps
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_answers, link)
            nursery.start_soon(self._forward_for_ever, link)
            nursery.start_soon(self._tell_ended, link)
            nursery.start_soon(self.tell_disk, link)
            nursery.start_soon(self.renewal.tell, link)
            nursery.start_soon(self._send_locks, link)
            reason = await self.applier.serve(link.mirror)
            link.close(reason)
            nursery.cancel_scope.cancel()
        self.end_link(link)
        self.lease_requests.link_lost()
        self.asking.link_lost()
        self._early.clear()
        self.communication.doubt_sent()
        reason = f"{link.mirror.close_reason}; see `fusemirror status`"
        self.calls.link_lost(ConnectionLost(link.mirror.peer_name, reason))
        for staged in self.communication.pending():
            if staged.abandoned:
                self.communication.retire(staged.request.identity)

    async def _take_answers(self, link: Link) -> None:
        session = link.forward
        try:
            while True:
                for message, data in await session.receive():
                    if type(message) is Excluded:
                        self._main_is_exclusive(message.identity)
                        continue
                    if type(message) is not Answer:
                        raise refusal(session.peer_name, message, "it came on the wrong path")
                    self._check_answer(session, message, len(data))
                    self._early.append((message, bytes(data)))
                await self._answer_in_order()
        except ChannelError as error:
            link.end(session, error)

    def _check_answer(self, session: Session, answer: Answer, data_bytes: int) -> None:
        outstanding = self.communication.find(answer.identity) or self.calls.find(answer.identity)
        if outstanding is None:
            return  # its change arrived over the mirror path before this answer
        try:
            check_answer(outstanding.request, answer, data_bytes)
        except ValueError as error:
            raise refusal(session.peer_name, answer, error) from error

    async def _answer_in_order(self) -> None:
        """An answer counts once the changes that it stands on are applied here."""
        while self._early:
            answer, data = self._early[0]
            await self.applier.wait_applied(answer.after)
            self._early.popleft()
            self._finish(answer, data)

    def _finish(self, answer: Answer, data: bytes) -> None:
        if self.calls.finish(answer, data):
            return
        staged = self.communication.find(answer.identity)
        if staged is None:
            return  # its change arrived over the mirror path before this answer
        self.communication.retire(answer.identity)
        if answer.errno and staged.acknowledged:
            self.note_failed_write(staged, answer.errno)
        elif answer.errno:
            staged.answer.reject(OperationFailed(answer.errno))
        else:
            staged.answer.resolve(answer.inode)

    async def _expire(self) -> None:
        """Programs that waited for `io_timeout` get a check report (seed step 703).

        Behind requests that nobody waits for, time counts from when the last of them ended.
        """
        waiting: list[Outstanding[Any]] = [*self.calls.pending()]
        waiting += [staged for staged in self.communication.pending() if not staged.acknowledged]
        for outstanding in waiting:
            if not outstanding.abandoned and self._is_late(outstanding):
                outstanding.abandoned = True
                outstanding.answer.reject(self._check_report())
                if self.link is None:
                    self.communication.retire(outstanding.request.identity)
                    self.calls.end(outstanding.request.identity)
        await trio.sleep(self._io_timeout_s / 20)

    def _is_late(self, outstanding: Outstanding[Any]) -> bool:
        since = outstanding.since
        if self.communication.acknowledged_before(outstanding.serial):
            since = max(since, self.communication.retired_at)
        return since <= trio.current_time() - self._io_timeout_s

    # --- roles --------------------------------------------------------------------------------------------

    def _take_role(self, term: int) -> None:
        self.role_change.resolve(RoleChange("primary", "the other host handed over the role", term))

    def _show_diverged(self, reason: str) -> None:
        self.applier.differ(reason)

    async def ask_to_switch(self) -> None:
        """Ask the primary for its role. RefusedForSafety, ConnectionLost, TimedOut; `RoleChanged` is the
        answer hoped for."""
        if self.applier.state is not BackupState.NORMAL:
            word = WORDS[self.applier.state].value
            raise RefusedForSafety(f"the mirror state is {word}, not normal; wait for it")
        try:
            await self._call(SwitchRoles())
        except OperationFailed:
            raise RefusedForSafety("the mirror state is not normal at the primary; wait for it") from None
        except CheckReport:
            pass
        raise TimedOut(self._io_timeout_s, "the primary did not hand over its role; see its log")

    def retire(self, known: ChangeNumber) -> None:
        """What is left in the communication volume the unit of the other role carries out."""
        super().retire(known)
        self.calls.retire()
        for staged in self.communication.pending():
            if staged.abandoned:
                self.communication.retire(staged.request.identity)
        self.applier.changed.set()  # nothing waits for it again: each looks first whether this has retired

    # --- in the background ----------------------------------------------------------------------------------

    async def _commit_in_time(self) -> None:
        await self.wait_commit_due()
        self.look_at_clock()
        if self.applier.state is not BackupState.CATCHING_UP:
            await self.make_names_durable()

    # --- the life of a mount ------------------------------------------------------------------------------

    @property
    def access(self) -> Access:
        return self.applier.access

    async def change_access(self, access: Access) -> None:
        await self._call(ChangeAccess(access))

    async def wait_connected(self) -> None:
        while self.link is None:
            self.check_not_retired()
            await self.applier.changed.wait()

    async def wait_normal(self) -> None:
        while self.applier.state is not BackupState.NORMAL:
            self.check_not_retired()
            await self.applier.changed.wait()

    async def wait_drained(self) -> None:
        await self.communication.wait_empty()

    async def wait_safe(self) -> None:
        """See `ControlUnit`. The primary is waited for while it is there, or while something is kept by this
        process alone; else for a moment, since it may be about to connect."""
        while True:
            with trio.move_on_after(PRIMARY_AWAY_PATIENCE_S):
                await self.wait_drained()
                return
            if self.link is None and self.communication.keeps_all:
                count, size = len(self.communication), self.communication.pending_bytes
                what = f"{counted(count, 'request')} ({counted(size, 'byte')})"
                log.info("waiting here: %s; sent after the next mount", what)
                return

    async def stop(self, reason: str) -> None:
        await self.say_goodbye(reason)

    async def verify(self, keep: str = "") -> None:
        try:
            await self._call(StartVerify(keep))
        except OperationFailed as error:
            if error.errno == errno.EBUSY:
                raise RefusedForSafety(VERIFY_UNDER_WAY) from None
            raise

    async def verify_report(self) -> dict[str, Any]:
        answer, _ = await self._call(VerifyProgress())
        try:
            report = msgspec.json.decode(answer.value, type=Report)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if self.link is not None:
                why = f"value: no report of a comparison: {error}"
                self.link.end(self.link.forward, refusal(self.link.forward.peer_name, answer, why))
            raise OperationFailed(errno.EIO) from error
        return msgspec.structs.asdict(report)

    async def change_pace(self, *, rate_bytes: int | None = None, paused: bool | None = None) -> None:
        await self._call(ChangePace(rate_bytes, paused))

    def _reason_of_age(self) -> str | None:
        oldest = self.communication.oldest_since
        age_s = 0.0 if oldest is None else trio.current_time() - oldest
        if age_s <= self._io_timeout_s:
            return None
        return f"a request has waited for {age_s:.0f} s, longer than io_timeout: the primary is slow"

    def status(self) -> dict[str, Any]:
        communication, applier = self.communication, self.applier
        oldest = communication.oldest_since
        return {
            "role": "backup",
            "mirror_state": WORDS[applier.state].value,
            "state": applier.state.name.lower(),
            "reason": applier.reason or self._reason_of_age(),
            "change": self.volume.number,
            "peer_change": self.volume.number,
            "disk": self.disk_status(),
            "nameless": self.nameless_status(),
            "out_of_sync": {"images": len(applier.out_of_sync), "bytes": 0},
            "resync": applier.resync and msgspec.structs.asdict(applier.resync),
            "communication": {
                "pending_requests": len(communication),
                "pending_bytes": communication.pending_bytes,
                "oldest_seconds": 0.0 if oldest is None else round(trio.current_time() - oldest, 3),
                "capacity_bytes": communication.capacity_bytes,
                "stored_requests": communication.stored_count(),
                "staged_total": communication.staged_total,
                "forwarded_total": self.forwarded_total,
                "answered_total": communication.retired_total,
            },
        }
