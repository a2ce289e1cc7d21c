"""Every n-th call fails: each operation, at each host, meets a full disk at its 1st, 2nd, 3rd ... step.

A step is a call that changes the disk of the host, or a commit of LMDB; syncs are left out. After each
attempt the operation is there wholly or not at all, both hosts become normal and hold the same; at the
end both volumes are clean. FUSEMIRROR_EVERY_CALL=N tries up to N steps of each; a few by default.
"""

import errno
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import msgspec
import pytest
import trio
import trio.testing

from fusemirror.control.unit import ControlUnit
from fusemirror.errors import CheckReport, OperationFailed
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.operations import (
    Create,
    Link,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetXattr,
    Unlink,
    Write,
)
from fusemirror.settings import Fence
from fusemirror.volume.check import check as check_volume
from tests.simulation import disk, simulate
from tests.simulation.options import draw_options, limits_in_effect
from tests.simulation.process import clocks_of_hosts
from tests.simulation.world import SimulatedHost, World

STEPS_MAX = int(os.environ.get("FUSEMIRROR_EVERY_CALL", "6"))
PATIENCE_S = 300.0
SETTLE_S = 15.0  # what was deleted is purged, and two checkpoints were made

Do = Callable[[ControlUnit, InodeNumber, bytes], Awaitable[object]]
State = tuple[object, ...]

OPERATIONS: dict[str, Do] = {
    "create": lambda unit, _, name: unit.perform(Create(ROOT_INODE, name + b"'", 0o100600, 0, 0)),
    "mkdir": lambda unit, _, name: unit.perform(Create(ROOT_INODE, name + b"'", 0o040700, 0, 0)),
    "write": lambda unit, inode, _: unit.perform(Write(inode, 1), b"WRITTEN"),
    "append": lambda unit, inode, _: unit.perform(Write(inode, 0, append=True), b"more" * 30_000),
    "truncate": lambda unit, inode, _: unit.perform(SetAttributes(inode, size=3)),
    "chmod": lambda unit, inode, _: unit.perform(SetAttributes(inode, mode=0o640)),
    "unlink": lambda unit, _, name: unit.perform(Unlink(ROOT_INODE, name)),
    "rename": lambda unit, _, name: unit.perform(Rename(ROOT_INODE, name, ROOT_INODE, name + b"'")),
    "link": lambda unit, inode, name: unit.perform(Link(inode, ROOT_INODE, name + b"'")),
    "set_xattr": lambda unit, inode, _: unit.perform(SetXattr(inode, b"user.b", b"new")),
    "remove_xattr": lambda unit, inode, _: unit.perform(RemoveXattr(inode, b"user.a")),
    "flush": lambda unit, inode, _: unit.flush(inode),
}


_ENDS_THE_SERVICE = frozenset({"fdatasync", "fsync", "ftruncate", "truncate"})
"""After an error of a sync, or one of taking back, nobody knows what the disk holds: the host stops."""


class FailingRoom(disk.Room):
    """The step that `fail_at` names fails once, whatever it is."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.fail_at = 0

    def step(self, name: str) -> None:
        if name in _ENDS_THE_SERVICE:
            return
        self.steps += 1
        if self.steps == self.fail_at:
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def state_of(unit: ControlUnit, inode: InodeNumber, name: bytes) -> State:
    """Everything that an operation may change."""
    facts: list[object] = []
    for each in (name, name + b"'"):
        try:
            found = await unit.lookup(ROOT_INODE, each)
            facts.append((found.mode, found.nlink, found.size))
        except OperationFailed as error:
            facts.append(error.errno)
    try:
        facts.append(await unit.read(inode, 0, 1 << 20))
        facts.append(sorted(await unit.xattrs(inode)))
    except OperationFailed as error:
        facts.append(error.errno)  # without a name it was purged meanwhile
    return tuple(facts)


async def settled(world: World) -> None:
    """Both hosts are normal, and hold the same."""
    with trio.fail_after(PATIENCE_S):
        for host in world.hosts:
            await host.unit.wait_normal()
        for host in world.hosts:
            await host.unit.wait_drained()
        for host in world.hosts:
            await host.unit.wait_normal()


async def attempt(world: World, host: SimulatedHost, room: FailingRoom, operation: Do, name: bytes) -> bool:
    """One try of the operation on a file of its own; whether a step failed in it."""
    with world.primary.inside() as primary:
        made = await primary.perform(Create(ROOT_INODE, name, 0o100600, 0, 0))
        assert made is not None
        inode = made.number
        await primary.perform(Write(inode, 0), b"content of this file")
        await primary.perform(SetXattr(inode, b"user.a", b"old"))
        before = await state_of(primary, inode, name)
    refused = room.refused
    failed = False
    # The program is on either host by turns.
    step = int(name.split(b"-")[1])
    asked = host if step % 2 else next(each for each in world.hosts if each is not host)
    room.fail_at = room.steps + step
    with asked.inside() as unit:
        try:
            await operation(unit, inode, name)
        except OperationFailed:
            failed = True
        except CheckReport:
            pass  # it waited too long for the other host, which may do it yet
    room.fail_at = 0
    await settled(world)
    states = []
    for each in world.hosts:
        with each.inside() as unit:
            states.append(await state_of(unit, inode, name))
    if b"unlink" not in name:  # whether it is purged by now is chance
        assert states[0] == states[1], f"the hosts differ: {states}"
    assert states[0][:2] == states[1][:2], f"the hosts differ: {states}"
    if failed:
        assert states[0] == before, "an operation that failed was done, or half of it"
    return room.refused > refused


@pytest.mark.expects_warnings
@pytest.mark.parametrize("place", ["primary", "backup"])
@pytest.mark.parametrize("kind", OPERATIONS)
def test_an_operation_is_done_wholly_or_not_at_all_whatever_step_fails(kind: str, place: str) -> None:
    options = msgspec.structs.replace(
        draw_options(Random(kind)),
        faults=(),
        small_limits=False,
        fence=Fence.NEVER,
        witness=False,  # else what was under way when the backup was lost is in doubt
        acknowledge=("sync", "sync"),
    )
    with (
        tempfile.TemporaryDirectory(prefix="fm-every-call-", dir=simulate._MEMORY) as directory,
        disk.counted_steps(),
        clocks_of_hosts(),
        limits_in_effect(options),
    ):
        world = World(Random(kind).getrandbits(32), options, Path(directory))
        host: SimulatedHost = getattr(world, place)
        room = host.room = FailingRoom()

        async def run() -> None:
            async with trio.open_nursery() as nursery:
                for each in world.hosts:
                    each.start(nursery.start_soon)
                for each in world.hosts:
                    await each.serving.wait()
                world.prepared.set()
                await settled(world)
                fired = 0
                for step in range(1, STEPS_MAX + 1):
                    if not await attempt(
                        world, host, room, OPERATIONS[kind], b"%s-%d" % (kind.encode(), step)
                    ):
                        break  # it got through
                    fired += 1
                    await trio.sleep(SETTLE_S)  # of a clock that jumps
                    await settled(world)
                    simulate._compare_volumes(*(each.present.volume for each in world.hosts))
                assert fired or kind in ("flush", "truncate")
                for each in world.hosts:
                    each.stop()
                    await each.ended.wait()

        trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
        for each in world.hosts:
            problems: list[str] = []
            check_volume(each.directory, False, problems.append)
            assert not problems, problems
