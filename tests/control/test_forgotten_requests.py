"""A primary with a repaired journal may not know what it did: nothing is done twice, and who asks hears."""

import errno

import pytest
import trio
from trio.testing import MockClock

from fusemirror.control.backup import BackupUnit
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.operations import Write
from tests.admin.conftest import Pair, network, pair
from tests.control.test_gathering import file, unit
from tests.control.test_roles import content, until
from tests.memory_network import MemoryNetwork

__all__ = ["file", "network", "pair", "unit"]


async def lose_the_link(pair: Pair, unit: BackupUnit, network: MemoryNetwork) -> None:
    """And the primary's memory of what it did with what was on its way."""
    network.cut("alpha", "beta")
    await unit.host.links.ended.wait()
    network.heal("alpha", "beta")
    volume = pair.primary.roles.volume
    volume.update_identity(peers=volume.identity.peers_in_doubt)


async def test_a_write_that_says_where_is_done_again(
    pair: Pair, autojump_clock: MockClock, file: InodeNumber, unit: BackupUnit, network: MemoryNetwork
) -> None:
    for offset, letter in enumerate((b"a", b"b")):
        await pair.backup.roles.perform(Write(file, offset), letter)
    await lose_the_link(pair, unit, network)
    assert [staged.in_doubt for staged in unit.communication.pending()] == [True, False]
    await pair.backup.roles.wait_drained()
    assert content(pair.primary, file) == b"ab"
    await until(lambda: not pair.primary.roles.volume.identity.only_peer.forgot_requests)


@pytest.mark.expects_warnings
async def test_an_append_fails_rather_than_being_done_twice(
    pair: Pair, autojump_clock: MockClock, file: InodeNumber, unit: BackupUnit, network: MemoryNetwork
) -> None:
    failed: list[int] = []

    async def append() -> None:
        with pytest.raises(OperationFailed) as error:
            await pair.backup.roles.perform(Write(file, 0, append=True), b"a")
        failed.append(error.value.errno)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(append)
        await until(lambda: any(staged.sent_at is not None for staged in unit.communication.pending()))
        await lose_the_link(pair, unit, network)
    assert failed == [errno.EIO]
    await pair.backup.roles.wait_drained()
    assert content(pair.primary, file) == b""
    await pair.backup.roles.perform(Write(file, 0, append=True), b"b")
    assert content(pair.primary, file) == b"b"
    await until(lambda: not pair.primary.roles.volume.identity.only_peer.forgot_requests)
