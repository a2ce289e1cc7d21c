"""Requests on what is in a file: to open it, to read, write, copy, cut and sync it, and to close it.

EIO meets whoever uses a file through which somebody locked who lost that lock to the other host.
"""

import errno
import os
import stat
from typing import Any

import msgspec
import outcome
import pyfuse3
from pyfuse3 import FileInfo, FUSEError, RequestContext

from fusemirror.change import ALLOCATION_MODES
from fusemirror.control.local_reads import found
from fusemirror.control.unit import BegunWrite, ControlUnit
from fusemirror.divergence.conflicts import check_reserved
from fusemirror.errors import CheckReport, OperationFailed
from fusemirror.filesystem.access_times import AccessTimes
from fusemirror.filesystem.attributes import AttributeReplies
from fusemirror.filesystem.errnos import ErrorLog, answers_errno
from fusemirror.filesystem.handles import FileHandle, Handles, opening
from fusemirror.filesystem.kernel_cache import KernelCache
from fusemirror.flags import Act, check_act
from fusemirror.identifiers import InodeNumber, NameKey
from fusemirror.limits import COPY_BYTES_MAX, COPY_LOOKS, COPY_STEP_BYTES, FILE_BYTES_MAX
from fusemirror.operations import Allocate, Copy, Create, CreateUnnamed, SetAttributes, Write
from fusemirror.volume.inode import Inode

_READ, _WRITE = 4, 2  # permission bits of access(2)


