"""Requests on attributes: those of stat(2), extended ones, flags of chattr(1), and of the filesystem."""

import errno
import stat

import pyfuse3
import trio
from pyfuse3 import FUSEError, RequestContext, SetattrFields

from fusemirror.control.local_reads import found
from fusemirror.control.unit import ControlUnit
from fusemirror.errors import OperationFailed
from fusemirror.filesystem.attributes import BLOCK_BYTES, AttributeReplies
from fusemirror.filesystem.callers import is_administrator, supplementary_groups
from fusemirror.filesystem.errnos import ErrorLog, answers_errno
from fusemirror.filesystem.kernel_cache import KernelCache
from fusemirror.flags import KNOWN, Act, check_act, flags_of_extended
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import NAME_BYTES_MAX, ROOT_LOOKS, ROOT_PATIENCE_S
from fusemirror.operations import RemoveXattr, SetAttributes, SetFlags, SetXattr, acl
from fusemirror.operations.set_attributes import nearest_time
from fusemirror.volume.inode import Inode
from fusemirror.xattrs import XATTR_CREATE, XATTR_REPLACE, listed, namespace_of


class AttributeRequests:
    """See the module."""

    def __init__(self, unit: ControlUnit, cache: KernelCache, errors: ErrorLog) -> None:
        self.errors = errors
        self._unit = unit
        self._cache = cache
        self._replies = AttributeReplies(unit, cache)
        self._is_apart = False  # the root was waited for, and the other host was away

    @answers_errno
    async def getattr(self, inode: InodeNumber, ctx: RequestContext) -> pyfuse3.EntryAttributes:
        self._cache.asks(inode)
        try:
            if inode == ROOT_INODE:
                return self._replies.of(await self._root(), asked=True)
            return self._replies.of(await self._unit.attributes(inode), asked=True)
        finally:
            self._cache.answered(inode)

    def birth_ns(self, inode: InodeNumber) -> int | None:
        """When an inode was made whose attributes were just asked for; None where nobody knows. pyfuse3 has
        no request for it."""
        there = self._unit.volume.catalog.inode(inode)
        return None if there is None else there.birth_ns

    async def _root(self) -> Inode:
        """The root's attributes; without a link to the other host, as this host has them, and the first time
        after a while: the link may come back.

        df(1) and whoever watches mounts stat the root before statfs(2), for the number of its device, and are
        not to hang with another host. This is the one exception to G2: while there is a link the root
        waits as everything else does, and neither its names nor anything below it is ever shown so.
        """
        for _ in range(ROOT_LOOKS):
            if not self._is_apart:
                with trio.move_on_after(ROOT_PATIENCE_S):
                    return await self._unit.attributes(ROOT_INODE)
            self._is_apart = not self._unit.is_linked
            if self._is_apart:
                return found(self._unit.volume.catalog.inode(ROOT_INODE), errno.ESTALE)
        return await self._unit.attributes(ROOT_INODE)

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
        sets_times: bool = False,
    ) -> pyfuse3.EntryAttributes:
        """`sets_times`: times are given that are not the present."""
        if sets_times:
            catalog = self._unit.volume.catalog
            there = catalog.inode(inode)
            check_act(0 if there is None else catalog.xattrs.flags(there), Act.CHANGE_ATTRIBUTES)
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
        return self._replies.of(found(await self._unit.perform(operation), errno.ESTALE))

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
    async def setxattr(
        self, inode: InodeNumber, name: bytes, value: bytes, ctx: RequestContext, *, flags: int = 0
    ) -> None:
        """`flags` as for setxattr(2); pyfuse3 looks by itself, and tells of none."""
        namespace_of(name)  # a primary of an earlier version does not ask
        if flags:
            await self._check_there(inode, name, flags)  # nor does it know the flags
        if name == acl.ACCESS:
            await self._end_set_group_id(inode, ctx)
        await self._unit.perform(SetXattr(inode, name, value, flags))

    async def _check_there(self, inode: InodeNumber, name: bytes, flags: int) -> None:
        """EEXIST, ENODATA. The primary asks once more, when no other host can come between."""
        try:
            await self._unit.xattr(inode, name)
        except OperationFailed as error:
            if error.errno != errno.ENODATA or flags & XATTR_REPLACE:
                raise
        else:
            if flags & XATTR_CREATE:
                raise FUSEError(errno.EEXIST)

    async def _end_set_group_id(self, number: InodeNumber, ctx: RequestContext) -> None:
        """An access list sets the mode, as chmod(2) does: by one outside its group set-group-id goes."""
        if ctx.uid == 0:
            return
        # Before the first wait. A program that is killed while it waits is gone from /proc, and its request
        # goes on.
        groups = {ctx.gid} | supplementary_groups(ctx.pid)
        inode = await self._unit.attributes(number)
        if inode.mode & stat.S_ISGID and inode.gid not in groups:
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
    async def flags(self, inode: InodeNumber) -> int:
        """Those of chattr(1); pyfuse3 has no request for them."""
        return self._unit.volume.catalog.xattrs.flags(await self._unit.attributes(inode))

    @answers_errno
    async def set_flags(self, inode: InodeNumber, flags: int) -> None:
        if flags & ~KNOWN:
            raise FUSEError(errno.EOPNOTSUPP)
        await self._unit.perform(SetFlags(inode, flags))

    @answers_errno
    async def set_extended_flags(self, inode: InodeNumber, extended: int) -> None:
        """By the bits of FS_IOC_FSSETXATTR."""
        await self._unit.perform(SetFlags(inode, flags_of_extended(extended)))

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
