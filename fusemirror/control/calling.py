"""Calling: what the backup has asked of the primary besides changes, until it is answered.

A call waits in memory alone. It changes nothing, so there is nothing to take up again after a crash, and the
communication volume keeps its space and its store for what programs change. But it has its place among the
changes: an fsync must not reach the primary before the writes that it is to make durable.
"""

import trio

from fusemirror.communication.outstanding import Outstanding
from fusemirror.errors import OperationFailed, RoleChanged
from fusemirror.identifiers import RequestId
from fusemirror.limits import CALLS_MAX
from fusemirror.protocol.calls import Call
from fusemirror.protocol.messages import Answer, Request

PendingCall = Outstanding[tuple[Answer, bytes]]


class Calls:
    """The calls of this host that have no answer, in their order."""

    def __init__(self) -> None:
        self._waiting: dict[RequestId, PendingCall] = {}
        self._room = trio.lowlevel.ParkingLot()

    def is_full(self) -> bool:
        return len(self._waiting) >= CALLS_MAX

    async def wait_room(self) -> None:
        """Return when one more may be made."""
        while self.is_full():
            await self._room.park()

    def begin(self, request: Request, serial: int) -> PendingCall:
        """A call that stands before the change of that serial; the answer is an `Answer` and its data."""
        call = PendingCall(serial, request, b"", trio.current_time())
        self._waiting[request.identity] = call
        return call

    def find(self, identity: RequestId) -> PendingCall | None:
        return self._waiting.get(identity)

    def pending(self) -> list[PendingCall]:
        return list(self._waiting.values())

    def end(self, identity: RequestId) -> None:
        """Nobody waits for its answer any more. Nothing where there is no such call."""
        call = self._waiting.pop(identity, None)
        if call is not None:
            call.retired = True
            self._room.unpark()

    def finish(self, answer: Answer, data: bytes) -> bool:
        """Give the answer to whoever waits; False where it is for no call."""
        call = self._waiting.get(answer.identity)
        if call is None:
            return False
        self.end(answer.identity)
        if answer.errno:
            call.answer.reject(OperationFailed(answer.errno))
        else:
            call.answer.resolve((answer, data))
        return True

    def link_lost(self, error: Exception) -> None:
        """The others are made again over the next link; what is asked once gets `error`."""
        for call in self.pending():
            asked = call.request.operation
            if isinstance(asked, Call) and not asked.is_repeated:
                call.answer.reject(error)
                self.end(call.request.identity)
            elif call.abandoned:
                self.end(call.request.identity)

    def retire(self) -> None:
        """This host has the other role now, and is asked anew: it may have the answer itself."""
        for call in self.pending():
            call.answer.reject(RoleChanged())
            self.end(call.request.identity)
