"""The seams as they are in life: threads that end before their caller goes on."""

import threading

import trio

from fusemirror.seams import Seams, run_in_thread


async def test_blocking_work_runs_in_another_thread() -> None:
    assert await Seams().run_blocking(threading.get_ident) != threading.get_ident()


async def test_a_cancelled_caller_still_waits_for_the_whole_effect() -> None:
    began, may_end = threading.Event(), threading.Event()
    effects: list[str] = []

    def work() -> None:
        began.set()
        may_end.wait(10)
        effects.append("whole")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_in_thread, work)
        await trio.to_thread.run_sync(began.wait)
        nursery.cancel_scope.cancel()
        may_end.set()
    assert effects == ["whole"]


def test_the_clock_of_the_world_goes_on() -> None:
    seams = Seams()
    assert seams.now_ns() > 0
    assert len(seams.random_bytes(16)) == 16
