"""Room: the backup tells the primary how much the subvolume may still take.

The primary refuses with ENOSPC what would not fit there, before it makes the change, so a full disk
at either host meets programs and not the mirror. What is told is a sum over all changes of a link,
counted alike by both hosts: so changes that are under way when the word arrives are in it.
"""

import trio

from fusemirror.change import AnyChange
from fusemirror.channel.session import Session
from fusemirror.limits import COUNTER_MAX, SPACE_LOOK_INTERVAL_S, SPACE_TOLD_INODES_MAX, SPACE_TOLD_STEP_BYTES
from fusemirror.mirror.states import Taking, TakingEvent, next_taking
from fusemirror.protocol.messages import Room
from fusemirror.volume.space import Space, room_of


class SpaceTeller:
    """The backup's side: counts what is applied, and tells when half of what it told last is taken."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._taken = self._inodes_taken = 0
        self._told = (-1, -1)
        self._due_at = self._inodes_due_at = 0
        self._is_full = False  # what the primary sent did not fit

    def note_full(self) -> None:
        """A change did not fit. OSError."""
        self._is_full = True
        self._space.note_end()

    async def wait(self, session: Session) -> None:
        """After a change that did not fit, return once there is room, or the session has ended.
        ConnectionLost, OSError."""
        if self._is_full:
            session.send(Room(-1, full=True))
            while not self._space.has_grown():
                await trio.sleep(SPACE_LOOK_INTERVAL_S)
                if session.closed:
                    return
            session.send(Room(-1))
            self._is_full = False

    def take(self, change: AnyChange) -> None:
        """A change was applied."""
        size_bytes, inodes = room_of(change)
        self._taken += size_bytes
        self._inodes_taken += inodes

    def begin(self, session: Session) -> None:
        """This volume has caught up: from here on both count. OSError, ConnectionLost."""
        self._taken = self._inodes_taken = 0
        self._told = (-1, -1)
        self.tell(session)

    @property
    def _is_due(self) -> bool:
        return self._taken >= self._due_at or self._inodes_taken >= self._inodes_due_at

    def tell_if_due(self, session: Session) -> None:
        """Tell if much was taken since. OSError, ConnectionLost."""
        if self._is_due:
            self.tell(session)

    def tell(self, session: Session) -> None:
        """Tell how much room there is, unless the primary knows. OSError, ConnectionLost."""
        room = self._space.measure()
        if room > SPACE_TOLD_STEP_BYTES:  # what is reserved at once may take many
            room -= room % SPACE_TOLD_STEP_BYTES
        inodes = min(self._space.inodes, SPACE_TOLD_INODES_MAX)
        if (room, inodes) == self._told and not self._is_due:
            return
        self._told = (room, inodes)
        self._due_at = self._taken + min(room, SPACE_TOLD_STEP_BYTES) // 2
        self._inodes_due_at = self._inodes_taken + inodes // 2
        session.send(Room(min(self._taken + room, COUNTER_MAX), inodes=self._inodes_taken + inodes))


class PeerSpace:
    """The primary's side: whether the backup takes changes, what it told last, and how much of that was
    taken since."""

    def __init__(self) -> None:
        self.taking = Taking.TAKES
        self._limit: int | None = None
        self._inodes: int | None = None
        self._taken = self._inodes_taken = 0

    def forget(self) -> None:
        """The link has ended: nothing is known before the backup tells again."""
        self.go(TakingEvent.ENDED)
        self._limit = self._inodes = None

    def begin(self) -> None:
        """The backup has caught up: from here on both count."""
        self._taken = self._inodes_taken = 0

    def go(self, event: TakingEvent) -> None:
        """IllegalTransition."""
        self.taking = next_taking(self.taking, event)

    def told(self, message: Room) -> None:
        self.go(TakingEvent.FILLED if message.full else TakingEvent.EASED)
        self._limit = message.limit if message.limit >= 0 else None
        self._inodes = message.inodes if message.inodes >= 0 else None

    def take(self, change: AnyChange) -> None:
        """A change was sent."""
        size_bytes, inodes = room_of(change)
        self._taken += size_bytes
        self._inodes_taken += inodes

    def has(self, size_bytes: int, inodes: int = 0) -> bool:
        """Whether the subvolume has room for so much more, as far as this host knows."""
        if self._limit is None:
            return True
        if inodes and self._inodes is not None and self._inodes_taken + inodes > self._inodes:
            return False
        return self._taken + size_bytes <= self._limit
