"""Locks that bind both hosts: what this host's programs hold and wait for, and the two halves of the arbiter.

One table at the primary decides (`lock_table.py`). A program of the backup asks over the forward path. The
answer comes in the stream of changes, behind the last one, so that whoever is granted a lock finds here what
its last holder had written. What it gives up is told behind this host's earlier changes, and nobody waits.

**Links.** A lock lives as long as its host's lease. The primary goes on deciding when the backup has said
over the new link what its programs still hold (it reclaims); or when it goes on alone. Alone, before it
decides anything, it drops the backup's locks and changes the *epoch* of the locks, durably. A backup that
reclaims what was granted in an older epoch is refused: somebody else may have held that meanwhile. What is
refused is lost: every open file through which its owner locked answers EIO until it is closed (`Locks.lost`).

==============================  ========================================================================
Normal, resyncing               The primary decides, once the backup has reclaimed over this link.
Lease not over, catching up     Nobody decides: programs wait, for `io_timeout` at most. (The grace.)
Alone, diverged                 The primary decides alone, from its first decision on in an epoch of its own.
                                Locks bind one host then. The backup's programs get check reports.
The primary was restarted       Its programs' locks ended with their open files; the backup reclaims.
The backup was restarted        It reclaims nothing, so what it held is free.
Switch                          Each host holds what its programs hold; the new backup reclaims.
Take-over                       As alone: in an epoch of its own from the first decision on.
A peer of an earlier version    ENOLCK, and what was held is lost.
==============================  ========================================================================
"""

import errno
import itertools
import logging
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple, Protocol

import trio

from fusemirror.coherence.lock_table import (
    END_OF_FILE,
    Lock,
    LockKey,
    LockKind,
    LockTable,
    Owner,
    Wanted,
)
from fusemirror.errors import (
    CheckReport,
    OperationFailed,
)
from fusemirror.identifiers import InodeNumber
from fusemirror.printable import counted
from fusemirror.promise import Promise
from fusemirror.protocol.messages import (
    HeldLock,
)
from fusemirror.volume.volume import Volume

log = logging.getLogger(__name__)

# So a program waits a twentieth longer than it should, and no request has a timer of its own.
_LOOKS_PER_TIMEOUT = 20

Range = tuple[int, int]
LockRow = tuple[LockKey, Lock, str]
"""Who holds, or waits: `held` or `waiting` is the third."""


class LockListing(NamedTuple):
    """The first of `total` rows."""

    total: int
    rows: list[LockRow]


class Ask:
    """What one program of this host waits for: a lock, or what is in the way of one (`asks_only`)."""

    __slots__ = ("answer", "asked", "asks_only", "interrupted", "since", "wanted")

    def __init__(self, wanted: Wanted, *, asks_only: bool) -> None:
        self.wanted = wanted
        self.asks_only = asks_only
        self.answer: Promise[tuple[int, Lock | None]] = Promise()  # an errno, and what is in the way
        self.asked = False  # it is before the arbiter
        self.interrupted = False
        self.since = trio.current_time()  # of `asked`

    def settle(self, error: int, conflict: Lock | None = None) -> None:
        self.answer.resolve((error, conflict))

    def put_off(self) -> None:
        """It is before no arbiter now."""
        self.asked = False
        self.since = trio.current_time()
        # Only that arbiter could have said which came first, the grant or the signal; and it says nothing any
        # more. No lock is left behind: what it granted is not in the table here, and so is not reclaimed.
        if self.interrupted:
            self.settle(errno.EINTR)


class Binding(StrEnum):
    """Whose programs the locks bind that are given now."""

    BOTH = "both hosts"
    ONE = "this host"
    NONE = "nobody"  # none is given: nobody decides, or one of the hosts takes no part in locks


class Arbiter(Protocol):
    """Decides about locks, or asks who does, in the present role of this host."""

    @property
    def is_open(self) -> bool:
        """It decides now, and what this host holds it holds for sure."""

    @property
    def binding(self) -> Binding: ...

    def ask(self, ask: Ask) -> None:
        """Settle a request now or later; leave it where nothing is decided now."""

    def cancel(self, ask: Ask) -> None:
        """Settle a request that was asked, with EINTR unless it is granted at the same moment."""

    def release(self, key: LockKey, owner: Owner, held: Range, before: list[Lock], *, waiting: bool) -> None:
        """The owner has given up a range; `before` is what it had of that. `waiting`: it waits for nothing,
        either."""

    def under_way(self) -> list[Wanted]:
        """What may be granted to this host's programs by now, and its table has not."""

    async def others(self) -> "LockListing | None":
        """What the other host's programs hold and wait for, and the table here has not. None where nobody
        says that now."""

    @property
    def in_vain(self) -> bool:
        """Nobody decides, and a request is not to wait for that."""

    def report(self) -> CheckReport:
        """What a request gets that waited too long, or in vain."""

    def give_up_waiting(self, ask: Ask, io_timeout_s: float) -> None:
        """A request that should be answered at once was not, for `io_timeout`. Nobody takes the answer."""


