"""What happens once, at the end of a run: the power goes in the middle of the work, or a bit flips after it.

After a loss of power what was flushed must be there, and of the names and attributes a beginning of what
happened to them (`model.Lossy`). A flipped bit must be found by a comparison, and nothing else be reported.
"""

import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TypeVar

import trio

from fusemirror.change import PUNCH_HOLE, ZERO_RANGE, Table
from fusemirror.errors import PrimaryUnreachable
from fusemirror.volume.entries import key_inode
from tests.simulation.history import DOUBT, History, Operation
from tests.simulation.world import SimulatedHost, World

_PATIENCE_S = 300.0


T = TypeVar("T")


async def lose_power(world: World, history: History) -> None:
    """The work ends here: both processes end at once, and the primary's host, or both, lose their power."""
    losers = world.hosts if world.options.finale == "power both" else (world.primary,)
    for host in world.hosts:
        host.programs.clear()
        host.resume()
        (host.power_off if host in losers else host.kill)()
        if host.up:
            await host.ended.wait()
    for host in losers:
        world.faults[world.options.finale] += 1
        host.lose()
    history.lose_power()


def check_flushed(before: list[Operation], after: Iterable[Operation], *, stays: bool) -> None:
    """Every write that a flush covered, and that nothing touched since, is in the file after the loss.

    `stays`: the file itself was there from the beginning, and nobody ever removed it.
    """
    flushed = max((each.began for each in before if each.name == "flush" and each.result == b""), default=-1)
    changes = [each for each in before if each.name in ("allocate", "append", "copy", "truncate", "write")]
    contents = [each.result for each in after if each.name == "read" and each.arguments[0] == 0]
    for write in changes:
        if write.name != "write" or write.ended is None or write.ended > flushed or write.result != "ok":
            continue
        if any(each is not write and _may_overwrite(each, write) for each in changes):
            continue
        offset, data = write.arguments
        for content in contents:
            gone = not isinstance(content, bytes)
            assert not (gone and stays), f"{write} was flushed, and the file has gone"
            assert gone or content[offset : offset + len(data)] == data, f"{write} was flushed, and is lost"


def _may_overwrite(later: Operation, write: Operation) -> bool:
    """Whether an operation that may have come after the write may have changed its bytes."""
    if later.ended is not None and later.ended < write.began:
        return False
    offset, data = write.arguments
    if later.name == "write":
        return bool(
            later.arguments[0] < offset + len(data) and offset < later.arguments[0] + len(later.arguments[1])
        )
    if later.name == "copy":
        _, start, length = later.arguments
        return bool(start < offset + len(data) and offset < start + length)
    if later.name == "allocate":
        start, end, mode = later.arguments
        return bool(mode & (PUNCH_HOLE | ZERO_RANGE) and start < offset + len(data) and offset < end)
    return later.name == "append" or bool(later.arguments[0] < offset + len(data))


# --- a flipped bit ----------------------------------------------------------------------------------------


async def patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """What the primary answers, however long that takes: hosts ask with a patience of a third of a second."""
    while True:
        with suppress(PrimaryUnreachable):
            return await ask()


async def flip(world: World) -> None:
    """Flip a bit on one host, and look that a comparison finds that, and nothing else."""
    kind = world.options.finale
    if not kind.startswith("flip"):
        return
    host = world.random.choice(world.hosts)
    flipped = _flip_image(host, world) if kind == "flip image" else _flip_row(host, world)
    if flipped is None:
        return
    found, flip_back = flipped
    world.faults[kind] += 1
    world.trace(f"{kind} at {host.name}: {found}")
    asked = world.random.choice(world.hosts)
    with asked.inside(), trio.fail_after(_PATIENCE_S):
        await patiently(asked.management.verify)
        while (report := await asked.management.verify_report())["running"]:  # noqa: ASYNC110
            await trio.sleep(0.1)
    world.trace(f"verify at {asked.name}: {report}")
    if report["failed"] is not None:  # what no row can say is damage, and ends the comparison
        assert kind == "flip row", report
        assert "is damaged: catalog" in report["failed"], report
    else:
        assert report["differences"], "a flipped bit was not found"
        assert all(found in difference for difference in report["differences"]), (found, report)
    flip_back()


Flipped = tuple[str, Callable[[], None]]
"""What a comparison must say, and what flips the bit back."""


def _flip_image(host: SimulatedHost, world: World) -> Flipped | None:
    volume = host.unit.volume
    numbers = [number for number in sorted(volume.images.numbers()) if volume.images.size(number)]
    if not numbers:
        return None
    number = world.random.choice(numbers)
    path = volume.images.path(number)
    offset, bit = world.random.randrange(volume.images.size(number)), 1 << world.random.randrange(8)

    def flip() -> None:
        facts = path.stat()
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ bit]))
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    flip()
    return f"inode {number}:", flip


def _flip_row(host: SimulatedHost, world: World) -> Flipped:
    catalog = host.unit.volume.catalog
    rows = [
        (table, key, value)
        for table in (Table.INODES, Table.ENTRIES, Table.XATTRS)
        for key, value in catalog.tables.rows(table, None, 1 << 20)
        if value
    ]
    table, key, value = world.random.choice(rows)
    flipped = bytearray(value)
    flipped[world.random.randrange(len(value))] ^= 1 << world.random.randrange(8)

    def put(row: bytes) -> None:
        catalog._store.txn.put(key, row, db=catalog._store.tables[table])
        catalog.changes_since_commit += 1

    put(bytes(flipped))
    return f" {key_inode(key)}", lambda: put(value)


def parted(history: History, operations: list[Operation]) -> tuple[list[Operation], list[Operation]]:
    """Those before the loss, and those after it."""
    assert history.loss is not None
    place = history.loss.began
    before = [each for each in operations if each.began < place]
    return before, [each for each in operations if each.began > place]


def flushes(history: History) -> list[Operation]:
    """Flushes before the loss: each makes the whole namespace durable, whatever file it was about."""
    assert history.loss is not None
    place = history.loss.began
    return [
        each
        for each in history.operations
        if each.name == "flush" and each.result != DOUBT and each.began < place
    ]
