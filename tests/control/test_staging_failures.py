"""A store of staged requests that fails while its host goes on: nothing is carried out twice by it (G4)."""

import dataclasses
import errno
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from fusemirror import settings
from fusemirror.daemon import Host
from fusemirror.operations import Write
from fusemirror.seams import Seams
from fusemirror.volume.volume import Volume
from tests.admin.conftest import network
from tests.control.test_roles import content, create, normal
from tests.memory_network import MemoryNetwork
from tests.volume.conftest import ALPHA, IDENTITY, counting_seams

__all__ = ["network"]

FAILURES = {
    "a sync fails once": (1, 0),
    "each sync fails, and nothing is cut": (1 << 30, 1 << 30),
    "a sync fails, and cutting for a while": (3, 2),
}
"""How many syncs of the staged requests fail, and how many attempts to cut their file."""


class StagingDisk:
    """Where the backup's subvolume stages. It writes, and then fails as often as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.syncs_fail = self.cuts_fail = 0
        self._cut = os.ftruncate
        monkeypatch.setattr(os, "ftruncate", self._ftruncate)
        self.seams: Callable[[], Seams] = lambda: dataclasses.replace(
            counting_seams(), fdatasync=self._fdatasync
        )

    def _fdatasync(self, descriptor: int) -> None:
        if self.syncs_fail and _is_staged(descriptor):
            self.syncs_fail -= 1
            raise OSError(errno.ENOSPC, "no room was left when it was to be written")
        os.fdatasync(descriptor)

    def _ftruncate(self, descriptor: int, length: int) -> None:
        if self.cuts_fail and _is_staged(descriptor):
            self.cuts_fail -= 1
            raise OSError(errno.EIO, "broken")
        self._cut(descriptor, length)


def _is_staged(descriptor: int) -> bool:
    return Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".requests"


def host(directory: Path, name: str, peer: str, network: MemoryNetwork, seams: Seams) -> Host:
    chosen = settings.make(
        name="data",
        volume=str(directory / name),
        listen=f"{name}:7000",
        peer=f"{peer}:7000",
        communication="subvolume",
        acknowledge="async",
    )
    return Host(chosen, network.host(name), seams, keep=lambda _: None)


@pytest.mark.expects_warnings
@pytest.mark.parametrize("failure", FAILURES)
async def test_what_could_not_be_synced_is_not_carried_out_over_what_came_after_it(
    tmp_path: Path,
    network: MemoryNetwork,
    failure: str,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    disk = StagingDisk(monkeypatch)
    Volume.create(tmp_path / "alpha", msgspec.structs.replace(IDENTITY, role="primary", host_name="alpha"))
    backup_identity = msgspec.structs.replace(
        IDENTITY, role="backup", host="02", peers=(ALPHA,), host_name="beta", complete=False
    )
    Volume.create(tmp_path / "beta", backup_identity)
    async with AsyncExitStack() as mounted:
        primary = host(tmp_path, "alpha", "beta", network, counting_seams())
        await primary.open(mounted)
        async with AsyncExitStack() as mounted_first:
            backup = host(tmp_path, "beta", "alpha", network, disk.seams())
            await backup.open(mounted_first)
            await normal(primary, backup)
            file = await create(primary, b"file")
            await trio.sleep(1)
            disk.syncs_fail, disk.cuts_fail = FAILURES[failure]
            await backup.roles.perform(Write(file, 0), b"old")  # acknowledged by the primary's answer
            assert disk.syncs_fail < FAILURES[failure][0], "it was staged, and the disk failed"
            await trio.sleep(10)
            await primary.roles.perform(Write(file, 0), b"new")
            for each in (primary, backup):
                await each.roles.flush(file)
            await backup.roles.wait_drained()
            await trio.sleep(10)
        backup = host(tmp_path, "beta", "alpha", network, counting_seams())
        await backup.open(mounted)
        await normal(primary, backup)
        await backup.roles.wait_drained()
        assert [content(each, file) for each in (primary, backup)] == [b"new", b"new"]
