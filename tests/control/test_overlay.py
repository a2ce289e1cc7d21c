"""The overlay against the plain thing: what is pending, written to what the volume holds."""

import stat

from hypothesis import given
from hypothesis import strategies as st

from fusemirror.communication.staged import Staged
from fusemirror.control.overlay import attributes_with, content_with, data_with, hole_with, size_with
from fusemirror.identifiers import InodeNumber, RequestId
from fusemirror.operations import Write
from fusemirror.protocol.messages import Request
from fusemirror.volume.inode import Inode

INODE = InodeNumber(5)


def staged(offset: int, data: bytes, *, acknowledged: bool = True, time_ns: int = 1) -> Staged:
    made = Staged(1, Request(RequestId(b"1" * 16), Write(INODE, offset), kept=True), data, 0.0, time_ns)
    made.acknowledged = acknowledged
    return made


def data_of(write: Staged, start: int, end: int) -> bytes:
    assert write.data is not None
    return write.data[start:end]


def inode(size: int = 0, mode: int = 0o644) -> Inode:
    return Inode(
        number=INODE,
        mode=stat.S_IFREG | mode,
        nlink=1,
        uid=0,
        gid=0,
        rdev=0,
        size=size,
        atime_ns=10,
        mtime_ns=10,
        ctime_ns=10,
    )


writes = st.lists(
    st.tuples(st.integers(0, 30), st.binary(min_size=1, max_size=12), st.booleans()), max_size=5
)


@given(base=st.binary(max_size=20), pending=writes, offset=st.integers(0, 50), length=st.integers(0, 50))
def test_a_read_shows_what_would_be_there_if_the_acknowledged_writes_were_done(
    base: bytes, pending: list[tuple[int, bytes, bool]], offset: int, length: int
) -> None:
    content = bytearray(base)
    for at, data, acknowledged in pending:
        if acknowledged:
            content.extend(bytes(max(0, at - len(content))))
            content[at : at + len(data)] = data
    over = [staged(at, data, acknowledged=told) for at, data, told in pending]
    assert size_with(len(base), over) == len(content)
    shown = content_with(base[offset : offset + length], offset, length, len(base), over, data_of)
    assert shown == content[offset : offset + length]


def test_attributes_show_the_size_and_the_time_and_leave_the_volumes_own_alone() -> None:
    own = inode(size=10)
    shown = attributes_with(own, [staged(8, b"12345", time_ns=70), staged(0, b"x", time_ns=60)])
    assert (shown.size, shown.mtime_ns, shown.ctime_ns) == (13, 70, 70)
    assert (own.size, own.mtime_ns) == (10, 10)


def test_what_nobody_was_told_of_is_not_shown() -> None:
    own = inode(size=10)
    assert attributes_with(own, [staged(8, b"12345", acknowledged=False)]) is own


def test_what_may_be_in_the_volume_already_is_not_put_on_top_of_it() -> None:
    pending = [staged(0, b"xx"), staged(1, b"yyyy")]
    pending[1].in_doubt = True
    assert content_with(b"abc", 0, 10, 3, pending, data_of) == b"xxc"


@given(pending=writes, offset=st.integers(0, 50), length=st.integers(0, 50))
def test_no_byte_is_read_back_that_is_not_shown(
    pending: list[tuple[int, bytes, bool]], offset: int, length: int
) -> None:
    read: list[int] = []

    def note(write: Staged, start: int, end: int) -> bytes:
        at = write.operation.data_offset
        read.extend(range(at + start, at + end))
        return data_of(write, start, end)

    content_with(
        b"", offset, length, 0, [staged(at, data, acknowledged=told) for at, data, told in pending], note
    )
    assert len(set(read)) == len(read), "what is written over is not shown"
    assert all(offset <= place < offset + length for place in read)


@given(spans=st.sets(st.integers(0, 30)), pending=writes, offset=st.integers(0, 40))
def test_data_and_holes_are_found_as_if_the_acknowledged_writes_were_done(
    spans: set[int], pending: list[tuple[int, bytes, bool]], offset: int
) -> None:
    """`spans` are the bytes that the volume holds as data."""
    end = 50
    held = spans.union(*(range(at, at + len(data)) for at, data, told in pending if told))
    over = [staged(at, data, acknowledged=told) for at, data, told in pending]
    found = min((at for at in spans if at >= offset), default=end)
    assert data_with(found, offset, over) == min((at for at in held if at >= offset), default=end)

    def next_hole(start: int) -> int:
        return next(at for at in range(start, end + 1) if at not in spans)

    assert hole_with(next_hole, offset, over) == next(at for at in range(offset, end + 1) if at not in held)
