"""Asynchronous exclusive access of two hosts in one process.

Success is told with both statuses held; the other host is shown nothing old meanwhile; and what becomes of
the statuses where the data does not come.
"""

import errno
import itertools
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from fusemirror.channel.session import Session
from fusemirror.control.backup import BackupUnit
from fusemirror.control.primary import PrimaryUnit
from fusemirror.control.states import RoleState
from fusemirror.daemon import Host
from fusemirror.errors import CheckReport
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import STATUS_AHEAD_BYTES
from fusemirror.operations import Create, Reserve, SetAttributes, Write
from fusemirror.settings import Access, Acknowledge, Communication
from fusemirror.witness.interface import Witness
from fusemirror.witness.quorum import QuorumGrant
from tests.admin.conftest import Pair, network, pair
from tests.control.test_exclusive import FILE, Task, until
from tests.control.test_invitation import Site, normal
from tests.control.test_roles import create
from tests.memory_network import MemoryNetwork

__all__ = ["network", "pair"]

SIZE = 4 * STATUS_AHEAD_BYTES
LARGE = b"x" * STATUS_AHEAD_BYTES
PATIENCE_S = 30
WRITERS = 10  # at each host
ROUNDS = 12  # of each writer, were all shares alike
UNLIKE = 3  # times as much as another has


