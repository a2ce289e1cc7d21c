"""Durability in both volumes: an fsync that holds on both, and checkpoints, by which marks may be dropped."""

from contextlib import suppress

import trio

from fusemirror.errors import ConnectionLost
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.limits import CHECKPOINT_INTERVAL_S
from fusemirror.mirror.authority import Authority
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.stream import Stream
from fusemirror.promise import Promise
from fusemirror.protocol.codec import refusal
from fusemirror.protocol.messages import Checkpoint, FlushImage, ForgetMarks, Reply
from fusemirror.volume.region_set import RegionSet
from fusemirror.volume.volume import Volume

_RANGES_PER_S = 10_000  # of marks: some hundredth of a second of work


class Durability:
    """See the module. `run` once for each link."""

    def __init__(self, volume: Volume, replica: Replica, authority: Authority) -> None:
        self.peer_durable = ChangeNumber(0)
        """Every change up to this one is durable in the other volume."""
        self._volume = volume
        self._replica = replica
        self._authority = authority
        self._wanted = trio.Event()
        self._turn = trio.Lock()

    # --- one image ----------------------------------------------------------------------------------------

    def ask_flush(self, inode: InodeNumber) -> Promise[Reply] | None:
        """Ask the replica to make an image durable; None where there is no stream to ask over."""
        stream = self._replica.stream
        if stream is None or not self._replica.streams:
            return None
        try:
            return stream.ask(lambda token: FlushImage(token, inode))
        except ConnectionLost:
            return None

    async def flushed(self, inode: InodeNumber, promise: Promise[Reply] | None) -> int:
        """Return the errno of a flush that `ask_flush` began, asking again over a new link.

        0 as well once the primary goes on alone: then only this volume counts.
        """
        authority, patience_s = self._authority, self._authority.io_timeout_s
        while True:
            if promise is not None:
                with suppress(ConnectionLost), trio.move_on_after(patience_s):
                    return (await promise.wait()).errno
                if not promise.settled:
                    self._replica.give_up("an fsync was not answered", patience_s)
            with trio.move_on_after(patience_s) as patience:
                await authority.until_decided()
            if patience.cancelled_caught:
                # Then it goes on alone, and brings the backup up to date with nobody waiting.
                self._replica.give_up("the backup was not brought up to date", patience_s)
                if not authority.entitled:
                    raise authority.not_permitted()
            promise = self.ask_flush(inode)
            if promise is None and authority.acknowledges_alone:
                return 0
            if promise is None:
                await authority.changed.wait()

    # --- everything ---------------------------------------------------------------------------------------

    def want_checkpoint(self) -> None:
        """Make one soon, and not only after the interval."""
        self._wanted.set()

    async def run(self, stream: Stream) -> None:
        """Make checkpoints as long as the link lasts. ConnectionLost, OSError, DiskFailed."""
        while not self._replica.streams:
            await self._authority.changed.wait()
        while True:
            self._wanted = trio.Event()
            await self.checkpoint(stream)
            # Marks that stay are written anew each time.
            pause_s = max(CHECKPOINT_INTERVAL_S, self._replica.out_of_sync.range_count / _RANGES_PER_S)
            with trio.move_on_after(pause_s):
                await self._wanted.wait()

    async def checkpoint(self, stream: Stream) -> None:
        """Make both volumes durable up to here; then the marks of what stood before it may go.

        A mark says: after a crash these bytes may differ. It may be dropped once the bytes are durable on
        both hosts, and not before, or a power cut would leave a difference that nobody looks for. So:

        1. Marks are parted at this place of the stream, here and at the other host. Those of later changes
           belong to the next checkpoint.
        2. Both hosts make durable what stands before that place.
        3. This host drops its marks first, with the number of the checkpoint. Only then does the other drop
           its own (`ForgetMarks`): of the two sets that name a difference one is always left, whoever
           crashes when. Between the two they know of different checkpoints, by which `missed` and `better`
           go (`histories.py`).

        What is out of sync at this place stays marked: it is what a crash leaves of a resync.

        One at a time. Two at once could end in the other order, and the numbers of checkpoints would go back
        on one host alone: for `histories.py` that is a copy that was put back from an older one.
        """
        async with self._turn:
            await self._checkpoint(stream)

    async def _checkpoint(self, stream: Stream) -> None:
        volume = self._volume
        number = volume.catalog.checkpoints.begun + 1
        # That it began is durable before anything is asked: a copy put back from before is known by it.
        volume.begin_checkpoint(number)
        assert volume.catalog.checkpoints.begun == number, "one is made at a time"
        epoch = volume.regions.rotate()
        keep = self._replica.out_of_sync.marks()
        durable = volume.journal.durable_number
        token = 0

        def question(given: int) -> Checkpoint:
            nonlocal token
            token = given
            return Checkpoint(given, ChangeNumber(durable), number)

        reply = stream.ask(question)
        await volume.make_durable()
        answer = await reply.wait()
        if answer.errno:
            raise ConnectionLost(stream.session.peer_name, f"its checkpoint failed with errno {answer.errno}")
        # What the other disk has declined meanwhile of changes before that place is as far behind.
        for inode, marked in self._replica.out_of_sync.marks().items():
            keep.setdefault(inode, RegionSet()).update(marked)
        if answer.number > volume.number:
            raise refusal(stream.session.peer_name, answer, "number: no such change was made")
        # Else the marks that are dropped now would be those of changes that are durable nowhere.
        assert number > volume.catalog.checkpoints.ended, "checkpoints end in their order"
        volume.end_checkpoint(number)
        assert volume.catalog.checkpoints.ended == number, "known here before marks of it go"
        volume.drop_marks(epoch, keep)
        # From here on the marks say what must be compared, so that an interrupted resync goes on.
        volume.update_identity(compare_all=False)
        stream.send(ForgetMarks(token))
        self.peer_durable = answer.number
        volume.syncing.trim(answer.number, volume.requests_done)
