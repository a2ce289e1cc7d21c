"""Writes that nobody waits for go to the primary together, and wait for no clock."""

from collections.abc import Sequence
from contextlib import suppress

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fusemirror.change import WriteChange
from fusemirror.channel.session import Session
from fusemirror.control.backup import BackupUnit
from fusemirror.errors import RemoteProtocolError
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import GATHERED_BYTES_MAX
from fusemirror.operations import Create, Write
from fusemirror.protocol.codec import decode
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import Request
from fusemirror.settings import Acknowledge
from tests.admin.conftest import Pair, network, pair
from tests.control.test_roles import content, create, until
from tests.memory_network import MemoryNetwork

__all__ = ["network", "pair"]

SLOWNESS_S = 0.5
PAIR_SETTINGS = {"path_timeout": 1.0}  # four Pings a second, which are counted along with what is sent


@pytest.fixture
async def file(pair: Pair) -> InodeNumber:
    return await create(pair.primary, b"file")


@pytest.fixture
async def unit(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock, file: InodeNumber
) -> BackupUnit:
    """Of an asynchronous backup, half a second away from its primary."""
    for host in (pair.primary, pair.backup):
        host.succession.configure(msgspec.structs.replace(host.settings, acknowledge=Acknowledge.ASYNC))
    network.slow("alpha", "beta", SLOWNESS_S)
    unit = pair.backup.unit
    assert isinstance(unit, BackupUnit)
    return unit


async def write(pair: Pair, file: InodeNumber, count: int, size: int = 10) -> None:
    """That many writes, each after the one before was acknowledged."""
    for number in range(count):
        await pair.backup.roles.perform(Write(file, number * size), b"%c" % (65 + number % 26) * size)


def is_of_a_write(buffer: Buffer) -> bool:
    with suppress(RemoteProtocolError):  # the head of a frame, or data
        return isinstance(decode(bytes(buffer), data_bytes=10), Request | WriteChange)
    return False


class Sends:
    """How often a session gave writes to its stream. Heartbeats and the like are not counted."""

    def __init__(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        try_send = session._transport.try_send

        def counted(buffers: Sequence[Buffer]) -> int:
            self.count += any(map(is_of_a_write, buffers))
            return try_send(buffers)

        monkeypatch.setattr(session._transport, "try_send", counted)


async def test_what_comes_while_others_are_on_their_way_goes_together_when_they_have_ended(
    pair: Pair,
    autojump_clock: MockClock,
    file: InodeNumber,
    unit: BackupUnit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert unit.link is not None
    assert pair.primary.unit.link is not None
    there, back = (
        Sends(session, monkeypatch) for session in (unit.link.forward, pair.primary.unit.link.mirror)
    )
    with trio.fail_after(SLOWNESS_S / 2):
        await write(pair, file, 20)
    assert (unit.forwarding.forwarded_total, len(unit.communication)) == (1, 20)
    await until(lambda: unit.forwarding.forwarded_total > 1)
    assert unit.forwarding.forwarded_total == 20
    await pair.backup.roles.wait_drained()
    assert content(pair.primary, file) == content(pair.backup, file)
    assert len(content(pair.primary, file)) == 200
    assert there.count == 2
    assert back.count == 2


async def test_a_request_that_is_waited_for_takes_along_what_stands_before_it(
    pair: Pair, autojump_clock: MockClock, file: InodeNumber, unit: BackupUnit
) -> None:
    await write(pair, file, 5)
    assert unit.forwarding.forwarded_total == 1
    with trio.fail_after(4 * SLOWNESS_S):  # there and back, and not behind an answer
        await pair.backup.roles.perform(Create(ROOT_INODE, b"next", 0o100644, 0, 0))
    assert len(unit.communication) == 0
    assert len(content(pair.primary, file)) == 50


async def test_a_close_waits_for_no_answer_before_its_own(
    pair: Pair, autojump_clock: MockClock, file: InodeNumber, unit: BackupUnit
) -> None:
    await write(pair, file, 5)
    began = trio.current_time()
    await pair.backup.roles.drain(file)
    assert trio.current_time() - began < 2 * SLOWNESS_S  # once there and back
    assert len(content(pair.primary, file)) == 50


async def test_only_so_much_is_kept_back(
    pair: Pair, autojump_clock: MockClock, file: InodeNumber, unit: BackupUnit
) -> None:
    size = GATHERED_BYTES_MAX // 4
    await write(pair, file, 6, size)
    await wait_all_tasks_blocked()
    assert unit.forwarding.forwarded_total == 6
    assert len(unit.communication) == 6


async def test_what_was_kept_back_goes_over_the_next_link(
    pair: Pair, autojump_clock: MockClock, file: InodeNumber, unit: BackupUnit, network: MemoryNetwork
) -> None:
    await write(pair, file, 5)
    network.cut("alpha", "beta")
    await unit.host.links.ended.wait()
    network.heal("alpha", "beta")
    assert [staged.in_doubt for staged in unit.communication.pending()] == [True, False, False, False, False]
    await pair.backup.roles.wait_drained()
    assert content(pair.primary, file) == b"".join(b"%c" % (65 + number) * 10 for number in range(5))


async def test_where_the_primary_answers_first_nothing_is_kept_back(
    pair: Pair, autojump_clock: MockClock, file: InodeNumber, unit: BackupUnit
) -> None:
    unit.communication.destaging._store_s, unit.communication.destaging._answer_s = 9.0, 1.0
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(pair.backup.roles.perform, Write(file, number), b"x")
        await wait_all_tasks_blocked()
        assert unit.forwarding.forwarded_total == 3
