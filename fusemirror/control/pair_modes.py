"""The modes of the pair: what the other host goes by, where that one's setting counts for both.

The fence is the primary's, and requests are staged where the backup says. Each host tells the other its own,
when a link begins and whenever that changes; while the other is away, what it said last counts.
"""

from contextlib import suppress

import trio

from fusemirror.channel.link import Link
from fusemirror.errors import ConnectionLost
from fusemirror.protocol.messages import Modes


class PairModes:
    """Of one host, whichever role it has."""

    def __init__(self) -> None:
        self.peer: Modes | None = None
        """What the peer said last, over any link of this mount."""
        self._own: Modes | None = None
        self._changed = trio.Event()

    def hear(self, peer: Modes) -> None:
        """The peer says what it goes by."""
        self.peer = peer

    def set(self, own: Modes) -> None:
        """This host goes by these from now on, and the peer is to know."""
        self._own = own
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def tell(self, link: Link) -> None:
        """Tell the peer, whenever it has changed, until the link is lost."""
        if not link.peer.takes_modes:
            return
        with suppress(ConnectionLost):
            while True:
                if self._own is not None:
                    link.mirror.send(self._own)
                await self._changed.wait()
