"""Room: the primary hears in time how much the subvolume may still take, and not oftener than it must."""

from pathlib import Path

import pytest

from fusemirror.change import NamespaceChange, WriteChange
from fusemirror.channel.session import Session
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber
from fusemirror.limits import (
    GIB,
    KIB,
    MIB,
    SPACE_RESERVE_BYTES_MAX,
    SPACE_RESERVE_INODES,
    SPACE_TOLD_STEP_BYTES,
)
from fusemirror.mirror.peer_space import PeerSpace, SpaceTeller
from fusemirror.protocol.messages import AnyMessage, Room
from fusemirror.volume.space import Space, room_of
from tests.channel.conftest import SessionPair
from tests.volume.test_space import Disk

CHANGE = WriteChange(ChangeNumber(1), NO_REQUEST, 0, InodeNumber(2), 0, 1020 * KIB)
assert room_of(CHANGE) == (MIB, 0)
CREATED = NamespaceChange(ChangeNumber(1), NO_REQUEST, 0, InodeNumber(2), ())
INODES = 10_000 - SPACE_RESERVE_INODES
"""Of the disk of these tests, above the reserve."""
DISK_BYTES = 4 * GIB
TOLD = 3 * GIB  # of it, above the reserve, in whole steps


@pytest.fixture
def disk() -> Disk:
    return Disk(DISK_BYTES)


@pytest.fixture
def teller(disk: Disk) -> SpaceTeller:
    return SpaceTeller(Space(Path("/volume"), disk.statvfs))


async def told(primary: Session, count: int) -> list[AnyMessage]:
    """The next messages, however they come together."""
    messages: list[AnyMessage] = []
    while len(messages) < count:
        messages += [message for message, _ in await primary.receive()]
    return messages


async def test_much_room_is_told_once_and_again_when_half_is_taken(
    memory_sessions: SessionPair, teller: SpaceTeller
) -> None:
    primary, backup = memory_sessions
    teller.begin(backup)
    taken = SPACE_TOLD_STEP_BYTES // 2
    for _ in range(taken // MIB):
        teller.tell(backup)
        teller.tell_if_due(backup)
        teller.take(CHANGE)
    teller.tell_if_due(backup)
    assert await told(primary, 2) == [
        Room(TOLD, inodes=INODES),
        Room(taken + TOLD, inodes=INODES),
    ]


async def test_a_disk_that_others_fill_and_free_is_told_when_it_is_looked_at(
    memory_sessions: SessionPair, disk: Disk, teller: SpaceTeller
) -> None:
    primary, backup = memory_sessions
    for free in (SPACE_RESERVE_BYTES_MAX + 3 * MIB, 0, DISK_BYTES):
        disk.free_bytes = free
        teller.tell(backup)
    assert await told(primary, 3) == [
        Room(3 * MIB, inodes=INODES),
        Room(0, inodes=INODES),
        Room(TOLD, inodes=INODES),
    ]


async def test_much_room_is_told_again_when_others_take_a_step_of_it_and_all_of_it_may_be_taken_at_once(
    memory_sessions: SessionPair, disk: Disk, teller: SpaceTeller
) -> None:
    primary, backup = memory_sessions
    teller.begin(backup)
    for _ in range(3):
        disk.free_bytes -= SPACE_TOLD_STEP_BYTES // 4
        teller.tell(backup)
    disk.free_bytes -= SPACE_TOLD_STEP_BYTES // 4
    teller.tell(backup)
    messages = await told(primary, 2)
    assert messages == [Room(TOLD, inodes=INODES), Room(TOLD - SPACE_TOLD_STEP_BYTES, inodes=INODES)]
    room = PeerSpace()
    room.begin()
    assert isinstance(messages[0], Room)
    room.told(messages[0])
    assert room.has(TOLD)
    assert not room.has(TOLD + 1)


async def test_what_was_taken_before_counts_no_more_once_it_has_caught_up(
    memory_sessions: SessionPair, teller: SpaceTeller
) -> None:
    primary, backup = memory_sessions
    teller.take(CHANGE)
    teller.begin(backup)
    assert await told(primary, 1) == [Room(TOLD, inodes=INODES)]


async def test_inodes_are_told_again_when_half_of_them_are_taken(
    memory_sessions: SessionPair, disk: Disk, teller: SpaceTeller
) -> None:
    """Empty files take little else, and far more of them than the reserve has are made in a second."""
    primary, backup = memory_sessions
    disk.free_inodes = SPACE_RESERVE_INODES + 100
    teller.begin(backup)
    for _ in range(50):
        teller.tell_if_due(backup)
        teller.take(CREATED)
        disk.free_inodes -= 1
    teller.take(CHANGE)  # takes none
    teller.tell_if_due(backup)
    assert await told(primary, 2) == [
        Room(TOLD, inodes=100),
        Room(50 * room_of(CREATED)[0] + MIB + TOLD, inodes=100),
    ]


def test_the_primary_counts_what_it_sent_against_what_it_was_told() -> None:
    room = PeerSpace()
    assert room.has(GIB, inodes=1), "nothing was told"
    room.take(CHANGE)
    room.begin()
    room.told(Room(3 * MIB, inodes=2))
    room.take(CHANGE)
    assert room.has(2 * MIB)
    assert not room.has(2 * MIB + 1)
    for _ in range(2):
        assert room.has(0, inodes=1)
        room.take(CREATED)
    assert not room.has(0, inodes=1)
    room.told(Room(-1))
    assert room.has(GIB, inodes=1), "it has told that it does not know"
