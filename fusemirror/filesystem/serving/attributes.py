"""Requests on attributes, from the kernel's bytes to the reply's."""

import errno
from collections.abc import Callable
from typing import Any, NamedTuple

import pyfuse3

from fusemirror.filesystem.answers import Handler, attr_of, statfs_of
from fusemirror.filesystem.requests.attributes import AttributeRequests
from fusemirror.kernel import codec
from fusemirror.kernel.codec import NS_PER_S, Attr, FuseReply, InHeader, Opcode
from fusemirror.xattrs import SETTING_FLAGS

_NOW = codec.FATTR_ATIME_NOW | codec.FATTR_MTIME_NOW


class SetattrFields(NamedTuple):
    """pyfuse3's, which only pyfuse3 can fill in."""

    update_atime: bool
    update_mtime: bool
    update_ctime: bool
    update_mode: bool
    update_uid: bool
    update_gid: bool
    update_size: bool


class WantedAttributes(NamedTuple):
    """What is read of pyfuse3's EntryAttributes where attributes are set. Its fields have C's types, and no
    room for all that the protocol has."""

    st_mode: int
    st_uid: int
    st_gid: int
    st_size: int
    st_atime_ns: int
    st_mtime_ns: int


class AttributeServer:
    """See the module; `handlers` are all its requests."""

    def __init__(self, attributes: AttributeRequests, now_ns: Callable[[], int]) -> None:
        self._attributes: Any = attributes  # as for `NameServer`
        self._now_ns = now_ns
        self.handlers: dict[int, Handler] = {
            Opcode.GETATTR: self._getattr,
            Opcode.STATX: self._statx,
            Opcode.SETATTR: self._setattr,
            Opcode.STATFS: self._statfs,
            Opcode.SETXATTR: self._setxattr,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.REMOVEXATTR: self._removexattr,
            Opcode.ACCESS: self._access,
        }

    async def _getattr(self, header: InHeader, body: memoryview) -> FuseReply:
        return self._attr(header, await self._attributes.getattr(header.nodeid, header))

    async def _statx(self, header: InHeader, body: memoryview) -> FuseReply:
        """Asked instead of GETATTR where more is wanted than that can tell."""
        codec.STATX_IN.read(body)
        entry = await self._attributes.getattr(header.nodeid, header)
        birth_ns = self._attributes.birth_ns(header.nodeid)
        return codec.statx_reply(header.unique, Attr(*attr_of(entry)), entry.attr_timeout, birth_ns)

    async def _setattr(self, header: InHeader, body: memoryview) -> FuseReply:
        asked = codec.SETATTR_IN.read(body)
        valid, now_ns = asked.valid, self._now_ns()
        fields = SetattrFields(
            update_atime=bool(valid & (codec.FATTR_ATIME | codec.FATTR_ATIME_NOW)),
            update_mtime=bool(valid & (codec.FATTR_MTIME | codec.FATTR_MTIME_NOW)),
            update_ctime=bool(valid & codec.FATTR_CTIME),
            update_mode=bool(valid & codec.FATTR_MODE),
            update_uid=bool(valid & codec.FATTR_UID),
            update_gid=bool(valid & codec.FATTR_GID),
            update_size=bool(valid & codec.FATTR_SIZE),
        )
        atime_ns, mtime_ns = (
            asked.atime * NS_PER_S + asked.atimensec,
            asked.mtime * NS_PER_S + asked.mtimensec,
        )
        wanted = WantedAttributes(
            st_mode=asked.mode,
            st_uid=asked.uid,
            st_gid=asked.gid,
            st_size=asked.size,
            st_atime_ns=atime_ns if valid & codec.FATTR_ATIME else now_ns,
            st_mtime_ns=mtime_ns if valid & codec.FATTR_MTIME else now_ns,
        )
        handle = asked.fh if valid & codec.FATTR_FH else None
        times = valid & (codec.FATTR_ATIME | codec.FATTR_MTIME)
        changed = await self._attributes.setattr(
            header.nodeid,
            wanted,
            fields,
            handle,
            header,
            clear_privileges=bool(valid & codec.FATTR_KILL_SUIDGID),
            sets_times=bool(times) and valid & _NOW != _NOW,
        )
        return self._attr(header, changed)

    def _attr(self, header: InHeader, entry: pyfuse3.EntryAttributes) -> FuseReply:
        return codec.attr_reply(header.unique, attr_of(entry), entry.attr_timeout)

    async def _getxattr(self, header: InHeader, body: memoryview) -> FuseReply:
        size = codec.GETXATTR_IN.read(body).size
        (name,) = codec.names_in(body, codec.GETXATTR_IN.size, 1)
        return _fitting(header, await self._attributes.getxattr(header.nodeid, name, header), size)

    async def _listxattr(self, header: InHeader, body: memoryview) -> FuseReply:
        size = codec.GETXATTR_IN.read(body).size
        names = await self._attributes.listxattr(header.nodeid, header)
        return _fitting(header, b"".join(name + b"\0" for name in names), size)

    async def _setxattr(self, header: InHeader, body: memoryview) -> FuseReply:
        asked = codec.SETXATTR_IN.read(body)
        (name,) = codec.names_in(body, codec.SETXATTR_IN.size, 1)
        value = codec.data_in(body, codec.SETXATTR_IN.size + len(name) + 1, asked.size)
        if asked.flags & ~SETTING_FLAGS:
            return codec.error_reply(header.unique, errno.EINVAL)
        await self._attributes.setxattr(header.nodeid, name, value, header, flags=asked.flags)
        return codec.empty_reply(header.unique)

    async def _removexattr(self, header: InHeader, body: memoryview) -> FuseReply:
        (name,) = codec.names_in(body, 0, 1)
        await self._attributes.removexattr(header.nodeid, name, header)
        return codec.empty_reply(header.unique)

    async def _access(self, header: InHeader, body: memoryview) -> FuseReply:
        mask = codec.ACCESS_IN.read(body).mask
        allowed = await self._attributes.access(header.nodeid, mask, header)
        return codec.error_reply(header.unique, 0 if allowed else errno.EACCES)

    async def _statfs(self, header: InHeader, body: memoryview) -> FuseReply:
        return codec.statfs_reply(header.unique, statfs_of(await self._attributes.statfs(header)))


def _fitting(header: InHeader, data: bytes, size: int) -> FuseReply:
    """An extended attribute, or their names: its size where 0 bytes are asked for."""
    if size == 0:
        return codec.xattr_size_reply(header.unique, len(data))
    if len(data) > size:
        return codec.error_reply(header.unique, errno.ERANGE)
    return codec.data_reply(header.unique, data)
