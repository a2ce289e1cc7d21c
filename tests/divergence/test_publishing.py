"""Split brain: shown, resolved from either host, and nothing that gives way is thrown away."""

import errno
import os
import stat
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, cast

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fusemirror.control.role import Role
from fusemirror.control.unit import ControlUnit
from fusemirror.daemon import Host
from fusemirror.divergence import conflicts, exchange, listing, quarantine
from fusemirror.divergence.conflicts import CONFLICTS_NAME, check_reserved
from fusemirror.divergence.exchange import DivergenceExchange
from fusemirror.divergence.publishing import Publishing, Requests
from fusemirror.errors import DiskFailed, HistoriesDiverged, OperationFailed, RoleChanged, UsageError
from fusemirror.identifiers import ROOT_INODE, ChangeNumber, InodeNumber
from fusemirror.limits import DIFFERENCE_PATH_BYTES_MAX, DIVERGENT_LOOK_INTERVAL_S, DIVERGENT_LOOKS_PER_S
from fusemirror.operations import (
    Create,
    HardLink,
    Operation,
    RemoveDirectory,
    Rename,
    SetAttributes,
    SetXattr,
    Unlink,
    Write,
)
from fusemirror.operations.rename import RENAME_EXCHANGE
from fusemirror.volume.volume import Volume
from tests.admin.conftest import Pair, network, pair
from tests.channel.conftest import BACKUP, PRIMARY, connect_pair, shake_hands
from tests.control.test_roles import create, normal, until
from tests.memory_network import MemoryNetwork
from tests.volume.conftest import directory, volume

__all__ = ["directory", "network", "pair", "volume"]

pytestmark = pytest.mark.expects_warnings


async def write(host: Host, file: InodeNumber, data: bytes) -> None:
    await host.roles.perform(Write(file, 0), data)


async def split(pair: Pair, network: MemoryNetwork) -> InodeNumber:
    """Both change one file, and each makes one and a directory with one; they know that they diverged."""
    file = await create(pair.primary, b"both")
    kept = await create(pair.primary, b"untouched")
    await write(pair.primary, kept, b"the same")
    network.cut("alpha", "beta")
    await pair.backup.unit.host.links.ended.wait()
    await pair.backup.succession.takeover(force=False)
    for host, name in ((pair.primary, b"alpha"), (pair.backup, b"beta")):
        await write(host, file, b"of " + name)
        made = await host.roles.perform(Create(ROOT_INODE, b"dir", 0o040755, 0, 0))
        assert made is not None
        inside = await host.roles.perform(Create(made.number, b"in " + name, 0o100640, 5, 6))
        assert inside is not None
        await write(host, inside.number, b"only at " + name)
    network.heal("alpha", "beta")
    for host in (pair.primary, pair.backup):
        await until(lambda host=host: host.unit.status()["mirror_state"] == "diverged")  # type: ignore[misc]
    return file


async def find(host: Host, *names: bytes) -> InodeNumber:
    number = ROOT_INODE
    for name in names:
        number = (await host.roles.lookup(number, name)).number
    return number


async def content(host: Host, *names: bytes) -> bytes:
    return bytes(await host.roles.read(await find(host, *names), 0, 1000))


async def set_aside(host: Host) -> set[str]:
    return {file["path"] for file in (await host.succession.conflicts())["set_aside"]}


