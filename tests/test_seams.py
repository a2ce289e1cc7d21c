"""The seams as they are in life: threads that end before their caller goes on."""

import threading

from fusemirror.seams import Seams


async def test_blocking_work_runs_in_another_thread() -> None:
    assert await Seams().run_blocking(threading.get_ident) != threading.get_ident()


def test_the_clock_of_the_world_goes_on() -> None:
    seams = Seams()
    assert seams.now_ns() > 0
    assert len(seams.random_bytes(16)) == 16
