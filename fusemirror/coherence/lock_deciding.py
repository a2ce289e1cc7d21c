"""The primary's half of the arbiter of locks: it decides, for the programs of both hosts (`locks.py`)."""

import errno
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress

from fusemirror.channel.session import Session
from fusemirror.coherence.lock_table import Lock, LockKey, LockKind, Owner, Settled, Wanted
from fusemirror.coherence.locks import Ask, Binding, LockListing, Locks, Range, lock_of, message_of
from fusemirror.errors import CheckReport, ConnectionLost, DiskFailed
from fusemirror.limits import LOCKS_PER_MESSAGE, LOCKS_PER_PEER_MAX
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.sending import Mirror
from fusemirror.protocol.codec import refusal
from fusemirror.protocol.messages import (
    AskLock,
    CancelLock,
    HeldLock,
    ListLocks,
    LockAnswer,
    LocksListed,
    LocksReclaimed,
    ReclaimLocks,
    ReleaseLock,
)

log = logging.getLogger(__name__)

_EPOCH_BYTES = 8

LocksMessage = AskLock | CancelLock | ReleaseLock | ListLocks


class Deciding:
    """The primary's half."""

    def __init__(
        self,
        locks: Locks,
        mirror: Mirror,
        replica: Replica,
        random_bytes: Callable[[int], bytes],
        may_decide: Callable[[], bool],
    ) -> None:
        """`may_decide`: the unit serves requests, and this host is the primary."""
        self.locks = locks
        self._mirror = mirror
        self._replica = replica
        self._random_bytes = random_bytes
        self._may_decide = may_decide
        # Both kinds of grace end by an event and not by a clock: the backup reclaims, or this host goes on
        # alone.
        self._reclaimed = False  # by the backup over this link
        self._reclaiming: list[tuple[LockKey, Lock]] = []
        self._dropped = False  # the epoch is of this time alone

    @property
    def _decides_alone(self) -> bool:
        return self._mirror.authority.acknowledges_alone

    @property
    def _peer_takes_locks(self) -> bool:
        stream = self._replica.stream
        return stream is None or stream.session.peer.takes_locks

    @property
    def is_open(self) -> bool:
        mirror = self._mirror
        # A host that may not change anything may not grant anything: a lock is a promise about changes.
        if not self._may_decide() or mirror.authority.retired or not mirror.authority.entitled:
            return False
        if self._decides_alone:
            return True
        # Until it has reclaimed, a lock that it holds is not in the table, and might be granted a second
        # time.
        return self._replica.streams and (self._reclaimed or not self._peer_takes_locks)

    @property
    def binding(self) -> Binding:
        if not self.is_open:
            return Binding.NONE
        if self._decides_alone:
            return Binding.ONE
        return Binding.BOTH if self._peer_takes_locks else Binding.NONE

    async def run(self) -> None:
        """Decide what waits as soon as that can be, for ever."""
        while True:
            # The event of before the look: what changes while this looks is looked at again.
            changed = self._mirror.changed
            self.go_on()
            await changed.wait()

    def go_on(self) -> None:
        """Decide what can be decided now."""
        if self.is_open:
            # Only where a program here waits for what the backup holds: a host that was alone for a moment,
            # with nobody wanting that, drops nothing. A program of the backup that waits gets nothing here.
            # One of this host that waits for others of it is let in when they go (`release`): it conflicts
            # with nothing that the backup may reclaim, as all of that is in the table, and grows no more.
            if self._decides_alone and not self._dropped and self._is_wanted_here():
                self._begin_epoch()
            self.locks.ask_again()

    def _is_wanted_here(self) -> bool:
        return self.locks.table.waits_for(self.locks.host, self.locks.peer)

    def begin_link(self) -> None:
        """A link begins: nothing is decided from the time when the backup has caught up until it has
        reclaimed."""
        self._reclaimed = False
        # A link that ended between two pieces has left half of a list, which must not be taken for a part of
        # the next one.
        self._reclaiming.clear()

    def link_lost(self) -> None:
        """No request comes over the last link any more."""
        # It asks anew over the next. Until then nobody could tell it of a grant, and what it was granted
        # would be in the way of programs here. What it holds stays in the table until it has reclaimed, so
        # that nobody else gets it.
        self.locks.table.drop_waiting(self.locks.peer)
        # Alone already, this host may have granted it something since it looked.
        self.go_on()

    def _begin_epoch(self) -> bool:
        """Drop what the backup held; False, and nothing changed, where the disk does not take the record."""
        locks = self.locks
        # Durable before anything is granted: a host that restarts between the two would take the backup's
        # word for locks that were given away meanwhile.
        try:
            locks.keep_epoch(self._random_bytes(_EPOCH_BYTES))
        except (OSError, DiskFailed) as error:
            log.error("locks are not given while this host is alone: %s", error)
            # The backup's locks stay, and nobody is granted anything (EIO): without the record nobody could
            # tell later that they were given away. The next request tries the disk again.
            return False
        self._dropped = True
        self._deliver(locks.table.drop_host(locks.peer))
        return True

    # --- programs of this host --------------------------------------------------------------------------

    def ask(self, ask: Ask) -> None:
        if not self.is_open:
            return
        if not self._decides_alone and not self._peer_takes_locks:
            ask.settle(errno.ENOLCK)
            return
        # The first request after the lease, and not the end of the lease, drops what the backup held: until
        # somebody wants a lock there is no harm in the backup's getting its own back.
        if self._decides_alone and not self._dropped and not self._begin_epoch():
            ask.settle(errno.EIO)
            return
        ask.asked = True
        if ask.asks_only:
            found = self.locks.table.hindrance(ask.wanted)
            ask.settle(0, found and seen_from(found, self.locks.host))
        else:
            self._deliver(self.locks.table.ask(ask.wanted))

    def cancel(self, ask: Ask) -> None:
        # It was not granted meanwhile: a grant settles its request in the same step (`_deliver`), and
        # `Locks.interrupt` looks at that first.
        self.locks.table.cancel(self.locks.host, ask.wanted.token)
        ask.settle(errno.EINTR)

    def release(self, key: LockKey, owner: Owner, held: Range, before: list[Lock], *, waiting: bool) -> None:
        # Also while nothing is decided. Whoever is let in conflicts with nothing that the backup may reclaim,
        # as that stays in the table until it has, or until an epoch refuses it. A waiter of the backup that
        # is let in with no link to say so is not reclaimed, and asks again.
        table = self.locks.table
        if waiting:
            self._deliver(table.drop_owner(key.inode, owner, (key.space,)))
        else:
            self._deliver(table.release(key, owner, *held))

    async def others(self) -> LockListing:
        return LockListing(0, [])  # it is all in the table

    @property
    def in_vain(self) -> bool:
        return self._mirror.authority.waits.in_vain

    def report(self) -> CheckReport:
        return self._mirror.authority.not_permitted()

    def under_way(self) -> list[Wanted]:
        return []  # what is granted is in the table

    def give_up_waiting(self, ask: Ask, io_timeout_s: float) -> None:
        """Nothing is before this arbiter without an answer but what waits for others."""

    def _deliver(self, settled: Iterable[Settled]) -> None:
        for wanted, error in settled:
            if wanted.owner.host == self.locks.peer:
                # The last number of now: what the last holder wrote has one by now, and all of it stands
                # before this answer in the stream, so the grantee waits for nothing.
                self._answer(LockAnswer(wanted.token, error, self.locks.volume.number))
                continue
            ask = self.locks.find(wanted.token)
            if ask is not None:
                ask.settle(error)
            # Its program was killed while the answer was on its way; a lock without an owner would stand
            # for ever.
            elif not error:  # nobody waits for it any more
                lock = wanted.lock
                self._deliver(self.locks.table.release(wanted.key, wanted.owner, lock.start, lock.end))

    # --- programs of the backup: handlers of the forward path -------------------------------------------

    def _answer(self, answer: LockAnswer | LocksReclaimed | LocksListed) -> None:
        stream = self._replica.stream
        if stream is not None:
            with suppress(ConnectionLost):  # it asks again over the next link
                stream.send(answer)

    def reclaimed(self, session: Session, message: ReclaimLocks) -> None:
        """RemoteProtocolError for more than a host can hold, or a second time, and for what is no range."""
        locks = self.locks
        _check_ranges(session, message, message.locks)
        self._reclaiming += [lock_of(each, locks.peer) for each in message.locks]
        # With each piece and not at the end, so that a peer fills no memory with pieces of which none is the
        # last (G7).
        if self._reclaimed or len(self._reclaiming) > LOCKS_PER_PEER_MAX:
            raise refusal(session.peer_name, message, "it has reclaimed already, or too much")
        if not message.last:
            return
        new, self._reclaiming = self._reclaiming, []
        # RFC 8881, 8.4.3: nothing conflicting was granted since if the epoch is the same. Of another epoch
        # nobody knows any more what was granted and released again, so all of it is refused.
        kept = message.epoch == locks.epoch
        settled: list[Settled] = []
        if kept:
            try:
                settled = locks.table.replace_host(locks.peer, new)
            except ValueError as error:
                log.warning("what the backup reclaims it cannot hold: %s", error)
                kept = False
        if not kept:
            settled = locks.table.drop_host(locks.peer)
        # Only now: what is granted from here on is granted to both.
        self._reclaimed, self._dropped = True, False
        self._answer(LocksReclaimed(locks.epoch, kept))
        self._deliver(settled)
        self.go_on()

    def asked(self, session: Session, message: AskLock) -> None:
        """RemoteProtocolError before it has reclaimed, and for what is no range."""
        self._check_reclaimed(session, message)
        _check_ranges(session, message, (message.lock,))
        key, lock = lock_of(message.lock, self.locks.peer)
        wanted = Wanted(message.token, key, lock, message.waits, message.may_deadlock)
        # A waiting request keeps no task here: the answer is a message whenever it comes.
        if not message.asks_only:
            self._deliver(self.locks.table.ask(wanted))
            return
        found = self.locks.table.hindrance(wanted)
        conflict = None if found is None else message_of(key, seen_from(found, self.locks.peer))
        self._answer(LockAnswer(message.token, 0, self.locks.volume.number, conflict))

    def cancelled(self, session: Session, message: CancelLock) -> None:
        """RemoteProtocolError before it has reclaimed."""
        self._check_reclaimed(session, message)
        # Where it waits no more its grant is on the way already, and was first: a second answer would
        # contradict it.
        if self.locks.table.cancel(self.locks.peer, message.token):
            self._answer(LockAnswer(message.token, errno.EINTR, self.locks.volume.number))

    def released(self, session: Session, message: ReleaseLock) -> None:
        """RemoteProtocolError before it has reclaimed, for what is no range, and for more of them than
        programs can make."""
        self._check_reclaimed(session, message)
        _check_ranges(session, message, (message,))
        key, owner = LockKey(message.inode, LockKind(message.space)), Owner(self.locks.peer, message.owner)
        # Not by the limit of a user, nor by that of a host: who gave this up did not know of the grants that
        # were on their way, and a program must not be able to end the link by that.
        more = self.locks.table.more(key, owner, message.start, message.end, None).total()
        if more > 0 and self.locks.table.count_of(self.locks.peer) + more > LOCKS_PER_PEER_MAX:
            raise refusal(session.peer_name, message, "it leaves too many ranges")
        self.release(key, owner, (message.start, message.end), [], waiting=message.waiting)
        if message.token:
            self._answer(LockAnswer(message.token, 0, self.locks.volume.number))

    def list_own(self, session: Session, message: ListLocks) -> None:
        """RemoteProtocolError before it has reclaimed."""
        self._check_reclaimed(session, message)
        own = [row for row in self.locks.all_rows() if row[1].owner.host == self.locks.host]
        first = own[:LOCKS_PER_MESSAGE]
        held, waiting = (
            tuple(message_of(key, lock) for key, lock, is_so in first if is_so == state)
            for state in ("held", "waiting")
        )
        self._answer(LocksListed(message.token, len(own), held, waiting))

    def _check_reclaimed(self, session: Session, message: LocksMessage) -> None:
        if not self._reclaimed:
            raise refusal(session.peer_name, message, "it has not reclaimed yet")


def _check_ranges(
    session: Session, message: AskLock | ReclaimLocks | ReleaseLock, ranges: Iterable[HeldLock | ReleaseLock]
) -> None:
    # The table counts how many begin before a place and how many end before another: one that ended before it
    # began would hide another lock, of whatever host.
    if any(each.end < each.start for each in ranges):
        raise refusal(session.peer_name, message, "a range that ends before it begins")


def seen_from(lock: Lock, host: bytes) -> Lock:
    """As a host shows it to its programs: a process of the other host has no number there."""
    if lock.owner.host == host:
        return lock
    return Lock(lock.owner, lock.start, lock.end, lock.exclusive, pid=0, uid=lock.uid)
