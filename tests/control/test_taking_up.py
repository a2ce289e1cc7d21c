"""Taking up what was asked as the backup: many programs are answered, and others have their turn between."""

from collections import deque
from types import SimpleNamespace
from typing import Any

import trio

from fusemirror.communication.staged import Staged
from fusemirror.control.taking_up import TakingUp
from fusemirror.identifiers import ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import ANSWERS_PER_TURN
from fusemirror.mirror.window import Window
from fusemirror.operations import Write
from fusemirror.protocol.messages import Request

INODE = InodeNumber(5)
TURNS = 8
COUNT = TURNS * ANSWERS_PER_TURN


async def test_others_have_their_turn_while_many_are_answered(nursery: trio.Nursery) -> None:
    """Where nobody is waited for: what they asked for is acknowledged already."""
    host: Any = SimpleNamespace(volume=SimpleNamespace(requests_done={}))
    mirror: Any = SimpleNamespace(window=Window(ChangeNumber(COUNT)))
    none: Any = None
    staged: Any = SimpleNamespace(pending=list, retire=None)
    taking_up = TakingUp(host, mirror, none, none, none, none, none, staged)
    asked = [
        Staged(serial, Request(RequestId(b"%016d" % serial), Write(INODE, 0), True), b"x", 0.0, 0)
        for serial in range(1, COUNT + 1)
    ]
    taking_up._unanswered = deque((each, ChangeNumber(each.serial), INODE) for each in asked)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    nursery.start_soon(other)
    await taking_up._answer()
    assert turns >= TURNS - 1
    assert [await each.answer.wait() for each in asked] == [INODE] * COUNT
    nursery.cancel_scope.cancel()
