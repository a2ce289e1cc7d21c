"""The table of locks against a model that keeps every byte by itself, and the rules that fcntl(2) names."""

import errno
from itertools import pairwise
from typing import Any

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
