"""The primary's half of the mirror: sends every change, and knows which the backup holds.

Changes are published in their order, right after they were applied to the main volume. While the
mirror streams, a change counts as acknowledged when the backup has applied it; acknowledgements are
cumulative, because the subvolume is always a prefix of main. Whoever would show an effect that is
not acknowledged yet (a read, a lookup, an error) waits for it first: that is G2 at the primary.

When the link is lost, the backup may go on serving reads until its lease ends. So changes wait
(`HOLDING`) until the backup is back or the lease is over; only then does the primary go on alone.
With `fence = "data"` it does not: it refuses changes, and those that were under way are in doubt.
With a witness it needs its permission (`witness/permission.py`), and holds until it has it.
Source: seed [0054]-[0057] (JOB4 and JOB5); design.md G1-G3.
"""

import logging
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import msgspec
import trio

from fusemirror.change import (
    AnyChange,
    NamespaceChange,
    Row,
    encode_change,
)
from fusemirror.channel.link import Link
from fusemirror.channel.renewal import Renewal
from fusemirror.channel.session import Session
from fusemirror.errors import (
    ChangeInDoubt,
    ChangesRefused,
    ChangeUnconfirmed,
    ChangeUnrecorded,
    ChannelError,
    CheckReport,
    ConnectionLost,
    FusemirrorError,
    NotPermitted,
    RemoteProtocolError,
    RoleChanged,
    TimedOut,
)
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber
from fusemirror.limits import (
    BACKLOG_BYTES_MAX,
    CHECKPOINT_INTERVAL_S,
    FILE_BYTES_MAX,
    INODES_PER_MESSAGE,
    KERNEL_DELAY_S,
)
from fusemirror.mirror.catching_up import send_attributes, send_catalog, send_records
from fusemirror.mirror.copying import Copier
from fusemirror.mirror.histories import (
    Missed,
    generation_row,
    generations_of,
    history_of,
    missed,
)
from fusemirror.mirror.holdings import Holdings
from fusemirror.mirror.out_of_sync import OutOfSync
from fusemirror.mirror.pace import CopyProgress, Pace
from fusemirror.mirror.states import (
    MIRROR_LOST,
    PRIMARY_ACKNOWLEDGES_ALONE,
    PRIMARY_STREAMING,
    PRIMARY_TAKES,
    PRIMARY_TRANSITIONS,
    PrimaryEvent,
    PrimaryState,
    next_primary_state,
)
from fusemirror.mirror.stream import Question, Stream
from fusemirror.mirror.suspects import marks_of
from fusemirror.operations import Operation
from fusemirror.promise import Promise, check_task
from fusemirror.protocol.codec import refusal
from fusemirror.protocol.connection import Received, shown
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import (
    AccessInEffect,
    AnyMessage,
    Applied,
    Begin,
    Bye,
    CaughtUp,
    Checkpoint,
    DiskSpace,
    Fetched,
    FlushImage,
    ForgetMarks,
    KeyNews,
    Normal,
    Reply,
    Room,
    Suspects,
)
from fusemirror.protocol.messages import (
    OutOfSync as OutOfSyncMessage,
)
from fusemirror.settings import Access, Fence
from fusemirror.volume.space import inodes_of, space_of
from fusemirror.volume.volume import Volume
from fusemirror.witness.permission import Permission

log = logging.getLogger(__name__)

_RANGES_PER_S = 10_000  # of marks: some hundredth of a second of work
_GENERATION_BYTES = 16

Doubt = Callable[[], CheckReport]
"""Makes what who asked for a change is told that may or may not have taken effect."""


class InFlight(msgspec.Struct, gc=False):
    """A change that the backup has not acknowledged; for one of data, the bytes that it shows anew."""

    number: ChangeNumber
    keys: tuple[Any, ...]
    inode: InodeNumber
    start: int
    end: int
    since: float
    length: int  # bytes of data that came with it


