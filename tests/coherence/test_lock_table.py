"""The table of locks against a model that keeps every byte by itself, and the rules that fcntl(2) names."""

import errno
from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusemirror.coherence import lock_table
from fusemirror.coherence.lock_table import (
    END_OF_FILE,
    Lock,
    LockKey,
    LockKind,
    LockTable,
    Owner,
    Settled,
    Wanted,
)
from fusemirror.identifiers import InodeNumber

HERE, THERE = b"here", b"there"
FILE = LockKey(InodeNumber(7), LockKind.FCNTL)
OTHER = LockKey(InodeNumber(8), LockKind.FCNTL)
WHOLE = LockKey(InodeNumber(7), LockKind.FLOCK)
A, B, C = Owner(HERE, 1), Owner(THERE, 1), Owner(HERE, 2)
_tokens = iter(range(1, 1 << 30))


def wanted(
    owner: Owner,
    start: int = 0,
    end: int = END_OF_FILE,
    *,
    key: LockKey = FILE,
    shared: bool = False,
    **more: Any,
) -> Wanted:
    uid = more.pop("uid", 0)
    lock = Lock(owner, start, end, exclusive=not shared, pid=owner.number, uid=uid)
    return Wanted(next(_tokens), key, lock, **more)


def ranges(table: LockTable, owner: Owner, key: LockKey = FILE) -> list[tuple[int, int, bool]]:
    return [(lock.start, lock.end, lock.exclusive) for lock in table.held(key) if lock.owner == owner]


def errnos(settled: list[Settled]) -> list[tuple[Owner, int]]:
    return [(each.wanted.owner, each.errno) for each in settled]


# --- ranges ---------------------------------------------------------------------------------------------


def test_a_range_within_another_splits_it_and_the_same_kind_joins_it_again() -> None:
    table = LockTable()
    table.ask(wanted(A, 0, 99))
    table.ask(wanted(A, 10, 19, shared=True))
    assert ranges(table, A) == [(0, 9, True), (10, 19, False), (20, 99, True)]
    table.ask(wanted(A, 10, 19))
    assert ranges(table, A) == [(0, 99, True)]
    table.release(FILE, A, 50, 59)
    assert ranges(table, A) == [(0, 49, True), (60, 99, True)]
    table.ask(wanted(A, 50, 59))
    assert ranges(table, A) == [(0, 99, True)]


def test_the_spaces_do_not_see_each_other() -> None:
    table = LockTable()
    assert errnos(table.ask(wanted(A))) == [(A, 0)]
    assert errnos(table.ask(wanted(B, key=WHOLE))) == [(B, 0)]


def test_what_getlk_asks_is_the_first_lock_in_the_way() -> None:
    table = LockTable()
    table.ask(wanted(A, 0, 9, shared=True))
    assert table.hindrance(wanted(B, 5, 5, shared=True)) is None
    found = table.hindrance(wanted(B, 5, 50))
    assert found is not None
    assert (found.owner, found.start, found.end, found.exclusive) == (A, 0, 9, False)
    assert table.hindrance(wanted(A, 5, 50)) is None


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "wait", "release", "drop", "drop host"]),
        st.sampled_from([Owner(host, number) for host in (HERE, THERE) for number in (1, 2)]),
        st.integers(0, 7),
        st.integers(0, 7),
        st.booleans(),
    ),
    max_size=30,
)


