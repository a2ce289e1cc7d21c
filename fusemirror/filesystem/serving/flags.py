"""ioctl(2): the flags of chattr(1), from the kernel's bytes to the reply's."""

import errno
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pyfuse3

from fusemirror.errors import MalformedRequest
from fusemirror.filesystem.answers import Handler
from fusemirror.filesystem.requests.attributes import AttributeRequests
from fusemirror.flags import extended_of
from fusemirror.kernel import codec
from fusemirror.kernel.codec import FuseReply, InHeader, Opcode

_FLAGS = struct.Struct("=I")
_FSXATTR = struct.Struct("=IIIII8x")  # linux/fs.h
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS = 0x80086601, 0x40086602
_FS_IOC_FSGETXATTR, _FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820


class FlagServer:
    """See the module; `handlers` are all its requests."""

    def __init__(self, attributes: AttributeRequests) -> None:
        self._attributes: Any = attributes  # as for `NameServer`
        self.handlers: dict[int, Handler] = {Opcode.IOCTL: self._ioctl}
        self._ioctls: dict[int, Callable[[InHeader, bytes], Awaitable[bytes]]] = {
            _FS_IOC_GETFLAGS: self._get_flags,
            _FS_IOC_SETFLAGS: self._set_flags,
            _FS_IOC_FSGETXATTR: self._get_extended_flags,
            _FS_IOC_FSSETXATTR: self._set_extended_flags,
        }

    async def _ioctl(self, header: InHeader, body: memoryview) -> FuseReply:
        """Flags of chattr(1), for which the kernel has asked for permissions; ENOTTY for all else: Python's
        open() asks every file whether it is a terminal."""
        asked = codec.IOCTL_IN.read(body)
        answer = self._ioctls.get(asked.cmd)
        if answer is None:
            return codec.error_reply(header.unique, errno.ENOTTY)
        data = codec.data_in(body, codec.IOCTL_IN.size, asked.in_size)
        return codec.ioctl_reply(header.unique, (await answer(header, data))[: asked.out_size])

    async def _get_flags(self, header: InHeader, _: bytes) -> bytes:
        flags: int = await self._attributes.flags(header.nodeid)
        return _FLAGS.pack(flags)

    async def _set_flags(self, header: InHeader, data: bytes) -> bytes:
        await self._attributes.set_flags(header.nodeid, int.from_bytes(data[: _FLAGS.size], sys.byteorder))
        return b""

    async def _get_extended_flags(self, header: InHeader, _: bytes) -> bytes:
        flags: int = await self._attributes.flags(header.nodeid)
        return _FSXATTR.pack(extended_of(flags), 0, 0, 0, 0)

    async def _set_extended_flags(self, header: InHeader, data: bytes) -> bytes:
        """The sizes of extents, and a project, are for filesystems that have them."""
        if len(data) < _FSXATTR.size:
            raise MalformedRequest(f"{len(data)} bytes for an fsxattr")
        extended, extent_size, _, project, cow_extent_size = _FSXATTR.unpack_from(data)
        if extent_size or project or cow_extent_size:
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        await self._attributes.set_extended_flags(header.nodeid, extended)
        return b""
