"""Durability in both volumes: what an fsync waits for, and checkpoints in their order."""

import errno
from collections.abc import Callable
from typing import Any, cast

import pytest
import trio
import trio.testing

from fusemirror.errors import ConnectionLost, NotPermitted
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.mirror.authority import Authority
from fusemirror.mirror.durability import Durability
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.states import PrimaryEvent, PrimaryState
from fusemirror.mirror.stream import Stream
from fusemirror.protocol.messages import Checkpoint, FlushImage, ForgetMarks, Reply
from fusemirror.settings import Fence
from fusemirror.volume.volume import Volume
from fusemirror.witness.interface import Witness
from fusemirror.witness.quorum import QuorumGrant
from tests.mirror.replicas import FakeSession, replica_in

FILE = InodeNumber(7)
PATIENCE_S = 30


def durability_in(
    volume: Volume, state: PrimaryState, *, quorum: QuorumGrant | None = None
) -> tuple[Durability, Replica, Authority, FakeSession]:
    replica, session = replica_in(volume, state)
    authority = Authority((replica,), quorum or QuorumGrant(), Fence.NEVER, PATIENCE_S)
    return Durability(volume, (replica,), authority), replica, authority, session


def messages(session: FakeSession) -> list[Any]:
    return [message for message, _ in session.sent]


async def result_of(flushed: Callable[[], Any], then: Callable[[], None]) -> object:
    results: list[object] = []

    async def run() -> None:
        results.append(await flushed())

    with trio.fail_after(2 * PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            then()
    return results[0]


async def test_a_flush_is_what_the_backup_says(volume: Volume) -> None:
    durability, replica, _, session = durability_in(volume, PrimaryState.NORMAL)
    promises = durability.ask_flush(FILE)
    assert messages(session) == [FlushImage(1, FILE)]
    assert replica.stream is not None
    replica.stream.answered(Reply(1, errno=errno.EIO))
    assert await durability.flushed(FILE, promises) == errno.EIO


async def test_alone_this_volume_is_enough(volume: Volume) -> None:
    durability, _, _, _ = durability_in(volume, PrimaryState.ALONE)
    assert durability.ask_flush(FILE) == [None]
    assert await durability.flushed(FILE, [None]) == 0


async def test_a_flush_whose_link_was_lost_ends_when_the_primary_goes_on_alone(volume: Volume) -> None:
    durability, replica, authority, _ = durability_in(volume, PrimaryState.NORMAL)
    promises = durability.ask_flush(FILE)

    def lose() -> None:
        replica.end("cut")
        replica.lost("cut", [], permitted=True)
        for event in (PrimaryEvent.LOST, PrimaryEvent.LEASE_OVER):
            replica.go(event, "cut", is_meant=True)
        authority.look()

    assert await result_of(lambda: durability.flushed(FILE, promises), lose) == 0


async def test_a_flush_that_is_not_answered_ends_the_link(
    volume: Volume, autojump_clock: trio.testing.MockClock
) -> None:
    durability, _, _, session = durability_in(volume, PrimaryState.NORMAL)
    with trio.move_on_after(PATIENCE_S + 1):
        await durability.flushed(FILE, durability.ask_flush(FILE))
    assert "fsync" in str(session.close_reason)


@pytest.mark.expects_warnings
async def test_a_flush_of_a_host_that_may_not_go_on_alone_is_in_doubt(
    volume: Volume, autojump_clock: trio.testing.MockClock
) -> None:
    quorum = QuorumGrant(cast(Witness, object()))
    durability, _, _, _ = durability_in(volume, PrimaryState.ALONE, quorum=quorum)
    with pytest.raises(NotPermitted):
        await durability.flushed(FILE, [None])


async def test_checkpoints_end_in_the_order_in_which_they_began(volume: Volume) -> None:
    """The backup may answer the second first; then the numbers would go back here, as in an old copy."""
    durability, replica, _, session = durability_in(volume, PrimaryState.NORMAL)
    stream = cast(Stream, replica.stream)

    async def answer_newest_first() -> None:
        answered: set[int] = set()
        while len(answered) < 2:
            await trio.testing.wait_all_tasks_blocked()
            asked = [each for each in messages(session) if isinstance(each, Checkpoint)]
            newest = max(each.token for each in asked if each.token not in answered)
            answered.add(newest)
            stream.answered(Reply(newest, number=volume.number))
            ended.append(volume.catalog.checkpoints.ended)

    ended: list[int] = []
    before = volume.catalog.checkpoints.ended
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(durability.checkpoint)
            nursery.start_soon(durability.checkpoint)
            nursery.start_soon(answer_newest_first)
    assert volume.catalog.checkpoints.ended == volume.catalog.checkpoints.begun == before + 2
    assert ended == [before, before + 1]
    assert len([each for each in messages(session) if isinstance(each, ForgetMarks)]) == 2
    assert durability.peer_durable == volume.number


async def test_a_checkpoint_that_failed_there_leaves_the_marks(volume: Volume) -> None:
    durability, replica, _, session = durability_in(volume, PrimaryState.NORMAL)
    volume.regions.mark(FILE, 0, 1)
    stream = cast(Stream, replica.stream)
    before = volume.catalog.checkpoints.ended

    async def fails() -> None:
        with pytest.raises(ConnectionLost, match="checkpoint failed"):
            await durability.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails)
        await trio.testing.wait_all_tasks_blocked()
        stream.answered(Reply(1, errno=errno.EIO, number=ChangeNumber(0)))
    assert volume.catalog.checkpoints.ended == before
    assert FILE in volume.regions.marks()
    assert not [each for each in messages(session) if isinstance(each, ForgetMarks)]