class FileRequests:
    """See the module."""

    def __init__(
        self,
        unit: ControlUnit,
        cache: KernelCache,
        errors: ErrorLog,
        access_times: AccessTimes | None,
        files: Handles[FileHandle],
        unnamed: set[InodeNumber],
    ) -> None:
        """`access_times` hears of what is read; None: nobody is to. `unnamed` as for `NameRequests`."""
        self.errors = errors
        self._unit = unit
        self._cache = cache
        self._access_times = access_times
        self._files = files
        self._unnamed = unnamed
        self._replies = AttributeReplies(unit, cache)

    @answers_errno
    async def open(
        self, inode: InodeNumber, flags: int, ctx: RequestContext, *, clear_privileges: bool | None = None
    ) -> FileInfo:
        """`clear_privileges` as for `write`."""
        with opening(self._unit, inode):
            self._check_open(await self._unit.attributes(inode), flags)
            if flags & os.O_TRUNC:  # libfuse asks the kernel to leave it to this request
                ends = ctx.uid != 0 if clear_privileges is None else clear_privileges
                await self._unit.perform(SetAttributes(inode, size=0, clear_privileges=ends))
        return self._opened(inode, flags, ctx.uid)

    def _check_open(self, inode: Inode, flags: int) -> None:
        """EPERM where the file's own flags forbid to open it so."""
        own = self._unit.volume.catalog.xattrs.flags(inode)
        if not own:
            return
        if flags & os.O_TRUNC:
            check_act(own, Act.CHANGE_DATA)
        elif flags & os.O_ACCMODE != os.O_RDONLY:
            check_act(own, Act.EXTEND if flags & os.O_APPEND else Act.CHANGE_DATA)

    def _opened(self, inode: InodeNumber, flags: int, uid: int) -> FileInfo:
        cached = self._cache.files.keeps_content(inode, flags)
        keep = cached and self._cache.pages.are_fresh(inode)
        failures_seen = self._unit.host.failed_writes.seen_at_open(inode)
        handle = FileHandle(inode, flags, uid, failures_seen, cached=cached)
        self._cache.files.opened(handle)
        return FileInfo(fh=self._files.add(handle), direct_io=not cached, keep_cache=keep)

    @answers_errno
    async def create(
        self,
        parent_inode: InodeNumber,
        name: bytes,
        mode: int,
        flags: int,
        ctx: RequestContext,
        *,
        clear_privileges: bool | None = None,
    ) -> tuple[FileInfo, pyfuse3.EntryAttributes]:
        """`clear_privileges` as for `write`: of what another host made first, and is emptied by this."""
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        operation = Create(parent_inode, name, mode, ctx.uid, ctx.gid, umask=ctx.umask)
        unit = self._unit
        keeping = unit.leases.keeping(parent_inode)
        ends = ctx.uid != 0 if clear_privileges is None else clear_privileges
        inode = await self._create_or_open(operation, flags, ctx, ends)
        self._unit.open_inodes.add(inode.number)
        lifetime_s = unit.name_lifetime_s(parent_inode, name, keeping)
        entry = self._replies.named(inode, name_lifetime_s=lifetime_s)
        return self._opened(inode.number, flags, ctx.uid), entry

    async def _create_or_open(
        self, operation: Create, flags: int, ctx: RequestContext, clear_privileges: bool
    ) -> Inode:
        while True:
            try:
                check_reserved(operation, ctx.uid)
                return found(await self._unit.perform(operation), errno.ESTALE)
            except OperationFailed as error:
                if error.errno != errno.EEXIST or flags & os.O_EXCL:
                    raise
            try:
                name = (operation.parent, operation.name)
                return await self._open_existing(name, flags, ctx, clear_privileges)
            except OperationFailed as error:
                # ENOENT is no answer to O_CREAT: the name has gone again, so nothing is in the way now.
                if error.errno != errno.ENOENT:
                    raise

    async def _open_existing(
        self, name: NameKey, flags: int, ctx: RequestContext, clear_privileges: bool
    ) -> Inode:
        """The other host made the name after this kernel found none: open what is there now.

        ESTALE, where that takes more than root or the plain permission bits can decide, makes the
        kernel look the name up again and check by itself.
        """
        inode = await self._unit.lookup(*name)
        if inode.is_directory:
            raise FUSEError(errno.EISDIR)
        if not inode.is_regular or not _permitted(inode, flags, ctx):
            raise FUSEError(errno.ESTALE)
        self._check_open(inode, flags)
        if flags & os.O_TRUNC:
            emptied = SetAttributes(inode.number, size=0, clear_privileges=clear_privileges)
            inode = found(await self._unit.perform(emptied), errno.ESTALE)
        return inode

    @answers_errno
    async def tmpfile(
        self, directory: InodeNumber, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, pyfuse3.EntryAttributes]:
        """open(2) with O_TMPFILE; pyfuse3 has no request for it."""
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        operation = CreateUnnamed(directory, mode, ctx.uid, ctx.gid, ctx.umask)
        inode = found(await self._unit.perform(operation), errno.ESTALE)
        self._unit.open_inodes.add(inode.number)  # ESTALE where it was so late that the primary ended it
        if not flags & os.O_EXCL:
            self._unnamed.add(inode.number)
        return self._opened(inode.number, flags, ctx.uid), self._replies.named(inode)

    @answers_errno
    async def readlink(self, inode: InodeNumber, ctx: RequestContext) -> bytes:
        target = (await self._unit.attributes(inode)).target
        if self._access_times is not None:
            self._access_times.note(inode)
        return target

    @answers_errno
    async def read(self, fh: int, off: int, size: int) -> bytes:
        handle = self._files[fh]
        self._check_not_lost(fh)
        self._cache.pages.reads(handle.inode)  # if only for a mapping
        if self._access_times is not None and not handle.leaves_access_time:
            self._access_times.note(handle.inode)
        try:
            return await self._unit.read(handle.inode, off, size)
        finally:
            self._cache.pages.has_moved_data(handle.inode)

    @answers_errno
    async def fallocate(self, fh: int, off: int, length: int, mode: int, clear_privileges: bool) -> None:
        """fallocate(2); pyfuse3 has no request for it."""
        if mode not in ALLOCATION_MODES:
            raise FUSEError(errno.EOPNOTSUPP)
        if off + length > FILE_BYTES_MAX:
            raise FUSEError(errno.EFBIG)
        inode = self._files[fh].inode
        await self._unit.perform(Allocate(inode, off, off + length, mode, clear_privileges))

    @answers_errno
    async def copy_file_range(
        self, fh_in: int, off_in: int, fh_out: int, off_out: int, length: int, clear_privileges: bool
    ) -> int:
        """copy_file_range(2), in steps of which each is a change; pyfuse3 has no request for it. The kernel
        copies by itself where a step cannot be made, and none was before."""
        source, target = self._files[fh_in].inode, self._files[fh_out].inode
        self._check_not_lost(fh_in)
        self._check_not_lost(fh_out)
        length = min(length, COPY_BYTES_MAX)
        if off_out + length > FILE_BYTES_MAX:
            raise FUSEError(errno.EFBIG)
        if source == target and abs(off_out - off_in) < length:
            raise FUSEError(errno.EINVAL)
        copied = 0
        while copied < length:
            at, end = off_out + copied, off_out + min(copied + COPY_STEP_BYTES, length)
            try:
                step = await self._copy(Copy(target, at, end, source, off_in + copied, clear_privileges))
            except (OperationFailed, CheckReport):
                if copied:
                    return copied  # what comes next meets the error
                raise
            copied += step
            if at + step < end:
                break  # the source ended there, and the copy itself may have made it longer
        return copied

    async def _copy(self, operation: Copy) -> int:
        """Copy so much, or as far as the source goes; how much that was."""
        offset, end = operation.offset, operation.end
        for _ in range(COPY_LOOKS):
            size = (await self._unit.attributes(operation.source)).size
            end = min(end, offset + size - operation.source_offset)
            if end <= offset:
                return 0
            try:
                await self._unit.perform(msgspec.structs.replace(operation, end=end))
            except OperationFailed as error:
                if error.errno != errno.ENODATA:
                    raise
            else:
                return end - offset
        raise OperationFailed(errno.EAGAIN)  # somebody goes on cutting it

    @answers_errno
    async def lseek(self, fh: int, off: int, data: bool) -> int:
        """Where, from `off` on, the next data is, or the next hole; pyfuse3 has no request for it."""
        return await self._unit.seek(self._files[fh].inode, min(off, FILE_BYTES_MAX), data=data)

    @answers_errno
    async def write(
        self,
        fh: int,
        off: int,
        buf: bytes,
        *,
        append: bool | None = None,
        clear_privileges: bool | None = None,
    ) -> int:
        """`append` and `clear_privileges` are told by a session that knows how it is with this write: the
        program may have changed the file's flags, or its own privileges, since it opened the file."""
        handle = self._files[fh]
        self._check_not_lost(fh)
        if append is None:
            append = handle.append
        if clear_privileges is None:
            clear_privileges = handle.clear_privileges
        operation = Write(handle.inode, off, append, clear_privileges)
        self._cache.pages.writes(handle.inode)
        try:
            await self._unit.perform(operation, buf)
        finally:
            self._cache.pages.has_moved_data(handle.inode)
        return len(buf)

    def begin_write(
        self, fh: int, off: int, buf: bytes, *, clear_privileges: bool | None
    ) -> BegunWrite | None:
        """`write` that does not append, where it has to wait for nothing but the other host: `is_done`, and
        perhaps `end_write`, are called when its promise is settled. None: nothing was done.
        """
        if fh in self._unit.locks.lost:
            return None
        handle = self._files[fh]
        if clear_privileges is None:
            clear_privileges = handle.clear_privileges
        begun = self._unit.begin_write(Write(handle.inode, off, False, clear_privileges), buf)
        if begun is not None:
            self._cache.pages.writes(handle.inode)
        return begun

    def is_done(self, begun: BegunWrite, result: "outcome.Outcome[Any]") -> bool:
        """Whether its program is told of success, and all is done; else `end_write` does the rest."""
        is_done = begun.is_done(result)
        if is_done:
            self._cache.pages.has_moved_data(begun.operation.inode)
        return is_done

    @answers_errno
    async def end_write(self, begun: BegunWrite, result: "outcome.Outcome[Any]") -> int:
        """`write` from where the promise was settled. Returns as that does."""
        try:
            await self._unit.end_write(begun, result)
        finally:
            self._cache.pages.has_moved_data(begun.operation.inode)
        return len(begun.data)

    @answers_errno
    async def flush(self, fh: int) -> None:
        """close(2): what was written through the file is in both volumes, or its error is told."""
        handle = self._files[fh]
        if handle.writes:
            await self._unit.drain(handle.inode)
        self._tell_failure(handle)

    @answers_errno
    async def fsync(self, fh: int, datasync: bool) -> None:
        handle = self._files[fh]
        self._check_not_lost(fh)
        await self._unit.flush(handle.inode)
        self._tell_failure(handle)

    def _check_not_lost(self, fh: int) -> None:
        """EIO for a file through which somebody locked who has lost that lock to the other host."""
        if fh in self._unit.locks.lost:
            raise FUSEError(errno.EIO)

    def _tell_failure(self, handle: FileHandle) -> None:
        """Raise, once for each open file, the error of a write that was acknowledged before it failed."""
        failed_writes = self._unit.host.failed_writes
        error = failed_writes.since(handle.inode, handle.failures_seen)
        handle.failures_seen = failed_writes.serial
        if error:
            raise FUSEError(error)

    @answers_errno
    async def release(self, fh: int) -> None:
        handle = self._files.remove(fh)
        self._unit.locks.closed(fh)
        self._unit.open_inodes.remove(handle.inode)
        if handle.inode not in self._unit.open_inodes:
            self._unnamed.discard(handle.inode)
        self._cache.files.closed(handle)


def _permitted(inode: Inode, flags: int, ctx: RequestContext) -> bool:
    """Whether plain permission bits let the caller open the file so; False where they do not decide."""
    if ctx.uid == 0:
        return True
    wanted = {os.O_RDONLY: _READ, os.O_WRONLY: _WRITE}.get(flags & os.O_ACCMODE, _READ | _WRITE)
    if flags & os.O_TRUNC:
        wanted |= _WRITE
    return ctx.uid == inode.uid and inode.mode >> 6 & wanted == wanted
