"""Forwarding: the backup's requests on their way to the primary.

A request is staged in the communication volume and sent beside that (JOB1), in one order with all others, and
again over the next link (G4). A change that comes back over the mirror path is its answer; the others come
over the forward path (`arrivals.py`). Source: seed [0050]-[0052] (JOB1, JOB3), [0059].
"""

import errno
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio

from fusemirror.channel.link import Link
from fusemirror.coherence.lock_asking import Asking
from fusemirror.communication.outstanding import Outstanding
from fusemirror.communication.staged import Staged
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.control.calling import Calls
from fusemirror.control.exclusive import ExclusiveWrite
from fusemirror.control.host_state import HostState
from fusemirror.control.landing import Landing
from fusemirror.control.life import RoleLife
from fusemirror.control.names import make_way
from fusemirror.control.patience import Patience
from fusemirror.control.role import Reads
from fusemirror.control.steps import WriteEvent, WriteState
from fusemirror.errors import (
    ChannelError,
    ConnectionLost,
    OperationFailed,
)
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import (
    BACKLOG_BYTES_MAX,
    ENDED_INTERVAL_S,
    GATHERED_BYTES_MAX,
    STATUS_AHEAD_BYTES,
    UNSENT_BYTES,
)
from fusemirror.mirror.applying import Applier
from fusemirror.operations import AnyOperation, Operation, Write
from fusemirror.promise import Promise
from fusemirror.protocol.calls import (
    AnyCall,
)
from fusemirror.protocol.messages import (
    Answer,
    AskStatus,
    Ended,
    Request,
)
from fusemirror.settings import Access

log = logging.getLogger(__name__)


