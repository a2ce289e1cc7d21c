"""Programs that work under locks: each swaps a value in a file that all of them share.

Whoever holds the lock reads the value, writes another, and finds it before it lets go. To the history all of
that is one operation, `swap`, whose answer is the value that it found: in one order of them each finds what
the one before it wrote, so two holders at a time, and a holder that sees something old, have none.

That says nothing of who only holds a lock and writes nothing. So nobody is granted one either while another
holds it by all that its host knows: a host that is not sure answers nothing to its programs.
"""

import errno
from random import Random

import trio

from fusemirror.coherence.lock_table import END_OF_FILE, Lock, LockKey, LockKind, Owner
from fusemirror.control.backup import BackupUnit
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.operations import Write
from tests.simulation.world import SimulatedHost

_VALUE_BYTES = 8
_PATIENCE = 100
"""So many times the longest wait of one call others may hold a lock, and hand it on to each other."""


class TwoHolders(AssertionError):
    """Somebody else wrote under the lock."""


class Guarded:
    """The file, and the open files through which programs lock it: each is used once."""

    def __init__(self, inode: InodeNumber) -> None:
        self.inode = inode
        self._handles = 0
        self._holders: list[_Section] = []

    async def swap(
        self, host: SimulatedHost, value: bytes, space: LockKind, random: Random, think_s: float
    ) -> bytes:
        """What was found under the lock. OperationFailed, CheckReport."""
        self._handles += 1
        section = _Section(host, self.inode, space, self._handles, value)
        try:
            await section.lock(random, think_s)
            for other in self._holders:
                if other.space == space and other.is_sure:
                    raise TwoHolders(f"open file {section.handle} gets what {other.handle} holds")
            self._holders.append(section)
            found = await section.read()
            await section.write()
            await trio.sleep(random.expovariate(1 / think_s))
            await section.check_own()
            if random.random() < 0.5:
                self._holders.remove(section)
                section.unlock()
        finally:
            if section in self._holders:
                self._holders.remove(section)
            if not host.disk.dead:
                section.close()
        return found


class _Section:
    """One open file of one program, locked and closed."""

    def __init__(
        self, host: SimulatedHost, inode: InodeNumber, space: LockKind, handle: int, value: bytes
    ) -> None:
        self._host, self._unit = host, host.unit
        self._locks = host.unit.locks
        self._key, self.handle = LockKey(inode, space), handle
        self._owner = Owner(self._locks.host, handle)
        self._offset = int(space) * _VALUE_BYTES
        self._value = value
        self._strict = not host.world.options.asynchronous

    @property
    def space(self) -> LockKind:
        return self._key.space

    @property
    def is_sure(self) -> bool:
        """Whether its host could show it something now, and takes it for the holder."""
        host = self._host
        if host.disk.dead or host.volume is None or host.process.paused is not None:
            return False
        unit = host.present
        if isinstance(unit, BackupUnit):
            link = unit.link
            if link is None or not unit.applier.serves:
                return False
            if host.clock.now() >= link.mirror.heartbeat.lease_until:
                return False
        return self._locks.arbiter.is_open and self.handle not in self._locks.lost

    async def lock(self, random: Random, think_s: float) -> None:
        """As `filesystem/program_locks.py` does it; now and then a signal comes meanwhile."""
        lock = Lock(self._owner, 0, END_OF_FILE, exclusive=True, pid=self.handle, uid=0)
        ask = self._locks.begin(self.handle, self._key, lock, waits=random.random() < 0.8)
        if random.random() < 0.2:
            await trio.sleep(random.expovariate(1 / think_s))
            self._locks.interrupt(ask)
        options = self._host.world.options
        with trio.move_on_after(_PATIENCE * (options.io_timeout + options.peer_timeout)) as patience:
            await self._locks.end(ask)
        assert not patience.cancelled_caught, "a program waits for a lock for ever"
        await self._unit.showable(self._key.inode)
        await self._locks.hold_for_sure(self.handle)

    async def read(self) -> bytes:
        self._check_not_lost()
        found = bytes(await self._unit.read(self._key.inode, self._offset, _VALUE_BYTES))
        self._check_not_lost()
        return found.rstrip(b"\0")

    async def write(self) -> None:
        self._check_not_lost()
        await self._unit.perform(Write(self._key.inode, self._offset), self._value)

    async def check_own(self) -> None:
        found = await self.read()
        if self._strict and found != self._value:
            raise TwoHolders(f"{self._value!r} finds {found!r}")

    def _check_not_lost(self) -> None:
        """As `filesystem/requests/files.py` does it for each read and write."""
        if self.handle in self._locks.lost:
            raise OperationFailed(errno.EIO)

    def unlock(self) -> None:
        self._locks.release(self._key, self._owner)

    def close(self) -> None:
        self._locks.closed(self.handle)