class Model:
    """Every byte by itself: who holds it, and how. Requests are tried again one by one, in their order."""

    def __init__(self) -> None:
        self.bytes: dict[int, dict[Owner, bool]] = {byte: {} for byte in range(8)}
        self.waiting: list[Wanted] = []

    def is_free(self, each: Wanted) -> bool:
        lock = each.lock
        return not any(
            owner != lock.owner and (exclusive or lock.exclusive)
            for byte in range(lock.start, lock.end + 1)
            for owner, exclusive in self.bytes[byte].items()
        )

    def take(self, each: Wanted) -> None:
        for byte in range(each.lock.start, each.lock.end + 1):
            self.bytes[byte][each.lock.owner] = each.lock.exclusive

    def release(self, owner: Owner, start: int, end: int) -> None:
        for byte in range(start, end + 1):
            self.bytes[byte].pop(owner, None)

    def settle(self) -> list[Wanted]:
        granted: list[Wanted] = []
        while more := self.settle_once():
            granted += more
        return granted

    def settle_once(self) -> list[Wanted]:
        granted = []
        for each in list(self.waiting):
            if self.is_free(each):
                self.take(each)
                self.waiting.remove(each)
                granted.append(each)
        return granted


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_the_table_is_as_a_table_of_single_bytes(steps: list[tuple[str, Owner, int, int, bool]]) -> None:
    table, model = LockTable(), Model()
    for what, owner, start, length, shared in steps:
        end = min(7, start + length)
        granted: list[Wanted] = []
        if what in ("ask", "wait"):
            each = wanted(owner, start, end, shared=shared, waits=what == "wait")
            settled = table.ask(each)
            if model.is_free(each):
                model.take(each)
                granted.append(each)
            elif each.waits:
                model.waiting.append(each)
            else:
                assert settled[0] == Settled(each, errno.EAGAIN)
                settled = settled[1:]
        elif what == "release":
            settled = table.release(FILE, owner, start, end)
            model.release(owner, start, end)
        elif what == "drop":
            settled = table.drop_owner(FILE.inode, owner)
            model.waiting = [each for each in model.waiting if each.owner != owner]
            model.release(owner, 0, 7)
        else:
            settled = table.drop_host(owner.host)
            model.waiting = [each for each in model.waiting if each.owner.host != owner.host]
            for number in (1, 2):
                model.release(Owner(owner.host, number), 0, 7)
        granted += model.settle()
        assert [each.wanted for each in settled] == granted
        assert not any(each.errno for each in settled)
        for byte, holders in model.bytes.items():
            found = {
                lock.owner: lock.exclusive for lock in table.held(FILE) if lock.start <= byte <= lock.end
            }
            assert found == holders
        assert list(table.all_waiting()) == model.waiting
        assert table.count() == (len(table.held(FILE)), len(model.waiting))
        own = ranges(table, owner)
        assert own == sorted(own)
        for one, two in pairwise(own):
            assert one[1] + 1 < two[0] or one[2] != two[2], "they are one"


# --- waiting ----------------------------------------------------------------------------------------------


def test_the_first_that_can_goes_first() -> None:
    table = LockTable()
    table.ask(wanted(A, 0, 9))
    table.ask(wanted(B, 0, 19, waits=True))
    assert errnos(table.ask(wanted(C, 20, 29))) == [(C, 0)]
    assert errnos(table.ask(wanted(C, 10, 15))) == [(C, 0)]  # nobody who waits is in the way
    assert table.release(FILE, A) == []  # B still waits for C
    assert errnos(table.release(FILE, C)) == [(B, 0)]


def test_what_waits_can_be_taken_back() -> None:
    table = LockTable()
    table.ask(wanted(A))
    waits = wanted(B, waits=True)
    table.ask(waits)
    assert not table.cancel(HERE, waits.token)
    assert table.cancel(THERE, waits.token)
    assert not table.cancel(THERE, waits.token)
    assert table.release(FILE, A) == []
    assert table.count() == (0, 0)


def test_a_conversion_of_flock_gives_the_old_lock_up_first() -> None:
    table = LockTable()
    table.ask(wanted(A, key=WHOLE, shared=True))
    table.ask(wanted(B, key=WHOLE, shared=True))
    assert errnos(table.ask(wanted(A, key=WHOLE))) == [(A, errno.EAGAIN)]
    assert ranges(table, A, WHOLE) == []
    assert errnos(table.ask(wanted(B, key=WHOLE, waits=True))) == [(B, 0)]


def test_a_conversion_that_waits_lets_others_go_first() -> None:
    table = LockTable()
    table.ask(wanted(A, key=WHOLE, shared=True))
    table.ask(wanted(C, key=WHOLE, shared=True))
    table.ask(wanted(B, key=WHOLE, waits=True))
    assert table.ask(wanted(A, key=WHOLE, waits=True)) == []  # it would wait for C, behind B
    assert errnos(table.release(WHOLE, C)) == [(B, 0)]
    assert errnos(table.release(WHOLE, B)) == [(A, 0)]


