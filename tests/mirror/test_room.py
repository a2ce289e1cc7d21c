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
    SPACE_TOLD_BYTES_MAX,
)
from fusemirror.mirror.room import RoomTeller
from fusemirror.protocol.messages import AnyMessage, Room
from fusemirror.volume.space import Space, space_of
from tests.channel.conftest import SessionPair
from tests.volume.test_space import Disk

CHANGE = WriteChange(ChangeNumber(1), NO_REQUEST, 0, InodeNumber(2), 0, 1020 * KIB)
assert space_of(CHANGE) == MIB
CREATED = NamespaceChange(ChangeNumber(1), NO_REQUEST, 0, InodeNumber(2), ())
INODES = 10_000 - SPACE_RESERVE_INODES
"""Of the disk of these tests, above the reserve."""


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
    assert await told(primary, 2) == [
        Room(SPACE_TOLD_BYTES_MAX, inodes=INODES),
        Room(taken + SPACE_TOLD_BYTES_MAX, inodes=INODES),
    ]


async def test_a_disk_that_others_fill_and_free_is_told_when_it_is_looked_at(
    memory_sessions: SessionPair, disk: Disk
) -> None:
    primary, backup = memory_sessions
    teller = RoomTeller(Space(Path("/volume"), disk.statvfs))
    for free in (SPACE_RESERVE_BYTES_MAX + 3 * MIB, 0, 4 * GIB):
        disk.free_bytes = free
        teller.tell(backup)
    assert await told(primary, 3) == [
        Room(3 * MIB, inodes=INODES),
        Room(0, inodes=INODES),
        Room(SPACE_TOLD_BYTES_MAX, inodes=INODES),
    ]


async def test_what_was_taken_before_counts_no_more_once_it_has_caught_up(
    memory_sessions: SessionPair, disk: Disk
) -> None:
    primary, backup = memory_sessions
    teller = RoomTeller(Space(Path("/volume"), disk.statvfs))
    teller.take(CHANGE)
    teller.begin(backup)
    assert await told(primary, 1) == [Room(SPACE_TOLD_BYTES_MAX, inodes=INODES)]


async def test_inodes_are_told_again_when_half_of_them_are_taken(
    memory_sessions: SessionPair, disk: Disk
) -> None:
    """Empty files take little else, and far more of them than the reserve has are made in a second."""
    primary, backup = memory_sessions
    teller = RoomTeller(Space(Path("/volume"), disk.statvfs))
    disk.free_inodes = SPACE_RESERVE_INODES + 100
    teller.begin(backup)
    for _ in range(50):
        teller.tell_if_due(backup)
        teller.take(CREATED)
        disk.free_inodes -= 1
    teller.take(CHANGE)  # takes none
    teller.tell_if_due(backup)
    assert await told(primary, 2) == [
        Room(SPACE_TOLD_BYTES_MAX, inodes=100),
        Room(50 * space_of(CREATED) + MIB + SPACE_TOLD_BYTES_MAX, inodes=100),
    ]
