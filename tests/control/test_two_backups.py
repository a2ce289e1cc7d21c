"""Two backups meet, as after a volume was put back from a copy of when its host was one."""

from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from fusemirror import settings
from fusemirror.daemon import Host
from fusemirror.volume.volume import Volume
from tests.admin.conftest import NAME, network
from tests.control.test_roles import until
from tests.memory_network import MemoryNetwork
from tests.volume.conftest import ALPHA, IDENTITY, counting_seams

__all__ = ["network"]

NAMES = {"alpha": "beta", "beta": "alpha"}


async def mounted(stack: AsyncExitStack, directory: Path, network: MemoryNetwork) -> list[Host]:
    hosts = []
    for name, peer in NAMES.items():
        made = settings.make(
            name=NAME, volume=str(directory / name), listen=f"{name}:7000", peer=f"{peer}:7000"
        )
        hosts.append(Host(made, network.host(name), counting_seams(), keep=lambda _: None))
    for host in hosts:
        await host.open(stack)
    return hosts


@pytest.mark.expects_warnings
async def test_one_of_them_becomes_the_primary(
    tmp_path: Path, network: MemoryNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    alpha = msgspec.structs.replace(IDENTITY, role="primary", host_name="alpha")
    beta = msgspec.structs.replace(
        alpha, role="backup", host="02", peers=(ALPHA,), host_name="beta", complete=False
    )
    for identity in (alpha, beta):
        Volume.create(tmp_path / identity.host_name, identity)
    async with AsyncExitStack() as stack:
        hosts = await mounted(stack, tmp_path, network)
        for host in hosts:
            await host.unit.wait_normal()
        for host in reversed(hosts):
            await host.drain("it ends")
    volume = Volume.open(tmp_path / "alpha", counting_seams())
    volume.update_identity(role="backup")
    volume.close()
    async with AsyncExitStack() as stack:
        hosts = await mounted(stack, tmp_path, network)
        await until(lambda: {host.roles.volume.identity.role for host in hosts} == {"primary", "backup"})
        for host in hosts:
            await host.unit.wait_normal()
