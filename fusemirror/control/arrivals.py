"""Arrivals: the answers that the primary gives over the forward path, to what made no change.

An answer counts once the changes that it stands on are applied here, so that whoever is answered sees them.
Source: seed [0059], [0060].
"""

from collections import deque
from functools import partial

from fusemirror.channel.link import Link
from fusemirror.channel.session import Session
from fusemirror.communication.staged import Staged
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.control.calling import Calls
from fusemirror.control.host_state import HostState
from fusemirror.control.landing import Landing
from fusemirror.errors import (
    ChannelError,
    OperationFailed,
)
from fusemirror.mirror.applying import Applier
from fusemirror.protocol.checks import check_answer
from fusemirror.protocol.codec import refusal
from fusemirror.protocol.connection import Received
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import (
    Answer,
    AnyMessage,
    Excluded,
    StatusGranted,
)


class Arrivals:
    """Of the links of one backup. `landing` hears of main's exclusive statuses."""

    def __init__(
        self,
        host: HostState,
        communication: CommunicationVolume,
        applier: Applier,
        calls: Calls,
        landing: Landing,
    ) -> None:
        self._host = host
        self._communication = communication
        self._applier = applier
        self._calls = calls
        self._landing = landing
        self._early: deque[tuple[Answer, bytes]] = deque()  # answers that a change must precede

    async def run(self, link: Link) -> None:
        session = link.forward
        try:
            while True:
                for message, data in await session.receive(partial(self._take_in_place, session)):
                    self._take_answer(session, message, data)
                await self._answer_in_order()
        except ChannelError as error:
            link.end(session, error)

    def _take_in_place(self, session: Session, received: list[Received]) -> list[Received]:
        """Answers that stand on nothing that has yet to be applied here: without a turn of the task that
        waits for the others."""
        for index, (message, data) in enumerate(received):
            if type(message) is Answer and message.after > self._host.volume.number:
                return received[index:]
            self._take_answer(session, message, data)
            while self._early:
                self._finish(*self._early.popleft())
        return []

    def _take_answer(self, session: Session, message: AnyMessage, data: Buffer) -> None:
        if type(message) is Excluded:
            self._landing.main_is_exclusive(message.identity)
            return
        if type(message) is StatusGranted:
            self._landing.granted(message.identity)
            return
        if type(message) is not Answer:
            raise refusal(session.peer_name, message, "it came on the wrong path")
        self._check_answer(session, message, len(data))
        self._early.append((message, bytes(data)))

    def _check_answer(self, session: Session, answer: Answer, data_bytes: int) -> None:
        outstanding = self._communication.find(answer.identity) or self._calls.find(answer.identity)
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
            await self._applier.acknowledging.wait_applied(answer.after)
            self._early.popleft()
            self._finish(answer, data)

    def _finish(self, answer: Answer, data: bytes) -> None:
        if self._calls.finish(answer, data):
            return
        staged = self._communication.find(answer.identity)
        if staged is None:
            return  # its change arrived over the mirror path before this answer
        if answer.errno:
            self.refused(staged, answer.errno)
            return
        self._communication.retire(answer.identity)
        self._landing.ended(answer.identity)
        staged.answer.resolve(answer.inode)

    def refused(self, staged: Staged, error: int) -> None:
        """The primary refuses a request, by an answer or in the order of changes."""
        self._communication.retire(staged.request.identity)
        self._landing.ended(staged.request.identity)
        if staged.acknowledged:
            self._host.note_failed_write(staged, error)
        else:
            staged.answer.reject(OperationFailed(error))

    def link_lost(self) -> None:
        """What was not answered is asked again over the next link."""
        self._early.clear()
