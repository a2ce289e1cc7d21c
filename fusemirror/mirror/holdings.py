"""Holdings: which inodes without names the backup may have open, and so which ones a purge may end.

An inode that has lost its last name lives on while a program of either host has it open, or the kernel of
either host holds it (`CacheInvalidator.has_let_go`), which counts as open here. The primary ends it by a
change, a purge, once it knows that nobody has. Of its own host it knows that at any time. Of the backup it
knows what that answered over the present link, and while there is none `below`: only inodes with smaller
numbers can be open there, because the others were given when it heard of nothing any more. A purge ends
nothing else:

==========================  ============================================================================
Normal, resyncing           What the backup is asked for and does not have open. It answers at the place
                            of the question in the stream, and opens none of those again.
Catching up, waiting for    Nothing. What the backup holds is not known, and names that it has yet to
the lease to end            hear of may be those of inodes that it has open.
Alone, diverged             Inodes from `below` on, which is where this host's line of changes began.
                            The others may be open at the backup, whatever it answered before: it may
                            have opened them since. They stay until it answers over a link.
The backup was unmounted    Everything: its kernel is gone, and with it all that it had open. What its
in good order               next process opens before it meets its primary (`stale_reads`) is of an old
                            copy, and may be found gone.
Switch                      As normal: the new primary asks the old one, and until they meet it waits.
Take-over                   As alone: what was there before, programs of the old primary may have open.
The primary was restarted   As alone, from the `below` that the identity keeps. A purge is never the
                            first change alone, so that none makes a split brain of a restored copy.
The backup was restarted,   As normal: its new process answers what it has open, which is nothing of
restored or replaced        what its earlier ones had.
Both were restarted         As normal once they meet; as alone before.
The backup is gone for good As alone. What stays is no more than what there was when it went; `status`
                            counts it. It goes once another volume is joined in its place.
==========================  ============================================================================
"""

from collections.abc import Callable

from fusemirror.errors import ChannelError
from fusemirror.identifiers import InodeNumber
from fusemirror.mirror.stream import Stream
from fusemirror.protocol.messages import PurgeOffer
from fusemirror.volume.identity import KnownPeer
from fusemirror.volume.volume import Volume

_NONE = InodeNumber(0)


class Holdings:
    """What the primary knows of that; see the module."""

    def __init__(self, volume: Volume, known: Callable[[], KnownPeer]) -> None:
        """`known` is what the volume says of the backup."""
        self._volume = volume
        self._known = known
        self.below: InodeNumber | None = known().held_below
        """Only inodes with smaller numbers can be open at the backup; None: any can."""

    def part(self) -> None:
        """A line of changes begins that the backup hears nothing of."""
        if self.below is None:
            self.below = self._volume.catalog.next_inode

    def end(self) -> None:
        """The backup was unmounted in good order."""
        self.below = _NONE

    def share(self) -> None:
        """The backup is about to hear of all inodes. Durable on return. OSError."""
        self.below = None
        self._volume.update_peer(self._known(), held_below=None)

    async def not_held(
        self, inodes: list[InodeNumber], stream: Stream | None, *, alone: bool
    ) -> list[InodeNumber]:
        """Those of these inodes without names that the backup has not open, and will not open any more.

        `stream`: where to ask, if the backup has caught up. `alone`: a line of changes has begun that
        it hears nothing of. OSError.
        """
        if stream is not None:
            try:
                reply = await stream.ask(lambda token: PurgeOffer(token, tuple(inodes))).wait()
            except ChannelError:
                return []
            held = set(reply.values)
            return [inode for inode in inodes if inode not in held]
        if not alone or self.below is None:
            return []
        self._volume.update_peer(self._known(), held_below=self.below)  # for the next process of this host
        return [inode for inode in inodes if inode >= self.below]
