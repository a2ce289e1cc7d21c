"""Requests on open directories, from the kernel's bytes to the reply's."""

from typing import Any

from fusemirror.filesystem.answers import Handler, Listing
from fusemirror.filesystem.requests.directories import DirectoryRequests
from fusemirror.kernel import codec
from fusemirror.kernel.codec import FuseReply, InHeader, Opcode


class DirectoryServer:
    """See the module; `handlers` are all its requests."""

    def __init__(self, directories: DirectoryRequests) -> None:
        self._directories: Any = directories  # as for `NameServer`
        self.handlers: dict[int, Handler] = {
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.FSYNCDIR: self._fsyncdir,
        }

    async def _opendir(self, header: InHeader, body: memoryview) -> FuseReply:
        return codec.open_reply(header.unique, await self._directories.opendir(header.nodeid, header), 0)

    async def _readdirplus(self, header: InHeader, body: memoryview) -> FuseReply:
        asked = codec.READ_IN.read(body)
        listing = Listing(asked.size)
        await self._directories.readdir(asked.fh, asked.offset, listing)
        return codec.data_reply(header.unique, listing.data)

    async def _releasedir(self, header: InHeader, body: memoryview) -> FuseReply:
        await self._directories.releasedir(codec.RELEASE_IN.read(body).fh)
        return codec.empty_reply(header.unique)

    async def _fsyncdir(self, header: InHeader, body: memoryview) -> FuseReply:
        asked = codec.FSYNC_IN.read(body)
        await self._directories.fsyncdir(asked.fh, bool(asked.fsync_flags & codec.FSYNC_FDATASYNC))
        return codec.empty_reply(header.unique)
