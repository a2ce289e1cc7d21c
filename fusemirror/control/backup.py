"""The backup's control unit: stages every request, forwards it, and serves reads from the subvolume.

A request waits here until the change that names it has come back and is applied, or until the
primary says that it made no change. Reads are served from the subvolume while the primary's lease
lasts: the primary shows no effect that is not here yet, and goes on alone only once the lease is
over, so what is read here is never old (G2). Source: seed [0050], [0051] (JOB1, JOB3), [0061].
"""

import itertools
import logging
import struct
from collections import deque
from typing import Any

import msgspec
import trio

from fusemirror.channel.link import Link
from fusemirror.communication.volume import CommunicationVolume, Staged
from fusemirror.control.unit import ControlUnit, Key
from fusemirror.errors import (
    ChannelError,
    ConnectionLost,
    OperationFailed,
    PrimaryUnreachable,
    RemoteProtocolError,
)
from fusemirror.identifiers import InodeNumber, RequestId
from fusemirror.limits import COMMIT_INTERVAL_S, KERNEL_DELAY_S
from fusemirror.mirror.applying import Applier
from fusemirror.mirror.states import WORDS, BackupState
from fusemirror.operations import AnyOperation, ChangePace, Flush, Read, StartVerify, VerifyProgress
from fusemirror.protocol.messages import Answer, Request
from fusemirror.volume.inode import Inode
from fusemirror.volume.volume import Volume

