"""ioctl(2), as bytes."""

import os

import pytest

from fusemirror.errors import MalformedRequest
from fusemirror.kernel import codec
from fusemirror.kernel.codec import Opcode
from tests.filesystem.serving.conftest import Kernel, setattr_of


async def test_flags_are_set_shown_and_asked_for_where_a_file_is_opened(kernel: Kernel) -> None:
    inode, handle = await kernel.create(b"file")

    async def ioctl(command: int, data: bytes, out_size: int) -> bytes:
        asked = codec.IOCTL_IN.pack(handle, 0, command, 0, len(data), out_size) + data
        reply = await kernel.ask(Opcode.IOCTL, inode, asked)
        assert codec.IOCTL_OUT.read(reply) == (0, 0, 0, 0)
        return reply[codec.IOCTL_OUT.size :]

    get, put, get_extended, put_extended = 0x80086601, 0x40086602, 0x801C581F, 0x401C5820
    assert await ioctl(get, b"", 4) == bytes(4)
    await ioctl(put, (0x60).to_bytes(4, "little"), 0)
    assert await ioctl(get, b"", 4) == (0x60).to_bytes(4, "little")
    assert await ioctl(get_extended, b"", 28) == (0x90).to_bytes(4, "little") + bytes(24)
    for flags, error in ((os.O_RDWR, "EPERM"), (os.O_WRONLY | os.O_APPEND | os.O_TRUNC, "EPERM")):
        assert await kernel.refused(Opcode.OPEN, inode, codec.OPEN_IN.pack(flags, 0)) == error
    await kernel.ask(Opcode.OPEN, inode, codec.OPEN_IN.pack(os.O_WRONLY | os.O_APPEND, 0))
    now = codec.FATTR_ATIME_NOW | codec.FATTR_MTIME_NOW
    times = codec.FATTR_ATIME | codec.FATTR_MTIME
    await kernel.ask(Opcode.SETATTR, inode, setattr_of(times | now))
    assert await kernel.refused(Opcode.SETATTR, inode, setattr_of(times)) == "EPERM"
    await ioctl(put_extended, (8).to_bytes(4, "little") + bytes(24), 0)
    for flags in (os.O_WRONLY | os.O_APPEND, os.O_RDONLY | os.O_TRUNC):
        assert await kernel.refused(Opcode.OPEN, inode, codec.OPEN_IN.pack(flags, 0)) == "EPERM"
    assert await kernel.refused(Opcode.SETATTR, inode, setattr_of(times | now)) == "EPERM"
    await kernel.ask(Opcode.OPEN, inode, codec.OPEN_IN.pack(os.O_RDONLY, 0))
    for command, data, error in (
        (0x5401, b"", "ENOTTY"),  # TCGETS
        (put, (4).to_bytes(4, "little"), "ENOTSUP"),
        (put_extended, (0x20).to_bytes(4, "little") + bytes(24), "ENOTSUP"),
        (put_extended, bytes(12) + b"p" + bytes(15), "ENOTSUP"),
    ):
        asked = codec.IOCTL_IN.pack(handle, 0, command, 0, len(data), 0) + data
        assert await kernel.refused(Opcode.IOCTL, inode, asked) == error
    with pytest.raises(MalformedRequest):
        await ioctl(put_extended, bytes(27), 0)
