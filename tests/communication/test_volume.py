"""What every kind of communication volume does: order, room, and when the store hears of a request.

`DictVolume` shows what its store is asked to do; the three real kinds run the same tests of behaviour.
"""

import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from fusemirror.communication.opening import Stores
from fusemirror.communication.staged import Staged
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.identifiers import InodeNumber, RequestId
from fusemirror.limits import DESTAGE_AFTER_S, DESTAGE_BATCH_BYTES_MAX, MIB, STAGED_REQUEST_BYTES
from fusemirror.operations import Write
from fusemirror.protocol.calls import Flush
from fusemirror.protocol.codec import encode
from fusemirror.protocol.messages import Request
from fusemirror.seams import Seams
from fusemirror.settings import Communication
from tests.volume.conftest import counting_seams

CAPACITY = 100
MEMORY = 1 << 24
DURABLE = (Communication.LMDB, Communication.SUBVOLUME)
BOUNDED = (Communication.LMDB, Communication.MEMORY)
"""The subvolume's disk is the only bound of the other."""


class DictVolume(CommunicationVolume):
    """The smallest store there is."""

    kind = "dict"

    def __init__(self, capacity_bytes: int = CAPACITY, memory_bytes: float = MEMORY) -> None:
        super().__init__(capacity_bytes, memory_bytes, counting_seams())
        self.stored: dict[int, tuple[bytes, bytes]] = {}
        self.writes = 0

    async def _store(self, entries: Iterable[tuple[int, bytes, bytes]], ended: Iterable[int]) -> None:
        await trio.lowlevel.checkpoint()
        self.writes += 1
        self.stored.update({serial: (request, data) for serial, request, data in entries})
        for serial in ended:
            del self.stored[serial]

    def _read(self, serial: int, start: int, end: int) -> bytes:
        return self.stored[serial][1][start:end]

    def stored_count(self) -> int:
        return len(self.stored)

    def close(self) -> None:
        """Nothing to release."""


def request(number: int, *, kept: bool = False, inode: int = 2) -> Request:
    return Request(RequestId(b"%016d" % number), Write(InodeNumber(inode), number), kept)


Open = Callable[..., CommunicationVolume]


@pytest.fixture(params=list(Communication), ids=str)
def kind(request: pytest.FixtureRequest) -> Communication:
    chosen: Communication = request.param
    return chosen


@pytest.fixture
def opened(kind: Communication, tmp_path: Path) -> Iterator[Open]:
    """Opens the volume of the kind that is tested; the second time as after the end of the process."""
    volumes: list[CommunicationVolume] = []

    def open_it(
        capacity_bytes: int = 1 << 24, seams: Seams | None = None, memory_bytes: int = MEMORY
    ) -> CommunicationVolume:
        for volume in volumes:
            volume.close()
        volumes[:] = [
            Stores(tmp_path, capacity_bytes, memory_bytes, seams or counting_seams()).open_kind(kind)
        ]
        return volumes[0]

    yield open_it
    for volume in volumes:
        volume.close()


@asynccontextmanager
async def running(volume: CommunicationVolume) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(volume.run)
        yield
        nursery.cancel_scope.cancel()


async def all_ended(volume: CommunicationVolume) -> None:
    """Return when every request has ended, and the store holds none."""
    while len(volume) or volume.destaging.in_store:
        await volume.ended.waiting.park()


def stage(volume: CommunicationVolume, number: int, size: int = 10) -> Staged:
    return volume.stage(request(number), bytes(size))


def retire(volume: CommunicationVolume, number: int) -> None:
    volume.retire(request(number).identity)


