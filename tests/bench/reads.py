"""Reads at the backup under both hosts' load: how many would be routed to the primary by the source's rule of
overlapping writes [0061], and how many are, by the lease. `python -m tests.bench.reads`

Both hosts run in this process, over a network in memory; programs of each write and read random blocks of one
file at once. A read counts as overlapping where a write of either host to its block is under way.
"""

import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

import msgspec
import trio

from fusemirror import settings
from fusemirror.control.primary import PrimaryUnit
from fusemirror.daemon import Host
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.operations import Create, Write
from fusemirror.volume.volume import Volume
from tests.memory_network import MemoryNetwork
from tests.volume.conftest import ALPHA, IDENTITY, counting_seams

BLOCK = 4096
PROGRAMS = 4  # on each host
READS = 2_000  # at the backup, for each row
BLOCKS = (16, 256, 4096)
LATENCIES_S = (0.0001, 0.001)


class Load:
    """Programs of both hosts on one file, until the backup's have read enough."""

    def __init__(self, primary: Host, backup: Host, file: InodeNumber, blocks: int) -> None:
        self.primary, self.backup = primary, backup
        self.file, self.blocks = file, blocks
        self.random = Random(1)
        self.reads = self.overlapping = 0
        self.done = trio.Event()

    def is_overlapping(self, offset: int) -> bool:
        """The source's rule: a write of these bytes is under way at main, or is staged at this host."""
        assert isinstance(self.primary.unit, PrimaryUnit)
        if self.primary.unit.mirror.window.unsettled_range(self.file, offset, offset + BLOCK):
            return True
        staged = self.backup.unit.communication.pending()  # type: ignore[attr-defined]
        return any(each.operation.offset == offset for each in staged)

    async def program(self, host: Host) -> None:
        while not self.done.is_set():
            offset = self.random.randrange(self.blocks) * BLOCK
            await host.roles.perform(Write(self.file, offset), bytes(BLOCK))
            offset = self.random.randrange(self.blocks) * BLOCK
            if host is self.backup:
                self.reads += 1
                self.overlapping += self.is_overlapping(offset)
                if self.reads >= READS:
                    self.done.set()
            await host.roles.read(self.file, offset, BLOCK)


async def measure(directory: Path, latency_s: float) -> None:
    network = MemoryNetwork(Random(1), latency_s=latency_s)
    async with AsyncExitStack() as stack:
        hosts = []
        for role, name, peer in (("primary", "alpha", "beta"), ("backup", "beta", "alpha")):
            identity = msgspec.structs.replace(IDENTITY, role=role, host_name=name)
            if role == "backup":
                identity = msgspec.structs.replace(identity, host="02", peers=(ALPHA,), complete=False)
            Volume.create(directory / name, identity)
            addresses = {"listen": f"{name}:7000", "peer": f"{peer}:7000"}
            made = settings.make(name="data", volume=str(directory / name), **addresses)
            host = Host(made, network.host(name), counting_seams())
            await host.open(stack)
            hosts.append(host)
        for host in hosts:
            await host.roles.wait_normal()
        primary, backup = hosts
        for blocks in BLOCKS:
            inode = await primary.roles.perform(Create(ROOT_INODE, b"%d" % blocks, 0o100644, 0, 0))
            assert inode is not None
            await primary.roles.perform(Write(inode.number, (blocks - 1) * BLOCK), bytes(BLOCK))
            load, before = Load(primary, backup, inode.number, blocks), backup.roles.host.reads.routed
            async with trio.open_nursery() as nursery:
                for host in hosts:
                    for _ in range(PROGRAMS):
                        nursery.start_soon(load.program, host)
            routed = backup.roles.host.reads.routed - before
            share = load.overlapping / load.reads
            print(
                f"{latency_s * 1000:4g} ms, {blocks:5} blocks: {load.reads} reads at the backup, "
                f"{load.overlapping} ({share:.1%}) overlap a write under way, {routed} routed"
            )


def main() -> None:
    for latency_s in LATENCIES_S:
        with tempfile.TemporaryDirectory(prefix="fusemirror-") as directory:
            trio.run(measure, Path(directory), latency_s)


if __name__ == "__main__":
    main()
