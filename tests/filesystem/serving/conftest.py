"""Requests as bytes to the handlers over a real volume, and their replies as bytes again."""

import errno
import os
import stat

import outcome
import pytest

from fusemirror.filesystem.operations import Operations
from fusemirror.filesystem.server import OperationsServer
from fusemirror.kernel import codec
from fusemirror.kernel.codec import NS_PER_S, Attr, FuseReply, InHeader, Opcode
from tests.filesystem.conftest import never

NOW_NS = 1_700_000_000 * NS_PER_S + 5
ROOT = codec.ROOT_INODE


class Kernel:
    """What a kernel asks, and what it makes of the answers."""

    def __init__(self, server: OperationsServer) -> None:
        self.server = server
        self._unique = 0

    async def ask(self, opcode: Opcode, nodeid: int, body: bytes = b"", *, uid: int = 0) -> bytes:
        """The data of the reply; OSError for the error of one."""
        self._unique += 2
        length = codec.IN_HEADER.size + len(body)
        header = InHeader(length, opcode, self._unique, nodeid, uid, uid, 4711, 0, 0)
        self.header, self.body = header, body
        self.reply: FuseReply = codec.empty_reply(0)
        begun = self.server.begin_write(header, memoryview(body)) if opcode == Opcode.WRITE else None
        if begun is None:
            handling = self.server.serve(header, memoryview(body))
            assert handling is not None
            self.reply = await handling
        else:
            result = await outcome.acapture(begun.promise.wait)
            reply = self.server.reply_to_write(header, begun, result)
            self.reply = await self.server.end_write(header, begun, result) if reply is None else reply
        data = b"".join(self.reply)
        found = codec.OUT_HEADER.read(data)
        assert (found.len, found.unique) == (len(data), self._unique)
        if found.error:
            raise OSError(-found.error, os.strerror(-found.error))
        return data[codec.OUT_HEADER.size :]

    async def lose_reply(self) -> None:
        """The program was killed: the kernel did not take the last reply."""
        body = self.body if self.header.opcode in codec.TELL_IN_BODY else b""
        await self.server.untaken(self.header, body, self.reply)

    async def make_directory(self, name: bytes) -> int:
        made = await self.ask(Opcode.MKDIR, ROOT, codec.MKDIR_IN.pack(0o755, 0) + name + b"\0")
        return codec.ENTRY_OUT.read(made).nodeid

    async def refused(self, opcode: Opcode, nodeid: int, body: bytes = b"") -> str:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is looked at
            await self.ask(opcode, nodeid, body)
        return errno.errorcode[caught.value.errno or 0]

    async def create(self, name: bytes, mode: int = 0o644, flags: int = os.O_RDWR) -> tuple[int, int]:
        """The new inode, and the handle."""
        asked = codec.CREATE_IN.pack(flags, stat.S_IFREG | mode, 0o022, 0)
        data = await self.ask(Opcode.CREATE, ROOT, asked + name + b"\0")
        opened = codec.OPEN_OUT.read(data, codec.ENTRY_OUT.size + codec.ATTR.size)
        return codec.ENTRY_OUT.read(data).nodeid, opened.fh

    async def attributes(self, inode: int) -> Attr:
        data = await self.ask(Opcode.GETATTR, inode, codec.GETATTR_IN.pack(0, 0, 0))
        return codec.ATTR.read(data, codec.ATTR_OUT.size)

    async def names(self, handle: int, *, offset: int = 0, size: int = 4096) -> list[tuple[bytes, int, int]]:
        """Names, their inodes and types."""
        data = await self.ask(Opcode.READDIRPLUS, ROOT, codec.READ_IN.pack(handle, offset, size, 0, 0, 0, 0))
        assert len(data) <= size
        self.last_offset = 0
        found = []
        for name, entry, dirent in codec.directory_entries(data):
            self.last_offset = dirent.off
            found.append((name, entry.nodeid, dirent.type))
        return found


@pytest.fixture
def kernel(operations: Operations) -> Kernel:
    return Kernel(OperationsServer(operations, lambda: NOW_NS, never, tells_of_privileges=True))


def setattr_of(valid: int, **fields: int) -> bytes:
    asked = codec.SetattrIn(*([0] * len(codec.SetattrIn._fields)))._replace(valid=valid, **fields)
    return codec.SETATTR_IN.pack(*asked)


SET_ID = stat.S_ISUID | stat.S_ISGID
