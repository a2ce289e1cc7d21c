"""The table of locks: who holds what, who waits, and who goes first. No I/O, no clock, no task.

The primary's table holds the locks of both hosts and decides (`coherence/locks.py`); the backup's has its own
alone, as the primary granted them. flock(2) and fcntl(2) are spaces of their own, which do not see each
other, as on Linux. Locks of fcntl(2) belong to a process, or to an open file (OFD); a lock of flock(2)
belongs to an open file, and covers all of the file.

A request is settled with an errno, 0 where it was granted, or it waits. Of those that can be granted the
first goes first. One that gives something up settles others: each call returns all that it settled, in
order. Sources: fcntl(2), flock(2), and Linux's fs/locks.c for what these leave open.
"""

import errno
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple, TypeVar

import msgspec

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import (
    DEADLOCK_OWNERS_MAX,
    FILE_BYTES_MAX,
    LOCKS_PER_HOST_MAX,
    LOCKS_PER_USER_MAX,
    LOCKS_WAITING_PER_HOST_MAX,
    LOCKS_WAITING_PER_USER_MAX,
)

END_OF_FILE = FILE_BYTES_MAX
"""The last byte of a range that goes to the end, wherever that is."""


# The numbers are those of the protocol (`AskLock`), and stay.
class LockKind(IntEnum):
    FCNTL = 0
    FLOCK = 1


class Owner(NamedTuple):
    """Who holds a lock: a process or an open file of a host, by the number that its kernel gave it."""

    host: bytes
    number: int


class LockKey(NamedTuple):
    """Locks with different keys do not see each other."""

    inode: InodeNumber
    space: LockKind


# Replaced and never changed: what an arbiter has yet to tell the other host stays as it was
# (`Asking._unsent`).
class Lock(msgspec.Struct, frozen=True):
    """One range that one owner holds; `end` is its last byte. `since_ns` is a time of day, for people."""

    owner: Owner
    start: int
    end: int
    exclusive: bool
    pid: int
    uid: int
    since_ns: int = 0

    def conflicts_with(self, owner: Owner, start: int, end: int, *, exclusive: bool) -> bool:
        # One's own are never in one's way: a program converts, joins and cuts what it holds (fcntl(2)).
        return (
            (self.exclusive or exclusive) and self.start <= end and start <= self.end and self.owner != owner
        )


class Wanted(msgspec.Struct, frozen=True):
    """A request for a lock. `token` tells those of a host apart; `waits`: it would rather wait than fail.

    `may_deadlock`: its owner is a process, which waits as a whole: EDEADLK where it would wait for itself.
    """

    token: int
    key: LockKey
    lock: Lock
    waits: bool = False
    may_deadlock: bool = False

    @property
    def owner(self) -> Owner:
        return self.lock.owner


class Settled(NamedTuple):
    wanted: Wanted
    errno: int


