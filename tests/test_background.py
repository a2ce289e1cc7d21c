"""Background tasks: an error costs a line of the log and a pause, never the mount."""

import errno
import logging
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from fusemirror.background import Background
from fusemirror.errors import ConnectionLost, FusemirrorError, VolumeDamaged
from fusemirror.limits import BACKGROUND_PAUSE_FIRST_S, BACKGROUND_PAUSE_MAX_S

ERRORS: Sequence[Exception] = (
    FusemirrorError("record 7 of 600000 bytes after record 6"),
    VolumeDamaged("/v", "catalog: INODES 02"),
    ConnectionLost("peer", "gone"),
    OSError(errno.ENOSPC, "No space left on device"),
    ExceptionGroup("", [ExceptionGroup("", [FusemirrorError("inside a nursery")])]),
)


class Work:
    """Fails so often, then goes well, for a while each time."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error = error
        self.left = times
        self.at: list[float] = []

    async def __call__(self) -> None:
        await trio.sleep(0.001)
        self.at.append(trio.current_time())
        if self.left:
            self.left -= 1
            raise self.error
        await trio.sleep(1)


async def run_for(seconds: float, background: Background, work: Callable[[], object]) -> None:
    with trio.move_on_after(seconds):
        await background.repeat("work", work)  # type: ignore[arg-type]


@pytest.mark.expects_warnings
@pytest.mark.parametrize("error", ERRORS, ids=str)
async def test_a_failing_task_is_tried_again(
    error: Exception, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    background, work = Background(), Work(error, 3)
    await run_for(100, background, work)
    assert len(work.at) > 4
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    assert background.status(0) == []


@pytest.mark.expects_warnings
async def test_it_waits_ever_longer_and_status_says_so(autojump_clock: MockClock) -> None:
    background, work = Background(), Work(OSError(errno.EIO, "broken"), 1 << 30)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(background.repeat, "work", work)
        await trio.sleep(3600)
        (told,) = background.status(round(trio.current_time() * 1e9))
        nursery.cancel_scope.cancel()
    pauses = [after - before for before, after in pairwise(work.at)]
    assert pauses[0] < 2 * BACKGROUND_PAUSE_FIRST_S
    assert BACKGROUND_PAUSE_MAX_S <= pauses[-1] < BACKGROUND_PAUSE_MAX_S + 1
    assert all(late > early - 0.01 for early, late in pairwise(pauses))
    assert (told["task"], told["error"]) == ("work", "[Errno 5] broken")
    assert told["since"] == round(work.at[0], 3)


@pytest.mark.expects_warnings
async def test_a_task_that_has_ended_fails_no_more(autojump_clock: MockClock) -> None:
    """Those of a role end with it, and the next one may have none of that name to clear what was told."""
    background, work = Background(), Work(OSError(errno.EIO, "broken"), 1 << 30)
    await run_for(60, background, work)
    assert background.status(0) == []


@pytest.mark.expects_warnings
async def test_one_that_goes_on_for_ever_is_well_again_after_a_while(autojump_clock: MockClock) -> None:
    background, runs = Background(), 0

    async def endless() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise OSError(errno.EIO, "broken")
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(background.repeat, "endless", endless)
        await trio.sleep(BACKGROUND_PAUSE_MAX_S)
        assert len(background.status(0)) == 1
        await trio.sleep(BACKGROUND_PAUSE_MAX_S)
        assert background.status(0) == []
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("bug", [KeyError("bug"), ExceptionGroup("", [OSError(), KeyError("bug")])], ids=str)
async def test_a_bug_is_no_error_of_a_task(bug: Exception) -> None:
    with pytest.raises(type(bug)):
        await Background().repeat("work", Work(bug, 1))


async def test_what_fails_before_it_has_started_is_its_starters_to_hear() -> None:
    async def work(task_status: trio.TaskStatus[None]) -> None:
        raise OSError(errno.EADDRINUSE, "in use")

    with pytest.raises(OSError, match="in use"):
        await Background().start("work", work)


@pytest.mark.expects_warnings
async def test_what_was_started_is_started_again(autojump_clock: MockClock) -> None:
    background, runs = Background(), 0

    async def work(task_status: trio.TaskStatus[str]) -> None:
        nonlocal runs
        runs += 1
        task_status.started("listening")
        await trio.sleep(1)
        raise ConnectionLost("peer", "gone")

    async with trio.open_nursery() as nursery:
        assert await nursery.start(background.start, "work", work) == "listening"
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert runs > 2
