"""Requests on names: to find one, to make one, to move one, to remove one."""

import errno
import stat
from contextlib import suppress

import pyfuse3
from pyfuse3 import FUSEError, RequestContext

from fusemirror.control.local_reads import found
from fusemirror.control.unit import ControlUnit
from fusemirror.divergence.conflicts import check_reserved
from fusemirror.errors import DiskFailed, OperationFailed, VolumeDamaged
from fusemirror.filesystem.attributes import AttributeReplies, no_entry
from fusemirror.filesystem.errnos import ErrorLog, answers_errno
from fusemirror.filesystem.kernel_cache import KernelCache
from fusemirror.filesystem.looked_up import LookedUpDentries
from fusemirror.identifiers import InodeNumber, NameKey
from fusemirror.limits import NAME_BYTES_MAX
from fusemirror.operations import Create, HardLink, LinkUnnamed, RemoveDirectory, Rename, Unlink
from fusemirror.operations.rename import RENAME_EXCHANGE
from fusemirror.volume.inode import Inode


class NameRequests:
    """See the module."""

    def __init__(
        self, unit: ControlUnit, cache: KernelCache, errors: ErrorLog, unnamed: set[InodeNumber]
    ) -> None:
        """`unnamed`: what is open, was made without a name, and may get one."""
        self.errors = errors
        self._unit = unit
        self._cache = cache
        self._unnamed = unnamed
        self._replies = AttributeReplies(unit, cache)
        self._looked_up = LookedUpDentries()

    @answers_errno
    async def lookup(
        self, parent_inode: InodeNumber, name: bytes, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        unit = self._unit
        if name == b".":  # by a handle that open_by_handle_at(2) or an NFS server kept
            return self._replies.named(_not_removed(await unit.attributes(parent_inode), unit))
        if name == b"..":
            parent = (await unit.attributes(parent_inode)).parent
            return self._replies.named(await unit.attributes(parent))
        if len(name) > NAME_BYTES_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        keeping = unit.leases.keeping(parent_inode)
        try:
            inode = await self._found(parent_inode, name)
        except OperationFailed as error:
            self._looked_up.forget(ctx.pid, parent_inode, name)
            if error.errno == errno.ENOENT and (kept_s := unit.name_lifetime_s(parent_inode, name, keeping)):
                return no_entry(kept_s)
            raise
        self._looked_up.note(ctx.pid, parent_inode, name, inode)
        lifetime_s = unit.name_lifetime_s(parent_inode, name, keeping)
        return self._replies.named(inode, (parent_inode, name), lifetime_s)

    async def _found(self, parent: InodeNumber, name: bytes) -> Inode:
        """The inode of a name; the kernel has dropped the name by which it had a directory before."""
        inode = await self._unit.lookup(parent, name)
        if inode.is_directory and await self._cache.directories.found(inode.number, (parent, name)):
            inode = await self._unit.lookup(parent, name)  # as it is now
        return inode

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
        inode = found(await unit.perform(operation), errno.ESTALE)
        return self._replies.named(inode, (parent, name), unit.name_lifetime_s(parent, name, keeping))

    @answers_errno
    async def link(
        self, inode: InodeNumber, new_parent_inode: InodeNumber, new_name: bytes, ctx: RequestContext
    ) -> pyfuse3.EntryAttributes:
        unit = self._unit
        keeping = unit.leases.keeping(new_parent_inode)
        link = LinkUnnamed if inode in self._unnamed else HardLink
        operation = link(inode, new_parent_inode, new_name)
        check_reserved(operation, ctx.uid)
        linked = found(await unit.perform(operation), errno.ESTALE)
        self._unnamed.discard(inode)
        lifetime_s = unit.name_lifetime_s(new_parent_inode, new_name, keeping)
        return self._replies.named(linked, name_lifetime_s=lifetime_s)

    @answers_errno
    async def unlink(self, parent_inode: InodeNumber, name: bytes, ctx: RequestContext) -> None:
        operation = Unlink(parent_inode, name)
        check_reserved(operation, ctx.uid)
        await self._unit.perform(operation)

    @answers_errno
    async def rmdir(self, parent_inode: InodeNumber, name: bytes, ctx: RequestContext) -> None:
        operation = RemoveDirectory(parent_inode, name, self._looked_up.pop(ctx.pid, parent_inode, name))
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
        expected = self._looked_up.pop(ctx.pid, parent_inode_new, name_new)
        operation = Rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, expected)
        check_reserved(operation, ctx.uid)
        self._cache.renamed(await self._unit.perform(operation), (parent_inode_new, name_new))
        if flags == RENAME_EXCHANGE:
            catalog = self._unit.volume.catalog
            other = catalog.entry(parent_inode_old, name_old)
            self._cache.renamed(other and catalog.inode(other.inode), (parent_inode_old, name_old))

    def changed_untold(self, names: list[NameKey], content_of: InodeNumber | None) -> None:
        """A change took effect that its kernel takes for failed: its program was killed before, or hears that
        it is in doubt.

        `names` are those that it changed, of a rename the old one and the new one.
        """
        for name, other in zip(names, reversed(names), strict=True):
            entry = None
            # Whoever looks there meets it. Here nobody asks any more: it would be an error of the session.
            with suppress(DiskFailed, VolumeDamaged):
                entry = self._unit.volume.catalog.entry(*name)
            self._cache.directories.changed_untold(name, other, None if entry is None else entry.inode)
        if content_of is not None:
            self._cache.image_suspect(content_of)


def _not_removed(inode: Inode, unit: ControlUnit) -> Inode:
    """The inode, unless it only waits to be purged: its handle is stale then, as on a local disk."""
    if inode.nlink == 0 and inode.number not in unit.open_inodes:
        raise FUSEError(errno.ESTALE)
    return inode