log = logging.getLogger(__name__)

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
    ) -> None:
        super().__init__(volume)
        self.applier = Applier(volume, communication, self.is_open)
        self.communication = communication
        self.forwarded_total = 0
        self.answered_total = 0
        self._instance = instance
        self._serials = itertools.count(1)
        self._io_timeout_s = io_timeout_s
        self._stale_reads = stale_reads
        self._reported = False
        self._early: deque[tuple[Answer, bytes]] = deque()  # answers that a change must precede

    # --- changing: JOB1 stages and waits, JOB3 transfers ---------------------------------------------------

    async def perform(self, operation: AnyOperation, data: bytes = b"") -> Inode | None:
        answer = await self._request(operation, data)
        inode = answer.inode if isinstance(answer, Answer) else answer
        return self.volume.catalog.inode(InodeNumber(inode)) if inode else None

    async def _request(self, operation: AnyOperation, data: bytes = b"") -> Any:
        """Stage a request, forward it, and return its answer: an inode number, or an `Answer`.

        Raises `OperationFailed` for the primary's refusal, `PrimaryUnreachable` after `io_timeout`.
        Cancelled, the request stays staged, and takes effect or not.
        """
        await self.communication.wait_room(len(data))
        identity = RequestId(_IDENTITY.pack(self._instance, next(self._serials)))
        staged = self.communication.stage(Request(identity, operation), data)
        if self.applier.serves:
            self._forward(staged)
        return await staged.answer.wait()

    def _forward(self, staged: Staged) -> None:
        if self.link is None or staged.sent_over is self.link:
            return
        staged.sent_over = self.link
        try:
            self.link.forward.send(staged.request, staged.data)
            self.forwarded_total += 1
        except ConnectionLost:
            pass  # it is sent again over the next link

    async def flush(self, inode: InodeNumber) -> None:
        # The primary makes both volumes durable: this one hears of it over the mirror path.
        await self._request(Flush(inode))

    # --- reading ----------------------------------------------------------------------------------------

    async def showable(self, key: Key) -> None:
        """Whatever the key: the subvolume shows what is, while it is up to date and the lease lasts."""
        link = self.link
        if link is not None and self.applier.serves and trio.current_time() < link.mirror.lease_until:
            return
        if self._stale_reads and link is None and self.volume.identity.whole:
            return
        await self._wait_readable()

    def cacheable_s(self, inode: InodeNumber) -> float:
        link = self.link
        if link is None or not self.applier.serves:
            return 0.0
        # The kernel begins to count when it has taken the answer, a little later than now.
        return max(0.0, link.mirror.lease_until - trio.current_time() - KERNEL_DELAY_S)

    async def _wait_readable(self) -> None:
        with trio.move_on_after(self._io_timeout_s):
            while True:
                link = self.link
                if link is None or not self.applier.serves:
                    await self.applier.changed.wait()
                elif trio.current_time() < link.mirror.lease_until:
                    return
                elif link.mirror.closed:  # the applier has yet to hear of it
                    await self.applier.changed.wait()
                else:
                    await link.mirror.wait_lease()
        raise self._check_report()

    def _check_report(self) -> PrimaryUnreachable:
        """What a request gets that waited too long. The log says so once for each time apart."""
        error = PrimaryUnreachable(self._io_timeout_s)
        if not self._reported:
            self._reported = True
            log.warning("%s (%s)", error, self.applier.reason or "it is there, but slow")
        return error

    async def read(self, inode: InodeNumber, offset: int, length: int) -> bytes:
        await self.showable(inode)
        if inode in self.applier.out_of_sync and self.link is not None:
            self.reads_routed += 1
            answer: tuple[Answer, bytes] = await self._request(Read(inode, offset, length))
            return answer[1]
        return self.read_here(inode, offset, length)

    # --- links --------------------------------------------------------------------------------------------

    async def run(
        self,
        links: "trio.MemoryReceiveChannel[Link]",
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve one link after the other, and give check reports to what waits too long, for ever."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.communication.run)
            nursery.start_soon(self._resend_for_ever)
            nursery.start_soon(self._expire_for_ever)
            nursery.start_soon(self._commit_for_ever)
            task_status.started()
            async for link in links:
                if not link.closed:  # it may have ended while it waited to be taken
                    await self.run_link(link)

    async def run_link(self, link: Link) -> None:
        """Apply what the link brings and take its answers, until it is lost."""
        self.link, self.link_ended = link, trio.Event()
        self._reported = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_answers, link)
            reason = await self.applier.serve(link.mirror)
            link.close(reason)
            nursery.cancel_scope.cancel()
        self.link = None
        self.link_ended.set()
        self.traffic.end(link)
        self._early.clear()
        for staged in self.communication.pending():
            if staged.abandoned:
                self.communication.retire(staged.request.identity)

    async def _take_answers(self, link: Link) -> None:
        session = link.forward
        try:
            while True:
                for message, data in await session.receive():
                    if type(message) is not Answer:
                        raise RemoteProtocolError(session.peer_name, f"unexpected {type(message).__name__}")
                    self._early.append((message, bytes(data)))
                await self._answer_in_order()
        except ChannelError as error:
            link.close(error.why)

    async def _answer_in_order(self) -> None:
        """An answer counts once the changes that it stands on are applied here."""
        while self._early:
            answer, data = self._early[0]
            await self.applier.wait_applied(answer.after)
            self._early.popleft()
            self._finish(answer, data)

    def _finish(self, answer: Answer, data: bytes) -> None:
        staged = self.communication.find(answer.identity)
        if staged is None:
            return  # its change arrived over the mirror path before this answer
        self.communication.retire(answer.identity)
        self.answered_total += 1
        if answer.errno:
            staged.answer.reject(OperationFailed(answer.errno))
        elif isinstance(staged.request.operation, (Read, Flush, StartVerify, VerifyProgress, ChangePace)):
            staged.answer.resolve((answer, data))
        else:
            staged.answer.resolve(answer.inode)

    async def _resend_for_ever(self) -> None:
        """Whenever the namespace has caught up, send again what is still pending, in its order (G4)."""
        served = False
        while True:
            if self.applier.serves and not served:
                for staged in self.communication.pending():
                    self._forward(staged)
            served = self.applier.serves
            await self.applier.changed.wait()

    async def _expire_for_ever(self) -> None:
        """Requests that waited for `io_timeout` get a check report (seed step 703)."""
        while True:
            deadline = trio.current_time() - self._io_timeout_s
            late = [staged for staged in self.communication.pending() if staged.since <= deadline]
            for staged in late:
                staged.abandoned = True
                staged.answer.reject(self._check_report())
                if self.link is None:
                    self.communication.retire(staged.request.identity)
            await trio.sleep(self._io_timeout_s / 20)

    async def _commit_for_ever(self) -> None:
        while True:
            await trio.sleep(COMMIT_INTERVAL_S)
            if self.applier.state is not BackupState.CATCHING_UP:
                await self.make_names_durable()

    # --- the life of a mount ------------------------------------------------------------------------------

    async def wait_connected(self) -> None:
        while self.link is None:
            await self.applier.changed.wait()

    async def wait_normal(self) -> None:
        while self.applier.state is not BackupState.NORMAL:
            await self.applier.changed.wait()

    async def wait_drained(self) -> None:
        await self.communication.wait_empty()

    async def stop(self, reason: str) -> None:
        await self.say_goodbye(reason)

    async def verify(self) -> None:
        await self._request(StartVerify())

    async def verify_report(self) -> dict[str, Any]:
        answer: tuple[Answer, bytes] = await self._request(VerifyProgress())
        report: dict[str, Any] = msgspec.json.decode(answer[0].value)
        return report

    async def change_pace(self, *, rate_bytes: int | None = None, paused: bool | None = None) -> None:
        await self._request(ChangePace(rate_bytes, paused))

    def status(self) -> dict[str, Any]:
        communication, applier = self.communication, self.applier
        oldest = communication.oldest_since
        return {
            "role": "backup",
            "mirror_state": WORDS[applier.state].value,
            "state": applier.state.name.lower(),
            "reason": applier.reason,
            "change": self.volume.number,
            "peer_change": self.volume.number,
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
