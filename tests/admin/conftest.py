"""What the tests of the socket share: a primary alone, and a pair of hosts in one process."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import trio

from fusemirror import settings
from fusemirror.admin.server import AdminServer
from fusemirror.admin.snapshot import Mounted, snapshot
from fusemirror.control.management import Management
from fusemirror.daemon import Host
from fusemirror.volume.volume import Volume
from tests.filesystem.conftest import unit
from tests.memory_network import MemoryNetwork
from tests.volume.conftest import ALPHA, IDENTITY, counting_seams, directory, volume

__all__ = ["Pair", "Serving", "directory", "network", "pair", "serving", "unit", "volume"]

NAME = "data"


@dataclass
class Serving:
    """A mount's socket in `runtime_dir`, and the reasons for which the mount was asked to stop."""

    runtime_dir: Path
    stopped: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.runtime_dir / f"{NAME}.sock"


@pytest.fixture
async def serving(unit: Any, tmp_path: Path) -> AsyncIterator[Serving]:
    made = Serving(tmp_path)
    server = AdminServer(Management(unit), lambda: {"role": unit.unit.status()["role"]}, made.stopped.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run, made.path)
        yield made
        nursery.cancel_scope.cancel()


class Pair:
    """Both hosts, as their mounts build them, over a network in memory."""

    def __init__(self, primary: Host, backup: Host, kept: dict[str, list[dict[str, Any]]]) -> None:
        self.primary = primary
        self.backup = backup
        self.kept = kept
        """What each role's host has put into its config file by itself."""

    def status(self, host: Host) -> dict[str, Any]:
        mounted = Mounted(host.settings, "/mnt/data", 4711, "1.2.3", lambda: {"attributes_granted": 7})
        return snapshot(mounted, host.unit, host.linker, host.seams.now_ns)


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork(Random(1))


@pytest.fixture
async def pair(request: pytest.FixtureRequest, tmp_path: Path, network: MemoryNetwork) -> AsyncIterator[Pair]:
    """Linked and normal. A parameter is its `communication`; a file of tests may have PAIR_SETTINGS."""
    more: dict[str, Any] = getattr(request.module, "PAIR_SETTINGS", {})
    async with AsyncExitStack() as stack:
        hosts: list[Host] = []
        kept: dict[str, list[dict[str, Any]]] = {"primary": [], "backup": []}
        for role, name, peer in (("primary", "alpha", "beta"), ("backup", "beta", "alpha")):
            made = settings.make(
                name=NAME,
                volume=str(tmp_path / name),
                listen=f"{name}:7000",
                peer=f"{peer}:7000",
                communication=getattr(request, "param", "lmdb"),
                **more,
            )
            identity = msgspec.structs.replace(IDENTITY, role=role, host_name=name)
            if role == "backup":
                identity = msgspec.structs.replace(identity, host="02", peers=(ALPHA,), complete=False)
            Volume.create(tmp_path / name, identity)
            host = Host(made, network.host(name), counting_seams(), keep=kept[role].append)
            await host.open(stack)
            hosts.append(host)
        both = Pair(hosts[0], hosts[1], kept)
        for host in hosts:
            await host.unit.wait_normal()
        yield both
