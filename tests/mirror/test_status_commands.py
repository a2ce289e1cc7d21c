"""Commands that were sent ahead of data: each is answered once, by a word or by the change itself."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusemirror.identifiers import ChangeNumber
from fusemirror.mirror.status_commands import StatusCommands
from fusemirror.protocol.messages import StatusTaken

TWO, FIVE, SEVEN = ChangeNumber(2), ChangeNumber(5), ChangeNumber(7)


async def waited_for(commands: StatusCommands, number: ChangeNumber, seen: list[tuple[int, bool]]) -> None:
    seen.append((number, await commands.taken(number)))


async def test_the_word_of_one_answers_no_other() -> None:
    commands, seen = StatusCommands(), list[tuple[int, bool]]()
    commands.sent(TWO)
    commands.sent(FIVE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waited_for, commands, TWO, seen)
        nursery.start_soon(waited_for, commands, FIVE, seen)
        await wait_all_tasks_blocked()
        commands.answered(StatusTaken(FIVE))
        commands.answered(StatusTaken(SEVEN))  # which was not asked
        await wait_all_tasks_blocked()
        assert seen == [(FIVE, True)]
        commands.answered(StatusTaken(TWO))
    assert seen == [(FIVE, True), (TWO, True)]


async def test_what_is_applied_has_had_its_status() -> None:
    commands, seen = StatusCommands(), list[tuple[int, bool]]()
    for number in (TWO, FIVE, SEVEN):
        commands.sent(number)
    async with trio.open_nursery() as nursery:
        for number in (TWO, FIVE, SEVEN):
            nursery.start_soon(waited_for, commands, number, seen)
        await wait_all_tasks_blocked()
        commands.applied(FIVE)
        await wait_all_tasks_blocked()
        assert sorted(seen) == [(TWO, True), (FIVE, True)]
        commands.end()
    assert seen[-1] == (SEVEN, False)


async def test_nobody_waits_for_what_was_not_sent() -> None:
    with trio.fail_after(1):
        assert not await StatusCommands().taken(TWO)


def test_they_are_sent_in_the_order_of_changes() -> None:
    commands = StatusCommands()
    commands.sent(FIVE)
    with pytest.raises(AssertionError, match="order"):
        commands.sent(TWO)
