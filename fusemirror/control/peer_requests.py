"""Requests of the backup, as the primary serves them: what changes something at once and in their order.

A change that comes back over the mirror path is the answer of its request; only what changes nothing, or is
refused, is answered over the forward path. What has to wait is done beside, and ends with the link; the
backup asks again over the next. Source: seed [0053]-[0055] (JOB4).
"""

import errno
import logging
from collections import deque
from contextlib import suppress
from functools import partial

import msgspec
import trio

from fusemirror.channel.link import Link
from fusemirror.channel.session import Session
from fusemirror.coherence.directory_leases import LeaseGrants
from fusemirror.coherence.lock_deciding import Deciding
from fusemirror.control.admission import Admission
from fusemirror.control.exclusive import ExclusiveWrite
from fusemirror.control.granting import Granting
from fusemirror.control.life import RoleChange
from fusemirror.control.local_reads import read_here, seek_here
from fusemirror.control.primary_reads import PrimaryReads
from fusemirror.control.role import Role
from fusemirror.control.states import PARKED, REFUSING, RoleState
from fusemirror.control.steps import WriteEvent
from fusemirror.errors import (
    ChannelError,
    CheckReport,
    ConnectionLost,
    DiskFull,
    FusemirrorError,
    OperationFailed,
    RefusedForSafety,
    RoleChanged,
)
from fusemirror.identifiers import InodeNumber, RequestId
from fusemirror.limits import (
    FILE_BYTES_MAX,
    REFUSALS_UNRECORDED_MAX,
    REQUESTS_BESIDE_MAX,
    REQUESTS_DONE_MAX,
    STAGED_REQUESTS_MAX,
)
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.sending import Mirror
from fusemirror.mirror.states import PRIMARY_TAKES, PrimaryState
from fusemirror.operations import Operation, Release, Write
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
    AskStatus,
    CancelLock,
    Ended,
    Excluded,
    ListLocks,
    ReclaimLocks,
    ReleaseLock,
    Request,
    WantBack,
    WantNames,
)
from fusemirror.volume.requests_done import Done

log = logging.getLogger(__name__)


