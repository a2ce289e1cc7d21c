"""Roles that change while programs work: two hosts in one process, real disks, a network in memory."""

import errno
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from fusemirror import settings
from fusemirror.change import KEEP_SIZE, PUNCH_HOLE, Table
from fusemirror.control.backup import BackupUnit
from fusemirror.control.primary import PrimaryUnit
from fusemirror.daemon import Host
from fusemirror.errors import ChangeUntold, OperationFailed, RefusedForSafety, TimedOut, VolumeDamaged
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import CUT_EXTENTS_MAX, CUT_SHORT_BYTES
from fusemirror.mirror.histories import generations_of, history_of
from fusemirror.mirror.states import MIRROR_LOST
from fusemirror.operations import Allocate, Create, SetAttributes, Unlink, Write
from fusemirror.volume.check import check
from fusemirror.volume.entries import inode_key
from fusemirror.volume.extents import allocated
from fusemirror.volume.volume import Volume
from tests.admin.conftest import Pair, network, pair
from tests.memory_network import MemoryNetwork
from tests.volume.conftest import BETA, GAMMA, IDENTITY, counting_seams, directory, volume

__all__ = ["directory", "network", "pair", "volume"]

PATIENCE_S = 60
BLOCK = 4096


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.01)


async def create(host: Host, name: bytes) -> InodeNumber:
    inode = await host.roles.perform(Create(ROOT_INODE, name, 0o100644, 0, 0))
    assert inode is not None
    return inode.number


async def append_for_ever(host: Host, file: InodeNumber, told: list[bytes]) -> None:
    """One record after the other; `told` are those that were acknowledged."""
    while True:
        record = b"%s %04d\n" % (host.settings.volume[-5:].encode(), len(told))
        await host.roles.perform(Write(file, 0, append=True), record)
        told.append(record)
        await trio.sleep(0.002)


def content(host: Host, file: InodeNumber) -> bytes:
    return host.roles.volume.read(file, 0, 1 << 20)


async def normal(*hosts: Host) -> None:
    with trio.fail_after(PATIENCE_S):
        for host in hosts:
            await host.roles.wait_normal()


def roles(pair: Pair) -> list[str]:
    return [type(host.unit).__name__ for host in (pair.primary, pair.backup)]


@pytest.mark.parametrize("asked", ["primary", "backup"])
async def test_a_switch_under_load_exchanges_the_roles_and_no_request_fails(pair: Pair, asked: str) -> None:
    file = await create(pair.primary, b"file")
    told: dict[str, list[bytes]] = {"primary": [], "backup": []}
    async with trio.open_nursery() as nursery:
        for name in told:
            nursery.start_soon(append_for_ever, getattr(pair, name), file, told[name])
        for expected in (["BackupUnit", "PrimaryUnit"], ["PrimaryUnit", "BackupUnit"]):
            before = {name: len(records) for name, records in told.items()}
            await until(lambda before=before: _went_on(told, before))  # type: ignore[misc]
            await getattr(pair, asked).succession.switch()
            before = {name: len(records) for name, records in told.items()}
            await until(lambda before=before: _went_on(told, before))  # type: ignore[misc]
            assert roles(pair) == expected
            await normal(pair.primary, pair.backup)
        nursery.cancel_scope.cancel()
    await pair.primary.roles.wait_drained()
    await pair.backup.roles.wait_drained()
    assert content(pair.primary, file) == content(pair.backup, file)
    lines = content(pair.primary, file).splitlines(keepends=True)
    for records in told.values():
        for record in records:
            assert lines.count(record) == 1


def _went_on(told: dict[str, list[bytes]], before: dict[str, int]) -> bool:
    return all(len(told[name]) > before[name] + 20 for name in told)


