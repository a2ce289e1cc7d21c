"""The link of a host to its peer: the one that lives, and what is known of those that ended."""

import logging

import trio

from fusemirror.channel.link import Link
from fusemirror.control.traffic import Traffic
from fusemirror.errors import ChannelError
from fusemirror.protocol.messages import Bye, Hello

log = logging.getLogger(__name__)


class Links:
    """At most one link lives, and the role of this host serves it."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.ended = trio.Event()
        """Set once the link that lives, or lived last, is over."""
        self.met: Hello | None = None
        """The peer as it was met last, where that changed what this host is."""
        self.traffic = Traffic()
        self.lost_at: float | None = None

    def begin(self, link: Link) -> None:
        """`link` lives from now on."""
        self.link, self.ended = link, trio.Event()

    def end(self, link: Link) -> bool:
        """The link is over; whether that is news."""
        if self.link is not link:
            return False
        self.link = None
        self.traffic.end(link)
        self.lost_at = trio.current_time()
        self.ended.set()
        return True

    async def say_goodbye(self, reason: str, *, mounted: bool = False) -> None:
        """End the link in good order: the peer hears that this host serves nothing from now on, but for
        what the kernel of one that stays mounted keeps.

        The peer ends it; closing it here could overtake the word.
        """
        if self.link is None:
            return
        try:
            await self.link.forward.wait_sent()
            self.link.mirror.send(Bye(reason, mounted))
            await self.ended.wait()
        except ChannelError as error:
            log.info("stopped without a goodbye: %s", error)

    def last_contact_seconds(self) -> float | None:
        """How long ago the last link was lost; 0 while there is one, None if there was none yet."""
        if self.link is not None:
            return 0.0
        return None if self.lost_at is None else round(trio.current_time() - self.lost_at, 3)
