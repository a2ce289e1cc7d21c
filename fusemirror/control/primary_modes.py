"""The modes in effect at a primary: which access, and when a change is acknowledged."""

from fusemirror.mirror.sending import Mirror
from fusemirror.settings import Access, Acknowledge


class PrimaryModes:
    """What was asked for, as far as it can be had."""

    def __init__(self, mirror: Mirror) -> None:
        self.acknowledge = Acknowledge.SYNC
        self.shows_at_once = False
        """What main has is shown before the backup has it; else whoever would show it waits for that."""
        self._mirror = mirror

    def configure(self, acknowledge: Acknowledge) -> None:
        """From now on it is asked for."""
        self.acknowledge = acknowledge
        self._look()

    def take_access(self, access: Access) -> None:
        """Go by this access from now on; the backup is told."""
        self._mirror.change_access(access)
        self._look()

    def _look(self) -> None:
        asynchronous = self.acknowledge is Acknowledge.ASYNC
        exclusive = self._mirror.access.in_effect is Access.EXCLUSIVE
        self.shows_at_once = asynchronous and not exclusive
        # Exclusive access promises whoever reads on the other host to see what was acknowledged here.
        self._mirror.acknowledges_statuses = asynchronous and exclusive

    def in_effect(self) -> dict[str, str]:
        """See `Role.modes_in_effect`."""
        access, acknowledge = self._mirror.access.in_effect, self.acknowledge
        links = [replica.link for replica in self._mirror.replicas if replica.link is not None]
        if access is Access.EXCLUSIVE and not all(link.peer.takes_statuses for link in links):
            acknowledge = Acknowledge.SYNC
        return {"access": str(access), "acknowledge": str(acknowledge)}
