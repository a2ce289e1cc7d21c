"""Whatever comes is answered: mistakes, bytes that no kernel sends, what a killed program left."""

import errno
import struct
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fusemirror.errors import MalformedRequest
from fusemirror.filesystem.operations import Operations
from fusemirror.filesystem.server import OperationsServer
from fusemirror.kernel import codec
from fusemirror.kernel.codec import InHeader, Opcode
from tests.filesystem.conftest import never
from tests.filesystem.serving.conftest import NOW_NS, ROOT, Kernel, kernel

__all__ = ["kernel"]


async def test_the_rest(kernel: Kernel) -> None:
    found = codec.KSTATFS.read(await kernel.ask(Opcode.STATFS, ROOT))
    assert (found.bsize, found.namelen) == (4096, 255)
    assert found.blocks > found.bfree >= found.bavail
    assert await kernel.ask(Opcode.ACCESS, ROOT, codec.ACCESS_IN.pack(7, 0)) == b""
    assert await kernel.refused(Opcode.IOCTL, ROOT, codec.IOCTL_IN.pack(0, 0, 0x5401, 0, 0, 0)) == "ENOTTY"
    assert await kernel.ask(Opcode.DESTROY, 0) == b""


async def test_what_is_not_served_is_left_to_the_session(kernel: Kernel, operations: Operations) -> None:
    header = InHeader(40, 4711, 2, 1, 0, 0, 0, 0, 0)
    assert kernel.server.serve(header, memoryview(b"")) is None


async def test_what_the_kernel_did_not_take_is_taken_back(kernel: Kernel, operations: Operations) -> None:
    inode, _ = await kernel.create(b"file")
    await kernel.lose_reply()
    assert inode not in operations.names._cache._known
    assert inode not in operations.files._unit.open_inodes  # type: ignore[operator]
    await kernel.ask(Opcode.OPENDIR, ROOT, codec.OPEN_IN.pack(0, 0))
    await kernel.lose_reply()
    assert ROOT not in operations.files._unit.open_inodes  # type: ignore[operator]


@pytest.mark.expects_warnings
async def test_a_mistake_in_a_handler_is_eio_and_a_line_in_the_log(
    operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def mistaken(inode: int, ctx: object) -> int:
        raise KeyError(inode)

    told: list[str] = []
    monkeypatch.setattr(operations.attributes, "getattr", mistaken)
    kernel = Kernel(OperationsServer(operations, lambda: NOW_NS, lambda: told.append("bug")))
    assert await kernel.refused(Opcode.GETATTR, ROOT, codec.GETATTR_IN.pack(0, 0, 0)) == "EIO"
    assert told == ["bug"]

    def mistaken_too(inodes: object) -> None:
        raise KeyError(inodes)

    monkeypatch.setattr(operations.names, "forget", mistaken_too)
    header = InHeader(48, Opcode.FORGET, 2, 1, 0, 0, 0, 0, 0)
    assert kernel.server.serve(header, memoryview(codec.FORGET_IN.pack(1))) is None
    assert told == ["bug", "bug"]


class Willing(pyfuse3.Operations):
    """Takes everything."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("forget", "__class__"):
            return lambda _: None
        if name in ("names", "directories", "attributes", "files"):
            return self

        async def refuse(*_: Any, **__: Any) -> Any:
            raise pyfuse3.FUSEError(errno.EPERM)

        if name == "program_locks":
            return SimpleNamespace(find=refuse, set=refuse, closed_by=lambda *_: None)
        return refuse


# Numbers of a structure that are each at an end of their range, and what follows it; or any bytes.
_ENDS = st.lists(st.sampled_from([0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]), max_size=12)
_BODIES = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda ends, rest: struct.pack(f"<{len(ends)}Q", *ends) + rest, _ENDS, st.binary(max_size=40)),
)


@given(st.one_of(st.sampled_from(sorted(Opcode)), st.integers(0, 99)), _BODIES)
@example(Opcode.SETATTR, b"\xff" * codec.SETATTR_IN.size)
def test_no_bytes_of_the_kernel_are_a_bug(opcode: int, body: bytes) -> None:
    server = OperationsServer(Willing(), lambda: NOW_NS, never)  # type: ignore[arg-type]
    header = InHeader(40 + len(body), opcode, 2, 1, 0, 0, 0, 0, 0)
    try:
        handling = server.serve(header, memoryview(body))
        if handling is not None:
            with pytest.raises(StopIteration):
                handling.send(None)
    except MalformedRequest:
        pass
