"""The overlay: what a host shows of its own writes that are acknowledged and not applied yet.

The subvolume is a prefix of main, and a pending write comes after all of it. So it stands on top of
what the subvolume holds, until it takes its place in the order: a program sees its own writes at once.
One that may be in the subvolume already, below what came after it, is not shown; reads wait for it.
"""

from collections.abc import Callable, Collection

from fusemirror.communication.volume import Staged
from fusemirror.volume.inode import Inode


def _is_shown(staged: Staged) -> bool:
    return staged.acknowledged and not staged.in_doubt


def _on_top(writes: Collection[Staged]) -> list[tuple[int, bytes]]:
    """Offset and data of each write that is shown, oldest first."""
    return [(staged.operation.data_offset, staged.data) for staged in writes if _is_shown(staged)]


def size_with(size: int, writes: Collection[Staged]) -> int:
    """How long a file of `size` bytes is with the writes on top."""
    return max([size, *(offset + len(data) for offset, data in _on_top(writes))])


def content_with(content: bytes, offset: int, length: int, size: int, writes: Collection[Staged]) -> bytes:
    """What a read of `length` bytes at `offset` returns with the writes on top.

    `content` is what the volume returns, `size` how long the file is there.
    """
    end = min(offset + length, size_with(size, writes))
    if end <= offset:
        return b""
    shown = bytearray(content.ljust(end - offset, b"\0"))
    for at, data in _on_top(writes):
        first, last = max(at, offset), min(at + len(data), end)
        if first < last:
            shown[first - offset : last - offset] = data[first - at : last - at]
    return bytes(shown)


def data_with(found: int, offset: int, writes: Collection[Staged]) -> int:
    """Where, from `offset` on, data is with the writes on top; `found` is where the volume has some."""
    return min([found, *(max(at, offset) for at, data in _on_top(writes) if at + len(data) > offset)])


def hole_with(next_hole: Callable[[int], int], offset: int, writes: Collection[Staged]) -> int:
    """Where, from `offset` on, a hole is with the writes on top; `next_hole` says that of the volume."""
    on_top = [(at, at + len(data)) for at, data in _on_top(writes)]
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
