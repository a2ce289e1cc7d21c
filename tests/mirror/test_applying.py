"""Applying: what arrives takes effect in its order; what has no place in it changes nothing."""

import errno
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from fusemirror.change import NamespaceChange
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.errors import ConnectionLost
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber
from fusemirror.limits import COUNTER_SKIPPED_MAX
from fusemirror.mirror.applying import Applier
from fusemirror.mirror.histories import generations_of
from fusemirror.mirror.states import BackupState
from fusemirror.protocol.messages import (
    Applied,
    Begin,
    Bye,
    CaughtUp,
    HandOver,
    ImageCopied,
    Normal,
    OutOfSync,
    PurgeOffer,
    Reply,
)
from fusemirror.volume.volume import Volume
from tests.channel.conftest import SessionPair
from tests.volume.conftest import Writer

PATIENCE_S = 30
OPEN = InodeNumber(7)
FILE = InodeNumber(8)


class Backup:
    """An applier, and what it has said to its primary."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.terms: list[int] = []
        self.said: list[Any] = []
        communication = cast(CommunicationVolume, SimpleNamespace(find=lambda _: None))
        self.applier = Applier(volume, communication, self._give_up, self.terms.append)

    def _give_up(self, inodes: tuple[InodeNumber, ...]) -> tuple[InodeNumber, ...]:
        return tuple(inode for inode in inodes if inode == OPEN)

    async def after(self, sessions: SessionPair, *messages: Any, says: Any = None) -> str:
        """Send these together, and hear what is said until `says`, or why the link ends."""
        primary, backup = sessions
        ended: list[str] = []

        async def serve() -> None:
            ended.append(await self.applier.serve(backup))

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                with primary.corked():
                    for message in messages:
                        primary.send(message)
                with suppress(ConnectionLost):
                    while says is None or says not in self.said:
                        self.said += [message for message, _ in await primary.receive()]
                    nursery.cancel_scope.cancel()
        return ended[0] if ended else ""

    def begun(self) -> list[Any]:
        volume = self.volume
        end = CaughtUp(volume.number, volume.journal.last_number, volume.catalog.next_inode, 0)
        return [Begin(False, generations_of(volume), volume.number), end, Normal(volume.number)]

    def changes(self, count: int) -> list[NamespaceChange]:
        return [
            NamespaceChange(ChangeNumber(self.volume.number + each), NO_REQUEST, each, InodeNumber(0), ())
            for each in range(1, count + 1)
        ]


@pytest.fixture
def backup(volume: Volume) -> Backup:
    return Backup(volume)


async def test_what_came_together_is_acknowledged_by_one_word(
    backup: Backup, memory_sessions: SessionPair
) -> None:
    changes = backup.changes(3)
    last = Applied(changes[-1].number)
    await backup.after(memory_sessions, *backup.begun(), *changes, says=last)
    assert backup.volume.number == last.number
    assert backup.said.count(last) == 1
    assert [each.number for each in backup.said if isinstance(each, Applied)][1:] == [last.number]


@pytest.mark.expects_warnings
async def test_a_change_before_the_stream_has_begun_is_refused(
    backup: Backup, memory_sessions: SessionPair
) -> None:
    before = backup.volume.number
    why = await backup.after(memory_sessions, *backup.changes(1))
    assert "disconnected" in why
    assert backup.volume.number == before


@pytest.mark.expects_warnings
async def test_a_change_that_comes_again_is_refused(backup: Backup, memory_sessions: SessionPair) -> None:
    (one,) = backup.changes(1)
    why = await backup.after(memory_sessions, *backup.begun(), one, one)
    assert "change" in why
    assert backup.volume.number == one.number
    assert backup.applier.state is BackupState.DISCONNECTED


async def test_a_record_may_have_a_number_that_data_had_before(
    backup: Backup, memory_sessions: SessionPair, writer: Writer
) -> None:
    """Numbers of data changes die with the process of the primary that gave them."""
    file, volume = writer.create(b"file"), backup.volume
    for _ in range(3):
        writer.write(file, 0, b"data")
    number = ChangeNumber(volume.journal.last_number + 1)
    assert number < volume.number
    record = NamespaceChange(number, NO_REQUEST, 1, InodeNumber(0), ())
    begin, _, _ = backup.begun()
    end, told = CaughtUp(number, number, volume.catalog.next_inode, 0), Applied(number)
    await backup.after(memory_sessions, begin, record, end, Normal(number), says=told)
    assert volume.number == volume.journal.last_number == number


async def test_images_that_differ_are_not_read_before_they_are_normal(
    backup: Backup, memory_sessions: SessionPair, writer: Writer
) -> None:
    file = writer.create(b"file")
    begin, caught_up, _ = backup.begun()
    answered = Reply(1, values=())
    stale = OutOfSync((file, InodeNumber(999)))
    await backup.after(memory_sessions, begin, stale, caught_up, PurgeOffer(1, ()), says=answered)
    assert backup.applier.out_of_sync.images == {file}, "of what has gone nobody reads"
    assert not backup.volume.identity.consistent
    assert backup.applier.out_of_sync.size_bytes == backup.volume.catalog.size(file)


async def test_it_says_which_inodes_are_open(backup: Backup, memory_sessions: SessionPair) -> None:
    held = Reply(5, values=(OPEN,))
    await backup.after(memory_sessions, *backup.begun(), PurgeOffer(5, (OPEN, FILE)), says=held)
    assert held in backup.said


@pytest.mark.parametrize("step", [0, 1])
async def test_a_role_is_taken_under_a_newer_term_only(
    backup: Backup, memory_sessions: SessionPair, step: int
) -> None:
    term = backup.volume.identity.term + step
    said = Reply(5)
    await backup.after(memory_sessions, *backup.begun(), HandOver(term), PurgeOffer(5, ()), says=said)
    assert backup.terms == [term] * step


@pytest.mark.expects_warnings
async def test_no_primary_hands_over_a_term_beyond_what_can_be(
    backup: Backup, memory_sessions: SessionPair
) -> None:
    beyond = backup.volume.identity.term + COUNTER_SKIPPED_MAX + 1
    assert "beyond" in await backup.after(memory_sessions, *backup.begun(), HandOver(beyond))
    assert not backup.terms


async def test_goodbye_is_why_the_link_ends(backup: Backup, memory_sessions: SessionPair) -> None:
    why = await backup.after(memory_sessions, *backup.begun(), Bye("unmounted"))
    assert "goodbye" in why
    assert backup.applier.state is BackupState.DISCONNECTED


@pytest.mark.expects_warnings
async def test_what_was_declined_behind_the_word_that_all_is_copied_still_differs(
    backup: Backup, writer: Writer
) -> None:
    """Its word crossed `Normal`: the old bytes are not read here meanwhile, nor by the next process."""
    file, applier = writer.create(b"file"), backup.applier
    session: Any = SimpleNamespace(send=lambda *_: None)
    applier.state = BackupState.RESYNCING
    applier._decline(file, PermissionError(errno.EPERM, "no"), session, ChangeNumber(backup.volume.number))
    applier._normal(Normal(backup.volume.number), b"", session)
    assert applier.out_of_sync.images == {file}
    assert not backup.volume.identity.consistent
    applier._image_copied(ImageCopied(file), b"", session)
    assert file in applier.out_of_sync.images, "it was copied before it was declined"
    applier._out_of_sync_images(OutOfSync((file,)), b"", session)
    applier._image_copied(ImageCopied(file), b"", session)
    assert not applier.out_of_sync.images
    assert backup.volume.identity.consistent