class PeerRequests:
    """Of the links of one primary."""

    def __init__(
        self,
        role: Role,
        mirror: Mirror,
        replica: Replica,
        admission: Admission,
        granting: Granting,
        reads: PrimaryReads,
        grants: LeaseGrants,
        arbiter: Deciding,
    ) -> None:
        self._role = role
        self._host = role.host
        self._life = role.life
        self._volume = role.host.volume
        self._mirror = mirror
        self._replica = replica
        self._admission = admission
        self._granting = granting
        self._reads = reads
        self.grants = grants
        self.arbiter = arbiter
        self._again: deque[tuple[RequestId, Done]] = deque()  # is done already, and is to be answered
        self._holds_back = False  # of this link no request is served any more

    async def run(self, link: Link) -> None:
        """Read the forward path; what needs waiting is done beside it."""
        session, self._holds_back, self._again = link.forward, False, deque()
        async with trio.open_nursery() as nursery:
            serve = partial(self._serve_messages, link, nursery)
            try:
                while True:
                    serve(await session.receive(serve))
            except ChannelError as error:
                link.end(session, error)
            except (FusemirrorError, OSError) as error:
                log.error("the requests of the backup cannot be served over this link: %s", error)
                link.close(str(error))
            nursery.cancel_scope.cancel()

    async def end_reservations_of_nobody(self) -> None:
        """End what a host holds in whose place there is another now: that one could not release it."""
        hosts = {self._host.identity, *(peer.identity for peer in self._volume.identity.peers)}
        reservations = self._volume.catalog.reservations
        left = [inode for inode, held in reservations.items() if held.holder not in hosts]
        if not left:
            return
        await self._mirror.authority.until_decided()
        for inode in left:
            with suppress(CheckReport, OperationFailed):  # the next link finds it still there
                await self._role.perform(Release(inode, preempt=True))

    def _serve_messages(self, link: Link, nursery: trio.Nursery, received: list[Received]) -> list[Received]:
        """Serve them all: none is left."""
        if len(received) == 1:
            self._serve_message(link.forward, *received[0], nursery)
            return []
        with link.mirror.corked():  # what came together goes back together
            for message, data in received:
                self._serve_message(link.forward, message, data, nursery)
        return []

    def _serve_message(
        self, session: Session, message: AnyMessage, data: Buffer, nursery: trio.Nursery
    ) -> None:
        state = self._replica.state
        if state not in PRIMARY_TAKES.get(type(message), ()):
            raise refusal(session.peer_name, message, f"it came when the mirror was {state.name.lower()}")
        if type(message) is Request:
            self._serve_request(session, message, data, nursery)
            return
        if len(nursery.child_tasks) >= REQUESTS_BESIDE_MAX:
            raise refusal(session.peer_name, message, "too many of its kind at once")
        if type(message) is Ended:
            self._forget_ended(message.oldest_live, session)
        elif type(message) is AskStatus:
            if not self._granting.takes(message.identity):
                raise refusal(session.peer_name, message, "too many of its kind at once, or this one before")
            self._ask_status(session, message, nursery)
        elif type(message) is WantNames:
            nursery.start_soon(self.grants.grant, message.directory)
        elif type(message) is WantBack:
            free = partial(self.grants.free_for_peer, of_change=message.of_change)
            nursery.start_soon(free, message.directory)
        elif type(message) is AskLock:
            self.arbiter.asked(session, message)
        elif type(message) is ReleaseLock:
            self.arbiter.released(session, message)
        elif type(message) is CancelLock:
            self.arbiter.cancelled(session, message)
        elif type(message) is ReclaimLocks:
            self.arbiter.reclaimed(session, message)
        elif type(message) is ListLocks:
            self.arbiter.list_own(session, message)
        else:
            raise refusal(session.peer_name, message, "it came on the wrong path")

    def _forget_ended(self, oldest_live: RequestId, session: Session) -> None:
        """Forget what was done of requests that stand before one in the backup's order.

        Those of the process that speaks come last. Of other processes the order is not known: theirs
        are forgotten once none of them is left. ConnectionLost, where that ends a wait of others.
        """
        instance = session.peer.instance
        if self._replica.known.forgot_requests:
            # The backup heard of it in our Hello, and has failed what was in doubt before it said this.
            self._volume.update_peer(self._replica.known, forgot_requests=False)
        theirs = oldest_live[: len(instance)]

        def has_ended(request: RequestId) -> bool:
            return request < oldest_live if request.startswith(theirs) else theirs == instance

        for request in list(self._volume.requests_done):
            if has_ended(request):
                self._volume.requests_done.forget(request)
        self._granting.free(filter(has_ended, self._granting.granted))
        self._granting.paid()
        if self._holds_back and len(self._volume.requests_done) < REQUESTS_DONE_MAX:
            raise ConnectionLost(session.peer_name, "what was held back is asked for again")

    def _hold_back(self, session: Session) -> None:
        """Serve no request of this link, as there is no room to remember it. The link stays: over it comes
        the word that makes room. What was not served is asked for again over the next, in its order.
        """
        if not self._holds_back:
            self._holds_back = True
            # Their data would be held back, too, and programs here wait for what they were granted.
            self._granting.free(self._granting.granted)
            log.warning(
                "no request of %s is served, as it may ask again for %d before: the disk of its "
                "communication volume may have failed",
                session.peer_name,
                len(self._volume.requests_done),
            )

    def _serve_request(self, session: Session, request: Request, data: Buffer, nursery: trio.Nursery) -> None:
        operation, identity = request.operation, request.identity
        try:
            operation.check()
        except OperationFailed as error:
            _answer(session, Answer(identity, errno=error.errno, after=self._volume.number))
            return
        if isinstance(operation, Call):
            if len(nursery.child_tasks) >= REQUESTS_BESIDE_MAX:
                raise refusal(session.peer_name, request, "too many of its kind at once")
            nursery.start_soon(self._answer, session, identity, operation)
            return
        if self._life.state is RoleState.HANDING_OVER:
            return  # the backup still has it, and carries it out as the primary
        if self._mirror.authority.fenced or self._volume.health.failure is not None:
            return  # the link is ending; the backup asks again over the next
        done = self._volume.requests_done.get(identity)
        if done is not None:
            self._granting.free((identity,))
            if len(self._again) >= STAGED_REQUESTS_MAX:
                raise refusal(session.peer_name, request, "too many of its kind at once")
            self._again.append((identity, done))
            if len(self._again) == 1:
                nursery.start_soon(self._answer_again, session, self._again)
            return
        if self._holds_back or len(self._volume.requests_done) >= REQUESTS_DONE_MAX:
            self._hold_back(session)
            return
        if request.kept:
            if identity in self._admission.decisions.unrecorded:
                return  # it is told once that is recorded
            if len(self._admission.decisions.unrecorded) >= REFUSALS_UNRECORDED_MAX:
                with suppress(OSError, FusemirrorError):
                    self._admission.decisions.record_refusals()
            if len(self._admission.decisions.unrecorded) >= REFUSALS_UNRECORDED_MAX:
                raise DiskFull(
                    self._volume.directory, "not even refusals of the backup's writes are recorded"
                )
            held = bytes(data) if self._granting.waits(identity) else data
            carry_out = partial(self._carry_out, session, identity, operation, held, kept=True)
            if not self._granting.arrived(identity, carry_out):
                # It was acknowledged without a status, and what its host asks after it must not pass it.
                carry_out(None)
            return
        write = self._admission.begin_exclusive(operation, len(data), self._replica.known.identity)
        if write is not None and write.stands_by:
            # The task has the write before the link can be lost, so that it ends with it.
            nursery.start_soon(self._serve_in_turn, session, identity, operation, bytes(data), write)
            session.send(Excluded(identity))
            return
        try:
            self._admission.carry_out(operation, data, identity, write, self._replica)
        except OperationFailed as error:
            self._refuse(session, identity, operation.image, error)

    def _ask_status(self, session: Session, message: AskStatus, nursery: trio.Nursery) -> None:
        """Nothing where the request is to do without: it is acknowledged once it has landed."""
        if not (self._granting.grants and self._admission.may_make_changes) or self._holds_back:
            return
        operation = Write(message.inode, message.offset)
        write = self._admission.begin_exclusive(operation, message.length, self._replica.known.identity)
        if write is not None:
            self._granting.ask(session, message, write, nursery)

    def _carry_out(
        self,
        session: Session,
        identity: RequestId,
        operation: Operation,
        data: Buffer,
        write: ExclusiveWrite | None,
        *,
        kept: bool = False,
    ) -> None:
        if self._mirror.authority.fenced or self._life.state in PARKED or self._life.state in REFUSING:
            if write is not None:
                write.end(WriteEvent.FAILED)
            return  # the link is ending; the backup asks again over the next, or carries it out itself
        try:
            self._admission.carry_out(operation, data, identity, write, self._replica)
        except OperationFailed as error:
            self._refuse(session, identity, operation.image, error, kept=kept)

    def _refuse(
        self,
        session: Session,
        identity: RequestId,
        inode: InodeNumber,
        error: OperationFailed,
        *,
        kept: bool = False,
    ) -> None:
        """Tell that nothing was done; of what the backup keeps, and may ask again, in the order of changes.
        Not where the disk failed: the backup then keeps the request that it may have acknowledged, for the
        next mount of this host, or carries it out itself.
        """
        if self._volume.health.failure is not None:
            return
        if not (kept and self._admission.decisions.refuse(identity, inode, error.errno)):
            _answer(session, Answer(identity, errno=error.errno, after=self._volume.number))

    async def _serve_in_turn(
        self, session: Session, identity: RequestId, operation: Operation, data: bytes, write: ExclusiveWrite
    ) -> None:
        """The backup has given up the subvolume's status; its data waits here, so that it travels once."""
        try:
            await write.take_turn()
        except OperationFailed as error:
            self._refuse(session, identity, operation.image, error)
        else:
            self._carry_out(session, identity, operation, data, write)

    async def _answer_again(self, session: Session, again: deque[tuple[RequestId, Done]]) -> None:
        """A request sent again after a broken path took effect once already (G4), or was refused; that is
        told once both volumes have it. All of a link by one task: a backup may ask for everything that it has
        staged. It ends when there is none left.
        """
        with suppress(ConnectionLost, RoleChanged):  # it asks again, whoever is the primary then
            while again:
                identity, done = again[0]
                await self._mirror.window.settled(done.number)
                await session.wait_room()
                _answer(session, Answer(identity, done.errno, after=done.number, inode=done.inode))
                again.popleft()  # not before: another task would begin beside this one
                if again:
                    await trio.lowlevel.checkpoint()

    async def _answer(self, session: Session, identity: RequestId, call: Call) -> None:
        """Answer a call of the backup; a hand-over that succeeds ends the link instead."""
        data, value, error = b"", b"", 0
        try:
            match call:
                case Read(inode=inode, offset=offset, length=length):
                    # Whatever this host shows its own programs: the backup must not read ahead of its copy.
                    await self._reads.wait_settled(inode, offset, length)
                    await session.wait_room()  # a peer that asks for much, and takes little, gets it later
                    data = read_here(self._host, inode, offset, length)
                case Seek(inode=inode, offset=offset, data=of_data):
                    await self._reads.wait_settled(inode, offset, FILE_BYTES_MAX)
                    value = place_value(seek_here(self._host, inode, offset, data=of_data))
                case Flush(inode=inode):
                    await self._role.flush(inode)
                case StartVerify(keep=keep):
                    await self._role.comparisons.begin(keep)
                case VerifyProgress():
                    value = msgspec.json.encode(await self._role.comparisons.report())
                case ChangePace(rate_bytes=rate_bytes, paused=paused):
                    await self._role.change_pace(rate_bytes=rate_bytes, paused=paused)
                case ChangeAccess(access=access):
                    await self._role.change_access(access)
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
        if self._replica.state is not PrimaryState.NORMAL:
            raise OperationFailed(errno.EAGAIN)
        change = self._life.ask(RoleChange("backup", "asked for by the backup", hand_over=True))
        try:
            await change.until_done()
        except (FusemirrorError, OSError):
            raise OperationFailed(errno.EAGAIN) from None


def _answer(session: Session, answer: Answer, data: Buffer = b"") -> None:
    """Answer, unless the session has ended, or ends by this: the backup then asks again over the next."""
    with suppress(ConnectionLost):
        session.send(answer, data)
