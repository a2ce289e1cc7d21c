"""What a host has whichever role it has: made once for a mount, and given to each role that it takes.

A role decides and ends; what programs hold, what is known of the peer and what is counted stays here. So a
change of the role copies nothing, and can forget nothing.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from fusemirror.background import Background
from fusemirror.channel.link import Link
from fusemirror.channel.renewal import Renewal
from fusemirror.coherence.directory_leases import DirectoryLeases
from fusemirror.coherence.locks import Locks
from fusemirror.communication.staged import Staged
from fusemirror.control.clocks import Clocks
from fusemirror.control.failed_writes import FailedWrites
from fusemirror.control.links import Links
from fusemirror.control.open_inodes import OpenInodes
from fusemirror.control.peer_news import PeerNews
from fusemirror.control.request_ids import RequestIds
from fusemirror.divergence.exchange import DivergenceExchange
from fusemirror.errors import DiskStopped, HostReplaced
from fusemirror.identifiers import NO_CHANGE
from fusemirror.mirror.access import PairAccess
from fusemirror.settings import Access
from fusemirror.volume.volume import Volume

log = logging.getLogger(__name__)


@dataclass
class ReadCounts:
    """Reads that this host's own volume answered, and those that the primary did for it."""

    local: int = 0
    routed: int = 0


class HostState:
    """See the module."""

    def __init__(
        self,
        volume: Volume,
        instance: bytes,
        renewal: Renewal | None = None,
        is_diverged: Callable[[], bool] = lambda: True,
        access: Access = Access.ROUTED,
    ) -> None:
        """`instance` names this process; `is_diverged` says whether the histories of the hosts differ now;
        `access` is in effect until another is known to be.
        """
        self.volume = volume
        self.identity = bytes.fromhex(volume.identity.host)
        self.peer_durable = NO_CHANGE
        """What the peer had durably, as roles that this host had before heard of it."""
        self.links = Links()
        self.open_inodes = OpenInodes(volume)
        self.failed_writes = FailedWrites()
        self.leases = DirectoryLeases()
        self.locks = Locks(volume)
        self.exchange = DivergenceExchange(volume, is_diverged)
        self.background = Background()
        self.news = PeerNews(volume, renewal or Renewal())
        self.clocks = Clocks(volume)
        self.request_ids = RequestIds(instance)
        self.reads = ReadCounts()
        self.access = PairAccess(access)

    def end_link(self, link: Link) -> None:
        """The link is over. Nothing where this is known."""
        if self.links.end(link):
            self.leases.forget_link()

    def retire_link(self) -> None:
        """The role ends, and its link with it; nothing that either kernel may keep counts any more."""
        if self.links.link is not None:
            self.links.link.close("the roles changed")
            self.end_link(self.links.link)
        self.leases.forget_link()

    def note_failed_write(self, staged: Staged, error: int) -> None:
        """A write failed that somebody was told had not: fsync or close says so, once to each."""
        inode = staged.operation.image
        log.warning("a write to inode %d failed after it was acknowledged: %s", inode, os.strerror(error))
        self.failed_writes.note(inode, error)
        self.volume.invalidator.data_changed(inode, own=True)

    def forget_peer(self) -> None:
        """Another host is the peer from now on."""
        self.peer_durable, self.links.met = NO_CHANGE, None

    def check_disk(self) -> None:
        """Raises DiskStopped once the disk of this host has failed, HostReplaced once another host is in its
        place: nothing is served any more."""
        health = self.volume.health
        if health.failure is not None:
            raise (
                HostReplaced(self.volume.identity.only_peer.name)
                if health.replaced
                else DiskStopped(health.failure)
            )
