"""Durability in all volumes: an fsync that holds in each, and checkpoints, by which marks may be dropped."""

from collections.abc import Sequence
from contextlib import suppress

import trio

from fusemirror.errors import ChannelError, ConnectionLost
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.limits import CHECKPOINT_INTERVAL_S
from fusemirror.mirror.authority import Authority
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.stream import Stream
from fusemirror.promise import Promise
from fusemirror.protocol.codec import refusal
from fusemirror.protocol.messages import Checkpoint, FlushImage, ForgetMarks, Reply
from fusemirror.volume.region_set import RegionSet
from fusemirror.volume.regions import Marks
from fusemirror.volume.volume import Volume

_RANGES_PER_S = 10_000  # of marks: some hundredth of a second of work


class Durability:
    """See the module. `run` once for each link."""

    def __init__(self, volume: Volume, replicas: Sequence[Replica], authority: Authority) -> None:
        self._volume = volume
        self._replicas = replicas
        self._authority = authority
        self._wanted = trio.Event()
        self._turn = trio.Lock()

    @property
    def peer_durable(self) -> ChangeNumber:
        """Every change up to this one is durable in each of the other volumes."""
        return min(replica.progress.durable for replica in self._replicas)

    # --- one image ----------------------------------------------------------------------------------------

    def ask_flush(self, inode: InodeNumber) -> list[Promise[Reply] | None]:
        """Ask the replicas to make an image durable; None for one where there is no stream to ask over."""
        return [_ask_flush(replica, inode) for replica in self._replicas]

    async def flushed(self, inode: InodeNumber, promises: list[Promise[Reply] | None]) -> int:
        """Return an errno of the flushes that `ask_flush` began, 0 where all succeeded."""
        errors = [
            await self._flushed_at(replica, inode, promise)
            for replica, promise in zip(self._replicas, promises, strict=True)
        ]
        return next(filter(None, errors), 0)

    async def _flushed_at(self, replica: Replica, inode: InodeNumber, promise: Promise[Reply] | None) -> int:
        """The errno of one replica, which is asked again over a new link.

        0 as well once the primary goes on without it: then its volume does not count.
        """
        authority, patience_s = self._authority, self._authority.io_timeout_s
        while True:
            if promise is not None:
                # A lost link leaves it open whether the image is durable there. It is asked again: twice does
                # no harm.
                with suppress(ConnectionLost), trio.move_on_after(patience_s):
                    return (await promise.wait()).errno
                # A backup that answers heartbeats and no fsync would keep the program waiting for ever (G8).
                if not promise.settled:
                    replica.give_up("an fsync was not answered", patience_s)
            # Asked again only when it is known again whose word is enough: the backup's as well, or this
            # host's alone.
            with trio.move_on_after(patience_s) as patience:
                await authority.until_decided()
            if patience.cancelled_caught:
                # Then it goes on alone, and brings the backup up to date with nobody waiting.
                replica.give_up("the backup was not brought up to date", patience_s)
                if not authority.entitled:
                    raise authority.not_permitted()
            promise = _ask_flush(replica, inode)
            if promise is None and authority.goes_without(replica):
                return 0
            if promise is None:
                await authority.changed.wait()

    # --- everything ---------------------------------------------------------------------------------------

    def want_checkpoint(self) -> None:
        """Make one soon, and not only after the interval."""
        self._wanted.set()

    async def run(self, stream: Stream) -> None:
        """Make checkpoints as long as the link lasts. ChannelError of this link, OSError, DiskFailed."""
        while True:
            while not self.may_checkpoint:
                await self._authority.changed.wait()
            # Before the checkpoint: who wants one while it is under way has changed something behind its
            # place.
            self._wanted = trio.Event()
            try:
                await self.checkpoint()
            except ChannelError as error:
                if error.args[0] == stream.session.peer_name:
                    raise
                await self._authority.changed.wait()  # it is another's, whose own link ends by it
                continue
            # Marks that stay are written anew each time.
            ranges = sum(replica.out_of_sync.range_count for replica in self._replicas)
            with trio.move_on_after(max(CHECKPOINT_INTERVAL_S, ranges / _RANGES_PER_S)):
                await self._wanted.wait()

    @property
    def may_checkpoint(self) -> bool:
        """All replicas can take part. While one is away the marks stay that say what it may lack."""
        return all(replica.stream is not None and replica.streams for replica in self._replicas)

    async def checkpoint(self) -> None:
        """Make all volumes durable up to here; then the marks of what stood before it may go. ConnectionLost
        where a replica is away, or is lost meanwhile.

        A mark says: after a crash these bytes may differ. It may be dropped once the bytes are durable on
        all hosts, and not before, or a power cut would leave a difference that nobody looks for. So:

        1. Marks are parted at this place of the streams, here and at the other hosts. Those of later changes
           belong to the next checkpoint.
        2. All hosts make durable what stands before that place.
        3. This host drops its marks first, with the number of the checkpoint. Only then do the others drop
           their own (`ForgetMarks`): of the two sets that name a difference one is always left, whoever
           crashes when. Between the two they know of different checkpoints, by which `missed` and `better`
           go (`histories.py`).

        What is out of sync at this place stays marked: it is what a crash leaves of a resync.

        One at a time. Two at once could end in the other order, and the numbers of checkpoints would go back
        on one host alone: for `histories.py` that is a copy that was put back from an older one.
        """
        streams: list[Stream] = []
        for replica in self._replicas:
            if replica.stream is None or not replica.streams:
                raise ConnectionLost(replica.known.name, "it takes part in no checkpoint now")
            streams.append(replica.stream)
        # Of links that may be lost by then: asking over one of those fails, and all marks stay.
        async with self._turn:
            await self._checkpoint(streams)

    async def _checkpoint(self, streams: list[Stream]) -> None:
        volume = self._volume
        number = volume.catalog.checkpoints.begun + 1
        # That it began is durable before anything is asked: a copy put back from before is known by it.
        volume.begin_checkpoint(number)
        assert volume.catalog.checkpoints.begun == number, "one is made at a time"
        epoch = volume.regions.rotate()
        keep: Marks = {}
        # At this place: a copy that is confirmed while the disks work was written behind it, and may be
        # durable nowhere.
        self._note_out_of_sync(keep)
        # As it is now. By this the backup lets go of records, and what is still to be made durable here could
        # need them after a power cut.
        durable = ChangeNumber(volume.journal.durable_number)
        # Asked first, so that all disks work at the same time.
        replies = [stream.ask(lambda token: Checkpoint(token, durable, number)) for stream in streams]
        await volume.make_durable()
        answers = [await reply.wait() for reply in replies]
        # What another disk has declined meanwhile of changes before that place is as far behind.
        self._note_out_of_sync(keep)
        for stream, answer in zip(streams, answers, strict=True):
            name = stream.session.peer_name
            if answer.errno:
                raise ConnectionLost(name, f"its checkpoint failed with errno {answer.errno}")
            if answer.number > volume.number:
                raise refusal(name, answer, "number: no such change was made")
        # Else the marks that are dropped now would be those of changes that are durable nowhere.
        assert number > volume.catalog.checkpoints.ended, "checkpoints end in their order"
        volume.end_checkpoint(number)
        assert volume.catalog.checkpoints.ended == number, "known here before marks of it go"
        volume.drop_marks(epoch, keep)
        # From here on the marks say what must be compared, so that an interrupted resync goes on.
        volume.update_identity(compare_all=False)
        for stream, replica, answer in zip(streams, self._replicas, answers, strict=True):
            stream.send(ForgetMarks(answer.token))
            # By its own word, as numbers behind that place may be durable as well.
            replica.progress.durable = answer.number
        # By the least of all replicas: a record stays as long as one of them may ask for it.
        volume.syncing.trim(self.peer_durable, volume.requests_done)

    def _note_out_of_sync(self, marks: Marks) -> None:
        """Add what any replica lacks."""
        for replica in self._replicas:
            for inode, marked in replica.out_of_sync.marks().items():
                marks.setdefault(inode, RegionSet()).update(marked)


def _ask_flush(replica: Replica, inode: InodeNumber) -> Promise[Reply] | None:
    if replica.stream is None or not replica.streams:
        return None
    try:
        return replica.stream.ask(lambda token: FlushImage(token, inode))
    except ConnectionLost:
        # No answer, rather than an error: the link is ending, and over the next one it is asked again.
        return None
