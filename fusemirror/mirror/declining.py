"""Declining: what the disk of the backup does not take of one image, while the rest of the mirror goes on.

A change of data, or what a resync brings, may meet an error that concerns one image: it was made immutable,
was replaced, or is longer than this disk takes files. Then the primary hears which change was declined, and
why (`Declined`), and the program that asked for it gets EIO; the image is out of sync until a later round of
copying brings all of it. What a broken or a full disk says concerns all images, and ends the link as ever.
Source: seed [0057], steps 709 and 710 (JOB2).
"""

import logging
from collections.abc import Iterable

from fusemirror.channel.session import Session
from fusemirror.errors import CopyDeclined
from fusemirror.identifiers import InodeNumber
from fusemirror.protocol.messages import AnyMessage, Digests, Hole, Reply
from fusemirror.volume.health import is_of_one_file
from fusemirror.volume.volume import Volume

log = logging.getLogger(__name__)


class Declining:
    """What this backup has declined over one link."""

    def __init__(self, volume: Volume) -> None:
        self.reasons: dict[InodeNumber, str] = {}
        """Images of which this disk did not take all, and why."""
        self._volume = volume
        self._this_round: set[InodeNumber] = set()  # since the primary said that it copies them

    def may(self, error: OSError, session: Session) -> bool:
        """Whether the error concerns one image, and the primary takes the word of it."""
        healthy = self._volume.health.failure is None
        return healthy and is_of_one_file(error) and session.peer.takes_declines

    def note(self, inode: InodeNumber, error: OSError) -> None:
        reason = error.strerror or str(error)
        if inode not in self.reasons:
            log.warning(
                "the image of inode %d is not written: %s; see to %s. The primary serves it, and tries again",
                inode,
                reason,
                self._volume.images.path(inode),
            )
        self.reasons[inode] = reason
        self._this_round.add(inode)

    def report(self, inode: InodeNumber) -> CopyDeclined:
        """What a program gets."""
        return CopyDeclined("this host", inode, self.reasons[inode])

    def try_again(self, inodes: Iterable[InodeNumber]) -> None:
        """The primary copies them from here on."""
        self._this_round.difference_update(inodes)

    def is_copied(self, inode: InodeNumber) -> bool:
        """The primary has copied it: whether all of it was taken."""
        if inode in self._this_round:
            return False
        if self.reasons.pop(inode, None) is not None:
            log.info("the image of inode %d is written again", inode)
        return True

    def removed(self) -> list[InodeNumber]:
        """Images that were declined, and whose inodes have gone since: nobody reads them, and nobody copies
        them again. Each is named once."""
        gone = [inode for inode in self.reasons if self._volume.catalog.inode(inode) is None]
        for inode in gone:
            del self.reasons[inode]
        self._this_round.difference_update(gone)
        return gone

    def end(self) -> None:
        """The link is over."""
        self.reasons.clear()
        self._this_round.clear()

    @property
    def reason(self) -> str | None:
        """Why the mirror state is not normal, for people."""
        return shown_reason("this host", self.reasons)


def shown_reason(host: str, reasons: dict[InodeNumber, str]) -> str | None:
    if not reasons:
        return None
    inode, reason = next(iter(reasons.items()))
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"the disk of {host} does not take the image of inode {inode}{more}: {reason}; it is tried again"


def unlike(message: AnyMessage) -> Reply | None:
    """The answer to a question about an image that cannot be looked at: all of it differs."""
    if isinstance(message, Digests):
        first = message.first_region
        return Reply(message.token, values=tuple(range(first, first + len(message.digests))))
    if isinstance(message, Hole):
        return Reply(message.token, values=(message.end_region,))
    return None
