"""Hearing: what a replica says over one link.

Each message goes to whom it concerns, in the states in which it may come. A goodbye, which takes its time,
ends the link.
"""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import trio

from fusemirror.channel.session import Session
from fusemirror.errors import ConnectionLost
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.states import PRIMARY_TAKES, TakingEvent
from fusemirror.protocol.codec import refusal
from fusemirror.protocol.connection import Received, shown
from fusemirror.protocol.messages import AnyMessage, Bye


class Hearing:
    """Of one replica, over the mirror path of one link."""

    def __init__(
        self, replica: Replica, session: Session, handlers: Mapping[type, Callable[[Any], None]]
    ) -> None:
        self._replica = replica
        self._session = session
        self._places = {kind: (handler, PRIMARY_TAKES[kind]) for kind, handler in handlers.items()}

    async def run(self) -> NoReturn:
        """Hear, for ever. ConnectionLost, also after a goodbye; RemoteProtocolError for what has no place."""
        while True:
            for message, _ in self._take(await self._session.receive(self._take)):
                if isinstance(message, Bye):
                    await self._take_leave(message)

    def _take(self, received: list[Received]) -> list[Received]:
        """What comes before a goodbye: without a turn of this task."""
        for index, (message, _) in enumerate(received):
            kind = type(message)
            if kind is Bye:
                return received[index:]
            handler, states = self._places.get(kind, (None, ()))
            if handler is None or self._replica.state not in states:
                self._check_place(message)
                raise refusal(self._session.peer_name, message, "it came on the wrong path")
            handler(message)
        return []

    def _check_place(self, message: AnyMessage) -> None:
        state = self._replica.state
        if state not in PRIMARY_TAKES.get(type(message), ()):
            why = f"it came when the mirror was {state.name.lower()}"
            raise refusal(self._session.peer_name, message, why)

    async def _take_leave(self, message: Bye) -> NoReturn:
        """End the link once the backup serves nothing, nor does its kernel. ConnectionLost."""
        self._check_place(message)
        replica, session = self._replica, self._session
        reason = f"it said goodbye: {shown(message.reason)}"
        if message.mounted:
            replica.leaves(reason)
            # Its Pings are not answered meanwhile: the lease ends.
            await trio.sleep_until(session.heartbeat.answered_until)
        else:
            replica.holdings.end()
        replica.room.go(TakingEvent.LEFT)  # its kernel shows nothing any more either
        raise ConnectionLost(session.peer_name, reason)