class LockTable:
    """See the module."""

    def __init__(self) -> None:
        # By file and kind: locks with different keys never meet, so every question looks at one list only.
        self._held: dict[LockKey, list[Lock]] = {}  # those of one owner in the order of their ranges
        self._waiting: dict[LockKey, list[Wanted]] = {}  # in the order in which they came
        # Counted as they come and go: to count a host's locks for each request would cost what an attacker
        # likes.
        self._by_user: Counter[tuple[bytes, int]] = Counter()  # locks of a user at a host
        self._by_host: Counter[bytes] = Counter()
        self._waiting_by_user: Counter[tuple[bytes, int]] = Counter()
        self._waiting_by_host: Counter[bytes] = Counter()
        # Who waits for whom is followed from owner to owner, over all files.
        self._waiting_by_owner: dict[Owner, list[Wanted]] = {}

    # --- looking --------------------------------------------------------------------------------------

    def held(self, key: LockKey) -> tuple[Lock, ...]:
        return tuple(self._held.get(key, ()))

    def all_held(self) -> Iterator[tuple[LockKey, Lock]]:
        for key, locks in self._held.items():
            for lock in locks:
                yield key, lock

    def all_waiting(self) -> Iterator[Wanted]:
        for waiting in self._waiting.values():
            yield from waiting

    def count(self) -> tuple[int, int]:
        """How many locks are held, and how many requests wait."""
        return self._by_host.total(), self._waiting_by_host.total()

    def holds(self, owner: Owner, inode: InodeNumber) -> bool:
        return any(
            lock.owner == owner for space in LockKind for lock in self._held.get(LockKey(inode, space), ())
        )

    def hindrance(self, wanted: Wanted) -> Lock | None:
        """The first lock that the request would have to wait for; what GETLK asks."""
        return next(self._hindrances(wanted), None)

    def _hindrances(self, wanted: Wanted) -> Iterator[Lock]:
        lock = wanted.lock
        for held in self._held.get(wanted.key, ()):
            if held.conflicts_with(lock.owner, lock.start, lock.end, exclusive=lock.exclusive):
                yield held

    # --- asking ---------------------------------------------------------------------------------------

    def ask(self, wanted: Wanted) -> list[Settled]:
        """Grant, refuse, or let wait. The request waits where it is not among what is settled.

        EAGAIN where it does not wait, EDEADLK, ENOLCK at a limit. A conversion of flock(2) gives the old
        lock up first, also where the new one is then refused.
        """
        # flock(2): a conversion is no single step. Another may get the lock between the two, and a refusal
        # leaves nothing; Linux does the same, and programs know.
        if wanted.key.space is LockKind.FLOCK:
            own = [lock for lock in self._held.get(wanted.key, ()) if lock.owner == wanted.owner]
            if own and own[0].exclusive != wanted.lock.exclusive:
                self._put(wanted.key, wanted.owner, 0, END_OF_FILE, None)
        result = self._try(wanted)
        if result is None:
            self._wait(wanted)
        # The own answer first: who asked hears of it before those whom it let in.
        answer = [] if result is None else [Settled(wanted, result)]
        # Also where it was refused or waits: a conversion has given its old lock up all the same.
        return answer + self._sweep(wanted.key)

    def _try(self, wanted: Wanted) -> int | None:
        """The errno that settles a request that does not wait yet; None where it has to."""
        # By what is held alone, and not by who waits: that a request came first gives it no right to the
        # range.
        if self.hindrance(wanted) is not None:
            # Who does not wait is in no circle and takes no place among those who do, so nothing else is
            # asked.
            if not wanted.waits:
                return errno.EAGAIN
            # Before the limits: EDEADLK is about this program, ENOLCK about what others use.
            if self._closes_circle(wanted):
                return errno.EDEADLK
            # Two limits: that of a host bounds the table, that of a user leaves places to the others there.
            user = (wanted.owner.host, wanted.lock.uid)
            many = self._waiting_by_user[user] >= LOCKS_WAITING_PER_USER_MAX
            if many or self._waiting_by_host[wanted.owner.host] >= LOCKS_WAITING_PER_HOST_MAX:
                return errno.ENOLCK
            return None
        return self._grant(wanted)

    def _grant(self, wanted: Wanted) -> int:
        lock = wanted.lock
        # Here and not when it was asked: locks that were held by then may have gone, and joined ranges
        # count one.
        if self.is_too_many(wanted.key, lock.owner, lock.start, lock.end, lock):
            return errno.ENOLCK
        self._put(wanted.key, lock.owner, lock.start, lock.end, lock)
        return 0

    def _wait(self, wanted: Wanted) -> None:
        self._waiting.setdefault(wanted.key, []).append(wanted)
        self._waiting_by_owner.setdefault(wanted.owner, []).append(wanted)
        self._waiting_by_user[wanted.owner.host, wanted.lock.uid] += 1
        self._waiting_by_host[wanted.owner.host] += 1

    def _wait_no_more(self, wanted: Wanted) -> None:
        _remove(self._waiting, wanted.key, wanted)
        _remove(self._waiting_by_owner, wanted.owner, wanted)
        _count_down(self._waiting_by_user, (wanted.owner.host, wanted.lock.uid))
        _count_down(self._waiting_by_host, wanted.owner.host)

    def _sweep(self, key: LockKey) -> list[Settled]:
        """Settle those of who waits that can be settled now, the first first.

        Again where something was granted: it may have taken the place of a stronger lock.
        """
        # In the order in which they came, so that a writer among readers gets its turn: of those that can
        # be granted the first goes first.
        settled: list[Settled] = []
        count = -1
        while count != len(settled):
            count = len(settled)
            # `_wait_no_more` makes a new list, so that this one may be walked on.
            for wanted in self._waiting.get(key, ()):
                result = self._try_again(wanted)
                if result is not None:
                    self._wait_no_more(wanted)
                    settled.append(Settled(wanted, result))
        return settled

    def _try_again(self, wanted: Wanted) -> int | None:
        if self.hindrance(wanted) is None:
            return self._grant(wanted)
        # Again, as a lock that was granted since may close the circle: its own program asks nothing more.
        return errno.EDEADLK if self._closes_circle(wanted) else None  # by what was granted since

    def _closes_circle(self, wanted: Wanted) -> bool:
        """Whether its owner would wait for itself: over who waits for whom, at both hosts.

        A circle of more than `DEADLOCK_OWNERS_MAX` owners is not looked for to its end, as on Linux.
        """
        # Only a process waits as a whole. An open file may be released by another thread of the same
        # process, so a circle of those proves nothing (fcntl(2), "open file description locks").
        if not wanted.may_deadlock:
            return False
        seen: set[Owner] = set()
        behind = {lock.owner for lock in self._hindrances(wanted)}
        # A search over owners and not over locks: each is looked at once, however many ranges it holds.
        while behind and len(seen) < DEADLOCK_OWNERS_MAX:
            owner = behind.pop()
            if owner == wanted.owner:
                return True
            seen.add(owner)
            for waiting in self._waiting_by_owner.get(owner, ()):
                if waiting.may_deadlock:
                    behind.update(lock.owner for lock in self._hindrances(waiting))
            behind -= seen
        return False

    def cancel(self, host: bytes, token: int) -> bool:
        """The request waits no more; whether it did."""
        # A walk over all, as they are bounded for each host and a signal is rare: an index by token would
        # cost each request.
        for wanted in self.all_waiting():
            # By the host as well: each numbers its own requests.
            if wanted.token == token and wanted.owner.host == host:
                self._wait_no_more(wanted)
                return True
        return False

    # --- giving up ------------------------------------------------------------------------------------

    def release(self, key: LockKey, owner: Owner, start: int = 0, end: int = END_OF_FILE) -> list[Settled]:
        """The owner holds nothing of the range. What it waits for it goes on waiting for."""
        # Most closes release nothing: those must not wake everybody who waits for the file.
        if any(lock.owner == owner for lock in self._held.get(key, ())):
            self._put(key, owner, start, end, None)
            return self._sweep(key)
        return []

    def drop_owner(
        self, inode: InodeNumber, owner: Owner, spaces: Iterable[LockKind] = LockKind
    ) -> list[Settled]:
        """The owner holds nothing of the file and waits for nothing: what it waited for is not settled."""
        settled = []
        for space in spaces:
            key = LockKey(inode, space)
            # Before the release: a request that stayed would be granted one day, to an owner that is gone,
            # and for good.
            for wanted in [each for each in self._waiting.get(key, ()) if each.owner == owner]:
                self._wait_no_more(wanted)
            settled += self.release(key, owner)
        return settled

    def drop_waiting(self, host: bytes) -> None:
        """Nobody of the host waits any more; nothing is settled by that."""
        # An errno would be wrong: their programs wait on, and ask anew over the next link, or of the next
        # arbiter.
        for wanted in [each for each in self.all_waiting() if each.owner.host == host]:
            self._wait_no_more(wanted)

    def drop_host(self, host: bytes) -> list[Settled]:
        """The host holds nothing and waits for nothing."""
        self.drop_waiting(host)
        return self.replace_host(host, ())

    def replace_host(self, host: bytes, locks: Iterable[tuple[LockKey, Lock]]) -> list[Settled]:
        """The host holds these locks and no others. ValueError, and nothing changed, where one of them
        conflicts with what others hold, is not the host's, or they are too many."""
        # All is checked before anything changes: what is reclaimed counts whole or not at all, for who lost
        # a part could not be told which.
        new = list(locks)
        _check_all(host, new)
        for key, lock in new:
            for held in self._held.get(key, ()):
                other = held.owner.host != host
                if other and held.conflicts_with(lock.owner, lock.start, lock.end, exclusive=lock.exclusive):
                    raise ValueError("a conflicting lock is held")
        before = dict.fromkeys((key, lock.owner) for key, lock in self.all_held() if lock.owner.host == host)
        # Nobody is let in between giving up and taking again: waiters are looked at once, at the end.
        for key, owner in before:
            self._put(key, owner, 0, END_OF_FILE, None)
        for key, lock in new:
            self._put(key, lock.owner, lock.start, lock.end, lock)
        # Of the files where it had held something: in no other has anything been given up.
        return [each for key in dict.fromkeys(key for key, _ in before) for each in self._sweep(key)]

    # --- ranges ---------------------------------------------------------------------------------------

    def is_too_many(self, key: LockKey, owner: Owner, start: int, end: int, lock: Lock | None) -> bool:
        """Whether its user, or its host, would hold too many locks with `lock` in the range, or nothing."""
        own = [each for each in self._held.get(key, ()) if each.owner == owner]
        more = len(_replaced(own, start, end, lock)) - len(own)
        # What needs no more locks than there are is refused at no limit.
        if more <= 0:
            return False
        # Giving up may need more, too: the middle of a range leaves two (`_replaced`).
        uid = lock.uid if lock is not None else own[0].uid
        return (
            self._by_user[owner.host, uid] + more > LOCKS_PER_USER_MAX
            or self._by_host[owner.host] + more > LOCKS_PER_HOST_MAX
        )

    def put(self, key: LockKey, lock: Lock) -> None:
        """The owner holds it, whatever else is held: for a table that does not decide."""
        self._put(key, lock.owner, lock.start, lock.end, lock)

    def _put(self, key: LockKey, owner: Owner, start: int, end: int, lock: Lock | None) -> None:
        """Replace what the owner has in the range; without a lock nothing stays there."""
        held = self._held.get(key, [])
        own = [each for each in held if each.owner == owner]
        others = [each for each in held if each.owner != owner]
        # Counted anew as a whole: ranges are cut and joined, and the difference would be easy to get wrong.
        replaced = _replaced(own, start, end, lock)
        for each in own:
            _count_down(self._by_user, (owner.host, each.uid))
            _count_down(self._by_host, owner.host)
        for each in replaced:
            self._by_user[owner.host, each.uid] += 1
            self._by_host[owner.host] += 1
        # No empty list stays: any program may lock any number of files once.
        if others or replaced:
            self._held[key] = others + replaced
        else:
            self._held.pop(key, None)


