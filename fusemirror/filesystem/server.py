"""`Operations` behind our own session with the kernel: each request becomes one call of a handler.

It does what pyfuse3's own loop does, without what that costs: `kernel/session.py` reads and replies.
"""

import errno
import logging
import os
import stat
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol

import pyfuse3

from fusemirror.errors import MalformedRequest
from fusemirror.filesystem.answers import Listing, attr_of, entry_of, open_flags_of, statfs_of
from fusemirror.identifiers import InodeNumber
from fusemirror.kernel import codec
from fusemirror.kernel.codec import NS_PER_S, Attr, InHeader, Opcode, Reply

log = logging.getLogger(__name__)

_BUG = "a bug in serving opcode %d: please report it"
_XATTR_FLAGS = os.XATTR_CREATE | os.XATTR_REPLACE

_LOOKS = frozenset((Opcode.READ, Opcode.GETATTR))

Handler = Callable[[InHeader, memoryview], Coroutine[Any, Any, Reply]]


class Caller(NamedTuple):
    """Who makes something: pyfuse3's RequestContext, which only pyfuse3 can make. `InHeader` serves as
    the same where no umask is asked for."""

    uid: int
    gid: int
    pid: int
    umask: int


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


class AtOnce(Protocol):
    """What `Operations` says of requests that would be asked now."""

    def writes_at_once(self, data_bytes: int) -> bool: ...

    def shows_at_once(self, inode: InodeNumber) -> bool: ...


