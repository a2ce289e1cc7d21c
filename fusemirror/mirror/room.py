"""Room: the backup tells the primary how much the subvolume may still take.

The primary refuses with ENOSPC what would not fit there, before it makes the change, so a full disk
at either host meets programs and not the mirror. What is told is a sum over all changes of a link,
counted alike by both hosts: so changes that are under way when the word arrives are in it.
"""

from fusemirror.change import AnyChange
from fusemirror.channel.session import Session
from fusemirror.limits import SPACE_TOLD_BYTES_MAX, SPACE_TOLD_INODES_MAX
from fusemirror.protocol.messages import Room
from fusemirror.volume.space import Space, inodes_of, space_of


class RoomTeller:
    """The backup's side: counts what is applied, and tells when half of what it told last is taken."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._taken = self._inodes_taken = 0
        self._told = (-1, -1)
        self._due_at = self._inodes_due_at = 0

    def take(self, change: AnyChange) -> None:
        """A change was applied."""
        self._taken += space_of(change)
        self._inodes_taken += inodes_of(change)

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
        room = min(self._space.measure(), SPACE_TOLD_BYTES_MAX)
        inodes = min(self._space.inodes, SPACE_TOLD_INODES_MAX)
        if (room, inodes) == self._told and not self._is_due:
            return
        self._told = (room, inodes)
        self._due_at = self._taken + room // 2
        self._inodes_due_at = self._inodes_taken + inodes // 2
        session.send(Room(self._taken + room, inodes=self._inodes_taken + inodes))
