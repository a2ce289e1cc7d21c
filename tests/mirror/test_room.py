"""Room: the primary hears in time how much the subvolume may still take, and not oftener than it must."""

from pathlib import Path

import pytest

from fusemirror.change import WriteChange
from fusemirror.channel.session import Session
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber
from fusemirror.limits import GIB, KIB, MIB, SPACE_RESERVE_BYTES_MAX, SPACE_TOLD_BYTES_MAX
from fusemirror.mirror.room import RoomTeller
from fusemirror.protocol.messages import AnyMessage, Room
from fusemirror.volume.space import Space, space_of
from tests.channel.conftest import SessionPair
from tests.volume.test_space import Disk

CHANGE = WriteChange(ChangeNumber(1), NO_REQUEST, 0, InodeNumber(2), 0, 1020 * KIB)
assert space_of(CHANGE) == MIB


@pytest.fixture
def disk() -> Disk:
    return Disk(4 * GIB)


async def told(primary: Session, count: int) -> list[AnyMessage]:
    """The next messages, however they come together."""
    messages: list[AnyMessage] = []
    while len(messages) < count:
        messages += [message for message, _ in await primary.receive()]
    return messages


async def test_much_room_is_told_once_and_again_when_half_is_taken(
    memory_sessions: SessionPair, disk: Disk
) -> None:
    primary, backup = memory_sessions
    teller = RoomTeller(Space(Path("/volume"), disk.statvfs))
    teller.begin(backup)
    taken = SPACE_TOLD_BYTES_MAX // 2
    for _ in range(taken // MIB):
        teller.tell(backup)
        teller.tell_if_due(backup)
        teller.take(CHANGE)
    teller.tell_if_due(backup)
    assert await told(primary, 2) == [Room(SPACE_TOLD_BYTES_MAX), Room(taken + SPACE_TOLD_BYTES_MAX)]


async def test_a_disk_that_others_fill_and_free_is_told_when_it_is_looked_at(
    memory_sessions: SessionPair, disk: Disk
) -> None:
    primary, backup = memory_sessions
    teller = RoomTeller(Space(Path("/volume"), disk.statvfs))
    for free in (SPACE_RESERVE_BYTES_MAX + 3 * MIB, 0, 4 * GIB):
        disk.free_bytes = free
        teller.tell(backup)
    assert await told(primary, 3) == [
        Room(3 * MIB),
        Room(0),
        Room(SPACE_TOLD_BYTES_MAX),
    ]


async def test_what_was_taken_before_counts_no_more_once_it_has_caught_up(
    memory_sessions: SessionPair, disk: Disk
) -> None:
    primary, backup = memory_sessions
    teller = RoomTeller(Space(Path("/volume"), disk.statvfs))
    teller.take(CHANGE)
    teller.begin(backup)
    assert await told(primary, 1) == [Room(SPACE_TOLD_BYTES_MAX)]
