"""The primary's half of the mirror: sends every change, and knows which the backups hold.

Changes are published in their order, right after they were applied to the main volume, to every replica
(`replica.py`): what is known of one backup, which `resync.py` brings up to date. A change counts as
acknowledged when each replica that is not left has applied it, and says so (`hearing.py`); who waits for that
does so at the window (`window.py`). What this host may do without them stands in `authority.py`. Today there
is one.

When a link is lost, the backup may go on serving reads until its lease ends. So changes wait
(`HOLDING`) until the backup is back or the lease is over; only then does the primary go on alone.
With `fence = "data"` it does not: it refuses changes, and those that were under way are in doubt.
With a witness it needs its quorum grant (`witness/quorum.py`), and holds until it has it.
Source: seed [0054]-[0057] (JOB4 and JOB5); design.md G1-G3.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import trio

from fusemirror.change import AnyChange, NamespaceChange, Row, encode_change
from fusemirror.channel.link import Link
from fusemirror.channel.renewal import Renewal
from fusemirror.channel.session import Session
from fusemirror.errors import (
    ChangeInDoubt,
    ChangeUnrecorded,
    ChangeUntold,
    ChannelError,
    ConnectionLost,
    CopyDeclined,
    FusemirrorError,
    RemoteProtocolError,
)
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber
from fusemirror.limits import FILE_BYTES_MAX, STATUS_AHEAD_BYTES
from fusemirror.mirror.access import PairAccess
from fusemirror.mirror.authority import Authority, Left
from fusemirror.mirror.declining import shown_reason
from fusemirror.mirror.durability import Durability
from fusemirror.mirror.hearing import Hearing
from fusemirror.mirror.histories import Missed, generation_row, generations_of, history_of, missed
from fusemirror.mirror.pace import Pace
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.resync import PAUSED, Resyncer
from fusemirror.mirror.states import (
    PRIMARY_ACKNOWLEDGES_ALONE,
    PRIMARY_STANDINGS,
    PrimaryEvent,
    PrimaryState,
    next_primary_state,
)
from fusemirror.mirror.stream import Stream
from fusemirror.mirror.window import Doubt, Window
from fusemirror.protocol.codec import refusal
from fusemirror.protocol.connection import shown
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import (
    AccessInEffect,
    Applied,
    Begin,
    Declined,
    Fetched,
    KeyNews,
    Reply,
    Room,
    StatusTaken,
    Suspects,
)
from fusemirror.settings import Access, Fence
from fusemirror.volume.volume import Volume
from fusemirror.witness.quorum import QuorumGrant

log = logging.getLogger(__name__)

_GENERATION_BYTES = 16


class Mirror:
    """See the module. One task calls `serve` per link; a `run_watch` for each replica runs beside it for
    ever."""

    def __init__(
        self,
        volume: Volume,
        replicas: Sequence[Replica],
        random_bytes: Callable[[int], bytes],
        *,
        io_timeout_s: float,
        fence: Fence = Fence.NEVER,
        resync_rate: int = 0,
        quorum: QuorumGrant | None = None,
        renewal: Renewal | None = None,
        others: Mapping[type, Callable[[Any], None]] | None = None,
        access: PairAccess | None = None,
    ) -> None:
        """`renewal` takes what the backup says of its keys, `others` what is not the mirror's business."""
        self.volume = volume
        self.replicas = tuple(replicas)
        self.window = Window(volume.number, self._ask_applied)
        self.authority = Authority(self.replicas, quorum or QuorumGrant(), fence, io_timeout_s)
        self.pace = Pace(resync_rate, paused=volume.identity.resync_paused)
        self.resync = {
            replica: Resyncer(
                volume,
                replica,
                self.window,
                self.pace,
                partial(self._reach, replica),
                partial(self._acknowledge, replica),
                self.authority.look,
            )
            for replica in self.replicas
        }
        self.durability = Durability(volume, self.replicas, self.authority)
        self.access = access or PairAccess()
        self.acknowledges_statuses = False
        """Programs hear of success once both volumes are exclusive for what they write."""
        self.written: list[tuple[InodeNumber, int, int]] | None = None
        """Where somebody wants them: the bytes of images that changes are published for, from then on."""
        self._random_bytes = random_bytes
        self._renewal = renewal or Renewal()
        self._others = others or {}

    # --- the path of a change ------------------------------------------------------------------------

    def publish(
        self,
        change: AnyChange,
        encoded: bytes,
        data: Buffer,
        keys: tuple[Any, ...],
        old_size_bytes: int = FILE_BYTES_MAX,
        holder: Replica | None = None,
    ) -> None:
        """Send a change that the main volume holds. `holder` asked for it and has the data already.

        `old_size_bytes`: how long the file was. A change beyond its end shows zeros from there on.
        """
        # Published in main's order, each at once: the stream is that order, and what it lacks is marked.
        assert change.number == self.volume.number, "a change was made that was not published"
        is_commanded = len(data) >= STATUS_AHEAD_BYTES and self.access.in_effect is Access.EXCLUSIVE
        for replica in self.replicas:
            if is_commanded and replica is not holder:
                replica.command(change, old_size_bytes, answers=self.acknowledges_statuses)
            replica.take(change, encoded, b"" if replica is holder else data)
        if self.written is not None:
            self.written.append(change.data_range())
        if self.authority.acknowledges_alone:
            self.window.acknowledge(change.number)
            return
        self.window.add(change, keys, old_size_bytes, trio.current_time())
        for replica in self.replicas:
            if replica.feed is None and not self.authority.goes_without(replica):
                replica.progress.hold_back(change.number)

    def _acknowledge(self, replica: Replica, number: ChangeNumber) -> None:
        """One has every change up to `number`: those that each has that is not left are acknowledged."""
        for other in self.replicas:
            if other is not replica and not other.is_left:
                number = min(number, other.progress.number)
        self.window.acknowledge(number)

    def _ask_applied(self) -> None:
        if self.access.in_effect is Access.ROUTED:  # with exclusive access no word is delayed
            for replica in self.replicas:
                replica.ask_applied()

    async def statuses_taken(self, number: ChangeNumber) -> bool:
        """Return when all backups have taken the status for a change (`status_commands.py`). False: one was
        not told to, or was lost."""
        for replica in self.replicas:
            if not await replica.commands.taken(number):
                return False
        return True

    def change_access(self, access: Access) -> None:
        """Go by this access; the backup is told, now or when there is a link."""
        if access is not self.access.in_effect:
            self.access.take(access)
            for replica in self.replicas:
                replica.say(AccessInEffect(access))

    def change_pace(self, *, rate_bytes: int | None = None, paused: bool | None = None) -> None:
        """Of every resync, from now on; that it is paused outlives the process. OSError."""
        if paused is not None:
            self.volume.update_identity(resync_paused=paused)
        self.pace.change(rate_bytes=rate_bytes, paused=paused)
        for resync in self.resync.values():
            resync.tell_pace()

    def repair(self, change: AnyChange) -> None:
        """A change of data failed here, perhaps halfway: its bytes are compared everywhere."""
        for resync in self.resync.values():
            resync.repair(change)

    @property
    def congested(self) -> bool:
        """See `wait_room`."""
        return any(replica.congested for replica in self.replicas)

    async def wait_room(self) -> None:
        """As that of each replica, within `io_timeout`."""
        for replica in self.replicas:
            await replica.wait_room(self.authority.io_timeout_s)

    @property
    def must_begin_generation(self) -> bool:
        """The next change is the first one that is made without a backup."""
        return any(each.progress.shares_line and self.authority.goes_without(each) for each in self.replicas)

    def begin_generation(self, *more: Row) -> None:
        """Mark in the order of changes that from here on whoever is not sent them was not there. OSError,
        DiskFailed."""
        volume = self.volume
        absent = [replica for replica in self.replicas if replica.feed is None or not replica.streams]
        for replica in absent:
            replica.holdings.part()
        number = ChangeNumber(volume.number + 1)
        row = generation_row(volume, self._random_bytes(_GENERATION_BYTES), number)
        self.record((row, *more))
        assert volume.number == number, "the line begins with the record that tells of it"
        for replica in absent:
            replica.progress.shares_line = False
        volume.update_identity(complete=True)  # after a repair: it is the whole of a line of its own

    def record(self, rows: tuple[Row, ...]) -> None:
        """Make a change that nobody asked for and nobody waits for. OSError, DiskFailed.

        Where the newest change is too far ahead of this host's clock, changes follow the clock from here on.
        """
        volume = self.volume
        number = ChangeNumber(volume.number + 1)
        set_back = volume.clock.set_back()
        if set_back is None:
            time_ns = volume.clock.next_ns()
        else:
            row, time_ns = set_back
            rows = (*rows, row)
        change = NamespaceChange(number, NO_REQUEST, time_ns, InodeNumber(0), rows)
        encoded = encode_change(change)
        volume.apply(change, encoded=encoded, own=True)
        self.publish(change, encoded, b"", ())

    async def not_held(self, inodes: list[InodeNumber]) -> list[InodeNumber]:
        """Those of these inodes without names that no backup has open (`holdings.py`). OSError."""
        await self.authority.until_decided()
        for replica in self.replicas:
            stream = replica.stream if replica.streams else None
            alone = replica.stream is None and self.authority.goes_without(replica)
            alone = alone and not replica.progress.shares_line
            inodes = await replica.holdings.not_held(inodes, stream, alone=alone)
        return inodes

    # --- states ---------------------------------------------------------------------------------------

    @property
    def changed(self) -> trio.Event:
        """Set at the next change of the state, or of what this host may do."""
        return self.authority.changed

    @property
    def shown_reason(self) -> str | None:
        """Why the state is not normal, and what that means for changes, for people."""
        if any(resync.is_paused for resync in self.resync.values()):
            return PAUSED
        declined = (shown_reason(each.known.name, each.declined) for each in self.replicas)
        return self.authority.shown_reason or next(filter(None, declined), None)

    def differ(self, replica: Replica, reason: str) -> None:
        """The peer was met, and both went on apart. Nothing where the state says so already."""
        if not replica.may_differ:
            return
        if replica.state is not PrimaryState.DIVERGED:
            log.error("%s; nothing was merged or overwritten, see fusemirror(7)", reason)
        self._go(replica, PrimaryEvent.DIFFERED, reason)

    def retire(self, replica: Replica, known: ChangeNumber, peer: bytes = b"") -> None:
        """This host is the primary no more. The new one, the process `peer` of a replica, holds all up to
        `known`; those who wait for later ones, and whoever asks from now on, get `RoleChanged`.

        It may hold data behind that, too, which another process of it was sent. To ask for that again could
        be to do it twice, or behind what came after it. So whoever waits for it hears that it is in doubt.
        """
        self.authority.retire()
        error = ChangeUntold(replica.known.name)
        perhaps = replica.progress.held_unknown_to(peer) if peer else known
        self.window.close(known, perhaps, lambda: self.authority.reported(error))
        for each in self.replicas:
            each.end("the roles changed")

    def _reach(self, replica: Replica, event: PrimaryEvent) -> None:
        if event is PrimaryEvent.CAUGHT_UP:
            replica.progress.shares_line = True  # it has the row of the generation by now
        self._go(replica, event)
        if event is PrimaryEvent.COPIED:
            self.durability.want_checkpoint()

    def _go(self, replica: Replica, event: PrimaryEvent, reason: str | None = None) -> None:
        authority = self.authority
        # Decided by where this host will stand, before it does: a change that is acknowledged without a
        # replica must stand behind the record which says that it was.
        state = next_primary_state(replica.state, event)
        standing = max(PRIMARY_STANDINGS[state if each is replica else each.state] for each in self.replicas)
        left = authority.rights_where(standing, permitted=authority.quorum.granted).left
        is_left = state in PRIMARY_ACKNOWLEDGES_ALONE
        doubt = self._leave(replica, left, reason) if is_left else None
        gave_role_away = authority.retired or self.volume.identity.role != "primary"
        replica.go(event, reason, is_meant=gave_role_away)
        authority.look()
        if left is not Left.WAIT or doubt is not None:
            self._give_up_waiting(doubt)
        elif is_left:  # the others go on acknowledging
            replica.progress.release()
            self._acknowledge(replica, self.volume.number)

    def _leave(self, replica: Replica, left: Left, reason: str | None) -> Doubt | None:
        """What is under way stands in a line of its own on return, to be acknowledged without the replica;
        or why that cannot be, while main has it and goes on showing it."""
        if left is Left.UNCONFIRMED:
            return self.authority.unconfirmed
        if left is Left.IN_DOUBT:
            return lambda: self.authority.reported(ChangeInDoubt(reason))
        if not self.window.in_flight or not replica.progress.shares_line:
            return None
        try:
            self.begin_generation()
        except (OSError, FusemirrorError) as error:
            log.error("changes under way are not acknowledged: %s", error)
            unrecorded = ChangeUnrecorded(str(error))
            return lambda: self.authority.reported(unrecorded)
        return None

    def _give_up_waiting(self, doubt: Doubt | None) -> None:
        for replica in self.replicas:
            replica.progress.release()
        self.window.acknowledge(self.volume.number, doubt)

    async def run_watch(
        self, replica: Replica, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """End its lease when it is over, and a link that does not answer within `io_timeout`."""
        task_status.started()
        while True:
            if replica.is_held:
                await self._hold(replica)
                continue
            timeout_s, in_flight = self.authority.io_timeout_s, self.window.in_flight
            deadline = trio.current_time() + timeout_s
            if in_flight:
                deadline = in_flight[0].since + timeout_s
                late = trio.current_time() >= deadline and replica.progress.number < in_flight[0].number
                if late and not self.authority.goes_without(replica):
                    replica.give_up("a change was not acknowledged", timeout_s)
            with trio.move_on_at(max(deadline, trio.current_time() + timeout_s / 10)):
                await self.changed.wait()

    async def _hold(self, replica: Replica) -> None:
        """Go on without it when that is due and permitted. What waits longer for the grant is in doubt."""
        now = trio.current_time()
        may_be_left = replica.may_be_left(now)
        if may_be_left and self.authority.quorum.granted:
            self._go(replica, PrimaryEvent.LEASE_OVER, replica.reason)
            return
        timeout_s, in_flight = self.authority.io_timeout_s, self.window.in_flight
        late = in_flight[0].since + timeout_s if in_flight else math.inf
        if may_be_left and in_flight and (now >= late or self.authority.waits.in_vain):
            self._give_up_waiting(self.authority.unconfirmed)
            return
        # A change may still come while the lease that this host has of the backup lasts.
        late = min(late, now + timeout_s)
        with trio.move_on_at(late if may_be_left else replica.hold_until):
            await self.changed.wait()

    # --- one link ---------------------------------------------------------------------------------------

    async def serve(self, link: Link, replica: Replica) -> None:
        """Mirror to a replica over `link` until it is lost. Never raises for the link's sake."""
        # Numbers of data changes end with the process; the backup may hold one that this one never gave.
        self.volume.advance(link.peer.history.number)
        stream = replica.linked(link)
        self.resync[replica].linked()
        self._go(replica, PrimaryEvent.LINKED)
        copy_catalog = missed(history_of(self.volume), link.peer.history) is Missed.CATALOG
        reason = await self.run_link(replica, link, stream, copy_catalog=copy_catalog)
        under_way, permitted = list(self.window.in_flight), self.authority.quorum.granted
        self._go(replica, replica.lost(reason, under_way, permitted=permitted), reason)
        stream.end(ConnectionLost(link.mirror.peer_name, reason))

    async def run_link(self, replica: Replica, link: Link, stream: Stream, *, copy_catalog: bool) -> str:
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
            nursery.start_soon(until_lost, self._hearing(replica, link.mirror, stream).run)
            nursery.start_soon(
                until_lost, lambda: self._bring_up(replica, link, stream, copy_catalog=copy_catalog)
            )
            nursery.start_soon(until_lost, lambda: self.durability.run(stream))
        return reason

    async def _bring_up(self, replica: Replica, link: Link, stream: Stream, *, copy_catalog: bool) -> None:
        stream.send(Begin(copy_catalog, generations_of(self.volume), self.volume.number))
        stream.send(AccessInEffect(self.access.in_effect))
        await self.resync[replica].run(link, stream, copy_catalog=copy_catalog)

    def _hearing(self, replica: Replica, session: Session, stream: Stream) -> Hearing:
        handlers: dict[type, Callable[[Any], None]] = {
            Applied: lambda message: self._acknowledge(
                replica, replica.take_applied(message, self.volume.number)
            ),
            Declined: partial(self._take_declined, replica, session),
            StatusTaken: replica.commands.answered,
            Reply: stream.answered,
            Fetched: stream.fetched,
            Suspects: partial(self.resync[replica].take_suspects, session=session),
            Room: replica.take_room,
            KeyNews: partial(self._renewal.take, session=session),
            **self._others,
        }
        return Hearing(replica, session, handlers)

    def _take_declined(self, replica: Replica, session: Session, message: Declined) -> None:
        """The backup goes on without one change: its program, or who waits for it, hears why (step 710)."""
        number = message.number
        if number > self.volume.number:
            raise refusal(session.peer_name, message, "number: no such change was made")
        if self.volume.catalog.inode(message.inode) is not None:  # else nobody reads it
            replica.take_declined(message)
        if number and replica.progress.held_back is None:
            name = replica.known.name
            self.window.doubt(number, lambda: CopyDeclined(name, message.inode, shown(message.reason)))
            replica.progress.applied = max(replica.progress.applied, number)  # as far as it can
            self._acknowledge(replica, number)
        self.resync[replica].try_again(message.inode)
        self.authority.look()
