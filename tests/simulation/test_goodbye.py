"""A backup that leaves: the primary goes on alone at once, or when the backup's kernel keeps nothing more."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import msgspec
import pytest
import trio
from trio.testing import MockClock

from fusemirror.identifiers import ROOT_INODE
from fusemirror.operations import Create
from fusemirror.settings import Fence
from tests.simulation import disk
from tests.simulation.options import draw_options, limits_in_effect
from tests.simulation.process import clocks_of_hosts
from tests.simulation.world import SimulatedHost, World

PEER_TIMEOUT_S = 5.0
OPTIONS = msgspec.structs.replace(
    draw_options(Random(0)),
    acknowledge=("sync", "sync"),
    clock_skew=0.0,
    disk_latency=0.0,
    faults=(),
    fence=Fence.NEVER,
    finale="",
    hurry=20,
    io_timeout=3 * PEER_TIMEOUT_S,
    jitter=0.0,
    latency=0.001,
    names_rest=0.1,
    peer_timeout=PEER_TIMEOUT_S,
    witness=False,
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with (
        tempfile.TemporaryDirectory(dir=tmp_path) as directory,
        disk.counted_steps(),
        clocks_of_hosts(),
        limits_in_effect(OPTIONS),
    ):
        yield World(0, OPTIONS, Path(directory))


async def _served(world: World, nursery: trio.Nursery) -> None:
    """Both hosts serve, and are normal, from now on."""
    for host in world.hosts:
        host.start(nursery.start_soon)
    world.prepared.set()
    for host in world.hosts:
        await host.serving.wait()
        await host.unit.wait_normal()


async def _make(host: SimulatedHost, name: bytes) -> None:
    with host.inside() as unit:
        await unit.perform(Create(ROOT_INODE, name, 0o100600, 0, 0))


async def _alone_after(world: World, leave: Callable[[SimulatedHost], None]) -> tuple[float, float]:
    """After how many seconds the primary has made a change alone, and those for which the backup's kernel
    may have kept what it was told just before `leave`.
    """
    began = trio.current_time()
    with world.backup.inside() as unit:
        kept_s = unit.cacheable_s(ROOT_INODE)
    assert kept_s > PEER_TIMEOUT_S / 2, "there is no lease"
    leave(world.backup)
    with trio.fail_after(3 * PEER_TIMEOUT_S):
        await _make(world.primary, b"of this disk there is no copy")
    assert world.primary.present.is_primary
    assert world.primary.present.degraded.acknowledges_alone
    return trio.current_time() - began, kept_s


async def _end(world: World) -> None:
    for host in world.hosts:
        host.room.has_room()
        host.kill()
        await host.ended.wait()


@pytest.mark.expects_warnings
@pytest.mark.parametrize(
    "leave",
    [lambda host: host.room.broken_after(0), lambda host: host.room.full_after(0)],
    ids=["failed", "full"],
)
async def test_a_host_whose_disk_takes_no_more_is_outlived_by_what_its_kernel_keeps(
    world: World, nursery: trio.Nursery, autojump_clock: MockClock, leave: Callable[[SimulatedHost], None]
) -> None:
    await _served(world, nursery)
    alone_s, kept_s = await _alone_after(world, leave)
    assert alone_s >= kept_s
    await _end(world)


@pytest.mark.expects_warnings
async def test_the_status_says_at_once_that_the_backup_leaves(
    world: World, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await _served(world, nursery)
    world.backup.room.full_after(0)
    nursery.start_soon(_make, world.primary, b"of this disk there is no copy")
    await trio.sleep(PEER_TIMEOUT_S / 5)
    with world.primary.inside():
        status = world.primary.present.status()
    assert status["mirror_state"] == "degraded"
    assert "said goodbye" in str(status["reason"])
    await trio.sleep(PEER_TIMEOUT_S)
    await _end(world)


async def test_a_host_that_is_unmounted_lets_the_other_go_on_at_once(
    world: World, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await _served(world, nursery)
    alone_s, kept_s = await _alone_after(world, SimulatedHost.stop)
    assert alone_s < kept_s / 2
    await _end(world)
