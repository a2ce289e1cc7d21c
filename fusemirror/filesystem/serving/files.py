"""Requests on what is in a file, from the kernel's bytes to the reply's."""

import errno
import os
from typing import Any

import outcome

from fusemirror.control.unit import BegunWrite
from fusemirror.filesystem.answers import Handler, entry_of, open_flags_of
from fusemirror.filesystem.callers import Caller
from fusemirror.filesystem.program_locks import ProgramLocks
from fusemirror.filesystem.requests.files import FileRequests
from fusemirror.kernel import codec
from fusemirror.kernel.codec import FuseReply, InHeader, Opcode


class FileServer:
    """See the module; `handlers` are all its requests."""

    def __init__(self, files: FileRequests, locks: ProgramLocks, *, tells_of_privileges: bool) -> None:
        """`tells_of_privileges` as for `OperationsServer`."""
        self._files: Any = files  # as for `NameServer`
        self._locks = locks
        self._tells_of_privileges = tells_of_privileges
        self.handlers: dict[int, Handler] = {
            Opcode.OPEN: self._open,
            Opcode.CREATE: self._create,
            Opcode.TMPFILE: self._tmpfile,
            Opcode.READLINK: self._readlink,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.FLUSH: self._flush,
            Opcode.FSYNC: self._fsync,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.LSEEK: self._lseek,
            Opcode.COPY_FILE_RANGE: self._copy_file_range,
            Opcode.RELEASE: self._release,
        }

    async def _open(self, header: InHeader, body: memoryview) -> FuseReply:
        asked = codec.OPEN_IN.read(body)
        ends = self._ends_privileges(asked.open_flags & codec.OPEN_KILL_SUIDGID)
        info = await self._files.open(header.nodeid, asked.flags, header, clear_privileges=ends)
        return codec.open_reply(header.unique, info.fh, open_flags_of(info))

    async def _create(self, header: InHeader, body: memoryview) -> FuseReply:
        asked = codec.CREATE_IN.read(body)
        (name,) = codec.names_in(body, codec.CREATE_IN.size, 1)
        caller = Caller(header.uid, header.gid, header.pid, asked.umask)
        info, entry = await self._files.create(
            header.nodeid,
            name,
            asked.mode,
            asked.flags,
            caller,
            clear_privileges=self._ends_privileges(asked.open_flags & codec.OPEN_KILL_SUIDGID),
        )
        return codec.create_reply(header.unique, entry_of(entry), info.fh, open_flags_of(info))

    async def _tmpfile(self, header: InHeader, body: memoryview) -> FuseReply:
        """The name that it comes with means nothing."""
        asked = codec.CREATE_IN.read(body)
        caller = Caller(header.uid, header.gid, header.pid, asked.umask)
        info, entry = await self._files.tmpfile(header.nodeid, asked.mode, asked.flags, caller)
        return codec.create_reply(header.unique, entry_of(entry), info.fh, open_flags_of(info))

    async def _readlink(self, header: InHeader, body: memoryview) -> FuseReply:
        return codec.data_reply(header.unique, await self._files.readlink(header.nodeid, header))

    async def _read(self, header: InHeader, body: memoryview) -> FuseReply:
        asked = codec.READ_IN.read(body)
        data = await self._files.read(asked.fh, asked.offset, asked.size)
        return codec.data_reply(header.unique, data)

    async def _write(self, header: InHeader, body: memoryview) -> FuseReply:
        asked = codec.WRITE_IN.read(body)
        data = codec.data_in(body, codec.WRITE_IN.size, asked.size)
        written = await self._files.write(
            asked.fh,
            asked.offset,
            data,
            append=_appends(asked),
            clear_privileges=self._ends_privileges(asked.write_flags & codec.WRITE_KILL_SUIDGID),
        )
        return codec.write_reply(header.unique, written)

    def begin_write(self, header: InHeader, body: memoryview) -> BegunWrite | None:
        """`_write`, where it has to wait for nothing but the other host."""
        asked = codec.WRITE_IN.read(body)
        if _appends(asked):  # before the data is copied
            return None
        begun: BegunWrite | None = self._files.begin_write(
            asked.fh,
            asked.offset,
            codec.data_in(body, codec.WRITE_IN.size, asked.size),
            clear_privileges=self._ends_privileges(asked.write_flags & codec.WRITE_KILL_SUIDGID),
        )
        return begun

    def reply_to_write(
        self, header: InHeader, begun: BegunWrite, result: "outcome.Outcome[Any]"
    ) -> FuseReply | None:
        """The reply, as its promise has become this; None where `end_write` goes on."""
        if self._files.is_done(begun, result):
            return codec.write_reply(header.unique, len(begun.data))
        return None

    async def end_write(
        self, header: InHeader, begun: BegunWrite, result: "outcome.Outcome[Any]"
    ) -> FuseReply:
        """`_write` from where the promise was settled."""
        return codec.write_reply(header.unique, await self._files.end_write(begun, result))

    def _ends_privileges(self, flag: int) -> bool | None:
        """Whether the kernel says that privileges end with this; None where it says nothing of them."""
        return bool(flag) if self._tells_of_privileges else None

    async def _flush(self, header: InHeader, body: memoryview) -> FuseReply:
        asked = codec.FLUSH_IN.read(body)
        self._locks.closed_by(asked.fh, asked.lock_owner)  # before anything is waited for
        await self._files.flush(asked.fh)
        return codec.empty_reply(header.unique)

    async def _fsync(self, header: InHeader, body: memoryview) -> FuseReply:
        asked = codec.FSYNC_IN.read(body)
        await self._files.fsync(asked.fh, bool(asked.fsync_flags & codec.FSYNC_FDATASYNC))
        return codec.empty_reply(header.unique)

    async def _fallocate(self, header: InHeader, body: memoryview) -> FuseReply:
        asked = codec.FALLOCATE_IN.read(body)
        await self._files.fallocate(asked.fh, asked.offset, asked.length, asked.mode, header.uid != 0)
        return codec.empty_reply(header.unique)

    async def _lseek(self, header: InHeader, body: memoryview) -> FuseReply:
        """Asked for holes and data only: all else the kernel knows itself."""
        asked = codec.LSEEK_IN.read(body)
        if asked.whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            return codec.error_reply(header.unique, errno.EINVAL)
        data = asked.whence == os.SEEK_DATA
        return codec.lseek_reply(header.unique, await self._files.lseek(asked.fh, asked.offset, data))

    async def _copy_file_range(self, header: InHeader, body: memoryview) -> FuseReply:
        asked = codec.COPY_FILE_RANGE_IN.read(body)
        if asked.flags:
            return codec.error_reply(header.unique, errno.EINVAL)
        copied = await self._files.copy_file_range(
            asked.fh_in, asked.off_in, asked.fh_out, asked.off_out, asked.len, header.uid != 0
        )
        return codec.write_reply(header.unique, copied)

    async def _release(self, header: InHeader, body: memoryview) -> FuseReply:
        await self._files.release(codec.RELEASE_IN.read(body).fh)
        return codec.empty_reply(header.unique)


def _appends(asked: codec.WriteIn) -> bool:
    # Of a mapping's page the kernel says neither how the file is open nor who changed it.
    return bool(asked.flags & os.O_APPEND) and not asked.write_flags & codec.WRITE_CACHE
