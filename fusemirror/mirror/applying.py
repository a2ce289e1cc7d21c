"""The backup's half of the mirror: applies what arrives, in its order, and says so.

One task reads the mirror path. Each message takes effect where it stands in the stream: a change is
applied to the subvolume, a checksum is compared with the content as it is at that place. A change
that names a request of this host carries no data: the communication volume still holds it, and the
change is the answer that its program waits for. Source: seed [0056]-[0060] (JOB2).
"""

import errno
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from fusemirror.change import AllocateChange, AnyChange, NamespaceChange, Table, TruncateChange, WriteChange
from fusemirror.channel.session import Session
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.errors import (
    BadChange,
    BadRow,
    ChannelError,
    ConnectionLost,
    DiskFailed,
    DiskFull,
    FusemirrorError,
    IllegalTransition,
    OperationFailed,
    RemoteProtocolError,
    SequenceGap,
)
from fusemirror.identifiers import ROOT_INODE, ChangeNumber, InodeNumber
from fusemirror.limits import (
    CHECKPOINTS_OPEN_MAX,
    COUNTER_SKIPPED_MAX,
    HANDSHAKE_TIMEOUT_S,
    REQUESTS_BESIDE_MAX,
    SPACE_LOOK_INTERVAL_S,
)
from fusemirror.mirror.fetching import fetch_region, fetch_rows, replace_rows
from fusemirror.mirror.histories import generations_of
from fusemirror.mirror.room import RoomTeller
from fusemirror.mirror.states import (
    BACKUP_SERVES,
    BACKUP_TAKES,
    MIRROR_LOST,
    BackupEvent,
    BackupState,
    next_backup_state,
)
from fusemirror.mirror.suspects import suspects_of
from fusemirror.promise import Promise
from fusemirror.protocol.codec import refusal
from fusemirror.protocol.connection import Received, shown
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import (
    AccessInEffect,
    AnyMessage,
    Applied,
    Begin,
    Bye,
    CatalogRows,
    CaughtUp,
    Checkpoint,
    Digests,
    FetchRegion,
    FetchRows,
    FlushImage,
    ForgetMarks,
    HandOver,
    Hole,
    ImageCopied,
    Normal,
    OutOfSync,
    PurgeOffer,
    RegionData,
    ReplaceRows,
    Reply,
    Resync,
    Room,
    RowsDigest,
)
from fusemirror.settings import Access
from fusemirror.volume.catalog import key_inode
from fusemirror.volume.health import disk_error
from fusemirror.volume.inode import Inode
from fusemirror.volume.volume import Volume

log = logging.getLogger(__name__)

Work = Callable[[], Awaitable[None]]
"""What a handler leaves to be done beside the stream, as long as the session lives."""

_NOT_FOR_HERE = (BadChange, BadRow, IllegalTransition, OperationFailed, SequenceGap)
"""What a handler raises, before it changed anything, for a message that this volume cannot take."""

_CHANGES = (WriteChange, TruncateChange, AllocateChange, NamespaceChange)

Handler = Callable[[Any, Buffer, Session], Work | None]
"""Takes a message, the data beside it, and the session that it came by."""


