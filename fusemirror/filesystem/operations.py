"""The face to pyfuse3: each request of the kernel becomes one call of the control unit. No policy.

The kernel checks permissions (`default_permissions`) and caches what it may (`kernel_cache.py`).
Whatever arrives here is answered with what is true on both hosts. Sources: fuse(4), and each system
call's manual page for the errno.
"""

# mypy: disable-error-code="override"
# pyfuse3 calls every inode number an int; in this house it is an InodeNumber.

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyfuse3
import trio
from pyfuse3 import FileInfo, FUSEError, RequestContext, SetattrFields

from fusemirror.change import ALLOCATION_MODES, first_cookie
from fusemirror.control.unit import ControlUnit, found
from fusemirror.divergence.conflicts import check_reserved
from fusemirror.errors import OperationFailed, VolumeDamaged
from fusemirror.filesystem.answers import Listing, list_entry
from fusemirror.filesystem.attributes import BLOCK_BYTES, damaged_entry, entry_attributes, no_entry
from fusemirror.filesystem.callers import is_administrator
from fusemirror.filesystem.directory_names import Name
from fusemirror.filesystem.errnos import ErrorLog, answers_errno
from fusemirror.filesystem.handles import DirectoryHandle, FileHandle, Handles
from fusemirror.filesystem.kernel_cache import KernelCache
from fusemirror.filesystem.program_locks import ProgramLocks
from fusemirror.filesystem.told_directories import ToldDirectories
from fusemirror.identifiers import ROOT_INODE, ChangeNumber, InodeNumber
from fusemirror.limits import FILE_BYTES_MAX, NAME_BYTES_MAX, ROOT_LOOKS, ROOT_PATIENCE_S
from fusemirror.operations import (
    Allocate,
    Create,
    CreateUnnamed,
    Link,
    LinkUnnamed,
    RemoveDirectory,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetXattr,
    Unlink,
    Write,
    acl,
)
from fusemirror.operations.rename import RENAME_EXCHANGE
from fusemirror.operations.set_attributes import nearest_time
from fusemirror.volume.catalog import Entry
from fusemirror.volume.inode import Inode
from fusemirror.xattrs import listed, namespace_of

# Positions in a directory: 0 is the start, then "." and "..", then the entries' own cookies.
_DOT, _DOT_DOT = 1, 2
_ENTRIES_PER_TURN = 128  # about what fits into one reply of the kernel's 128 KiB

_READ, _WRITE = 4, 2  # permission bits of access(2)


