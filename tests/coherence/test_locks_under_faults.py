"""Locks while the hosts lose each other, switch and take over: never two holders that see each other's files.

Each holder writes its name into the file under the lock, and reads it back before it lets go. What it lost
meanwhile it hears of: its reads and writes fail, as the filesystem makes them fail for its open file.
"""

import errno
from collections import Counter
from contextlib import suppress
from random import Random

import pytest
import trio
from trio.testing import MockClock

from fusemirror.coherence.lock_deciding import Deciding
from fusemirror.coherence.lock_table import END_OF_FILE, Key, Lock, LockTable, Owner, Settled, Space, Wanted
from fusemirror.daemon import Host
from fusemirror.errors import CheckReport, OperationFailed, RefusedForSafety, TimedOut
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.operations import Create, Write
from tests.admin.conftest import Pair, network, pair
from tests.memory_network import MemoryNetwork

__all__ = ["network", "pair"]

pytestmark = pytest.mark.expects_warnings

DURATION_S, THINK_S = 40.0, 0.2
WIDTH = 12


class TwoHolders(AssertionError):
    """Somebody else wrote under the lock."""


class Worker:
    """A program that locks, writes, looks and lets go, for ever; a new open file each time."""

    def __init__(
        self, host: Host, number: int, file: InodeNumber, random: Random, done: Counter[str]
    ) -> None:
        self.host, self.number, self.random, self.done = host, number, random, done
        self.key = Key(file, random.choice(list(Space)))
        self.handles = 0

    async def run(self) -> None:
        until = trio.current_time() + DURATION_S
        while trio.current_time() < until:
            await trio.sleep(self.random.expovariate(1 / THINK_S))
            self.handles += 1
            handle = self.number * 1_000_000 + self.handles
            try:
                await self._work(handle)
                self.done["held"] += 1
            except (OperationFailed, CheckReport) as error:
                self.done[errno.errorcode[error.errno]] += 1
            finally:
                self.host.roles.locks.closed(handle)

    async def _work(self, handle: int) -> None:
        roles = self.host.roles
        owner = Owner(roles.locks.host, handle)
        lock = Lock(owner, 0, END_OF_FILE, exclusive=True, pid=self.number, uid=0)
        waits = self.random.random() < 0.7
        await roles.locks.end(roles.locks.begin(handle, self.key, lock, waits=waits))
        await roles.showable(self.key.inode)
        await roles.locks.hold_for_sure(handle)
        name = f"{handle:{WIDTH}}".encode()
        self._check_not_lost(handle)
        await roles.perform(Write(self.key.inode, int(self.key.space) * WIDTH), name)
        await trio.sleep(self.random.expovariate(1 / THINK_S))
        self._check_not_lost(handle)
        found = await roles.read(self.key.inode, int(self.key.space) * WIDTH, WIDTH)
        self._check_not_lost(handle)
        if found != name:
            raise TwoHolders(f"{name!r} finds {found!r}")
        if self.random.random() < 0.5:
            roles.locks.release(self.key, owner)

    def _check_not_lost(self, handle: int) -> None:
        if handle in self.host.roles.locks.lost:
            raise OperationFailed(errno.EIO)


async def trouble(pair: Pair, network: MemoryNetwork, random: Random, done: Counter[str]) -> None:
    while True:
        await trio.sleep(random.expovariate(1 / 2))
        what = random.choice(("cut", "cut", "break", "switch"))
        done[what] += 1
        if what == "cut":
            network.cut("alpha", "beta")
            await trio.sleep(random.choice((0.1, 1, 4, 8)))
            network.heal("alpha", "beta")
        elif what == "break":
            network.break_one("alpha", "beta")
        else:
            with suppress(RefusedForSafety, TimedOut), trio.move_on_after(10):
                await random.choice((pair.primary, pair.backup)).roles.switch()


async def run(pair: Pair, network: MemoryNetwork, seed: int) -> Counter[str]:
    """Two programs on each host, in each space, and trouble. `TwoHolders`."""
    random, done = Random(seed), Counter[str]()
    name = b"file%d" % seed
    made = await pair.primary.roles.perform(Create(ROOT_INODE, name, 0o100644, 0, 0))
    assert made is not None
    async with trio.open_nursery() as nursery:
        with trio.CancelScope(deadline=trio.current_time() + DURATION_S):
            for number in range(6):
                host = (pair.primary, pair.backup)[number % 2]
                nursery.start_soon(Worker(host, number + 1, made.number, random, done).run)
            await trouble(pair, network, random, done)
        network.heal("alpha", "beta")
    return done


@pytest.mark.parametrize("seed", range(4))
async def test_never_two_holders(
    pair: Pair, network: MemoryNetwork, autojump_clock: MockClock, seed: int
) -> None:
    done = await run(pair, network, seed)
    print(dict(done))
    assert done["held"] > 20
    with trio.fail_after(60):
        for host in (pair.primary, pair.backup):
            await host.roles.wait_normal()
        while any(host.roles.locks.status()["held"] for host in (pair.primary, pair.backup)):  # noqa: ASYNC110
            await trio.sleep(0.1)  # nothing is held for ever by nobody


def _grant_all(table: LockTable, wanted: Wanted) -> list[Settled]:
    table.put(wanted.key, wanted.lock)
    return [Settled(wanted, 0)]


def _drop_without_record(arbiter: Deciding) -> bool:
    arbiter._dropped = True
    arbiter._deliver(arbiter.locks.table.drop_host(arbiter.locks.peer))
    return True


@pytest.mark.parametrize("bug", ["grants whatever is asked", "keeps no record that it dropped locks"])
async def test_a_planted_bug_is_found(
    pair: Pair,
    network: MemoryNetwork,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    bug: str,
) -> None:
    if bug == "grants whatever is asked":
        monkeypatch.setattr(LockTable, "ask", _grant_all)
    else:
        monkeypatch.setattr(Deciding, "_begin_epoch", _drop_without_record)

    async def run_some() -> None:
        for seed in range(8):
            await run(pair, network, seed)

    with pytest.raises(BaseExceptionGroup) as caught:
        await run_some()
    assert caught.value.split(TwoHolders)[1] is None
