"""Threads that end before their caller goes on, and the loop that hears of it."""

import threading

import pytest
import trio
import trio.testing

from fusemirror import hot, threads
from fusemirror.limits import THREADS_MAX
from fusemirror.threads import run_in_thread


@pytest.fixture(params=["hot", "in a task"])
async def loop(request: pytest.FixtureRequest) -> None:
    if request.param == "hot":
        assert hot.install()


async def test_a_call_returns_what_the_function_does(loop: None) -> None:
    assert await run_in_thread(pow, 2, 5) == 32
    with pytest.raises(ZeroDivisionError):
        await run_in_thread(divmod, 1, 0)


async def test_a_cancelled_caller_still_waits_for_the_whole_effect(loop: None) -> None:
    began, may_end = threading.Event(), threading.Event()
    effects: list[str] = []

    def work() -> None:
        began.set()
        may_end.wait(10)
        effects.append("whole")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_in_thread, work)
        await run_in_thread(began.wait, 10)
        nursery.cancel_scope.cancel()
        may_end.set()
    assert effects == ["whole"]


async def test_what_is_cancelled_before_is_not_begun(loop: None) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await run_in_thread(pytest.fail, "it was begun")
    assert scope.cancelled_caught


async def test_one_call_after_the_other_takes_one_thread_and_those_at_once_a_few(loop: None) -> None:
    identities = {await run_in_thread(threading.get_ident) for _ in range(20)}
    assert len(identities) == 1
    there, may_end = threading.Semaphore(0), threading.Event()

    def work() -> None:
        there.release()
        may_end.wait(10)
        identities.add(threading.get_ident())

    async with trio.open_nursery() as nursery:
        for _ in range(THREADS_MAX + 5):
            nursery.start_soon(run_in_thread, work)
        for _ in range(THREADS_MAX):
            assert await trio.to_thread.run_sync(there.acquire, True, 10)
        await trio.testing.wait_all_tasks_blocked()
        assert not there.acquire(blocking=False)
        may_end.set()
    assert len(identities) == THREADS_MAX


def test_the_end_of_the_loop_leaves_no_thread() -> None:
    before = set(threading.enumerate())

    async def use() -> None:
        hot.install()
        await run_in_thread(int)
        assert set(threading.enumerate()) > before
        assert threads._threads.get() is not None

    trio.run(use)
    assert not {each for each in threading.enumerate() if each.name.startswith("blocking")} - before
