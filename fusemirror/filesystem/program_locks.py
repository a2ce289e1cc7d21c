"""Locks of this host's programs: what the kernel asks for becomes a question to the control unit.

Whoever is granted a lock sees all that its last holder wrote: the volume has it by then
(`coherence/locks.py`), and here is waited until the kernel has nothing older of the file. A file of which
somebody lost a lock to the other host is good for nothing until it is closed.
"""

import errno
import fcntl
from collections.abc import Callable
from typing import Protocol

import trio

from fusemirror.coherence.lock_table import END_OF_FILE, Lock, LockKey, LockKind, Owner
from fusemirror.coherence.locks import Ask
from fusemirror.control.unit import ControlUnit
from fusemirror.errors import FusemirrorError, OperationFailed
from fusemirror.filesystem.errnos import ErrorLog, answers_errno
from fusemirror.filesystem.handles import FileHandle, Handles
from fusemirror.filesystem.kernel_cache import KernelCache
from fusemirror.kernel.callers import locks_as_open_file
from fusemirror.kernel.codec import FileLock, LockWanted

_UNLOCKED = FileLock(0, 0, fcntl.F_UNLCK, 0)


class LockCaller(Protocol):
    """Who asks: a thread, and the request by which it does."""

    @property
    def unique(self) -> int: ...

    @property
    def uid(self) -> int: ...

    @property
    def pid(self) -> int: ...


class ProgramLocks:
    """See the module."""

    def __init__(
        self,
        unit: ControlUnit,
        cache: KernelCache,
        files: Handles[FileHandle],
        errors: ErrorLog,
        locks_as_open_file: Callable[[int], bool] = locks_as_open_file,
    ) -> None:
        self.errors = errors
        self._unit = unit
        self._cache = cache
        self._files = files
        self._locks_as_open_file = locks_as_open_file
        self._waiting: dict[int, Ask] = {}  # by the kernel's number of the request

    def interrupt(self, unique: int) -> None:
        """A signal came to a program; nothing where its request is none for a lock."""
        ask = self._waiting.get(unique)
        if ask is not None:
            self._unit.locks.interrupt(ask)

    def closed_by(self, fh: int, owner: int) -> None:
        """A process has closed a descriptor of the file."""
        locks = self._unit.locks
        locks.closed_by(self._files[fh].inode, Owner(locks.host, owner))

    @answers_errno
    async def find(self, caller: LockCaller, wanted: LockWanted) -> FileLock:
        """What is in the way of a lock; its type is F_UNLCK where nothing is (fcntl(2), F_GETLK)."""
        key, lock = self._understood(caller, wanted)
        ask = self._unit.locks.begin(wanted.fh, key, lock, asks_only=True)
        conflict = await self._answered(caller, ask)
        if conflict is None:
            return _UNLOCKED
        kind = fcntl.F_WRLCK if conflict.exclusive else fcntl.F_RDLCK
        return FileLock(conflict.start, conflict.end, kind, conflict.pid)

    @answers_errno
    async def set(self, caller: LockCaller, wanted: LockWanted, *, waits: bool) -> None:
        """Lock, or unlock. On return whatever the last holder wrote is seen through every call.

        EAGAIN, EDEADLK, ENOLCK, EINTR; EIO where nobody decides, or the lock was lost meanwhile.
        """
        locks = self._unit.locks
        key, lock = self._understood(caller, wanted)
        if wanted.lock.type == fcntl.F_UNLCK:
            locks.release(key, lock.owner, lock.start, lock.end)
            return
        process = waits and key.space is LockKind.FCNTL and not self._locks_as_open_file(caller.pid)
        ask = locks.begin(wanted.fh, key, lock, waits=waits, may_deadlock=process)
        await self._answered(caller, ask)
        try:
            await self._unit.showable(key.inode)  # the lease by which it is held lasts
            await locks.hold_for_sure(wanted.fh)
            with trio.move_on_after(locks.io_timeout_s) as patience:
                await self._cache.pages.dropped(key.inode)
            if patience.cancelled_caught:
                raise OperationFailed(errno.EIO)
        except FusemirrorError:
            locks.release(key, lock.owner, lock.start, lock.end)
            raise

    async def _answered(self, caller: LockCaller, ask: Ask) -> Lock | None:
        self._waiting[caller.unique] = ask
        try:
            return await self._unit.locks.end(ask)
        finally:
            del self._waiting[caller.unique]

    def _understood(self, caller: LockCaller, wanted: LockWanted) -> tuple[LockKey, Lock]:
        """EINVAL for what is no range."""
        unit, asked = self._unit, wanted.lock
        if not asked.start <= asked.end <= END_OF_FILE:
            raise OperationFailed(errno.EINVAL)
        key = LockKey(self._files[wanted.fh].inode, LockKind.FLOCK if wanted.of_flock else LockKind.FCNTL)
        start, end = (0, END_OF_FILE) if wanted.of_flock else (asked.start, asked.end)
        owner = Owner(unit.locks.host, wanted.owner)
        pid = asked.pid or caller.pid
        exclusive = asked.type == fcntl.F_WRLCK
        return key, Lock(owner, start, end, exclusive, pid, caller.uid, unit.volume.clock.now_ns())
