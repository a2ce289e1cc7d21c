"""A replica of which the tests say what its link does, and by which state it is reached."""

from types import SimpleNamespace
from typing import Any, cast

from fusemirror.channel.link import Link
from fusemirror.errors import ConnectionLost
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.states import PrimaryEvent, PrimaryState
from fusemirror.protocol.framing import Buffer
from fusemirror.volume.volume import Volume

E = PrimaryEvent
WAY: dict[PrimaryState, tuple[PrimaryEvent, ...]] = {
    PrimaryState.HOLDING: (),
    PrimaryState.ALONE: (E.LEASE_OVER,),
    PrimaryState.REJOINING: (E.LEASE_OVER, E.LINKED),
    PrimaryState.RECOVERING: (E.LINKED,),
    PrimaryState.RESYNCING: (E.LINKED, E.CAUGHT_UP),
    PrimaryState.NORMAL: (E.LINKED, E.CAUGHT_UP, E.COPIED),
    PrimaryState.DIVERGED: (E.DIFFERED,),
}
"""How each state is reached from the first one."""


class FakeSession:
    """As much of a session as a replica looks at."""

    peer_name = "beta"

    def __init__(self) -> None:
        self.peer = SimpleNamespace(instance=b"one", takes_delays=True)
        self.heartbeat = SimpleNamespace(lease_until=0.0, answered_until=0.0)
        self.sending = SimpleNamespace(backlog_bytes=0)
        self.sent: list[tuple[Any, bytes]] = []
        self.close_reason: str | None = None

    @property
    def closed(self) -> bool:
        return self.close_reason is not None

    def send(self, message: Any, data: Buffer = b"") -> None:
        self.send_encoded(message, data)

    def send_encoded(self, encoded: Any, data: Buffer = b"") -> None:
        if self.close_reason is not None:
            raise ConnectionLost(self.peer_name, self.close_reason)
        self.sent.append((encoded, bytes(data)))


class FakeLink:
    """A link whose mirror path is a fake session."""

    def __init__(self, session: FakeSession) -> None:
        self.mirror = session

    def close(self, reason: str) -> None:
        self.mirror.close_reason = self.mirror.close_reason or reason


def replica_in(volume: Volume, state: PrimaryState) -> tuple[Replica, FakeSession]:
    """A replica in that state, linked where it is one of a link."""
    replica, session = Replica(volume, volume.identity.only_peer, hold_until=0.0), FakeSession()
    for event in WAY[state]:
        if event is E.LINKED:
            replica.linked(cast(Link, FakeLink(session)))
        if event is E.CAUGHT_UP:
            replica.open_feed()
        replica.go(event, None, is_meant=True)
    return replica, session
