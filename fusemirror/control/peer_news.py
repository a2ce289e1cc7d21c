"""What each host tells the other of itself, over every link and in either role, and what it heard last."""

import trio

from fusemirror.channel.link import Link
from fusemirror.channel.renewal import Renewal
from fusemirror.control.disks import Disks
from fusemirror.control.pair_modes import PairModes
from fusemirror.volume.volume import Volume


class PeerNews:
    """Of one host, as long as it is mounted."""

    def __init__(self, volume: Volume, renewal: Renewal) -> None:
        self.disks = Disks(volume)
        self.modes = PairModes()
        self.renewal = renewal

    async def run(self, link: Link) -> None:
        """Tell the peer all of it, now and whenever it changes, until the link is lost."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.disks.tell, link)
            nursery.start_soon(self.modes.tell, link)
            nursery.start_soon(self.renewal.tell, link)
