"""Admission: whether the primary may make a change now, and its turn where access is exclusive.

What is made must be known to the other host one day: nothing is decided by a primary that is fenced, that the
witness does not let go on alone, or that is giving its role away. Source: seed [0074]-[0076].
"""

from fusemirror.control.decisions import Decisions
from fusemirror.control.exclusive import ExclusiveAccess, ExclusiveWrite
from fusemirror.control.granting import Granting
from fusemirror.control.host_state import HostState
from fusemirror.control.life import RoleLife
from fusemirror.control.states import RoleState
from fusemirror.control.steps import WriteEvent, WriteState
from fusemirror.errors import (
    FusemirrorError,
)
from fusemirror.identifiers import InodeNumber, RequestId
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.sending import Mirror
from fusemirror.operations import Operation
from fusemirror.protocol.framing import Buffer
from fusemirror.settings import Access


class Admission:
    """Of changes of both hosts, to the decisions of one primary."""

    def __init__(
        self,
        host: HostState,
        life: RoleLife,
        mirror: Mirror,
        exclusive: ExclusiveAccess,
        granting: Granting,
        decisions: Decisions,
    ) -> None:
        self._host = host
        self._volume = host.volume
        self._life = life
        self._mirror = mirror
        self._exclusive = exclusive
        self.granting = granting
        self.decisions = decisions

    async def admit(self, operation: Operation, length: int) -> ExclusiveWrite | None:
        """On return `operation` may be made, if it is at once: main is exclusive for it, where access is.

        Cancelled, nothing is left behind. `ChangesRefused`, `OperationFailed` for a reservation conflict.
        """
        while True:
            if self._mirror.authority.fenced:
                await self._mirror.authority.admit()
            if not self._mirror.authority.entitled:
                await self._mirror.authority.wait_entitled()
            self._life.check()
            if self._life.state is RoleState.HANDING_OVER:  # it was asked before that began
                await self._life.until_unparked()
                continue
            write = self.begin_exclusive(operation, length, self._host.identity)
            if write is None:
                if self.granting.inodes and self._waits_for_data(operation):
                    await self.granting.changed.wait()
                    continue
                return None
            await write.take_turn()
            if self.may_make_changes:
                return write
            write.meet(WriteEvent.FAILED)  # the backup, or the role, was lost while this stood by

    def _waits_for_data(self, operation: Operation) -> bool:
        """Whether it changes what is not data of a file of which the backup has written data that is on its
        way: that comes first, as it was acknowledged first."""
        return any(inode in self.granting.inodes for inode in operation.touched_inodes(self._volume.catalog))

    @property
    def may_make_changes(self) -> bool:
        """What was decided now would not be lost, or unknown to the other host for ever."""
        authority = self._mirror.authority
        return self._life.state is RoleState.SERVING and not authority.fenced and authority.entitled

    def begin_exclusive(self, operation: Operation, length: int, host: bytes) -> ExclusiveWrite | None:
        """A write that has begun to take main's exclusive status; None where none is taken."""
        if self._host.access.in_effect is Access.ROUTED:
            return None
        return self._exclusive.begin(operation, length, host)

    def carry_out(
        self,
        operation: Operation,
        data: Buffer,
        request: RequestId,
        write: ExclusiveWrite | None,
        holder: Replica | None = None,
    ) -> InodeNumber:
        """`Decisions.make`; a write keeps main's exclusive status until the backup has acknowledged."""
        if write is None or write.state is WriteState.CONFLICT:
            return self.decisions.make(operation, data, request, holder=holder)
        try:
            inode = self.decisions.make(operation, data, request, holder=holder)
        except FusemirrorError:
            write.meet(WriteEvent.FAILED)
            raise
        self._mirror.window.when_settled(self._volume.number, write.transferred)
        return inode
