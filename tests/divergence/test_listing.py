"""What a host changed since the fork point: each kind of change, at each of the two hosts."""

import os
import stat
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from fusemirror.change import Table
from fusemirror.daemon import Host
from fusemirror.divergence import listing
from fusemirror.divergence.listing import DivergentChanges, fork_point
from fusemirror.identifiers import ROOT_INODE, ChangeNumber, InodeNumber
from fusemirror.mirror.histories import history_of
from fusemirror.operations import (
    Create,
    HardLink,
    RemoveDirectory,
    Rename,
    SetAttributes,
    SetXattr,
    Unlink,
    Write,
)
from fusemirror.protocol.messages import Generation, History
from fusemirror.volume.entries import inode_key
from fusemirror.volume.inode import Inode
from fusemirror.volume.paths import Tree
from fusemirror.volume.volume import Volume
from tests.admin.conftest import Pair, network, pair
from tests.control.test_roles import until
from tests.memory_network import MemoryNetwork
from tests.volume.conftest import Writer, directory, volume, writer

__all__ = ["directory", "network", "pair", "volume", "writer"]

pytestmark = pytest.mark.expects_warnings


async def test_of_a_path_that_is_too_long_the_end_is_looked_for(pair: Pair) -> None:
    parent = ROOT_INODE
    names = [b"%d" % index + b"d" * 200 for index in range(200)]
    for name in names:
        made = await pair.primary.roles.perform(Create(parent, name, stat.S_IFDIR | 0o755, 0, 0))
        assert made is not None
        last, parent = parent, made.number
    tree = Tree(pair.primary.unit.volume)
    await tree.walk(None)
    assert tree.path((last, names[-1]), {}) == names
    assert tree.path((last, names[-1]), {}, 1000) == names[-5:]


Listed = dict[str, tuple[tuple[str, ...], str]]


class At:
    """What programs do at a host, by names in the root or in a directory."""

    def __init__(self, host: Host) -> None:
        self.host = host

    async def inode(self, path: str) -> InodeNumber:
        number = ROOT_INODE
        for name in filter(None, path.split("/")):
            number = (await self.host.roles.lookup(number, name.encode())).number
        return number

    async def split(self, path: str) -> tuple[InodeNumber, bytes]:
        parent, name = os.path.split(path)
        return await self.inode(parent), name.encode()

    async def create(self, path: str, mode: int = 0o100644, target: bytes = b"") -> None:
        await self.host.roles.perform(Create(*await self.split(path), mode, 0, 0, target=target))

    async def mkdir(self, path: str) -> None:
        await self.create(path, stat.S_IFDIR | 0o755)

    async def write(self, path: str, data: bytes = b"new") -> None:
        await self.host.roles.perform(Write(await self.inode(path), 0), data)

    async def chmod(self, path: str) -> None:
        await self.host.roles.perform(SetAttributes(await self.inode(path), mode=0o600))

    async def label(self, path: str) -> None:
        await self.host.roles.perform(SetXattr(await self.inode(path), b"user.label", b"value"))

    async def unlink(self, path: str) -> None:
        await self.host.roles.perform(Unlink(*await self.split(path)))

    async def rmdir(self, path: str) -> None:
        await self.host.roles.perform(RemoveDirectory(*await self.split(path)))

    async def rename(self, old: str, new: str, flags: int = 0) -> None:
        await self.host.roles.perform(Rename(*await self.split(old), *await self.split(new), flags))

    async def link(self, old: str, new: str) -> None:
        await self.host.roles.perform(HardLink(await self.inode(old), *await self.split(new)))

    async def listed(self) -> Listed:
        """What the host lists, but for what the two did to tell that they diverged."""
        listed = await self.host.roles.host.exchange.list_here()
        assert listed.whole
        assert listed.count == len(listed.differences)
        return {
            each.path.decode(): (each.kinds, each.was.decode())
            for each in listed.differences
            if each.path != b"/diverged"
        }


async def diverge(pair: Pair, network: MemoryNetwork) -> None:
    """The two have met again after each changed something alone."""
    network.cut("alpha", "beta")
    await pair.backup.unit.host.links.ended.wait()
    await pair.backup.succession.takeover(force=False)
    for host in (pair.primary, pair.backup):
        await At(host).create("/diverged")
    network.heal("alpha", "beta")
    for host in (pair.primary, pair.backup):
        await until(lambda host=host: host.unit.status()["mirror_state"] == "diverged")  # type: ignore[misc]
        await until(lambda host=host: host.roles.host.exchange.connected)  # type: ignore[misc]


async def _replace(at: At) -> None:
    """As editors save a file."""
    await at.create("/new")
    await at.write("/new")
    await at.rename("/new", "/file")


