"""The role that a host has now: requests wait while it is given away, and are made anew to the next one."""

from typing import Any

import trio
from trio.testing import MockClock

from fusemirror.control.life import RoleLife
from fusemirror.control.present_role import PresentRole
from fusemirror.control.states import RoleEvent, RoleState
from fusemirror.errors import RoleChanged


class FakeRole:
    """Answers with its name while it serves."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.life = RoleLife(RoleState.SERVING)
        self.asked = 0
        self.refuses = False

    async def answer(self) -> str:
        self.asked += 1
        self.life.check()
        if self.refuses:
            raise RoleChanged
        return self.name


def ask(present: PresentRole, answers: list[str]) -> Any:
    async def asking() -> None:
        answers.append(await present.ask(lambda role: role.answer()))  # type: ignore[attr-defined]

    return asking


async def test_who_asks_while_a_role_is_given_away_hears_from_the_next(autojump_clock: MockClock) -> None:
    first, second, answers = FakeRole("first"), FakeRole("second"), list[str]()
    present = PresentRole(first)  # type: ignore[arg-type]
    first.life.meet(RoleEvent.HAND_OVER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask(present, answers))
        await trio.sleep(1)
        assert not answers
        first.life.meet(RoleEvent.RETIRE)
        present.take(second)  # type: ignore[arg-type]
    assert answers == ["second"]
    assert not first.asked, "it was parked before the unit"


async def test_who_is_in_a_unit_that_retires_asks_the_next(autojump_clock: MockClock) -> None:
    first, second, answers = FakeRole("first"), FakeRole("second"), list[str]()
    present = PresentRole(first)  # type: ignore[arg-type]
    first.life.meet(RoleEvent.RETIRE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask(present, answers))
        await trio.sleep(1)
        assert first.asked == 1, "it does not ask in a circle"
        present.take(second)  # type: ignore[arg-type]
        changed, first.life.changed = first.life.changed, trio.Event()
        changed.set()
    assert answers == ["second"]


async def test_a_role_that_stays_answers_who_waited(autojump_clock: MockClock) -> None:
    role, answers = FakeRole("stays"), list[str]()
    present = PresentRole(role)  # type: ignore[arg-type]
    role.life.meet(RoleEvent.SUSPEND)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask(present, answers))
        await trio.sleep(1)
        assert not answers
        role.life.meet(RoleEvent.STAY)
    assert answers == ["stays"]
