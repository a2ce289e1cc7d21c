"""Resync: one replica becomes equal to main over a link, and is kept so.

First its names (`catching_up.py`), then its images (`copying.py`), while both hosts go on; then, as long as
the link lasts, images of which a change failed halfway here.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from fusemirror.change import AnyChange
from fusemirror.channel.link import Link
from fusemirror.channel.session import Session
from fusemirror.errors import ConnectionLost, CopyDeclined
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.limits import DECLINED_RETRY_S, INODES_PER_MESSAGE
from fusemirror.mirror.catching_up import send_attributes, send_catalog, send_records
from fusemirror.mirror.copying import Copier
from fusemirror.mirror.pace import CopyProgress, Pace
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.states import PrimaryEvent
from fusemirror.mirror.stream import Stream
from fusemirror.mirror.suspects import marks_of
from fusemirror.mirror.window import Window
from fusemirror.promise import Promise
from fusemirror.protocol.messages import CaughtUp, Normal, OutOfSync, Suspects
from fusemirror.volume.volume import Volume

PAUSED = "the resync is paused; let it go on with `fusemirror resync NAME --resume`"
"""Why the mirror state is not normal, on either host."""


class Resyncer:
    """See the module. `run` once for each link; `pace` is for all of them, and for all replicas."""

    def __init__(
        self,
        volume: Volume,
        replica: Replica,
        window: Window,
        pace: Pace,
        reached: Callable[[PrimaryEvent], None],
        applied: Callable[[ChangeNumber], None],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`reached` is called when it has caught up, and when its images are copied; `applied` with how far
        it has got once it has the images that changes wait for; `changed` when less is declined than before.
        """
        self.pace = pace
        self._volume = volume
        self._replica = replica
        self._window = window
        self._reached = reached
        self._applied = applied
        self._changed = changed
        self._progress = CopyProgress()
        self._copier: Copier | None = None
        self._suspects: Promise[None] = Promise()
        self._met_instance = b""  # of the process whose marks are known
        self._repair_wanted = trio.Event()
        self._declined_anew: set[InodeNumber] = set()  # since the replica was last told what is copied

    def repair(self, change: AnyChange) -> None:
        """A change of data failed here, perhaps halfway: its bytes are compared, now or later."""
        self._replica.mark(change)
        self._repair_wanted.set()

    def try_again(self, inode: InodeNumber) -> None:
        """The replica has declined something of an image, which is marked: copy it, now or in a while."""
        self._declined_anew.add(inode)
        self._repair_wanted.set()

    def linked(self) -> None:
        """The replica tells of its marks anew over each link."""
        self._suspects = Promise()

    def take_suspects(self, message: Suspects, session: Session) -> None:
        # A process that was there all the time has lost nothing that it acknowledged.
        if session.peer.instance != self._met_instance:
            self._replica.out_of_sync.add_marks(marks_of(message, session.peer_name))
        if message.last:
            self._suspects.resolve(None)

    async def run(self, link: Link, stream: Stream, *, copy_catalog: bool) -> None:
        """Bring the replica up to date, and repair what is to be, for ever. ConnectionLost, OSError."""
        theirs = link.peer.history
        if copy_catalog:
            # A row that was not reached yet is sent later as it then is; one that was is changed by these.
            self._replica.open_feed()
        await self._suspects.wait()
        compare_all = copy_catalog or theirs.compare_all or self._volume.identity.compare_all
        if compare_all:
            await self._mark_every_image()
        # A process that was there all the time has what these marks stand for. What it may lack was marked
        # when the link was lost (`Replica.lost`), and since.
        elif link.peer.instance != self._met_instance:
            self._replica.out_of_sync.add_marks(self._volume.regions.marks())
        # Only now: where the link is lost before, all of this is to be marked over the next one.
        self._met_instance = link.peer.instance
        await self._catch_up(stream, theirs.journal_number, copy_catalog=copy_catalog)
        # From here on it serves its programs: its names are equal, and it knows which images it may not show.
        self._reached(PrimaryEvent.CAUGHT_UP)
        await self._copy(stream)
        stream.send(Normal(self._volume.number))
        self._reached(PrimaryEvent.COPIED)
        self._progress = CopyProgress()
        while True:
            await self._repair_wanted.wait()
            # Before the copy: what is marked while that runs begins another turn.
            self._repair_wanted = trio.Event()
            self._send_out_of_sync(stream)
            await self._copy(stream)

    async def _mark_every_image(self) -> None:
        """Every image that has content, or may have some at the backup, is suspect."""
        for count, number in enumerate(self._volume.images.numbers()):
            self._replica.out_of_sync.add_whole(number)
            if count % 1_000 == 0:
                await trio.lowlevel.checkpoint()

    async def _catch_up(self, stream: Stream, theirs: ChangeNumber, *, copy_catalog: bool) -> None:
        volume, replica = self._volume, self._replica
        if copy_catalog:
            await send_catalog(stream, volume)
        else:
            theirs = await send_records(stream, volume, theirs)
        await send_attributes(stream, volume, replica.out_of_sync, None if copy_catalog else theirs)
        # No checkpoint from here on: the next change follows `CaughtUp` in the stream.
        self._send_out_of_sync(stream)
        replica.holdings.share()
        next_inode = volume.catalog.next_inode
        stream.send(CaughtUp(volume.number, volume.journal.last_number, next_inode, volume.clock.newest_ns))
        replica.open_feed()

    def _send_out_of_sync(self, stream: Stream) -> None:
        self._declined_anew.clear()
        inodes = self._replica.out_of_sync.inodes()
        for start in range(0, len(inodes), INODES_PER_MESSAGE):
            stream.send(OutOfSync(tuple(inodes[start : start + INODES_PER_MESSAGE])))

    async def _copy(self, stream: Stream) -> None:
        out_of_sync = self._replica.out_of_sync
        copier = Copier(self._volume, stream, out_of_sync, self.pace, self._progress)
        self._copier = copier
        try:
            # Changes that wait for their images to be copied go first: a program waits for each of them.
            waited_for = [entry.inode for entry in self._window.in_flight if entry.inode in out_of_sync]
            await copier.copy(dict.fromkeys(waited_for), at_once=True)
            self._note_what_is_copied()
            # Behind the images and what was declined of them: a change counts only where its bytes are there,
            # or its program hears that they are not.
            self._replica.progress.release()
            self._acknowledge_waiting()
            while out_of_sync:
                copier.tell()
                await copier.copy(out_of_sync.inodes())
                self._note_what_is_copied()
                if self._replica.declined:
                    await trio.sleep(DECLINED_RETRY_S)
                    self._send_out_of_sync(stream)
        finally:
            self._copier = None

    def _note_what_is_copied(self) -> None:
        """The replica takes no image for copied of which it has declined anything, if only a change, since it
        was told that it is copied: those are copied once more, and told of before."""
        for inode in self._declined_anew:
            if self._volume.catalog.inode(inode) is not None:
                self._replica.out_of_sync.add_whole(inode)
        self._replica.forget_copied()
        self._changed()

    def _acknowledge_waiting(self) -> None:
        """The images are copied that changes waited for; one whose image the replica declined is in doubt."""
        window, progress = self._window, self._replica.progress.number
        for entry in list(window.in_flight):
            if entry.number <= progress and (reason := self._replica.declined.get(entry.inode)) is not None:
                name = self._replica.known.name
                window.doubt(entry.number, partial(CopyDeclined, name, entry.inode, reason))
        self._applied(progress)

    @property
    def is_paused(self) -> bool:
        """There are images to copy, and a person has said that they wait."""
        return self._copier is not None and self.pace.paused

    @property
    def status(self) -> dict[str, Any] | None:
        """The field `resync` of the status: None where nothing is being copied."""
        return None if self._copier is None else self._progress.as_status(self.pace)

    def tell_pace(self) -> None:
        """The pace has changed: the replica hears how far it is, and by which pace it goes on."""
        if self._copier is not None:
            with suppress(ConnectionLost):
                self._copier.tell()
