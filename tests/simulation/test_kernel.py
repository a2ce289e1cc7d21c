"""What programs beside a call are shown of names that their kernel keeps, and how that is judged."""

import errno
import stat
from collections.abc import Awaitable, Callable
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from fusemirror.errors import OperationFailed
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.operations import Create
from fusemirror.volume.inode import Inode
from tests.simulation import linearizable
from tests.simulation.history import History, Operation
from tests.simulation.kernel import SimulatedKernel
from tests.simulation.model import ROOT_TAG, Namespace
from tests.simulation.options import draw_options
from tests.simulation.programs import NAMES, Atlas, Program

NAME = b"name"


class OneDirectory:
    """Both hosts' control unit: what a call has made in it all see at once, and `answer` ends the call."""

    def __init__(self) -> None:
        self.leases = SimpleNamespace(keeping=lambda _: 1)
        self.made: dict[bytes, Inode] = {}
        self.answer = trio.Event()

    async def perform(self, operation: Create) -> Inode:
        number = InodeNumber(ROOT_INODE + 1 + len(self.made))
        self.made[operation.name] = _directory(number, operation.uid, nlink=2)
        await self.answer.wait()
        return self.made[operation.name]

    async def attributes(self, inode: InodeNumber) -> Inode:
        assert inode == ROOT_INODE
        return _directory(inode, ROOT_TAG, nlink=2 + len(self.made))

    async def lookup(self, _: InodeNumber, name: bytes) -> Inode:
        if name not in self.made:
            raise OperationFailed(errno.ENOENT)
        return self.made[name]

    def name_lifetime_s(self, *_: object) -> float:
        return 100.0


def _directory(number: InodeNumber, tag: int, *, nlink: int) -> Inode:
    inode: Any = SimpleNamespace(number=number, uid=tag, nlink=nlink, is_directory=True, mode=stat.S_IFDIR)
    return inode  # type: ignore[no-any-return]


class Crew:
    """Programs of two hosts above one directory; the kernel of `a` keeps that there is no such name."""

    def __init__(self) -> None:
        self.history = History()
        self.unit = OneDirectory()
        world: Any = SimpleNamespace(
            options=draw_options(Random(0)), random=Random(0), trace=lambda _: None, modes_set=0
        )
        self.program = Program(world, self.history, Atlas(), "program", 0)
        self.a, self.b = self._host("a"), self._host("b")

    def _host(self, name: str) -> Any:
        return SimpleNamespace(
            name=name,
            unit=self.unit,
            present=self.unit,
            kernel=SimulatedKernel(Random(0), 0.0),
            disk=SimpleNamespace(dead=False),
            acknowledges_early=False,
            acknowledges_now="sync",
        )

    async def look(self, host: Any) -> int:
        result: int = await self.program.lookup(host, ROOT_TAG, NAME)
        return result

    async def count(self, host: Any) -> int:
        result: int = await self.program.nlink(host, ROOT_TAG)
        return result

    async def make(self, host: Any, name: bytes = NAME) -> None:
        await self.program.create(host, ROOT_TAG, name, is_directory=True)

    def judge(self) -> None:
        made = frozenset(each.index for each in self.history.operations if each.name == "create")
        linearizable.check(self.history.operations, Namespace(made), frozenset())


@pytest.fixture
async def crew(autojump_clock: MockClock) -> Crew:
    crew = Crew()
    assert await crew.look(crew.a) == -2
    return crew


@pytest.mark.parametrize("seen_at", ["a", "b"])
async def test_a_link_count_may_be_ahead_of_a_name_while_the_call_is_under_way(
    crew: Crew, nursery: trio.Nursery, seen_at: str
) -> None:
    nursery.start_soon(crew.make, crew.a)
    await trio.testing.wait_all_tasks_blocked()
    assert await crew.count(getattr(crew, seen_at)) == 3
    assert await crew.look(crew.a) == -2, "it is not kept"
    crew.unit.answer.set()
    await trio.testing.wait_all_tasks_blocked()
    assert await crew.look(crew.a) > 0
    crew.judge()


@pytest.mark.parametrize("under_way", [True, False])
def test_so_may_the_refusal_to_link_what_has_no_name_left(*, under_way: bool) -> None:
    history = History()

    def begin(client: str, name: str, *arguments: Any) -> Operation:
        return history.begin(client, NAMES, name, *arguments, host="a")

    create = begin("1", "create", ROOT_TAG, NAME, False)
    history.end(create, create.index)
    unlink = begin("1", "unlink", ROOT_TAG, NAME)
    history.end(begin("2", "link", create.index, ROOT_TAG, b"another"), -errno.ENOENT)
    look = begin("2", "lookup", ROOT_TAG, NAME)
    look.shows_from = unlink.began if under_way else None
    history.end(look, create.index)
    history.end(unlink, "ok")

    def judge() -> None:
        linearizable.check(history.operations, Namespace(frozenset()), frozenset())

    if under_way:
        judge()
    else:
        with pytest.raises(linearizable.NotLinearizable):
            judge()


async def test_a_name_that_a_call_under_way_has_removed_is_shown_as_gone_once_the_call_has_returned(
    crew: Crew, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that hears so of a name that it knew, but may not go by, asks again under the lock."""
    crew.unit.answer.set()
    await crew.make(crew.a)
    monkeypatch.setattr(crew.unit, "name_lifetime_s", lambda *_: 0.0)
    crew.a.kernel._entries[ROOT_INODE, NAME].until = 0.0
    looked: list[int] = []

    async def look() -> None:
        looked.append(await crew.look(crew.a))

    async with crew.a.kernel.locked(ROOT_INODE):
        crew.unit.made.clear()
        nursery.start_soon(look)
        await trio.testing.wait_all_tasks_blocked()
        assert not looked
    await trio.testing.wait_all_tasks_blocked()
    assert looked == [-2]


async def _made_by_the_other_host(crew: Crew, _: trio.Nursery) -> None:
    crew.unit.answer.set()
    await crew.make(crew.b)


async def _seen_by_the_other_host(crew: Crew, nursery: trio.Nursery) -> None:
    nursery.start_soon(crew.make, crew.a)
    await trio.testing.wait_all_tasks_blocked()
    assert await crew.look(crew.b) > 0


async def _counted_beside_a_call_for_another_name(crew: Crew, nursery: trio.Nursery) -> None:
    nursery.start_soon(crew.make, crew.b)
    nursery.start_soon(crew.make, crew.a, b"another")
    await trio.testing.wait_all_tasks_blocked()
    assert await crew.count(crew.a) == 4


async def _counted_after_the_call(crew: Crew, _: trio.Nursery) -> None:
    crew.unit.answer.set()
    kept = dict(crew.a.kernel._entries)
    await crew.make(crew.a)
    crew.a.kernel._entries.update(kept)
    assert await crew.count(crew.a) == 3


@pytest.mark.parametrize(
    "seen",
    [
        _made_by_the_other_host,
        _seen_by_the_other_host,
        _counted_beside_a_call_for_another_name,
        _counted_after_the_call,
    ],
    ids=lambda seen: seen.__name__.strip("_"),
)
async def test_what_is_kept_otherwise_when_it_is_no_longer_so_is_an_error(
    crew: Crew, nursery: trio.Nursery, seen: Callable[[Crew, trio.Nursery], Awaitable[None]]
) -> None:
    await seen(crew, nursery)
    assert await crew.look(crew.a) == -2, "it is not kept"
    crew.unit.answer.set()
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(linearizable.NotLinearizable):
        crew.judge()