async def _move_tree(at: At) -> None:
    await at.rename("/dir", "/moved")
    await at.write("/moved/inside")
    await at.unlink("/moved/other")


async def _come_and_go(at: At) -> None:
    await at.create("/new")
    await at.rename("/new", "/newer")
    await at.unlink("/newer")
    await at.rename("/file", "/elsewhere")
    await at.rename("/elsewhere", "/file")


async def _remove_tree(at: At) -> None:
    await at.unlink("/dir/inside")
    await at.unlink("/dir/other")
    await at.rmdir("/dir")


CASES: dict[str, tuple[Callable[[At], Awaitable[None]], Listed]] = {
    "write": (lambda at: at.write("/file"), {"/file": (("content",), "")}),
    "chmod": (lambda at: at.chmod("/last"), {"/last": (("attributes",), "")}),
    "xattr": (lambda at: at.label("/dir"), {"/dir": (("attributes",), "")}),
    "chmod of the root": (lambda at: at.chmod("/"), {"/": (("attributes",), "")}),
    "create": (lambda at: at.create("/dir/new"), {"/dir/new": (("created",), "")}),
    "symlink": (lambda at: at.create("/new", 0o120777, b"file"), {"/new": (("created",), "")}),
    "mkdir": (lambda at: at.mkdir("/new"), {"/new": (("created",), "")}),
    "unlink": (lambda at: at.unlink("/dir/inside"), {"/dir/inside": (("deleted",), "")}),
    "rename": (lambda at: at.rename("/file", "/dir/new"), {"/dir/new": (("renamed",), "/file")}),
    "link": (lambda at: at.link("/file", "/new"), {"/new": (("created",), "")}),
    "rename over": (
        lambda at: at.rename("/dir/inside", "/file"),
        {"/file": (("content", "renamed"), "/dir/inside")},
    ),
    "exchange": (
        lambda at: at.rename("/dir/inside", "/file", 2),
        {
            "/file": (("content", "renamed"), "/dir/inside"),
            "/dir/inside": (("content", "renamed"), "/file"),
        },
    ),
    "replace": (_replace, {"/file": (("content",), "")}),
    "come and go": (_come_and_go, {}),
    "move a tree": (
        _move_tree,
        {
            "/moved": (("renamed",), "/dir"),
            "/moved/inside": (("content",), ""),
            "/dir/other": (("deleted",), ""),
        },
    ),
    "remove a tree": (
        _remove_tree,
        {"/dir": (("deleted",), ""), "/dir/inside": (("deleted",), ""), "/dir/other": (("deleted",), "")},
    ),
}


@pytest.mark.parametrize("place", ["primary", "backup"])
@pytest.mark.parametrize("case", CASES)
async def test_each_kind_of_change_is_listed_as_what_it_is(
    pair: Pair, network: MemoryNetwork, place: str, case: str, autojump_clock: trio.testing.MockClock
) -> None:
    before = At(pair.primary)
    await before.mkdir("/dir")
    for path in ("/file", "/dir/inside", "/dir/other", "/untouched"):
        await before.create(path)
        await before.write(path, b"old")
    await before.create("/last")  # what was written before it, the other host is known to have
    await diverge(pair, network)
    do, expected = CASES[case]
    at = At(getattr(pair, place))
    other = At(pair.backup if place == "primary" else pair.primary)
    await do(at)
    assert await at.listed() == expected
    assert await other.listed() == {}
    asked = await other.host.succession.conflicts()
    told = {
        entry["path"]: tuple(entry["changed_by"][at.host.roles.volume.identity.host_name]["kinds"])
        for entry in asked["changed"]
        if entry["path"] != "/diverged"
    }
    assert told == {path: kinds for path, (kinds, _) in expected.items()}
    here = at.host.roles.host.exchange
    assert here.here is not None
    assert await here.here.count() == len(expected) + 1


