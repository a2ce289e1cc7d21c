"""Progress: which of main's changes a replica was sent, has applied, and keeps through a power cut.

A change that it has applied does not count yet where its image was not copied when it was made: it is held
back until that is, and so is all behind it.
"""

from fusemirror.identifiers import NO_CHANGE, ChangeNumber


class Progress:
    """Of one replica, over all its links."""

    def __init__(self, applied: ChangeNumber) -> None:
        self.applied = applied
        """The newest change that it says it has applied."""
        self.held_back: ChangeNumber | None = None
        """From this change on nothing counts as applied yet: its image is not copied."""
        self.durable = NO_CHANGE
        """Every change up to this one is durable in its volume."""
        self.shares_line = True
        """It knows of the line that changes are made in."""
        self.sent = NO_CHANGE
        """The last change that it was sent as it was made."""
        self._sent_to = b""  # the process of it that this was
        self._sent_before = NO_CHANGE  # the last one that any process before was sent

    @property
    def number(self) -> ChangeNumber:
        """The newest change that counts as applied."""
        if self.held_back is None:
            return self.applied
        return min(self.applied, ChangeNumber(self.held_back - 1))

    def hold_back(self, number: ChangeNumber) -> None:
        """Change `number` waits for it, and was not sent: it has that once it is brought up to date."""
        if self.held_back is None:
            self.held_back = number

    def release(self) -> None:
        """It has the images that changes wait for."""
        self.held_back = None

    def sends_to(self, instance: bytes) -> None:
        """From here on that process of it is sent every change as it is made."""
        if instance != self._sent_to:
            self._sent_to, self._sent_before = instance, max(self.sent, self._sent_before)

    def held_unknown_to(self, instance: bytes) -> ChangeNumber:
        """The last change that was sent to a process of it before this one: its disk may hold the data, and
        it does not know of that."""
        return self._sent_before if instance == self._sent_to else max(self.sent, self._sent_before)
