"""Both hosts' disks: what `df` says, who is told that one is full, and that deleting helps."""

import errno
from pathlib import Path

import pytest

from fusemirror.daemon import Host
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import ROOT_INODE
from fusemirror.limits import GIB, MIB, SPACE_RESERVE_BYTES_MAX, SPACE_RESERVE_INODES
from fusemirror.operations import Create, Unlink, Write
from fusemirror.volume.volume import Volume
from tests.admin.conftest import Pair, network, pair
from tests.control.test_roles import until
from tests.memory_network import MemoryNetwork
from tests.volume.conftest import directory, volume
from tests.volume.test_space import Disk

__all__ = ["directory", "network", "pair", "volume"]

BLOCK = 4096


def give_disk(host: Host, disk: Disk) -> Disk:
    host.roles.volume.space._statvfs = disk.statvfs
    return disk


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusemirror.control.disks.SPACE_LOOK_INTERVAL_S", 0.02)
    monkeypatch.setattr("fusemirror.control.committing.COMMIT_INTERVAL_S", 0.02)
    monkeypatch.setattr("fusemirror.control.committing.SPACE_LOOK_INTERVAL_S", 0.02)
    monkeypatch.setattr("fusemirror.mirror.applying.SPACE_LOOK_INTERVAL_S", 0.02)
    monkeypatch.setattr("fusemirror.mirror.peer_space.SPACE_LOOK_INTERVAL_S", 0.02)


@pytest.fixture
def disks(quick: None, pair: Pair) -> tuple[Disk, Disk]:
    first, second = give_disk(pair.primary, Disk(100 * GIB)), give_disk(pair.backup, Disk(10 * GIB))
    second.inodes, second.free_inodes = 50_000, 20_000
    return first, second


async def test_df_shows_the_disk_that_has_less_and_what_it_was_while_the_other_is_away(
    pair: Pair, disks: tuple[Disk, Disk], network: MemoryNetwork
) -> None:
    first, second = disks

    def shown(host: Host) -> tuple[int, int, int, int, int]:
        found = host.roles.statvfs()
        assert found.f_ffree == found.f_favail
        sizes = (found.f_blocks * BLOCK, found.f_bfree * BLOCK, found.f_bavail * BLOCK)
        return (*sizes, found.f_files, found.f_favail)

    def bytes_of(disk: Disk) -> tuple[int, int, int]:
        return disk.size_bytes, disk.free_bytes, disk.free_bytes - SPACE_RESERVE_BYTES_MAX

    def inodes_of(disk: Disk) -> tuple[int, int]:
        return disk.inodes, disk.free_inodes - SPACE_RESERVE_INODES

    expected = (*bytes_of(second), *inodes_of(first))  # the one has fewer bytes, the other fewer inodes
    for host in (pair.primary, pair.backup):
        await until(lambda host=host: shown(host) == expected)  # type: ignore[misc]
    first.free_bytes, second.free_inodes = 5 * GIB, 3_000
    expected = (*bytes_of(first), *inodes_of(second))
    for host in (pair.primary, pair.backup):
        await until(lambda host=host: shown(host) == expected)  # type: ignore[misc]
    network.cut("alpha", "beta")
    for host in (pair.primary, pair.backup):
        if host.unit.link is not None:
            host.unit.link.close("cut")
        await host.unit.host.links.ended.wait()
        assert shown(host) == expected
    second.free_inodes = 500
    assert shown(pair.backup) == (*bytes_of(first), *inodes_of(second))
    await pair.backup.succession.takeover(force=False)
    assert shown(pair.backup)[:3] == bytes_of(first), "a change of roles forgets nothing"


async def test_a_disk_that_counts_no_inodes_leaves_those_of_the_other(
    pair: Pair, disks: tuple[Disk, Disk]
) -> None:
    disks[0].inodes = disks[0].free_inodes = 0
    for host in (pair.primary, pair.backup):
        await until(lambda host=host: host.roles.statvfs().f_files == 50_000)  # type: ignore[misc]


@pytest.mark.expects_warnings
@pytest.mark.parametrize("lacks", ["bytes", "inodes"])
async def test_both_hosts_say_whose_disk_is_full_and_programs_are_refused_before_the_change(
    pair: Pair, disks: tuple[Disk, Disk], lacks: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fusemirror")
    made = await pair.primary.roles.perform(Create(ROOT_INODE, b"file", 0o100644, 0, 0))
    assert made is not None
    if lacks == "bytes":
        disks[1].free_bytes = SPACE_RESERVE_BYTES_MAX - MIB
    else:
        disks[1].free_inodes = SPACE_RESERVE_INODES - 1
    for host, own, theirs in ((pair.primary, False, True), (pair.backup, True, False)):
        await until(  # the disk of beta
            lambda host=host, own=own, theirs=theirs: (
                (  # type: ignore[misc]
                    pair.status(host)["disk"]["full"],
                    pair.status(host)["disk"]["peer_full"],
                )
                == (own, theirs)
            )
        )
    replica = pair.primary.unit.replica  # type: ignore[attr-defined]
    await until(lambda: not replica.room.has(MIB))  # it hears of that by a word of its own
    number = pair.primary.roles.volume.number
    for host in (pair.primary, pair.backup):
        with pytest.raises(OperationFailed) as refused:
            await host.roles.perform(Write(made.number, 0), b"x" * MIB)
        assert refused.value.errno == errno.ENOSPC
    assert pair.primary.roles.volume.number == number
    await until(lambda: caplog.text.count("the disk of beta is full") == 2)
    assert "the disk of alpha is full" not in caplog.text
    assert pair.status(pair.primary)["mirror_state"] == "normal"
    disks[1].free_bytes, disks[1].free_inodes = GIB, 1000
    await until(lambda: caplog.text.count("the disk of beta has room again") == 2)
    await pair.backup.roles.perform(Write(made.number, 0), b"x" * MIB)


def test_on_a_disk_without_inodes_deleting_frees_them(volume: Volume, directory: Path) -> None:
    """They were kept, in empty images for files to come, while nothing could be made any more."""
    images = volume.images
    spares = directory / "images" / "spare"
    spares.mkdir(exist_ok=True)
    for number in range(4):
        (spares / f"{number:x}").touch()
        images.spares._paths.append(str(spares / f"{number:x}"))
    images.spares.keep(True)
    assert len(list(spares.iterdir())) == 4
    images.spares.keep(False)
    assert list(spares.iterdir()) == []


async def test_images_of_deleted_files_become_no_spares_where_inodes_are_few(
    pair: Pair, disks: tuple[Disk, Disk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusemirror.control.upkeep.PURGE_AFTER_S", 0.02)
    images = [Path(host.settings.volume) / "images" for host in (pair.primary, pair.backup)]

    def inodes() -> list[int]:
        return [sum(path.is_file() for path in each.rglob("*")) for each in images]

    before = inodes()
    for name in (b"one", b"two", b"three"):
        made = await pair.primary.roles.perform(Create(ROOT_INODE, name, 0o100644, 0, 0))
        assert made is not None
        await pair.primary.roles.perform(Write(made.number, 0), name)
    for disk in disks:
        disk.free_inodes = 2 * SPACE_RESERVE_INODES - 1
    for name in (b"one", b"two", b"three"):
        await pair.backup.roles.perform(Unlink(ROOT_INODE, name))
    await until(lambda: inodes() == before)