class Data:
    """Large data on its way between the hosts, which does not come before it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, in_order: bool = False) -> None:
        """`in_order`: with all that is sent behind it."""
        self.held: list[tuple[Session, bytes, Any]] = []
        self._monkeypatch = monkeypatch
        send = Session.send_encoded

        def hold(session: Session, body: bytes, data: Any = b"") -> None:
            follows = in_order and any(session is before for before, _, _ in self.held)
            if follows or len(data) >= STATUS_AHEAD_BYTES:
                self.held.append((session, body, data))
            else:
                send(session, body, data)

        monkeypatch.setattr(Session, "send_encoded", hold)

    def let_through(self) -> None:
        self._monkeypatch.undo()
        for session, body, data in self.held:
            session.send_encoded(body, data)


class Hosts:
    """One host writes, the other looks; a file of `SIZE` zeros."""

    def __init__(self, writer: Host, other: Host, file: InodeNumber) -> None:
        self.writer = writer
        self.other = other
        self.file = file

    async def write(self, offset: int = 0, data: bytes = LARGE) -> None:
        with trio.fail_after(PATIENCE_S):
            await self.writer.roles.perform(Write(self.file, offset), data)

    async def seen(self, host: Host, offset: int = 0) -> bytes:
        with trio.fail_after(PATIENCE_S):
            return await host.roles.read(self.file, offset, 1)

    async def size(self, host: Host) -> int:
        with trio.fail_after(PATIENCE_S):
            return (await host.roles.attributes(self.file)).size


async def made(pair: Pair, writer: str) -> Hosts:
    for host in (pair.primary, pair.backup):
        await host.set({"access": "exclusive", "acknowledge": "async"})
    await until(lambda: pair.backup.unit.access is pair.primary.unit.access)
    file = await pair.backup.roles.perform(Create(ROOT_INODE, b"file", FILE, 0, 0))
    assert file is not None
    await pair.backup.roles.perform(SetAttributes(file.number, size=SIZE))
    await pair.primary.unit.wait_drained()
    writer_host, other = (pair.primary, pair.backup) if writer == "primary" else (pair.backup, pair.primary)
    return Hosts(writer_host, other, file.number)


@pytest.fixture(params=["primary", "backup"])
async def hosts(request: pytest.FixtureRequest, pair: Pair) -> AsyncIterator[Hosts]:
    both = await made(pair, request.param)
    yield both
    for host in (pair.primary, pair.backup):
        await until(host.unit.exclusive.is_idle)
        assert not host.unit.host.failed_writes.since(both.file, 0)
    assert pair.status(pair.primary)["effective"]["acknowledge"] == "async"
    assert pair.status(pair.backup)["effective"]["acknowledge"] == "async"


@pytest.fixture
async def backup_writes(pair: Pair) -> Hosts:
    return await made(pair, "backup")


async def test_success_comes_before_the_data_and_nobody_is_shown_what_was_before(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Data(monkeypatch)
    taken_back: list[InodeNumber] = []
    invalidator = hosts.other.roles.volume.invalidator
    monkeypatch.setattr(invalidator, "data_changed", lambda inode, *, own: taken_back.append(inode))
    await hosts.write()
    assert len(data.held) == 1
    assert taken_back == [hosts.file], "the other kernel keeps nothing before success is told"
    seen: list[Any] = []

    async def look(what: Any) -> None:
        seen.append(await what)

    async with trio.open_nursery() as nursery:
        for what in (hosts.seen(hosts.other), hosts.seen(hosts.writer), hosts.size(hosts.other)):
            nursery.start_soon(look, what)
        await until(lambda: hosts.other.unit.exclusive.stood_by_total > 0)
        assert await hosts.seen(hosts.other, SIZE - 1) == b"\0", "bytes that nobody writes"
        assert not seen
        data.let_through()
    assert sorted(map(str, seen)) == sorted(map(str, (b"x", b"x", SIZE)))


async def test_a_write_that_makes_the_file_longer_shows_no_old_size(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Data(monkeypatch)
    await hosts.write(SIZE)
    async with trio.open_nursery() as nursery:
        looking = Task(nursery, lambda: hosts.size(hosts.other))
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert not looking.done
        data.let_through()
    assert await hosts.size(hosts.other) == SIZE + len(LARGE) == await hosts.size(hosts.writer)


async def test_small_data_is_acknowledged_when_both_volumes_have_it(hosts: Hosts) -> None:
    await hosts.write(data=LARGE[1:])
    for host in (hosts.writer, hosts.other):
        assert host.roles.volume.read(hosts.file, 0, 1) == b"x"


@pytest.mark.parametrize("pair", list(Communication), indirect=True)
async def test_each_combination_of_modes_is_shown_as_it_is_in_effect(pair: Pair) -> None:
    for access, acknowledge in itertools.product(Access, Acknowledge):
        for host in (pair.primary, pair.backup):
            await host.set({"access": str(access), "acknowledge": str(acknowledge)})
        await until(lambda wanted=access: pair.backup.unit.access is wanted)  # type: ignore[misc]
        for host in (pair.primary, pair.backup):
            status = pair.status(host)
            assert status["effective"] == status["settings"], "nothing stands in the way"
            wanted = {"access": access, "acknowledge": acknowledge, "fence": "never"}
            assert status["effective"] == {**wanted, "communication": host.settings.communication}


@pytest.mark.parametrize("pair", list(Communication), indirect=True)
async def test_main_grants_in_turn_what_is_safe_in_any_kind_of_communication_volume(
    backup_writes: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = backup_writes
    claim = hosts.other.unit.exclusive.ranges.claim(hosts.file, 0, 1)
    data = Data(monkeypatch)
    async with trio.open_nursery() as nursery:
        write = Task(nursery, hosts.write)
        await until(lambda: hosts.writer.unit.exclusive.given_up_total == 1)
        assert not write.done
        hosts.other.unit.exclusive.ranges.release(claim)
    assert len(data.held) == 1
    data.let_through()
    assert await hosts.seen(hosts.other) == b"x"
    # And where the data is there before main's turn comes:
    claim = hosts.other.unit.exclusive.ranges.claim(hosts.file, 0, 1)
    async with trio.open_nursery() as nursery:
        write = Task(nursery, lambda: hosts.write(data=b"y" * len(LARGE)))
        await until(lambda: hosts.writer.unit.exclusive.given_up_total == 2)
        hosts.other.unit.exclusive.ranges.release(claim)
    assert await hosts.seen(hosts.other) == b"y"


async def test_what_changes_the_file_otherwise_comes_after_what_was_acknowledged_before(
    backup_writes: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts, data = backup_writes, Data(monkeypatch)
    await hosts.write()
    async with trio.open_nursery() as nursery:
        changing = Task(nursery, lambda: hosts.other.roles.perform(SetAttributes(hosts.file, mtime_ns=5)))
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert not changing.done
        data.let_through()
    await hosts.other.unit.wait_drained()
    inode = hosts.other.roles.volume.catalog.inode(hosts.file)
    assert inode is not None
    assert inode.mtime_ns == 5


@pytest.mark.expects_warnings
async def test_the_status_of_a_lost_backup_is_free_once_its_lease_is_over_and_its_write_comes_late(
    backup_writes: Hosts, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts, data = backup_writes, Data(monkeypatch)
    await hosts.write()
    network.cut("alpha", "beta")
    assert await hosts.seen(hosts.other) == b"\0"
    assert await hosts.size(hosts.other) == SIZE
    assert hosts.other.unit.exclusive.is_idle()
    monkeypatch.undo()
    data.held.clear()
    network.heal("alpha", "beta")
    with trio.fail_after(PATIENCE_S):
        await hosts.writer.unit.wait_normal()
        await hosts.writer.unit.wait_drained()
    assert await hosts.seen(hosts.other) == await hosts.seen(hosts.writer) == b"x"
    assert hosts.writer.unit.exclusive.is_idle()


@pytest.mark.expects_warnings
async def test_a_transfer_that_fails_later_is_told_to_fsync(
    backup_writes: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts, data = backup_writes, Data(monkeypatch)
    await hosts.write()
    await hosts.other.roles.perform(Reserve(InodeNumber(0), b"", preempt=False))
    data.let_through()
    await until(lambda: hosts.writer.unit.host.failed_writes.since(hosts.file, 0) == errno.EBUSY)
    for host in (hosts.writer, hosts.other):
        await until(host.unit.exclusive.is_idle)
        assert await hosts.seen(host) == b"\0"


@pytest.mark.parametrize("asked", ["primary", "backup"])
async def test_main_is_not_handed_over_before_what_it_has_granted_has_landed(
    backup_writes: Hosts, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts, data = backup_writes, Data(monkeypatch)
    main = hosts.other.unit
    assert isinstance(main, PrimaryUnit)
    claim = main.exclusive.ranges.claim(hosts.file, 0, 1)
    async with trio.open_nursery() as nursery:
        Task(nursery, hosts.write)  # it stands by
        await until(lambda: hosts.writer.unit.exclusive.given_up_total == 1)
        Task(nursery, (hosts.other if asked == "primary" else hosts.writer).succession.switch)
        await until(lambda: not main.admission.granting.grants)
        assert main.life.state is RoleState.SERVING
        main.exclusive.ranges.release(claim)
        await until(lambda: len(main.admission.granting.granted) == len(data.held) == 1)
        assert main.life.state is RoleState.SERVING
        data.let_through()
    assert isinstance(hosts.writer.unit, PrimaryUnit)
    assert await hosts.seen(hosts.other) == await hosts.seen(hosts.writer) == b"x"


@pytest.mark.parametrize("acknowledge", list(Acknowledge))
async def test_writers_of_both_hosts_on_one_block_have_like_shares(
    pair: Pair, acknowledge: Acknowledge
) -> None:
    """Nobody starves, although the priority is main's. (For a minute on mounts: `tests.bench.shares`.)"""
    file = (await made(pair, "backup")).file
    for host in (pair.primary, pair.backup):
        await host.set({"acknowledge": str(acknowledge)})
    both = (pair.primary, pair.backup)
    shares = {host: [0] * WRITERS for host in both}

    async def write(host: Host, number: int) -> None:
        while sum(map(sum, shares.values())) < 2 * WRITERS * ROUNDS:
            await host.roles.perform(Write(file, 0), LARGE)
            shares[host][number] += 1

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for host in both:
                for number in range(WRITERS):
                    nursery.start_soon(write, host, number)
    counts = [*shares[pair.primary], *shares[pair.backup]]
    assert max(counts) <= UNLIKE * min(counts), counts
    assert all(host.unit.exclusive.stood_by_total for host in both)