def bytes_below(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


async def noted(awaitable: Awaitable[None], name: str, done: list[str]) -> None:
    await awaitable
    done.append(name)


# --- in memory --------------------------------------------------------------------------------------------


async def test_requests_are_pending_in_the_order_in_which_they_were_staged(
    opened: Open, mock_clock: MockClock
) -> None:
    volume = opened()
    staged = []
    for number in (3, 1, 2):
        staged.append(stage(volume, number))
        mock_clock.jump(1)
    assert volume.pending() == staged
    assert [each.serial for each in staged] == sorted(each.serial for each in staged)
    assert volume.order.oldest_since == staged[0].since
    retire(volume, 3)
    assert volume.pending() == staged[1:]
    assert volume.order.oldest_since == staged[1].since == staged[0].since + 1


async def test_a_request_is_found_by_its_name_until_it_is_retired(opened: Open) -> None:
    volume = opened()
    staged = volume.stage(request(1), b"data")
    assert volume.find(request(1).identity) is staged
    assert volume.find(request(2).identity) is None
    assert (staged.request, staged.data, staged.retired) == (request(1), b"data", False)
    retire(volume, 1)
    assert staged.retired
    assert volume.find(request(1).identity) is None
    assert len(volume) == 0
    assert volume.order.oldest_since is None


async def test_retiring_twice_or_what_was_never_staged_counts_nothing(opened: Open) -> None:
    volume = opened()
    stage(volume, 1)
    for number in (1, 1, 2):
        retire(volume, number)
    assert (volume.pending_bytes, volume.staged_total, volume.ended.total) == (0, 1, 1)


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 9))))
async def test_pending_bytes_are_those_of_what_is_pending(steps: list[tuple[bool, int, int]]) -> None:
    volume = DictVolume()
    for begins, number, size in steps:
        if not begins:
            retire(volume, number)
        elif volume.find(request(number).identity) is None:
            stage(volume, number, size)
        assert volume.pending_bytes == sum(staged.data_bytes for staged in volume.pending())
        assert len(volume) == volume.staged_total - volume.ended.total == len(volume.pending())


# --- room -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOUNDED, ids=str, indirect=True)
@pytest.mark.parametrize(("held", "more", "waits"), [(0, 1000, False), (60, 40, False), (60, 41, True)])
async def test_who_does_not_fit_waits_except_at_an_empty_volume(
    opened: Open, held: int, more: int, waits: bool
) -> None:
    volume, done = opened(CAPACITY), list[str]()
    if held:
        stage(volume, 1, held)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(noted, volume.wait_room(more), "room", done)
        await wait_all_tasks_blocked()
        assert bool(done) is not waits
        retire(volume, 1)
    assert done == ["room"]


@pytest.mark.parametrize("kind", BOUNDED, ids=str, indirect=True)
async def test_room_for_a_part_is_no_room(opened: Open) -> None:
    volume, done = opened(CAPACITY), list[str]()
    stage(volume, 1, 10)
    stage(volume, 2, 90)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(noted, volume.wait_room(20), "room", done)
        await wait_all_tasks_blocked()
        retire(volume, 1)
        await wait_all_tasks_blocked()
        assert not done
        retire(volume, 2)


@pytest.mark.parametrize("kind", BOUNDED, ids=str, indirect=True)
@pytest.mark.parametrize("wait", [lambda volume: volume.wait_room(50), CommunicationVolume.wait_empty])
async def test_everyone_who_waits_is_woken(
    opened: Open, wait: Callable[[CommunicationVolume], Awaitable[None]]
) -> None:
    volume, done = opened(CAPACITY), list[str]()
    stage(volume, 1, CAPACITY)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for name in ("first", "second", "third"):
                nursery.start_soon(noted, wait(volume), name, done)
                await wait_all_tasks_blocked()
            retire(volume, 1)
    assert sorted(done) == ["first", "second", "third"]


async def test_empty_means_that_all_requests_have_ended(opened: Open) -> None:
    volume, done = opened(CAPACITY), list[str]()
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


