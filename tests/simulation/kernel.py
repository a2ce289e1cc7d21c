"""A kernel's cache of names above a simulated host, as far as it matters to what programs are shown.

As in Linux, a call that changes names has its directory locked until it has returned, and so has a first
look for a name; a look at a name that is known, but may have changed, takes no lock; and a name that may
be kept is shown without asking. Answers are taken a moment after they were given.
"""

import errno
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from random import Random

import trio

from fusemirror.control.unit import ControlUnit
from fusemirror.errors import CheckReport, OperationFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.volume.inode import Inode
from fusemirror.volume.invalidation import Nobody
from tests.simulation.process import host_time

Name = tuple[InodeNumber, bytes]
See = Callable[[Inode], int]


class _Entry:
    """What the kernel knows of a name: the tag of its inode, and until when it need not ask."""

    def __init__(self, tag: int | None) -> None:
        self.tag = tag
        self.until = 0.0


class SimulatedKernel:
    """One life of a mount. Times are its host's."""

    def __init__(self, random: Random, delay_s: float) -> None:
        """An answer is taken within `delay_s`."""
        self._random = random
        self._delay_s = delay_s
        self._entries: dict[Name, _Entry] = {}
        self._locks: defaultdict[InodeNumber, trio.Lock] = defaultdict(trio.Lock)
        self._changing: dict[Name, int] = {}
        self.hits = 0

    @asynccontextmanager
    async def locked(
        self, *directories: InodeNumber, emptied: Callable[[], InodeNumber | None] = lambda: None
    ) -> AsyncIterator[None]:
        """The directories, for a call that changes their names or lists them; and the one that must be
        empty for it.
        """
        while True:
            too = emptied()
            async with AsyncExitStack() as stack:
                for directory in sorted({*directories, too or directories[0]}):
                    await stack.enter_async_context(self._locks[directory])
                if emptied() == too:
                    yield
                    return

    def _kept(self, name: Name) -> _Entry | None:
        """What is shown without asking."""
        entry = self._entries.get(name)
        return None if entry is None or host_time() >= entry.until else entry

    def shows_from(self, name: Name) -> int | None:
        """When the call that changes the name began, in the history, if a look now is shown what was before
        it; None where the look asks, or where no such call is under way.
        """
        return None if self._kept(name) is None else self._changing.get(name)

    @contextmanager
    def _change_under_way(self, began: int, *names: Name) -> Iterator[None]:
        """The directories are locked: no other call changes these names meanwhile. Of a change that is in
        doubt the kernel is told to drop them."""
        self._changing.update(dict.fromkeys(names, began))
        try:
            yield
        except CheckReport:
            for name in names:
                self._entries.pop(name, None)
            raise
        finally:
            for name in set(names):
                del self._changing[name]

    async def lookup(self, unit: ControlUnit, name: Name, see: See) -> int:
        """The tag of the inode of a name. OperationFailed."""
        if (kept := self._kept(name)) is not None:
            self.hits += 1
            return _found(kept.tag)
        entry = self._entries.get(name)
        if entry is not None and entry.tag is not None:
            with suppress(OperationFailed):  # as with another inode, the directory's lock is taken to be sure
                until, tag = await self._ask(unit, name, see)
                if tag == entry.tag:
                    entry.until = until  # if it was dropped meanwhile, nobody finds it
                    return _found(tag)
        async with self.locked(name[0]):
            until, tag = await self._ask(unit, name, see)
            entry = self._entries[name] = _Entry(tag)
            entry.until = until
        return _found(tag)

    async def _ask(self, unit: ControlUnit, name: Name, see: See) -> tuple[float, int | None]:
        """Until when the answer may be kept, and the answer. OperationFailed where it may not."""
        keeping = unit.leases.keeping(name[0])
        tag = None
        try:
            tag = see(await unit.lookup(*name))
        except OperationFailed:
            if not (lifetime_s := unit.name_lifetime_s(*name, keeping)):
                raise
        else:
            lifetime_s = unit.name_lifetime_s(*name, keeping)
        return await self._take_answer() + lifetime_s, tag

    async def create(
        self, unit: ControlUnit, name: Name, make: Callable[[], Awaitable[Inode | None]], see: See, began: int
    ) -> int | None:
        """Make a name, its directory being locked; the tag of its inode, None where it has gone again.

        `began` is when the call did, in the history.
        """
        with self._change_under_way(began, name):
            keeping = unit.leases.keeping(name[0])
            inode = await make()
            tag = None if inode is None else see(inode)
            lifetime_s = unit.name_lifetime_s(*name, keeping)
            taken = await self._take_answer()
        self._entries.pop(name, None)
        if tag is not None:
            entry = self._entries[name] = _Entry(tag)
            entry.until = taken + lifetime_s
        return tag

    async def change(self, change: Awaitable[object], began: int, *changed: Name) -> None:
        """Remove or rename, the directories being locked; `began` as for `create`."""
        with self._change_under_way(began, *changed):
            await change
            await self._take_answer()
        for name in changed:
            self._entries.pop(name, None)

    async def _take_answer(self) -> float:
        """When it was taken, of which the process hears once it runs: a pause stops it, not its kernel."""
        given = host_time()
        await trio.sleep(self._random.random() * self._delay_s)
        return min(host_time(), given + self._delay_s)


class References(Nobody):
    """The inodes that the kernel of one life of a mount refers to, though no program has them open."""

    def __init__(self) -> None:
        self._held = Counter[InodeNumber]()

    def has_let_go(self, inodes: Collection[InodeNumber]) -> list[InodeNumber]:
        return [inode for inode in inodes if not self._held[inode]]

    @contextmanager
    def to(self, inode: InodeNumber) -> Iterator[None]:
        self._held[inode] += 1
        try:
            yield
        finally:
            self._held[inode] -= 1


def _found(tag: int | None) -> int:
    if tag is None:
        raise OperationFailed(errno.ENOENT)
    return tag