@pytest.mark.expects_warnings
async def test_a_primary_that_was_killed_shows_nothing_old_of_what_the_backup_was_told_to_be_written(
    tmp_path: Path, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has forgotten which statuses it granted; the backup has not."""
    site = Site(tmp_path, network, tls=False)
    modes: dict[str, Any] = {"access": "exclusive", "acknowledge": "async"}
    modes |= {"peer_timeout": 5.0, "io_timeout": PATIENCE_S}
    async with site.mounted("beta", "alpha", **modes) as beta:
        async with site.mounted("alpha", "beta", **modes) as alpha:
            await normal(alpha, beta)
            file = await create(alpha, b"file")
            await alpha.roles.perform(SetAttributes(file, size=SIZE))
            data = Data(monkeypatch)
            await beta.roles.perform(Write(file, 0), LARGE)
            assert len(data.held) == 1, "told before main has it"
        monkeypatch.undo()
        data = Data(monkeypatch, in_order=True)
        async with site.mounted("alpha", "beta", **modes) as alpha:
            seen: list[bytes] = []

            async def look() -> None:
                seen.append(await alpha.roles.read(file, 0, 1))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(look)
                await until(lambda: len(data.held) > 0)
                await trio.testing.wait_all_tasks_blocked(0.02)
                assert not seen
                data.let_through()
            assert seen == [b"x"]


@pytest.mark.expects_warnings
async def test_without_the_witness_nobody_waits_for_ever_for_what_a_lost_backup_was_granted(
    tmp_path: Path, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its status is free once its lease is over, also where this host may not go on alone."""
    site = Site(tmp_path, network, tls=False)
    modes: dict[str, Any] = {"access": "exclusive", "acknowledge": "async"}
    modes |= {"peer_timeout": 1.0, "io_timeout": 2.0}
    async with (
        site.mounted("alpha", "beta", **modes) as alpha,
        site.mounted("beta", "alpha", **modes) as beta,
    ):
        await normal(alpha, beta)
        hosts = Hosts(beta, alpha, await create(alpha, b"file"))
        await alpha.roles.perform(SetAttributes(hosts.file, size=SIZE))
        Data(monkeypatch)
        await hosts.write()
        main = cast(PrimaryUnit, alpha.unit)
        assert main.admission.granting.granted
        main.mirror.authority.quorum = QuorumGrant(cast(Witness, object()))
        network.cut("alpha", "beta")
        await until(lambda: not main.mirror.authority.entitled)

        async def refused(asked: Awaitable[Any]) -> None:
            with pytest.raises(CheckReport):
                await asked

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(refused, alpha.roles.attributes(hosts.file))
                nursery.start_soon(refused, alpha.roles.read(hosts.file, 0, 1))
                nursery.start_soon(refused, alpha.roles.perform(Write(hosts.file, 0), b"mine"))
        assert not main.admission.granting.granted
        monkeypatch.undo()
        main.mirror.authority.quorum = QuorumGrant()
        main.mirror.authority.look()
        network.heal("alpha", "beta")
        await normal(alpha, beta)


@pytest.mark.expects_warnings
async def test_that_the_backup_owes_writes_outlasts_a_lease_that_ends_while_the_link_begins(
    pair: Pair, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a primary that was killed shows what was before them."""
    main = cast(PrimaryUnit, pair.primary.unit)
    grants, done = main.requests.grants, list[str]()
    begin, expect = grants.begin_link, main.admission.granting.expect

    async def begin_while_the_lease_ends() -> None:
        main.replica.hold_until = trio.current_time()
        main.mirror.authority.look()
        await trio.testing.wait_all_tasks_blocked(0.01)
        await begin()
        done.append("has waited")

    def expect_noted(*, owed: bool) -> None:
        done.append("knows")
        expect(owed=owed)

    monkeypatch.setattr(grants, "begin_link", begin_while_the_lease_ends)
    monkeypatch.setattr(main.admission.granting, "expect", expect_noted)
    network.cut("alpha", "beta")
    await main.host.links.ended.wait()
    network.heal("alpha", "beta")
    await normal(pair.primary, pair.backup)
    assert done[-2:] == ["has waited", "knows"]


async def test_a_write_that_waits_for_room_while_access_changes_gives_its_status_up(
    backup_writes: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody at this host writes those bytes any more."""
    backup = cast(BackupUnit, backup_writes.writer.unit)
    has_room = iter([False])

    async def change_meanwhile(*_: object) -> None:
        await backup_writes.other.set({"access": "routed"})
        await until(lambda: backup.access is Access.ROUTED)

    monkeypatch.setattr(backup.communication, "has_room", lambda _: next(has_room, True))
    monkeypatch.setattr(backup.communication, "wait_room", change_meanwhile)
    await backup_writes.write()
    with trio.fail_after(PATIENCE_S):
        await backup.drain(backup_writes.file)
    assert backup.exclusive.is_idle()
    assert await backup_writes.seen(backup_writes.other) == b"x"
