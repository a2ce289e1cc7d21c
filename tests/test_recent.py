"""What was added stays for a while, and leaves."""

import trio
from trio.testing import MockClock

from fusemirror.recent import Recent

REST_S = 5.0


async def test_a_member_stays_for_a_rest_and_leaves_after_two(autojump_clock: MockClock) -> None:
    recent = Recent[str](REST_S)
    for begin_s in (0.0, REST_S / 2, REST_S * 0.9):
        recent.add("first")
        await trio.sleep(begin_s)
        recent.add("a")
        await trio.sleep(REST_S * 0.99)
        assert "a" in recent
        assert "b" not in recent
        await trio.sleep(REST_S * 2.01)
        assert "a" not in recent


async def test_one_that_is_added_again_stays_longer(autojump_clock: MockClock) -> None:
    recent = Recent[str](REST_S)
    for _ in range(5):
        recent.add("a")
        await trio.sleep(REST_S * 0.99)
        assert "a" in recent


async def test_beyond_what_can_be_kept_everything_is_recent(autojump_clock: MockClock) -> None:
    recent = Recent[int](REST_S, 3)
    recent.add(1)
    recent.add(2)
    assert 4 not in recent
    recent.add(3)
    assert 4 in recent
    await trio.sleep(REST_S * 3)
    assert 4 not in recent
