"""What every kind of communication volume does: order, room, and when the store hears of a request."""

from collections.abc import Awaitable, Callable, Iterable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from fusemirror.communication.volume import CommunicationVolume, Staged
from fusemirror.identifiers import InodeNumber, RequestId
from fusemirror.limits import DESTAGE_AFTER_S, DESTAGE_BATCH_BYTES_MAX
from fusemirror.operations import Write
from fusemirror.protocol.codec import encode
from fusemirror.protocol.messages import Request

CAPACITY = 100


class DictVolume(CommunicationVolume):
    """The smallest store there is."""

    def __init__(self, capacity_bytes: int = CAPACITY) -> None:
        super().__init__(capacity_bytes)
        self.stored: dict[int, tuple[bytes, bytes]] = {}
        self.writes = 0

    async def _store(self, entries: Iterable[tuple[int, bytes, bytes]], ended: Iterable[int]) -> None:
        await trio.lowlevel.checkpoint()
        self.writes += 1
        self.stored.update({serial: (request, data) for serial, request, data in entries})
        for serial in ended:
            del self.stored[serial]

    def stored_count(self) -> int:
        return len(self.stored)

    def close(self) -> None:
        """Nothing to release."""


def request(number: int) -> Request:
    return Request(RequestId(b"%d" % number), Write(InodeNumber(2), number))


def stage(volume: CommunicationVolume, number: int, size: int = 10) -> Staged:
    return volume.stage(request(number), bytes(size))


def retire(volume: CommunicationVolume, number: int) -> None:
    volume.retire(request(number).identity)


async def noted(awaitable: Awaitable[None], name: str, done: list[str]) -> None:
    await awaitable
    done.append(name)


# --- in memory --------------------------------------------------------------------------------------------


async def test_requests_are_pending_in_the_order_in_which_they_were_staged(mock_clock: MockClock) -> None:
    volume = DictVolume()
    staged = []
    for number in (3, 1, 2):
        staged.append(stage(volume, number))
        mock_clock.jump(1)
    assert volume.pending() == staged
    assert [each.serial for each in staged] == sorted(each.serial for each in staged)
    assert volume.oldest_since == staged[0].since
    retire(volume, 3)
    assert volume.pending() == staged[1:]
    assert volume.oldest_since == staged[1].since == staged[0].since + 1


async def test_a_request_is_found_by_its_name_until_it_is_retired() -> None:
    volume = DictVolume()
    staged = volume.stage(request(1), b"data")
    assert volume.find(request(1).identity) is staged
    assert volume.find(request(2).identity) is None
    assert (staged.request, staged.data, staged.retired) == (request(1), b"data", False)
    retire(volume, 1)
    assert staged.retired
    assert volume.find(request(1).identity) is None
    assert len(volume) == 0
    assert volume.oldest_since is None


async def test_retiring_twice_or_what_was_never_staged_counts_nothing() -> None:
    volume = DictVolume()
    stage(volume, 1)
    for number in (1, 1, 2):
        retire(volume, number)
    assert (volume.pending_bytes, volume.staged_total, volume.retired_total) == (0, 1, 1)


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 9))))
async def test_pending_bytes_are_those_of_what_is_pending(steps: list[tuple[bool, int, int]]) -> None:
    volume = DictVolume()
    for begins, number, size in steps:
        if not begins:
            retire(volume, number)
        elif volume.find(request(number).identity) is None:
            stage(volume, number, size)
        assert volume.pending_bytes == sum(len(staged.data) for staged in volume.pending())
        assert len(volume) == volume.staged_total - volume.retired_total == len(volume.pending())


# --- room -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("held", "more", "waits"), [(0, 1000, False), (60, 40, False), (60, 41, True)])
async def test_who_does_not_fit_waits_except_at_an_empty_volume(held: int, more: int, waits: bool) -> None:
    volume, done = DictVolume(), list[str]()
    if held:
        stage(volume, 1, held)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(noted, volume.wait_room(more), "room", done)
        await wait_all_tasks_blocked()
        assert bool(done) is not waits
        retire(volume, 1)
    assert done == ["room"]


async def test_room_for_a_part_is_no_room() -> None:
    volume, done = DictVolume(), list[str]()
    stage(volume, 1, 10)
    stage(volume, 2, 90)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(noted, volume.wait_room(20), "room", done)
        await wait_all_tasks_blocked()
        retire(volume, 1)
        await wait_all_tasks_blocked()
        assert not done
        retire(volume, 2)