@pytest.mark.parametrize("kind", DURABLE, ids=str, indirect=True)
async def test_who_does_not_fit_into_memory_waits_until_the_store_has_what_is_there(
    opened: Open, autojump_clock: MockClock
) -> None:
    volume, done = opened(memory_bytes=MIB), list[str]()
    stage(volume, 1, 400_000)
    stage(volume, 2, 400_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(noted, volume.wait_room(400_000), "room", done)
        await trio.sleep(1)
        assert not done
        await nursery.start(volume.run)
        await trio.sleep(1)
        assert done == ["room"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", BOUNDED, ids=str, indirect=True)
async def test_raised_bounds_wake_who_waits_and_lowered_ones_make_others_wait(opened: Open) -> None:
    volume, done = opened(CAPACITY), list[str]()
    stage(volume, 1, CAPACITY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(noted, volume.wait_room(50), "room", done)
        await wait_all_tasks_blocked()
        assert not done
        volume.configure(2 * CAPACITY, MEMORY)
    assert done == ["room"]
    volume.configure(10, MEMORY)
    assert volume.pending_bytes == CAPACITY
    assert not volume.has_room(0)
    retire(volume, 1)
    assert volume.has_room(0)


# --- what does not fit into memory ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DURABLE, ids=str, indirect=True)
async def test_a_backlog_takes_a_bounded_part_of_memory_and_is_read_back(
    opened: Open, autojump_clock: MockClock
) -> None:
    """The ratio of the issue, 10 GiB in 200 MiB, in counted bytes."""
    size, count, memory_bytes = 100_000, 400, 800_000
    volume = opened(1 << 30, memory_bytes=memory_bytes)

    def data(number: int) -> bytes:
        return b"%8d" % number * (size // 8)

    async with running(volume):
        for number in range(count):
            with trio.fail_after(60):
                await volume.wait_room(size)
            await volume.stage(request(number, kept=True), data(number)).answer.wait()
    assert volume.pending_bytes == count * size >= 50 * memory_bytes
    assert volume.held.peak_bytes <= memory_bytes
    volume = opened(1 << 30, memory_bytes=memory_bytes)  # the next mount finds it, and reads no data for that
    assert (volume.pending_bytes, volume.held.read_back_total) == (count * size, 0)
    pending = volume.pending()
    assert volume.data_of(pending[7], 16, 24) == b"%8d" % 7
    for number in reversed(range(count)):
        assert volume.data_of(pending[number]) == data(number)
    for number in range(count):
        await volume.read_ahead(pending[number:], 2 * size)
        assert pending[number].data == data(number)
        assert volume.held.bytes <= count * STAGED_REQUEST_BYTES + 2 * size
        retire(volume, number)
    assert (volume.pending_bytes, volume.held.bytes) == (0, 0)


@pytest.mark.parametrize("kind", DURABLE, ids=str, indirect=True)
async def test_what_was_sent_is_let_go_of_again_and_what_ended_is_not_read(
    opened: Open, autojump_clock: MockClock
) -> None:
    volume = opened()
    async with running(volume):
        for number in (1, 2):
            await volume.stage(request(number, kept=True), bytes(100)).answer.wait()
    volume = opened(memory_bytes=100)
    first, second = volume.pending()
    await volume.read_ahead([first], 100)
    volume.held.spare(first)
    assert first.data is None
    retire(volume, 1)
    await volume.read_ahead([first, second], 200)
    assert (first.data, second.data) == (None, bytes(100))


@pytest.mark.parametrize("kind", DURABLE, ids=str, indirect=True)
async def test_what_the_store_has_lost_is_an_error_of_the_disk(
    opened: Open, tmp_path: Path, kind: Communication, autojump_clock: MockClock
) -> None:
    volume = opened()
    async with running(volume):
        await volume.stage(request(1, kept=True), bytes(100)).answer.wait()
    volume = opened(memory_bytes=100)
    (staged,) = volume.pending()
    volume._store_blocking([], [staged.serial] if kind is Communication.LMDB else 1 << 40)  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="cannot be read back") as caught:
        volume.data_of(staged)
    assert caught.value.errno == errno.EIO


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
    assert (volume.destaging.total, volume.writes) == (2, 1)
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
    assert volume.destaging.total == volume.stored_count() == 20
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
    assert volume.destaging.total == 1
    assert volume.stored_count() == 0


async def test_an_idle_volume_sleeps(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    volume = DictVolume()
    await nursery.start(volume.run)
    await trio.sleep(80_000)  # a task that polled would take this for ever
    stage(volume, 1)
    await trio.sleep(DESTAGE_AFTER_S * 3)
    assert volume.stored_count() == 1


# --- kept requests ----------------------------------------------------------------------------------------


async def test_a_kept_request_is_acknowledged_when_it_is_held_and_stays_pending(
    opened: Open, autojump_clock: MockClock
) -> None:
    volume = opened()
    async with running(volume):
        staged = volume.stage(request(1, kept=True), b"data")
        with trio.fail_after(DESTAGE_AFTER_S * 0.9):  # it does not wait for others
            assert await staged.answer.wait() == InodeNumber(2)
        assert staged.acknowledged
        assert volume.pending() == [staged]


@pytest.mark.parametrize("kind", DURABLE, ids=str, indirect=True)
async def test_no_kept_request_is_acknowledged_before_the_store_has_it(
    opened: Open, autojump_clock: MockClock
) -> None:
    storing, may_end = trio.Event(), trio.Event()

    async def run_when_told(function: Callable[..., Any], *args: Any) -> Any:
        storing.set()
        await may_end.wait()
        return function(*args)

    volume = opened(seams=Seams(run_blocking=run_when_told, fdatasync=lambda _: None))
    async with running(volume):
        staged = volume.stage(request(1, kept=True), b"data")
        await storing.wait()
        await trio.sleep(1)
        assert not staged.acknowledged
        may_end.set()
        await staged.answer.wait()
        assert staged.acknowledged


async def test_what_comes_together_is_made_durable_by_one_commit(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    volume = DictVolume(1 << 20)
    await nursery.start(volume.run)
    await wait_all_tasks_blocked()
    staged = [volume.stage(request(number, kept=True), b"data") for number in range(20)]
    for each in staged:
        await each.answer.wait()
    assert volume.writes == 1


class SlowVolume(DictVolume):
    """Its disk takes a while, and another while when it has become slower."""

    def __init__(self, commit_s: float) -> None:
        super().__init__(1 << 20)
        self.commit_s = commit_s

    async def _store(self, entries: Iterable[tuple[int, bytes, bytes]], ended: Iterable[int]) -> None:
        await trio.sleep(self.commit_s)
        await super()._store(entries, ended)


async def test_programs_that_write_at_once_share_their_commits(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Without a moment's patience one of them would have every second commit for itself."""
    volume, programs, writes = SlowVolume(0.0005), 4, 25
    await nursery.start(volume.run)

    async def write(first: int) -> None:
        for number in range(first, first + writes):
            await volume.stage(request(number, kept=True), b"data").answer.wait()
            await trio.sleep(0.0001)

    async with trio.open_nursery() as writing:
        for program in range(programs):
            writing.start_soon(write, program * writes)
            await trio.sleep(0.0001)
    assert volume.writes <= writes + 5


async def test_a_program_that_writes_alone_after_others_waits_but_a_moment(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    volume = SlowVolume(0.0005)
    await nursery.start(volume.run)
    for staged in [volume.stage(request(number, kept=True), b"data") for number in range(4)]:
        await staged.answer.wait()
    with trio.fail_after(0.002):
        await volume.stage(request(5, kept=True), b"data").answer.wait()
    with trio.fail_after(0.0006):
        await volume.stage(request(6, kept=True), b"data").answer.wait()


async def send_and_answer(volume: CommunicationVolume, number: int, answer_s: float) -> Staged:
    """A kept request whose answer comes so late, if its program has not been told before."""
    staged = volume.stage(request(number, kept=True), b"data")
    staged.sent_at = trio.current_time()
    await trio.sleep(answer_s)
    volume.retire(staged.request.identity)
    staged.answer.resolve(InodeNumber(0))
    return staged


async def test_where_the_primary_answers_before_the_disk_the_disk_is_spared(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    volume = SlowVolume(commit_s=0.004)
    await nursery.start(volume.run)
    for number in range(20):
        staged = await send_and_answer(volume, number, 0.001)
    assert volume.destaging.answers_first
    assert not staged.acknowledged, "the answer came first"
    await trio.sleep(1)
    assert volume.writes <= 3, "the first, and its end"


async def test_a_disk_that_is_spared_is_tried_again_seldom(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Each time a program waits for it as long as for many answers."""
    volume = SlowVolume(commit_s=0.004)
    await nursery.start(volume.run)
    for number in range(1000):
        await send_and_answer(volume, number, 0.001)
    assert volume.writes <= 4, "the first, one more, and their ends"


async def test_a_primary_that_answers_no_more_is_not_waited_for(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    volume = SlowVolume(commit_s=0.004)
    await nursery.start(volume.run)
    for number in range(20):
        await send_and_answer(volume, number, 0.001)
    with trio.fail_after(3 * DESTAGE_AFTER_S):
        await volume.stage(request(21, kept=True), b"data").answer.wait()
    with trio.fail_after(0.005):
        await volume.stage(request(22, kept=True), b"data").answer.wait()
    assert not volume.destaging.answers_first


async def test_a_large_write_does_not_say_how_long_a_small_one_takes(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    volume = SlowVolume(commit_s=0.050)
    await nursery.start(volume.run)
    await volume.stage(request(1, kept=True), bytes(MIB)).answer.wait()
    volume.commit_s = 0.0005
    for number in range(2, 20):
        staged = await send_and_answer(volume, number, 0.002)
        assert staged.acknowledged, "by the disk, which is nearer"


async def test_without_a_link_no_answer_is_expected(autojump_clock: MockClock) -> None:
    volume = SlowVolume(commit_s=0.004)
    volume.destaging._store_s, volume.destaging._answer_s = 2.0, 1.0
    volume.doubt_sent()
    assert not volume.destaging.answers_first


async def test_a_disk_that_was_spared_is_tried_again_one_day(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    volume = SlowVolume(commit_s=0.004)
    await nursery.start(volume.run)
    for number in range(5):
        staged = await send_and_answer(volume, number, 0.001)
    assert not staged.acknowledged
    volume.commit_s = 0.0001
    number = 5
    while volume.destaging.answers_first:
        await send_and_answer(volume, number, 0.001)
        number += 1
        assert number < 5000, "it is not tried again"
    staged = await send_and_answer(volume, number, 0.001)
    assert staged.acknowledged


async def test_only_kept_writes_of_an_inode_are_told_of_it(opened: Open) -> None:
    volume = opened()
    kept = [volume.stage(request(number, kept=True), b"data") for number in (1, 2)]
    volume.stage(request(3), b"data")
    volume.stage(request(4, kept=True, inode=3), b"data")
    assert list(volume.kept.of(InodeNumber(2))) == kept
    retire(volume, 1)
    assert list(volume.kept.of(InodeNumber(2))) == kept[1:]
    retire(volume, 2)
    assert list(volume.kept.of(InodeNumber(2))) == []


async def test_waiting_for_the_writes_of_an_inode_is_not_for_those_that_came_later(opened: Open) -> None:
    volume, done = opened(), list[str]()
    for number in (1, 2):
        volume.stage(request(number, kept=True), b"data")
    last = volume.kept.newest(InodeNumber(2))
    volume.stage(request(3, kept=True), b"data")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(noted, volume.kept.wait_ended(InodeNumber(2), last), "ended", done)
        for number in (2, 1):
            await wait_all_tasks_blocked()
            assert not done
            retire(volume, number)
    assert done == ["ended"]


async def test_a_request_that_others_overtook_may_have_taken_effect(opened: Open) -> None:
    volume = opened()
    for number in (1, 2, 3):
        volume.stage(request(number, kept=True), b"data")
    assert volume.kept.newest_in_doubt(InodeNumber(2)) == 0
    retire(volume, 2)
    assert volume.kept.newest_in_doubt(InodeNumber(2)) == 1


# --- after the end of the process -----------------------------------------------------------------------


async def test_kept_requests_survive_the_process_in_their_order_unless_only_memory_held_them(
    opened: Open, kind: Communication, autojump_clock: MockClock
) -> None:
    volume = opened()
    async with running(volume):
        for number in (3, 1, 2, 5):
            await volume.stage(request(number, kept=True), b"data of %d" % number).answer.wait()
        volume.stage(request(4), b"nobody was told")
        retire(volume, 3)
        await trio.sleep(5 * DESTAGE_AFTER_S)
    again = opened()
    found = [(staged.request, again.data_of(staged)) for staged in again.pending()]
    if kind is Communication.MEMORY:
        assert found == []
        return
    assert found == [(request(number, kept=True), b"data of %d" % number) for number in (1, 2, 5)]
    assert all(staged.acknowledged and staged.in_doubt for staged in again.pending())
    assert again.pending_bytes == sum(len(data) for _, data in found)


async def test_a_call_that_the_version_before_staged_is_discarded() -> None:
    volume = DictVolume()
    call = encode(Request(RequestId(b"%016d" % 7), Flush(InodeNumber(2))))
    kept = encode(request(8, kept=True))
    assert volume._take_up([(7, call, 0), (8, kept, 4)]) == [7]
    assert [staged.serial for staged in volume.pending()] == [8]


async def test_what_a_store_lists_in_any_order_is_taken_up_in_the_order_in_which_it_was_asked() -> None:
    volume = DictVolume()
    entries = [(number, encode(request(number, kept=True)), 4) for number in (9, 7, 8)]
    assert volume._take_up(entries) == []
    assert [staged.serial for staged in volume.pending()] == [7, 8, 9]
    assert volume.order.newest == 9


@pytest.mark.parametrize("kind", DURABLE, ids=str, indirect=True)
async def test_what_is_staged_after_a_restart_comes_after_what_was_taken_up(
    opened: Open, autojump_clock: MockClock
) -> None:
    for number in range(4):
        volume = opened()
        async with running(volume):
            await volume.stage(request(number, kept=True), b"data").answer.wait()
    assert [staged.request for staged in opened().pending()] == [request(n, kept=True) for n in range(4)]


@pytest.mark.parametrize("kind", DURABLE, ids=str, indirect=True)
async def test_what_ended_does_not_come_back_once_it_is_no_longer_live(
    opened: Open, autojump_clock: MockClock
) -> None:
    """`oldest_live` lets the primary forget: so nothing before it may ever be taken up again."""
    volume = opened()
    async with running(volume):
        for number in range(12):
            await volume.stage(request(number, kept=True), bytes(9)).answer.wait()
        for number in (4, 1, 0, 2):
            retire(volume, number)
            live = volume.order.oldest_live
            assert live is not None
            assert live <= request(number).identity
        await trio.sleep(5 * DESTAGE_AFTER_S)
        assert volume.order.oldest_live == request(3).identity
    again = opened()
    assert again.pending()[0].request.identity == request(3).identity
    async with running(again):
        for staged in again.pending():
            again.retire(staged.request.identity)
        await all_ended(again)
        assert again.order.oldest_live is None
        assert again.stored_count() == 0
    assert not opened().pending()


@pytest.mark.parametrize("kind", DURABLE, ids=str, indirect=True)
async def test_the_store_frees_what_has_ended(
    opened: Open, kind: Communication, tmp_path: Path, autojump_clock: MockClock
) -> None:
    volume = opened(1 << 30)
    peak_bytes = 0
    async with running(volume):
        for number in range(120):
            await volume.stage(request(number, kept=True), bytes(1 << 20)).answer.wait()
            retire(volume, number - 3)
            peak_bytes = max(peak_bytes, bytes_below(tmp_path))
    assert peak_bytes < 64 << 20


@pytest.mark.parametrize("kind", [Communication.SUBVOLUME], ids=str, indirect=True)
async def test_what_a_crash_left_half_written_is_cut_off(
    kind: Communication, tmp_path: Path, autojump_clock: MockClock
) -> None:
    volume = Stores(tmp_path, 1 << 24, MEMORY, counting_seams()).open_kind(kind)
    async with running(volume):
        for number in (1, 2):
            await volume.stage(request(number, kept=True), b"data").answer.wait()
    volume.close()
    (path,) = (tmp_path / "staged").glob("*.requests")
    whole = path.read_bytes()
    for length in range(len(whole) // 2, len(whole)):
        path.write_bytes(whole[:length])
        again = Stores(tmp_path, 1 << 24, MEMORY, counting_seams()).open_kind(kind)
        async with running(again):
            assert len(again) <= 1
            await again.stage(request(3, kept=True), b"data").answer.wait()
        again.close()
        last = Stores(tmp_path, 1 << 24, MEMORY, counting_seams()).open_kind(kind)
        assert last.pending()[-1].request == request(3, kept=True)
        last.close()


# --- another kind -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", list(Communication), ids=str)
async def test_another_kind_is_used_only_once_the_one_before_holds_nothing(
    tmp_path: Path, wanted: Communication, autojump_clock: MockClock
) -> None:
    for before in DURABLE:
        directory = tmp_path / before
        directory.mkdir()
        seams = counting_seams()
        kind, volume = Stores(directory, 1 << 24, MEMORY, seams).open_wanted(before)
        assert kind is before
        async with running(volume):
            await volume.stage(request(1, kept=True), b"data").answer.wait()
        volume.close()
        kind, volume = Stores(directory, 1 << 24, MEMORY, seams).open_wanted(wanted)
        assert kind is before
        async with running(volume):
            assert [volume.data_of(staged) for staged in volume.pending()] == [b"data"]
            retire(volume, 1)
            await all_ended(volume)
        volume.close()
        kind, volume = Stores(directory, 1 << 24, MEMORY, seams).open_wanted(wanted)
        assert kind is wanted
        volume.close()
