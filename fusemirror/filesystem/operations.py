"""pyfuse3's interface: a method for each request that it knows, which a class of `requests/` answers.

Here is how those are made for a mount, and which of them answers what. Our own session
(`filesystem/server.py`) knows more requests than pyfuse3, and asks those classes by itself; pyfuse3's
session asks this one (`-o session=pyfuse3`).
"""

# mypy: disable-error-code="override"
# pyfuse3 calls every inode number an int; in this house it is an InodeNumber.

from collections.abc import Awaitable, Callable

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from fusemirror.control.unit import ControlUnit
from fusemirror.filesystem.access_times import AccessTimes
from fusemirror.filesystem.errnos import ErrorLog
from fusemirror.filesystem.handles import FileHandle, Handles
from fusemirror.filesystem.kernel_cache import KernelCache
from fusemirror.filesystem.program_locks import ProgramLocks
from fusemirror.filesystem.requests.attributes import AttributeRequests
from fusemirror.filesystem.requests.directories import DirectoryRequests
from fusemirror.filesystem.requests.files import FileRequests
from fusemirror.filesystem.requests.names import NameRequests
from fusemirror.identifiers import InodeNumber


class Operations(pyfuse3.Operations):
    """See the module. Each request documents itself in pyfuse3; what differs is told where it is answered."""

    supports_dot_lookup = True  # so that open_by_handle_at(2), and with it NFS export, works
    enable_acl = True
    enable_writeback_cache = False  # it would hide writes from the other host

    def __init__(
        self,
        unit: ControlUnit,
        cache: KernelCache,
        on_bug: Callable[[], None],
        access_times: AccessTimes | None = None,
    ) -> None:
        """`access_times` hears of what is read; None: nobody is to."""
        super().__init__()
        errors = ErrorLog(on_bug)
        files = Handles[FileHandle]()
        unnamed = set[InodeNumber]()
        self.names = NameRequests(unit, cache, errors, unnamed)
        self.directories = DirectoryRequests(unit, cache, errors, access_times)
        self.attributes = AttributeRequests(unit, cache, errors)
        self.files = FileRequests(unit, cache, errors, access_times, files, unnamed)
        self.program_locks = ProgramLocks(unit, cache, files, errors)

    # --- names ------------------------------------------------------------------------------------------

    def lookup(
        self, parent_inode: InodeNumber, name: bytes, ctx: RequestContext
    ) -> Awaitable[EntryAttributes]:
        return self.names.lookup(parent_inode, name, ctx)

    def forget(self, inode_list: list[tuple[InodeNumber, int]]) -> None:
        self.names.forget(inode_list)

    def mknod(
        self, parent_inode: InodeNumber, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> Awaitable[EntryAttributes]:
        return self.names.mknod(parent_inode, name, mode, rdev, ctx)

    def mkdir(
        self, parent_inode: InodeNumber, name: bytes, mode: int, ctx: RequestContext
    ) -> Awaitable[EntryAttributes]:
        return self.names.mkdir(parent_inode, name, mode, ctx)

    def symlink(
        self, parent_inode: InodeNumber, name: bytes, target: bytes, ctx: RequestContext
    ) -> Awaitable[EntryAttributes]:
        return self.names.symlink(parent_inode, name, target, ctx)

    def link(
        self, inode: InodeNumber, new_parent_inode: InodeNumber, new_name: bytes, ctx: RequestContext
    ) -> Awaitable[EntryAttributes]:
        return self.names.link(inode, new_parent_inode, new_name, ctx)

    def unlink(self, parent_inode: InodeNumber, name: bytes, ctx: RequestContext) -> Awaitable[None]:
        return self.names.unlink(parent_inode, name, ctx)

    def rmdir(self, parent_inode: InodeNumber, name: bytes, ctx: RequestContext) -> Awaitable[None]:
        return self.names.rmdir(parent_inode, name, ctx)

    def rename(
        self,
        parent_inode_old: InodeNumber,
        name_old: bytes,
        parent_inode_new: InodeNumber,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> Awaitable[None]:
        return self.names.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)

    # --- directories ------------------------------------------------------------------------------------

    def opendir(self, inode: InodeNumber, ctx: RequestContext) -> Awaitable[int]:
        return self.directories.opendir(inode, ctx)

    def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> Awaitable[None]:
        return self.directories.readdir(fh, start_id, token)

    def fsyncdir(self, fh: int, datasync: bool) -> Awaitable[None]:
        return self.directories.fsyncdir(fh, datasync)

    def releasedir(self, fh: int) -> Awaitable[None]:
        return self.directories.releasedir(fh)

    # --- attributes ---------------------------------------------------------------------------------------

    def getattr(self, inode: InodeNumber, ctx: RequestContext) -> Awaitable[EntryAttributes]:
        return self.attributes.getattr(inode, ctx)

    def setattr(
        self,
        inode: InodeNumber,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> Awaitable[EntryAttributes]:
        return self.attributes.setattr(inode, attr, fields, fh, ctx)

    def getxattr(self, inode: InodeNumber, name: bytes, ctx: RequestContext) -> Awaitable[bytes]:
        return self.attributes.getxattr(inode, name, ctx)

    def listxattr(self, inode: InodeNumber, ctx: RequestContext) -> Awaitable[list[bytes]]:
        return self.attributes.listxattr(inode, ctx)

    def setxattr(self, inode: InodeNumber, name: bytes, value: bytes, ctx: RequestContext) -> Awaitable[None]:
        return self.attributes.setxattr(inode, name, value, ctx)

    def removexattr(self, inode: InodeNumber, name: bytes, ctx: RequestContext) -> Awaitable[None]:
        return self.attributes.removexattr(inode, name, ctx)

    def access(self, inode: InodeNumber, mode: int, ctx: RequestContext) -> Awaitable[bool]:
        return self.attributes.access(inode, mode, ctx)

    def statfs(self, ctx: RequestContext) -> Awaitable[StatvfsData]:
        return self.attributes.statfs(ctx)

    # --- files --------------------------------------------------------------------------------------------

    def open(self, inode: InodeNumber, flags: int, ctx: RequestContext) -> Awaitable[FileInfo]:
        return self.files.open(inode, flags, ctx)

    def create(
        self, parent_inode: InodeNumber, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> Awaitable[tuple[FileInfo, EntryAttributes]]:
        return self.files.create(parent_inode, name, mode, flags, ctx)

    def readlink(self, inode: InodeNumber, ctx: RequestContext) -> Awaitable[bytes]:
        return self.files.readlink(inode, ctx)

    def read(self, fh: int, off: int, size: int) -> Awaitable[bytes]:
        return self.files.read(fh, off, size)

    def write(self, fh: int, off: int, buf: bytes) -> Awaitable[int]:
        return self.files.write(fh, off, buf)

    def flush(self, fh: int) -> Awaitable[None]:
        return self.files.flush(fh)

    def fsync(self, fh: int, datasync: bool) -> Awaitable[None]:
        return self.files.fsync(fh, datasync)

    def release(self, fh: int) -> Awaitable[None]:
        return self.files.release(fh)