def test_the_same_kind_again_changes_nothing() -> None:
    table = LockTable()
    table.ask(wanted(A, key=WHOLE))
    table.ask(wanted(B, key=WHOLE, waits=True))
    assert errnos(table.ask(wanted(A, key=WHOLE))) == [(A, 0)]
    assert [lock.owner for lock in table.held(WHOLE)] == [A]


# --- deadlocks --------------------------------------------------------------------------------------------


def test_a_circle_over_both_hosts_is_refused() -> None:
    table = LockTable()
    table.ask(wanted(A, key=FILE))
    table.ask(wanted(B, key=OTHER))
    assert table.ask(wanted(A, key=OTHER, waits=True, may_deadlock=True)) == []
    settled = table.ask(wanted(B, key=FILE, waits=True, may_deadlock=True))
    assert errnos(settled) == [(B, errno.EDEADLK)]


def test_open_files_wait_for_each_other_for_ever() -> None:
    table = LockTable()
    table.ask(wanted(A, key=FILE))
    table.ask(wanted(B, key=OTHER))
    table.ask(wanted(A, key=OTHER, waits=True))
    assert table.ask(wanted(B, key=FILE, waits=True)) == []
    assert table.count() == (2, 2)


def test_a_circle_that_a_grant_closes_is_refused() -> None:
    table = LockTable()
    table.ask(wanted(C, 0, 9))
    table.ask(wanted(A, 20, 29))
    table.ask(wanted(B, 0, 9, waits=True, may_deadlock=True))
    table.ask(wanted(B, 20, 29, waits=True, may_deadlock=True))  # another thread of B
    table.ask(wanted(A, 0, 9, waits=True, may_deadlock=True))
    settled = table.release(FILE, C)
    assert errnos(settled) == [(B, 0), (B, errno.EDEADLK)]


# --- limits -------------------------------------------------------------------------------------------------


def test_a_user_has_a_limit_of_locks_at_each_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_table, "LOCKS_PER_USER_MAX", 2)
    table = LockTable()
    table.ask(wanted(A, 0, 0, uid=5))
    table.ask(wanted(A, 2, 2, uid=5))
    assert errnos(table.ask(wanted(A, 4, 4, uid=5))) == [(A, errno.ENOLCK)]
    assert errnos(table.ask(wanted(C, 4, 4, uid=6))) == [(C, 0)]
    assert errnos(table.ask(wanted(B, 6, 6, uid=5))) == [(B, 0)]
    assert errnos(table.ask(wanted(A, 0, 2, uid=5))) == [(A, 0)]  # one in place of two
    assert not table.is_too_many(FILE, A, 1, 1, None)
    monkeypatch.setattr(lock_table, "LOCKS_PER_USER_MAX", 1)
    assert table.is_too_many(FILE, A, 1, 1, None)


def test_a_user_has_a_limit_of_requests_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_table, "LOCKS_WAITING_PER_USER_MAX", 1)
    table = LockTable()
    table.ask(wanted(A))
    first = wanted(B, waits=True, uid=5)
    assert table.ask(first) == []
    assert errnos(table.ask(wanted(B, waits=True, uid=5))) == [(B, errno.ENOLCK)]
    assert table.ask(wanted(B, waits=True, uid=6)) == []
    table.cancel(THERE, first.token)
    assert table.ask(wanted(B, waits=True, uid=5)) == []


# --- hosts --------------------------------------------------------------------------------------------------


def test_what_a_host_reclaims_is_all_that_it_holds() -> None:
    table = LockTable()
    table.ask(wanted(B, 0, 9))
    table.ask(wanted(B, key=OTHER))
    waits = wanted(A, 0, 9, waits=True)
    table.ask(waits)
    kept = [(OTHER, wanted(B, 5, 5).lock)]
    assert errnos(table.replace_host(THERE, kept)) == [(A, 0)]
    assert ranges(table, B, OTHER) == [(5, 5, True)]
    assert ranges(table, B) == []


