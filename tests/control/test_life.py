"""The life of one unit: who waits for its state, and what change of the role it asks for."""

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from fusemirror.control.life import RoleChange, RoleLife
from fusemirror.control.states import RoleEvent, RoleState
from fusemirror.errors import IllegalTransition, RefusedForSafety, RoleChanged


async def test_who_waits_while_it_is_parked_goes_on_with_the_next_state(autojump_clock: MockClock) -> None:
    for event in (RoleEvent.STAY, RoleEvent.RETIRE):
        life = RoleLife(RoleState.SERVING)
        woken: list[RoleState] = []

        async def wait(life: RoleLife = life, woken: list[RoleState] = woken) -> None:
            await life.until_unparked()
            woken.append(life.state)

        life.meet(RoleEvent.HAND_OVER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(1)
            assert not woken
            life.meet(event)
        assert woken == [life.state]


async def test_it_is_ready_once_and_stays_so(autojump_clock: MockClock) -> None:
    life = RoleLife(RoleState.BEGINNING)
    assert not life.is_ready()
    life.meet(RoleEvent.SUSPEND)
    with trio.move_on_after(1) as early:
        await life.until_ready()
    assert early.cancelled_caught, "it was suspended before it was ready"
    for event in (RoleEvent.STAY, RoleEvent.READY, RoleEvent.SUSPEND, RoleEvent.RETIRE):
        life.meet(event)
    await life.until_ready()
    assert life.is_ready()


def test_who_is_in_it_hears_that_it_serves_nobody() -> None:
    life = RoleLife(RoleState.SERVING)
    life.check()
    life.meet(RoleEvent.HAND_OVER)
    life.check()  # what was asked before waits
    life.meet(RoleEvent.RETIRE)
    with pytest.raises(RoleChanged):
        life.check()
    with pytest.raises(IllegalTransition):
        life.meet(RoleEvent.READY)


async def test_the_first_change_that_is_asked_for_counts_until_it_has_ended() -> None:
    life = RoleLife(RoleState.SERVING)
    first, second = RoleChange("backup", "asked for"), RoleChange("backup", "asked for again")
    assert [life.ask(first), life.ask(second)] == [first, first]
    assert await life.next_change() is first
    assert life.ask(second) is first, "it is being prepared"
    first.end(RefusedForSafety("it came to nothing"))
    assert life.ask(second) is second
    assert await life.next_change() is second


@pytest.mark.parametrize("failed", [False, True])
async def test_whoever_asked_hears_of_the_end_of_the_one_change(failed: bool) -> None:
    life, told = RoleLife(RoleState.SERVING), []

    async def ask() -> None:
        try:
            await life.ask(RoleChange("backup", "asked for")).until_done()
        except RefusedForSafety:
            told.append("refused")
        else:
            told.append("done")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        change = await life.next_change()
        for _ in range(2):  # while it is being prepared
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert not told
        change.end(RefusedForSafety("no") if failed else None)
    assert told == ["refused" if failed else "done"] * 3


async def test_a_role_that_has_gone_is_asked_nothing() -> None:
    life = RoleLife(RoleState.SERVING)
    life.meet(RoleEvent.RETIRE)
    with pytest.raises(RoleChanged):
        life.ask(RoleChange("backup", "asked for"))
