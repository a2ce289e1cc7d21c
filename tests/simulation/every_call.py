"""Every n-th call fails: each operation, at each host, meets a fault at its 1st, 2nd, 3rd ... call.

The faults are those of `calls.py`. An operation is made, by a program on either host, while the n-th call of
one host fails, then it is flushed, and the timers' commits and checkpoints go by. Then whatever the
fault was has passed: a host that stopped serving is mounted again. The operation is there wholly or not at
all; what was acknowledged is there; both hosts are normal and hold the same; at the end of a case both
volumes are clean. `python -m tests.simulation.every_call [--jobs N] [FAULT...]` tries every call.
"""

import logging
import sys
import tempfile
import traceback
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec
import trio

from fusemirror.control.unit import ControlUnit
from fusemirror.errors import CheckReport, FusemirrorError, OperationFailed
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.operations import (
    Create,
    HardLink,
    RemoveDirectory,
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
from tests.simulation.calls import FAULTS, FailingCalls, Fault, counted_calls
from tests.simulation.options import Options, draw_options, limits_in_effect
from tests.simulation.process import SimulatedTime, clocks_of_hosts
from tests.simulation.world import SimulatedHost, World

PATIENCE_S = 300.0
HURRY = 20
LATER_S = 0.6  # a commit and a checkpoint are made meanwhile
SETTLE_S = 3.0  # what was deleted is purged, and two checkpoints were made
ALL_CALLS = range(1, 400)  # of an operation and what follows it

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
    "rmdir": lambda unit, _, name: unit.perform(RemoveDirectory(ROOT_INODE, name + b'"')),
    "rename": lambda unit, _, name: unit.perform(Rename(ROOT_INODE, name, ROOT_INODE, name + b"'")),
    "exchange": lambda unit, _, name: unit.perform(Rename(ROOT_INODE, name, ROOT_INODE, name + b'"', 2)),
    "link": lambda unit, inode, name: unit.perform(HardLink(inode, ROOT_INODE, name + b"'")),
    "set_xattr": lambda unit, inode, _: unit.perform(SetXattr(inode, b"user.b", b"new")),
    "remove_xattr": lambda unit, inode, _: unit.perform(RemoveXattr(inode, b"user.a")),
    "flush": lambda unit, inode, _: unit.flush(inode),
}

PLACES = ("primary", "backup")
ACKNOWLEDGE = ("sync", "async")


class Case(NamedTuple):
    """An operation, the host whose calls fail, how they fail, and when the backup acknowledges."""

    kind: str
    place: str
    fault: str
    acknowledge: str = "sync"

    def __str__(self) -> str:
        return "-".join(self)


def all_cases() -> list[Case]:
    """Only data is acknowledged early, so only writes are tried so."""
    cases = [Case(*each) for each in product(OPERATIONS, PLACES, FAULTS)]
    early = [Case(*each, "async") for each in product(("write", "append"), PLACES, FAULTS)]
    return cases + early


async def state_of(unit: ControlUnit, inode: InodeNumber, name: bytes) -> State:
    """Everything that an operation may change."""
    facts: list[object] = []
    for each in (name, name + b"'", name + b'"'):
        try:
            found = await unit.lookup(ROOT_INODE, each)
            facts.append((found.mode, found.nlink, found.size))
        except OperationFailed as error:
            facts.append(error.errno)
    if facts[:2] == facts[1::-1]:  # without a name it may have been purged by now
        return tuple(facts)
    facts.append(await unit.read(inode, 0, 1 << 20))
    facts.append(sorted(await unit.xattrs(inode)))
    return tuple(facts)


