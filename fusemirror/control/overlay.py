"""The overlay: what a host shows of its own writes that are acknowledged and not applied yet.

The subvolume is a prefix of main, and a pending write comes after all of it. So it stands on top of
what the subvolume holds, until it takes its place in the order: a program sees its own writes at once.
One that may be in the subvolume already, below what came after it, is not shown; reads wait for it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator

from fusemirror.communication.staged import Staged
from fusemirror.volume.inode import Inode

DataOf = Callable[[Staged, int, int], bytes]
"""The bytes of a write's data from one place to another; `CommunicationVolume.data_of`."""


def _is_shown(staged: Staged) -> bool:
    return staged.acknowledged and not staged.in_doubt


def _on_top(writes: Iterable[Staged]) -> Iterator[tuple[int, int, Staged]]:
    """Where each write that is shown begins and ends, and which it is, in their order."""
    for staged in writes:
        if _is_shown(staged):
            start = staged.operation.data_offset
            yield start, start + staged.data_bytes, staged


def size_with(size: int, writes: Collection[Staged]) -> int:
    """How long a file of `size` bytes is with the writes on top."""
    return max([size, *(end for _, end, _ in _on_top(writes))])


def content_with(
    content: bytes, offset: int, length: int, size: int, writes: Collection[Staged], data_of: DataOf
) -> bytes:
    """What a read of `length` bytes at `offset` returns with the writes on top.

    `content` is what the volume returns, `size` how long the file is there. `data_of`, which may have to read
    it back, is asked for nothing that is written over.
    """
    end = min(offset + length, size_with(size, writes))
    if end <= offset:
        return b""
    shown = bytearray(content.ljust(end - offset, b"\0"))
    below = [(offset, end)]  # what no write covers of those that were looked at: the newest first
    for start, stop, staged in _on_top(reversed(list(writes))):
        if not below:
            break
        still_below = []
        for first, last in below:
            covered_first, covered_last = max(first, start), min(last, stop)
            if covered_first >= covered_last:
                still_below.append((first, last))
                continue
            data = data_of(staged, covered_first - start, covered_last - start)
            shown[covered_first - offset : covered_last - offset] = data
            pieces = (first, covered_first), (covered_last, last)
            still_below += [(from_, to) for from_, to in pieces if from_ < to]
        below = still_below
    return bytes(shown)


def data_with(found: int, offset: int, writes: Collection[Staged]) -> int:
    """Where, from `offset` on, data is with the writes on top; `found` is where the volume has some."""
    return min([found, *(max(start, offset) for start, end, _ in _on_top(writes) if end > offset)])


def hole_with(next_hole: Callable[[int], int], offset: int, writes: Collection[Staged]) -> int:
    """Where, from `offset` on, a hole is with the writes on top; `next_hole` says that of the volume."""
    on_top = [(start, end) for start, end, _ in _on_top(writes)]
    while True:
        found = next_hole(offset)
        offset = max([found, *(end for at, end in on_top if at <= found < end)])
        if offset == found:
            return found


def attributes_with(inode: Inode, writes: Collection[Staged]) -> Inode:
    """The inode with the writes on top; a copy where there are any."""
    size = size_with(inode.size, writes)
    times = [staged.time_ns for staged in writes if _is_shown(staged)]
    if not times:
        return inode
    shown = inode.copy()
    shown.size = size
    shown.mtime_ns = max(inode.mtime_ns, *times)
    shown.ctime_ns = max(inode.ctime_ns, *times)
    return shown