@pytest.mark.parametrize(
    "locks",
    [
        [(FILE, wanted(B, 5, 5).lock)],
        [(OTHER, wanted(A, 5, 5).lock)],
        [(OTHER, wanted(B, 5, 5).lock), (OTHER, wanted(Owner(THERE, 2), 5, 5).lock)],
    ],
    ids=["held by another", "of another host", "held twice"],
)
def test_what_cannot_be_held_is_not_reclaimed(locks: list[tuple[LockKey, Lock]]) -> None:
    table = LockTable()
    table.ask(wanted(A, 0, 9))
    table.ask(wanted(B, 20, 29))
    with pytest.raises(ValueError, match="lock"):
        table.replace_host(THERE, locks)
    assert ranges(table, B) == [(20, 29, True)]


def test_what_a_host_waits_for_ends_with_it() -> None:
    table = LockTable()
    table.ask(wanted(A))
    table.ask(wanted(B, waits=True))
    table.drop_waiting(THERE)
    assert table.count() == (1, 0)
    table.ask(wanted(B, key=OTHER))
    table.drop_host(THERE)
    assert table.count() == (1, 0)
    assert table.holds(A, FILE.inode)
    assert not table.holds(B, OTHER.inode)


CLAIMS = st.lists(
    st.tuples(st.sampled_from([1, 2, 3]), st.integers(0, 7), st.integers(0, 3), st.booleans()), max_size=6
)


@given(CLAIMS, CLAIMS)
@settings(max_examples=300, deadline=None)
def test_a_claim_is_checked_and_taken_as_if_it_were_asked_for_one_by_one(
    held: list[tuple[int, int, int, bool]], claimed: list[tuple[int, int, int, bool]]
) -> None:
    table, model = LockTable(), LockTable()
    for number, start, length, shared in held:
        for each in (table, model):
            each.ask(wanted(Owner(HERE, number), start, start + length, shared=shared))
    table.ask(wanted(B, 0, 0))
    locks = [
        wanted(Owner(THERE, number), start, start + length, shared=shared).lock
        for number, start, length, shared in claimed
    ]
    conflict = any(
        one.conflicts_with(two.owner, two.start, two.end, exclusive=two.exclusive)
        for one, two in combinations([*model.held(FILE), *locks], 2)
    )
    before = table.held(FILE)
    try:
        table.replace_host(THERE, [(FILE, lock) for lock in locks])
    except ValueError:
        assert conflict
        assert table.held(FILE) == before
    else:
        assert not conflict
        for lock in locks:
            model.put(FILE, lock)
        assert set(table.held(FILE)) == set(model.held(FILE))
        assert table.count() == model.count()


# --- what is under way ----------------------------------------------------------------------------------


@given(CLAIMS, CLAIMS, st.integers(0, 7), st.integers(0, 3), st.integers(1, 12))
@settings(max_examples=500, deadline=None)
def test_what_a_host_may_give_up_its_arbiter_takes_whatever_it_has_granted_by_then(
    held: list[tuple[int, int, int, bool]],
    under_way: list[tuple[int, int, int, bool]],
    start: int,
    length: int,
    limit: int,
) -> None:
    def made(number: int, first: int, more: int, shared: bool) -> Wanted:
        return wanted(Owner(THERE, number), first, first + more, shared=shared)

    asker, arbiter = LockTable(), LockTable()
    with mock.patch.object(lock_table, "LOCKS_PER_USER_MAX", limit):
        for each in held:
            if arbiter.ask(made(*each))[0].errno == 0:
                asker.put(FILE, made(*each).lock)
        asked = [made(*each) for each in under_way]
        for request in asked:
            arbiter.ask(request)
        if not asker.is_too_many(FILE, B, start, start + length, None, asked):
            assert not arbiter.is_too_many(FILE, B, start, start + length, None)


def test_locks_of_one_owner_count_for_the_user_who_took_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_table, "LOCKS_PER_USER_MAX", 1)
    table = LockTable()
    table.ask(wanted(A, 0, 9, uid=5))
    table.ask(wanted(A, 20, 29, uid=6))
    assert table.is_too_many(FILE, A, 24, 25, None)  # of 6, whatever 5 has
    assert not table.is_too_many(FILE, A, 25, 29, None)
    assert errnos(table.ask(wanted(A, 4, 5, uid=7, shared=True))) == [(A, errno.ENOLCK)]  # cuts what 5 has


