"""Log: what the append-only files of checksummed records share, those of the journal and of staged requests.

Each record begins with the checksum of its rest, made with the seed of its file. A header ends with the
checksum of what stands before, and is durable before its file has its name. A reader takes records in their
order, up to the first that is not whole or whose number does not grow. What stands behind that is a torn tail
or damage (`tails.py`). What a record holds, and where it ends, only who writes it knows. (Marks of regions,
which are smaller and need no seed, share the rule of the end alone.)
"""

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import xxhash

from fusemirror.errors import VolumeDamaged
from fusemirror.seams import Seams
from fusemirror.volume import tails
from fusemirror.volume.tails import Found, ReadAt

# None that an enemy could not forge: it tells what a crash or a bad disk leaves. Against users stands the
# seed.
CHECKSUM = struct.Struct("<Q")
CHECKSUM_BYTES = CHECKSUM.size


def seal(body: bytes, seed: int) -> bytes:
    """A record: its checksum, made with the seed, and the rest."""
    # The seed keeps what users write from passing for a record behind a bad place (`tails.py`).
    return CHECKSUM.pack(xxhash.xxh3_64_intdigest(body, seed)) + body


def is_sealed(view: memoryview, start: int, end: int, seed: int) -> bool:
    """Whether what stands there is a record that `seal` made with this seed."""
    (checksum,) = CHECKSUM.unpack_from(view, start)
    return bool(xxhash.xxh3_64_intdigest(view[start + CHECKSUM_BYTES : end], seed) == checksum)


def with_checksum(content: bytes) -> bytes:
    """A header, with the checksum that it ends with."""
    # Without a seed: the header is what tells it.
    return content + CHECKSUM.pack(xxhash.xxh3_64_intdigest(content))


def is_checked(content: bytes) -> bool:
    """Whether `with_checksum` made these bytes."""
    # Longer than a checksum alone: that of no content at all is one, too.
    return len(content) > CHECKSUM_BYTES and content == with_checksum(content[:-CHECKSUM_BYTES])


def make_file(path: Path, header: bytes, seams: Seams) -> None:
    """On return a new file holds the header under its name, whole after any crash that leaves the name; the
    name itself is not durable. OSError.
    """
    # One name for all that are begun: what a crash leaves of one is removed at the opening, or written over.
    temporary = path.with_name("new")
    with temporary.open("wb") as file:
        file.write(header)
        file.flush()
        seams.fsync(file.fileno())
    # Only now, as readers go by names: one that came before its content would be taken for damage.
    # The name may still go in a power cut: whoever says that a record in the file is durable syncs the
    # directory first.
    temporary.replace(path)


def in_order(read_at: ReadAt, start: int, last: int) -> Iterator[Found]:
    """The records from `start` on, while they are whole and their numbers grow, from above `last`."""
    # A number that does not grow ends the order, too: a power cut can leave an older block of the same file
    # here.
    while (whole := read_at(start)) is not None and whole.number > last:
        yield Found(start, whole)
        start, last = whole.end, whole.number


def cut_torn_tail(
    path: Path,
    size_bytes: int,
    read_at: ReadAt,
    *,
    bad: int,
    last: int,
    may_be_torn: bool,
    lost_power: bool,
    damaged: Callable[[Path, int], VolumeDamaged],
) -> int:
    """Cut off what begins at `bad`, behind the record `last`, of a file of so many bytes; how many that were.

    `may_be_torn`: no later file tells that this one was whole. The error `damaged` where it is no torn tail;
    OSError.
    """
    assert bad <= size_bytes, "what was read stands in the file"
    if bad == size_bytes:
        return 0
    if not may_be_torn or tails.is_damage(read_at, size_bytes, bad, last, lost_power=lost_power):
        raise damaged(path, bad)
    # Cut off and not passed over: what is appended next would stand behind it, and make of it damage. Not
    # synced: until the next sync a power cut may bring the tail back, and it is cut off again.
    os.truncate(path, bad)
    return size_bytes - bad
