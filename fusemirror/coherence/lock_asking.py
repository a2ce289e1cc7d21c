"""The backup's half of the arbiter of locks: it asks, and takes what the primary says (`locks.py`)."""

import errno
import itertools
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import trio

from fusemirror.channel.link import Link
from fusemirror.channel.session import Session
from fusemirror.coherence.lock_table import END_OF_FILE, Lock, LockKey, LockKind, LockTable, Owner, Wanted
from fusemirror.coherence.locks import Ask, Binding, LockListing, Locks, Range, lock_of, message_of
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.errors import CheckReport, ConnectionLost, TimedOut
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import LOCKS_PER_MESSAGE
from fusemirror.mirror.waits import Waits
from fusemirror.promise import Promise
from fusemirror.protocol.codec import refusal
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import (
    AskLock,
    CancelLock,
    ListLocks,
    LockAnswer,
    LocksListed,
    LocksReclaimed,
    ReclaimLocks,
    ReleaseLock,
)

_RELEASES_FROM = 1 << 61  # their tokens are none of a request for a lock
_SENT_PER_TURN = 64


class Asking:
    """The backup's half: it asks, and takes what the primary says in the order of the stream."""

    def __init__(
        self,
        locks: Locks,
        communication: CommunicationVolume,
        waits: Waits,
        report: Callable[[], CheckReport],
        send_gathered: Callable[[], None],
    ) -> None:
        """`send_gathered`: what is kept back of this host's writes is to go now."""
        self.locks = locks
        self._communication = communication
        self._waits = waits
        self._report = report
        self._send_gathered = send_gathered
        # The role was the primary's a moment ago: the new one knows nothing of these yet.
        self.in_doubt = bool(locks.own())
        """Something may be lost that this host's programs hold: nothing is shown to them meanwhile."""
        self._link: Link | None = None
        self._reclaimed = False
        self._refuses = False  # the primary is of an earlier version
        self._reclaim_answer: Promise[LocksReclaimed] = Promise()
        # What is sent behind writes that nobody waits for: the newest of them, and what was held until then.
        self._unsent: deque[tuple[int, AskLock | CancelLock | ReleaseLock, list[tuple[LockKey, Lock]]]] = (
            deque()
        )
        self._wanted = trio.Event()
        # What was given up while the same owner had asked for something, until the primary has heard of it.
        self._giving_up: dict[int, tuple[LockKey, Owner, Range]] = {}
        self._listings: dict[int, Promise[LocksListed]] = {}
        self._tokens = itertools.count(_RELEASES_FROM)

    @property
    def is_open(self) -> bool:
        # A primary that knows no locks has decided, too: to wait for it would be to wait for ever (G8).
        return self._reclaimed or self._refuses

    @property
    def binding(self) -> Binding:
        return Binding.BOTH if self._reclaimed else Binding.NONE

    # --- links ------------------------------------------------------------------------------------------

    async def reclaim(self, link: Link) -> set[InodeNumber]:
        """Say what this host's programs hold; the inodes whose locks they lost, or had given up behind writes
        that are not there yet. ChannelError."""
        locks = self.locks
        # With what was given up behind such writes: a lock that ends before its holder's writes have come
        # would show another program the file without them.
        held = self._still_held()
        inodes = {key.inode for key, _ in held}
        if not link.peer.takes_locks:
            locks.lose_all("the primary is of an earlier version, which knows no locks")
            self._link, self._refuses = link, True
            # They would give up what is lost already, by messages that this primary does not know.
            self._unsent.clear()
            return inodes
        self._reclaim_answer = Promise()
        # One message also where nothing is held: until it has come the primary decides for nobody, as this
        # host might hold anything.
        for start in range(0, max(1, len(held)), LOCKS_PER_MESSAGE):
            piece = tuple(message_of(*each) for each in held[start : start + LOCKS_PER_MESSAGE])
            last = start + LOCKS_PER_MESSAGE >= len(held)
            link.forward.send(ReclaimLocks(locks.epoch, piece, last))
        # After all of it is sent, so that no request of a program goes between two pieces.
        self._link = link
        answer = await self._reclaim_answer.wait()
        if answer.kept:
            return set()
        locks.lose_all("the other host went on without this one")
        return inodes

    def _still_held(self) -> list[tuple[LockKey, Lock]]:
        """What the primary is to know: also what was given up, and is told of behind changes."""
        table = LockTable()
        for _, _, before in self._unsent:
            for key, lock in before:
                table.put(key, lock)
        for key, lock in self.locks.own():
            table.put(key, lock)
        return list(table.all_held())

    def taken(self, message: LocksReclaimed, _: Buffer, session: Session) -> None:
        """A handler of the stream."""
        if self._reclaimed or self._reclaim_answer.settled or self._link is None:
            raise refusal(session.peer_name, message, "nothing was reclaimed")
        # Before anybody goes on: what is granted from here on is of this epoch. Reclaimed under the one
        # before it would all be refused.
        self.locks.keep_epoch(message.epoch)
        self._reclaim_answer.resolve(message)

    def open(self) -> None:
        """What was lost is known: ask what waits."""
        self._reclaimed = not self._refuses
        self.in_doubt = False
        # What stands behind changes first: requests that are asked anew go behind it (`_send`).
        self._wanted.set()
        self.locks.ask_again()

    async def run_sending(self, link: Link) -> None:
        """Send what stands behind changes, in its order, as long as the link lives. ChannelError."""
        while True:
            sent = 0
            while self._unsent and self.is_open:
                last, message, _ = self._unsent[0]
                # A release stands behind the writes that were made under the lock (G2).
                await self._communication.ended.wait_up_to(last)
                # From now on the primary can answer it, and only from now on the link is at fault.
                if isinstance(message, AskLock) and (ask := self.locks.find(message.token)) is not None:
                    ask.since = trio.current_time()
                link.forward.send(message)
                # Only once it is sent: a release that the link takes with it must still be in here when the
                # next one begins (`_still_held`).
                self._unsent.popleft()
                sent += 1
                if sent % _SENT_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()  # a program may give up thousands of ranges
            self._wanted = trio.Event()
            await self._wanted.wait()

    def link_lost(self) -> None:
        self._link = None
        # From now on and not from the next link on: the primary may go on alone at any time, and grant these
        # to its own programs.
        self.in_doubt = bool(self.locks.own())
        # What was asked is asked anew over the next link, and what was held is reclaimed.
        self._reclaimed = self._refuses = False
        self._reclaim_answer.reject(ConnectionLost("the primary", "the link was lost"))
        # The table here has what is left after these, and that is what is reclaimed.
        self._giving_up.clear()
        for told in self._listings.values():
            told.reject(ConnectionLost("the primary", "the link was lost"))
        # Requests are made anew by their programs' own `Ask`; a release has nobody left who would repeat
        # it.
        self._unsent = deque(each for each in self._unsent if isinstance(each[1], ReleaseLock))
        self.locks.put_off()

    # --- programs of this host --------------------------------------------------------------------------

    def ask(self, ask: Ask) -> None:
        if self._refuses:
            ask.settle(errno.ENOLCK)
            return
        if not self._reclaimed:
            return
        wanted = ask.wanted
        # From now on an answer that needs no wait is due within `io_timeout` (`Locks.expire`).
        ask.asked, ask.since = True, trio.current_time()
        if wanted.key.space is LockKind.FLOCK and not ask.asks_only:
            self._give_up_first(wanted)
        lock = message_of(wanted.key, wanted.lock)
        self._send(AskLock(wanted.token, lock, wanted.waits, wanted.may_deadlock, ask.asks_only))

    def _give_up_first(self, wanted: Wanted) -> None:
        """As the primary does with a conversion of flock(2): nobody reclaims the old lock."""
        table = self.locks.table
        own = table.held_by(wanted.key, wanted.owner)
        # The primary may grant it to another before the new one. Reclaimed after that, it would conflict, and
        # this host would lose all its locks and not the one.
        if own and own[0].exclusive != wanted.lock.exclusive:
            table.release(wanted.key, wanted.owner)

    def cancel(self, ask: Ask) -> None:
        if self._withdraw(ask):
            ask.settle(errno.EINTR)  # at once: what it stands behind may take as long as it likes
        else:
            self._send(CancelLock(ask.wanted.token))

    def _withdraw(self, ask: Ask) -> bool:
        """Take back a request that stands behind something, and of which the primary has not heard; whether
        it was one."""
        wanted = ask.wanted
        for index, (last, message, _) in enumerate(self._unsent):
            if not isinstance(message, AskLock) or message.token != wanted.token:
                continue
            del self._unsent[index]
            # A conversion of flock(2) has given the old lock up here (`_give_up_first`), and the primary was
            # to hear so by the request: what nobody holds any more would stay there.
            if (
                wanted.key.space is LockKind.FLOCK
                and not ask.asks_only
                and not self.locks.table.held_by(wanted.key, wanted.owner)
            ):
                release = ReleaseLock(
                    wanted.key.inode, int(wanted.key.space), wanted.owner.number, 0, END_OF_FILE, False, 0
                )
                self._unsent.insert(index, (max(last, self._communication.order.newest), release, []))
            return True
        return False

    def release(self, key: LockKey, owner: Owner, held: Range, before: list[Lock], *, waiting: bool) -> None:
        # Here at once, with a link or without: what the table still had, the next reclaim would bring back.
        self.locks.table.release(key, owner, *held)
        if self._refuses:
            return
        token = 0
        # A grant may be on its way that the primary gave before it hears of this: it must not bring the
        # range back.
        if self._reclaimed and not waiting and self.locks.asked_by(key, owner):
            token = next(self._tokens)
            self._giving_up[token] = key, owner, held
        message = ReleaseLock(key.inode, int(key.space), owner.number, *held, waiting, token)
        # Not only what was acknowledged early: a program that was told EIO after `io_timeout`, or that was
        # killed, gives its lock up while what it wrote may still take effect.
        last = self._communication.order.newest
        if self._link is None and not last:
            return  # it is not reclaimed
        if last:
            # What is kept back to go together would keep back the release, and whoever waits for the lock.
            self._send_gathered()
        # Behind what is behind something: releases and requests keep their order among themselves.
        if last or self._unsent or not self._reclaimed:
            self._unsent.append((last, message, [(key, lock) for lock in before]))
            self._wanted.set()
        else:
            # Nothing is to be waited for: what has ended has its number, so the release comes behind it.
            self._send(message)

    async def others(self) -> LockListing | None:
        if self._link is None or not self._reclaimed:
            return None
        token = next(self._tokens)
        told = self._listings[token] = Promise[LocksListed]()
        try:
            # A list of this host's own locks is better than none: a command waits for no primary that answers
            # heartbeats alone (G8).
            with trio.move_on_after(self.locks.io_timeout_s):
                self._link.forward.send(ListLocks(token))
                message = await told.wait()
                rows = [
                    (*lock_of(each, self.locks.peer), state)
                    for state, locks in (("held", message.held), ("waiting", message.waiting))
                    for each in locks
                ]
                return LockListing(message.total, rows)
        except ConnectionLost:
            pass
        finally:
            self._listings.pop(token, None)
        return None

    def listed(self, message: LocksListed, _: Buffer, __: Session) -> None:
        """A handler of the stream."""
        told = self._listings.get(message.token)
        if told is not None:
            told.resolve(message)

    @property
    def in_vain(self) -> bool:
        return self._waits.in_vain

    def report(self) -> CheckReport:
        return self._report()

    def under_way(self) -> list[Wanted]:
        return self.locks.asked()

    def give_up_waiting(self, ask: Ask, io_timeout_s: float) -> None:
        # It still stands behind a release, and that behind writes of this host. A program can write more than
        # goes over the link in `io_timeout`, and must not be able to end it by that.
        if self._withdraw(ask):
            return
        # An answer that needs no wait and does not come is the fault of the link, which ends for that: a peer
        # that answers heartbeats alone would hold up programs for ever (G8).
        if self._link is not None:
            self._link.close(str(TimedOut(io_timeout_s, "a request for a lock was not answered")))

    def _send(self, message: AskLock | CancelLock | ReleaseLock) -> None:
        if self._unsent:
            self._unsent.append((0, message, []))
            self._wanted.set()
        elif self._link is not None:
            with suppress(ConnectionLost):  # what waits is asked anew over the next link
                self._link.forward.send(message)

    def answered(self, message: LockAnswer, _: Buffer, session: Session) -> None:
        """A handler of the stream."""
        # The grantee must see what the last holder wrote, so the change that it stands on is here, or the
        # primary has made a mistake.
        if message.after > self.locks.volume.number:
            raise refusal(session.peer_name, message, "after: no such change has come")
        # The primary has heard of this release, so it knew of it at every grant that comes behind this word.
        if self._giving_up.pop(message.token, None) is not None:
            return
        ask = self.locks.find(message.token)
        # Nothing need be given back here: what made it go has told the primary.
        if ask is None or not ask.asked:
            return  # its owner gave everything up meanwhile, and the primary hears so
        wanted = ask.wanted
        if not message.errno and not ask.asks_only:
            # In the table before its program hears of it: what that gives up next is looked for there
            # (`Locks._give_up`).
            self.locks.table.put(wanted.key, wanted.lock)
            # It was granted before the primary heard of these.
            for key, owner, held in self._giving_up.values():
                if (key, owner) == (wanted.key, wanted.owner):
                    self.locks.table.release(key, owner, *held)
        told = message.conflict
        ask.settle(message.errno, None if told is None else lock_of(told, self.locks.peer)[1])
