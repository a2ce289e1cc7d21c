"""The table of locks: who holds what, who waits, and who goes first. No I/O, no clock, no task.

The primary's table holds the locks of both hosts and decides (`coherence/locks.py`); the backup's has its own
alone, as the primary granted them. flock(2) and fcntl(2) are spaces of their own, which do not see each
other, as on Linux. Locks of fcntl(2) belong to a process, or to an open file (OFD); a lock of flock(2)
belongs to an open file, and covers all of the file.

A request is settled with an errno, 0 where it was granted, or it waits. Of those that can be granted the
first goes first. One that gives something up settles others: each call returns all that it settled, in
order. Sources: fcntl(2), flock(2), and Linux's fs/locks.c for what these leave open.

One program may hold thousands of ranges of one file, so nothing that it does walks over all of them: what an
owner has in a range is found by bisection, and whether others are in its way is counted (`_Ranges`).
"""

import errno
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import islice
from operator import attrgetter
from typing import NamedTuple, TypeVar

import msgspec

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import (
    DEADLOCK_OWNERS_MAX,
    FILE_BYTES_MAX,
    LOCKS_PER_HOST_MAX,
    LOCKS_PER_PEER_MAX,
    LOCKS_PER_USER_MAX,
    LOCKS_UNDER_WAY_EACH,
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


_FEW = 16  # locks of one file, as most files have: to walk over them takes no longer, and no room
_start, _end = attrgetter("start"), attrgetter("end")


class _Ranges:
    """Where ranges begin and where they end, each in order: how many meet another is two bisections.

    Those that begin before its end, without those that end before its start. They may lie over each other as
    they like, so this needs no tree. The lists hold the numbers of the locks themselves, 16 bytes a lock.
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self, locks: Iterable[Lock] = ()) -> None:
        both = list(locks)
        self._starts = sorted(map(_start, both))
        self._ends = sorted(map(_end, both))

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, lock: Lock) -> None:
        insort(self._starts, lock.start)
        insort(self._ends, lock.end)

    def remove(self, lock: Lock) -> None:
        # Of equal numbers any will do.
        del self._starts[bisect_left(self._starts, lock.start)]
        del self._ends[bisect_left(self._ends, lock.end)]

    def count(self, start: int, end: int) -> int:
        return bisect_right(self._starts, end) - bisect_left(self._ends, start)


class _FileLocks:
    """What is held of one file, of one kind."""

    __slots__ = ("_ranges", "by_owner")

    def __init__(self) -> None:
        # Each owner's in the order of their ranges, of which no two meet. Who changed something last is last.
        self.by_owner: dict[Owner, list[Lock]] = {}
        # Those of all locks and those of the exclusive ones; None of a few.
        self._ranges: tuple[_Ranges, _Ranges] | None = None

    def __iter__(self) -> Iterator[Lock]:
        for own in self.by_owner.values():
            yield from own

    def of(self, owner: Owner) -> list[Lock]:
        return self.by_owner.get(owner, [])

    def hindrance_count(self, lock: Lock) -> int:
        """How many locks of others are in the way of this one."""
        if self._ranges is None:
            return sum(
                each.conflicts_with(lock.owner, lock.start, lock.end, exclusive=lock.exclusive)
                for each in self
            )
        of_all, of_exclusive = self._ranges
        count = (of_all if lock.exclusive else of_exclusive).count(lock.start, lock.end)
        # The owner's own are among them. Those are walked over, but it asks to have them replaced.
        if count and (own := self.by_owner.get(lock.owner)):
            meeting = own[_meeting(own, lock.start, lock.end)]
            count -= sum(each.exclusive or lock.exclusive for each in meeting)
        return count

    def hindrances(self, lock: Lock) -> Iterator[Lock]:
        """Of each owner who is in the way of this one the first lock that is. It takes a look at each owner
        of the file, so who need not know which it is only counts."""
        if not self.hindrance_count(lock):
            return
        for owner, own in self.by_owner.items():
            if owner != lock.owner:
                meeting = own[_meeting(own, lock.start, lock.end)]
                yield from islice((each for each in meeting if each.exclusive or lock.exclusive), 1)

    def put(self, owner: Owner, start: int, end: int, lock: Lock | None) -> tuple[list[Lock], list[Lock]]:
        """Replace what the owner has in the range; the locks that went, and those that came."""
        own = self.by_owner.pop(owner, [])
        where, new = _cut(own, start, end, lock)
        old, own[where] = own[where], new
        if own:
            self.by_owner[owner] = own
        self._count(old, new)
        return old, new

    def _count(self, old: list[Lock], new: list[Lock]) -> None:
        # To take one out moves what stands behind it, which is cheap for one, and not for a good part of all.
        if self._ranges is None or len(old) > max(_FEW, len(self._ranges[0]) // _FEW):
            self.count_anew()
            return
        of_all, of_exclusive = self._ranges
        for each in old:
            of_all.remove(each)
            if each.exclusive:
                of_exclusive.remove(each)
        for each in new:
            of_all.add(each)
            if each.exclusive:
                of_exclusive.add(each)

    def count_anew(self) -> None:
        """After `by_owner` has changed."""
        few = sum(map(len, self.by_owner.values())) <= _FEW
        self._ranges = None if few else (_Ranges(self), _Ranges(each for each in self if each.exclusive))


_NOTHING_HELD = _FileLocks()


class _Counts:
    """How many locks there are of each user at a host, and of each host."""

    __slots__ = ("by_host", "by_user")

    def __init__(self) -> None:
        self.by_user: Counter[tuple[bytes, int]] = Counter()
        self.by_host: Counter[bytes] = Counter()

    def add(self, locks: Iterable[Lock]) -> None:
        for each in locks:
            self.by_user[each.owner.host, each.uid] += 1
            self.by_host[each.owner.host] += 1

    def remove(self, locks: Iterable[Lock]) -> None:
        for each in locks:
            _count_down(self.by_user, (each.owner.host, each.uid))
            _count_down(self.by_host, each.owner.host)


class LockTable:
    """See the module."""

    def __init__(self) -> None:
        # By file and kind: locks with different keys never meet, so every question looks at one only.
        self._held: dict[LockKey, _FileLocks] = {}
        self._waiting: dict[LockKey, list[Wanted]] = {}  # in the order in which they came
        # Counted as they come and go: to count a host's locks for each request would cost what an attacker
        # likes.
        self._held_counts, self._waiting_counts = _Counts(), _Counts()
        # Who waits for whom is followed from owner to owner, over all files.
        self._waiting_by_owner: dict[Owner, list[Wanted]] = {}

    # --- looking --------------------------------------------------------------------------------------

    def held(self, key: LockKey) -> tuple[Lock, ...]:
        return tuple(self._of(key))

    def held_by(self, key: LockKey, owner: Owner, start: int = 0, end: int = END_OF_FILE) -> list[Lock]:
        """What an owner has in a range, or that reaches into it."""
        own = self._of(key).of(owner)
        return own[_meeting(own, start, end)]

    def all_held(self) -> Iterator[tuple[LockKey, Lock]]:
        for key, locks in self._held.items():
            for lock in locks:
                yield key, lock

    def all_waiting(self) -> Iterator[Wanted]:
        for waiting in self._waiting.values():
            yield from waiting

    def count(self) -> tuple[int, int]:
        """How many locks are held, and how many requests wait."""
        return self._held_counts.by_host.total(), self._waiting_counts.by_host.total()

    def count_of(self, host: bytes) -> int:
        """How many locks a host holds."""
        return self._held_counts.by_host[host]

    def holds(self, owner: Owner, inode: InodeNumber) -> bool:
        return any(self._of(LockKey(inode, space)).of(owner) for space in LockKind)

    def hindrance(self, wanted: Wanted) -> Lock | None:
        """The first lock that the request would have to wait for; what GETLK asks."""
        return next(self._of(wanted.key).hindrances(wanted.lock), None)

    def waits_for(self, host: bytes, other: bytes) -> bool:
        """Whether a request of one host waits for what another holds."""
        return any(
            held.owner.host == other
            for wanted in self.all_waiting()
            if wanted.owner.host == host
            for held in self._of(wanted.key).hindrances(wanted.lock)
        )

    def _of(self, key: LockKey) -> _FileLocks:
        return self._held.get(key, _NOTHING_HELD)

    def _owners_behind(self, wanted: Wanted) -> set[Owner]:
        """Who the request would have to wait for; as many as are looked at."""
        hindrances = islice(self._of(wanted.key).hindrances(wanted.lock), DEADLOCK_OWNERS_MAX)
        return {lock.owner for lock in hindrances}

    # --- asking ---------------------------------------------------------------------------------------

    def ask(self, wanted: Wanted) -> list[Settled]:
        """Grant, refuse, or let wait. The request waits where it is not among what is settled.

        EAGAIN where it does not wait, EDEADLK, ENOLCK at a limit. A conversion of flock(2) gives the old
        lock up first, also where the new one is then refused.
        """
        # flock(2): a conversion is no single step. Another may get the lock between the two, and a refusal
        # leaves nothing; Linux does the same, and programs know.
        if wanted.key.space is LockKind.FLOCK:
            own = self.held_by(wanted.key, wanted.owner)
            if own and own[0].exclusive != wanted.lock.exclusive:
                self._put(wanted.key, wanted.owner, 0, END_OF_FILE, None)
        result = self._try(wanted)
        if result is None:
            self._wait(wanted)
        # The own answer first: who asked hears of it before those whom it let in.
        answer = [] if result is None else [Settled(wanted, result)]
        # Also where it was refused or waits: a conversion has given its old lock up all the same.
        return answer + self._sweep(wanted.key, closes=result == 0 and wanted.owner in self._waiting_by_owner)

    def _try(self, wanted: Wanted) -> int | None:
        """The errno that settles a request that does not wait yet; None where it has to."""
        # By what is held alone, and not by who waits: that a request came first gives it no right to the
        # range.
        if self._of(wanted.key).hindrance_count(wanted.lock):
            # Who does not wait is in no circle and takes no place among those who do, so nothing else is
            # asked.
            if not wanted.waits:
                return errno.EAGAIN
            # Before the limits: EDEADLK is about this program, ENOLCK about what others use.
            if self._closes_circle(wanted):
                return errno.EDEADLK
            # Two limits: that of a host bounds the table, that of a user leaves places to the others there.
            user = (wanted.owner.host, wanted.lock.uid)
            many = self._waiting_counts.by_user[user] >= LOCKS_WAITING_PER_USER_MAX
            if many or self._waiting_counts.by_host[wanted.owner.host] >= LOCKS_WAITING_PER_HOST_MAX:
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
        self._waiting_counts.add((wanted.lock,))

    def _wait_no_more(self, wanted: Wanted) -> None:
        _remove(self._waiting, wanted.key, wanted)
        _remove(self._waiting_by_owner, wanted.owner, wanted)
        self._waiting_counts.remove((wanted.lock,))

    def _sweep(self, key: LockKey, *, closes: bool) -> list[Settled]:
        """Settle those of who waits that can be settled now, the first first. `closes`: who was granted
        something waits for something else, so a circle may be closed.

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
                result: int | None = None
                if not self._of(key).hindrance_count(wanted.lock):
                    result = self._grant(wanted)
                # Again, as a lock that was granted since may close the circle: its own program asks nothing
                # more. Only a grant to who waits himself: that another has gone closes none, and to look for
                # circles from each who waits, at each lock that a program gives up, takes a while where there
                # are many of both.
                elif closes and self._closes_circle(wanted):
                    result = errno.EDEADLK
                if result is not None:
                    self._wait_no_more(wanted)
                    settled.append(Settled(wanted, result))
                    closes = closes or (result == 0 and wanted.owner in self._waiting_by_owner)
        return settled

    def _closes_circle(self, wanted: Wanted) -> bool:
        """Whether its owner would wait for itself: over who waits for whom, at both hosts.

        A circle of more than `DEADLOCK_OWNERS_MAX` owners is not looked for to its end, as on Linux.
        """
        # Only a process waits as a whole. An open file may be released by another thread of the same
        # process, so a circle of those proves nothing (fcntl(2), "open file description locks").
        if not wanted.may_deadlock:
            return False
        seen: set[Owner] = set()
        behind = self._owners_behind(wanted)
        # A search over owners and not over locks: each is looked at once, however many ranges it holds.
        while behind and len(seen) < DEADLOCK_OWNERS_MAX:
            owner = behind.pop()
            if owner == wanted.owner:
                return True
            seen.add(owner)
            for waiting in self._waiting_by_owner.get(owner, ()):
                if waiting.may_deadlock:
                    behind |= self._owners_behind(waiting)
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
        if not self.held_by(key, owner, start, end):
            return []
        self._put(key, owner, start, end, None)
        return self._sweep(key, closes=False)

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
        claimed = _by_key(host, locks)
        others = {key: [lock for lock in self._of(key) if lock.owner.host != host] for key in claimed}
        for key, new in claimed.items():
            _check_together(others[key] + new)
        before = [key for key, held in self._held.items() if any(each.host == host for each in held.by_owner)]
        # Nobody is let in between giving up and taking again: waiters are looked at once, at the end.
        # A file is counted anew once and not for each lock: there may be thousands of one file.
        for key in before:
            held = self._held[key]
            for owner in [each for each in held.by_owner if each.host == host]:
                self._held_counts.remove(held.by_owner.pop(owner))
            held.count_anew()
            if not held.by_owner:
                del self._held[key]
        for key, new in claimed.items():
            held = self._held.setdefault(key, _FileLocks())
            for lock in new:
                own = held.by_owner.setdefault(lock.owner, [])
                where, those = _cut(own, lock.start, lock.end, lock)
                self._held_counts.remove(own[where])
                self._held_counts.add(those)
                own[where] = those
            held.count_anew()
        closes = any(lock.owner in self._waiting_by_owner for new in claimed.values() for lock in new)
        # Of the files where it had held something: in no other has anything been given up.
        return [each for key in before for each in self._sweep(key, closes=closes)]

    # --- ranges ---------------------------------------------------------------------------------------

    def is_too_many(
        self,
        key: LockKey,
        owner: Owner,
        start: int,
        end: int,
        lock: Lock | None,
        under_way: Sequence[Wanted] = (),
    ) -> bool:
        """Whether a user, or the host, would hold too many locks with `lock` in the range, or nothing.
        `under_way`: what may be granted already by who decides, and is not in this table."""
        more = self.more(key, owner, start, end, lock)
        # Where it is granted by now, this may cut it, or what it was joined with.
        for each in under_way:
            if (each.key, each.owner) == (key, owner) and _touches(each.lock, start, end):
                more[each.lock.uid] += 1
        more = +more
        # What needs no more locks than there are is refused at no limit.
        if not more:
            return False
        users, held, host = Counter(each.lock.uid for each in under_way), self._held_counts, owner.host
        if held.by_host[host] + more.total() + LOCKS_UNDER_WAY_EACH * len(under_way) > LOCKS_PER_HOST_MAX:
            return True
        return any(
            held.by_user[host, uid] + count + LOCKS_UNDER_WAY_EACH * users[uid] > LOCKS_PER_USER_MAX
            for uid, count in more.items()
        )

    def more(self, key: LockKey, owner: Owner, start: int, end: int, lock: Lock | None) -> Counter[int]:
        """How many locks more each user would hold with `lock` in the range, or nothing. An owner may have
        locks of several users: a process changes its user and keeps them."""
        own = self._of(key).of(owner)
        where, new = _cut(own, start, end, lock)
        # Giving up may need more, too: the middle of a range leaves two.
        more = Counter(each.uid for each in new)
        more.subtract(each.uid for each in own[where])
        return more

    def put(self, key: LockKey, lock: Lock) -> None:
        """The owner holds it, whatever else is held: for a table that does not decide."""
        self._put(key, lock.owner, lock.start, lock.end, lock)

    def _put(self, key: LockKey, owner: Owner, start: int, end: int, lock: Lock | None) -> None:
        """Replace what the owner has in the range; without a lock nothing stays there."""
        held = self._held.setdefault(key, _FileLocks())
        old, new = held.put(owner, start, end, lock)
        # Of what was replaced: ranges are cut and joined, and the difference would be easy to get wrong.
        self._held_counts.remove(old)
        self._held_counts.add(new)
        # Nothing empty stays: any program may lock any number of files once.
        if not held.by_owner:
            del self._held[key]


def _meeting(own: list[Lock], start: int, end: int) -> slice:
    """Where an owner's locks stand that meet a range."""
    return slice(bisect_left(own, start, key=_end), bisect_right(own, end, key=_start))


def _touches(lock: Lock, start: int, end: int) -> bool:
    return lock.start <= end + 1 and start <= lock.end + 1


def _cut(own: list[Lock], start: int, end: int, lock: Lock | None) -> tuple[slice, list[Lock]]:
    """Which of one owner's ranges are replaced, and by which, to have `lock` or nothing from `start` to
    `end`; neighbours of one kind are one."""
    if lock is None:
        where = _meeting(own, start, end)
        return where, [*_before(own[where], start), *_behind(own[where], end)]
    # With those beside it: neighbours of one kind are one, as POSIX has it. Else a program that locks byte by
    # byte fills the table.
    where = _meeting(own, start - 1, end + 1)
    old = own[where]
    joined = [each for each in old if each.exclusive == lock.exclusive]
    apart = [each for each in old if each.exclusive != lock.exclusive]
    first = min([start, *(each.start for each in joined[:1])])
    last = max([end, *(each.end for each in joined[-1:])])
    whole = (
        lock
        if (first, last) == (lock.start, lock.end)
        else msgspec.structs.replace(lock, start=first, end=last)
    )
    return where, [*_before(apart, start), whole, *_behind(apart, end)]


def _before(locks: list[Lock], start: int) -> list[Lock]:
    """What of these lies before a range. At most one does: they meet it, or stand beside it."""
    return [
        msgspec.structs.replace(each, end=min(each.end, start - 1))
        for each in locks[:1]
        if each.start < start
    ]


def _behind(locks: list[Lock], end: int) -> list[Lock]:
    return [
        msgspec.structs.replace(each, start=max(each.start, end + 1)) for each in locks[-1:] if each.end > end
    ]


def _by_key(host: bytes, locks: Iterable[tuple[LockKey, Lock]]) -> dict[LockKey, list[Lock]]:
    """What a host says that it holds, by file. ValueError where it is not the host's, or too much."""
    claimed: dict[LockKey, list[Lock]] = {}
    for count, (key, lock) in enumerate(locks):
        # The limit of a user is not asked for here. It leaves places to the host's other users, which is the
        # host's own business; a peer that breaks it can name a new user for each lock as well.
        if count >= LOCKS_PER_PEER_MAX:
            raise ValueError("too many locks")
        if lock.owner.host != host:
            raise ValueError("a lock of another host")
        claimed.setdefault(key, []).append(lock)
    return claimed


def _check_together(locks: list[Lock]) -> None:
    """ValueError where two of them, of one file, conflict: no arbiter grants such two."""
    # In the order of their starts: a lock meets one before it if that ends behind its start. Each is compared
    # with the one that ends last, and not with all of them.
    any_kind, exclusive = _Furthest(), _Furthest()
    for lock in sorted(locks, key=_start):
        if (any_kind if lock.exclusive else exclusive).end_of_others(lock.owner) >= lock.start:
            raise ValueError("two locks conflict")
        any_kind.add(lock)
        if lock.exclusive:
            exclusive.add(lock)


class _Furthest:
    """The last byte that others than one owner have, whoever that is: the last two of different owners."""

    __slots__ = ("_end", "_owner", "_second_end")

    def __init__(self) -> None:
        self._owner: Owner | None = None
        self._end = self._second_end = -1

    def add(self, lock: Lock) -> None:
        if lock.owner == self._owner:
            self._end = max(self._end, lock.end)
        elif lock.end > self._end:
            self._owner, self._end, self._second_end = lock.owner, lock.end, self._end
        else:
            self._second_end = max(self._second_end, lock.end)

    def end_of_others(self, owner: Owner) -> int:
        return self._second_end if owner == self._owner else self._end


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