class Applier:
    """See the module. `serve` runs once per link; in between the state is DISCONNECTED."""

    def __init__(
        self,
        volume: Volume,
        communication: CommunicationVolume,
        give_up: Callable[[tuple[InodeNumber, ...]], tuple[InodeNumber, ...]],
        take_role: Callable[[int], None],
        others: Mapping[type, Handler] | None = None,
    ) -> None:
        """`give_up(inodes)` returns which of these inodes without names are open here; the others nobody
        here opens any more. `take_role(term)` is called when the primary has handed its role to this host;
        `others` take the messages that are none of the mirror's business, in their place of the stream.
        """
        self._take_role = take_role
        self.volume = volume
        self.state = BackupState.DISCONNECTED
        self.reason: str | None = "the primary has not been met since the mount"
        self.changed = trio.Event()
        self.out_of_sync: set[InodeNumber] = set()
        self.access = Access.ROUTED  # as the primary said last
        self.resync: Resync | None = None  # how far it is, as the primary said last
        self._communication = communication
        self._give_up = give_up
        self._told = volume.number  # the newest change that the primary knows to be applied here
        self._progress: Promise[None] | None = None
        self._room = RoomTeller(volume.space)
        self._full = False  # what the primary sent did not fit
        self._left = False  # the primary said goodbye, or gave its role to this host
        self._made: list[InodeNumber] = []  # files of the primary's programs, whose images are to be prepared
        self._epochs: dict[int, int] = {}  # token of a checkpoint that is durable -> the epoch that it ends
        self._works = 0  # what handlers left to be done beside the stream
        self._others = others or {}
        self._handlers: dict[type, Callable[[Any, Buffer], Work | None]] = {
            WriteChange: self._change,
            TruncateChange: self._change,
            AllocateChange: self._change,
            NamespaceChange: self._change,
            Begin: self._begin,
            AccessInEffect: self._access_in_effect,
            CatalogRows: self._catalog_rows,
            OutOfSync: self._out_of_sync_images,
            CaughtUp: self._caught_up,
            Digests: self._digests,
            Hole: self._hole,
            RegionData: self._region_data,
            ImageCopied: self._image_copied,
            Normal: self._normal,
            FlushImage: self._flush_image,
            Checkpoint: self._checkpoint,
            ForgetMarks: self._forget_marks,
            PurgeOffer: self._purge_offer,
            RowsDigest: self._rows_digest,
            Resync: self._resync_progress,
            HandOver: self._hand_over,
            ReplaceRows: self._replace_rows,
            FetchRows: self._fetch_rows,
            FetchRegion: self._fetch_region,
            Bye: self._bye,
        }

    @property
    def serves(self) -> bool:
        return self.state in BACKUP_SERVES

    def _go(self, event: BackupEvent, reason: str | None = None) -> None:
        before, self.state = self.state, next_backup_state(self.state, event)
        self.reason = reason
        if self.state is not before:
            lost = event is BackupEvent.LOST and before in BACKUP_SERVES and not self._left
            level = logging.WARNING if lost else logging.INFO
            words = f": {reason}" if reason else ""
            lead = MIRROR_LOST if lost else "mirror"
            log.log(level, "%s: %s -> %s%s", lead, before.name, self.state.name, words)
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def differ(self, reason: str) -> None:
        """The peer was met, and no copy is to be made equal to the other."""
        if self.state is BackupState.DISCONNECTED:
            log.error("%s; nothing was merged or overwritten, see fusemirror(7)", reason)
        if self.state in (BackupState.DISCONNECTED, BackupState.DIVERGED):
            self._go(BackupEvent.DIFFERED, reason)

    async def serve(self, session: Session) -> str:
        """Apply what arrives over one session until it is lost; return why it was.

        On return the volume holds a prefix of what was sent, and the state is DISCONNECTED.
        """
        try:
            reason = await self.run_session(session)
        finally:
            self._epochs.clear()
            self._works = 0
        self.resync = None
        self._go(BackupEvent.LOST, reason)
        return reason

    async def run_session(self, session: Session) -> str:
        """Read until the session ends; tasks that make things durable live as long."""
        reason = ""
        self._session = session
        self._left = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_room, session)
            try:
                await self._wait_room(session)
                await self._apply_all(session, nursery.start_soon)
            except RemoteProtocolError as error:
                reason = error.why
                session.refuse(error)
            except ChannelError as error:
                reason = error.why
            except DiskFull as error:
                reason = str(error)
                self._full = True
                self.volume.space.note_end()
                await self._leave(session, reason)
            except (FusemirrorError, OSError) as error:
                # What cannot be applied here must not be skipped: the link ends, the primary marks it.
                log.error("cannot apply what the primary sent: %s", error)
                reason = str(error)
            session.close(reason)
            nursery.cancel_scope.cancel()
        return reason

    async def _apply_all(self, session: Session, start: Callable[[Work], None]) -> None:
        in_place = partial(self._apply_in_place, session)
        while True:
            for message, data in await session.receive(in_place):
                work = self._take(message, data, session)
                if work is not None:
                    if self._works >= REQUESTS_BESIDE_MAX:
                        raise refusal(session.peer_name, message, "too many of its kind at once")
                    self._works += 1
                    start(partial(self._work, work))
            self._tell_applied(session)

    def _apply_in_place(self, session: Session, received: list[Received]) -> list[Received]:
        """Apply the changes that come before anything else, and say so, without the task of the stream."""
        if self.state is not BackupState.NORMAL:
            return received
        for index, (message, data) in enumerate(received):
            if type(message) not in _CHANGES:
                return received[index:]
            self._take(message, data, session)
        self._tell_applied(session)
        return []

    def _tell_applied(self, session: Session) -> None:
        """One acknowledgement for all that came together."""
        if self.volume.number > self._told and self.state in BACKUP_SERVES:
            self._told = self.volume.number
            session.send(Applied(self._told))
            if self._progress is not None:
                self._progress.resolve(None)
            self._room.tell_if_due(session)
        # While the primary goes on: most files are written next.
        while self._made:
            self.volume.prepare_image(self._made.pop())

    def _take(self, message: AnyMessage, data: Buffer, session: Session) -> Work | None:
        """Do what the message says. RemoteProtocolError: it has no place here, and nothing was changed."""
        kind = type(message)
        if self.state not in BACKUP_TAKES.get(kind, ()):
            raise refusal(
                session.peer_name, message, f"it came when the mirror was {self.state.name.lower()}"
            )
        try:
            handler = self._handlers.get(kind)
            if handler is not None:
                return handler(message, data)
            return self._others[kind](message, data, session)
        except _NOT_FOR_HERE as error:
            raise refusal(session.peer_name, message, error) from error
        except OSError as error:
            self.volume.health.note(error)
            raise disk_error(self.volume.directory, error) from error

    async def _work(self, work: Work) -> None:
        await work()
        self._works -= 1

    # --- room on the disk ---------------------------------------------------------------------------------

    async def _watch_room(self, session: Session) -> None:
        """Look at the disk from time to time: others fill it, and free it."""
        with suppress(ConnectionLost):
            while True:
                await trio.sleep(SPACE_LOOK_INTERVAL_S)
                try:
                    if self.serves:
                        self._room.tell(session)
                except OSError as error:
                    self.volume.health.note(error)
                    session.close(str(error))

    async def _wait_room(self, session: Session) -> None:
        """After a change that did not fit, take nothing before there is room. ConnectionLost, OSError."""
        if self._full:
            session.send(Room(-1, full=True))
            while not self.volume.space.has_grown():
                await trio.sleep(SPACE_LOOK_INTERVAL_S)
                if session.closed:
                    return
            session.send(Room(-1))
            self._full = False

    async def _leave(self, session: Session, reason: str) -> None:
        """Say goodbye, so that the primary goes on alone once this host's kernel keeps nothing: nothing is
        read here from now on.
        """
        log.error("%s", reason)
        self._go(BackupEvent.LOST, reason)
        with suppress(ConnectionLost), trio.move_on_after(HANDSHAKE_TIMEOUT_S):
            session.send(Bye(reason, mounted=True))
            await session.discard()  # until the primary ends the link: closing could overtake the word

    async def wait_applied(self, number: ChangeNumber) -> None:
        """Return when change `number` is applied here. One task waits at a time."""
        while self.volume.number < number:
            self._progress = Promise()
            await self._progress.wait()
            self._progress = None

    # --- changes --------------------------------------------------------------------------------------

    def _change(self, change: AnyChange, data: Buffer) -> None:
        staged = self._communication.find(change.request) if change.request else None
        if type(change) is WriteChange and change.request:
            if staged is not None:
                operation = staged.operation
                if not operation.carries_data or operation.image != change.inode:
                    raise BadChange("it names a request that was for something else")
                data = staged.data
            elif not data:  # one that was the primary's own comes with its data
                raise BadChange("it names a request that is not pending")
        if change.rows:
            self.volume.check_change(change)
        if (
            type(change) is NamespaceChange
            and staged is None
            and not self.volume.catalog.stored_inode(change.inode)
        ):
            self._made.append(change.inode)
        if self.state is BackupState.CATCHING_UP:
            # Names come before the images that they were given with.
            self.volume.update_identity(consistent=False)
        self.volume.apply(change, data, are_checked=True)
        self._room.take(change)
        if change.request:
            self.volume.forget_request(change.request)  # only a primary is asked about them
        if staged is not None:
            self._communication.retire(change.request)
            staged.answer.resolve(change.inode)

    # --- catching up ----------------------------------------------------------------------------------

    def _begin(self, message: Begin, _: Buffer) -> None:
        what = "all names" if message.copy_catalog else "the changes that it missed"
        self._go(BackupEvent.BEGUN, f"this host gets {what} first, and its programs wait")
        self._send_suspects()
        if message.copy_catalog:
            self.volume.begin_catalog_copy()
        else:
            self.volume.rewind()

    def _access_in_effect(self, message: AccessInEffect, _: Buffer) -> None:
        self.access = message.access

    def _send_suspects(self) -> None:
        for message in suspects_of(self.volume.regions.marks()):
            self._session.send(message)

    def _catalog_rows(self, message: CatalogRows, _: Buffer) -> None:
        if not self.volume.copying:
            self._check_attributes(message)
        self.volume.copy_rows(message.rows)

    def _check_attributes(self, message: CatalogRows) -> None:
        """But for a copy of the catalog, rows bring only attributes of files that are here. BadRow."""
        for table, key, _ in message.rows:
            inode = self.volume.catalog.stored_inode(key_inode(key)) if table == Table.INODES else None
            if inode is None or not inode.is_regular:
                raise BadRow(f"table {table}, key {key.hex()}: not of a file that is here")
        contradiction = self.volume.catalog.contradiction(message.rows)
        if contradiction is not None:
            raise BadRow(contradiction)

    def _out_of_sync_images(self, message: OutOfSync, _: Buffer) -> None:
        self.volume.update_identity(consistent=False)
        for inode in message.inodes:
            if self.volume.catalog.stored_inode(inode) is not None:  # of what has gone nobody reads
                self.out_of_sync.add(inode)
                self.volume.watcher.image_suspect(inode)

    def _caught_up(self, message: CaughtUp, _: Buffer) -> None:
        if self.volume.copying:
            if self.volume.catalog.inode(ROOT_INODE) is None or not generations_of(self.volume):
                raise BadChange("the copy of the catalog is not whole")
            self.volume.finish_catalog_copy(message.number, message.journal_number, message.time_ns)
        else:
            self.volume.advance(message.number)
        self.volume.catalog.reserve_inodes(InodeNumber(message.next_inode - 1))
        self._told = message.number
        self._session.send(Applied(self._told))
        self._room.begin(self._session)
        self._go(BackupEvent.CAUGHT_UP)

    # --- images ---------------------------------------------------------------------------------------

    def _digests(self, message: Digests, _: Buffer) -> None:
        if self._file(message.inode) is not None and message.mend:
            self.volume.copy_size(message.inode, message.size)
        ours = self.volume.images.region_digests(message.inode, message.first_region, len(message.digests))
        differing = [
            message.first_region + index
            for index, digest in enumerate(message.digests)
            if index >= len(ours) or ours[index] != digest
        ]
        if not message.mend and self.volume.images.size(message.inode) != message.size:
            differing.append(-1)
        self._session.send(Reply(message.token, values=tuple(differing)))

    def _hole(self, message: Hole, _: Buffer) -> None:
        differing: list[int] = []
        if message.mend:
            looked = message.end_region
            if self._file(message.inode) is not None:
                self.volume.copy_size(message.inode, message.size)
                looked = self.volume.copy_hole(message.inode, message.first_region, message.end_region)
        else:
            images = self.volume.images
            differing, looked = images.data_in(message.inode, message.first_region, message.end_region)
            if images.size(message.inode) != message.size:
                differing.append(-1)
        self._session.send(Reply(message.token, values=(looked, *differing)))

    def _file(self, number: InodeNumber) -> Inode | None:
        """The file whose image a message is about; None where it has gone meanwhile, or its row is damaged
        here: the primary sends the row first. BadChange."""
        inode = self.volume.catalog.sound_inode(number)
        if inode is not None and not inode.is_regular:
            raise BadChange(f"inode {number} is no file")
        return inode

    def _region_data(self, message: RegionData, data: Buffer) -> None:
        inode = self._file(message.inode)
        if inode is None:
            raise BadChange(f"there is no inode {message.inode}")
        kept = data[: max(0, inode.size - message.offset)]
        if kept:
            self.volume.copy_data(message.inode, message.offset, kept)

    def _image_copied(self, message: ImageCopied, _: Buffer) -> None:
        self.out_of_sync.discard(message.inode)
        if not self.out_of_sync and self.state is BackupState.NORMAL:
            self.volume.update_identity(consistent=True)

    def _normal(self, message: Normal, _: Buffer) -> None:
        self.out_of_sync.clear()
        self.volume.update_identity(complete=True, compare_all=False, consistent=True)
        self.resync = None
        self._go(BackupEvent.COPIED)

    def _resync_progress(self, message: Resync, _: Buffer) -> None:
        self.resync = message

    # --- durability -------------------------------------------------------------------------------------

    def _flush_image(self, message: FlushImage, _: Buffer) -> Work:
        return partial(self._flush, self._session, message)

    async def _flush(self, session: Session, message: FlushImage) -> None:
        error = 0
        try:
            await self.volume.flush(message.inode)
        except (OSError, DiskFailed) as failed:
            log.error("fsync: %s", disk_error(self.volume.directory, failed))
            error = failed.errno or errno.EIO
        _reply(session, Reply(message.token, errno=error))

    def _checkpoint(self, message: Checkpoint, _: Buffer) -> Work:
        if message.checkpoint > self.volume.checkpoint_begun + COUNTER_SKIPPED_MAX:
            raise BadChange(f"checkpoint {message.checkpoint} is beyond what can be")
        if len(self._epochs) >= CHECKPOINTS_OPEN_MAX or message.token in self._epochs:
            raise BadChange("too many checkpoints whose marks were not forgotten")
        # The marks are parted here, at this place of the stream; making them durable takes its time.
        return partial(self._make_durable, self._session, message, self.volume.regions.rotate())

    async def _make_durable(self, session: Session, message: Checkpoint, epoch: int) -> None:
        error, number = 0, ChangeNumber(0)
        try:
            number = await self.volume.make_durable()
            self.volume.end_checkpoint(message.checkpoint)
            self.volume.trim(message.durable)
            self._epochs[message.token] = epoch
        except (OSError, DiskFailed) as failed:
            log.error("checkpoint: %s", disk_error(self.volume.directory, failed))
            error = failed.errno or errno.EIO
        _reply(session, Reply(message.token, errno=error, number=number))

    def _forget_marks(self, message: ForgetMarks, _: Buffer) -> None:
        epoch = self._epochs.pop(message.token, None)
        if epoch is None:
            raise BadChange("there is no such checkpoint, or it is not durable here")
        self.volume.drop_marks(epoch)
        # The primary's own marks say from now on which images are not copied yet.
        self.volume.update_identity(complete=True, compare_all=False)

    # --- questions ----------------------------------------------------------------------------------------

    def _purge_offer(self, message: PurgeOffer, _: Buffer) -> None:
        self._session.send(Reply(message.token, values=self._give_up(message.inodes)))

    def _rows_digest(self, message: RowsDigest, _: Buffer) -> None:
        count, digest = self.volume.catalog.digest(message.table, message.first, message.last, message.count)
        same = (count, digest) == (message.count, message.digest)
        self._session.send(Reply(message.token, values=() if same else (count,)))

    def _hand_over(self, message: HandOver, _: Buffer) -> None:
        # One that was overtaken by another change of roles is not for us any more.
        term = self.volume.identity.term
        if message.term > term + COUNTER_SKIPPED_MAX:
            raise BadChange(f"term {message.term} is beyond what can be")
        if message.term > term:
            self._left = True
            self._take_role(message.term)

    def _replace_rows(self, message: ReplaceRows, _: Buffer) -> None:
        replace_rows(self.volume, message)

    def _fetch_rows(self, message: FetchRows, _: Buffer) -> None:
        self._session.send(fetch_rows(self.volume, message))

    def _fetch_region(self, message: FetchRegion, _: Buffer) -> None:
        self._session.send(fetch_region(self.volume, message))

    def _bye(self, message: Bye, _: Buffer) -> None:
        self._left = True
        raise ChannelError(f"the primary said goodbye: {shown(message.reason)}")


def _reply(session: Session, reply: Reply) -> None:
    """Answer, unless the session has ended, or ends by this: then nobody waits for it."""
    with suppress(ConnectionLost):
        session.send(reply)
