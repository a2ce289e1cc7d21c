"""The modes in effect at a primary: which access, and when a change is acknowledged."""

from fusemirror.control.pair_modes import PairModes
from fusemirror.control.role import RoleModes
from fusemirror.mirror.sending import Mirror
from fusemirror.protocol.messages import Modes
from fusemirror.settings import Access, Acknowledge, Communication, Settings


class PrimaryModes(RoleModes):
    """What was asked for, as far as it can be had."""

    def __init__(self, mirror: Mirror, pair: PairModes, communication: Communication | None) -> None:
        """`communication` is the kind of the volume that was staged in before; None where there is none."""
        self.acknowledge = Acknowledge.SYNC
        self.shows_at_once = False
        """What main has is shown before the backup has it; else whoever would show it waits for that."""
        self.settings: Settings | None = None
        self._mirror = mirror
        self._pair = pair
        self._communication = communication

    def configure(self, settings: Settings) -> None:
        """From now on these are asked for, and the backup is to know."""
        self.acknowledge = settings.acknowledge
        self._look()
        self._pair.set(Modes(settings.fence, self._communication or settings.communication))
        self._mirror.authority.configure(settings.fence, settings.io_timeout, settings.on_degraded)
        before, self.settings = self.settings, settings
        if before is None or settings.resync_rate != before.resync_rate:
            # Else what `fusemirror resync` has set since stays.
            self._mirror.pace.change(rate_bytes=settings.resync_rate)

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
        access, acknowledge = self._mirror.access.in_effect, self.acknowledge
        links = [replica.link for replica in self._mirror.replicas if replica.link is not None]
        if access is Access.EXCLUSIVE and not all(link.peer.takes_statuses for link in links):
            acknowledge = Acknowledge.SYNC
        peer = self._pair.peer
        communication = {} if peer is None else {"communication": str(peer.communication)}
        return {"access": str(access), "acknowledge": str(acknowledge)} | communication
