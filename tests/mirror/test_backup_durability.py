"""Durability at the backup: marks go once both hosts need them no more, and not by any other word."""

import errno
import os
from typing import Any, cast

import pytest

from fusemirror.channel.session import Session
from fusemirror.errors import BadChange
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.limits import CHECKPOINTS_OPEN_MAX, COUNTER_SKIPPED_MAX
from fusemirror.mirror.backup_durability import BackupDurability
from fusemirror.protocol.messages import Checkpoint, FlushImage, ForgetMarks, Reply
from fusemirror.volume.syncing import Syncing
from fusemirror.volume.volume import Volume
from tests.mirror.replicas import FakeSession

FILE = InodeNumber(7)


async def handled(durability: BackupDurability, message: Any, session: FakeSession) -> None:
    work = durability.handlers[type(message)](message, b"", cast(Session, session))
    if work is not None:
        await work()


def replies(session: FakeSession) -> list[Any]:
    return [message for message, _ in session.sent]


async def test_marks_go_only_after_the_primary_said_so(volume: Volume) -> None:
    durability, session = BackupDurability(volume), FakeSession()
    volume.regions.mark(FILE, 0, 1)
    await handled(durability, Checkpoint(1, ChangeNumber(0), volume.catalog.checkpoints.begun + 1), session)
    assert replies(session) == [Reply(1, number=volume.number)]
    assert FILE in volume.regions.marks(), "the primary may not have ended it yet"
    volume.regions.mark(InodeNumber(8), 0, 1)
    await handled(durability, ForgetMarks(1), session)
    assert set(volume.regions.marks()) == {8}, "of the time since the checkpoint"
    with pytest.raises(BadChange, match="no such checkpoint"):
        await handled(durability, ForgetMarks(1), session)


async def test_what_was_not_ended_over_a_link_is_ended_by_none_of_the_next(volume: Volume) -> None:
    durability, session = BackupDurability(volume), FakeSession()
    await handled(durability, Checkpoint(1, ChangeNumber(0), volume.catalog.checkpoints.begun + 1), session)
    durability.session_ended()
    with pytest.raises(BadChange, match="no such checkpoint"):
        await handled(durability, ForgetMarks(1), session)


async def test_one_that_was_not_ended_is_ended_by_the_next(volume: Volume) -> None:
    """Another replica of the primary was lost meanwhile; the link to this one goes on."""
    durability, session = BackupDurability(volume), FakeSession()
    for token in range(2 * CHECKPOINTS_OPEN_MAX):
        begun = volume.catalog.checkpoints.begun
        await handled(durability, Checkpoint(token, ChangeNumber(0), begun + 1), session)
        if token % 2:
            await handled(durability, ForgetMarks(token), session)
    with pytest.raises(BadChange, match="no such checkpoint"):
        await handled(durability, ForgetMarks(0), session)


async def test_a_primary_that_lies_about_checkpoints_is_refused(volume: Volume) -> None:
    durability, session = BackupDurability(volume), FakeSession()
    beyond = volume.catalog.checkpoints.begun + COUNTER_SKIPPED_MAX + 1
    with pytest.raises(BadChange, match="beyond"):
        await handled(durability, Checkpoint(1, ChangeNumber(0), beyond), session)
    for token in range(CHECKPOINTS_OPEN_MAX):
        await handled(
            durability, Checkpoint(token, ChangeNumber(0), volume.catalog.checkpoints.begun + 1), session
        )
    with pytest.raises(BadChange, match="too many"):
        await handled(
            durability,
            Checkpoint(CHECKPOINTS_OPEN_MAX, ChangeNumber(0), volume.catalog.checkpoints.begun + 1),
            session,
        )


@pytest.mark.expects_warnings
async def test_a_disk_that_fails_is_the_answer(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    durability, session = BackupDurability(volume), FakeSession()

    async def fails(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Syncing, "flush", fails)
    monkeypatch.setattr(Volume, "make_durable", fails)
    before = volume.catalog.checkpoints.ended
    await handled(durability, FlushImage(1, FILE), session)
    await handled(durability, Checkpoint(2, ChangeNumber(0), volume.catalog.checkpoints.begun + 1), session)
    assert [reply.errno for reply in replies(session)] == [errno.EIO, errno.EIO]
    assert volume.catalog.checkpoints.ended == before


async def test_an_answer_to_a_link_that_has_ended_is_nobody_s(volume: Volume) -> None:
    durability, session = BackupDurability(volume), FakeSession()
    session.close_reason = "cut"
    await handled(durability, Checkpoint(1, ChangeNumber(0), volume.catalog.checkpoints.begun + 1), session)
    assert not session.sent
