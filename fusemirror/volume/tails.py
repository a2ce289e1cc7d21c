"""How a log ends: a torn tail that is cut off, or damage that is never passed over.

For every append-only file of checksummed records. A record that is not whole ends what can be read in
order. What stands behind it decides:

- No whole record of a higher number: a **torn tail**. The process was killed, or the power went, before the
  record was whole; nobody was told that it was durable. It is cut off.
- A whole record, and the writer's process only ended: **damage**. What a process wrote stays as it wrote
  it, in its order, and only the last write can be a part of one.
- A whole record, and the power went: the disk may have kept later blocks of what was never synced and not
  the earlier ones, so this alone says nothing. But each record carries the number up to which the log was
  *durable* when it was written, as the writer knew from a sync that had returned. Where a record behind the
  bad place says that of a number above the last whole one before it, what cannot be read was durable:
  **damage**. Else all that is lost was never known to be durable: a torn tail.

The number that a record carries may be lower than the truth, and never higher, so a durable record is cut
off in one case only: the power went, nothing was written after the last sync, and a record of that sync is
damaged. The volume is compared with the peer's then, as after every power cut.

Behind a bad place any byte may be where a record begins, and what users write stands in records: names,
values, content. So a record counts only where its checksum was made with the *seed* of its file, which is
drawn at random, stands in the file's header, and is shown to nobody. Bytes of another file, and of users,
are no records. Numbers must grow, so that an older record of the same file is none either. (Marks of regions
have no seed and say nothing of what was durable: users choose nothing in them but numbers, and after a power
cut every image is compared whatever they say.)

A record that could not be written whole is cut off before anything is appended (`durable.append_behind`), or
the file is not written to again.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

SEED_BYTES = 8


class Whole(NamedTuple):
    """A whole record: its number, up to which number the log was durable when it was written, its end."""

    number: int
    durable: int
    end: int


ReadAt = Callable[[int], Whole | None]
"""The whole record that begins at an offset, or None."""


class Found(NamedTuple):
    """A whole record behind a bad place, and where it begins."""

    offset: int
    record: Whole


def records_behind(read_at: ReadAt, size_bytes: int, bad: int, last: int) -> Iterator[Found]:
    """The whole records behind the one at `bad`, in their order; `last` is the number before that."""
    offset = bad + 1
    while offset < size_bytes:
        found = read_at(offset)
        # By one byte, as a damaged length says nothing of where the next record begins. A number that does
        # not grow is that of an older block, which a power cut may have left here.
        if found is None or found.number <= last:
            offset += 1
            continue
        yield Found(offset, found)
        last, offset = found.number, found.end


def is_damage(read_at: ReadAt, size_bytes: int, bad: int, last: int, *, lost_power: bool) -> bool:
    """Whether what begins at `bad` is damage, and no torn tail; see the module.

    `last` is the number of the last whole record before it. `lost_power`: what was not synced may be lost.
    """
    # One is enough, wherever it stands: a killed process wrote in order, and what a record calls durable was.
    behind = records_behind(read_at, size_bytes, bad, last)
    return any(not lost_power or found.record.durable > last for found in behind)