async def test_what_was_under_way_when_the_hosts_lost_each_other_is_listed(
    pair: Pair, network: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    network.cut("alpha", "beta")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(At(pair.primary).create, "/under way")
        await pair.backup.unit.host.links.ended.wait()
    await pair.backup.succession.takeover(force=False)
    theirs = history_of(pair.backup.roles.volume)
    volume = pair.primary.roles.volume
    changes = DivergentChanges(volume, fork_point(volume, theirs))
    assert [each.path for each in await changes.differences()] == [b"/under way"]
    assert len(await changes.files()) == 1


async def test_the_fork_point_is_where_the_first_of_them_began(pair: Pair) -> None:
    volume = pair.primary.roles.volume
    [common] = history_of(volume).generations
    last = volume.number

    def theirs(*begun: int) -> History:
        newer = (Generation(b"x" * 8, ChangeNumber(first)) for first in begun)
        return History((*newer, common), ChangeNumber(9), ChangeNumber(1), True, False)

    assert fork_point(volume, theirs()) == last + 1
    assert fork_point(volume, theirs(3, 2)) == 2
    assert fork_point(volume, theirs(last + 9)) == last + 1
    assert fork_point(volume, None) == 1
    unknown = History((Generation(b"y" * 8, ChangeNumber(1)),), ChangeNumber(9), ChangeNumber(1), True, False)
    assert fork_point(volume, unknown) == 1


async def test_where_the_journal_does_not_reach_back_everything_is_kept(
    pair: Pair, network: MemoryNetwork
) -> None:
    at = At(pair.primary)
    await at.mkdir("/dir")
    await at.create("/dir/file")
    volume = pair.primary.roles.volume
    changes = DivergentChanges(volume, ChangeNumber(volume.number + 1))
    assert await changes.files() == {}
    volume.journal.restart(volume.number)
    await at.create("/later")
    changes = DivergentChanges(volume, ChangeNumber(1))
    assert not changes.whole
    paths = [path for paths in (await changes.files()).values() for path in paths]
    assert sorted(paths) == [[b"dir"], [b"dir", b"file"], [b"later"]]


async def test_more_changes_than_are_remembered_are_not_called_all(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "DIVERGENT_KNOWN_MAX", 3)
    volume = pair.primary.roles.volume
    changes = DivergentChanges(volume, ChangeNumber(volume.number + 1))
    for name in ("a", "b", "c", "d", "e", "f"):
        await At(pair.primary).create(f"/{name}")
    assert 3 <= len(await changes.differences()) < 6
    assert not changes.whole


class Looks:
    """How often the catalog is asked for an inode, and most often between two turns of the loop."""

    def __init__(self, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = self.most = 0
        inode = volume.catalog.inode

        def looked_up(number: InodeNumber) -> Inode | None:
            self.count += 1
            return inode(number)

        monkeypatch.setattr(volume.catalog, "inode", looked_up)

    async def watch(self, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        while True:
            before = self.count
            await trio.lowlevel.checkpoint()
            self.most = max(self.most, self.count - before)


async def test_a_count_of_very_many_files_lets_others_go_on(
    volume: Volume, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [writer.create(b"%d" % index) for index in range(10 * listing._PER_TURN)]
    changes = DivergentChanges(volume, ChangeNumber(volume.number + 1))
    for index, file in enumerate(files):
        if index % 2:
            writer.write(file, 0, b"content")
        writer.namespace((Table.INODES, inode_key(file), writer.inode(file).pack()))
    looks = Looks(volume, monkeypatch)
    async with trio.open_nursery() as nursery:
        await nursery.start(looks.watch)
        assert await changes.count() == len(files)
        assert len(await changes.files()) == len(files)
        nursery.cancel_scope.cancel()
    assert looks.count >= len(files)
    assert looks.most <= 2 * listing._PER_TURN


async def test_what_did_not_change_is_not_counted_again(
    volume: Volume, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [writer.create(b"%d" % index) for index in range(3)]
    for file in files:
        writer.write(file, 0, b"content")
    writer.create(b"later")  # its record tells until when the other host has everything
    changes = DivergentChanges(volume, ChangeNumber(volume.number + 1))
    looks = Looks(volume, monkeypatch)
    assert await changes.count() == 0
    assert (looks.count, changes.looked_up) == (3, 3)
    assert await changes.count() == 0
    assert (looks.count, changes.looked_up) == (3, 0)
    marks, last = volume.regions.marks(), volume.journal.last_number
    writer.write(files[0], 0, b"changed")
    assert (volume.regions.marks(), volume.journal.last_number) == (marks, last), "neither tells of the write"
    assert await changes.count() == 1


async def test_a_path_that_is_too_long_is_shown_by_its_end(pair: Pair) -> None:
    at = At(pair.primary)
    volume = pair.primary.roles.volume
    changes = DivergentChanges(volume, ChangeNumber(volume.number + 1))
    parent = ROOT_INODE
    for _ in range(20):
        made = await pair.primary.roles.perform(Create(parent, b"d" * 255, 0o040755, 0, 0))
        assert made is not None
        parent = made.number
    await at.host.roles.perform(Create(parent, b"file", 0o100644, 0, 0))
    longest = max((each.path for each in await changes.differences()), key=len)
    assert len(longest) == 4096
    assert longest.startswith(b"...")
    assert longest.endswith((b"d/file", b"d"))


async def test_a_directory_that_leads_nowhere_ends_a_path(pair: Pair) -> None:
    tree = Tree(pair.primary.roles.volume)
    one, other = InodeNumber(5), InodeNumber(6)
    loop = {one: (other, b"one"), other: (one, b"other")}
    assert tree.path((one, b"file"), loop)[-1] == b"file"