class Operations(pyfuse3.Operations):
    """pyfuse3's request handlers. Each documents itself in pyfuse3; what is told here is what differs."""

    supports_dot_lookup = True  # so that open_by_handle_at(2), and with it NFS export, works
    enable_acl = True
    enable_writeback_cache = False  # it would hide writes from the other host

    def __init__(self, unit: ControlUnit, cache: KernelCache, on_bug: Callable[[], None]) -> None:
        super().__init__()
        self.on_bug = on_bug
        self.errors = ErrorLog()
        self._unit = unit
        self._cache = cache
        self._told = ToldDirectories()
        self._files = Handles[FileHandle]()
        self._unnamed: set[InodeNumber] = set()  # open, made without a name, and may get one
        self._directories = Handles[DirectoryHandle]()
        self.program_locks = ProgramLocks(unit, cache, self._files, on_bug)

    # --- names ------------------------------------------------------------------------------------------

    @answers_errno
    async def lookup(
        self, parent_inode: InodeNumber, name: bytes, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        unit = self._unit
        if name == b".":  # by a handle that open_by_handle_at(2) or an NFS server kept
            return self._named(_not_removed(await unit.attributes(parent_inode), unit))
        if name == b"..":
            parent = (await unit.attributes(parent_inode)).parent
            return self._named(await unit.attributes(parent))
        if len(name) > NAME_BYTES_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        keeping = unit.leases.keeping(parent_inode)
        try:
            inode = await self._found(parent_inode, name)
        except OperationFailed as error:
            self._told.forget(ctx.pid, parent_inode, name)
            if error.errno == errno.ENOENT and (kept_s := unit.name_lifetime_s(parent_inode, name, keeping)):
                return no_entry(kept_s)
            raise
        self._told.tell(ctx.pid, parent_inode, name, inode)
        return self._named(inode, (parent_inode, name), unit.name_lifetime_s(parent_inode, name, keeping))

    async def _found(self, parent: InodeNumber, name: bytes) -> Inode:
        """The inode of a name; the kernel has dropped the name by which it had a directory before."""
        inode = await self._unit.lookup(parent, name)
        if inode.is_directory and await self._cache.directories.found(inode.number, (parent, name)):
            inode = await self._unit.lookup(parent, name)  # as it is now
        return inode

    def _named(
        self, inode: Inode, name: Name | None = None, name_lifetime_s: float = 0.0
    ) -> pyfuse3.EntryAttributes:
        entry = self._entry(inode)
        entry.entry_timeout = name_lifetime_s
        self._cache.named(inode.number)
        if name is not None and inode.is_directory:
            self._cache.directories.told(inode.number, name)
        return entry

    def forget(self, inode_list: list[tuple[InodeNumber, int]]) -> None:
        """Inodes without names stay all the same: by the rules of both hosts, not of one kernel."""
        for inode, times in inode_list:
            self._cache.forgotten(inode, times)

    @answers_errno
    async def mknod(
        self, parent_inode: InodeNumber, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        return await self._create(
            Create(parent_inode, name, mode, ctx.uid, ctx.gid, rdev=rdev, umask=ctx.umask)
        )

    @answers_errno
    async def mkdir(
        self, parent_inode: InodeNumber, name: bytes, mode: int, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        return await self._create(Create(parent_inode, name, mode, ctx.uid, ctx.gid, umask=ctx.umask))

    @answers_errno
    async def symlink(
        self, parent_inode: InodeNumber, name: bytes, target: bytes, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        mode = stat.S_IFLNK | 0o777
        return await self._create(Create(parent_inode, name, mode, ctx.uid, ctx.gid, target=target))

    async def _create(self, operation: Create) -> pyfuse3.EntryAttributes:
        unit, parent, name = self._unit, operation.parent, operation.name
        keeping = unit.leases.keeping(parent)
        check_reserved(operation, operation.uid)
        inode = _there(await unit.perform(operation))
        return self._named(inode, (parent, name), unit.name_lifetime_s(parent, name, keeping))

    @answers_errno
    async def link(
        self, inode: InodeNumber, new_parent_inode: InodeNumber, new_name: bytes, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        unit = self._unit
        keeping = unit.leases.keeping(new_parent_inode)
        link = LinkUnnamed if inode in self._unnamed else Link
        operation = link(inode, new_parent_inode, new_name)
        check_reserved(operation, ctx.uid)
        linked = _there(await unit.perform(operation))
        self._unnamed.discard(inode)
        lifetime_s = unit.name_lifetime_s(new_parent_inode, new_name, keeping)
        return self._named(linked, name_lifetime_s=lifetime_s)

    @answers_errno
    async def unlink(self, parent_inode: InodeNumber, name: bytes, ctx: RequestContext) -> None:
        operation = Unlink(parent_inode, name)
        check_reserved(operation, ctx.uid)
        await self._unit.perform(operation)

    @answers_errno
    async def rmdir(self, parent_inode: InodeNumber, name: bytes, ctx: RequestContext) -> None:
        operation = RemoveDirectory(parent_inode, name, self._told.take(ctx.pid, parent_inode, name))
        check_reserved(operation, ctx.uid)
        await self._unit.perform(operation)

    @answers_errno
    async def rename(
        self,
        parent_inode_old: InodeNumber,
        name_old: bytes,
        parent_inode_new: InodeNumber,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        expected = self._told.take(ctx.pid, parent_inode_new, name_new)
        operation = Rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, expected)
        check_reserved(operation, ctx.uid)
        self._cache.renamed(await self._unit.perform(operation), (parent_inode_new, name_new))
        if flags == RENAME_EXCHANGE:
            catalog = self._unit.volume.catalog
            other = catalog.entry(parent_inode_old, name_old)
            self._cache.renamed(other and catalog.inode(other.inode), (parent_inode_old, name_old))

    def changed_untold(self, names: list[Name], content_of: InodeNumber | None) -> None:
        """A change took effect whose program was killed before: its kernel took it for failed.

        `names` are those that it changed, of a rename the old one and the new one.
        """
        for name, other in zip(names, reversed(names), strict=True):
            entry = self._unit.volume.catalog.entry(*name)
            self._cache.directories.changed_untold(name, other, None if entry is None else entry.inode)
        if content_of is not None:
            self._cache.image_suspect(content_of)

    @answers_errno
    async def readlink(self, inode: InodeNumber, ctx: RequestContext) -> bytes:
        return (await self._unit.attributes(inode)).target

    # --- directories ------------------------------------------------------------------------------------

    @answers_errno
    async def opendir(self, inode: InodeNumber, ctx: RequestContext) -> int:
        with self._opening(inode):
            if inode != ROOT_INODE:  # which is there always, and df opens it
                await self._unit.attributes(inode)
        return self._directories.add(DirectoryHandle(inode, self._next_cookie()))

    @contextmanager
    def _opening(self, inode: InodeNumber) -> Iterator[None]:
        """The inode is open; and from then on, unless this fails. OperationFailed."""
        self._unit.opened(inode)  # first, so that it does not go while the rest waits
        try:
            yield
        except BaseException:
            self._unit.closed(inode)
            raise

    @answers_errno
    async def releasedir(self, fh: int) -> None:
        self._unit.closed(self._directories.remove(fh).inode)

    @answers_errno
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._unit.flush(self._directories[fh].inode)

    @answers_errno
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken | Listing) -> None:
        handle = self._directories[fh]
        position = start_id
        if position < _DOT_DOT:
            own = await self._unit.attributes(handle.inode)
            if position == 0:  # opened, or rewound; and this host has heard of all changes by now
                handle.end = self._next_cookie()
            if not await self._reply_dots(own, position, token):
                return
        cookie = max(position, _DOT_DOT) - _DOT_DOT
        unit = self._unit
        while entries := await unit.listing(handle.inode, cookie, _ENTRIES_PER_TURN):
            keeping = unit.leases.keeping(handle.inode)
            for cookie, name, entry in entries:
                if cookie >= handle.end:
                    return
                inode = self._listed(handle.inode, name, entry)
                shown = damaged_entry(entry) if inode is None else self._entry(unit.shown(inode))
                if inode is not None:
                    shown.entry_timeout = unit.name_lifetime_s(handle.inode, name, keeping)
                if not list_entry(token, name, shown, cookie + _DOT_DOT):
                    return
                self._cache.named(entry.inode)
                if inode is not None and inode.is_directory:
                    self._cache.directories.told(inode.number, (handle.inode, name))

    def _listed(self, directory: InodeNumber, name: bytes, entry: Entry) -> Inode | None:
        """The inode of a name; None, and a line in the log, where that is damaged: the others are listed
        all the same, and who looks at this one gets EIO."""
        try:
            return self._unit.volume.inode_of(directory, name, entry)
        except VolumeDamaged as error:
            self.errors.log(error)
            return None

    def _next_cookie(self) -> int:
        return first_cookie(ChangeNumber(self._unit.volume.number + 1))

    async def _reply_dots(self, own: Inode, position: int, token: pyfuse3.ReaddirToken | Listing) -> bool:
        if own.nlink == 0:
            return False  # a removed directory lists nothing, not even itself
        if position < _DOT and not list_entry(token, b".", self._entry(own), _DOT):
            return False
        number, above = own.number, own.parent
        try:
            parent = await self._unit.attributes(above)
        except OperationFailed:
            if self._unit.volume.catalog.inode(number) is own and own.nlink and own.parent == above:
                raise self._unit.volume.catalog.lacks(above, f"directory {number}") from None
            raise
        return list_entry(token, b"..", self._entry(parent), _DOT_DOT)

    # --- attributes ---------------------------------------------------------------------------------------

    @answers_errno
    async def getattr(self, inode: InodeNumber, ctx: RequestContext) -> pyfuse3.EntryAttributes:
        self._cache.asks(inode)
        try:
            if inode == ROOT_INODE:
                return self._entry(await self._root(), asked=True)
            return self._entry(await self._unit.attributes(inode), asked=True)
        finally:
            self._cache.answered(inode)

    def birth_ns(self, inode: InodeNumber) -> int | None:
        """When an inode was made whose attributes were just asked for; None where nobody knows. pyfuse3 has
        no request for it."""
        there = self._unit.volume.catalog.inode(inode)
        return None if there is None else there.birth_ns

    async def _root(self) -> Inode:
        """The root's attributes; without a link to the other host, after a while as this host has them.

        df(1) and whoever watches mounts stat the root before statfs(2), for the number of its device, and are
        not to hang with another host. This is the one exception to G2: while there is a link the root
        waits as everything else does, and neither its names nor anything below it is ever shown so.
        """
        for _ in range(ROOT_LOOKS):
            with trio.move_on_after(ROOT_PATIENCE_S):
                return await self._unit.attributes(ROOT_INODE)
            if not self._unit.is_linked:
                return _there(self._unit.volume.catalog.inode(ROOT_INODE))
        return await self._unit.attributes(ROOT_INODE)

    def _entry(self, inode: Inode, *, asked: bool = False) -> pyfuse3.EntryAttributes:
        entry = entry_attributes(inode, self._unit.allocated_bytes(inode))
        lifetime_s = self._unit.cacheable_s(inode.number)
        entry.attr_timeout, entry.st_mtime_ns = self._cache.tell(inode, lifetime_s, asked=asked)
        return entry

    @answers_errno
    async def setattr(
        self,
        inode: InodeNumber,
        attr: pyfuse3.EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
        *,
        clear_privileges: bool = False,
    ) -> pyfuse3.EntryAttributes:
        operation = SetAttributes(
            inode,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            # Here, too: a number of more than 64 bits does not travel.
            atime_ns=nearest_time(attr.st_atime_ns) if fields.update_atime else None,
            mtime_ns=nearest_time(attr.st_mtime_ns) if fields.update_mtime else None,
            clear_privileges=clear_privileges,
        )
        return self._entry(_there(await self._unit.perform(operation)))

    @answers_errno
    async def getxattr(self, inode: InodeNumber, name: bytes, ctx: RequestContext) -> bytes:
        return await self._unit.xattr(inode, name)

    @answers_errno
    async def listxattr(self, inode: InodeNumber, ctx: RequestContext) -> list[bytes]:
        names = await self._unit.xattrs(inode)
        if listed(names, to_administrator=False) == names:
            return names
        return listed(names, to_administrator=is_administrator(ctx.uid, ctx.pid))

    @answers_errno
    async def setxattr(self, inode: InodeNumber, name: bytes, value: bytes, ctx: RequestContext) -> None:
        namespace_of(name)  # a primary of an earlier version does not ask
        if name == acl.ACCESS:
            await self._end_set_group_id(inode, ctx)
        await self._unit.perform(SetXattr(inode, name, value))

    async def _end_set_group_id(self, number: InodeNumber, ctx: RequestContext) -> None:
        """An access list sets the mode, as chmod(2) does: by one outside its group set-group-id goes."""
        inode = await self._unit.attributes(number)
        if inode.mode & stat.S_ISGID and ctx.uid != 0 and not _in_group(ctx, inode.gid):
            mode = stat.S_IMODE(inode.mode) & ~stat.S_ISGID
            await self._unit.perform(SetAttributes(number, mode=mode))

    @answers_errno
    async def removexattr(self, inode: InodeNumber, name: bytes, ctx: RequestContext) -> None:
        namespace_of(name)
        try:
            await self._unit.perform(RemoveXattr(inode, name))
        except OperationFailed as error:
            # To remove an access control list that is not there is no error on a local disk.
            if error.errno != errno.ENODATA or name not in (acl.ACCESS, acl.DEFAULT):
                raise

    @answers_errno
    async def access(self, inode: InodeNumber, mode: int, ctx: RequestContext) -> bool:
        """Asked only without `default_permissions`; then only root mounts, and everything is allowed."""
        return True

    @answers_errno
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        of_disk = self._unit.statvfs()
        answer = pyfuse3.StatvfsData()
        for field in ("f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(answer, field, getattr(of_disk, field))
        answer.f_bsize = BLOCK_BYTES
        answer.f_namemax = NAME_BYTES_MAX
        return answer

    # --- files ----------------------------------------------------------------------------------------------

    @answers_errno
    async def open(
        self, inode: InodeNumber, flags: int, ctx: RequestContext, *, clear_privileges: bool | None = None
    ) -> FileInfo:
        """`clear_privileges` as for `write`."""
        with self._opening(inode):
            await self._unit.attributes(inode)
            if flags & os.O_TRUNC:  # libfuse asks the kernel to leave it to this request
                ends = ctx.uid != 0 if clear_privileges is None else clear_privileges
                await self._unit.perform(SetAttributes(inode, size=0, clear_privileges=ends))
        return self._opened(inode, flags, ctx.uid)

    def _opened(self, inode: InodeNumber, flags: int, uid: int) -> FileInfo:
        cached = self._cache.keeps_content(inode, flags)
        keep = cached and self._cache.keeps_pages(inode)
        failures_seen = self._unit.failed_writes.seen_at_open(inode)
        handle = FileHandle(inode, flags, uid, failures_seen, cached=cached)
        self._cache.opened(handle)
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
        self._unit.opened(inode.number)
        lifetime_s = unit.name_lifetime_s(parent_inode, name, keeping)
        entry = self._named(inode, name_lifetime_s=lifetime_s)
        return self._opened(inode.number, flags, ctx.uid), entry

    async def _create_or_open(
        self, operation: Create, flags: int, ctx: RequestContext, clear_privileges: bool
    ) -> Inode:
        while True:
            try:
                check_reserved(operation, ctx.uid)
                return _there(await self._unit.perform(operation))
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
        self, name: Name, flags: int, ctx: RequestContext, clear_privileges: bool
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
        if flags & os.O_TRUNC:
            emptied = SetAttributes(inode.number, size=0, clear_privileges=clear_privileges)
            inode = _there(await self._unit.perform(emptied))
        return inode

    @answers_errno
    async def tmpfile(
        self, directory: InodeNumber, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, pyfuse3.EntryAttributes]:
        """open(2) with O_TMPFILE; pyfuse3 has no request for it."""
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        operation = CreateUnnamed(directory, mode, ctx.uid, ctx.gid, ctx.umask)
        inode = _there(await self._unit.perform(operation))
        self._unit.opened(inode.number)  # ESTALE where it was so late that the primary ended it
        if not flags & os.O_EXCL:
            self._unnamed.add(inode.number)
        return self._opened(inode.number, flags, ctx.uid), self._named(inode)

    @answers_errno
    async def read(self, fh: int, off: int, size: int) -> bytes:
        handle = self._files[fh]
        self._check_not_lost(fh)
        self._cache.reads(handle.inode)  # if only for a mapping
        try:
            return await self._unit.read(handle.inode, off, size)
        finally:
            self._cache.has_moved_data(handle.inode)

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
    async def lseek(self, fh: int, off: int, data: bool) -> int:
        """Where, from `off` on, the next data is, or the next hole; pyfuse3 has no request for it."""
        return await self._unit.seek(self._files[fh].inode, min(off, FILE_BYTES_MAX), data=data)

    def writes_at_once(self, data_bytes: int) -> bool:
        """Whether `write` of so much, called now, waits for nothing but promises, unless one is rejected."""
        return self._unit.writes_at_once(data_bytes)

    def shows_at_once(self, inode: InodeNumber) -> bool:
        """Whether `getattr` and `read` of the inode, called now, wait for nothing."""
        return inode != ROOT_INODE and self._unit.shows_at_once(inode)

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
        self._cache.writes(handle.inode)
        try:
            await self._unit.perform(operation, buf)
        finally:
            self._cache.has_moved_data(handle.inode)
        return len(buf)

    @answers_errno
    async def flush(self, fh: int) -> None:
        """close(2): what was written through the file is in both volumes, or its error is told."""
        handle = self._files[fh]
        if handle.writes:
            await self._unit.settle(handle.inode)
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
        failed_writes = self._unit.failed_writes
        error = failed_writes.since(handle.inode, handle.failures_seen)
        handle.failures_seen = failed_writes.serial
        if error:
            raise FUSEError(error)

    @answers_errno
    async def release(self, fh: int) -> None:
        handle = self._files.remove(fh)
        self._unit.locks.closed(fh)
        self._unit.closed(handle.inode)
        if not self._unit.is_open(handle.inode):
            self._unnamed.discard(handle.inode)
        self._cache.closed(handle)


def _there(inode: Inode | None) -> Inode:
    return found(inode, errno.ESTALE)


def _not_removed(inode: Inode, unit: ControlUnit) -> Inode:
    """The inode, unless it only waits to be purged: its handle is stale then, as on a local disk."""
    if inode.nlink == 0 and not unit.is_open(inode.number):
        raise FUSEError(errno.ESTALE)
    return inode


def _in_group(ctx: RequestContext, gid: int) -> bool:
    return gid == ctx.gid or gid in pyfuse3.get_sup_groups(ctx.pid)


def _permitted(inode: Inode, flags: int, ctx: RequestContext) -> bool:
    """Whether plain permission bits let the caller open the file so; False where they do not decide."""
    if ctx.uid == 0:
        return True
    wanted = {os.O_RDONLY: _READ, os.O_WRONLY: _WRITE}.get(flags & os.O_ACCMODE, _READ | _WRITE)
    if flags & os.O_TRUNC:
        wanted |= _WRITE
    return ctx.uid == inode.uid and inode.mode >> 6 & wanted == wanted
