"""Which inodes without names a purge ends: the rows of the table in `mirror/holdings.py`."""

import errno
from collections.abc import Callable

import pytest
import trio

from fusemirror.control.primary import PrimaryUnit
from fusemirror.daemon import Host
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.mirror.holdings import Holdings
from fusemirror.operations import Create, Unlink, Write
from tests.admin.conftest import Pair
from tests.memory_network import MemoryNetwork
from tests.volume.conftest import Writer

PATIENCE_S = 60
NAMES = (b"one", b"other", b"fence")


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.01)


async def create(host: Host, name: bytes) -> InodeNumber:
    inode = await host.roles.perform(Create(ROOT_INODE, name, 0o100644, 0, 0))
    assert inode is not None
    await host.roles.perform(Write(inode.number, 0), b"content")
    return inode.number


async def unlink(host: Host, name: bytes) -> None:
    await host.roles.perform(Unlink(ROOT_INODE, name))


def is_there(host: Host, inode: InodeNumber) -> bool:
    return host.roles.volume.catalog.inode(inode) is not None


async def purged(host: Host) -> None:
    """The host, which is alone, has purged what it may: a file that it made and removed alone is gone."""
    await create(host, NAMES[2])  # perhaps before it went alone
    await unlink(host, NAMES[2])
    fence = await create(host, NAMES[2])
    await unlink(host, NAMES[2])
    await until(lambda: not is_there(host, fence))


async def normal(pair: Pair) -> None:
    with trio.fail_after(PATIENCE_S):
        for host in (pair.primary, pair.backup):
            await host.roles.wait_normal()


async def cut(pair: Pair, network: MemoryNetwork) -> None:
    network.cut("alpha", "beta")
    with trio.fail_after(PATIENCE_S):
        await pair.backup.unit.host.links.ended.wait()


@pytest.mark.parametrize("opened", ["before the cut", "after the backup had answered"])
async def test_what_the_backup_may_have_open_outlives_a_time_apart(
    autojump_clock: object, pair: Pair, network: MemoryNetwork, opened: str
) -> None:
    held, not_held = [await create(pair.primary, name) for name in NAMES[:2]]
    if opened == "before the cut":
        pair.backup.roles.open_inodes.add(held)
        await unlink(pair.primary, NAMES[0])
        await cut(pair, network)
    else:
        await cut(pair, network)
        pair.backup.roles.open_inodes.add(held)
        await unlink(pair.primary, NAMES[0])
    await unlink(pair.primary, NAMES[1])
    await purged(pair.primary)
    assert pair.status(pair.primary)["nameless"] == {"inodes": 2, "bytes": 14}
    network.heal("alpha", "beta")
    await normal(pair)
    await until(lambda: not is_there(pair.backup, not_held))
    assert await pair.backup.roles.read(held, 0, 10) == b"content"
    await pair.backup.roles.flush(held)
    pair.backup.roles.open_inodes.remove(held)
    await until(lambda: not is_there(pair.primary, held))
    for host in (pair.primary, pair.backup):
        with pytest.raises(OperationFailed) as refused:
            await host.roles.flush(held)
        assert refused.value.errno == errno.ESTALE


async def test_what_was_made_apart_is_kept_for_the_backup_the_next_time(
    autojump_clock: object, pair: Pair, network: MemoryNetwork
) -> None:
    await cut(pair, network)
    await purged(pair.primary)
    made_apart = await create(pair.primary, NAMES[0])
    network.heal("alpha", "beta")
    await normal(pair)
    pair.backup.roles.open_inodes.add(made_apart)
    await cut(pair, network)
    await unlink(pair.primary, NAMES[0])
    await purged(pair.primary)
    assert is_there(pair.primary, made_apart)


async def test_a_backup_that_took_over_keeps_what_the_old_primary_has_open(
    autojump_clock: object, pair: Pair, network: MemoryNetwork
) -> None:
    held = await create(pair.primary, NAMES[0])
    pair.primary.roles.open_inodes.add(held)
    await cut(pair, network)
    await pair.backup.succession.takeover(force=False)
    await unlink(pair.backup, NAMES[0])
    await purged(pair.backup)
    assert is_there(pair.backup, held)


async def test_a_host_that_is_the_primary_again_knows_nothing_of_what_the_other_has_open(
    autojump_clock: object, pair: Pair, network: MemoryNetwork
) -> None:
    await cut(pair, network)
    await purged(pair.primary)
    network.heal("alpha", "beta")
    await normal(pair)
    for _ in range(2):
        await pair.primary.succession.switch()
        await normal(pair)
    unit = pair.primary.unit
    assert isinstance(unit, PrimaryUnit)
    assert unit.replica.holdings.below is None


async def test_all_goes_once_the_backup_was_unmounted_in_good_order(
    autojump_clock: object, pair: Pair
) -> None:
    file = await create(pair.primary, NAMES[0])
    await pair.backup.drain("unmounted")
    await unlink(pair.primary, NAMES[0])
    await until(lambda: not is_there(pair.primary, file))


async def test_nothing_is_known_of_a_backup_that_says_nothing(writer: Writer) -> None:
    volume = writer.volume
    holdings = Holdings(volume, lambda: volume.identity.only_peer)
    before = writer.create(b"before")
    assert await holdings.not_held([before], None, alone=False) == []
    assert await holdings.not_held([before], None, alone=True) == [], "no line of its own has begun"
    holdings.part()
    apart = writer.create(b"apart")
    assert await holdings.not_held([before, apart], None, alone=False) == [], "it is catching up"
    assert await holdings.not_held([before, apart], None, alone=True) == [apart]
    after_restart = Holdings(volume, lambda: volume.identity.only_peer)
    after_restart.part()
    assert await after_restart.not_held([before, apart], None, alone=True) == [apart]
    after_restart.share()
    assert volume.identity.only_peer.held_below is None
    assert Holdings(volume, lambda: volume.identity.only_peer).below is None
