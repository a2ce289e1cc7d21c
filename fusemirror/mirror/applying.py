"""The backup's half of the mirror: applies what arrives, in its order, and says so.

One task reads the mirror path. Each message takes effect where it stands in the stream: a change is
applied to the subvolume, a checksum is compared with the content as it is at that place. A change
that names a request of this host carries no data: the communication volume still holds it, and the
change is the answer that its program waits for. Source: seed [0056]-[0060] (JOB2).
"""

import errno
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, get_args

import trio

from fusemirror.change import (
    AllocateChange,
    AnyChange,
    CopyChange,
    NamespaceChange,
    TruncateChange,
    WriteChange,
)
from fusemirror.channel.session import Session
from fusemirror.communication.staged import Staged
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.errors import (
    BadChange,
    BadRow,
    ChannelError,
    ConnectionLost,
    CopyDeclined,
    DiskFull,
    FusemirrorError,
    IllegalTransition,
    OperationFailed,
    RemoteProtocolError,
    SequenceGap,
)
from fusemirror.identifiers import NO_CHANGE, NO_REQUEST, ROOT_INODE, ChangeNumber, InodeNumber
from fusemirror.limits import (
    COUNTER_SKIPPED_MAX,
    HANDSHAKE_TIMEOUT_S,
    REQUESTS_BESIDE_MAX,
    SPACE_LOOK_INTERVAL_S,
)
from fusemirror.mirror.access import PairAccess
from fusemirror.mirror.acknowledging import Acknowledging
from fusemirror.mirror.backup_durability import BackupDurability, Work
from fusemirror.mirror.content import OF_IMAGES, Content
from fusemirror.mirror.declining import Declining, unlike
from fusemirror.mirror.histories import generations_of
from fusemirror.mirror.out_of_sync_here import OutOfSyncHere
from fusemirror.mirror.states import (
    BACKUP_SERVES,
    BACKUP_TAKES,
    MIRROR_LOST,
    BackupEvent,
    BackupState,
    next_backup_state,
)
from fusemirror.mirror.suspects import suspects_of
from fusemirror.protocol.codec import refusal
from fusemirror.protocol.connection import Received, shown
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import (
    Begin,
    Bye,
    CaughtUp,
    Declined,
    HandOver,
    ImageCopied,
    Normal,
    OutOfSync,
    PurgeOffer,
    Reply,
    Resync,
    WantApplied,
)
from fusemirror.settings import Access
from fusemirror.volume.contradictions import check_change
from fusemirror.volume.health import disk_error
from fusemirror.volume.volume import Volume

log = logging.getLogger(__name__)

_NOT_FOR_HERE = (BadChange, BadRow, IllegalTransition, OperationFailed, SequenceGap)
"""What a handler raises, before it changed anything, for a message that this volume cannot take."""

