"""Waits end with their timeout, or all at once where they are in vain."""

import pytest
import trio
from trio.testing import MockClock

from fusemirror.mirror.waits import Waits


async def test_a_wait_has_its_timeout(autojump_clock: MockClock) -> None:
    waits, began = Waits(), trio.current_time()
    with waits.limited(3):
        await trio.sleep_forever()
    assert trio.current_time() - began == 3


async def test_all_that_wait_end_once_it_is_in_vain_and_nothing_waits_from_then_on(
    autojump_clock: MockClock,
) -> None:
    waits, ended = Waits(), []

    async def wait() -> None:
        with waits.limited(100):
            await trio.sleep_forever()
        ended.append(trio.current_time() - began)

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.sleep(2)
        waits.tell(in_vain=True)
    await wait()
    assert ended == [2, 2, 2, 2]


@pytest.mark.parametrize("in_vain", [False, True])
async def test_what_need_not_wait_has_its_result_all_the_same(in_vain: bool) -> None:
    waits, result = Waits(), 0
    waits.tell(in_vain=in_vain)
    with waits.limited(1):
        result = 7
    assert result == 7


async def test_it_is_waited_again_when_it_is_not_in_vain_any_more(autojump_clock: MockClock) -> None:
    waits, began = Waits(), trio.current_time()
    waits.tell(in_vain=True)
    waits.tell(in_vain=False)
    with waits.limited(1):
        await trio.sleep_forever()
    assert trio.current_time() - began == 1
