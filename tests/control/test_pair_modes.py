"""The modes of the pair: each host tells its own when a link begins, and when they change."""

from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from fusemirror.control.pair_modes import PairModes
from fusemirror.protocol.messages import Modes
from fusemirror.settings import Communication, Fence

ONE, OTHER = Modes(Fence.NEVER, Communication.LMDB), Modes(Fence.DATA, Communication.LMDB)


@pytest.mark.parametrize(("takes", "expected"), [(True, [ONE, OTHER]), (False, [])])
async def test_they_are_told_to_a_peer_that_takes_them(takes: bool, expected: list[Modes]) -> None:
    sent: list[Modes] = []
    link: Any = SimpleNamespace(
        peer=SimpleNamespace(takes_modes=takes), mirror=SimpleNamespace(send=sent.append)
    )
    modes = PairModes()
    modes.set(ONE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(modes.tell, link)
        await trio.testing.wait_all_tasks_blocked()
        assert sent == expected[:1]
        modes.set(OTHER)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert sent == expected


async def test_what_was_heard_last_counts() -> None:
    modes = PairModes()
    assert modes.peer is None
    modes.hear(ONE)
    modes.hear(OTHER)
    assert modes.peer == OTHER