def _replaced(own: list[Lock], start: int, end: int, lock: Lock | None) -> list[Lock]:
    """One owner's ranges in their order, with `lock` or nothing from `start` to `end`; neighbours of one
    kind are one."""
    kept: list[Lock] = []
    for each in own:
        if each.end < start or each.start > end:
            kept.append(each)
            continue
        # An unlock in the middle leaves two ranges: the only way to hold more locks by giving up.
        if each.start < start:
            kept.append(msgspec.structs.replace(each, end=start - 1))
        if each.end > end:
            kept.append(msgspec.structs.replace(each, start=end + 1))
    if lock is None:
        return kept
    # Neighbours of one kind are one, as POSIX has it: else a program that locks byte by byte fills the
    # table.
    joined = lock
    apart = []
    for each in kept:
        touches = each.start <= joined.end + 1 and joined.start <= each.end + 1
        if touches and each.exclusive == lock.exclusive:
            joined = msgspec.structs.replace(
                joined, start=min(joined.start, each.start), end=max(joined.end, each.end)
            )
        else:
            apart.append(each)
    return sorted([*apart, joined], key=lambda each: each.start)


def _check_all(host: bytes, new: list[tuple[LockKey, Lock]]) -> None:
    """ValueError unless a host can hold these together."""
    if len(new) > LOCKS_PER_HOST_MAX:
        raise ValueError("too many locks")
    by_key: dict[LockKey, list[Lock]] = {}
    for key, lock in new:
        if lock.owner.host != host:
            raise ValueError("a lock of another host")
        for other in by_key.setdefault(key, []):
            if other.conflicts_with(lock.owner, lock.start, lock.end, exclusive=lock.exclusive):
                # No arbiter grants such two, so the host does not say what it was given.
                raise ValueError("two of its locks conflict")
        by_key[key].append(lock)


K = TypeVar("K")


def _remove(lists: dict[K, list[Wanted]], key: K, wanted: Wanted) -> None:
    left = [each for each in lists[key] if each is not wanted]
    if left:
        lists[key] = left
    else:
        del lists[key]


def _count_down(counter: Counter[K], key: K) -> None:
    assert counter[key] > 0, "what is given up was counted"
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