class Forwarding:
    """Of one unit. `run_forwarding` and its like serve one link; `expire` runs for ever, time after time."""

    def __init__(
        self,
        host: HostState,
        life: RoleLife,
        communication: CommunicationVolume,
        applier: Applier,
        landing: Landing,
        asking: Asking,
        patience: Patience,
        reads: Callable[[], Reads],
    ) -> None:
        self.calls = Calls()
        self.forwarded_total = 0
        """How often a staged request was sent."""
        self._host = host
        self._life = life
        self._communication = communication
        self._applier = applier
        self._landing = landing
        self._asking = asking
        self._patience = patience
        self._reads = reads
        self._queue: deque[Outstanding[Any]] | None = None  # what must go first, while there is a link
        self._queued = trio.Event()
        self._all_sent = trio.Event()  # all that was pending when the link began
        self._gathered_bytes = 0  # of data that waits in the queue for more to go with it
        self._last_kept: Outstanding[Any] | None = None  # the newest of the kept ones that were sent

    async def request_exclusively(
        self, operation: AnyOperation, data: bytes, *, early: bool = False
    ) -> InodeNumber:
        """`request`, with the subvolume's exclusive status taken first (Fig. 17, steps 858-861).

        `early`: where main can be asked for its status ahead of the data, it is answered once both volumes
        are exclusive for the write and it is safe here; the statuses are held until it has landed.
        """
        if self._host.volume.catalog.reservations:
            await self._reads().showable(operation.image or ROOT_INODE)
        write = self._landing.exclusive.begin(operation, len(data), self._host.identity)
        if write is None:
            return await self.request(operation, data)
        if write.state is not WriteState.ASKING_MAIN:
            await self._patience.in_time(write.take_turn)
        ahead = early and len(data) >= STATUS_AHEAD_BYTES and self._asks_ahead(operation, data)
        try:
            number = await self.request(operation, data, kept=ahead, write=write)
        except OperationFailed as error:
            write.end(WriteEvent.RESERVED if error.errno == errno.EBUSY else WriteEvent.FAILED)
            raise
        except BaseException:
            write.end(WriteEvent.FAILED)
            raise
        if not self._landing.is_early(write):
            write.end(WriteEvent.TRANSFERRED)
        return number

    def _asks_ahead(self, operation: Operation, data: bytes) -> bool:
        link = self._host.links.link
        return link is not None and link.peer.takes_statuses and self.writes_behind(operation, data)

    def writes_behind(self, operation: Operation, data: bytes) -> bool:
        """Whether it is acknowledged as soon as it is staged. What is reserved the primary refuses, and the
        program is to hear so."""
        volume = self._host.volume
        may = operation.may_be_written_behind(volume.catalog, len(data), volume.file_bytes_max)
        return may and not self._landing.exclusive.is_reserved(operation, self._host.identity)

    async def request(
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
        `PrimaryUnreachable` after `io_timeout`, `PrimaryAway` where it is in vain (702, 703). Cancelled, the
        request stays staged, and takes effect or not.
        """
        self._host.check_disk()
        if not kept:
            self._patience.check()
        if not self._communication.has_room(len(data)):
            await self._patience.while_progressing(self._communication.wait_room, len(data), self._life.check)
        if operation.touched_names():
            await make_way(self._host, operation, self._reads().free_directory)
        self._life.check()
        kept = kept and self._has_disk_space(operation, len(data))
        identity = self._host.request_ids.take()
        time_ns = self._host.volume.clock.staging_ns() if kept else 0
        # The pair's access may have changed while there was no room: then it lands without a status.
        ahead = kept and write is not None and self._host.access.in_effect is Access.EXCLUSIVE
        staged = self._communication.stage(
            Request(identity, operation, kept), data, time_ns, awaits_status=ahead
        )
        if kept:
            self._host.volume.invalidator.data_changed(
                operation.image, own=True
            )  # the overlay shows it from soon on
        if write is None:
            self._forward(staged)
            if operation.carries_data:
                self._host.volume.files.prepare(operation.image)  # while the primary carries it out
            return await staged.answer.wait_last()
        if ahead:
            self._landing.await_status(staged, write)
            self._forward(staged)
            return await staged.answer.wait_last()
        self._landing.asking[identity] = write
        try:
            self._forward(staged)
            return await staged.answer.wait_last()
        finally:
            del self._landing.asking[identity]

    def begin_write(self, operation: Write, data: bytes) -> Promise[InodeNumber] | None:
        """`request`, for a write that nobody acknowledges early, where it can be sent at once; the answer.
        None: nothing was done."""
        link = self._host.links.link
        if (
            link is None
            or self._queue is None  # nothing is sent yet
            or self._queue
            or self._patience.waits.in_vain
            or link.forward.sending.backlog_bytes > BACKLOG_BYTES_MAX
            or not self._communication.has_room(len(data))
        ):
            return None
        staged = self._communication.stage(Request(self._host.request_ids.take(), operation), data)
        try:
            self._send(link, staged)
        except ConnectionLost:
            return staged.answer  # it is sent again over the next link
        self._host.volume.files.prepare(operation.inode)  # while the primary carries it out
        return staged.answer

    def _has_disk_space(self, operation: AnyOperation, data_bytes: int) -> bool:
        """Whether the disk of the communication volume has room for a write that is acknowledged early.

        Where others take that room for now, or the write needs none in the volumes, it waits for the
        primary's answer as others do. Else ENOSPC, before anything is changed.
        """
        volume = self._host.volume
        try:
            if self._communication.reserve_disk(data_bytes):
                return True
            if len(self._communication) and self._host.links.link is not None:
                return False  # behind what takes the room now
            covered = operation.touched_range(volume.catalog, data_bytes)
            if covered is not None and volume.images.content.is_allocated(*covered):
                return False
        except OSError as error:
            volume.health.note(error)
            raise OperationFailed(error.errno or errno.EIO) from error
        raise OperationFailed(errno.ENOSPC)

    async def call(self, call: AnyCall) -> tuple[Answer, bytes]:
        """Make a call behind all that was staged so far, and return its answer. Raises as `request` does.

        Cancelled, it is made all the same, and nobody hears the answer.
        """
        self._host.check_disk()
        self._patience.check()
        if self.calls.is_full():
            await self._patience.in_time(self.calls.wait_room)
        self._life.check()
        request = Request(self._host.request_ids.take(), call)
        outstanding = self.calls.begin(request, self._communication.order.last_serial + 1)
        if self._host.links.link is not None and self._applier.serves:
            self._applier.acknowledging.say_delayed(
                self._host.links.link.mirror
            )  # a flush waits for it there
        self._forward(outstanding)
        return await outstanding.answer.wait()

    def _forward(self, outstanding: Outstanding[Any]) -> None:
        """Send it at once, or after those that must go first.

        Nobody waits for kept requests. While some are on their way, others gather, and go together when
        those have ended: each costs both hosts less, and none waits for a clock (RFC 896).
        """
        if self._queue is None or self._host.links.link is None:
            return  # all that is pending is sent, in its order, once the backup serves
        gathers = outstanding.gathers and not self._communication.destaging.answers_first
        before = self._last_kept if gathers else None
        if before is not None and not before.retired and self._gathered_bytes < GATHERED_BYTES_MAX:
            before.when_retired = self.send_gathered
            self._gathered_bytes += outstanding.data_bytes
            self._queue.append(outstanding)
            return
        if self._queue or self._host.links.link.forward.sending.backlog_bytes > BACKLOG_BYTES_MAX:
            self._queue.append(outstanding)
            self.send_gathered()
            return
        try:
            self._send(self._host.links.link, outstanding)
        except ConnectionLost:
            return  # it is sent again over the next link

    def send_gathered(self) -> None:
        if self._queue:
            self._queued.set()

    def _send(self, link: Link, outstanding: Outstanding[Any]) -> None:
        asked = outstanding.request.operation
        if asked.peer_says and not getattr(link.peer, asked.peer_says):
            self._end_unsent(outstanding)
            return
        if outstanding.sent_at is None and type(outstanding) is Staged and outstanding.awaits_status:
            write, length = outstanding.operation, outstanding.data_bytes
            link.forward.send(AskStatus(outstanding.request.identity, write.image, write.data_offset, length))
        outstanding.sent_at = trio.current_time()
        if outstanding.gathers:
            self._last_kept = outstanding
        link.forward.send_encoded(outstanding.encoded, self._communication.data_of(outstanding))
        self.forwarded_total += type(outstanding) is Staged

    def _end_unsent(self, outstanding: Outstanding[Any]) -> None:
        """EOPNOTSUPP for what the primary does not take, as it is of an earlier version."""
        identity = outstanding.request.identity
        if type(outstanding) is Staged:
            self._communication.retire(identity)
        else:
            self.calls.end(identity)
        outstanding.answer.reject(OperationFailed(errno.EOPNOTSUPP))

    async def run_forwarding(self, link: Link) -> None:
        """Once the namespace has caught up, send what is pending (G4), and then what comes, in its order."""
        while not self._applier.serves:
            await self._applier.changed.wait()
        try:
            await self._reclaim_locks(link)
            if link.forward.peer.forgot_requests:
                self._fail_what_was_forgotten(link.forward.peer_name)
            pending: list[Outstanding[Any]] = [*self.calls.pending(), *self._communication.pending()]
            self._queue = deque(sorted(pending, key=lambda each: each.serial))  # of one serial the call first
            while True:
                while self._queue:
                    await link.forward.wait_room()
                    await self._communication.read_ahead(self._queue, UNSENT_BYTES)
                    self._send_together(link, self._queue)
                self._all_sent.set()
                self._queued = trio.Event()
                await self._queued.wait()
        except ChannelError as error:
            link.close(error.why)
        except OSError as error:  # what is staged cannot be read back
            self._host.volume.health.note(error)
            link.close(str(error))
        finally:
            self._queue = None

    def _fail_what_was_forgotten(self, peer_name: str) -> None:
        """The primary cannot tell which requests it carried out, as a repair of its journal lost that. What
        was sent and not answered is not asked for again, unless to do it twice is to do it once.
        """
        for staged in self._communication.pending():
            if not staged.in_doubt or staged.operation.may_repeat:
                continue
            log.error(
                "a request of this host fails: %s had its journal repaired, and does not know whether it "
                "carried the request out before; look at the file",
                peer_name,
            )
            self._communication.retire(staged.request.identity)
            if staged.acknowledged:
                self._host.note_failed_write(staged, errno.EIO)
            else:
                staged.answer.reject(OperationFailed(errno.EIO))

    async def _reclaim_locks(self, link: Link) -> None:
        """On return this host's programs hold what they think they do, or know better. ChannelError.

        What was asked under a lock that is lost, and that nobody was told of yet, is not done.
        """
        lost = await self._asking.reclaim(link)
        for staged in self._communication.pending() if lost else ():
            if not staged.acknowledged and staged.operation.image in lost:
                staged.answer.reject(OperationFailed(errno.EIO))
                self._communication.retire(staged.request.identity)
        self._asking.open()

    async def run_locks(self, link: Link) -> None:
        try:
            await self._asking.run_sending(link)
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
                    sent_bytes += outstanding.data_bytes
                    self._send(link, outstanding)
                    if type(outstanding) is Staged and outstanding.stored and not outstanding.retired:
                        self._communication.held.spare(outstanding)

    async def run_telling(self, link: Link) -> None:
        """Let the primary forget requests that are never sent again; and see that those have come which it
        may have granted and forgotten, where this host's Hello told of them.
        """
        if link.forward.ours.owes_writes:
            await self._all_sent.wait()
        told = None
        with suppress(ConnectionLost):
            while True:
                live = self._communication.order.oldest_live or self._host.request_ids.upcoming()
                # Not before what the primary forgot has failed: it takes this for the end of that.
                if live != told and self._queue is not None:
                    link.forward.send(Ended(live))
                    told = live
                await trio.sleep(ENDED_INTERVAL_S)

    async def expire(self) -> None:
        """Programs that waited for `io_timeout`, or wait in vain and are to hear so, get EIO (seed step 703).

        Behind requests that nobody waits for, time counts from when the last of them ended.
        """
        waiting: list[Outstanding[Any]] = [*self.calls.pending()]
        waiting += [staged for staged in self._communication.pending() if not staged.acknowledged]
        for outstanding in waiting:
            if not outstanding.abandoned and (self._patience.waits.in_vain or self._is_late(outstanding)):
                outstanding.abandoned = True
                outstanding.answer.reject(self._patience.report())
                if self._host.links.link is None:
                    self._communication.retire(outstanding.request.identity)
                    self.calls.end(outstanding.request.identity)
        await self._patience.pause()

    def _is_late(self, outstanding: Outstanding[Any]) -> bool:
        since = outstanding.since
        if self._communication.order.acknowledged_before(outstanding.serial):
            since = max(since, self._communication.ended.last_at)
        return since <= trio.current_time() - self._patience.io_timeout_s

    def link_lost(self, link: Link) -> None:
        """What is staged is sent again over the next link; whoever gave up waiting for it is not told."""
        self._communication.doubt_sent()
        self._all_sent = trio.Event()
        reason = f"{link.mirror.close_reason}; see `fusemirror status`"
        self.calls.link_lost(ConnectionLost(link.mirror.peer_name, reason))
        self._end_abandoned()

    def retire(self) -> None:
        """What is left in the communication volume the unit of the other role carries out."""
        self.calls.retire()
        self._end_abandoned()
        # What waits for room here has another way now, and here there may never be any.
        self._communication.ended.waiting.unpark_all()

    def _end_abandoned(self) -> None:
        for staged in self._communication.pending():
            if staged.abandoned:
                self._communication.retire(staged.request.identity)
