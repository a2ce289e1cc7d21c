"""The modes in effect at a backup: which access, when a change is acknowledged, where requests are staged."""

from fusemirror.communication.volume import CommunicationVolume
from fusemirror.control.host_state import HostState
from fusemirror.control.role import RoleModes
from fusemirror.protocol.messages import Modes
from fusemirror.settings import Access, Acknowledge, Communication, Settings


class BackupModes(RoleModes):
    """What was asked for, as far as it can be had."""

    def __init__(self, host: HostState, communication: CommunicationVolume) -> None:
        self.acknowledge = Acknowledge.SYNC
        self._host = host
        self._communication = communication

    def configure(self, settings: Settings) -> None:
        """From now on these are asked for, and the primary is to know."""
        self.acknowledge = settings.acknowledge
        self._host.news.modes.set(Modes(settings.fence, Communication(self._communication.kind)))

    def in_effect(self) -> dict[str, str]:
        access, acknowledge, link = self._host.access.in_effect, self.acknowledge, self._host.links.link
        if access is Access.EXCLUSIVE and link is not None and not link.peer.takes_statuses:
            acknowledge = Acknowledge.SYNC
        peer = self._host.news.modes.peer
        return ({} if peer is None else {"fence": str(peer.fence)}) | {
            "access": str(access),
            "acknowledge": str(acknowledge),
            "communication": self._communication.kind,
        }
