"""A replica: what the primary knows of one peer, in the manner of raft's Progress.

How far it has applied main's changes, in which state the mirror to it is, what it takes, what it lacks, and
how long it may still read. One object for each peer; what they have in common (the order of changes, who
may go on alone) is not here. It decides nothing that concerns another: `sending.py` and `authority.py` do,
by what all replicas say.
"""

import logging
from collections.abc import Callable
from contextlib import suppress

import trio

from fusemirror.change import AnyChange
from fusemirror.channel.link import Link
from fusemirror.channel.session import Session
from fusemirror.errors import ChannelError, ConnectionLost, TimedOut
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.limits import BACKLOG_BYTES_MAX, FILE_BYTES_MAX
from fusemirror.mirror.holdings import Holdings
from fusemirror.mirror.out_of_sync import OutOfSyncMap
from fusemirror.mirror.peer_space import PeerSpace
from fusemirror.mirror.progress import Progress
from fusemirror.mirror.states import (
    MIRROR_LOST,
    PRIMARY_ACKNOWLEDGES_ALONE,
    PRIMARY_STREAMING,
    PRIMARY_TRANSITIONS,
    PrimaryEvent,
    PrimaryState,
    Taking,
    TakingEvent,
    next_primary_state,
)
from fusemirror.mirror.status_commands import StatusCommands
from fusemirror.mirror.stream import Stream
from fusemirror.mirror.window import InFlight
from fusemirror.operations import Operation
from fusemirror.protocol.codec import refusal
from fusemirror.protocol.connection import shown
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import AnyMessage, Applied, Declined, Room, TakeStatus, WantApplied
from fusemirror.volume.identity import KnownPeer
from fusemirror.volume.volume import Volume

log = logging.getLogger(__name__)


