"""Requests on names, from the kernel's bytes to the reply's."""

import stat
from typing import Any

import pyfuse3

from fusemirror.filesystem.answers import Handler, entry_of
from fusemirror.filesystem.callers import Caller
from fusemirror.filesystem.requests.names import NameRequests
from fusemirror.kernel import codec
from fusemirror.kernel.codec import FuseReply, InHeader, Opcode


class NameServer:
    """See the module; `handlers` are all its requests."""

    def __init__(self, names: NameRequests) -> None:
        self._names: Any = names  # they take our own types as well, and pyfuse3's say otherwise
        self.handlers: dict[int, Handler] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename2,
            Opcode.LINK: self._link,
        }

    async def _lookup(self, header: InHeader, body: memoryview) -> FuseReply:
        (name,) = codec.names_in(body, 0, 1)
        return self._entry(header, await self._names.lookup(header.nodeid, name, header))

    async def _mknod(self, header: InHeader, body: memoryview) -> FuseReply:
        asked = codec.MKNOD_IN.read(body)
        (name,) = codec.names_in(body, codec.MKNOD_IN.size, 1)
        caller = Caller(header.uid, header.gid, header.pid, asked.umask)
        made = await self._names.mknod(header.nodeid, name, asked.mode, asked.rdev, caller)
        return self._entry(header, made)

    async def _mkdir(self, header: InHeader, body: memoryview) -> FuseReply:
        asked = codec.MKDIR_IN.read(body)
        (name,) = codec.names_in(body, codec.MKDIR_IN.size, 1)
        caller = Caller(header.uid, header.gid, header.pid, asked.umask)
        mode = stat.S_IFDIR | stat.S_IMODE(asked.mode)
        return self._entry(header, await self._names.mkdir(header.nodeid, name, mode, caller))

    async def _symlink(self, header: InHeader, body: memoryview) -> FuseReply:
        name, target = codec.names_in(body, 0, 2)
        return self._entry(header, await self._names.symlink(header.nodeid, name, target, header))

    async def _link(self, header: InHeader, body: memoryview) -> FuseReply:
        inode = codec.LINK_IN.read(body).oldnodeid
        (name,) = codec.names_in(body, codec.LINK_IN.size, 1)
        return self._entry(header, await self._names.link(inode, header.nodeid, name, header))

    async def _unlink(self, header: InHeader, body: memoryview) -> FuseReply:
        (name,) = codec.names_in(body, 0, 1)
        await self._names.unlink(header.nodeid, name, header)
        return codec.empty_reply(header.unique)

    async def _rmdir(self, header: InHeader, body: memoryview) -> FuseReply:
        (name,) = codec.names_in(body, 0, 1)
        await self._names.rmdir(header.nodeid, name, header)
        return codec.empty_reply(header.unique)

    async def _rename(self, header: InHeader, body: memoryview) -> FuseReply:
        asked = codec.RENAME_IN.read(body)
        return await self._move(header, asked.newdir, codec.names_in(body, codec.RENAME_IN.size, 2), 0)

    async def _rename2(self, header: InHeader, body: memoryview) -> FuseReply:
        asked = codec.RENAME2_IN.read(body)
        names = codec.names_in(body, codec.RENAME2_IN.size, 2)
        return await self._move(header, asked.newdir, names, asked.flags)

    async def _move(self, header: InHeader, target: int, names: list[bytes], flags: int) -> FuseReply:
        old, new = names
        await self._names.rename(header.nodeid, old, target, new, flags, header)
        return codec.empty_reply(header.unique)

    def _entry(self, header: InHeader, entry: pyfuse3.EntryAttributes) -> FuseReply:
        return codec.entry_reply(header.unique, entry_of(entry))
