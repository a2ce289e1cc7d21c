"""Split brain: shown, resolved from either host, and nothing that gives way is thrown away."""

import pytest
import trio

from fusemirror.channel.memory import MemoryNetwork
from fusemirror.control.conflicts import CONFLICTS_NAME
from fusemirror.daemon import Host
from fusemirror.errors import HistoriesDiverged, OperationFailed, UsageError
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.operations import Create, Unlink, Write
from tests.admin.conftest import Pair, network, pair
from tests.control.test_roles import create, normal, until
from tests.volume.conftest import directory, volume

__all__ = ["directory", "network", "pair", "volume"]

pytestmark = pytest.mark.expects_warnings


async def write(host: Host, file: InodeNumber, data: bytes) -> None:
    await host.roles.perform(Write(file, 0), data)


async def split(pair: Pair, network: MemoryNetwork) -> InodeNumber:
    """Both change one file, and each makes one and a directory with one; they know that they parted."""
    file = await create(pair.primary, b"both")
    kept = await create(pair.primary, b"untouched")
    await write(pair.primary, kept, b"the same")
    network.cut("alpha", "beta")
    await pair.backup.unit.link_ended.wait()
    await pair.backup.roles.takeover(force=False)
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


def set_aside(host: Host) -> set[str]:
    return {file["path"] for file in host.roles.conflicts()["set_aside"]}


async def test_a_split_brain_is_shown_and_what_differs_is_listed(pair: Pair, network: MemoryNetwork) -> None:
    await split(pair, network)
    for host, name in ((pair.primary, "alpha"), (pair.backup, "beta")):
        found = host.roles.conflicts()
        assert found["diverged"]
        changed = {file["path"] for file in found["changed_here"]}
        assert {"/both", f"/dir/in {name}"} <= changed <= {"/both", f"/dir/in {name}", "/untouched"}
        with pytest.raises(HistoriesDiverged):
            await host.roles.switch()


@pytest.mark.parametrize("told", ["primary", "backup"])
@pytest.mark.parametrize("keep", ["alpha", "beta"])
async def test_either_host_can_be_told_which_copy_stays(
    pair: Pair, network: MemoryNetwork, told: str, keep: str
) -> None:
    await split(pair, network)
    winner, loser = (pair.primary, pair.backup) if keep == "alpha" else (pair.backup, pair.primary)
    lost = "beta" if keep == "alpha" else "alpha"
    for _ in range(2):
        getattr(pair, told).roles.resolve(keep)
    await until(lambda: loser.roles.volume.identity.role == "backup")
    await normal(winner, loser)
    assert "no split brain" in getattr(pair, told).roles.resolve(keep)
    await until(lambda: not any((loser.roles.volume.directory / "aside").iterdir()))
    aside = (CONFLICTS_NAME, lost.encode())
    for host in (winner, loser):
        assert set_aside(host) == {f"/{lost}/both", f"/{lost}/dir/in {lost}"}
        assert not host.roles.conflicts()["diverged"]
        assert await content(host, b"both") == b"of " + keep.encode()
        assert await content(host, b"untouched") == b"the same"
        assert await content(host, *aside, b"both") == b"of " + lost.encode()
        inside = await host.roles.attributes(await find(host, *aside, b"dir", b"in " + lost.encode()))
        assert (inside.mode, inside.uid, inside.gid) == (0o100640, 5, 6)
    await winner.roles.perform(Unlink(await find(loser, *aside), b"both"))
    with pytest.raises(OperationFailed):
        await find(loser, *aside, b"both")


async def test_a_host_that_is_away_yields_when_it_comes_back(pair: Pair, network: MemoryNetwork) -> None:
    await split(pair, network)
    network.cut("alpha", "beta")
    pair.backup.roles.resolve("beta")
    await trio.sleep(0.1)
    assert pair.primary.roles.volume.identity.role == "primary"
    network.heal("alpha", "beta")
    await until(lambda: pair.primary.roles.volume.identity.role == "backup")
    await normal(pair.primary, pair.backup)
    assert await content(pair.primary, b"both") == b"of beta"


async def test_only_a_host_of_this_filesystem_can_be_kept(pair: Pair) -> None:
    with pytest.raises(UsageError, match="neither host"):
        pair.primary.roles.resolve("gamma")
    assert "no split brain" in pair.primary.roles.resolve("alpha")
