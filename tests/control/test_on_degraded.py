"""What a request gets that needs the other host while that is away: it waits, or hears so at once."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trio

from fusemirror.coherence.lock_table import Lock, LockKey, LockKind, Owner
from fusemirror.daemon import Host
from fusemirror.errors import CheckReport, PrimaryAway
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.operations import Create, Write
from fusemirror.settings import Acknowledge, OnDegraded
from fusemirror.witness.interface import WitnessRecord
from tests.admin.conftest import Pair, network, pair
from tests.control.test_failover import Known
from tests.control.test_invitation import Site, normal
from tests.control.test_roles import PATIENCE_S, create, until
from tests.memory_network import MemoryNetwork
from tests.volume.conftest import directory, volume

__all__ = ["directory", "network", "pair", "volume"]


async def lock(host: Host, file: InodeNumber) -> None:
    locks = host.roles.locks
    wanted = Lock(Owner(locks.host, 1), 0, 10, True, 1, 0, 0)
    await locks.end(locks.begin(1, LockKey(file, LockKind.FCNTL), wanted, waits=True))


async def make(host: Host, _: InodeNumber) -> None:
    await host.roles.perform(Create(ROOT_INODE, b"new", 0o100644, 0, 0))


REQUESTS: dict[str, Callable[[Host, InodeNumber], Awaitable[object]]] = {
    "a name": make,
    "a write": lambda host, file: host.roles.perform(Write(file, 0), b"x"),
    "a read": lambda host, file: host.roles.read(file, 0, 1),
    "attributes": lambda host, file: host.roles.attributes(file),
    "a lookup": lambda host, _: host.roles.lookup(ROOT_INODE, b"file"),
    "a listing": lambda host, _: host.roles.listing(ROOT_INODE, 0, 10),
    "fsync": lambda host, file: host.roles.flush(file),
    "a lock": lock,
    "a pause of the resync": lambda host, _: host.management.change_pace(paused=True),
}


def configure(host: Host, **changes: object) -> None:
    host.succession.configure(msgspec.structs.replace(host.settings, **changes))


async def lose_the_primary(pair: Pair, network: MemoryNetwork, *, goodbye: bool) -> None:
    if goodbye:
        await pair.primary.unit.stop("it is unmounted")
    network.cut("alpha", "beta")
    await pair.backup.unit.host.links.ended.wait()


@pytest.mark.expects_warnings
async def test_every_kind_of_request_is_told_at_once_that_it_cannot_succeed(
    pair: Pair, network: MemoryNetwork
) -> None:
    """Where it would wait for half a minute, and the status says why."""
    backup, file = pair.backup, await create(pair.primary, b"file")
    configure(backup, on_degraded=OnDegraded.REPORT)
    await lose_the_primary(pair, network, goodbye=True)
    with trio.fail_after(backup.settings.io_timeout / 2):
        for ask in REQUESTS.values():
            with pytest.raises(PrimaryAway):
                await ask(backup, file)
    status = pair.status(backup)
    assert status["mirror_state"] == "degraded"
    assert 'EIO: the primary is away, and on_degraded is "report": ' in status["reason"]
    assert status["communication"]["pending_requests"] == 0, "nothing that was refused takes effect later"


@pytest.mark.expects_warnings
async def test_what_waits_is_told_once_the_primary_counts_as_away(pair: Pair, network: MemoryNetwork) -> None:
    """Also what was sent before; and when the primary is back, everything goes on."""
    backup, file = pair.backup, await create(pair.primary, b"file")
    told: list[str] = []

    async def ask(what: str) -> None:
        with pytest.raises(PrimaryAway):
            await REQUESTS[what](backup, file)
        told.append(what)

    await lose_the_primary(pair, network, goodbye=False)
    async with trio.open_nursery() as nursery:
        for what in REQUESTS:
            nursery.start_soon(ask, what)
        await trio.testing.wait_all_tasks_blocked()
        assert not told
        configure(backup, on_degraded=OnDegraded.REPORT, peer_timeout=0.2, io_timeout=10.0)
    assert sorted(told) == sorted(REQUESTS)
    network.heal("alpha", "beta")
    with trio.fail_after(PATIENCE_S):
        await backup.roles.wait_normal()
    await backup.roles.perform(Write(file, 0), b"back")
    assert await pair.primary.roles.read(file, 0, 10) == b"back"
    assert pair.status(backup)["reason"] is None


async def test_what_can_be_kept_for_later_is_taken_all_the_same(pair: Pair, network: MemoryNetwork) -> None:
    backup, file = pair.backup, await create(pair.primary, b"file")
    configure(backup, on_degraded=OnDegraded.REPORT, acknowledge=Acknowledge.ASYNC)
    await backup.roles.perform(Write(file, 0), b"one ")  # so that it knows the file
    await lose_the_primary(pair, network, goodbye=False)
    await backup.unit.perform(Write(file, 4), b"two")
    network.heal("alpha", "beta")
    with trio.fail_after(PATIENCE_S):
        await backup.roles.wait_drained()
    assert await pair.primary.roles.read(file, 0, 10) == b"one two"


@pytest.mark.expects_warnings
async def test_a_primary_that_the_witness_refuses_tells_so_at_once(
    tmp_path: Path, network: MemoryNetwork
) -> None:
    site, one = Site(tmp_path, network, tls=False), Known("one")
    async with site.mounted("alpha", "beta", one, witness="http://one:1") as alpha:
        async with site.mounted("beta", "alpha", one, witness="http://one:1") as beta:
            await normal(alpha, beta)
            file = await create(alpha, b"file")
            configure(alpha, on_degraded=OnDegraded.REPORT, io_timeout=PATIENCE_S)
            one.record = WitnessRecord(beta.roles.volume.identity.host, one.record.revision)
        await until(lambda: alpha.unit.degraded.wants_quorum)
        with trio.fail_after(PATIENCE_S / 2):
            for ask in (REQUESTS["a write"], REQUESTS["a read"], REQUESTS["a lookup"]):
                with pytest.raises(CheckReport):
                    await ask(alpha, file)


@pytest.mark.expects_warnings
async def test_no_errno_tells_of_what_nobody_confirmed_where_the_other_host_may_have_gone_on(
    tmp_path: Path, network: MemoryNetwork
) -> None:
    site, one = Site(tmp_path, network, tls=False), Known("one")
    async with (
        site.mounted("alpha", "beta", one, witness="http://one:1") as alpha,
        site.mounted("beta", "alpha", one, witness="http://one:1") as beta,
    ):
        await normal(alpha, beta)
        file = await create(alpha, b"file")
        configure(alpha, on_degraded=OnDegraded.REPORT, io_timeout=PATIENCE_S)
        one.record = WitnessRecord(beta.roles.volume.identity.host, one.record.revision)
        network.cut("alpha", "beta")
        with trio.fail_after(PATIENCE_S / 2):
            async with trio.open_nursery() as nursery:
                for _ in range(2):  # the second finds the name of the first, which only alpha has
                    nursery.start_soon(_is_not_told, alpha, file)


async def _is_not_told(host: Host, file: InodeNumber) -> None:
    with pytest.raises(CheckReport):
        await make(host, file)