_CHANGES = frozenset(get_args(AnyChange))

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
        access: PairAccess | None = None,
        landing: Callable[[AnyChange], Callable[[], None] | None] = lambda _: None,
        refused: Callable[[Staged, int], None] = lambda *_: None,
    ) -> None:
        """`give_up(inodes)` returns which of these inodes without names are open here; the others nobody
        here opens any more. `take_role(term)` is called when the primary has handed its role to this host;
        `others` take the messages that are none of the mirror's business, in their place of the stream.
        `landing` is called before a change is applied, while the access is exclusive; what it returns, after.
        `refused(request, errno)` is called for a staged request that the order of changes refuses.
        """
        self.volume = volume
        self.state = BackupState.DISCONNECTED
        self.reason: str | None = "the primary has not been met since the mount"
        self.changed = trio.Event()
        self.out_of_sync = OutOfSyncHere(volume)
        self.declined = Declining(volume)
        self.durability = BackupDurability(volume, self.declined)
        self._access = access or PairAccess()
        self._landing = landing
        self._refused = refused
        self._communication = communication
        self.acknowledging = Acknowledging(volume)
        self.left = False
        """The primary said goodbye, or gave its role to this host."""
        handlers: dict[type, Handler] = {
            WriteChange: self._change,
            TruncateChange: self._change,
            AllocateChange: self._change,
            CopyChange: self._change,
            NamespaceChange: self._change,
            Begin: self._begin,
            OutOfSync: self._out_of_sync_images,
            CaughtUp: self._caught_up,
            ImageCopied: self._image_copied,
            Normal: self._normal,
            PurgeOffer: partial(_answer_purge, give_up),
            Resync: self._resync_progress,
            HandOver: partial(self._hand_over, take_role),
            WantApplied: self._want_applied,
            Bye: self._bye,
            **{
                kind: self._of_image(handle) if kind in OF_IMAGES else handle
                for kind, handle in Content(volume).handlers.items()
            },
            **self.durability.handlers,
            **(others or {}),
        }
        self._places = {
            kind: (handle if kind in _CHANGES else self._waited_for(handle), BACKUP_TAKES[kind])
            for kind, handle in handlers.items()
        }

    @property
    def serves(self) -> bool:
        return self.state in BACKUP_SERVES

    @property
    def is_normal(self) -> bool:
        """The subvolume is a prefix of main, with every image."""
        return self.state is BackupState.NORMAL and not self.declined.reasons

    def _go(self, event: BackupEvent, reason: str | None = None) -> None:
        before, self.state = self.state, next_backup_state(self.state, event)
        self.reason = reason
        if self.state is not before:
            lost = event is BackupEvent.LOST and before in BACKUP_SERVES and not self.left
            level = logging.WARNING if lost else logging.INFO
            words = f": {reason}" if reason else ""
            lead = MIRROR_LOST if lost else "mirror"
            log.log(level, "%s: %s -> %s%s", lead, before.name, self.state.name, words)
        self._tell_changed()

    def _tell_changed(self) -> None:
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
            self.durability.session_ended()
        self.out_of_sync.resync = None
        self.declined.end()  # what differs is marked, and is compared anew over the next link
        self._go(BackupEvent.LOST, reason)
        return reason

    async def run_session(self, session: Session) -> str:
        """Read until the session ends; tasks that make things durable live as long."""
        reason = ""
        self.left = False
        self.acknowledging.begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_room, session)
            nursery.start_soon(self.acknowledging.run, session)
            try:
                await self.acknowledging.room.wait(session)
                await self._apply_all(session, nursery)
            except RemoteProtocolError as error:
                reason = error.why
                session.refuse(error)
            except ChannelError as error:
                reason = error.why
            except DiskFull as error:
                reason = str(error)
                self.acknowledging.room.note_full()
                await self._leave(session, reason)
            except (FusemirrorError, OSError) as error:
                # What cannot be applied here must not be skipped: the link ends, the primary marks it.
                reason = str(error)
                if self.volume.health.failure is None:
                    log.error("cannot apply what the primary sent: %s", error)
                else:  # the primary hears why, and says so
                    await self._leave(session, reason)
            session.close(reason)
            nursery.cancel_scope.cancel()
        return reason

    async def _apply_all(self, session: Session, nursery: trio.Nursery) -> None:
        normal = BackupState.NORMAL  # looked up once: an Enum is slow at that

        def apply_in_place(received: list[Received]) -> list[Received]:
            """While nothing is brought up to date: without a turn of this task."""
            if self.state is not normal:
                return received
            self._take_together(received, session, nursery)
            return []

        while True:
            self._take_together(await session.receive(apply_in_place), session, nursery)

    def _take_together(self, received: list[Received], session: Session, nursery: trio.Nursery) -> None:
        """Do what the messages say. RemoteProtocolError: one has no place here, and changed nothing."""
        for message, data in received:
            handle, states = self._places.get(type(message), (None, ()))
            if handle is None or self.state not in states:
                why = f"it came when the mirror was {self.state.name.lower()}"
                raise refusal(session.peer_name, message, why)
            try:
                work = handle(message, data, session)
            except _NOT_FOR_HERE as error:
                raise refusal(session.peer_name, message, error) from error
            except OSError as error:
                self.volume.health.note(error)
                raise disk_error(self.volume.directory, error) from error
            if work is not None:
                if len(nursery.child_tasks) > REQUESTS_BESIDE_MAX:  # one of them looks at the disk
                    raise refusal(session.peer_name, message, "too many of its kind at once")
                nursery.start_soon(work)
        # Behind the last of them, and once for all: what is acknowledged is applied (G1).
        if self.state in BACKUP_SERVES and self.acknowledging.acknowledge(session):
            self.acknowledging.room.tell_if_due(session)
        self.acknowledging.prepare_images()

    def _waited_for(self, handle: Handler) -> Handler:
        """A handler of what is no change: before its answer the primary hears how far this host is."""

        def handle_waited_for(message: Any, data: Buffer, session: Session) -> Work | None:
            self.acknowledging.say_delayed(session)
            self.acknowledging.is_waited_for = True
            return handle(message, data, session)

        return handle_waited_for

    def _want_applied(self, message: WantApplied, _: Buffer, session: Session) -> None:
        """The word follows, as after all that is no change."""

    def _of_image(self, handle: Handler) -> Handler:
        """A handler of what a resync brings of an image: where the disk does not take it, the primary hears
        so, and the stream goes on."""

        def handle_or_decline(message: Any, data: Buffer, session: Session) -> Work | None:
            try:
                return handle(message, data, session)
            except OSError as error:
                if not self.declined.may(error, session) or self.state not in BACKUP_SERVES:
                    raise
                self._decline(message.inode, error, session, NO_CHANGE)
                if (answer := unlike(message)) is not None:
                    session.send(answer)
            return None

        return handle_or_decline

    def _decline(
        self, inode: InodeNumber, error: OSError, session: Session, number: ChangeNumber
    ) -> CopyDeclined:
        """Tell the primary that the image differs; what a program gets that asked for it here."""
        # Durable before anybody hears of it: this host must not take over with an image that it lacks,
        # however soon the primary goes away.
        if self.volume.identity.consistent:
            self.volume.update_identity(consistent=False)
        self.out_of_sync.images.add(inode)
        self.volume.invalidator.image_suspect(inode)
        self.declined.note(inode, error)
        session.send(Declined(number, inode, error.errno or errno.EIO, error.strerror or str(error)))
        self._tell_changed()
        return self.declined.report(inode)

    # --- room on the disk ---------------------------------------------------------------------------------

    async def _watch_room(self, session: Session) -> None:
        """Look at the disk from time to time: others fill it, and free it."""
        with suppress(ConnectionLost):
            while True:
                await trio.sleep(SPACE_LOOK_INTERVAL_S)
                try:
                    if self.serves:
                        self.acknowledging.room.tell(session)
                except OSError as error:
                    self.volume.health.note(error)
                    session.close(str(error))

    async def _leave(self, session: Session, reason: str) -> None:
        """Say goodbye, so that the primary goes on alone once this host's kernel keeps nothing: nothing is
        read here from now on.
        """
        log.error("%s", reason)
        self._go(BackupEvent.LOST, reason)
        with suppress(ConnectionLost), trio.move_on_after(HANDSHAKE_TIMEOUT_S):
            session.send(Bye(reason, mounted=True))
            await session.discard()  # until the primary ends the link: closing could overtake the word

    # --- changes --------------------------------------------------------------------------------------

    def _change(self, change: AnyChange, data: Buffer, session: Session) -> None:
        staged = self._communication.find(change.request) if change.request else None
        if type(change) is WriteChange and change.request:
            if staged is not None:
                operation = staged.operation
                if not operation.carries_data or operation.image != change.inode:
                    raise BadChange("it names a request that was for something else")
                data = self._communication.data_of(staged)
            elif not data:  # one that was the primary's own comes with its data
                raise BadChange("it names a request that is not pending")
        if change.rows:
            check_change(self.volume.catalog, change)
        if (
            type(change) is NamespaceChange
            and staged is None
            and not self.volume.catalog.stored_inode(change.inode)
        ):
            self.acknowledging.made(change.inode)
        if self.state is BackupState.CATCHING_UP:
            # Names come before the images that they were given with.
            self.volume.update_identity(consistent=False)
        landed = declined = None
        if self._access.in_effect is Access.EXCLUSIVE and self.state in BACKUP_SERVES:
            landed = self._landing(change)
        try:
            if type(change) is CopyChange:
                self._check_source(change)
            self.volume.apply(change, data, are_checked=True, own=change.request != NO_REQUEST)
        except OSError as error:
            may = self.state in BACKUP_SERVES and self.declined.may(error, session)
            if isinstance(change, NamespaceChange) or change.rows or not may:
                raise
            self.volume.pass_over(change)
            declined = self._decline(change.inode, error, session, change.number)
        finally:
            if landed is not None:
                landed()
        # By this number it is acknowledged: one that is ahead of what is here would lose a change.
        assert self.volume.number == change.number, "a change was applied under another number"
        if staged is not None:  # first: its program waits
            self._end(staged, change, declined)
        if staged is None or landed is not None or declined is not None:
            self.acknowledging.is_waited_for = True
        self.acknowledging.room.take(change)
        if self.declined.reasons:
            for inode in self.declined.removed():
                self._in_sync(inode)
        if change.request:
            self.volume.requests_done.forget(change.request)  # only a primary is asked about them

    def _end(self, staged: Staged, change: AnyChange, declined: CopyDeclined | None) -> None:
        """A request of this host has become a change; or why the image of that is not whole."""
        if type(change) is NamespaceChange and change.errno:
            self._refused(staged, change.errno)
            return
        self._communication.retire(change.request)
        if declined is None or staged.acknowledged:  # of a kept one main has the data; fsync tells the rest
            staged.answer.resolve(change.inode)
        else:
            staged.answer.reject(declined)

    def _check_source(self, change: CopyChange) -> None:
        """On return the image is here that it copies. BadChange; OSError where this disk declined that."""
        if change.source in self.out_of_sync.images:
            # The word of that may still be on its way to the primary: what is copied is declined with it.
            if change.source not in self.declined.reasons:
                raise BadChange("it copies an image that is not the primary's yet")
            raise PermissionError(errno.EPERM, f"nor is the image of inode {change.source}, which it copies")

    # --- catching up ----------------------------------------------------------------------------------

    def _begin(self, message: Begin, _: Buffer, session: Session) -> None:
        what = "all names" if message.copy_catalog else "the changes that it missed"
        self._go(BackupEvent.BEGUN, f"this host gets {what} first, and its programs wait")
        # Before anything is applied over this link: what that marks does not differ.
        for suspects in suspects_of(self.volume.regions.marks()):
            session.send(suspects)
        if message.copy_catalog:
            self.volume.begin_catalog_copy()
        else:
            self.volume.rewind()

    def _out_of_sync_images(self, message: OutOfSync, _: Buffer, session: Session) -> None:
        self.declined.try_again(message.inodes)
        self.volume.update_identity(consistent=False)
        for inode in message.inodes:
            if self.volume.catalog.stored_inode(inode) is not None:  # of what has gone nobody reads
                self.out_of_sync.images.add(inode)
                self.volume.invalidator.image_suspect(inode)

    def _caught_up(self, message: CaughtUp, _: Buffer, session: Session) -> None:
        if self.volume.catalog.copying:
            if self.volume.catalog.inode(ROOT_INODE) is None or not generations_of(self.volume):
                raise BadChange("the copy of the catalog is not whole")
            self.volume.finish_catalog_copy(message.number, message.journal_number, message.time_ns)
        else:
            self.volume.advance(message.number)
        # Numbers that were given and are gone again stand in no row. A take-over must not give them to other
        # files.
        self.volume.catalog.reserve_inodes(InodeNumber(message.next_inode - 1))
        self.acknowledging.caught_up(message.number, session)
        self.acknowledging.room.begin(session)
        self._go(BackupEvent.CAUGHT_UP)

    # --- images ---------------------------------------------------------------------------------------

    def _image_copied(self, message: ImageCopied, _: Buffer, session: Session) -> None:
        if self.declined.is_copied(message.inode):
            self._in_sync(message.inode)

    def _in_sync(self, inode: InodeNumber) -> None:
        self.out_of_sync.images.discard(inode)
        self._tell_changed()
        if not self.out_of_sync.images and self.state is BackupState.NORMAL:
            self.volume.update_identity(consistent=True)

    def _normal(self, message: Normal, _: Buffer, session: Session) -> None:
        # What was declined since is not copied: its word crossed this one.
        self.out_of_sync.images.intersection_update(self.declined.reasons)
        consistent = not self.out_of_sync.images
        self.volume.update_identity(complete=True, compare_all=False, consistent=consistent)
        self.out_of_sync.resync = None
        self._go(BackupEvent.COPIED)

    def _resync_progress(self, message: Resync, _: Buffer, session: Session) -> None:
        self.out_of_sync.resync = message

    # --- the end ----------------------------------------------------------------------------------------

    def _hand_over(
        self, take_role: Callable[[int], None], message: HandOver, _: Buffer, session: Session
    ) -> None:
        # One that was overtaken by another change of roles is not for us any more.
        term = self.volume.identity.term
        if message.term > term + COUNTER_SKIPPED_MAX:
            raise BadChange(f"term {message.term} is beyond what can be")
        if message.term > term:
            self.left = True
            take_role(message.term)

    def _bye(self, message: Bye, _: Buffer, session: Session) -> None:
        self.left = True
        raise ChannelError(f"the primary said goodbye: {shown(message.reason)}")


def _answer_purge(
    give_up: Callable[[tuple[InodeNumber, ...]], tuple[InodeNumber, ...]],
    message: PurgeOffer,
    _: Buffer,
    session: Session,
) -> None:
    session.send(Reply(message.token, values=give_up(message.inodes)))
