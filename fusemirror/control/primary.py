"""The primary's control unit: decides every change, in one order.

A change is decided, applied to the main volume and published to the mirror in one step without a
wait in between, so the order of numbers is the order in both volumes. Then its requester waits for
the acknowledgement: a program of this host here, a program of the backup over there, where the
change that comes back is its answer. Source: seed [0053]-[0057] (JOB4, JOB5).
"""

import errno
import logging
import stat
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import trio

from fusemirror.change import DataChange, NamespaceChange, TruncateChange, WriteChange, encode_change
from fusemirror.channel.link import Link
from fusemirror.channel.session import Session
from fusemirror.control.deciding import Decision, decide, purge_rows
from fusemirror.control.reservations import check_reserved
from fusemirror.control.unit import ControlUnit, Key, found
from fusemirror.errors import (
    ChannelError,
    ConnectionLost,
    DiskFailed,
    FusemirrorError,
    OperationFailed,
    RemoteProtocolError,
)
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import (
    COMMIT_INTERVAL_S,
    FILE_BYTES_MAX,
    PURGE_AFTER_S,
    PURGE_BATCH_MAX,
    WRITE_BYTES_MAX,
)
from fusemirror.mirror.histories import generation_row, generations_of
from fusemirror.mirror.sending import Mirror
from fusemirror.mirror.states import WORDS, PrimaryState
from fusemirror.mirror.verify import Report, Verifier
from fusemirror.operations import (
    AnyOperation,
    ChangePace,
    Flush,
    Read,
    SetAttributes,
    StartVerify,
    VerifyProgress,
    Write,
)
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import Answer, Ended, PurgeOffer, Request
from fusemirror.seams import Seams
from fusemirror.settings import Acknowledge, Fence, Settings
from fusemirror.volume.inode import Inode
from fusemirror.volume.volume import Volume

log = logging.getLogger(__name__)