@pytest.mark.parametrize("wait", [lambda volume: volume.wait_room(50), CommunicationVolume.wait_empty])
async def test_everyone_who_waits_is_woken(wait: Callable[[CommunicationVolume], Awaitable[None]]) -> None:
    volume, done = DictVolume(), list[str]()
    stage(volume, 1, CAPACITY)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for name in ("first", "second", "third"):
                nursery.start_soon(noted, wait(volume), name, done)
                await wait_all_tasks_blocked()
            retire(volume, 1)
    assert sorted(done) == ["first", "second", "third"]


async def test_empty_means_that_all_requests_have_ended() -> None:
    volume, done = DictVolume(), list[str]()
    await volume.wait_empty()
    stage(volume, 1)
    stage(volume, 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(noted, volume.wait_empty(), "empty", done)
        for number in (2, 1):
            await wait_all_tasks_blocked()
            assert not done
            retire(volume, number)
    assert done == ["empty"]


# --- destaging --------------------------------------------------------------------------------------------


async def test_a_request_that_is_answered_soon_never_reaches_the_store(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    volume = DictVolume()
    await nursery.start(volume.run)
    stage(volume, 1)
    await wait_all_tasks_blocked()
    mock_clock.jump(DESTAGE_AFTER_S * 0.9)
    await wait_all_tasks_blocked()
    retire(volume, 1)
    mock_clock.jump(DESTAGE_AFTER_S * 10)
    await wait_all_tasks_blocked()
    assert volume.writes == 0


async def test_what_waits_is_stored_after_its_time_and_forgotten_when_it_ends(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    volume = DictVolume()
    await nursery.start(volume.run)
    staged = [stage(volume, number) for number in (1, 2)]
    await trio.sleep(DESTAGE_AFTER_S * 0.5)
    assert volume.stored_count() == 0
    await trio.sleep(DESTAGE_AFTER_S * 3)
    assert volume.stored == {each.serial: (encode(each.request), each.data) for each in staged}
    assert (volume.destaged_total, volume.writes) == (2, 1)
    retire(volume, 1)
    await trio.sleep(DESTAGE_AFTER_S * 3)
    assert list(volume.stored) == [staged[1].serial]
    retire(volume, 2)
    await trio.sleep(DESTAGE_AFTER_S * 3)
    assert volume.stored_count() == 0


async def test_a_young_request_is_not_stored_along_with_an_old_one(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    volume = DictVolume()
    await nursery.start(volume.run)
    old = stage(volume, 1)
    await trio.sleep(DESTAGE_AFTER_S * 0.9)
    stage(volume, 2)
    await trio.sleep(DESTAGE_AFTER_S * 0.2)
    assert list(volume.stored) == [old.serial]


async def test_each_request_is_stored_once_in_the_order_of_staging(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    volume = DictVolume()
    await nursery.start(volume.run)
    for number in range(20):
        stage(volume, number)
        await trio.sleep(DESTAGE_AFTER_S * 0.3)
    await trio.sleep(DESTAGE_AFTER_S * 3)
    assert volume.destaged_total == volume.stored_count() == 20
    assert list(volume.stored) == [staged.serial for staged in volume.pending()]


async def test_one_transaction_is_bounded(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    volume = DictVolume(1 << 40)
    await nursery.start(volume.run)
    for number in range(5):
        stage(volume, number, DESTAGE_BATCH_BYTES_MAX // 2)
    await trio.sleep(DESTAGE_AFTER_S * 5)
    assert volume.stored_count() == 5
    assert volume.writes == 2


async def test_a_request_that_ends_while_it_is_stored_is_forgotten_by_the_store_too(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    class EndsMeanwhile(DictVolume):
        async def _store(self, entries: Iterable[tuple[int, bytes, bytes]], ended: Iterable[int]) -> None:
            retire(self, 1)
            await super()._store(entries, ended)

    volume = EndsMeanwhile()
    await nursery.start(volume.run)
    stage(volume, 1)
    await trio.sleep(DESTAGE_AFTER_S * 5)
    assert volume.destaged_total == 1
    assert volume.stored_count() == 0


async def test_an_idle_volume_sleeps(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    volume = DictVolume()
    await nursery.start(volume.run)
    await trio.sleep(80_000)  # a task that polled would take this for ever
    stage(volume, 1)
    await trio.sleep(DESTAGE_AFTER_S * 3)
    assert volume.stored_count() == 1
