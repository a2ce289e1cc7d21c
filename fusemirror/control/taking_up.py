"""Taking up: what a host asked as the backup, and carries out itself once it is the primary.

It is what the communication volume still holds. A kept request may have been done before, by the primary of
then, so each takes effect once (G4). Source: seed [0082].
"""

import errno
import logging
from collections import deque
from functools import partial

import trio

from fusemirror.coherence.lock_deciding import Deciding
from fusemirror.communication.staged import Staged
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.control.decisions import Decisions
from fusemirror.control.granting import Granting
from fusemirror.control.host_state import HostState
from fusemirror.control.life import RoleLife
from fusemirror.control.states import RoleEvent, RoleState
from fusemirror.control.upkeep import Upkeep
from fusemirror.errors import (
    CheckReport,
    OperationFailed,
)
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber
from fusemirror.limits import ANSWERS_PER_TURN
from fusemirror.mirror.sending import Mirror

log = logging.getLogger(__name__)


class TakingUp:
    """Of one primary, before it serves anything else."""

    def __init__(
        self,
        host: HostState,
        mirror: Mirror,
        granting: Granting,
        decisions: Decisions,
        life: RoleLife,
        upkeep: Upkeep,
        arbiter: Deciding,
        staged: CommunicationVolume | None,
    ) -> None:
        self._host = host
        self._volume = host.volume
        self._mirror = mirror
        self._granting = granting
        self._decisions = decisions
        self._life = life
        self._upkeep = upkeep
        self._arbiter = arbiter
        self._inherited: list[Staged] = [] if staged is None else staged.pending()
        self._staged = staged
        self._end_request = host.volume.requests_done.forget if staged is None else staged.retire
        self._unanswered: deque[tuple[Staged, ChangeNumber, InodeNumber]] = deque()

    async def run(self) -> None:
        """The role serves from now on; what this host had asked for as the backup goes first, in order, and
        what an earlier process has granted to the backup, if that comes within `io_timeout`.
        """
        await self._wait_beginning()
        inherited, self._inherited = self._inherited, []
        for staged in inherited:
            self._carry_out(staged)
            await trio.lowlevel.checkpoint()  # there may be many
        with trio.move_on_after(self._mirror.authority.io_timeout_s):
            while self._granting.is_owed:
                await self._granting.changed.wait()
        await self._wait_beginning()
        self._life.meet(RoleEvent.READY)
        self._upkeep.follow_clock()
        self._arbiter.go_on()
        await self._answer()

    async def _wait_beginning(self) -> None:
        await self._mirror.authority.until_decided()
        while self._life.state is not RoleState.BEGINNING:  # it is suspended
            await self._life.changed.wait()

    def _carry_out(self, staged: Staged) -> None:
        """Carry out what the communication volume holds, once: a kept request may have been done before."""
        # Requests that no store takes up again need no name, which the journal would keep.
        identity = staged.request.identity if staged.request.kept else NO_REQUEST
        try:
            done = self._volume.requests_done.get(identity)
            if done is None:
                inode = self._decisions.make(staged.operation, self._data_of(staged), identity)
            elif done.errno:
                raise OperationFailed(done.errno)
            else:
                inode = done.inode
            self._unanswered.append((staged, self._volume.number, inode))
        except OperationFailed as error:
            if self._volume.health.failure is not None:
                staged.answer.reject(error)
                return  # it stays for the next mount
            end = partial(self._end_refused, staged, error)
            if staged.request.kept and done is None:
                self._decisions.refuse(identity, staged.operation.image, error.errno, end)
            else:
                end()
        else:
            self._end_request(staged.request.identity)

    def _end_refused(self, staged: Staged, error: OperationFailed) -> None:
        staged.answer.reject(error)
        if staged.acknowledged:
            self._host.note_failed_write(staged, error.errno)
        self._end_request(staged.request.identity)

    def _data_of(self, staged: Staged) -> bytes:
        assert self._staged is not None, "it was staged there"
        try:
            return self._staged.data_of(staged)
        except OSError as error:
            self._volume.health.note(error)
            raise OperationFailed(errno.EIO) from error

    async def _answer(self) -> None:
        """Answer who asked, as soon as both volumes have it, or this host goes on alone."""
        while self._unanswered:
            doubt: CheckReport | None = None
            try:
                await self._mirror.window.acknowledged(self._unanswered[0][1])
            except CheckReport as error:  # the backup was lost, and this host may not go on alone
                doubt = error
            staged, _, inode = self._unanswered.popleft()
            if doubt is None:
                staged.answer.resolve(inode)
            else:
                staged.answer.reject(doubt)
            if len(self._unanswered) % ANSWERS_PER_TURN == 0:  # what is acknowledged is not waited for
                await trio.lowlevel.checkpoint()

    def retire(self) -> None:
        """What was not made yet is still staged, and the backup of now forwards it."""
        for staged, number, inode in self._unanswered:
            if number <= self._mirror.window.acknowledged_number:
                staged.answer.resolve(inode)
            else:
                staged.answer.reject(self._mirror.window.end_of(number))
