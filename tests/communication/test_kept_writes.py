"""Kept writes: by inode, in their order, and who waits for one is woken when it has ended."""

from typing import ClassVar

import trio
from trio.testing import MockClock

from fusemirror.communication.kept_writes import KeptWrites
from fusemirror.communication.staged import Staged
from fusemirror.identifiers import InodeNumber, RequestId
from fusemirror.operations import Write
from fusemirror.protocol.messages import Request

ONE, TWO = InodeNumber(2), InodeNumber(3)


def staged(serial: int, inode: InodeNumber) -> Staged:
    return Staged(serial, Request(RequestId(b"%016d" % serial), Write(inode, 0), True), b"x", 0.0, 0)


async def test_writes_are_known_until_they_end(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    ended = trio.lowlevel.ParkingLot()
    kept = KeptWrites(ended)
    writes = [staged(1, ONE), staged(2, TWO), staged(3, ONE)]
    for write in writes:
        kept.add(write)
    assert (kept.newest(ONE), kept.newest(TWO), kept.newest(InodeNumber(9))) == (3, 2, 0)
    assert list(kept.of(ONE)) == [writes[0], writes[2]]
    seen: list[str] = []

    async def wait() -> None:
        await kept.wait_ended(ONE, 3)
        seen.append("of one")

    nursery.start_soon(wait)
    for write, expected in ((writes[2], []), (writes[1], []), (writes[0], ["of one"])):
        await trio.testing.wait_all_tasks_blocked()
        kept.remove(write)
        ended.unpark_all()
        await trio.testing.wait_all_tasks_blocked()
        assert seen == expected
    assert (kept.newest(ONE), kept.newest(TWO)) == (0, 0)


class Counted(Staged):
    """Notes whenever it comes into doubt."""

    doubts: ClassVar[list[int]] = []

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "in_doubt" and value:
            self.doubts.append(self.serial)


def test_one_that_does_not_end_is_not_looked_at_by_each_end_behind_it() -> None:
    kept = KeptWrites(trio.lowlevel.ParkingLot())
    for serial in range(1, 100):
        request = Request(RequestId(b"%016d" % serial), Write(ONE, 0), True)
        kept.add(Counted(serial, request, b"x", 0.0, 0))
    _, *others = list(kept.of(ONE))
    for write in others:
        kept.remove(write)
    assert Counted.doubts == [1]


def test_what_ends_casts_doubt_on_those_before_it() -> None:
    kept = KeptWrites(trio.lowlevel.ParkingLot())
    writes = [staged(serial, ONE) for serial in (1, 2, 3)]
    for write in writes:
        kept.add(write)
    assert kept.newest_in_doubt(ONE) == 0
    kept.remove(writes[1])
    assert [write.in_doubt for write in writes] == [True, False, False]
    assert kept.newest_in_doubt(ONE) == 1
    assert kept.newest_in_doubt(TWO) == 0
