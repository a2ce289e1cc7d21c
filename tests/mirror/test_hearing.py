"""Hearing: what has its place is heard in order, and a goodbye is the end."""

from typing import Any

import pytest
import trio

from fusemirror.errors import ConnectionLost, RemoteProtocolError
from fusemirror.identifiers import ChangeNumber
from fusemirror.mirror.hearing import Hearing
from fusemirror.mirror.states import PrimaryState, Taking
from fusemirror.protocol.messages import Applied, Bye, Room
from fusemirror.volume.volume import Volume
from tests.channel.conftest import SessionPair
from tests.mirror.replicas import replica_in

PATIENCE_S = 60


@pytest.mark.parametrize("mounted", [False, True])
async def test_what_comes_before_a_goodbye_is_heard(
    volume: Volume, memory_sessions: SessionPair, autojump_clock: object, mounted: bool
) -> None:
    here, there = memory_sessions
    replica, _ = replica_in(volume, PrimaryState.NORMAL)
    heard: list[Any] = []
    there.send(Applied(ChangeNumber(1)))
    there.send(Applied(ChangeNumber(2)))
    there.send(Bye("unmounted", mounted=mounted))
    there.send(Applied(ChangeNumber(3)))
    here.heartbeat.answered_until = until = trio.current_time() + 3
    with pytest.raises(ConnectionLost, match="it said goodbye: unmounted"):
        await Hearing(replica, here, {Applied: heard.append}).run()
    assert heard == [Applied(ChangeNumber(1)), Applied(ChangeNumber(2))]
    assert replica.room.taking is Taking.LEFT
    assert (trio.current_time() >= until) is mounted, "its kernel shows nothing any more"
    assert (replica.holdings.below == 0) is not mounted


@pytest.mark.parametrize(
    ("state", "message", "why"),
    [
        (PrimaryState.HOLDING, Applied(ChangeNumber(0)), "it came when the mirror was holding"),
        (PrimaryState.NORMAL, Room(0), "it came on the wrong path"),
    ],
)
async def test_what_has_no_place_is_refused(
    volume: Volume, memory_sessions: SessionPair, state: PrimaryState, message: Any, why: str
) -> None:
    here, there = memory_sessions
    replica, _ = replica_in(volume, state)
    there.send(message)
    with trio.fail_after(PATIENCE_S), pytest.raises(RemoteProtocolError, match=why):
        await Hearing(replica, here, {Applied: lambda message: None}).run()
