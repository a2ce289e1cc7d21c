"""Destaging: what waits for the store goes together, and a store that fails gets it again."""

import errno

import pytest
import trio
from trio.testing import MockClock

from fusemirror.communication.destaging import Destaging
from fusemirror.communication.held_data import HeldData
from fusemirror.communication.staged import Staged, StoredEntry
from fusemirror.errors import DiskFailed, StoreInDoubt
from fusemirror.identifiers import InodeNumber, RequestId
from fusemirror.limits import DESTAGE_AFTER_S
from fusemirror.operations import Write
from fusemirror.protocol.messages import Request

INODE = InodeNumber(2)


class FakeStore:
    """Holds serials; it fails where it is told to."""

    def __init__(self) -> None:
        self.held: list[int] = []
        self.commits = 0
        self.fails = False
        self.fails_with = DiskFailed
        self.forgotten: list[int] = []

    async def store(self, entries: list[StoredEntry], ended: list[int]) -> None:
        await trio.lowlevel.checkpoint()
        if self.fails:
            raise self.fails_with("store", "full")
        self.forgotten += ended
        self.commits += 1
        self.held = [serial for serial in self.held if serial not in ended] + [entry[0] for entry in entries]


def staged(serial: int, *, kept: bool = True) -> Staged:
    request = Request(RequestId(b"%016d" % serial), Write(INODE, serial), kept)
    return Staged(serial, request, b"x", trio.current_time(), 0)


async def test_what_is_kept_goes_together_and_is_acknowledged(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = FakeStore()
    destaging = Destaging(store.store, HeldData(1 << 20), trio.lowlevel.ParkingLot())
    await nursery.start(destaging.run)
    requests = [staged(serial) for serial in (1, 2, 3)]
    for request in requests:
        destaging.add(request)
    with trio.fail_after(1):
        for request in requests:
            assert await request.answer.wait() == INODE
    assert store.held == [1, 2, 3]
    assert destaging.total == 3
    destaging.leave(requests[1])
    assert destaging.in_store == [requests[1]]
    await trio.sleep(2 * DESTAGE_AFTER_S)
    assert store.held == [1, 3]
    assert destaging.in_store == []
    nursery.cancel_scope.cancel()


async def test_what_is_answered_in_time_spares_the_store(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = FakeStore()
    destaging = Destaging(store.store, HeldData(1 << 20), trio.lowlevel.ParkingLot())
    await nursery.start(destaging.run)
    request = staged(1, kept=False)
    destaging.add(request)
    request.retired = True
    await trio.sleep(3 * DESTAGE_AFTER_S)
    assert (store.held, store.commits) == ([], 0)
    nursery.cancel_scope.cancel()


async def test_a_store_that_failed_gets_everything_again(autojump_clock: MockClock) -> None:
    store = FakeStore()
    destaging = Destaging(store.store, HeldData(1 << 20), trio.lowlevel.ParkingLot())
    first = staged(1)
    destaging.add(first)
    store.fails = True
    with pytest.raises(DiskFailed):
        await destaging._destage()
    states = [first.destaged]
    store.fails = False
    await destaging._destage()
    assert [*states, first.destaged, first.acknowledged] == [False, True, True]
    assert store.held == [1]


async def test_a_disk_that_cannot_be_asked_for_room_costs_no_other_request_its_place(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    def broken(_data_bytes: int) -> bool:
        raise OSError(errno.ESTALE, "stale")

    store = FakeStore()
    destaging = Destaging(store.store, HeldData(1 << 20), trio.lowlevel.ParkingLot(), broken)
    await nursery.start(destaging.run)
    requests = [staged(1), staged(2, kept=False), staged(3)]
    for request in requests:
        destaging.add(request)
    with trio.fail_after(1):
        assert [await requests[index].answer.wait() for index in (0, 2)] == [INODE, INODE]
    assert store.held == [1, 3]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("in_doubt", [True, False])
async def test_what_may_be_in_a_store_that_failed_is_removed_from_it_and_counts_as_stored_until_then(
    in_doubt: bool, autojump_clock: MockClock
) -> None:
    store = FakeStore()
    destaging = Destaging(store.store, HeldData(1 << 20), trio.lowlevel.ParkingLot())
    first, second = staged(1), staged(2)
    destaging.add(first)
    store.fails, store.fails_with = True, StoreInDoubt if in_doubt else DiskFailed
    with pytest.raises(DiskFailed):
        await destaging._destage()
    store.fails_with = DiskFailed  # that it got nothing the second time says nothing of the first
    destaging.add(second)
    with pytest.raises(DiskFailed):
        await destaging._destage()
    assert [first.destaged, second.destaged] == [in_doubt, False]
    for request in (first, second):
        request.retired = True
        if request.destaged:
            destaging.leave(request)
    assert destaging.in_store == ([first] if in_doubt else [])
    store.fails = False
    await destaging._destage()
    assert (store.held, store.forgotten) == ([], [1] if in_doubt else [])
    assert destaging.in_store == []


def test_the_faster_of_store_and_primary_answers(autojump_clock: MockClock) -> None:
    destaging = Destaging(FakeStore().store, HeldData(1 << 20), trio.lowlevel.ParkingLot())
    seen = [destaging.answers_first]  # nothing was measured
    destaging._store_s = 1.0
    destaging.note_answer(0.5)
    seen.append(destaging.answers_first)
    destaging.forget_answers()
    assert [*seen, destaging.answers_first] == [False, True, False]


def test_the_best_answer_of_late_counts_as_others_wait_for_the_store_and_for_each_other(
    autojump_clock: MockClock,
) -> None:
    destaging = Destaging(FakeStore().store, HeldData(1 << 20), trio.lowlevel.ParkingLot())
    destaging._store_s = 1.0
    seen = []
    for answer_s in (3.0, 0.9, 3.0, *[3.0] * 20):
        destaging.note_answer(answer_s)
        seen.append(destaging.answers_first)
    assert seen[:3] == [False, True, True]
    assert not seen[-1], "it has become slower for good"


def test_a_store_that_is_but_a_little_nearer_is_not_worth_its_work(autojump_clock: MockClock) -> None:
    destaging = Destaging(FakeStore().store, HeldData(1 << 20), trio.lowlevel.ParkingLot())
    destaging._store_s = 1.0
    destaging.note_answer(1.9)
    seen = [destaging.answers_first]
    destaging.forget_answers()
    destaging._store_s = 1.0
    destaging.note_answer(2.1)
    assert [*seen, destaging.answers_first] == [True, False]
