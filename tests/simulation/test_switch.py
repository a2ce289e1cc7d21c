"""A switch without faults, on hosts whose processes are kept from running for a moment: at each of its steps.

A loaded machine does that. Whatever the moment: the hosts meet again at once, no program waits longer than
a second of simulated time, and nobody goes on alone. `FUSEMIRROR_SWITCH_STEPS=FIRST:STRIDE` takes others
than every second step.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from unittest import mock

import msgspec
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from fusemirror.channel.link import Linker
from fusemirror.channel.session import Session
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.mirror.histories import generations_of
from fusemirror.operations import Create, Write
from fusemirror.settings import Fence
from tests.simulation import disk
from tests.simulation.options import draw_options, limits_in_effect
from tests.simulation.process import allow_pauses, clocks_of_hosts
from tests.simulation.world import SimulatedHost, World

PEER_TIMEOUT_S = 5.0
PAUSE_S = 0.05
WAIT_MAX_S = 1.0
_FIRST, _STRIDE = (int(part) for part in os.environ.get("FUSEMIRROR_SWITCH_STEPS", "0:2").split(":"))
OPTIONS = msgspec.structs.replace(
    draw_options(Random(0)),
    acknowledge=("sync", "sync"),
    access="routed",
    clock_skew=0.0,
    communication="lmdb",
    disk_latency=0.0003,
    faults=(),
    fence=Fence.NEVER,
    finale="",
    hurry=1,
    io_timeout=3 * PEER_TIMEOUT_S,
    jitter=0.0005,
    latency=0.001,
    names_rest=0.0,
    peer_timeout=PEER_TIMEOUT_S,
    small_limits=False,
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


class Waits:
    """Programs that write on both hosts, and the longest that one of them has waited."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def write_for_ever(self, host: SimulatedHost, file: InodeNumber) -> None:
        while True:
            began = trio.current_time()
            with host.inside() as unit:
                await unit.perform(Write(file, 0), b"x" * 100)
            self.longest_s = max(self.longest_s, trio.current_time() - began)
            await trio.sleep(0.01)


async def _create(host: SimulatedHost, name: bytes) -> InodeNumber:
    with host.inside() as unit:
        inode = await unit.perform(Create(ROOT_INODE, name, 0o100600, 0, 0))
    assert inode is not None
    return inode.number


async def _normal(world: World) -> None:
    for host in world.hosts:
        with host.inside() as unit:
            await unit.wait_normal()


async def _switch(host: SimulatedHost) -> None:
    with host.inside():
        await host.succession.switch()


async def _pause_at(host: SimulatedHost, step: int, pause_s: float) -> None:
    """Let the host's process stand still for a while before a step, counted from now."""
    process = host.process
    process.stands_still, process.pause_at = trio.Event(), process.steps + 1 + step
    try:
        await process.stands_still.wait()
        await trio.sleep(pause_s)
    finally:
        process.pause_at = None
        process.resume()


class Switching:
    """Both hosts, programs on them, and one switch after the other."""

    def __init__(self, world: World, nursery: trio.Nursery) -> None:
        self.world = world
        self.waits = Waits()
        self._nursery = nursery

    async def begin(self) -> None:
        allow_pauses()
        for host in self.world.hosts:
            host.start(self._nursery.start_soon)
        self.world.prepared.set()
        for host in self.world.hosts:
            await host.serving.wait()
        await _normal(self.world)
        for host in self.world.hosts:
            file = await _create(self.world.primary, host.name.encode())
            self._nursery.start_soon(self.waits.write_for_ever, host, file)
        self._generations = self._count_generations()

    def _count_generations(self) -> list[int]:
        return [len(generations_of(host.unit.volume)) for host in self.world.hosts]

    async def switch(self, asked: str, paused: SimulatedHost, step: int) -> int:
        """Ask the host that has a role, while one stands still at a step; how many steps it made."""
        (host,) = (each for each in self.world.hosts if each.role == asked)
        began, first = trio.current_time(), paused.process.steps
        async with trio.open_nursery() as pausing:
            pausing.start_soon(_pause_at, paused, step, PAUSE_S)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(PEER_TIMEOUT_S * 4):
                await _switch(host)
                await _normal(self.world)
            steps = paused.process.steps - first
            pausing.cancel_scope.cancel()
        took_s = trio.current_time() - began
        where = f"{paused.name} stood still at step {step} of {steps}"
        assert took_s < WAIT_MAX_S, f"{where}: the switch took {took_s:.3f} s"
        assert self.waits.longest_s < WAIT_MAX_S, f"{where}: a program waited {self.waits.longest_s:.3f} s"
        assert self._count_generations() == self._generations, f"{where}: a host went on alone"
        return steps

    async def end(self) -> None:
        for host in self.world.hosts:
            host.kill()
            await host.ended.wait()


async def _switch_at_every_step(switching: Switching, asked: str, paused: str) -> None:
    (host,) = (each for each in switching.world.hosts if each.name == paused)
    await switching.begin()
    step = _FIRST
    while step <= await switching.switch(asked, host, step):
        step += _STRIDE
    await switching.end()


@pytest.mark.parametrize("paused", ["a", "b"])
@pytest.mark.parametrize("asked", ["primary", "backup"])
async def test_a_switch_is_over_soon_at_whatever_step_a_host_stands_still(
    world: World, nursery: trio.Nursery, autojump_clock: MockClock, paused: str, asked: str
) -> None:
    await _switch_at_every_step(Switching(world, nursery), asked, paused)


async def _read_nothing(_: Session) -> None:
    await trio.sleep_forever()


@contextmanager
def _sessions_end_unnoticed() -> Iterator[None]:
    """The mistake that there was: what a change of roles ends is not of the old role only, and nobody reads
    a session that waits for its partner."""
    meet_anew = Linker.meet_anew

    def mutated(linker: Linker, reason: str) -> None:
        linker._discard_accepted(reason)
        meet_anew(linker, reason)

    with (
        mock.patch.object(Linker, "hold"),
        mock.patch.object(Linker, "meet_anew", mutated),
        mock.patch.object(Session, "read_ahead", _read_nothing),
    ):
        yield


async def test_a_switch_that_ends_too_much_is_caught(
    world: World, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    switching = Switching(world, nursery)
    with _sessions_end_unnoticed(), pytest.raises((AssertionError, trio.TooSlowError)):
        await _switch_at_every_step(switching, "primary", "a")
    await switching.end()
