"""A bare pyfuse3 passthrough: what the kernel and pyfuse3 alone cost, to measure fusemirror against.

    python -m tests.bench.passthrough SOURCE MOUNTPOINT [own-session]

By inode: one O_PATH descriptor for each inode that the kernel knows, so nothing is looked up twice
and a renamed file stays itself. It asks of pyfuse3 what the mounts of fusemirror ask: direct I/O for
every open, no time for which attributes or names may be cached, the same task limits. It does
nothing else: one volume, no catalog, no peer. `own-session` puts fusemirror's own session in the place
of pyfuse3's loop.
"""

import errno
import os
import resource
import stat
import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from fusemirror import hot
from fusemirror.filesystem.answers import list_entry
from fusemirror.filesystem.server import OperationsServer
from fusemirror.kernel.negotiation import fuse_descriptor, run_negotiation
from fusemirror.kernel.session import FuseSession
from fusemirror.limits import REQUESTS_IDLE, REQUESTS_MAX
from fusemirror.seams import Seams
from fusemirror.volume.durable import allocate

P = ParamSpec("P")
T = TypeVar("T")

# What the kernel has decided already (O_CREAT ...) or what would turn a path descriptor away.
REOPEN_MASK = ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_DIRECT)


def answering_errors(
    handler: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """An `OSError` of the disk is the kernel's answer."""

    @wraps(handler)
    async def answer(*arguments: P.args, **more: P.kwargs) -> T:
        try:
            return await handler(*arguments, **more)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None

    return answer


def attributes_of(found: os.stat_result, inode: InodeT) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = inode
    entry.generation = 0
    entry.entry_timeout = entry.attr_timeout = 0
    entry.st_mode = ModeT(found.st_mode)
    entry.st_nlink = found.st_nlink
    entry.st_uid, entry.st_gid, entry.st_rdev = found.st_uid, found.st_gid, found.st_rdev
    entry.st_size, entry.st_blksize, entry.st_blocks = found.st_size, 4096, found.st_blocks
    entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = (
        found.st_atime_ns,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )
    return entry


class NoLocks:
    """The kernel keeps the locks of its programs by itself; our session tells of each close all the same."""

    def closed_by(self, fh: int, owner: int) -> None:
        pass


class Passthrough(pyfuse3.Operations):
    """Every request becomes one call on the descriptor of its inode."""

    supports_dot_lookup = True
    enable_acl = True
    enable_writeback_cache = False

    def __init__(self, source: Path) -> None:
        super().__init__()
        self.program_locks = NoLocks()
        self.names = self.directories = self.attributes = self.files = self  # as `OperationsServer` asks
        root = os.open(source, os.O_PATH | os.O_DIRECTORY)
        self._descriptors: dict[InodeT, int] = {pyfuse3.ROOT_INODE: root}
        self._lookups: dict[InodeT, int] = {}
        self._root_number = os.fstat(root).st_ino
        self._listings: dict[FileHandleT, tuple[InodeT, list[bytes]]] = {}

    # --- inodes -----------------------------------------------------------------------------------

    def _path(self, inode: InodeT) -> str:
        return f"/proc/self/fd/{self._descriptors[inode]}"

    def _enter(self, parent: InodeT, name: bytes) -> EntryAttributes:
        """The inode behind a name, known to the kernel from now on."""
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self._descriptors[parent])
        found = os.fstat(descriptor)
        inode = pyfuse3.ROOT_INODE if found.st_ino == self._root_number else InodeT(found.st_ino)
        if inode in self._descriptors:
            os.close(descriptor)
        else:
            self._descriptors[inode] = descriptor
        self._lookups[inode] = self._lookups.get(inode, 0) + 1
        return attributes_of(found, inode)

    @answering_errors
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        return self._enter(parent_inode, name)

    def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:  # type: ignore[override]
        """As that of fusemirror this is no coroutine, which pyfuse3 takes as well."""
        for inode, count in inode_list:
            self._lookups[inode] -= count
            if not self._lookups[inode] and inode != pyfuse3.ROOT_INODE:
                del self._lookups[inode]
                os.close(self._descriptors.pop(inode))

    @answering_errors
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return attributes_of(os.fstat(self._descriptors[inode]), inode)

    @answering_errors
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
        **_: bool | None,
    ) -> EntryAttributes:
        path = self._path(inode)
        if fields.update_size:
            os.truncate(path if fh is None else fh, attr.st_size)
        if fields.update_mode:
            os.chmod(path, stat.S_IMODE(attr.st_mode))
        if fields.update_uid or fields.update_gid:
            owner = attr.st_uid if fields.update_uid else -1
            os.chown(path, owner, attr.st_gid if fields.update_gid else -1)
        if fields.update_atime or fields.update_mtime:
            found = os.fstat(self._descriptors[inode])
            atime_ns = attr.st_atime_ns if fields.update_atime else found.st_atime_ns
            os.utime(path, ns=(atime_ns, attr.st_mtime_ns if fields.update_mtime else found.st_mtime_ns))
        return attributes_of(os.fstat(self._descriptors[inode]), inode)

    # --- names ------------------------------------------------------------------------------------

    @answering_errors
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return FileNameT(os.fsencode(os.readlink("", dir_fd=self._descriptors[inode])))

    @answering_errors
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        os.mknod(name, mode & ~ctx.umask, rdev, dir_fd=self._descriptors[parent_inode])
        return self._owned(parent_inode, name, ctx)

    @answering_errors
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        os.mkdir(name, mode & ~ctx.umask, dir_fd=self._descriptors[parent_inode])
        return self._owned(parent_inode, name, ctx)

    @answering_errors
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        os.symlink(target, name, dir_fd=self._descriptors[parent_inode])
        return self._owned(parent_inode, name, ctx)

    def _owned(self, parent: InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if (ctx.uid, ctx.gid) != (os.geteuid(), os.getegid()):
            directory = self._descriptors[parent]
            os.chown(name, ctx.uid, ctx.gid, dir_fd=directory, follow_symlinks=False)
        return self._enter(parent, name)

    @answering_errors
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        directory = self._descriptors[new_parent_inode]
        os.link(self._path(inode), new_name, dst_dir_fd=directory, follow_symlinks=True)
        return self._enter(new_parent_inode, new_name)

    @answering_errors
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        os.unlink(name, dir_fd=self._descriptors[parent_inode])

    @answering_errors
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        os.rmdir(name, dir_fd=self._descriptors[parent_inode])

    @answering_errors
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        if flags:
            raise FUSEError(errno.EINVAL)
        old, new = self._descriptors[parent_inode_old], self._descriptors[parent_inode_new]
        os.rename(name_old, name_new, src_dir_fd=old, dst_dir_fd=new)

    def birth_ns(self, inode: InodeT) -> int | None:
        """Python 3.11 has no statx(2)."""

    def changed_untold(self, names: list[tuple[InodeT, bytes]], content_of: InodeT | None) -> None:
        """The kernel keeps no names and no content here."""

    @answering_errors
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        handle = FileHandleT(os.open(self._path(inode), os.O_RDONLY | os.O_DIRECTORY))
        self._listings[handle] = (inode, [os.fsencode(name) for name in os.listdir(handle)])
        return handle

    @answering_errors
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        parent, names = self._listings[fh]
        for index, name in enumerate(names[start_id:], start_id + 1):
            try:
                entry = self._enter(parent, name)
            except FileNotFoundError:
                continue
            if not list_entry(token, name, entry, index):
                self.forget([(entry.st_ino, 1)])
                return

    async def releasedir(self, fh: FileHandleT) -> None:
        del self._listings[fh]
        os.close(fh)

    # --- content ----------------------------------------------------------------------------------

    @answering_errors
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
        **_: bool | None,
    ) -> tuple[FileInfo, EntryAttributes]:
        directory = self._descriptors[parent_inode]
        made = os.open(name, flags & ~os.O_DIRECT | os.O_CREAT, mode & ~ctx.umask, dir_fd=directory)
        return FileInfo(fh=FileHandleT(made), direct_io=True), self._owned(parent_inode, name, ctx)

    @answering_errors
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext, **_: bool | None) -> FileInfo:
        handle = os.open(self._path(inode), flags & REOPEN_MASK)
        return FileInfo(fh=FileHandleT(handle), direct_io=True)

    @answering_errors
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return os.pread(fh, size, off)

    def begin_write(self, *_: object, **__: object) -> None:
        """No write waits."""

    @answering_errors
    async def write(self, fh: FileHandleT, off: int, buf: bytes, **_: bool | None) -> int:
        return os.pwrite(fh, buf, off)

    @answering_errors
    async def copy_file_range(self, source: int, at: int, target: int, to: int, size: int, _: bool) -> int:
        return os.copy_file_range(source, target, size, at, to)

    @answering_errors
    async def fallocate(self, fh: FileHandleT, off: int, length: int, mode: int, _: bool) -> None:
        allocate(fh, mode, off, length)

    async def flush(self, fh: FileHandleT) -> None:
        pass

    @answering_errors
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await trio.to_thread.run_sync(os.fdatasync if datasync else os.fsync, fh)

    async def release(self, fh: FileHandleT) -> None:
        os.close(fh)

    # --- the rest ---------------------------------------------------------------------------------

    @answering_errors
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        found, answer = os.statvfs(self._path(pyfuse3.ROOT_INODE)), StatvfsData()
        for name in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "namemax"):
            setattr(answer, f"f_{name}", getattr(found, f"f_{name}"))
        return answer

    @answering_errors
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        os.setxattr(self._path(inode), name, value)

    @answering_errors
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        return os.getxattr(self._path(inode), name)

    @answering_errors
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        return [XAttrNameT(os.fsencode(name)) for name in os.listxattr(self._path(inode))]

    @answering_errors
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        os.removexattr(self._path(inode), name)


def mount(
    operations: Passthrough,
    mountpoint: Path,
    beside: Callable[[], Coroutine[Any, Any, None]] | None = None,
    *,
    own_session: bool = False,
) -> None:
    """Serve until the mountpoint is unmounted, and run `beside` meanwhile."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    options = pyfuse3.default_options | {"fsname=passthrough", "allow_other"}
    pyfuse3.init(operations, str(mountpoint), set(options))

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            if beside is not None:
                nursery.start_soon(beside)
            if own_session:
                hot.install()
                await run_negotiation(fuse_descriptor(), pyfuse3.main)
                server = OperationsServer(operations, Seams().now_ns, on_bug=lambda: None)  # type: ignore[arg-type]
                await FuseSession(fuse_descriptor(), server).run()
            else:
                await pyfuse3.main(min_tasks=REQUESTS_IDLE, max_tasks=REQUESTS_MAX)
            nursery.cancel_scope.cancel()

    try:
        trio.run(serve)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    os.umask(0)
    own = sys.argv[3:] == ["own-session"]
    mount(Passthrough(Path(sys.argv[1])), Path(sys.argv[2]), own_session=own)