class Locks:
    """What programs of this host hold and wait for, as long as its mount process lives.

    The table has what is known here: of the backup's host alone, or at the primary of both.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.host = bytes.fromhex(volume.identity.host)
        self.table = LockTable()
        # By open file, as only its close ends it for sure: the program has then given up what it believed it
        # held.
        self.lost: set[int] = set()
        """Open files through which somebody locked who lost that lock. They are good for nothing."""
        self.lost_total = 0
        self.io_timeout_s = 0.0  # as the unit has it
        self.changed = trio.Event()  # set, and replaced, when an arbiter opened, closed or was replaced
        self._asks: dict[int, Ask] = {}
        self._tokens = itertools.count(1)
        # By open file: the last close of one is told by its handle alone, and OFD locks send no unlock.
        self._through: dict[int, set[tuple[InodeNumber, Owner]]] = {}  # who locked through an open file
        self._locked_through: dict[tuple[InodeNumber, Owner], set[int]] = {}  # the same from the other side
        self._arbiter: Arbiter | None = None

    @cached_property
    def peer(self) -> bytes:
        """Whose locks those of the other host are, and of one that is invited in its place."""
        return self.volume.identity.only_peer.identity

    @property
    def epoch(self) -> bytes:
        """In which locks are held: another one before those of the backup are dropped."""
        return bytes.fromhex(self.volume.identity.only_peer.lock_epoch)

    def keep_epoch(self, epoch: bytes) -> None:
        """Locks are held in this one from now on. Durable on return. OSError, DiskFailed."""
        self.volume.update_peer(self.volume.identity.only_peer, lock_epoch=epoch.hex())

    @property
    def arbiter(self) -> Arbiter:
        assert self._arbiter is not None, "a unit attaches its own before anything is asked"
        return self._arbiter

    def attach(self, arbiter: Arbiter) -> None:
        """From now on `arbiter` decides: what was asked is asked anew, and this host's locks stay."""
        # What this host holds stays in its own table over a change of the role: programs hold it as before.
        self._arbiter = arbiter
        self.put_off()
        # The other host says itself what it holds, when it reclaims of the arbiter that this host has now.
        # Behind `put_off`: a request that still stood in the table could be granted by what is dropped, and
        # nobody decides yet.
        self.table.drop_host(self.peer)

    def put_off(self) -> None:
        """Nothing is before an arbiter now."""
        self.table.drop_waiting(self.host)
        for ask in self._asks.values():
            ask.put_off()
        self.tell_changed()

    def tell_changed(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def ask_again(self) -> None:
        """The arbiter decides now: it gets what waits for it, in order."""
        # In the order of tokens, which is that in which programs asked.
        for ask in list(self._asks.values()):
            if not ask.asked and not ask.answer.settled:
                self.arbiter.ask(ask)
        self.tell_changed()

    # --- programs of this host ------------------------------------------------------------------------

    def begin(
        self,
        handle: int,
        key: LockKey,
        lock: Lock,
        *,
        waits: bool = False,
        may_deadlock: bool = False,
        asks_only: bool = False,
    ) -> Ask:
        """Ask for a lock through an open file; `end` has the answer. OperationFailed where it is lost, a
        check report where it is in vain."""
        # Others may have been granted what its owner still believes it holds. A new lock would make that look
        # right.
        if handle in self.lost:
            raise OperationFailed(errno.EIO)
        # With `on_degraded = "report"` a program hears at once what it would hear after `io_timeout`.
        if self.arbiter.in_vain:
            raise self.arbiter.report()
        # Before the answer: a file that is closed meanwhile must end what is granted then.
        if not asks_only:
            self._through.setdefault(handle, set()).add((key.inode, lock.owner))
            self._locked_through.setdefault((key.inode, lock.owner), set()).add(handle)
        token = next(self._tokens)
        ask = Ask(Wanted(token, key, lock, waits, may_deadlock), asks_only=asks_only)
        # Known before it is asked: the primary's half answers within the call, and gives back at once what it
        # grants to a request that nobody knows.
        self._asks[token] = ask
        self.arbiter.ask(ask)
        return ask

    async def end(self, ask: Ask) -> Lock | None:
        """Return when the lock is held, or what would be in the way of it.

        OperationFailed: EAGAIN, EDEADLK, ENOLCK, EINTR. A check report after `io_timeout` without
        anybody who decides. Cancelled, nobody hears of the answer: only for the end of a mount.
        """
        try:
            error, conflict = await ask.answer.wait()
        finally:
            # Whoever is granted what nobody waits for any more gives it up again (`Deciding._deliver`).
            self._asks.pop(ask.wanted.token, None)
        if error:
            raise OperationFailed(error)
        return conflict

    async def hold_for_sure(self, handle: int) -> None:
        """Return when what is held through an open file is held in the order of both hosts.

        OperationFailed (EIO) where it is lost, or that cannot be said.
        """
        # A grant may have come just before the link was lost: then nobody can say in which order it stands.
        with trio.move_on_after(self.io_timeout_s):
            while not self.arbiter.is_open and handle not in self.lost:
                await self.changed.wait()
        # An error where that cannot be said within the limit (G8): under a grant that does not count the
        # program would write what another one's lock guards.
        if handle in self.lost or not self.arbiter.is_open:
            raise OperationFailed(errno.EIO)

    def interrupt(self, ask: Ask) -> None:
        """A signal came to the program that waits."""
        if ask.answer.settled or ask.interrupted:
            return
        ask.interrupted = True
        # It may be granted at the same moment. Only the arbiter knows which was first.
        if ask.asked:
            self.arbiter.cancel(ask)
        else:
            ask.settle(errno.EINTR)

    def release(self, key: LockKey, owner: Owner, start: int = 0, end: int = END_OF_FILE) -> None:
        """The owner gives up a range. OperationFailed (ENOLCK) where that leaves too many ranges."""
        # Before anything is given up, so that the program may try otherwise, as on Linux. With what may be
        # granted by now: the arbiter counts that already, and it is told of the release, and not asked.
        if self.table.is_too_many(key, owner, start, end, None, self.arbiter.under_way()):
            raise OperationFailed(errno.ENOLCK)
        # It goes on waiting: another thread of the same process may wait for the range that this one gives
        # up.
        self._give_up(key, owner, (start, end), waiting=False)

    def _give_up(self, key: LockKey, owner: Owner, what: Range, *, waiting: bool) -> None:
        # Looked up before anything ends: until the primary has heard of it the backup goes on reclaiming it,
        # or another program would be granted the range ahead of the writes that were made under it (G2).
        before = self.table.held_by(key, owner, *what)
        under_way = self.asked_by(key, owner)
        # Nobody is there to take the answer: the process has closed the file, or has gone.
        if waiting:
            for ask in list(self._asks.values()):
                if ask.wanted.key == key and ask.wanted.owner == owner and not ask.asks_only:
                    del self._asks[ask.wanted.token]
                    ask.settle(errno.EINTR)
        # Also where nothing is held yet: a grant may be on its way here, and must be given back.
        if before or under_way:
            self.arbiter.release(key, owner, what, before, waiting=waiting)

    def asked(self) -> list[Wanted]:
        """The requests for locks that are before the arbiter."""
        return [ask.wanted for ask in self._asks.values() if ask.asked and not ask.asks_only]

    def asked_by(self, key: LockKey, owner: Owner) -> bool:
        """Whether a request of the owner is before the arbiter."""
        return any(each.key == key and each.owner == owner for each in self.asked())

    def closed_by(self, inode: InodeNumber, owner: Owner) -> None:
        """A process closed a descriptor of the file: its locks of fcntl(2) end, whichever it was."""
        if not self._through:
            return  # as most often: nobody has locked anything that is still open
        self._give_up(LockKey(inode, LockKind.FCNTL), owner, (0, END_OF_FILE), waiting=True)
        # The file that was closed is let go of later (RELEASE), and the process may have locked the same
        # inode through another one by then: that must not end with it.
        for handle in self._locked_through.pop((inode, owner), ()):
            self._through[handle].remove((inode, owner))

    def closed(self, handle: int) -> None:
        """The last descriptor of an open file is closed: whatever was locked through it ends."""
        # Sorted, as a set of bytes has another order in each process, and a simulation must send the same
        # each time.
        for inode, owner in sorted(self._through.pop(handle, ())):
            handles = self._locked_through[inode, owner]
            handles.remove(handle)
            if not handles:
                del self._locked_through[inode, owner]
            # Of both kinds, as nobody keeps which it was: to give up what is not held sends nothing.
            for space in LockKind:
                self._give_up(LockKey(inode, space), owner, (0, END_OF_FILE), waiting=True)
        self.lost.discard(handle)

    def expire(self) -> None:
        """Programs that waited too long for an arbiter, or for an answer that needs no wait, hear so."""
        in_vain = self.arbiter.in_vain
        late = trio.current_time() - self.io_timeout_s
        for ask in list(self._asks.values()):
            # To wait for another program is no fault of anybody, and has no limit (F_SETLKW).
            if (ask.since > late and not in_vain) or (ask.asked and ask.wanted.waits):
                continue
            # It was answered in time, and its task has yet to run.
            if ask.answer.settled:
                continue
            # At once, and not when its task runs (`end`): a grant that came in between would put a lock into
            # the table that its program was told it did not get.
            del self._asks[ask.wanted.token]
            if ask.asked:
                self.arbiter.give_up_waiting(ask, self.io_timeout_s)
            ask.answer.reject(self.arbiter.report())

    # --- for the arbiters -------------------------------------------------------------------------------

    def find(self, token: int) -> Ask | None:
        return self._asks.get(token)

    def own(self) -> list[tuple[LockKey, Lock]]:
        return [(key, lock) for key, lock in self.table.all_held() if lock.owner.host == self.host]

    def lose_all(self, why: str) -> None:
        """Nothing that this host's programs held is theirs any more."""
        owners = {(key.inode, lock.owner) for key, lock in self.own()}
        if not owners:
            return
        # All files through which one of them locked: which of its locks counted is not known to whoever
        # reads.
        handles = {handle for handle, users in self._through.items() if users & owners}
        # Nobody is woken here: whoever holds a grant that does not count yet (`hold_for_sure`) wakes when the
        # arbiter opens, and finds its file here.
        self.lost |= handles
        self.lost_total += len(owners)
        # Or the next reclaim would ask for them again (`own`), and be granted what these programs were told
        # is lost.
        self.table.drop_host(self.host)
        inodes = {inode for inode, _ in owners}
        log.error(
            "locks on %s are lost: %s; whatever holds them gets EIO until it closes the file",
            counted(len(inodes), "file"),
            why,
        )
        # The other host may have written under a lock of its own since.
        for inode in sorted(inodes):
            self.volume.invalidator.image_suspect(inode)

    def status(self) -> dict[str, int | str]:
        held, waiting = self.table.count()
        # At the backup its own requests wait at the primary, so the table has none of them; there it has
        # those of both hosts.
        asked = sum(not ask.asks_only and ask.wanted.waits for ask in self._asks.values())
        return {
            "held": held,
            "waiting": max(waiting, asked),
            "lost": len(self.lost),
            "bind": str(self.arbiter.binding),
        }

    def all_rows(self) -> list[LockRow]:
        """Who holds, and who waits, as far as this host knows."""
        waiting = list(self.table.all_waiting())
        # A request of this host stands in the table as well where this host is the arbiter, and in `_asks`
        # alone else.
        known = {(each.owner.host, each.token) for each in waiting}
        waiting += [
            ask.wanted
            for ask in self._asks.values()
            if ask.wanted.waits and not ask.asks_only and (self.host, ask.wanted.token) not in known
        ]
        held = [(key, lock, "held") for key, lock in self.table.all_held()]
        return held + [(each.key, each.lock, "waiting") for each in waiting]


def message_of(key: LockKey, lock: Lock) -> HeldLock:
    return HeldLock(
        inode=key.inode,
        space=int(key.space),
        owner=lock.owner.number,
        start=lock.start,
        end=lock.end,
        exclusive=lock.exclusive,
        pid=lock.pid,
        uid=lock.uid,
        since_ns=lock.since_ns,
    )


def lock_of(message: HeldLock, host: bytes) -> tuple[LockKey, Lock]:
    # The host is that of who speaks, and no part of the message: a peer can take, give up or reclaim nothing
    # in the name of this host's programs.
    owner = Owner(host, message.owner)
    lock = Lock(
        owner, message.start, message.end, message.exclusive, message.pid, message.uid, message.since_ns
    )
    return LockKey(message.inode, LockKind(message.space)), lock


async def expire(locks: Locks) -> None:
    """One look at who waited too long, and the pause before the next."""
    locks.expire()
    await trio.sleep(locks.io_timeout_s / _LOOKS_PER_TIMEOUT)