# --- work -----------------------------------------------------------------------------------------------


class Counted(int):
    """A number that counts how often any of them is compared."""

    comparisons = 0

    def _counting(name: str) -> Any:  # type: ignore[misc]
        compare = getattr(int, name)

        def counted(self: int, other: int) -> bool:
            Counted.comparisons += 1
            result: bool = compare(self, other)
            return result

        return counted

    __lt__, __le__, __gt__, __ge__ = map(_counting, ("__lt__", "__le__", "__gt__", "__ge__"))
    __eq__ = _counting("__eq__")
    __hash__ = int.__hash__


def _many(count: int, owners: int) -> list[tuple[LockKey, Lock]]:
    """Every second byte of a file."""
    return [
        (FILE, Lock(Owner(THERE, Counted(at % owners)), Counted(2 * at), Counted(2 * at), True, 1, 0))
        for at in range(count)
    ]


def _taken(locks: list[tuple[LockKey, Lock]]) -> LockTable:
    table = LockTable()
    table.replace_host(THERE, locks)
    return table


def _reclaim(locks: list[tuple[LockKey, Lock]], _: LockTable) -> None:
    _taken(locks)


def _set(locks: list[tuple[LockKey, Lock]], _: LockTable) -> None:
    table = LockTable()
    for key, lock in locks:
        assert [each.errno for each in table.ask(Wanted(1, key, lock))] == [0]


def _refuse(locks: list[tuple[LockKey, Lock]], table: LockTable) -> None:
    for key, lock in locks:
        other = Lock(A, lock.start, lock.end, exclusive=False, pid=1, uid=0)
        assert [each.errno for each in table.ask(Wanted(1, key, other))] == [errno.EAGAIN]


def _release(locks: list[tuple[LockKey, Lock]], table: LockTable) -> None:
    for key, lock in locks:
        table.release(key, lock.owner, lock.start, lock.end)


def _release_while_others_wait(locks: list[tuple[LockKey, Lock]], table: LockTable) -> None:
    for number in range(4):
        table.ask(wanted(Owner(HERE, number), waits=True, may_deadlock=True))
    _release(locks[1:], table)


def _close(locks: list[tuple[LockKey, Lock]], table: LockTable) -> None:
    for key, owner in dict.fromkeys((key, lock.owner) for key, lock in locks):
        table.drop_owner(key.inode, owner)


def _drop(_: list[tuple[LockKey, Lock]], table: LockTable) -> None:
    table.drop_host(THERE)


@pytest.mark.parametrize("owners", [1, 1 << 30], ids=["of one owner", "of one owner each"])
@pytest.mark.parametrize(
    "work",
    [_reclaim, _set, _refuse, _release, _release_while_others_wait, _close, _drop],
    ids=lambda work: work.__name__.strip("_"),
)
def test_many_locks_of_one_file_are_no_more_work_each_than_a_few(
    work: Callable[[list[tuple[LockKey, Lock]], LockTable], None], owners: int
) -> None:
    per_lock = []
    for count in (64, 512):
        locks = _many(count, owners)
        table = _taken(locks)
        Counted.comparisons = 0
        work(locks, table)
        per_lock.append(Counted.comparisons / count)
    # The logarithm has grown from 6 to 9, and a walk over all would be eight times as long.
    assert per_lock[1] <= 2 * max(per_lock[0], 1)


def test_many_ranges_that_go_at_once_are_in_nobodys_way_any_more() -> None:
    table = _taken([*_many(200, 2), (FILE, wanted(Owner(THERE, 7), 900, 909).lock)])
    table.release(FILE, Owner(THERE, 1), 100, 300)
    for at in range(200):
        request = Wanted(1, FILE, Lock(A, 2 * at, 2 * at, exclusive=True, pid=1, uid=0))
        assert (table.hindrance(request) is None) == (at % 2 == 1 and 100 <= 2 * at <= 300)
    assert table.hindrance(wanted(A, 905, 905)) is not None