async def test_what_is_open_stays_open_over_a_switch(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusemirror.control.upkeep.PURGE_AFTER_S", 0.05)
    file = await create(pair.primary, b"file")
    pair.backup.roles.open_inodes.add(file)
    await pair.primary.succession.switch()
    await normal(pair.primary, pair.backup)
    await pair.primary.roles.perform(Unlink(ROOT_INODE, b"file"))
    assert isinstance(pair.backup.unit, PrimaryUnit)
    await pair.backup.unit.tasks.upkeep.purge()
    with trio.move_on_after(0.1):
        await trio.sleep_forever()
    await pair.backup.unit.tasks.upkeep.purge()
    assert (await pair.primary.roles.attributes(file)).nlink == 0
    pair.backup.roles.open_inodes.remove(file)
    await until(lambda: pair.primary.roles.volume.catalog.inode(file) is None)


async def test_a_backup_hears_that_its_lease_is_over_before_the_primary_goes_on_alone(
    pair: Pair, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit, over = pair.backup.unit, trio.Event()
    monkeypatch.setattr(unit.volume.invalidator, "lease_over", over.set)
    await create(pair.primary, b"together")
    assert not over.is_set()
    network.cut("alpha", "beta")
    await create(pair.primary, b"alone")
    assert over.is_set()


async def test_a_pause_of_the_resync_ends_when_the_roles_change(pair: Pair) -> None:
    first = pair.primary
    await first.management.change_pace(paused=True)
    await first.succession.switch()
    await normal(pair.primary, pair.backup)
    await first.management.change_pace(paused=False)  # by the new primary
    await first.succession.switch()
    await normal(pair.primary, pair.backup)
    assert isinstance(first.unit, PrimaryUnit)
    assert not first.unit.mirror.pace.paused


async def test_a_switch_that_fails_leaves_no_request_of_a_newer_link_unanswered(
    pair: Pair, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes while the role is given away is left to the backup, which is to ask again if it stays."""
    file = await create(pair.primary, b"file")
    unit, go_on = pair.primary.unit, trio.Event()
    assert isinstance(unit, PrimaryUnit)
    before = unit.link

    async def fail_later(_: object) -> None:
        await go_on.wait()
        raise RefusedForSafety("the link was lost meanwhile")

    async def give_away() -> None:
        with pytest.raises(RefusedForSafety):
            await unit.hand_over()

    monkeypatch.setattr(unit.mirror.window, "acknowledged", fail_later)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_away)
        network.cut("alpha", "beta")
        await unit.host.links.ended.wait()
        network.heal("alpha", "beta")
        await until(lambda: unit.link is not None and unit.link is not before)
        await unit.wait_normal()  # whoever asks the host itself waits until the role is given away, or not
        await normal(pair.backup)
        nursery.start_soon(pair.backup.roles.perform, Write(file, 0), b"asked")
        await until(lambda: unit.link is not None and unit.link.forward.counters.received_data_bytes > 0)
        go_on.set()
        with trio.fail_after(PATIENCE_S):
            await pair.backup.roles.wait_drained()
    assert content(pair.primary, file) == content(pair.backup, file) == b"asked"


@pytest.mark.parametrize("others", ["primary", "backup"])
async def test_switches_that_are_asked_for_at_once_are_one(pair: Pair, others: str) -> None:
    """One that came while another was under way waited for ever, or undid what that had done."""
    first, second = pair.primary.succession, getattr(pair, others).succession
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for succession in (first, second, second, first):
                nursery.start_soon(succession.switch)
    assert roles(pair) == ["BackupUnit", "PrimaryUnit"]


async def test_a_switch_is_refused_while_the_peer_is_away(pair: Pair, network: MemoryNetwork) -> None:
    network.cut("alpha", "beta")
    await pair.primary.unit.host.links.ended.wait()
    for host in (pair.primary, pair.backup):
        with pytest.raises(RefusedForSafety, match="not normal"):
            await host.succession.switch()
    assert roles(pair) == ["PrimaryUnit", "BackupUnit"]


@pytest.mark.parametrize("at", ["primary", "backup"])
async def test_what_lies_in_many_places_is_cut_in_steps_on_both_hosts(pair: Pair, at: str) -> None:
    here: Host = getattr(pair, at)
    file = await create(here, b"file")
    for place in range(3 * CUT_EXTENTS_MAX):
        await here.roles.perform(Write(file, place * 2 * BLOCK), b"x" * BLOCK)
    before = here.roles.volume.number
    await here.roles.perform(SetAttributes(file, size=5 * 2 * BLOCK + 1))
    assert here.roles.volume.number == before + 3
    assert content(pair.primary, file) == content(pair.backup, file)
    assert content(here, file) == (b"x" * BLOCK + bytes(BLOCK)) * 5 + b"x"


@pytest.mark.parametrize("at", ["primary", "backup"])
async def test_what_lies_in_many_places_is_punched_in_steps_on_both_hosts(pair: Pair, at: str) -> None:
    here: Host = getattr(pair, at)
    file = await create(here, b"file")
    for place in range(3 * CUT_EXTENTS_MAX):
        await here.roles.perform(Write(file, place * 2 * BLOCK), b"x" * BLOCK)
    before = here.roles.volume.number
    end = (3 * CUT_EXTENTS_MAX - 5) * 2 * BLOCK
    await here.roles.perform(Allocate(file, 1, end, PUNCH_HOLE | KEEP_SIZE))
    assert here.roles.volume.number == before + 3
    assert content(pair.primary, file) == content(pair.backup, file)
    left = b"x" * BLOCK + bytes(BLOCK)
    assert content(here, file) == b"x" + bytes(end - 1) + left * 4 + left[:BLOCK]
    assert (
        here.roles.volume.images.content.data_bytes(file) < 20 * BLOCK
    )  # a disk takes some for where they lie


@pytest.mark.parametrize("at", ["primary", "backup"])
async def test_beyond_the_end_room_is_refused_that_a_truncation_would_free_long(pair: Pair, at: str) -> None:
    here: Host = getattr(pair, at)
    file = await create(here, b"file")
    await here.roles.perform(Write(file, 0), b"x")
    if not tells_of_reserved_room(pair.primary.roles.volume.images.path(file)):
        pytest.skip("this disk tells of no extents")
    *reserved, more = [
        Allocate(file, place * 2 * BLOCK, (place * 2 + 1) * BLOCK, KEEP_SIZE)
        for place in range(1, CUT_EXTENTS_MAX + 1)  # one more is the block of the file's byte
    ]
    for operation in reserved:
        await here.roles.perform(operation)
    with pytest.raises(OperationFailed) as refused:
        await here.roles.perform(more)
    assert refused.value.errno == errno.EOPNOTSUPP
    for host in (pair.primary, pair.backup):
        assert host.roles.volume.images.content.data_bytes(file) < 2 * CUT_SHORT_BYTES
    await here.roles.perform(Allocate(file, 0, BLOCK, KEEP_SIZE | PUNCH_HOLE))
    await here.roles.perform(SetAttributes(file, size=1))  # and frees what was reserved
    await here.roles.perform(Allocate(file, 0, 2 * CUT_SHORT_BYTES, KEEP_SIZE))
    assert content(pair.primary, file) == content(pair.backup, file) == b"\0"


def tells_of_reserved_room(path: Path) -> bool:
    """Whether the disk says where a file has room beyond its end."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, 1)
        return any(True for _ in allocated(descriptor, 1))
    finally:
        os.close(descriptor)


@pytest.mark.expects_warnings
@pytest.mark.parametrize("at", ["primary", "backup"])
async def test_a_damaged_count_of_links_is_an_error_of_that_name_and_nothing_ends(
    pair: Pair, at: str
) -> None:
    here: Host = getattr(pair, at)
    file = await create(here, b"file")
    rows = [host.roles.volume.catalog.inode(file) for host in (pair.primary, pair.backup)]
    for row in rows:
        assert row is not None
        row.nlink = 0  # as a damaged row has it that can be read
    link = here.unit.host.links.link
    with pytest.raises(OperationFailed) as failed:
        await here.roles.perform(Unlink(ROOT_INODE, b"file"))
    assert failed.value.errno == errno.EIO
    await create(here, b"other")
    assert here.unit.host.links.link is link
    for row in rows:
        assert row is not None
        row.nlink = 1
    await here.roles.perform(Unlink(ROOT_INODE, b"file"))


async def test_what_is_cut_by_little_is_cut_at_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    file = await create(pair.primary, b"file")
    await pair.primary.roles.perform(Write(file, 0), b"x" * CUT_SHORT_BYTES)
    monkeypatch.setattr(pair.primary.roles.volume.files, "step_points", None)
    await pair.primary.roles.perform(SetAttributes(file, size=1))
    assert content(pair.backup, file) == b"x"


@pytest.mark.parametrize("heard", [True, False])
async def test_a_switch_whose_word_is_lost_is_carried_to_its_end(
    pair: Pair, network: MemoryNetwork, heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await create(pair.primary, b"file")
    unit = pair.primary.unit
    assert isinstance(unit, PrimaryUnit)
    assert unit.replica.stream is not None
    if not heard:
        monkeypatch.setattr(unit.replica.stream, "send", lambda *_: network.cut("alpha", "beta"))
        # The checkpoint before it asks through `ask`, which does not come by here.
        monkeypatch.setattr(unit, "prepare_hand_over", trio.lowlevel.checkpoint)
        pair.primary.succession._settings = msgspec.structs.replace(
            pair.primary.settings, io_timeout=1.0, peer_timeout=1.0
        )
        with pytest.raises(TimedOut, match=r"the roles are exchanged, but .* cannot be reached|not been met"):
            await pair.primary.succession.switch()
    else:
        await pair.primary.succession.switch()
    assert isinstance(pair.primary.unit, BackupUnit)
    assert isinstance(pair.backup.unit, PrimaryUnit) is heard
    network.heal("alpha", "beta")
    await normal(pair.primary, pair.backup)
    assert roles(pair) == ["BackupUnit", "PrimaryUnit"]
    await pair.primary.roles.perform(Write(file, 0), b"still one filesystem")
    assert content(pair.backup, file) == b"still one filesystem"


async def test_a_take_over_carries_out_what_was_asked_and_the_old_primary_gives_way(
    pair: Pair, network: MemoryNetwork
) -> None:
    file = await create(pair.primary, b"file")
    network.cut("alpha", "beta")
    await pair.backup.unit.host.links.ended.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.backup.roles.perform, Write(file, 0, append=True), b"asked")
        await trio.sleep(0.1)
        assert pair.backup.succession.takeover_report()["pending_requests"] == 1
        await pair.backup.succession.takeover(force=False)
    assert content(pair.backup, file) == b"asked"
    assert roles(pair) == ["PrimaryUnit", "PrimaryUnit"]
    assert len(generations_of(pair.backup.roles.volume)) == 2
    network.heal("alpha", "beta")
    await normal(pair.primary, pair.backup)
    assert roles(pair) == ["BackupUnit", "PrimaryUnit"]
    assert content(pair.primary, file) == b"asked"


async def test_a_request_that_the_old_primary_had_not_acknowledged_is_made_once(
    pair: Pair, network: MemoryNetwork
) -> None:
    """It stands in the old primary's volume only, and its program waits: it is asked of the new one."""
    file = await create(pair.primary, b"file")
    network.stall("alpha", "beta")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.primary.roles.perform, Write(file, 0, append=True), b"waiting")
        nursery.start_soon(create, pair.primary, b"name")
        await trio.sleep(0.1)
        network.cut("alpha", "beta")
        await pair.backup.unit.host.links.ended.wait()
        await pair.backup.succession.takeover(force=False)
        # Before the lease is over, with which the old primary would go on alone.
        network.heal("alpha", "beta")
        await create(pair.backup, b"other")
    await normal(pair.primary, pair.backup)
    assert roles(pair) == ["BackupUnit", "PrimaryUnit"]
    for host in (pair.primary, pair.backup):
        assert content(host, file) == b"waiting"
        names = {name for _, name, _ in await host.roles.listing(ROOT_INODE, 0, 100)}
        assert names == {b"file", b"name", b"other"}


@pytest.mark.expects_warnings
@pytest.mark.parametrize("met_between", [False, True])
async def test_a_write_that_a_restarted_backup_holds_is_in_doubt_and_not_made_again(
    pair: Pair, network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch, met_between: bool
) -> None:
    file = await create(pair.primary, b"file")
    volume, links = pair.backup.roles.volume, pair.backup.unit.host.links

    async def append() -> None:
        with pytest.raises(ChangeUntold):
            await pair.primary.roles.perform(Write(file, 0, append=True), b"waiting")

    async def never(*_: object, **_more: object) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        network.stall_one_way("beta", "alpha")
        nursery.start_soon(append)
        await until(lambda: content(pair.backup, file) == b"waiting")
        network.cut("alpha", "beta")
        await links.ended.wait()
        # As where its process is killed and another is mounted: of its changes it knows the records.
        pair.backup.instance = bytes(len(pair.backup.instance))
        volume.rewind()
        volume._passed = volume.number
        if met_between:
            unit: Any = pair.primary.unit
            monkeypatch.setattr(unit.mirror.resync[unit.replica], "_catch_up", never)
            network.heal("alpha", "beta")
            await until(lambda: links.link is not None)
            network.cut("alpha", "beta")
            await links.ended.wait()
        await pair.backup.succession.takeover(force=False)
        network.heal("alpha", "beta")
        await until(lambda: roles(pair) == ["BackupUnit", "PrimaryUnit"])
    await normal(pair.primary, pair.backup)
    for host in (pair.primary, pair.backup):
        assert content(host, file) == b"waiting"


async def test_a_take_over_in_the_middle_of_catching_up_begins_behind_all_that_this_host_holds(
    pair: Pair, network: MemoryNetwork
) -> None:
    """The numbers of data changes are no more than that: the old primary would ask for them again."""
    file = await create(pair.primary, b"file")
    await pair.primary.roles.perform(Write(file, 0, append=True), b"held")
    network.cut("alpha", "beta")
    await pair.backup.unit.host.links.ended.wait()
    volume = pair.backup.roles.volume
    held = volume.number
    volume.rewind()
    assert volume.number < held
    assert history_of(volume).number == held
    await pair.backup.succession.takeover(force=False)
    assert generations_of(volume)[0].first_change > held
    network.heal("alpha", "beta")
    await normal(pair.primary, pair.backup)


async def test_a_take_over_is_refused_while_the_primary_is_connected(pair: Pair) -> None:
    with pytest.raises(RefusedForSafety, match="the primary is connected"):
        await pair.backup.succession.takeover(force=False)
    await pair.backup.succession.takeover(force=True)
    await normal(pair.primary, pair.backup)
    assert roles(pair) == ["BackupUnit", "PrimaryUnit"]


async def test_a_take_over_of_an_inconsistent_copy_is_refused(pair: Pair, network: MemoryNetwork) -> None:
    network.cut("alpha", "beta")
    await pair.backup.unit.host.links.ended.wait()
    pair.backup.roles.volume.update_identity(consistent=False)
    with pytest.raises(RefusedForSafety, match="not consistent"):
        await pair.backup.succession.takeover(force=False)
    assert isinstance(pair.backup.unit, BackupUnit)


async def test_the_primary_takes_over_nothing(pair: Pair) -> None:
    await pair.primary.succession.takeover(force=False)
    assert roles(pair) == ["PrimaryUnit", "BackupUnit"]


@pytest.mark.expects_warnings
async def test_two_that_went_on_apart_show_it_and_both_serve(
    pair: Pair, network: MemoryNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    network.cut("alpha", "beta")
    await pair.backup.unit.host.links.ended.wait()
    await until(lambda: len(logged(caplog, MIRROR_LOST)) == 2)
    assert {*logged(caplog, MIRROR_LOST)} == {"WARNING"}  # to look at, and nothing to mend yet
    await pair.backup.succession.takeover(force=False)
    await create(pair.backup, b"here")
    await create(pair.primary, b"there")
    network.heal("alpha", "beta")
    for host in (pair.primary, pair.backup):
        await until(lambda host=host: host.unit.status()["mirror_state"] == "diverged")  # type: ignore[misc]
        assert host.unit.status()["role"] == "primary"
        await create(host, b"still")
    assert logged(caplog, "nothing was merged or overwritten") == ["ERROR", "ERROR"]  # a person mends it


def logged(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    """The level of each line that has these words."""
    return [record.levelname for record in caplog.records if words in record.getMessage()]


@pytest.mark.parametrize("damage", ["name", "root", "its parent"])
async def test_a_volume_that_cannot_be_served_is_refused_before_it_is(
    tmp_path: Path, network: MemoryNetwork, damage: str
) -> None:
    Volume.create(tmp_path / "volume", IDENTITY)
    opened = Volume.open(tmp_path / "volume")
    if damage == "name":
        opened.update_identity(host_name="a/b")
    elif damage == "its parent":  # as a disk that forgets bits leaves it
        root = opened.catalog.inode(ROOT_INODE)
        assert root is not None
        root.parent = InodeNumber(0xA2000001)
        opened.catalog.touch(root)
    else:
        opened.catalog.discard(Table.INODES, inode_key(ROOT_INODE))
        opened.catalog.changes_since_commit += 1
    opened.close()
    made = settings.make(name="data", volume=str(tmp_path / "volume"), listen="alpha:7000", peer="beta:7000")
    expected = {
        "name": "`a/b` is no name for a host",
        "root": "the root directory is missing",
        "its parent": "catalog: INODES 0000000000000001: the root is a directory, and its own parent",
    }[damage]
    with pytest.raises(VolumeDamaged, match=f"{expected}; run `fusemirror fsck"):
        async with AsyncExitStack() as stack:
            await Host(made, network.host("alpha"), counting_seams()).open(stack)
    assert check(tmp_path / "volume", True, lambda _: None).left == 0
    Volume.open(tmp_path / "volume").close()


async def test_a_volume_with_more_peers_than_a_mount_serves_is_refused(
    tmp_path: Path, network: MemoryNetwork
) -> None:
    Volume.create(tmp_path / "volume", msgspec.structs.replace(IDENTITY, peers=(BETA, GAMMA)))
    made = settings.make(name="data", volume=str(tmp_path / "volume"), listen="alpha:7000", peer="beta:7000")
    with pytest.raises(RefusedForSafety, match="beta and gamma; a mount mirrors to one"):
        async with AsyncExitStack() as stack:
            await Host(made, network.host("alpha"), counting_seams()).open(stack)
    assert check(tmp_path / "volume", False, lambda _: None).left == 0


async def test_a_backup_whose_primary_is_gone_may_stop_with_what_it_keeps(
    pair: Pair, network: MemoryNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is pending, or all of it is durable here: then nobody waits for `io_timeout`."""
    caplog.set_level("INFO", "fusemirror")
    file = await create(pair.primary, b"file")
    backup = pair.backup
    backup.change_settings({"acknowledge": "async"})
    await backup.unit.wait_drained()
    network.cut("alpha", "beta")
    await backup.unit.host.links.ended.wait()
    with trio.fail_after(2):
        await backup.management.wait_safe()
    await backup.roles.perform(Write(file, 0), b"acknowledged early")
    with trio.fail_after(2):
        await backup.management.wait_safe()
    assert "waiting here: 1 request (18 bytes)" in caplog.text
    network.heal("alpha", "beta")
    await normal(pair.primary, backup)
    await backup.roles.wait_drained()
    assert content(pair.primary, file) == b"acknowledged early"


async def test_a_backup_waits_for_its_primary_with_what_is_in_memory_only(
    pair: Pair, network: MemoryNetwork
) -> None:
    file = await create(pair.primary, b"file")
    network.cut("alpha", "beta")
    await pair.backup.unit.host.links.ended.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.backup.roles.perform, Write(file, 0), b"a program waits for this one")
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1.5) as waiting:
            await pair.backup.management.wait_safe()
        assert waiting.cancelled_caught
        network.heal("alpha", "beta")
        with trio.fail_after(PATIENCE_S):
            await pair.backup.management.wait_safe()
    assert content(pair.primary, file) == b"a program waits for this one"