class Trial:
    """One case: attempt after attempt in one world."""

    def __init__(self, case: Case, world: World) -> None:
        self.case = case
        self.attempts = 0
        self.fired: Counter[str] = Counter()
        self._world = world
        self._host: SimulatedHost = getattr(world, case.place)
        self._fault: Fault = FAULTS[case.fault]
        self._room = self._host.room = FailingCalls(self._fault)
        self._operation = OPERATIONS[case.kind]

    async def run(self, calls: Iterable[int]) -> None:
        """Let these calls fail, one in each attempt, until the operation gets through."""
        async with trio.open_nursery() as nursery:
            for each in self._world.hosts:
                each.start(nursery.start_soon)
            for each in self._world.hosts:
                await each.serving.wait()
            self._world.prepared.set()
            await self._settled()
            self._before, self._after = await self._whole_and_not_at_all()
            for call in calls:
                fired = [await self._attempt(call, asked, nursery) for asked in self._world.hosts]
                if not any(fired):
                    break
            else:
                assert calls is not ALL_CALLS, "it never gets through"
            for each in self._world.hosts:
                each.stop()
                await each.ended.wait()

    async def _settled(self) -> None:
        """Both hosts are normal, and hold the same."""
        with trio.fail_after(PATIENCE_S):
            for host in self._world.hosts:
                await host.unit.wait_normal()
            for host in self._world.hosts:
                await host.unit.wait_drained()
            for host in self._world.hosts:
                await host.unit.wait_normal()

    async def _make_file(self, name: bytes) -> InodeNumber:
        with self._world.primary.inside() as unit:
            made = await unit.perform(Create(ROOT_INODE, name, 0o100600, 0, 0))
            assert made is not None
            await unit.perform(Write(made.number, 0), b"content of this file")
            await unit.perform(SetXattr(made.number, b"user.a", b"old"))
            await unit.perform(Create(ROOT_INODE, name + b'"', 0o040700, 0, 0))
            return made.number

    async def _whole_and_not_at_all(self) -> tuple[State, State]:
        """What is there before the operation, and after it, where nothing fails."""
        inode = await self._make_file(b"whole")
        with self._world.primary.inside() as unit:
            before = await state_of(unit, inode, b"whole")
            await self._operation(unit, inode, b"whole")
            await unit.flush(inode)
            return before, await state_of(unit, inode, b"whole")

    async def _attempt(self, call: int, asked: SimulatedHost, nursery: trio.Nursery) -> bool:
        """One try, on a file of its own; whether the call was made, and failed."""
        self.attempts += 1
        name = b"%s-%d-%s" % (self.case.kind.encode(), call, asked.name.encode())
        inode = await self._make_file(name)
        self._room.arm(call)
        done = await self._do(asked, inode, name)
        if not self._fault.of_channel:  # or there would be no end: heartbeats go on and on
            await trio.sleep(LATER_S)  # of a clock that jumps
        self._room.disarm()
        if self._room.fired is not None:
            self.fired[self._room.fired] += 1
        await self._mend(call, nursery)
        await self._settled()
        states = []
        for each in self._world.hosts:
            with each.inside() as unit:
                states.append(await state_of(unit, inode, name))
        assert states[0] == states[1], f"{name!r}: the hosts differ: {states}"
        told = f"{name!r}, asked at {asked.name}, {self._room.fired} failed"
        assert states[0] in (self._before, self._after), f"{told}: done in part: {states[0]}"
        if done:
            assert states[0] == self._after, f"{told}: acknowledged and lost"
        elif done is False:
            assert states[0] == self._before, f"{told}: it failed, and was done"
        await trio.sleep(SETTLE_S)
        await self._settled()
        simulate._compare_volumes(*(each.present.volume for each in self._world.hosts))
        return self._room.fired is not None

    async def _do(self, asked: SimulatedHost, inode: InodeNumber, name: bytes) -> bool | None:
        """Whether the operation was done, or None where nobody can say yet."""
        with asked.inside() as unit:
            try:
                await self._operation(unit, inode, name)
            except CheckReport:
                return None  # it waited too long for the other host, which may do it yet
            except OperationFailed:
                # What a disk holds that has failed its host says when it is mounted again.
                return None if self._fault.stops else False
            try:
                await unit.flush(inode)
            except (CheckReport, OperationFailed):
                # Data that was acknowledged early is safe once it was flushed.
                return None if self.case.acknowledge == "async" else True
        return True

    async def _mend(self, call: int, nursery: trio.Nursery) -> None:
        """Mount a host again whose disk has failed, after a good end or after none."""
        host = self._host
        if not self._fault.stops or self._room.fired is None:
            return
        with host.inside() as unit:
            if unit.volume.health.failure is None:
                # What a transaction of the catalog has lost is made again from the journal, and what the
                # communication volume does not hold is not acknowledged before the primary has it.
                goes_on = self._room.fired.startswith("lmdb") or self._room.fired == "store"
                assert goes_on, f"{self._room.fired} failed, and the host went on"
                return
        (host.stop if call % 4 < 2 else host.kill)()
        with trio.fail_after(PATIENCE_S):
            await host.ended.wait()
            host.start(nursery.start_soon)
            await host.serving.wait()


def options_of(case: Case) -> Options:
    """Half of the cases begin segments and commit after a few changes."""
    return msgspec.structs.replace(
        draw_options(Random(case.kind)),
        faults=(),
        finale="",
        small_limits=Random(str(case)).random() < 0.5,
        fence=Fence.NEVER,
        witness=False,  # else what was under way when the backup was lost is in doubt
        acknowledge=(case.acknowledge, case.acknowledge),
        communication="lmdb",
        hurry=HURRY,
    )


def try_case(case: Case, calls: Iterable[int]) -> Trial:
    """Let calls fail in a world of their own; AssertionError where that does harm."""
    options = options_of(case)
    with (
        tempfile.TemporaryDirectory(prefix="fm-every-call-", dir=simulate._MEMORY) as directory,
        disk.counted_steps(),
        counted_calls(),
        clocks_of_hosts(),
        limits_in_effect(options),
    ):
        world = World(Random(str(case)).getrandbits(32), options, Path(directory))
        trial = Trial(case, world)
        trio.run(trial.run, calls, clock=SimulatedTime())
        for each in world.hosts:
            problems: list[str] = []
            check_volume(each.directory, False, problems.append)
            assert not problems, f"{each.name}: {problems}"
    return trial


def _try_all_calls(case: Case) -> tuple[Case, int, Counter[str], str]:
    logging.disable(logging.CRITICAL)
    try:
        trial = try_case(case, ALL_CALLS)
    except (AssertionError, FusemirrorError, OSError, trio.TooSlowError, BaseExceptionGroup):
        return case, 0, Counter(), traceback.format_exc()
    return case, trial.attempts, trial.fired, ""


def main() -> int:
    parser = ArgumentParser(prog="python -m tests.simulation.every_call", description=__doc__)
    parser.add_argument("faults", nargs="*", choices=[[], *FAULTS], help="only these")
    parser.add_argument("--kind", choices=list(OPERATIONS))
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    cases = [
        case
        for case in all_cases()
        if case.fault in (arguments.faults or FAULTS) and arguments.kind in (None, case.kind)
    ]
    failed, attempts, fired = 0, 0, Counter[str]()
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for case, tried, what, failure in pool.map(_try_all_calls, cases):
            attempts += tried
            fired += what
            failed += bool(failure)
            print(f"{case}: {tried} attempts" if not failure else f"{case}: FAILED\n{failure}", flush=True)
    print(f"{failed} of {len(cases)} cases failed, in {attempts} attempts; calls that failed: {dict(fired)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