class Replica:
    """See the module. It is there as long as this host is the primary; links come and go."""

    def __init__(self, volume: Volume, known: KnownPeer, hold_until: float) -> None:
        """Of that peer, and of one that is invited into its place later. `hold_until`: when (trio time) it
        reads nothing any more that an earlier process let it."""
        place = volume.identity.peers.index(known)
        self._known: Callable[[], KnownPeer] = lambda: volume.identity.peers[place]
        self.state = PrimaryState.HOLDING
        self.reason: str | None = "the backup has not been met since the mount"
        """Why the state is not normal."""
        self.link: Link | None = None
        self.stream: Stream | None = None
        self.session: Session | None = None
        """Of the last link: the lease that this host has of the peer outlasts it."""
        self.feed: Session | None = None
        """What changes are sent over as they are made; None where they are marked instead."""
        self.progress = Progress(volume.number)
        self.declined: dict[InodeNumber, str] = {}
        """Images that its disk does not take, and why."""
        self.room = PeerSpace()
        self.out_of_sync = OutOfSyncMap()
        self.holdings = Holdings(volume, self._known)
        self.commands = StatusCommands()
        self.hold_until = hold_until
        """Until when (trio time) it may read under a lease that it has, once it is lost."""
        # What was marked before this process began is suspect until a checkpoint with the backup.
        self.out_of_sync.add_marks(volume.regions.marks())

    @property
    def known(self) -> KnownPeer:
        """Which peer it is of, and what the volume keeps of that."""
        return self._known()

    # --- its state ----------------------------------------------------------------------------------------

    @property
    def streams(self) -> bool:
        """Every change travels to it at once, and it acknowledges."""
        return self.state in PRIMARY_STREAMING

    @property
    def is_held(self) -> bool:
        """It is lost, and may still read under its lease."""
        return self.state is PrimaryState.HOLDING

    @property
    def is_left(self) -> bool:
        """No change waits for it, where this host may go on without it."""
        return self.state in PRIMARY_ACKNOWLEDGES_ALONE

    def may_be_left(self, now: float) -> bool:
        """It shows nothing any more that a change made without it would make old."""
        return now >= self.hold_until if self.is_held else self.is_left

    def hold(self, until: float, reason: str) -> None:
        """It may read until then (trio time), unless it was met before. For a mirror that begins."""
        assert self.state is PrimaryState.HOLDING, "it has just begun"
        self.hold_until, self.reason = until, reason

    def go(self, event: PrimaryEvent, reason: str | None, *, is_meant: bool) -> None:
        """`is_meant`: nobody has to look after a peer that is lost now. IllegalTransition."""
        before, self.state = self.state, next_primary_state(self.state, event)
        self.reason = reason
        if self.state is not before:
            # A person looks after a peer that was lost; one that was unmounted is away as it was meant.
            lost = event is PrimaryEvent.LOST and before in PRIMARY_STREAMING and not is_meant
            lead, level = (MIRROR_LOST, logging.WARNING) if lost else ("mirror", logging.INFO)
            words = f": {reason}" if reason else ""
            log.log(level, "%s: %s -> %s%s", lead, before.name, self.state.name, words)

    @property
    def may_differ(self) -> bool:
        return PrimaryEvent.DIFFERED in PRIMARY_TRANSITIONS[self.state]

    # --- a link -------------------------------------------------------------------------------------------

    def linked(self, link: Link) -> Stream:
        """Nothing is sent as it is made before it has caught up, or its catalog is being copied."""
        assert self.feed is None, "one link at a time"
        self.link, self.session, self.stream = link, link.mirror, Stream(link.mirror)
        return self.stream

    def lost(self, reason: str, under_way: list[InFlight], *, permitted: bool) -> PrimaryEvent:
        """The link has ended. What is under way may have arrived or not, so it is marked. What became of the
        peer: `permitted` is whether this host may go on alone.
        """
        assert self.link is not None, "it was linked"
        link, streaming = self.link, self.streams
        # Before anybody is woken below: a change that is made from here on is marked instead of sent.
        self.feed = self.link = self.stream = None
        self.declined.clear()  # it is marked
        has_left = self.room.taking is Taking.LEFT
        self.room.forget()
        self.commands.end()
        link.close(reason)
        for entry in under_way:
            if entry.inode:
                self.out_of_sync.add_range(entry.inode, entry.start, entry.end)
        if streaming and under_way:
            # Applied there or not, it counts again once its image was compared: the next link may be to
            # another process.
            self.progress.held_back = under_way[0].number
        if streaming:
            # Else it served no reads: a link that comes and goes must not make changes wait on and on.
            self.hold_until = max(self.hold_until, link.mirror.heartbeat.answered_until)
        if not has_left:
            return PrimaryEvent.LOST
        if not permitted:
            self.hold_until = trio.current_time()  # its next process may take over
            return PrimaryEvent.LOST
        return PrimaryEvent.SAID_BYE

    def end(self, reason: str) -> None:
        """Nothing is asked over its link any more, and what was asked has no answer."""
        self.commands.end()
        if self.stream is not None:
            self.stream.end(ConnectionLost(self.stream.session.peer_name, reason))
            self.stream = None

    def give_up(self, what: str, after_s: float) -> None:
        """End a link over which something took longer than it may."""
        if self.link is not None:
            self.link.close(str(TimedOut(after_s, what)))

    # --- what it is sent ----------------------------------------------------------------------------------

    def take(self, change: AnyChange, encoded: bytes, data: Buffer) -> None:
        """Send a change in its place, or mark what of it the peer will lack."""
        feed = self.feed
        if feed is not None:
            self.room.take(change)
            try:
                feed.send_encoded(encoded, data)
                # Only what was sent: no process of it can hold more, when one of them becomes the primary
                # (`held_unknown_to`).
                self.progress.sent = change.number
                return
            except ChannelError as error:
                self.feed = None  # this change is not sent, so nothing after it may be
                if self.link is not None:
                    self.link.close(error.why)
        self.mark(change)

    def command(self, change: AnyChange, old_size_bytes: int, *, answers: bool) -> None:
        """Let it take the exclusive status of what the change shows anew, before the data has come.

        `answers`: somebody waits for that, by `commands`.
        """
        if self.feed is None or self.link is None or not self.link.peer.takes_statuses:
            return
        inode, start, end = change.data_range()
        if end > old_size_bytes:
            start, end = min(start, old_size_bytes), FILE_BYTES_MAX
        with suppress(ConnectionLost):  # the change finds it, too
            self.feed.send(TakeStatus(change.number, inode, start, end, answers))
            if answers:
                self.commands.sent(change.number)

    def mark(self, change: AnyChange) -> None:
        inode, start, end = change.data_range()
        if inode:
            self.out_of_sync.add_range(inode, start, end)

    def open_feed(self) -> None:
        """From here on it gets every change as it is made, behind what was sent before."""
        assert self.session is not None, "it is linked"
        self.feed = self.session
        self.room.begin()
        # Each process apart: what an earlier one was sent the present one may not know of, though its disk
        # has it.
        self.progress.sends_to(self.session.peer.instance)

    def say(self, message: AnyMessage) -> None:
        """Tell it something, where there is a link; it is told again when there is another."""
        if self.stream is not None:
            with suppress(ConnectionLost):
                self.stream.send(message)

    def ask_applied(self) -> None:
        """Have it say at once how far it is, where it may delay that."""
        if self.feed is not None and self.feed.peer.takes_delays:
            self.say(WantApplied())

    @property
    def congested(self) -> bool:
        """More is waiting to be sent than the backlog should hold."""
        return self.stream is not None and self.stream.session.sending.backlog_bytes > BACKLOG_BYTES_MAX

    async def wait_room(self, timeout_s: float) -> None:
        """Return when the stream takes more, or has ended: a slow peer slows whoever changes much.

        After the timeout it has ended.
        """
        stream = self.stream
        if stream is None:
            return
        with suppress(ConnectionLost), trio.move_on_after(timeout_s) as patience:
            await stream.wait_room()
        # A backup that takes nothing would hold up every program here for ever (G8).
        if patience.cancelled_caught and self.stream is stream:
            self.give_up("the backup took too little of what was sent", timeout_s)

    @property
    def takes_rows(self) -> bool:
        """A change of data may carry rows. What a backup missed any version of it gets by `send_records`."""
        return self.stream is None or self.stream.session.peer.takes_rows

    def knows(self, operation: Operation) -> bool:
        """Whether the peer, where there is one, takes what `operation` becomes.

        It copies nothing of an image that may differ there.
        """
        says, copied = operation.peer_says, operation.copied_image
        if says and self.stream is not None and not getattr(self.stream.session.peer, says):
            return False
        if not copied or self.feed is None:
            return True
        return self.streams and copied not in self.out_of_sync

    # --- what it says -------------------------------------------------------------------------------------

    def take_applied(self, message: Applied, newest: ChangeNumber) -> ChangeNumber:
        """The newest change that counts as applied. RemoteProtocolError for a change after
        `newest`, which nobody has made.
        """
        number = message.number
        # Or the window would settle changes that are yet to be made (G1).
        if number > newest:
            assert self.session is not None
            raise refusal(self.session.peer_name, message, "number: no such change was made")
        progress = self.progress
        progress.applied = number
        if self.commands.awaited:
            self.commands.applied(number)
        return number if progress.held_back is None else progress.number

    def take_declined(self, message: Declined) -> None:
        """Its disk did not take all of an image."""
        assert self.session is not None, "it has said so"
        if message.inode not in self.declined:
            log.warning(
                "the image of inode %d is not written at %s: %s; it is tried again, see the log there",
                message.inode,
                self.session.peer_name,
                shown(message.reason),
            )
        self.declined[message.inode] = shown(message.reason)
        self.out_of_sync.add_whole(message.inode)

    def forget_copied(self) -> None:
        """What was declined and is copied now is in order."""
        for inode in [each for each in self.declined if each not in self.out_of_sync]:
            log.info("the image of inode %d is copied", inode)
            del self.declined[inode]

    def take_room(self, message: Room) -> None:
        before = self.room.taking
        self.room.told(message)
        if self.room.taking is Taking.FULL and before is not Taking.FULL:
            self.reason = "the disk of the backup's volume is full; it goes on when there is room"
            log.warning("%s", self.reason)
        elif before is Taking.FULL and self.room.taking is Taking.TAKES:
            self.reason = None
            log.info("the disk of the backup's volume has room again")

    def leaves(self, reason: str) -> None:
        """It serves nothing any more, and its kernel may show for a while what it keeps."""
        self.room.go(TakingEvent.LEAVES)
        self.reason = reason

    @property
    def takes_nothing(self) -> bool:
        """It is linked, and takes no changes."""
        return self.room.taking is not Taking.TAKES