class OperationsServer:
    """The `Server` of a session. A bug, too, is answered: with EIO, a trace in the log, and `on_bug`."""

    def __init__(
        self,
        operations: pyfuse3.Operations,
        now_ns: Callable[[], int],
        on_bug: Callable[[], None],
        *,
        tells_of_privileges: bool = False,
        at_once: AtOnce | None = None,
    ) -> None:
        """`tells_of_privileges`: the kernel says which changes end set-user-id and set-group-id.
        `at_once` says which requests need no task; without it all may need one.
        """
        # Its handlers take our own types as well, and pyfuse3's say otherwise.
        self._operations: Any = operations
        self._now_ns = now_ns
        self._on_bug = on_bug
        self._tells_of_privileges = tells_of_privileges
        self._at_once = at_once
        self._handlers: dict[int, Handler] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.STATX: self._statx,
            Opcode.SETATTR: self._setattr,
            Opcode.READLINK: self._readlink,
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename2,
            Opcode.LINK: self._link,
            Opcode.OPEN: self._open,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.STATFS: self._statfs,
            Opcode.RELEASE: self._release,
            Opcode.FSYNC: self._fsync,
            Opcode.SETXATTR: self._setxattr,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.REMOVEXATTR: self._removexattr,
            Opcode.FLUSH: self._flush,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.LSEEK: self._lseek,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.FSYNCDIR: self._fsyncdir,
            Opcode.ACCESS: self._access,
            Opcode.CREATE: self._create,
            Opcode.TMPFILE: self._tmpfile,
            Opcode.DESTROY: self._destroy,
            Opcode.IOCTL: self._ioctl,
            Opcode.GETLK: self._getlk,
            Opcode.SETLK: self._setlk,
            Opcode.SETLKW: self._setlk,
        }

    def serve(self, header: InHeader, body: memoryview) -> Coroutine[Any, Any, Reply] | None:
        handler = self._handlers.get(header.opcode)
        if handler is not None:
            return self._answer(handler, header, body)
        if header.opcode == Opcode.FORGET:
            self._forget(header.opcode, [(header.nodeid, codec.FORGET_IN.read(body).nlookup)])
        elif header.opcode == Opcode.BATCH_FORGET:
            self._forget(header.opcode, codec.forgotten_in(body))
        return None

    def needs_no_task(self, header: InHeader) -> bool:
        at_once, opcode = self._at_once, header.opcode
        if at_once is None:
            return False
        if opcode == Opcode.WRITE:
            return at_once.writes_at_once(header.len)
        return opcode in _LOOKS and at_once.shows_at_once(InodeNumber(header.nodeid))

    def _forget(self, opcode: int, inodes: list[tuple[int, int]]) -> None:
        try:
            self._operations.forget(inodes)
        except Exception:
            log.critical(_BUG, opcode, exc_info=True)
            self._on_bug()

    async def _answer(self, handler: Handler, header: InHeader, body: memoryview) -> Reply:
        try:
            return await handler(header, body)
        except pyfuse3.FUSEError as error:
            return codec.error_reply(header.unique, error.errno)
        except MalformedRequest:
            raise
        except Exception:
            log.critical(_BUG, header.opcode, exc_info=True)
            self._on_bug()
            return codec.error_reply(header.unique, errno.EIO)

    async def untaken(self, header: InHeader, body: bytes, reply: Reply) -> None:
        if codec.OUT_HEADER.read(reply[0]).error:
            return
        handed = codec.handed_by(header.opcode, reply)
        if handed.file is not None:
            await self._operations.release(handed.file)
        if handed.directory is not None:
            await self._operations.releasedir(handed.directory)
        if handed.inodes:
            self._operations.forget([(inode, 1) for inode in handed.inodes])
        self._operations.changed_untold(
            codec.names_changed_by(header, memoryview(body)),
            header.nodeid if codec.effects_of(header.opcode).content else None,
        )

    # --- names ------------------------------------------------------------------------------------------

    async def _lookup(self, header: InHeader, body: memoryview) -> Reply:
        (name,) = codec.names_in(body, 0, 1)
        return self._entry(header, await self._operations.lookup(header.nodeid, name, header))

    def _entry(self, header: InHeader, entry: pyfuse3.EntryAttributes) -> Reply:
        return codec.entry_reply(header.unique, entry_of(entry))

    async def _mknod(self, header: InHeader, body: memoryview) -> Reply:
        asked = codec.MKNOD_IN.read(body)
        (name,) = codec.names_in(body, codec.MKNOD_IN.size, 1)
        caller = Caller(header.uid, header.gid, header.pid, asked.umask)
        made = await self._operations.mknod(header.nodeid, name, asked.mode, asked.rdev, caller)
        return self._entry(header, made)

    async def _mkdir(self, header: InHeader, body: memoryview) -> Reply:
        asked = codec.MKDIR_IN.read(body)
        (name,) = codec.names_in(body, codec.MKDIR_IN.size, 1)
        caller = Caller(header.uid, header.gid, header.pid, asked.umask)
        mode = stat.S_IFDIR | stat.S_IMODE(asked.mode)
        return self._entry(header, await self._operations.mkdir(header.nodeid, name, mode, caller))

    async def _symlink(self, header: InHeader, body: memoryview) -> Reply:
        name, target = codec.names_in(body, 0, 2)
        return self._entry(header, await self._operations.symlink(header.nodeid, name, target, header))

    async def _link(self, header: InHeader, body: memoryview) -> Reply:
        inode = codec.LINK_IN.read(body).oldnodeid
        (name,) = codec.names_in(body, codec.LINK_IN.size, 1)
        return self._entry(header, await self._operations.link(inode, header.nodeid, name, header))

    async def _unlink(self, header: InHeader, body: memoryview) -> Reply:
        (name,) = codec.names_in(body, 0, 1)
        await self._operations.unlink(header.nodeid, name, header)
        return codec.empty_reply(header.unique)

    async def _rmdir(self, header: InHeader, body: memoryview) -> Reply:
        (name,) = codec.names_in(body, 0, 1)
        await self._operations.rmdir(header.nodeid, name, header)
        return codec.empty_reply(header.unique)

    async def _rename(self, header: InHeader, body: memoryview) -> Reply:
        asked = codec.RENAME_IN.read(body)
        return await self._move(header, asked.newdir, codec.names_in(body, codec.RENAME_IN.size, 2), 0)

    async def _rename2(self, header: InHeader, body: memoryview) -> Reply:
        asked = codec.RENAME2_IN.read(body)
        names = codec.names_in(body, codec.RENAME2_IN.size, 2)
        return await self._move(header, asked.newdir, names, asked.flags)

    async def _move(self, header: InHeader, target: int, names: list[bytes], flags: int) -> Reply:
        old, new = names
        await self._operations.rename(header.nodeid, old, target, new, flags, header)
        return codec.empty_reply(header.unique)

    async def _readlink(self, header: InHeader, body: memoryview) -> Reply:
        return codec.data_reply(header.unique, await self._operations.readlink(header.nodeid, header))

    # --- directories ------------------------------------------------------------------------------------

    async def _opendir(self, header: InHeader, body: memoryview) -> Reply:
        return codec.open_reply(header.unique, await self._operations.opendir(header.nodeid, header), 0)

    async def _readdirplus(self, header: InHeader, body: memoryview) -> Reply:
        asked = codec.READ_IN.read(body)
        listing = Listing(asked.size)
        await self._operations.readdir(asked.fh, asked.offset, listing)
        return codec.data_reply(header.unique, listing.data)

    async def _releasedir(self, header: InHeader, body: memoryview) -> Reply:
        await self._operations.releasedir(codec.RELEASE_IN.read(body).fh)
        return codec.empty_reply(header.unique)

    async def _fsyncdir(self, header: InHeader, body: memoryview) -> Reply:
        asked = codec.FSYNC_IN.read(body)
        await self._operations.fsyncdir(asked.fh, bool(asked.fsync_flags & codec.FSYNC_FDATASYNC))
        return codec.empty_reply(header.unique)

    # --- attributes ---------------------------------------------------------------------------------------

    async def _getattr(self, header: InHeader, body: memoryview) -> Reply:
        return self._attr(header, await self._operations.getattr(header.nodeid, header))

    def _attr(self, header: InHeader, entry: pyfuse3.EntryAttributes) -> Reply:
        return codec.attr_reply(header.unique, attr_of(entry), entry.attr_timeout)

    async def _statx(self, header: InHeader, body: memoryview) -> Reply:
        """Asked instead of GETATTR where more is wanted than that can tell."""
        codec.STATX_IN.read(body)
        entry = await self._operations.getattr(header.nodeid, header)
        birth_ns = self._operations.birth_ns(header.nodeid)
        return codec.statx_reply(header.unique, Attr(*attr_of(entry)), entry.attr_timeout, birth_ns)

    async def _setattr(self, header: InHeader, body: memoryview) -> Reply:
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
        ends = bool(valid & codec.FATTR_KILL_SUIDGID)
        changed = await self._operations.setattr(
            header.nodeid, wanted, fields, handle, header, clear_privileges=ends
        )
        return self._attr(header, changed)

    async def _getxattr(self, header: InHeader, body: memoryview) -> Reply:
        size = codec.GETXATTR_IN.read(body).size
        (name,) = codec.names_in(body, codec.GETXATTR_IN.size, 1)
        return _fitting(header, await self._operations.getxattr(header.nodeid, name, header), size)

    async def _listxattr(self, header: InHeader, body: memoryview) -> Reply:
        size = codec.GETXATTR_IN.read(body).size
        names = await self._operations.listxattr(header.nodeid, header)
        return _fitting(header, b"".join(name + b"\0" for name in names), size)

    async def _setxattr(self, header: InHeader, body: memoryview) -> Reply:
        asked = codec.SETXATTR_IN.read(body)
        (name,) = codec.names_in(body, codec.SETXATTR_IN.size, 1)
        value = codec.data_in(body, codec.SETXATTR_IN.size + len(name) + 1, asked.size)
        if asked.flags & ~_XATTR_FLAGS:
            return codec.error_reply(header.unique, errno.EINVAL)
        if asked.flags:
            there = await self._has_xattr(header, name)
            if there and asked.flags & os.XATTR_CREATE:
                return codec.error_reply(header.unique, errno.EEXIST)
            if not there and asked.flags & os.XATTR_REPLACE:
                return codec.error_reply(header.unique, errno.ENODATA)
        await self._operations.setxattr(header.nodeid, name, value, header)
        return codec.empty_reply(header.unique)

    async def _has_xattr(self, header: InHeader, name: bytes) -> bool:
        try:
            await self._operations.getxattr(header.nodeid, name, header)
        except pyfuse3.FUSEError as error:
            if error.errno != errno.ENODATA:
                raise
            return False
        return True

    async def _removexattr(self, header: InHeader, body: memoryview) -> Reply:
        (name,) = codec.names_in(body, 0, 1)
        await self._operations.removexattr(header.nodeid, name, header)
        return codec.empty_reply(header.unique)

    async def _access(self, header: InHeader, body: memoryview) -> Reply:
        mask = codec.ACCESS_IN.read(body).mask
        allowed = await self._operations.access(header.nodeid, mask, header)
        return codec.error_reply(header.unique, 0 if allowed else errno.EACCES)

    async def _statfs(self, header: InHeader, body: memoryview) -> Reply:
        return codec.statfs_reply(header.unique, statfs_of(await self._operations.statfs(header)))

    # --- files --------------------------------------------------------------------------------------------

    async def _open(self, header: InHeader, body: memoryview) -> Reply:
        asked = codec.OPEN_IN.read(body)
        ends = self._told(asked.open_flags & codec.OPEN_KILL_SUIDGID)
        info = await self._operations.open(header.nodeid, asked.flags, header, clear_privileges=ends)
        return codec.open_reply(header.unique, info.fh, open_flags_of(info))

    async def _create(self, header: InHeader, body: memoryview) -> Reply:
        asked = codec.CREATE_IN.read(body)
        (name,) = codec.names_in(body, codec.CREATE_IN.size, 1)
        caller = Caller(header.uid, header.gid, header.pid, asked.umask)
        info, entry = await self._operations.create(
            header.nodeid,
            name,
            asked.mode,
            asked.flags,
            caller,
            clear_privileges=self._told(asked.open_flags & codec.OPEN_KILL_SUIDGID),
        )
        return codec.create_reply(header.unique, entry_of(entry), info.fh, open_flags_of(info))

    async def _tmpfile(self, header: InHeader, body: memoryview) -> Reply:
        """The name that it comes with means nothing."""
        asked = codec.CREATE_IN.read(body)
        caller = Caller(header.uid, header.gid, header.pid, asked.umask)
        info, entry = await self._operations.tmpfile(header.nodeid, asked.mode, asked.flags, caller)
        return codec.create_reply(header.unique, entry_of(entry), info.fh, open_flags_of(info))

    async def _read(self, header: InHeader, body: memoryview) -> Reply:
        asked = codec.READ_IN.read(body)
        data = await self._operations.read(asked.fh, asked.offset, asked.size)
        return codec.data_reply(header.unique, data)

    async def _write(self, header: InHeader, body: memoryview) -> Reply:
        asked = codec.WRITE_IN.read(body)
        data = codec.data_in(body, codec.WRITE_IN.size, asked.size)
        written = await self._operations.write(
            asked.fh,
            asked.offset,
            data,
            # Of a mapping's page the kernel says neither how the file is open nor who changed it.
            append=bool(asked.flags & os.O_APPEND) and not asked.write_flags & codec.WRITE_CACHE,
            clear_privileges=self._told(asked.write_flags & codec.WRITE_KILL_SUIDGID),
        )
        return codec.write_reply(header.unique, written)

    def _told(self, flag: int) -> bool | None:
        """Whether the kernel says that privileges end with this; None where it says nothing of them."""
        return bool(flag) if self._tells_of_privileges else None

    async def _flush(self, header: InHeader, body: memoryview) -> Reply:
        asked = codec.FLUSH_IN.read(body)
        self._operations.program_locks.closed_by(asked.fh, asked.lock_owner)  # before anything is waited for
        await self._operations.flush(asked.fh)
        return codec.empty_reply(header.unique)

    async def _fsync(self, header: InHeader, body: memoryview) -> Reply:
        asked = codec.FSYNC_IN.read(body)
        await self._operations.fsync(asked.fh, bool(asked.fsync_flags & codec.FSYNC_FDATASYNC))
        return codec.empty_reply(header.unique)

    async def _fallocate(self, header: InHeader, body: memoryview) -> Reply:
        asked = codec.FALLOCATE_IN.read(body)
        await self._operations.fallocate(asked.fh, asked.offset, asked.length, asked.mode, header.uid != 0)
        return codec.empty_reply(header.unique)

    async def _lseek(self, header: InHeader, body: memoryview) -> Reply:
        """Asked for holes and data only: all else the kernel knows itself."""
        asked = codec.LSEEK_IN.read(body)
        if asked.whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            return codec.error_reply(header.unique, errno.EINVAL)
        data = asked.whence == os.SEEK_DATA
        return codec.lseek_reply(header.unique, await self._operations.lseek(asked.fh, asked.offset, data))

    async def _release(self, header: InHeader, body: memoryview) -> Reply:
        await self._operations.release(codec.RELEASE_IN.read(body).fh)
        return codec.empty_reply(header.unique)

    # --- locks --------------------------------------------------------------------------------------------

    async def _getlk(self, header: InHeader, body: memoryview) -> Reply:
        conflict = await self._operations.program_locks.find(header, codec.lock_in(body))
        return codec.lock_reply(header.unique, conflict)

    async def _setlk(self, header: InHeader, body: memoryview) -> Reply:
        waits = header.opcode == Opcode.SETLKW
        await self._operations.program_locks.set(header, codec.lock_in(body), waits=waits)
        return codec.empty_reply(header.unique)

    def interrupt(self, unique: int) -> None:
        self._operations.program_locks.interrupt(unique)

    # --- the rest -----------------------------------------------------------------------------------------

    async def _ioctl(self, header: InHeader, body: memoryview) -> Reply:
        """Python's open() asks every file whether it is a terminal."""
        return codec.error_reply(header.unique, errno.ENOTTY)

    async def _destroy(self, header: InHeader, body: memoryview) -> Reply:
        return codec.empty_reply(header.unique)


def _fitting(header: InHeader, data: bytes, size: int) -> Reply:
    """An extended attribute, or their names: its size where 0 bytes are asked for."""
    if size == 0:
        return codec.xattr_size_reply(header.unique, len(data))
    if len(data) > size:
        return codec.error_reply(header.unique, errno.ERANGE)
    return codec.data_reply(header.unique, data)