async def test_a_split_brain_is_shown_and_what_differs_is_listed(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    await split(pair, network)
    for host in (pair.primary, pair.backup):
        await until(lambda host=host: host.roles.host.exchange.connected)  # type: ignore[misc]
        found = await host.succession.conflicts()
        assert found["diverged"]
        changed = {entry["path"]: sorted(entry["changed_by"]) for entry in found["changed"]}
        changed.pop("/untouched", None)
        expected = {"/dir/in alpha": ["alpha"], "/dir/in beta": ["beta"]}
        assert changed == {"/both": ["alpha", "beta"], "/dir": ["alpha", "beta"], **expected}
        assert {said["complete"] for said in found["hosts"].values()} == {True}
        with pytest.raises(HistoriesDiverged):
            await host.succession.switch()


@pytest.mark.parametrize("told", ["primary", "backup"])
@pytest.mark.parametrize("keep", ["alpha", "beta"])
async def test_either_host_can_be_told_which_copy_stays(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock, told: str, keep: str
) -> None:
    await split(pair, network)
    winner, loser = (pair.primary, pair.backup) if keep == "alpha" else (pair.backup, pair.primary)
    lost = "beta" if keep == "alpha" else "alpha"
    for _ in range(2):
        getattr(pair, told).succession.resolve(keep)
    await until(lambda: loser.roles.volume.identity.role == "backup")
    await normal(winner, loser)
    assert winner.roles.host.exchange.status() is None, "once they are one again, nothing is counted"
    assert loser.roles.host.exchange.status() is None
    assert "no split brain" in getattr(pair, told).succession.resolve(keep)
    await until(lambda: not any((loser.roles.volume.directory / "aside").iterdir()))
    aside = (CONFLICTS_NAME, lost.encode())
    for host in (winner, loser):
        assert await set_aside(host) == {f"/{lost}/both", f"/{lost}/dir/in {lost}"}
        assert not (await host.succession.conflicts())["diverged"]
        assert await content(host, b"both") == b"of " + keep.encode()
        assert await content(host, b"untouched") == b"the same"
        assert await content(host, *aside, b"both") == b"of " + lost.encode()
        inside = await host.roles.attributes(await find(host, *aside, b"dir", b"in " + lost.encode()))
        assert (inside.mode, inside.uid, inside.gid) == (0o100640, 5, 6)
    await winner.roles.perform(Unlink(await find(loser, *aside), b"both"))
    with pytest.raises(OperationFailed):
        await find(loser, *aside, b"both")


async def test_a_host_that_is_away_yields_when_it_comes_back(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    await split(pair, network)
    network.cut("alpha", "beta")
    pair.backup.succession.resolve("beta")
    await trio.sleep(0.1)
    assert pair.primary.roles.volume.identity.role == "primary"
    network.heal("alpha", "beta")
    await until(lambda: pair.primary.roles.volume.identity.role == "backup")
    await normal(pair.primary, pair.backup)
    assert await content(pair.primary, b"both") == b"of beta"


async def resolved(pair: Pair, keep: str) -> tuple[Host, Host]:
    """The winner and the loser, once what the loser had is in the filesystem."""
    winner, loser = (pair.primary, pair.backup) if keep == "alpha" else (pair.backup, pair.primary)
    winner.succession.resolve(keep)
    await until(lambda: loser.roles.volume.identity.role == "backup")
    await normal(winner, loser)
    await until(lambda: not any((loser.roles.volume.directory / "aside").iterdir()))
    return winner, loser


@pytest.mark.parametrize("keep", ["alpha", "beta"])
async def test_what_is_set_aside_keeps_everything_that_a_file_has(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock, keep: str
) -> None:
    await split(pair, network)
    loser = pair.backup if keep == "alpha" else pair.primary
    perform, acl = loser.roles.perform, bytes.fromhex("02000000")
    acl += b"".join(struct.pack("<HHI", *entry) for entry in ACL_ENTRIES)
    made = await perform(Create(ROOT_INODE, b"tree", 0o042750, 7, 8))
    assert made is not None
    tree = made.number
    await perform(SetXattr(tree, DEFAULT, acl))
    made = await perform(Create(tree, b"file", 0o100640, 5, 6))
    assert made is not None
    file = made.number
    await write(loser, file, b"linked")
    await perform(HardLink(file, ROOT_INODE, b"second name"))
    await perform(SetXattr(file, b"user.label", b"value"))
    await perform(SetXattr(file, ACCESS, acl))
    await perform(SetAttributes(file, atime_ns=4_000, mtime_ns=3_000))
    await perform(Create(tree, b"symlink", 0o120777, 9, 10, target=b"file"))
    await perform(Create(tree, b"fifo", 0o010600, 0, 0))
    await perform(Create(tree, b"empty", 0o040711, 11, 12))
    await perform(SetAttributes(tree, mtime_ns=5_000))
    before = await facts(loser, b"tree")
    winner, loser = await resolved(pair, keep)
    aside = (CONFLICTS_NAME, loser.roles.volume.identity.host_name.encode())
    for host in (winner, loser):
        assert await facts(host, *aside, b"tree") == before
        number = await find(host, *aside, b"tree", b"file")
        assert number == await find(host, *aside, b"second name")
        assert (await host.roles.attributes(number)).nlink == 2
        root = await host.roles.attributes(await find(host, *aside))
        assert root.mode & 0o777 == 0o700


ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
ACL_ENTRIES = ((1, 6, 0xFFFFFFFF), (2, 4, 1000), (4, 4, 0xFFFFFFFF), (16, 6, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF))


async def test_a_giant_of_little_data_is_set_aside_and_brought_in_as_the_little_that_it_holds(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    """Both copied every byte of its length once, which took for ever."""
    await split(pair, network)
    size = pair.primary.unit.volume.file_bytes_max
    giant = await create(pair.backup, b"giant")
    await pair.backup.roles.perform(SetAttributes(giant, size=size))
    await pair.backup.roles.perform(Write(giant, 1 << 40), b"far")
    winner, loser = await resolved(pair, "alpha")
    for host in (winner, loser):
        brought = await find(host, CONFLICTS_NAME, b"beta", b"giant")
        assert (await host.roles.attributes(brought)).size == size
        assert await host.roles.read(brought, (1 << 40) - 2, 6) == b"\0\0far\0"
        assert host.roles.volume.images.content.data_bytes(brought) < 1 << 20


async def facts(host: Host, *names: bytes) -> dict[bytes, object]:
    """Everything about what a name stands for, and about what is in it."""
    inode = await host.roles.attributes(await find(host, *names))
    number = inode.number
    found: dict[bytes, object] = {
        b".": (inode.mode, inode.nlink, inode.uid, inode.gid, inode.size, inode.mtime_ns, inode.target),
        b"xattrs": {name: await host.roles.xattr(number, name) for name in await host.roles.xattrs(number)},
    }
    if inode.is_directory:
        for _, name, _ in await host.roles.listing(number, 0, 100):
            found[name] = await facts(host, *names, name)
    elif inode.is_regular:
        found[b"content"] = await content(host, *names)
    return found


async def test_a_file_that_only_one_host_looked_at_again_is_not_set_aside(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    file = await split(pair, network)
    await write(pair.backup, file, b"of alpha")  # as the other has it
    await pair.primary.roles.perform(SetAttributes(file, mode=0o600))
    await pair.backup.roles.perform(SetAttributes(file, mode=0o600))
    winner, _ = await resolved(pair, "alpha")
    assert b"both" not in await names_aside(winner, b"beta")


async def names_aside(host: Host, *names: bytes) -> set[bytes]:
    number = await find(host, CONFLICTS_NAME, *names)
    return {name for _, name, _ in await host.roles.listing(number, 0, 100)}


async def test_a_deletion_that_loses_comes_back_and_a_file_that_the_winner_deleted_is_kept(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    for name in (b"gone at beta", b"gone at alpha"):
        await write(pair.primary, await create(pair.primary, name), b"common")
    await split(pair, network)
    await write(pair.backup, await find(pair.backup, b"gone at alpha"), b"changed")
    await pair.backup.roles.perform(Unlink(ROOT_INODE, b"gone at beta"))
    await pair.primary.roles.perform(Unlink(ROOT_INODE, b"gone at alpha"))
    await until(lambda: pair.primary.roles.host.exchange.connected)
    changed = {
        entry["path"]: {host: change["kinds"] for host, change in entry["changed_by"].items()}
        for entry in (await pair.primary.succession.conflicts())["changed"]
    }
    assert changed["/gone at beta"] == {"beta": ["deleted"]}
    assert changed["/gone at alpha"] == {"alpha": ["deleted"], "beta": ["content"]}
    winner, _ = await resolved(pair, "alpha")
    assert await content(winner, b"gone at beta") == b"common"
    assert await content(winner, CONFLICTS_NAME, b"beta", b"gone at alpha") == b"changed"


async def test_what_was_published_is_durable_in_both_volumes_before_it_leaves_quarantine(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what need not be published, as the filesystem has the same: until then it is the last copy."""
    file = await split(pair, network)
    await write(pair.backup, file, b"of alpha")
    await write(pair.primary, await create(pair.primary, b"alike"), b"alike")
    await write(pair.backup, await create(pair.backup, b"alike"), b"alike")
    removed: list[bytes] = []
    unlink = Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".file":
            kept = quarantine.load(path)
            for host in (pair.primary, pair.backup):
                assert is_durable(host, kept.path) or is_durable(host, [CONFLICTS_NAME, b"beta", *kept.path])
            removed.append(kept.path[-1])
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    await resolved(pair, "alpha")
    assert set(removed) == {b"both", b"alike", b"untouched", b"in beta", b"dir"}


def is_durable(host: Host, path: list[bytes]) -> bool:
    """Whether a power cut at this host would leave what has this path, and the path."""
    volume, number = host.roles.volume, ROOT_INODE
    for name in path:
        entry = volume.catalog.entry(number, name)
        if entry is None:
            return False
        number = entry.inode
    return number not in volume.images.unsynced.dirty and volume.journal.is_durable


async def test_what_cannot_be_made_durable_stays_in_quarantine(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await split(pair, network)
    asked: list[InodeNumber] = []

    async def broken(inode: InodeNumber) -> None:
        asked.append(inode)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(pair.primary.roles.volume.syncing, "flush", broken)
        pair.primary.succession.resolve("alpha")
        await until(lambda: len(asked) == 3)  # it is tried again and again
        [place] = quarantine.pending(pair.backup.roles.volume)
        assert [path.stem for path in quarantine.descriptions(place)] == ["0", "1", "2", "3"]
    winner, _ = await resolved(pair, "alpha")
    assert await content(winner, CONFLICTS_NAME, b"beta", b"both") == b"of beta"


async def test_a_file_in_very_many_places_is_compared_a_little_at_a_time(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unit, data, step = pair.primary.roles, tmp_path / "0.data", 64 * 1024
    file, count = await create(pair.primary, b"file"), 50
    with data.open("wb") as ours:
        for index in range(count):
            await unit.perform(Write(file, index * step), b"x" * 4096)
            os.pwrite(ours.fileno(), b"x" * 4096, index * step)
    size = (await unit.attributes(file)).size
    kept = quarantine.Quarantined([b"file"], 0o100644, 0, 0, size, 0, b"")
    turns: list[int] = []
    turn, read = 0, unit.read

    async def watched(inode: InodeNumber, offset: int, length: int) -> bytes:
        turns.append(turn)
        unit.volume.images.release(inode)  # as where many other images are opened
        return await read(inode, offset, length)

    async def others() -> None:
        nonlocal turn
        while True:
            turn += 1
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(unit, "read", watched)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        assert await Publishing(unit)._has_content(file, kept, data)
        nursery.cancel_scope.cancel()
    assert len(turns) == 2 * count, "what each of them has as data"
    assert max(Counter(turns).values()) <= 2, "trio takes those that are ready in any order"


class Routed:
    """A unit whose image lacks what its programs read: it is out of sync, or writes are under way on top."""

    def __init__(self, volume: Volume, content: bytes) -> None:
        self.volume = volume
        self.content = content

    async def read(self, _: InodeNumber, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]

    async def seek(self, _: InodeNumber, offset: int, *, data: bool) -> int:
        if offset >= len(self.content):
            raise OperationFailed(errno.ENXIO)
        return offset if data else len(self.content)


@pytest.mark.parametrize(("content", "same"), [(bytes(10), True), (b"0123456789", False)])
async def test_what_is_read_decides_whether_there_is_a_conflict_and_no_image(
    volume: Volume, tmp_path: Path, content: bytes, same: bool
) -> None:
    (tmp_path / "0.data").touch()
    os.truncate(tmp_path / "0.data", 10)
    kept = quarantine.Quarantined([b"file"], 0o100644, 0, 0, 10, 0, b"")
    publishing = Publishing(cast(Requests, Routed(volume, content)))
    assert await publishing._has_content(InodeNumber(99), kept, tmp_path / "0.data") == same


async def test_content_that_is_missing_in_quarantine_does_not_cut_what_was_published_of_it(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    """A power cut could leave the removal of the content, without that of the description before it."""
    await split(pair, network)
    winner, loser = await resolved(pair, "alpha")
    place = quarantine.place_of(loser.roles.volume) / "1000"
    place.mkdir()
    quarantine.choose_name(place, b"beta")
    kept = quarantine.Quarantined([b"both"], 0o100644, 0, 0, 7, 1_000, b"")
    (place / "0.file").write_bytes(msgspec.msgpack.encode(kept))
    loser.succession._publishing.wanted.set()
    await until(lambda: bool(loser.roles.host.background.status(0)))
    assert await content(winner, CONFLICTS_NAME, b"beta", b"both") == b"of beta"


async def test_a_second_split_brain_leaves_what_the_first_had_set_aside(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    await split(pair, network)
    winner, loser = await resolved(pair, "alpha")
    network.cut("alpha", "beta")
    await loser.unit.host.links.ended.wait()
    await loser.succession.takeover(force=False)
    for host in (winner, loser):
        await write(
            host, await find(host, b"both"), b"again " + host.roles.volume.identity.host_name.encode()
        )
    kept = CONFLICTS_NAME, b"beta"
    await write(loser, await find(loser, *kept, b"both"), b"merged ")  # by a person, by hand
    network.heal("alpha", "beta")
    await until(lambda: loser.unit.status()["mirror_state"] == "diverged")
    await resolved(pair, "alpha")
    assert await content(winner, CONFLICTS_NAME, b"beta", b"both") == b"of beta"
    assert await content(winner, CONFLICTS_NAME, b"beta-2", b"both") == b"again beta"
    assert await content(winner, CONFLICTS_NAME, b"beta-2", *kept, b"both") == b"merged "


async def test_what_programs_change_while_files_are_set_aside_waits_and_is_kept(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that was admitted before must not be made behind the copy: it would be lost."""
    file = await split(pair, network)
    images = pair.backup.roles.volume.images
    copying, copied, copy_out = trio.Event(), trio.Event(), images.content.copy_out

    async def slowly(function: Callable[..., int], *args: Any) -> int:
        if function == copy_out:
            copying.set()
            await copied.wait()
        return function(*args)

    monkeypatch.setattr(pair.backup.roles.volume, "run_blocking", slowly)
    pair.primary.succession.resolve("alpha")
    await copying.wait()
    done = []

    async def change(unit: ControlUnit | Role) -> None:
        done.append(await unit.perform(Write(file, 0), b"later"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change, pair.backup.roles)
        with pytest.raises(RoleChanged):
            await change(pair.backup.unit)
        await trio.sleep(60)
        assert not done
        assert pair.backup.unit.status()["mirror_state"] == "diverged"  # its commands are answered
        copied.set()
    await resolved(pair, "alpha")
    assert await content(pair.primary, b"both") == b"laterpha"
    assert await content(pair.primary, CONFLICTS_NAME, b"beta", b"both") == b"of beta"


async def test_a_disk_without_room_for_what_is_to_be_set_aside_leaves_everything_as_it_was(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await split(pair, network)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(pair.backup.roles.volume.images.content, "copy_out", full)
        pair.primary.succession.resolve("alpha")
        await trio.sleep(10)
        assert pair.backup.roles.volume.identity.role == "primary"
        await write(pair.backup, file, b"still written")
    winner, _ = await resolved(pair, "alpha")
    assert await content(winner, CONFLICTS_NAME, b"beta", b"both") == b"still written"


@pytest.mark.parametrize(("mode", "uid"), [(0o040700, 1000), (0o040777, 0), (0o100600, 0)])
async def test_what_is_set_aside_comes_into_a_directory_of_roots_own(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock, mode: int, uid: int
) -> None:
    """A directory of the name that a user has, or may write to, is not used, and nothing of it is lost."""
    await split(pair, network)
    made = await pair.primary.roles.perform(Create(ROOT_INODE, CONFLICTS_NAME, mode, uid, uid))
    assert made is not None
    if made.is_directory:
        await pair.primary.roles.perform(Create(made.number, b"beta", 0o040777, uid, uid))
        await pair.primary.roles.perform(Create(made.number, b"mine", 0o100600, uid, uid))
    assert await set_aside(pair.primary) == set(), "what users put there was never set aside"
    winner, _ = await resolved(pair, "alpha")
    assert await content(winner, CONFLICTS_NAME, b"beta", b"both") == b"of beta"
    for names in ((CONFLICTS_NAME,), (CONFLICTS_NAME, b"beta"), (CONFLICTS_NAME, b"beta", b"dir")):
        parent = await winner.roles.attributes(await find(winner, *names))
        assert (parent.uid, parent.mode & 0o022) == (0, 0)
    assert await find(winner, CONFLICTS_NAME + b"-of-users-1") == made.number
    if made.is_directory:
        assert await find(winner, CONFLICTS_NAME + b"-of-users-1", b"mine")


NAME = (ROOT_INODE, CONFLICTS_NAME)


@pytest.mark.parametrize(
    "operation",
    [
        Create(*NAME, 0o040755, 1000, 1000),
        HardLink(InodeNumber(5), *NAME),
        Unlink(*NAME),
        RemoveDirectory(*NAME),
        Rename(*NAME, ROOT_INODE, b"mine"),
        Rename(ROOT_INODE, b"mine", *NAME),
        Rename(InodeNumber(7), b"mine", *NAME, RENAME_EXCHANGE),
    ],
)
def test_the_name_of_the_directory_is_reserved_for_root(operation: Operation) -> None:
    with pytest.raises(OperationFailed) as caught:
        check_reserved(operation, 1000)
    assert caught.value.errno == errno.EPERM
    check_reserved(operation, 0)


def test_other_names_are_for_everybody() -> None:
    check_reserved(Create(InodeNumber(5), CONFLICTS_NAME, 0o040755, 1000, 1000), 1000)
    check_reserved(Rename(InodeNumber(5), CONFLICTS_NAME, ROOT_INODE, CONFLICTS_NAME + b"-1"), 1000)


async def test_status_counts_what_each_changed_and_the_list_says_who_is_away(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock
) -> None:
    await split(pair, network)
    for host in (pair.primary, pair.backup):
        await until(
            lambda host=host: None not in (pair.status(host)["conflicts"] or {"here": None}).values()  # type: ignore[misc]
        )
        counts = pair.status(host)["conflicts"]
        assert counts["here"] >= 3
        assert counts["there"] >= 3
        assert pair.status(host)["peer"]["connected"]
    network.cut("alpha", "beta")
    await until(lambda: not pair.primary.roles.host.exchange.connected)
    found = await pair.primary.succession.conflicts()
    assert found["hosts"]["beta"] is None
    assert found["hosts"]["alpha"]["complete"]
    assert {host for entry in found["changed"] for host in entry["changed_by"]} == {"alpha"}
    status = pair.status(pair.primary)
    assert status["conflicts"]["there"] is None
    assert not status["peer"]["connected"]
    network.heal("alpha", "beta")
    await resolved(pair, "beta")
    await until(lambda: pair.status(pair.primary)["conflicts"] is None)


async def test_hosts_that_talk_over_two_sessions_hear_each_other_over_whichever_is_left(
    volume: Volume, autojump_clock: MockClock
) -> None:
    """Each host dials one, and takes another than the other host does for the newest."""
    memory = MemoryNetwork(Random(1))
    here, there = DivergenceExchange(volume), DivergenceExchange(volume)
    async with trio.open_nursery() as nursery:
        sessions = []
        for _ in range(2):
            transports = await connect_pair(memory.host("alpha"), memory.host("beta"), "beta")
            sessions.append(await shake_hands(transports, PRIMARY, BACKUP))
            for session in sessions[-1]:
                await nursery.start(session.run)
        first, second = sessions
        nursery.start_soon(here.run_over, first[0])
        nursery.start_soon(there.run_over, second[1])
        await wait_all_tasks_blocked()
        nursery.start_soon(there.run_over, first[1])
        await wait_all_tasks_blocked()
        there._here_count = 2
        there._tell_count()
        await until(lambda: here._there_count == 2)
        nursery.start_soon(here.run_over, second[0])  # it begins anew, and has yet to read what was told
        await wait_all_tasks_blocked()
        await until(lambda: here._there_count == 2)
        second[0].close("the newest of this host is lost")
        await until(lambda: len(here._talks) == len(there._talks) == 1)
        listed = await here.list_there(5.0)
        assert listed is not None
        assert here._there_count == 2
        first[0].close("it ends")
    assert not here.connected
    assert here._there_count is None


async def test_where_there_is_much_to_look_up_it_is_counted_less_often(
    volume: Volume, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a host that goes on writing does little else; but another fork point is looked at soon."""
    first, counted = ChangeNumber(1), []

    async def count(changes: listing.DivergentChanges) -> int:
        counted.append((changes.first, trio.current_time()))
        changes.looked_up = [0, 5 * DIVERGENT_LOOKS_PER_S, 5 * DIVERGENT_LOOKS_PER_S][len(counted) - 1]
        return 1

    monkeypatch.setattr(exchange, "fork_point", lambda *_: first)
    monkeypatch.setattr(listing.DivergentChanges, "count", count)
    here, start = DivergenceExchange(volume), trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.run)
        here.begin(None)
        await trio.sleep(3)
        here.begin(None)  # as each handshake does
        await trio.sleep(1)
        assert counted == [(1, start), (1, start + DIVERGENT_LOOK_INTERVAL_S)]
        first = ChangeNumber(2)
        here.begin(None)
        await trio.sleep(4.5)
        assert counted[2:] == [(2, start + 4)]
        nursery.cancel_scope.cancel()


async def test_a_disk_that_cannot_be_read_ends_neither_the_mount_nor_the_conversation(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await split(pair, network)
    await until(lambda: pair.primary.roles.host.exchange.connected)

    def broken(*_: object) -> None:
        raise DiskFailed("volume", "broken")

    monkeypatch.setattr(pair.backup.roles.volume.catalog.tables, "rows", broken)
    monkeypatch.setattr(pair.backup.roles.volume.catalog, "entry", broken)
    await trio.sleep(10)
    found = await pair.primary.succession.conflicts()
    assert found["hosts"]["beta"] == {"count": 0, "listed": 0, "complete": False}
    assert pair.primary.roles.host.exchange.connected


async def test_a_list_is_bounded_and_says_how_much_is_left_out(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await split(pair, network)
    monkeypatch.setattr(listing, "DIFFERENCES_TOLD_MAX", 2)
    monkeypatch.setattr(exchange, "DIFFERENCES_PER_MESSAGE", 1)
    await until(lambda: pair.primary.roles.host.exchange.connected)
    found = (await pair.primary.succession.conflicts())["hosts"]
    for host in ("alpha", "beta"):
        assert found[host]["listed"] == 2
        assert found[host]["count"] > 2


async def test_a_list_is_bounded_by_bytes_and_says_how_much_is_left_out(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await split(pair, network)
    for index in range(20):
        name = b"%d" % index + b"n" * 200
        await pair.backup.roles.perform(Create(ROOT_INODE, name, 0o100644, 0, 0))
    monkeypatch.setattr(exchange, "DIFFERENCES_TOLD_BYTES_MAX", 1000)  # of what the other host tells
    await until(lambda: pair.primary.roles.host.exchange.connected)
    found = (await pair.primary.succession.conflicts())["hosts"]["beta"]
    assert 0 < found["listed"] <= 5 + len("beta")
    assert found["count"] > 20
    monkeypatch.setattr(listing, "DIFFERENCES_TOLD_BYTES_MAX", 1000)
    found = (await pair.backup.succession.conflicts())["hosts"]["beta"]
    assert 0 < found["listed"] <= 5 + len("beta")
    assert found["count"] > 20


async def test_what_is_set_aside_is_listed_within_bounds(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """However deep it lies, and however much it is."""
    parent = ROOT_INODE
    for name in (CONFLICTS_NAME, b"beta", *[b"d" * 255] * 40):
        made = await make_conflict(pair, parent, name, stat.S_IFDIR | 0o700)
        for index in range(3):
            await make_conflict(pair, made, b"%d" % index, stat.S_IFREG | 0o600)
        parent = made
    found = await pair.primary.succession.conflicts()
    assert len(found["set_aside"]) == found["set_aside_count"] == 42 * 3
    longest = max((file["path"] for file in found["set_aside"]), key=len)
    assert longest.startswith("...")
    assert len(longest) <= DIFFERENCE_PATH_BYTES_MAX + len("/0")
    monkeypatch.setattr(conflicts, "DIFFERENCES_TOLD_BYTES_MAX", 10_000)
    found = await pair.primary.succession.conflicts()
    assert 0 < len(found["set_aside"]) < found["set_aside_count"] == 42 * 3


async def make_conflict(pair: Pair, parent: InodeNumber, name: bytes, mode: int) -> InodeNumber:
    """As bringing in makes it."""
    made = await pair.primary.unit.perform(Create(parent, name, mode, 0, 0))
    assert made is not None
    return made.number


async def test_only_a_host_of_this_filesystem_can_be_kept(pair: Pair) -> None:
    with pytest.raises(UsageError, match="neither host"):
        pair.primary.succession.resolve("gamma")
    assert "no split brain" in pair.primary.succession.resolve("alpha")
