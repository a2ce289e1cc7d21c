"""The pace of a resync: a rate that holds on average, a pause that holds for ever, and honest progress."""

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.mirror.pace import CopyProgress, Pace

MIB = 1024 * 1024


async def test_without_a_limit_nothing_waits(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace()
    for _ in range(100):
        await pace.take(MIB)
    assert trio.current_time() == 0


@pytest.mark.parametrize("size_bytes", [MIB // 16, MIB, 8 * MIB])
async def test_the_rate_is_kept_whatever_the_size_of_the_pieces(
    autojump_clock: trio.testing.MockClock, size_bytes: int
) -> None:
    pace = Pace(rate_bytes=2 * MIB)
    taken = 0
    while taken < 64 * MIB:
        await pace.take(size_bytes)
        taken += size_bytes
    # The last piece was let go before its time is over.
    assert trio.current_time() == pytest.approx((64 * MIB - size_bytes) / (2 * MIB))


async def test_time_that_was_not_used_is_not_made_up_for(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace(rate_bytes=MIB)
    await trio.sleep(1000)
    before = trio.current_time()
    for _ in range(11):
        await pace.take(MIB)
    assert trio.current_time() - before == pytest.approx(10)


async def test_a_new_rate_counts_at_once_for_who_waits(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace(rate_bytes=1)
    await pace.take(MIB)  # the next would wait for twelve days
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pace.take, MIB)
            await trio.sleep(5)
            pace.change(rate_bytes=MIB)


async def test_a_pause_holds_until_it_ends(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace(paused=True)
    with trio.move_on_after(10_000) as waited:
        await pace.take(1)
    assert waited.cancelled_caught
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pace.take, MIB)
            nursery.start_soon(pace.wait_running)
            await trio.sleep(5)
            pace.change(paused=False)


async def test_progress_tells_the_rate_of_the_last_seconds_and_the_time_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    progress, pace = CopyProgress(), Pace()
    progress.begin(1000)
    assert progress.as_status(pace)["seconds_left"] is None
    for _ in range(5):
        await trio.sleep(1)
        assert progress.advance(100), "time to tell others"
    status = progress.as_status(pace)
    assert (status["done_bytes"], status["total_bytes"]) == (500, 1000)
    assert (status["bytes_per_second"], status["seconds_left"]) == (100, 5.0)
    for _ in range(40):  # much slower now
        await trio.sleep(1)
        progress.advance(1)
    assert progress.as_status(pace)["bytes_per_second"] == 1
    assert not progress.advance(1), "told just now"


async def test_progress_goes_on_over_the_next_link(autojump_clock: trio.testing.MockClock) -> None:
    progress = CopyProgress()
    progress.begin(1000)
    await trio.sleep(1)
    progress.advance(400)
    progress.begin(700)  # some of it was not confirmed, and some is new
    status = progress.as_status(Pace())
    assert (status["done_bytes"], status["total_bytes"]) == (400, 1100)


async def test_a_paused_resync_has_no_rate_and_no_end(autojump_clock: trio.testing.MockClock) -> None:
    progress = CopyProgress()
    progress.begin(1000)
    await trio.sleep(1)
    progress.advance(400)
    status = progress.as_status(Pace(7, paused=True))
    assert (status["bytes_per_second"], status["seconds_left"]) == (0, None)
    assert (status["paused"], status["rate_limit_bytes"]) == (True, 7)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["begin", "advance"]), st.integers(0, 1 << 40)), min_size=1, max_size=30
    )
)
def test_it_is_never_over_a_hundred_percent_whatever_is_marked_and_done(steps: list[tuple[str, int]]) -> None:
    """Regions count whole where little of them is data, and more is marked while it is copied."""

    async def walk() -> None:
        progress = CopyProgress()
        progress.begin(0)
        for step, size in steps:
            getattr(progress, step)(size)
            status = progress.as_status(Pace())
            assert 0 <= status["done_bytes"] <= status["total_bytes"]

    trio.run(walk)
