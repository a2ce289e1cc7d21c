"""Importing: a tree of files into the new main volume that `create` has just made.

The control unit of a primary that goes on alone makes each thing, as it does for a program: so what is
taken in is what a `cp -a` onto the mount would have made, without the way through two kernels. No link is
followed, and nothing outside the tree is read (`volume/beneath.py`).
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import trio

from fusemirror.channel.transport import Listener, Network, Transport, everybody
from fusemirror.cli.progress import Advance
from fusemirror.control.unit import ControlUnit
from fusemirror.daemon import Host
from fusemirror.errors import ImportFailed, OperationFailed, PeerUnreachable
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import SYMLINK_BYTES_MAX, WRITE_BYTES_MAX
from fusemirror.operations import AnyOperation, Create, HardLink, SetAttributes, SetXattr, Write
from fusemirror.seams import Seams
from fusemirror.settings import Fence, Settings
from fusemirror.volume.beneath import Walk, open_plain
from fusemirror.volume.extents import extents_of
from fusemirror.xattrs import has_namespace

Report = Callable[[str], None]

_PEER_TIMEOUT_S = 0.2  # nobody has ever met this host: there is no lease to wait for
_IO_TIMEOUT_S = 3600.0


def import_tree(chosen: Settings, source: Path, advance: Advance, report: Report) -> int:
    """On return the volume of `chosen` durably holds what `source` does: names, types, content with its
    holes, modes, owners, times, extended attributes, access control lists and hard links. How many names.

    `advance` is called with the bytes done and the bytes in all; `report` with a line for each extended
    attribute that no mirrored filesystem has. ImportFailed names the file where it stopped.
    """
    return trio.run(_import, chosen, source, advance, report)


async def _import(chosen: Settings, source: Path, advance: Advance, report: Report) -> int:
    alone = msgspec.structs.replace(
        chosen, peer_timeout=_PEER_TIMEOUT_S, io_timeout=_IO_TIMEOUT_S, fence=Fence.NEVER, witness=""
    )
    try:
        async with AsyncExitStack() as stack:
            host = Host(alone, _Nobody(), Seams())
            await host.open(stack)
            importing = _Import(host.roles, source, advance, report)
            await importing.run()
            return importing.count
    except BaseExceptionGroup as group:  # a nursery of the host packs into groups what ends it
        if group.subgroup(KeyboardInterrupt) is not None:
            raise KeyboardInterrupt from None
        failed = group.subgroup(ImportFailed)
        if failed is None:
            raise
        error: BaseException = failed
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group


class _Nobody(Network):
    """Where no other host is."""

    async def connect(self, host: str, port: int) -> Transport:
        await trio.lowlevel.checkpoint()
        raise PeerUnreachable(host, "it is not asked while files are taken in")

    async def listen(self, host: str, port: int) -> Listener:
        await trio.lowlevel.checkpoint()
        return _Silence()


class _Silence(Listener):
    async def accept(self, admits: Callable[[str], bool] = everybody) -> Transport:
        await trio.sleep_forever()
        raise AssertionError("it sleeps for ever")

    def close(self) -> None:
        pass


class _Import:
    def __init__(self, unit: ControlUnit, source: Path, advance: Advance, report: Report) -> None:
        self.count = 0
        self._unit = unit
        self._source = source
        self._advance = advance
        self._report = report
        self._walk = Walk(source)
        self._linked: dict[tuple[int, int], InodeNumber] = {}  # of files with more than one name
        self._done_bytes = self._total_bytes = 0

    async def run(self) -> None:
        """Take everything in. ImportFailed."""
        try:
            self._total_bytes = _size_of(self._source)
            await self._take_tree()
        except OperationFailed as error:
            raise ImportFailed(self._where, error) from error
        except OSError as error:
            raise ImportFailed(self._where, error.strerror or error) from error
        finally:
            self._walk.close()

    _where: object = "the beginning"

    async def _take_tree(self) -> None:
        top = os.fstat(self._walk.descriptor)
        levels = [(ROOT_INODE, top, self._names(), self._source)]
        while levels:
            inode, status, names, path = levels[-1]
            name = next(names, None)
            if name is None:
                # Its own attributes last: a name made in it changes its times, and goes by its default ACL.
                self._where = path
                await self._finish(inode, status, ".")
                levels.pop()
                if levels:
                    self._walk.up()
                continue
            self._where = below = path / name
            found = os.stat(name, dir_fd=self._walk.descriptor, follow_symlinks=False)
            made = await self._make(inode, name, found)
            if stat.S_ISDIR(found.st_mode):
                self._walk.down(os.fsencode(name))
                levels.append((made, os.fstat(self._walk.descriptor), self._names(), below))

    def _names(self) -> Iterator[str]:
        return iter(sorted(os.listdir(self._walk.descriptor)))

    async def _make(self, parent: InodeNumber, name: str, found: os.stat_result) -> InodeNumber:
        """Make one thing under its name; a directory without what is in it, and without its attributes."""
        self.count += 1
        identity = (found.st_dev, found.st_ino)
        encoded = os.fsencode(name)
        if identity in self._linked:
            await self._perform(HardLink(self._linked[identity], parent, encoded))
            return self._linked[identity]
        target = os.fsencode(os.readlink(name, dir_fd=self._walk.descriptor)) if _is_link(found) else b""
        if len(target) > SYMLINK_BYTES_MAX:
            raise OSError(errno.ENAMETOOLONG, "the target of the link is too long")
        is_device = stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)
        rdev = found.st_rdev if is_device else 0
        inode = await self._perform(
            Create(parent, encoded, found.st_mode, found.st_uid, found.st_gid, rdev, target)
        )
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            self._linked[identity] = inode
        if stat.S_ISREG(found.st_mode):
            await self._fill(inode, name)
        if not stat.S_ISDIR(found.st_mode):
            await self._finish(inode, found, name)
        return inode

    async def _fill(self, inode: InodeNumber, name: str) -> None:
        descriptor = open_plain(name, os.O_RDONLY, dir_fd=self._walk.descriptor)
        try:
            size, end = os.fstat(descriptor).st_size, 0
            for offset, length in extents_of(descriptor, size):
                end = offset + length
                while offset < end:
                    data = os.pread(descriptor, min(WRITE_BYTES_MAX, end - offset), offset)
                    if not data:
                        raise OSError(errno.EIO, "it became shorter meanwhile; let nobody write there")
                    await self._perform(Write(inode, offset), data)
                    offset += len(data)
                    self._done_bytes += len(data)
                    self._advance(self._done_bytes, max(self._total_bytes, self._done_bytes))
        finally:
            os.close(descriptor)
        if end < size:
            await self._perform(SetAttributes(inode, size=size))

    async def _finish(self, inode: InodeNumber, found: os.stat_result, name: str) -> None:
        """Give it its attributes; its owner first, which takes capabilities and set-user-id away."""
        await self._perform(SetAttributes(inode, uid=found.st_uid, gid=found.st_gid))
        path = f"/proc/self/fd/{self._walk.descriptor}/{name}"
        for attribute in os.listxattr(path, follow_symlinks=False):
            encoded = os.fsencode(attribute)
            if not has_namespace(encoded):
                self._report(f"{self._where}: the extended attribute {attribute} is left out")
                continue
            value = os.getxattr(path, attribute, follow_symlinks=False)
            try:
                await self._perform(SetXattr(inode, encoded, value))
            except OperationFailed as error:
                self._report(f"{self._where}: the extended attribute {attribute} is left out: {error}")
        mode = None if _is_link(found) else stat.S_IMODE(found.st_mode)
        await self._perform(
            SetAttributes(inode, mode=mode, atime_ns=found.st_atime_ns, mtime_ns=found.st_mtime_ns)
        )

    async def _perform(self, operation: AnyOperation, data: bytes = b"") -> InodeNumber:
        inode = await self._unit.perform(operation, data)
        assert inode is not None, "nobody else is here who could remove it"
        return inode.number


def _is_link(found: os.stat_result) -> bool:
    return stat.S_ISLNK(found.st_mode)


def _size_of(source: Path) -> int:
    """Bytes of data below a directory, for the progress. OSError."""
    total, seen = 0, set[tuple[int, int]]()
    walk = Walk(source)
    levels = [iter(os.listdir(walk.descriptor))]  # of any depth: os.fwalk would call itself for each
    try:
        while levels:
            name = next(levels[-1], None)
            if name is None:
                levels.pop()
                if levels:
                    walk.up()
                continue
            found = os.stat(name, dir_fd=walk.descriptor, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                walk.down(os.fsencode(name))
                levels.append(iter(os.listdir(walk.descriptor)))
            elif stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) not in seen:
                total += min(found.st_size, found.st_blocks * 512)
                if found.st_nlink > 1:
                    seen.add((found.st_dev, found.st_ino))
    finally:
        walk.close()
    return total