class Mirror:
    """See the module. One task calls `serve` per link; `run_watch` runs beside it for ever."""

    def __init__(
        self,
        volume: Volume,
        random_bytes: Callable[[int], bytes],
        *,
        peer_timeout_s: float,
        io_timeout_s: float,
        fence: Fence = Fence.NEVER,
        resync_rate: int = 0,
        permission: Permission | None = None,
    ) -> None:
        self.volume = volume
        self.permission = permission or Permission()
        self._session: Session | None = None  # of the last link: its lease outlasts it
        self.retired = False
        self._random_bytes = random_bytes
        self.state = PrimaryState.HOLDING
        self.reason: str | None = "the backup has not been met since the mount"
        self.changed = trio.Event()
        self.in_flight: deque[InFlight] = deque()
        self.acknowledged_number = volume.number
        self.peer_durable = ChangeNumber(0)
        self.out_of_sync = OutOfSync()
        self.holdings = Holdings(volume)
        self.pace = Pace(resync_rate, paused=volume.identity.resync_paused)
        self.copy_progress = CopyProgress()
        self._copier: Copier | None = None
        self.link: Link | None = None
        self.stream: Stream | None = None
        self.generation_shared = True
        self.met = False
        """Since this process began it is known what the backup holds, or that nobody reads there.

        Before, this volume may show what an earlier process did and the backup never heard of, while the
        backup still reads under a lease of that process.
        """
        self.fence = fence
        self.io_timeout_s = io_timeout_s
        # An earlier process of this host may have granted a lease just before it ended.
        self._hold_until = trio.current_time() + peer_timeout_s
        self._live = False  # changes are sent as they are made
        self._held_back: ChangeNumber | None = None  # not acknowledged before its image is copied
        self._applied_number = volume.number  # as the backup said last
        self._waiting: list[tuple[ChangeNumber, Promise[Doubt | None]]] = []
        self._actions: list[tuple[ChangeNumber, Callable[[bool], None]]] = []
        self.access = Access.ROUTED
        self._reported = False  # this time apart has its line in the log
        self._peer_instance = b""
        self._suspects: Promise[None] = Promise()
        self.written_since: list[tuple[InodeNumber, int, int]] | None = None
        """Bytes of images that changes were published for, while someone asks to know."""
        self.backup_full = False
        """The backup is linked, and takes nothing because its disk is full."""
        self.backup_leaves = False
        """The backup has said goodbye; the link lasts as long as its kernel may show what it keeps."""
        self.backup_disk: DiskSpace | None = None
        """As the backup said last, over any link."""
        self.renewal = Renewal()
        self._room_limit: int | None = None  # as the backup said last over this link
        self._room_taken = 0  # of that by the changes since it caught up
        self._room_inodes: int | None = None  # likewise
        self._room_inodes_taken = 0
        self._mend_wanted = trio.Event()
        self._checkpoint_wanted = trio.Event()
        self._said_bye = False
        # What was marked before this process began is suspect until a checkpoint with the backup.
        self.out_of_sync.add_marks(volume.regions.marks())

    # --- the path of a change ------------------------------------------------------------------------

    def publish(
        self,
        change: AnyChange,
        encoded: bytes,
        data: Buffer,
        keys: tuple[Any, ...],
        old_size_bytes: int = FILE_BYTES_MAX,
    ) -> None:
        """Send a change that the main volume holds. `data` is empty where the backup has it already.

        `old_size_bytes`: how long the file was. A change beyond its end shows zeros from there on.
        """
        if self._live and self.stream is not None:
            self._room_taken += space_of(change)
            self._room_inodes_taken += inodes_of(change)
            try:
                self.stream.send_encoded(encoded, data)
            except ChannelError as error:
                self._live = False  # this change is not sent, so nothing after it may be
                if self.link is not None:
                    self.link.close(error.why)
        if self.written_since is not None:
            self.written_since.append(change.data_range())
        if not self._live:
            self._mark(change)
        if self.acknowledges_alone:
            self.acknowledged_number = change.number
            return
        inode, start, end = change.data_range()
        start = min(start, old_size_bytes)
        now = trio.current_time()
        entry = InFlight(change.number, keys, inode, start, end, now, change.length)
        self.in_flight.append(entry)
        if not self._live and self._held_back is None:
            self._held_back = change.number

    @property
    def backup_takes_rows(self) -> bool:
        """A change of data may carry rows. What a backup missed any version of it gets by `send_records`."""
        return self.stream is None or self.stream.session.peer.takes_rows

    def backup_knows(self, operation: Operation) -> bool:
        """Whether the backup, where there is one, takes what `operation` becomes."""
        says = operation.peer_says
        return not says or self.stream is None or bool(getattr(self.stream.session.peer, says))

    def backup_takes(self, size_bytes: int, inodes: int = 0) -> bool:
        """Whether the subvolume has room for so much more, as far as this host knows."""
        if not self.streams or self._room_limit is None:
            return True
        if inodes and self._room_inodes is not None and self._room_inodes_taken + inodes > self._room_inodes:
            return False
        return self._room_taken + size_bytes <= self._room_limit

    def mend(self, change: AnyChange) -> None:
        """A change of data failed here, perhaps halfway: its bytes are compared, now or later."""
        self._mark(change)
        self._mend_wanted.set()

    def announce_access(self, access: Access) -> None:
        """Tell the backup which access is in effect, now or when there is a link."""
        self.access = access
        if self.stream is not None:
            with suppress(ConnectionLost):
                self.stream.send(AccessInEffect(access))

    @property
    def congested(self) -> bool:
        """More is waiting to be sent than the backlog should hold."""
        return self.stream is not None and self.stream.session.backlog_bytes > BACKLOG_BYTES_MAX

    async def wait_room(self) -> None:
        """Return when the stream takes more, or has ended: a slow peer slows whoever changes much.

        After `io_timeout` it has ended.
        """
        check_task()
        stream = self.stream
        if stream is None:
            return
        with suppress(ConnectionLost), trio.move_on_after(self.io_timeout_s) as patience:
            await stream.wait_room()
        if patience.cancelled_caught and self.link is not None and self.stream is stream:
            self.link.close(str(TimedOut(self.io_timeout_s, "the backup took too little of what was sent")))

    def _mark(self, change: AnyChange) -> None:
        inode, start, end = change.data_range()
        if inode:
            self.out_of_sync.add_range(inode, start, end)

    async def acknowledged(self, number: ChangeNumber) -> None:
        """Return when the backup holds change `number`, or the primary goes on without it.

        A check report that it is in doubt where the primary may not, or cannot, go on without it;
        `RoleChanged` where this host became the backup first, and nobody holds the change.
        """
        doubt = await self._doubt_of(number)
        if doubt is not None:
            raise self._report(doubt())

    async def settled(self, number: ChangeNumber) -> bool:
        """Return when change `number` may be shown: it is acknowledged (True), or in doubt for ever."""
        return await self._doubt_of(number) is None

    async def _doubt_of(self, number: ChangeNumber) -> Doubt | None:
        if number <= self.acknowledged_number:
            return None
        self._check_not_retired()
        promise: Promise[Doubt | None] = Promise()
        self._waiting.append((number, promise))
        return await promise.wait()

    def when_settled(self, number: ChangeNumber, action: Callable[[bool], None]) -> None:
        """Call `action` as soon as `settled` returns, with its result. It must not change the mirror.

        Never, where this host becomes the backup first.
        """
        if number > self.acknowledged_number:
            self._actions.append((number, action))
        else:
            action(True)

    def unsettled(self, key: object) -> ChangeNumber:
        """The newest change under way that touches `key`, or 0."""
        for entry in reversed(self.in_flight):
            if key in entry.keys:
                return entry.number
        return ChangeNumber(0)

    def unsettled_range(self, inode: InodeNumber, start: int, end: int) -> ChangeNumber:
        """The newest change under way of these bytes of an image, or 0."""
        for entry in reversed(self.in_flight):
            if entry.inode == inode and entry.start < end and start < entry.end:
                return entry.number
        return ChangeNumber(0)

    def _acknowledge(self, number: ChangeNumber, doubt: Doubt | None = None) -> None:
        if self._held_back is not None:
            number = min(number, ChangeNumber(self._held_back - 1))
        if number <= self.acknowledged_number:
            return
        self.acknowledged_number = number
        while self.in_flight and self.in_flight[0].number <= number:
            self.in_flight.popleft()
        if self._waiting:
            waiting = self._waiting
            self._waiting = [each for each in waiting if each[0] > number]
            for its_number, promise in waiting:
                if its_number <= number:
                    promise.resolve(doubt)
        if self._actions:
            ready = [action for action in self._actions if action[0] <= number]
            self._actions = [action for action in self._actions if action[0] > number]
            for _, action in ready:
                action(doubt is None)

    @property
    def streams(self) -> bool:
        return self.state in PRIMARY_STREAMING

    @property
    def acknowledges_alone(self) -> bool:
        """Changes are acknowledged without the backup."""
        return self.state in PRIMARY_ACKNOWLEDGES_ALONE and self.permission.granted

    @property
    def must_begin_generation(self) -> bool:
        """The next change is the first one that is made without the backup."""
        return self.generation_shared and self.acknowledges_alone

    def begin_generation(self, *more: Row) -> None:
        """Mark in the order of changes that from here on the backup was not there. OSError, DiskFailed."""
        volume = self.volume
        self.holdings.part()
        number = ChangeNumber(volume.number + 1)
        row = generation_row(volume, self._random_bytes(_GENERATION_BYTES), number)
        self.record((row, *more))
        self.generation_shared = False
        volume.update_identity(complete=True)  # after a repair: it is the whole of a line of its own

    async def not_held(self, inodes: list[InodeNumber]) -> list[InodeNumber]:
        """Those of these inodes without names that the backup has not open (`holdings.py`). OSError."""
        await self.settled_state()
        stream = self.stream if self.streams else None
        alone = self.stream is None and self.acknowledges_alone and not self.generation_shared
        return await self.holdings.not_held(inodes, stream, alone=alone)

    def record(self, rows: tuple[Row, ...]) -> None:
        """Make a change that nobody asked for and nobody waits for. OSError, DiskFailed.

        Where the newest change is too far ahead of this host's clock, changes follow the clock from here on.
        """
        volume = self.volume
        number = ChangeNumber(volume.number + 1)
        set_back = volume.set_back()
        if set_back is None:
            time_ns = volume.time_ns()
        else:
            row, time_ns = set_back
            rows = (*rows, row)
        change = NamespaceChange(number, NO_REQUEST, time_ns, InodeNumber(0), rows)
        encoded = encode_change(change)
        volume.apply(change, encoded=encoded)
        self.publish(change, encoded, b"", ())

    # --- the witness ----------------------------------------------------------------------------------

    @property
    def wants_permission(self) -> bool:
        """It is time to go on alone, and the witness has to say whether this host may."""
        if self.permission.held or not self.permission.needed:
            return False
        holds = self.state is PrimaryState.HOLDING
        return trio.current_time() >= self._hold_until if holds else self.state in PRIMARY_ACKNOWLEDGES_ALONE

    def permission_changed(self) -> None:
        """The witness, or a person, has said that this host may go on alone."""
        self._tell_changed()

    @property
    def entitled(self) -> bool:
        """Programs of this host may see what is here: the other cannot have become the primary."""
        if self.permission.granted:
            return True
        if self._session is None or self.state in PRIMARY_ACKNOWLEDGES_ALONE:
            return False
        return trio.current_time() < self._session.lease_until

    async def wait_entitled(self) -> None:
        """Return when programs of this host may see what is here; `NotPermitted` after `io_timeout`.

        There is no checkpoint between that moment and the return.
        """
        check_task()
        with trio.move_on_after(self.io_timeout_s):
            while not self.entitled:
                self._check_not_retired()
                link = self.link
                apart = self.state in PRIMARY_ACKNOWLEDGES_ALONE
                if link is not None and not link.mirror.closed and not apart:
                    await link.mirror.wait_lease()
                else:
                    await self.changed.wait()
        if not self.entitled:
            self._check_not_retired()
            raise self.not_permitted()

    def shows_for_s(self, seconds: float) -> float:
        """For how long of `seconds` a kernel may keep what it is shown now."""
        if self.permission.granted:
            return seconds
        until = self._session.lease_until if self._session is not None else 0.0
        return min(seconds, max(0.0, until - trio.current_time() - KERNEL_DELAY_S))

    def not_permitted(self) -> CheckReport:
        """What a request gets that waited too long for the other host or the witness."""
        return self._report(NotPermitted(self._reason_alone))

    @property
    def _reason_alone(self) -> str:
        reasons = (self.reason, self.permission.reason)
        return "; ".join(filter(None, reasons)) or "it waits for the other host"

    # --- the fence ------------------------------------------------------------------------------------

    @property
    def fenced(self) -> bool:
        """No change may be made now: it could not be mirrored, and `fence` forbids to go on alone."""
        return self.fence is Fence.DATA and not self.streams

    async def admit(self) -> None:
        """Return when a change may be made; without a checkpoint while the mirror streams.

        `ChangesRefused` at once while the backup is away, and after `io_timeout` where it is being
        brought up to date. What is refused here has no effect.
        """
        check_task()
        with trio.move_on_after(self.io_timeout_s):
            while self.fenced and self.state not in (PrimaryState.ALONE, PrimaryState.DIVERGED):
                await self.changed.wait()
                self._check_not_retired()
        if self.fenced:
            raise self._report(ChangesRefused(self.reason or "the backup is being brought up to date"))

    def set_fence(self, fence: Fence) -> None:
        """From now on; changes that wait are refused or made accordingly."""
        self.fence = fence
        self._tell_changed()

    def _report(self, error: CheckReport) -> CheckReport:
        """The log says it once for each time apart."""
        if not self._reported:
            self._reported = True
            log.warning("%s", error)
        return error

    @property
    def takes_nothing(self) -> bool:
        """The backup is linked, and takes no changes."""
        return self.backup_full or self.backup_leaves

    @property
    def told_reason(self) -> str | None:
        """Why the state is not normal, and what that means for changes, for people."""
        if self._copier is not None and self.pace.paused:
            return "the resync is paused; let it go on with `fusemirror resync NAME --resume`"
        if self.wants_permission:
            return str(NotPermitted(self._reason_alone))
        if not self.fenced or self.state is PrimaryState.HOLDING:
            return self.reason
        return str(ChangesRefused(self.reason or "the backup is being brought up to date"))

    # --- states ---------------------------------------------------------------------------------------

    def _go(self, event: PrimaryEvent, reason: str | None = None) -> None:
        before, after = self.state, next_primary_state(self.state, event)
        alone = after in PRIMARY_ACKNOWLEDGES_ALONE
        doubt = self._leave_the_backup(reason) if alone else None
        self.state = after
        self.reason = reason
        if self.state is not before:
            # A person looks after a peer that was lost; one that was unmounted is away as it was meant.
            lost = event is PrimaryEvent.LOST and before in PRIMARY_STREAMING and not self._gave_role_away
            level = logging.WARNING if lost else logging.INFO
            words = f": {reason}" if reason else ""
            log.log(
                level, "%s: %s -> %s%s", MIRROR_LOST if lost else "mirror", before.name, after.name, words
            )
        self.met = self.met or self.streams or alone
        if alone:
            self._give_up_waiting(doubt)
        elif self.streams:
            self._reported = False
        self._tell_changed()

    @property
    def _gave_role_away(self) -> bool:
        return self.retired or self.volume.identity.role != "primary"

    def _give_up_waiting(self, doubt: Doubt | None) -> None:
        self._held_back = None
        self._acknowledge(self.volume.number, doubt)

    def _tell_changed(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def _leave_the_backup(self, reason: str | None) -> Doubt | None:
        """What is under way stands in a line of its own on return, to be acknowledged by this host alone;
        or why that cannot be, while main has it and goes on showing it."""
        if not self.permission.granted:
            return lambda: ChangeUnconfirmed(self._reason_alone)
        if self.fence is Fence.DATA:
            return partial(ChangeInDoubt, reason)
        if not self.in_flight or not self.generation_shared:
            return None
        try:
            self.begin_generation()
        except (OSError, FusemirrorError) as error:
            log.error("changes under way are not acknowledged: %s", error)
            return partial(ChangeUnrecorded, str(error))
        return None

    def differ(self, reason: str) -> None:
        """The peer was met, and both went on apart. Nothing where the state says so already."""
        if PrimaryEvent.DIFFERED not in PRIMARY_TRANSITIONS[self.state]:
            return
        if self.state is not PrimaryState.DIVERGED:
            log.error("%s; nothing was merged or overwritten, see fusemirror(7)", reason)
        self._go(PrimaryEvent.DIFFERED, reason)

    def hold_until(self, when: float, reason: str) -> None:
        """Go on alone at `when` (trio time), unless the peer was met before. For a mirror that begins."""
        assert self.state is PrimaryState.HOLDING, "it has just begun"
        self._hold_until, self.reason = when, reason

    def retire(self, known: ChangeNumber) -> None:
        """This host is the primary no more. The new one holds every change up to `known`; those who wait
        for later ones, and whoever asks from now on, get `RoleChanged`."""
        self.retired = True
        self._held_back = None
        self._acknowledge(known)
        waiting, self._waiting = self._waiting, []
        for _, promise in waiting:
            promise.reject(RoleChanged())
        if self.stream is not None:
            self.stream.end(ConnectionLost(self.stream.session.peer_name, "the roles changed"))
            self.stream = None
        self._tell_changed()

    def _check_not_retired(self) -> None:
        if self.retired:
            raise RoleChanged

    async def settled_state(self) -> None:
        """Return when the state is one in which requests are decided: streaming, or alone."""
        while not self.streams and not self.acknowledges_alone:
            self._check_not_retired()
            await self.changed.wait()
        self._check_not_retired()

    async def run_watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End the lease when it is over, and a link that does not answer within `io_timeout`."""
        task_status.started()
        while True:
            if self.state is PrimaryState.HOLDING:
                await self._hold()
                continue
            deadline = trio.current_time() + self.io_timeout_s
            if self.in_flight:
                deadline = self.in_flight[0].since + self.io_timeout_s
                if trio.current_time() >= deadline and self.link is not None:
                    self.link.close(str(TimedOut(self.io_timeout_s, "a change was not acknowledged")))
            with trio.move_on_at(max(deadline, trio.current_time() + self.io_timeout_s / 10)):
                await self.changed.wait()

    async def _hold(self) -> None:
        """Go on alone when that is due and permitted. What waits longer for the permission is in doubt."""
        now = trio.current_time()
        if now >= self._hold_until and self.permission.granted:
            self._go(PrimaryEvent.LEASE_OVER, self.reason)
            return
        late = self.in_flight[0].since + self.io_timeout_s if self.in_flight else math.inf
        if now >= max(late, self._hold_until):
            self._give_up_waiting(lambda: ChangeUnconfirmed(self._reason_alone))
            return
        # A change may still come while the lease that this host has of the backup lasts.
        late = min(late, now + self.io_timeout_s)
        with trio.move_on_at(self._hold_until if now < self._hold_until else late):
            await self.changed.wait()

    # --- one link ---------------------------------------------------------------------------------------

    async def serve(self, link: Link) -> None:
        """Mirror over `link` until it is lost. Never raises for the link's sake."""
        # Numbers of data changes end with the process; the backup may hold one that this one never gave.
        self.volume.advance(link.peer.history.number)
        self.link = link
        self._session = link.mirror
        self.stream = Stream(link.mirror)
        self._said_bye = False
        self._suspects = Promise()
        self._room_limit = self._room_inodes = None
        self._go(PrimaryEvent.LINKED)
        stream = self.stream
        copy_catalog = missed(history_of(self.volume), link.peer.history) is Missed.CATALOG
        reason = await self.run_link(link, stream, copy_catalog=copy_catalog)
        self._lost(link, reason)
        stream.end(ConnectionLost(link.mirror.peer_name, reason))

    async def run_link(self, link: Link, stream: Stream, *, copy_catalog: bool) -> str:
        """Bring the backup up to date and keep it so; return why that ended."""
        reason = ""

        async def until_lost(work: Callable[[], Any]) -> None:
            nonlocal reason
            try:
                await work()
            except (FusemirrorError, OSError) as error:
                if isinstance(error, RemoteProtocolError):
                    why = error.why
                    link.mirror.refuse(error)
                elif isinstance(error, ChannelError):
                    why = error.why
                else:
                    why = str(error)
                    log.error("the mirror stops over this link: %s", error)
                reason = reason or why
                link.close(why)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_lost, lambda: self._read(link.mirror, stream))
            nursery.start_soon(until_lost, lambda: self._bring_up(link, stream, copy_catalog=copy_catalog))
            nursery.start_soon(until_lost, lambda: self._keep_checkpoints(stream))
        return reason

    def _lost(self, link: Link, reason: str) -> None:
        self._live = False
        self.backup_full = self.backup_leaves = False
        self.link = self.stream = None
        link.close(reason)
        streaming = self.streams
        for entry in self.in_flight:
            if entry.inode:
                self.out_of_sync.add_range(entry.inode, entry.start, entry.end)
        if streaming and self.in_flight:
            self._held_back = self.in_flight[0].number
        if streaming:
            # Else it served no reads: a link that comes and goes must not make changes wait on and on.
            self._hold_until = max(self._hold_until, link.mirror.answered_until)
        self._copier = None
        said_bye = self._said_bye
        if said_bye and not self.permission.granted:
            said_bye, self._hold_until = False, trio.current_time()  # its next process may take over
        self._go(PrimaryEvent.SAID_BYE if said_bye else PrimaryEvent.LOST, reason)

    async def _read(self, session: Session, stream: Stream) -> None:
        in_place = partial(self._take_acknowledgements, session)
        while True:
            for message, _data in await session.receive(in_place):
                self._check_place(message, session)
                if type(message) is Applied:
                    self._take_applied(message, session)
                elif type(message) is Reply:
                    stream.answered(message)
                elif type(message) is Fetched:
                    stream.fetched(message)
                elif type(message) is Suspects:
                    self._take_suspects(message, session)
                elif type(message) is Room:
                    self._take_room(message)
                elif type(message) is DiskSpace:
                    self.backup_disk = message
                elif type(message) is KeyNews:
                    self.renewal.take(message, session)
                elif type(message) is Bye:
                    await self._take_leave(message, session)
                else:
                    raise refusal(session.peer_name, message, "it came on the wrong path")

    def _check_place(self, message: AnyMessage, session: Session) -> None:
        if self.state not in PRIMARY_TAKES.get(type(message), ()):
            why = f"it came when the mirror was {self.state.name.lower()}"
            raise refusal(session.peer_name, message, why)

    def _take_acknowledgements(self, session: Session, received: list[Received]) -> list[Received]:
        """Those that come before anything else, without the task that reads."""
        for index, (message, _) in enumerate(received):
            if type(message) is not Applied:
                return received[index:]
            self._check_place(message, session)
            self._take_applied(message, session)
        return []

    def _take_applied(self, message: Applied, session: Session) -> None:
        if message.number > self.volume.number:
            raise refusal(session.peer_name, message, "number: no such change was made")
        self._applied_number = message.number
        self._acknowledge(message.number)

    async def _take_leave(self, message: Bye, session: Session) -> NoReturn:
        """End the link once the backup serves nothing, nor does its kernel. ConnectionLost."""
        reason = f"it said goodbye: {shown(message.reason)}"
        if message.mounted:
            self.backup_leaves, self.reason = True, reason
            # Its Pings are not answered meanwhile: the lease ends.
            await trio.sleep_until(session.answered_until)
        else:
            self.holdings.end()
        self._said_bye = True
        raise ConnectionLost(session.peer_name, reason)

    def _take_room(self, message: Room) -> None:
        if message.full and not self.backup_full:
            self.reason = "the disk of the backup's volume is full; it goes on when there is room"
            log.warning("%s", self.reason)
        elif self.backup_full and not message.full:
            self.reason = None
            log.info("the disk of the backup's volume has room again")
        self.backup_full = message.full
        self._room_limit = message.limit if message.limit >= 0 else None
        self._room_inodes = message.inodes if message.inodes >= 0 else None

    def _take_suspects(self, message: Suspects, session: Session) -> None:
        # A process that was there all the time has lost nothing that it acknowledged.
        if session.peer.instance != self._peer_instance:
            self.out_of_sync.add_marks(marks_of(message, session.peer_name))
        if message.last:
            self._suspects.resolve(None)

    async def _bring_up(self, link: Link, stream: Stream, *, copy_catalog: bool) -> None:
        theirs = link.peer.history
        stream.send(Begin(copy_catalog, generations_of(self.volume), self.volume.number))
        stream.send(AccessInEffect(self.access))
        self._live = copy_catalog
        await self._suspects.wait()
        compare_all = copy_catalog or theirs.compare_all or self.volume.identity.compare_all
        if compare_all:
            await self._mark_every_image()
        elif link.peer.instance != self._peer_instance:
            self.out_of_sync.add_marks(self.volume.regions.marks())
        self._peer_instance = link.peer.instance
        await self._catch_up(stream, theirs.journal_number, copy_catalog=copy_catalog)
        self.generation_shared = True
        self._go(PrimaryEvent.CAUGHT_UP)
        await self._copy(stream)
        stream.send(Normal(self.volume.number))
        self._go(PrimaryEvent.COPIED)
        self.copy_progress = CopyProgress()
        self._checkpoint_wanted.set()
        while True:
            await self._mend_wanted.wait()
            self._mend_wanted = trio.Event()
            self._send_out_of_sync(stream)
            await self._copy(stream)

    async def _mark_every_image(self) -> None:
        """Every image that has content, or may have some at the backup, is suspect."""
        for count, number in enumerate(self.volume.images.numbers()):
            self.out_of_sync.add_whole(number)
            if count % 1_000 == 0:
                await trio.lowlevel.checkpoint()

    async def _catch_up(self, stream: Stream, theirs: ChangeNumber, *, copy_catalog: bool) -> None:
        if copy_catalog:
            await send_catalog(stream, self.volume)
        else:
            theirs = await send_records(stream, self.volume, theirs)
        await send_attributes(stream, self.volume, self.out_of_sync, None if copy_catalog else theirs)
        # No checkpoint from here on: the next change follows `CaughtUp` in the stream.
        self._send_out_of_sync(stream)
        self.holdings.share()
        volume = self.volume
        next_inode = volume.catalog.next_inode
        stream.send(CaughtUp(volume.number, volume.journal_number, next_inode, volume.newest_time_ns))
        self._room_taken = self._room_inodes_taken = 0
        self._live = True

    def _send_out_of_sync(self, stream: Stream) -> None:
        inodes = self.out_of_sync.inodes()
        for start in range(0, len(inodes), INODES_PER_MESSAGE):
            stream.send(OutOfSyncMessage(tuple(inodes[start : start + INODES_PER_MESSAGE])))

    async def _copy(self, stream: Stream) -> None:
        copier = Copier(self.volume, stream, self.out_of_sync, self.pace, self.copy_progress)
        self._copier = copier
        # Changes that wait for their images to be copied go first: a program waits for each of them.
        waited_for = [entry.inode for entry in self.in_flight if entry.inode in self.out_of_sync]
        await copier.copy(dict.fromkeys(waited_for), at_once=True)
        self._held_back = None
        self._acknowledge(self._applied_number)
        while self.out_of_sync:
            copier.tell()
            await copier.copy(self.out_of_sync.inodes())
        self._copier = None

    @property
    def resync_status(self) -> dict[str, Any] | None:
        """The field `resync` of the status: None where nothing is being copied."""
        return None if self._copier is None else self.copy_progress.as_status(self.pace)

    def change_pace(self, *, rate_bytes: int | None = None, paused: bool | None = None) -> None:
        """From now on; that it is paused outlives the process. OSError."""
        if paused is not None:
            self.volume.update_identity(resync_paused=paused)
        self.pace.change(rate_bytes=rate_bytes, paused=paused)
        if self._copier is not None:
            with suppress(ConnectionLost):
                self._copier.tell()

    # --- durability in both volumes -----------------------------------------------------------------------

    def ask_flush(self, inode: InodeNumber) -> Promise[Reply] | None:
        """Ask the backup to make an image durable; None where there is no stream to ask over."""
        return self._ask(lambda token: FlushImage(token, inode))

    def _ask(self, question: Question) -> Promise[Reply] | None:
        if self.stream is None or not self.streams:
            return None
        try:
            return self.stream.ask(question)
        except ConnectionLost:
            return None

    async def flushed(self, inode: InodeNumber, promise: Promise[Reply] | None) -> int:
        """Return the errno of a flush that `ask_flush` began, asking again over a new link.

        0 as well once the primary goes on alone: then only this volume counts.
        """
        while True:
            if promise is not None:
                with suppress(ConnectionLost), trio.move_on_after(self.io_timeout_s):
                    return (await promise.wait()).errno
                if not promise.settled and self.link is not None:
                    self.link.close(str(TimedOut(self.io_timeout_s, "an fsync was not answered")))
            with trio.move_on_after(self.io_timeout_s) as patience:
                await self.settled_state()
            if patience.cancelled_caught and self.link is not None:
                # Then it goes on alone, and brings the backup up to date with nobody waiting.
                self.link.close(str(TimedOut(self.io_timeout_s, "the backup was not brought up to date")))
            if patience.cancelled_caught and not self.entitled:
                raise self.not_permitted()
            promise = self.ask_flush(inode)
            if promise is None and self.acknowledges_alone:
                return 0
            if promise is None:
                await self.changed.wait()

    async def _keep_checkpoints(self, stream: Stream) -> None:
        while not self.streams:
            await self.changed.wait()
        while True:
            self._checkpoint_wanted = trio.Event()
            await self.checkpoint(stream)
            # Marks that stay are written anew each time.
            pause_s = max(CHECKPOINT_INTERVAL_S, self.out_of_sync.range_count / _RANGES_PER_S)
            with trio.move_on_after(pause_s):
                await self._checkpoint_wanted.wait()

    async def checkpoint(self, stream: Stream) -> None:
        """Make both volumes durable up to here; then the marks of what stood before it may go.

        Those of what is out of sync at this place of the stream stay: they are what a crash leaves of it.
        """
        number = self.volume.checkpoint_begun + 1
        self.volume.begin_checkpoint(number)
        epoch = self.volume.regions.rotate()
        keep = self.out_of_sync.marks()
        durable = self.volume.journal.durable_number
        token = 0

        def question(given: int) -> Checkpoint:
            nonlocal token
            token = given
            return Checkpoint(given, ChangeNumber(durable), number)

        reply = stream.ask(question)
        await self.volume.make_durable()
        answer = await reply.wait()
        if answer.errno:
            raise ConnectionLost(stream.session.peer_name, f"its checkpoint failed with errno {answer.errno}")
        if answer.number > self.volume.number:
            raise refusal(stream.session.peer_name, answer, "number: no such change was made")
        self.volume.end_checkpoint(number)
        self.volume.drop_marks(epoch, keep)
        # From here on the marks say what must be compared, so that an interrupted resync goes on.
        self.volume.update_identity(compare_all=False)
        stream.send(ForgetMarks(token))
        self.peer_durable = answer.number
        self.volume.trim(answer.number)

    def pending_status(self) -> dict[str, float]:
        """What the backup has not acknowledged yet, for `status`. Data counts in bytes."""
        oldest_s = trio.current_time() - self.in_flight[0].since if self.in_flight else 0.0
        return {
            "pending_requests": len(self.in_flight),
            "pending_bytes": sum(entry.length for entry in self.in_flight),
            "oldest_seconds": round(oldest_s, 3),
            "capacity_bytes": 0,
        }
