"""A write that is refused after it was acknowledged: its program hears so, and it is never carried out."""

import errno
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.abc import Instrument
from trio.testing import MockClock

from fusemirror.change import decode_change
from fusemirror.communication.staged import Staged
from fusemirror.control import peer_requests
from fusemirror.control.backup import BackupUnit
from fusemirror.control.primary import PrimaryUnit
from fusemirror.daemon import Host
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import REFUSALS_PER_TURN
from fusemirror.operations import Release, Reserve, SetAttributes, Write
from fusemirror.protocol.framing import Buffer
from fusemirror.volume.requests_done import done_by
from tests.admin.conftest import Pair, network, pair
from tests.control.test_gathering import file, unit
from tests.control.test_roles import content, create, until
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
    volume = pair.backup.roles.volume
    volume.requests_done.refuse(staged.request.identity, errno.EBUSY, volume.number)
    await pair.backup.succession.takeover(force=False)
    await pair.backup.roles.perform(Write(file, 3), b"er")  # behind it
    assert content(pair.backup, file) == b"\0\0\0er"
    assert unit.host.failed_writes.since(file, seen) == errno.EBUSY


# --- a disk that takes no record of it --------------------------------------------------------------------


@pytest.fixture
def fill(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Callable[[Host, bool], None]:
    """Whether a host's disk has no room, from now on, for what the journal says of a request."""
    full: set[Host] = set()

    def set_full(host: Host, value: bool) -> None:
        (full.add if value else full.discard)(host)

    for host in (pair.primary, pair.backup):

        def append(
            number: ChangeNumber,
            payload: Buffer,
            *,
            host: Host = host,
            append: Callable[..., None] = host.roles.volume.journal.append,
            **more: Any,
        ) -> None:
            if host in full and decode_change(payload).request:
                raise OSError(errno.ENOSPC, "no room")
            append(number, payload, **more)

        monkeypatch.setattr(host.roles.volume.journal, "append", append)
    return set_full


@pytest.fixture
def seen(unit: BackupUnit, file: InodeNumber) -> int:
    """What a program of the backup has heard of failed writes that opens the file before all else."""
    return unit.host.failed_writes.seen_at_open(file)


@pytest.fixture
async def other(pair: Pair) -> InodeNumber:
    made = await create(pair.primary, b"other")
    await pair.primary.roles.perform(Write(made, 0), b"other")
    return made


@pytest.fixture
async def waiting(
    pair: Pair,
    unit: BackupUnit,
    network: MemoryNetwork,
    file: InodeNumber,
    fill: Callable[[Host, bool], None],
    seen: int,
    other: InodeNumber,
) -> Staged:
    """As `refused_write`, while the disk of the primary takes no record. Nothing is told before it does."""
    network.cut("alpha", "beta")
    await unit.host.links.ended.wait()
    await pair.backup.roles.perform(Write(file, 0), b"old")
    (staged,) = unit.communication.pending()
    await pair.primary.roles.perform(Reserve(file))
    fill(pair.primary, True)
    network.heal("alpha", "beta")
    await until(lambda: bool(unrecorded(pair.primary)))
    return staged


def unrecorded(host: Host) -> list[RequestId]:
    assert isinstance(host.unit, PrimaryUnit)
    return list(host.unit.admission.decisions.unrecorded)


@pytest.mark.expects_warnings
async def test_no_change_goes_before_the_refusal_that_waits_for_room(
    pair: Pair,
    file: InodeNumber,
    unit: BackupUnit,
    waiting: Staged,
    other: InodeNumber,
    seen: int,
    fill: Callable[[Host, bool], None],
) -> None:
    main = pair.primary.roles.volume
    before = main.number
    ask_again(unit, waiting)
    with pytest.raises(OperationFailed) as refused:
        await pair.primary.roles.perform(Write(file, 0), b"new")
    assert (refused.value.errno, main.number) == (errno.ENOSPC, before)
    with pytest.raises(OperationFailed) as refused:
        await pair.primary.roles.perform(Write(other, 0), b"needs room, too")
    assert (refused.value.errno, main.number) == (errno.ENOSPC, before)
    assert unit.communication.pending() == [waiting]
    assert unit.host.failed_writes.since(file, seen) == 0
    fill(pair.primary, False)
    await pair.primary.roles.perform(Write(file, 0), b"new")
    await pair.backup.roles.wait_drained()
    (change,) = [decode_change(record.payload) for record in main.journal.notes(before)]
    assert (change.request, change.number) == (waiting.request.identity, before + 1)  # the write came behind
    assert unit.host.failed_writes.since(file, seen) == errno.EBUSY
    await until(lambda: content(pair.backup, file) == b"new")


@pytest.mark.expects_warnings
async def test_what_needs_no_room_and_is_of_another_file_goes_before_as_it_may_make_some(
    pair: Pair,
    file: InodeNumber,
    waiting: Staged,
    other: InodeNumber,
    fill: Callable[[Host, bool], None],
) -> None:
    await pair.primary.roles.perform(SetAttributes(other, size=1))
    assert content(pair.primary, other) == b"o"
    with pytest.raises(OperationFailed) as refused:
        await pair.primary.roles.perform(SetAttributes(file, size=1))
    assert refused.value.errno == errno.ENOSPC
    fill(pair.primary, False)
    await pair.backup.roles.wait_drained()


@pytest.mark.expects_warnings
async def test_an_fsync_says_so_before_the_refusal_is_recorded(
    pair: Pair,
    file: InodeNumber,
    waiting: Staged,
    fill: Callable[[Host, bool], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for host in (pair.primary, pair.backup):
        with trio.fail_after(1), pytest.raises(OperationFailed) as told:
            await host.roles.flush(file)
        assert told.value.errno == errno.EBUSY
    assert caplog.text.count("waits for room for the record of that") == 1
    fill(pair.primary, False)
    await pair.backup.roles.wait_drained()


@pytest.mark.expects_warnings
async def test_the_refusal_is_recorded_when_there_is_room_though_nobody_changes_anything(
    pair: Pair,
    file: InodeNumber,
    unit: BackupUnit,
    waiting: Staged,
    seen: int,
    fill: Callable[[Host, bool], None],
) -> None:
    fill(pair.primary, False)
    await pair.backup.roles.wait_drained()
    assert unit.host.failed_writes.since(file, seen) == errno.EBUSY
    assert unrecorded(pair.primary) == []


@pytest.mark.expects_warnings
async def test_a_host_that_takes_over_keeps_what_it_cannot_record(
    pair: Pair,
    file: InodeNumber,
    unit: BackupUnit,
    network: MemoryNetwork,
    fill: Callable[[Host, bool], None],
) -> None:
    """Its program hears of the refusal, and the store forgets the write, once that is recorded."""
    network.cut("alpha", "beta")
    await unit.host.links.ended.wait()
    seen = unit.host.failed_writes.seen_at_open(file)
    await pair.backup.roles.perform(Write(file, 0), b"old")
    fill(pair.backup, True)
    (staged,) = unit.communication.pending()
    await pair.backup.succession.takeover(force=False)
    await until(lambda: unrecorded(pair.backup) == [staged.request.identity])
    assert unit.communication.pending() == [staged]
    assert unit.host.failed_writes.since(file, seen) == 0
    with pytest.raises(OperationFailed) as told:  # nobody has the data
        await pair.backup.roles.flush(file)
    assert told.value.errno == errno.ENOSPC
    fill(pair.backup, False)
    await until(lambda: not unrecorded(pair.backup))
    assert unit.communication.pending() == []
    assert unit.host.failed_writes.since(file, seen) == errno.ENOSPC


@pytest.mark.expects_warnings
async def test_more_than_so_many_are_not_remembered(
    pair: Pair,
    file: InodeNumber,
    unit: BackupUnit,
    network: MemoryNetwork,
    fill: Callable[[Host, bool], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(peer_requests, "REFUSALS_UNRECORDED_MAX", 1)
    network.cut("alpha", "beta")
    await unit.host.links.ended.wait()
    for number in range(3):
        await pair.backup.roles.perform(Write(file, number), b"old")
    await pair.primary.roles.perform(Reserve(file))
    fill(pair.primary, True)
    network.heal("alpha", "beta")
    await until(lambda: caplog.text.count("not even refusals of the backup's writes are recorded") > 1)
    assert len(unrecorded(pair.primary)) == 1
    fill(pair.primary, False)
    await pair.backup.roles.wait_drained()
    assert content(pair.primary, file) == content(pair.backup, file) == b""


class Steps(Instrument):
    """How often any task went on."""

    count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


@pytest.mark.expects_warnings
async def test_many_are_recorded_with_turns_of_others_between(
    pair: Pair, autojump_clock: MockClock, file: InodeNumber, fill: Callable[[Host, bool], None]
) -> None:
    """As of a host that took over, and had asked for them."""
    assert isinstance(pair.primary.unit, PrimaryUnit)
    decisions, numbers, steps = pair.primary.unit.admission.decisions, range(4 * REFUSALS_PER_TURN), Steps()
    trio.lowlevel.add_instrument(steps)
    told: list[tuple[int, int]] = []
    fill(pair.primary, True)
    for number in numbers:

        def tell(number: int = number) -> None:
            told.append((number, steps.count))

        decisions.refuse(RequestId(b"%016d" % number), file, errno.EBUSY, tell)
    fill(pair.primary, False)
    await until(lambda: not decisions.unrecorded)
    assert [number for number, _ in told] == list(numbers)
    assert max(Counter(step for _, step in told).values()) <= REFUSALS_PER_TURN
    trio.lowlevel.remove_instrument(steps)
