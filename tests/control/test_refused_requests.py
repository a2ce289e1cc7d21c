"""A write that is refused after it was acknowledged: its program hears so, and it is never carried out."""

import errno

import pytest
from trio.testing import MockClock

from fusemirror.change import decode_change
from fusemirror.communication.staged import Staged
from fusemirror.control.backup import BackupUnit
from fusemirror.identifiers import InodeNumber
from fusemirror.operations import Release, Reserve, Write
from fusemirror.volume.requests_done import done_by
from tests.admin.conftest import Pair, network, pair
from tests.control.test_gathering import file, unit
from tests.control.test_roles import content
from tests.memory_network import MemoryNetwork

__all__ = ["file", "network", "pair", "unit"]


async def refused_write(pair: Pair, unit: BackupUnit, network: MemoryNetwork, file: InodeNumber) -> Staged:
    """Of the backup's program, to a file that the primary has reserved unheard; both know of the refusal."""
    network.cut("alpha", "beta")
    await unit.host.links.ended.wait()
    await pair.backup.roles.perform(Write(file, 0), b"old")
    (staged,) = unit.communication.pending()
    await pair.primary.roles.perform(Reserve(file))
    network.heal("alpha", "beta")
    await pair.backup.roles.wait_drained()
    await pair.primary.roles.perform(Release(file))
    return staged


def ask_again(unit: BackupUnit, staged: Staged) -> None:
    """As a backup does that was killed before its store had forgotten the request."""
    link = unit.host.links.link
    assert link is not None
    link.forward.send_encoded(staged.encoded, b"old")


@pytest.mark.expects_warnings
async def test_it_is_told_and_not_carried_out_behind_what_came_after_it(
    pair: Pair, autojump_clock: MockClock, file: InodeNumber, unit: BackupUnit, network: MemoryNetwork
) -> None:
    seen = unit.host.failed_writes.seen_at_open(file)
    staged = await refused_write(pair, unit, network, file)
    assert unit.host.failed_writes.since(file, seen) == errno.EBUSY
    await pair.primary.roles.perform(Write(file, 0), b"new")
    ask_again(unit, staged)
    await pair.backup.roles.perform(Write(file, 3), b"er")
    await pair.backup.roles.wait_drained()
    assert content(pair.primary, file) == content(pair.backup, file) == b"newer"


@pytest.mark.expects_warnings
async def test_a_primary_that_is_killed_then_knows_it_by_its_journal(
    pair: Pair, autojump_clock: MockClock, file: InodeNumber, unit: BackupUnit, network: MemoryNetwork
) -> None:
    refused = (await refused_write(pair, unit, network, file)).request.identity
    changes = [decode_change(record.payload) for record in pair.primary.roles.volume.journal.notes(0)]
    assert [done_by(change).errno for change in changes if change.request == refused] == [errno.EBUSY]


@pytest.mark.expects_warnings
async def test_a_backup_that_takes_over_does_not_carry_it_out(
    pair: Pair, autojump_clock: MockClock, file: InodeNumber, unit: BackupUnit, network: MemoryNetwork
) -> None:
    """Its journal says of the refusal, which came in the order of changes; its store had not forgotten it."""
    network.cut("alpha", "beta")
    await unit.host.links.ended.wait()
    seen = unit.host.failed_writes.seen_at_open(file)
    await pair.backup.roles.perform(Write(file, 0), b"old")
    (staged,) = unit.communication.pending()
    pair.backup.roles.volume.note_refused(staged.request.identity, errno.EBUSY)
    await pair.backup.succession.takeover(force=False)
    await pair.backup.roles.perform(Write(file, 3), b"er")  # behind it
    assert content(pair.backup, file) == b"\0\0\0er"
    assert unit.host.failed_writes.since(file, seen) == errno.EBUSY