_GENERATION_BYTES = 16
_PRIVILEGES = stat.S_ISUID | stat.S_ISGID


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
    ) -> None:
        super().__init__(volume)
        self.mirror = Mirror(
            volume,
            peer_timeout_s=peer_timeout_s,
            io_timeout_s=io_timeout_s,
            fence=fence,
            resync_rate=resync_rate,
        )
        self._peer_timeout_s = peer_timeout_s
        self._seams = seams
        self._acknowledge = Acknowledge.SYNC
        self._resync_rate = resync_rate
        self._verifier: Verifier | None = None
        self._verify_wanted = trio.Event()
        self._orphans_since: dict[InodeNumber, float] = {}
        if not generations_of(volume):
            self._begin_generation()

    def configure(self, settings: Settings) -> None:
        self._acknowledge = settings.acknowledge
        self.mirror.io_timeout_s = settings.io_timeout
        if settings.fence is not self.mirror.fence:
            self.mirror.set_fence(settings.fence)
        if settings.resync_rate != self._resync_rate:
            self._resync_rate = settings.resync_rate
            self.mirror.pace.change(rate_bytes=settings.resync_rate)

    # --- changing ---------------------------------------------------------------------------------------

    async def perform(self, operation: AnyOperation, data: bytes = b"") -> Inode | None:
        if self.mirror.congested:
            await self.mirror.wait_room()
        if self.mirror.fenced:
            await self.mirror.admit()
        try:
            inode = self._make(operation, data, NO_REQUEST)
        except OperationFailed:
            # The error shows what is there now, so the backup must hold it too before it is told.
            if self._acknowledge is Acknowledge.SYNC:
                await self._wait_met()
                await self.mirror.settled(self.volume.number)
            raise
        number = self.volume.number
        if self._acknowledge is Acknowledge.SYNC and number > self.mirror.acknowledged_number:
            await self.mirror.acknowledged(number)
        return self.volume.catalog.inode(inode)

    def _make(self, operation: AnyOperation, data: Buffer, request: RequestId) -> InodeNumber:
        """Decide, apply and publish. On return the main volume holds it; raises `OperationFailed`."""
        if self.volume.catalog.reservations:
            check_reserved(self.volume.catalog, operation, self._host_of(request))
        try:
            if type(operation) is Write:
                return self._write(operation, data, request)
            if type(operation) is SetAttributes and operation.size is not None:
                return self._truncate(operation, request)
            return self._change_namespace(operation, request)
        except OSError as error:
            raise OperationFailed(error.errno or errno.EIO) from error

    def _host_of(self, request: RequestId) -> bytes:
        """Who asks: requests have an identity only where they come from the peer."""
        return self.peer_identity if request else self.host_identity

    def _write(self, operation: Write, data: Buffer, request: RequestId) -> InodeNumber:
        volume = self.volume
        number = operation.inode
        inode = found(volume.catalog.inode(number), errno.ESTALE)
        if not inode.is_regular:
            raise OperationFailed(errno.EISDIR if inode.is_directory else errno.EINVAL)
        if not data:  # no bytes, wherever they are written, change nothing (write(2))
            if request:
                self._publish_rows(Decision((), number, ()), _next(volume), volume.time_ns(), request)
            return number
        offset = inode.size if operation.append else operation.offset
        end = offset + len(data)
        if end > FILE_BYTES_MAX or len(data) > WRITE_BYTES_MAX or offset < 0:
            raise OperationFailed(errno.EFBIG)
        if operation.clear_privileges and inode.mode & _PRIVILEGES:
            self._change_namespace(SetAttributes(number, mode=_without_privileges(inode.mode)), NO_REQUEST)
        if self.mirror.must_begin_generation:
            self._begin_generation()
        change = WriteChange(_next(volume), request, volume.time_ns(), number, offset, len(data))
        encoded = encode_change(change)
        old_size = inode.size
        self._apply_data(change, data, encoded)
        # The backup holds the data of its own request: it crosses the network once.
        self.mirror.publish(change, encoded, b"" if request else data, (number,), old_size)
        return number

    def _truncate(self, operation: SetAttributes, request: RequestId) -> InodeNumber:
        volume = self.volume
        size = operation.size
        inode = found(volume.catalog.inode(operation.inode), errno.ESTALE)
        if not inode.is_regular:
            raise OperationFailed(errno.EISDIR if inode.is_directory else errno.EINVAL)
        if size is None or not 0 <= size <= FILE_BYTES_MAX:
            raise OperationFailed(errno.EFBIG)
        others = msgspec.structs.replace(operation, size=None)
        more = others != SetAttributes(operation.inode)
        if self.mirror.must_begin_generation:
            self._begin_generation()
        # One request may become two changes; the last of them answers it.
        change = TruncateChange(
            _next(volume), NO_REQUEST if more else request, volume.time_ns(), inode.number, size
        )
        encoded = encode_change(change)
        old_size = inode.size
        self._apply_data(change, b"", encoded)
        self.mirror.publish(change, encoded, b"", (inode.number,), old_size)
        if more:
            self._change_namespace(others, request)
        return inode.number

    def _apply_data(self, change: DataChange, data: Buffer, encoded: bytes) -> None:
        try:
            self.volume.apply(change, data, encoded=encoded, journal_request=change.request != NO_REQUEST)
        except OSError:
            self.mirror.mend(change)
            raise

    def _change_namespace(self, operation: AnyOperation, request: RequestId) -> InodeNumber:
        volume = self.volume
        number, time_ns, host = _next(volume), volume.time_ns(), self._host_of(request)
        decision = decide(volume.catalog, operation, number, time_ns, host)
        if self.mirror.must_begin_generation:
            # Only now is it sure that there is a change; its number comes after the generation's.
            self._begin_generation()
            number, time_ns = _next(volume), volume.time_ns()
            decision = decide(volume.catalog, operation, number, time_ns, host)
        if decision.rows or request:
            self._publish_rows(decision, number, time_ns, request)
        return decision.inode

    def _publish_rows(
        self, decision: Decision, number: ChangeNumber, time_ns: int, request: RequestId
    ) -> None:
        change = NamespaceChange(number, request, time_ns, decision.inode, decision.rows)
        encoded = encode_change(change)
        self.volume.apply(change, encoded=encoded)
        self.mirror.publish(change, encoded, b"", decision.keys)

    def _begin_generation(self) -> None:
        """Mark in the order of changes that from here on the backup was not there."""
        self.mirror.generation_shared = False
        number = _next(self.volume)
        row = generation_row(self.volume, self._seams.random_bytes(_GENERATION_BYTES), number)
        self._publish_rows(Decision((row,), InodeNumber(0), ()), number, self.volume.time_ns(), NO_REQUEST)

    async def settle(self, inode: InodeNumber) -> None:
        number = self.mirror.unsettled(inode)
        if self._acknowledge is Acknowledge.ASYNC:
            await self.mirror.acknowledged(number)  # nobody was told yet that it may be in doubt
        else:
            await self.mirror.settled(number)

    async def flush(self, inode: InodeNumber) -> None:
        await self.settle(inode)
        at_peer = self.mirror.ask_flush(inode)  # both disks work at the same time
        try:
            await self.volume.flush(inode)
        except OSError as error:
            raise OperationFailed(error.errno or errno.EIO) from error
        failed = await self.mirror.flushed(inode, at_peer)
        if failed:
            raise OperationFailed(failed)

    @property
    def peer_durable(self) -> ChangeNumber:
        return self.mirror.peer_durable

    # --- reading ----------------------------------------------------------------------------------------

    async def _wait_met(self) -> None:
        if not self.mirror.met:
            await self.mirror.settled_state()

    async def showable(self, key: Key) -> None:
        if self._acknowledge is Acknowledge.ASYNC:
            return  # main's order is what this host sees; the backup sees it a little later
        await self._wait_met()
        while number := self.mirror.unsettled(key):
            await self.mirror.settled(number)

    def cacheable_s(self, inode: InodeNumber) -> float:
        # No longer than a backup would wait before it takes over from a killed process, whose mount is
        # still there with all that its kernel keeps.
        return 0.0 if self.mirror.unsettled(inode) else self._peer_timeout_s

    async def read(self, inode: InodeNumber, offset: int, length: int) -> bytes:
        if self._acknowledge is Acknowledge.SYNC:
            await self._wait_settled(inode, offset, length)
        return self.read_here(inode, offset, length)

    async def _wait_settled(self, inode: InodeNumber, offset: int, length: int) -> None:
        """Return when the backup holds these bytes as they are here."""
        await self._wait_met()
        while number := self.mirror.unsettled_range(inode, offset, offset + length):
            await self.mirror.settled(number)

    # --- serving the backup -------------------------------------------------------------------------------

    async def run(
        self,
        links: "trio.MemoryReceiveChannel[Link]",
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve one link after the other, purge, and verify when asked, for ever."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.mirror.run_watch)
            nursery.start_soon(self._purge_for_ever)
            nursery.start_soon(self._verify_for_ever)
            nursery.start_soon(self._commit_for_ever)
            task_status.started()
            async for link in links:
                if not link.closed:  # it may have ended while it waited to be taken
                    await self.run_link(link)

    async def run_link(self, link: Link) -> None:
        """Mirror over the link and answer its requests, until it is lost."""
        self.link, self.link_ended = link, trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.run_requests, link)
            await self.mirror.serve(link)
            nursery.cancel_scope.cancel()
        self.link = None
        self.link_ended.set()
        self.traffic.end(link)

    async def run_requests(self, link: Link) -> None:
        """Read the forward path; what needs waiting is done beside it."""
        session = link.forward
        async with trio.open_nursery() as nursery:
            try:
                while True:
                    for message, data in await session.receive():
                        if type(message) is Ended:
                            self._forget_ended(message.oldest_live, session.peer.instance)
                            continue
                        if type(message) is not Request:
                            raise RemoteProtocolError(
                                session.peer_name, f"unexpected {type(message).__name__}"
                            )
                        self._serve_request(session, message, data, nursery)
            except ChannelError as error:
                link.close(error.why)
            nursery.cancel_scope.cancel()

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
        if isinstance(operation, (Read, Flush, StartVerify, VerifyProgress, ChangePace)):
            nursery.start_soon(partial(self._answer_later, session, identity, operation))
            return
        if self.mirror.fenced:
            return  # the link is ending; the backup asks again over the next
        done = self.volume.requests_done.get(identity)
        if done is not None:
            nursery.start_soon(partial(self._answer_again, session, identity, *done))
            return
        try:
            self._make(operation, data, identity)
        except OperationFailed as error:
            session.send(Answer(identity, errno=error.errno, after=self.volume.number))

    async def _answer_again(
        self, session: Session, identity: RequestId, number: ChangeNumber, inode: InodeNumber
    ) -> None:
        """A request sent again after a broken path took effect once already (G4); its success is told
        once both volumes have it.
        """
        await self.mirror.settled(number)
        _answer(session, Answer(identity, after=number, inode=inode))

    async def _answer_later(
        self,
        session: Session,
        identity: RequestId,
        operation: Read | Flush | StartVerify | VerifyProgress | ChangePace,
    ) -> None:
        data, value, error = b"", b"", 0
        try:
            if isinstance(operation, Read):
                # Whatever this host shows its own programs: the backup must not read ahead of its copy.
                await self._wait_settled(operation.inode, operation.offset, operation.length)
                data = self.read_here(operation.inode, operation.offset, operation.length)
            elif isinstance(operation, Flush):
                await self.flush(operation.inode)
            elif isinstance(operation, StartVerify):
                await self.verify()
            elif isinstance(operation, ChangePace):
                await self.change_pace(rate_bytes=operation.rate_bytes, paused=operation.paused)
            else:
                value = msgspec.json.encode(await self.verify_report())
        except FusemirrorError as failed:
            error = failed.errno
        _answer(session, Answer(identity, errno=error, value=value), data)

    # --- in the background --------------------------------------------------------------------------------

    async def _commit_for_ever(self) -> None:
        while True:
            await trio.sleep(COMMIT_INTERVAL_S)
            await self.make_names_durable()

    async def _purge_for_ever(self) -> None:
        while True:
            await trio.sleep(PURGE_AFTER_S / 2)
            try:
                await self._purge()
            except (OSError, DiskFailed) as error:
                log.warning("deleted files could not be removed, and will be tried again: %s", error)

    async def _purge(self) -> None:
        """End inodes without names that neither host has open.

        They stay for `PURGE_AFTER_S`: a program on either host may have looked the name up just
        before it went, and may open the inode yet, as it could on a local disk.
        """
        now = trio.current_time()
        orphans = self.volume.catalog.orphans()
        self._orphans_since = {inode: self._orphans_since.get(inode, now) for inode in orphans}
        old = [inode for inode, since in self._orphans_since.items() if now - since >= PURGE_AFTER_S]
        candidates = [inode for inode in old if not self.is_open(inode)][:PURGE_BATCH_MAX]
        if not candidates:
            return
        held = await self._held_by_backup(candidates)
        free = [inode for inode in candidates if inode not in held and not self.is_open(inode)]
        if self.mirror.fenced:
            return
        if free and self.mirror.must_begin_generation:
            self._begin_generation()
        for start in range(0, len(free), PURGE_BATCH_MAX // 8):
            rows = purge_rows(self.volume.catalog, free[start : start + PURGE_BATCH_MAX // 8])
            decision = Decision(rows, InodeNumber(0), ())
            self._publish_rows(decision, _next(self.volume), self.volume.time_ns(), NO_REQUEST)

    async def _held_by_backup(self, inodes: list[InodeNumber]) -> set[int]:
        """Which of these the backup has open; all of them where it cannot be asked just now."""
        await self.mirror.settled_state()
        stream = self.mirror.stream
        if stream is None or not self.mirror.streams:
            return set()
        try:
            reply = stream.ask(lambda token: PurgeOffer(token, tuple(inodes)))
            return set((await reply.wait()).values)
        except ChannelError:
            return set(inodes)

    async def _verify_for_ever(self) -> None:
        while True:
            await self._verify_wanted.wait()
            self._verify_wanted = trio.Event()
            assert self._verifier is not None
            await self._verifier.run()

    async def wait_connected(self) -> None:
        while self.link is None or self.mirror.link is None:
            await self.mirror.changed.wait()

    async def wait_normal(self) -> None:
        while self.mirror.state is not PrimaryState.NORMAL:
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

    async def verify(self) -> None:
        if self._verifier is None or not self._verifier.report.running:
            self._verifier = Verifier(self.mirror)
            self._verify_wanted.set()

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
            "mirror_state": WORDS[mirror.state].value,
            "state": mirror.state.name.lower(),
            "reason": mirror.told_reason,
            "change": self.volume.number,
            "peer_change": mirror.peer_durable,
            "out_of_sync": {
                "images": len(mirror.out_of_sync),
                "bytes": mirror.out_of_sync.size_bytes(
                    {inode: self._size(inode) for inode in mirror.out_of_sync.whole_images()}
                ),
            },
            "resync": mirror.resync_status,
            "communication": mirror.pending_status(),
        }

    def _size(self, number: InodeNumber) -> int:
        inode = self.volume.catalog.inode(number)
        return 0 if inode is None else inode.size


def _answer(session: Session, answer: Answer, data: Buffer = b"") -> None:
    """Answer, unless the session has ended, or ends by this: the backup then asks again over the next."""
    with suppress(ConnectionLost):
        session.send(answer, data)


def _next(volume: Volume) -> ChangeNumber:
    return ChangeNumber(volume.number + 1)


def _without_privileges(mode: int) -> int:
    """As the kernel does on a write: set-group-id goes only where the group may execute."""
    kept = mode & ~stat.S_ISUID
    return kept & ~stat.S_ISGID if mode & stat.S_IXGRP else kept
