"""Publishing: how the versions of a host that gave way come into the mirrored filesystem.

Before it gives way, the host copies what it changed since the fork point to quarantine (`quarantine.py`).
Once it is the backup and the mirror is normal, it publishes those that really differ from the other host's
below `/.fusemirror-conflicts/HOST/`, by ordinary requests: so both hosts have them, and a person reads or
deletes them as any file. What was published leaves quarantine once it is durable in both volumes: until then
its last copy that a power cut leaves is there. Each step can be done again after a crash.
"""

import errno
import itertools
import logging
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import trio

from fusemirror.divergence import quarantine
from fusemirror.divergence.conflicts import CONFLICTS_NAME, is_roots_own
from fusemirror.divergence.quarantine import Quarantined
from fusemirror.errors import FusemirrorError, OperationFailed
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import (
    MIB,
)
from fusemirror.operations import (
    AnyOperation,
    Create,
    HardLink,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetXattr,
    Write,
)
from fusemirror.operations.rename import RENAME_NOREPLACE
from fusemirror.volume.extents import extents_of
from fusemirror.volume.inode import Inode
from fusemirror.volume.volume import Volume
from fusemirror.xattrs import has_namespace

log = logging.getLogger(__name__)

_ENTRIES_PER_TURN = 256
# Only root looks in: a directory on the way to a published file is not rebuilt.
_DIRECTORY_MODE = stat.S_IFDIR | 0o700


def _pieces(extents: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The extents in pieces of a MiB at most."""
    for offset, length in extents:
        for start in range(offset, offset + length, MIB):
            yield start, min(MIB, offset + length - start)


class Requests(Protocol):
    """What programs ask of a control unit; each raises `OperationFailed` as they would be told."""

    volume: Volume

    async def lookup(self, parent: InodeNumber, name: bytes) -> Inode: ...
    async def attributes(self, inode: InodeNumber) -> Inode: ...
    async def listing(self, inode: InodeNumber, cookie: int, count: int) -> Sequence[Any]: ...
    async def xattrs(self, inode: InodeNumber) -> Sequence[bytes]: ...
    async def xattr(self, inode: InodeNumber, name: bytes) -> bytes: ...
    async def read(self, inode: InodeNumber, offset: int, length: int) -> bytes: ...
    async def seek(self, inode: InodeNumber, offset: int, *, data: bool) -> int: ...
    async def perform(self, operation: AnyOperation, data: bytes = b"") -> Inode | None: ...
    async def flush(self, inode: InodeNumber) -> None: ...
    async def wait_normal(self) -> None: ...


class Publishing:
    """Puts what is in quarantine into the mirrored filesystem, by requests as programs make them."""

    def __init__(self, unit: Requests) -> None:
        self._unit = unit
        self._name = b""  # of the directory below `/.fusemirror-conflicts`
        self.wanted = trio.Event()
        if quarantine.pending(unit.volume):
            self.wanted.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Publish what there is, and whatever comes, for ever. Cancelled, it goes on at the next mount.

        FusemirrorError, OSError: it goes on when it is run again.
        """
        task_status.started()
        while True:
            await self.wanted.wait()
            self.wanted = trio.Event()
            await self._unit.wait_normal()
            try:
                for directory in quarantine.pending(self._unit.volume):
                    await self._publish(directory)
            except (FusemirrorError, OSError):
                self.wanted.set()  # what was not published stays where it is, and is tried again
                raise

    async def _publish(self, directory: Path) -> None:
        await self._own_directory()
        self._name = quarantine.name_in(directory) or await self._choose_name(directory)
        for description in quarantine.descriptions(directory):
            kept, data = quarantine.load(description), quarantine.data_of(description)
            inode = await self._same(kept, data) or await self._put(kept, data)
            # Also of what was there already: a program may have written it a moment ago. Where the other host
            # is away and this one goes on alone, its own disk is enough, as for every fsync.
            await self._unit.flush(inode)
            # Long, where it lies in many places.
            await self._unit.volume.run_blocking(quarantine.forget, description)
        shutil.rmtree(directory)
        log.info("what this host had changed since the fork point is in /%s", os.fsdecode(CONFLICTS_NAME))

    async def _own_directory(self) -> None:
        """On return `/.fusemirror-conflicts` is root's own; what a user made of that name has another one.

        So it may be where it was made by an earlier version, or where root opened it to others.
        """
        try:
            found = await self._unit.lookup(ROOT_INODE, CONFLICTS_NAME)
        except OperationFailed as error:
            if error.errno != errno.ENOENT:
                raise
        else:
            if not is_roots_own(found):
                await self._move_away()
        made = await self._made(Create(ROOT_INODE, CONFLICTS_NAME, _DIRECTORY_MODE, 0, 0))
        if not is_roots_own(await self._unit.attributes(made)):
            raise OperationFailed(errno.EEXIST)

    async def _move_away(self) -> None:
        for number in itertools.count(1):
            name = b"%s-of-users-%d" % (CONFLICTS_NAME, number)
            try:
                await self._unit.perform(
                    Rename(ROOT_INODE, CONFLICTS_NAME, ROOT_INODE, name, RENAME_NOREPLACE)
                )
            except OperationFailed as error:
                if error.errno != errno.EEXIST:
                    raise
            else:
                ours, theirs = os.fsdecode(CONFLICTS_NAME), os.fsdecode(name)
                log.warning("/%s was not a directory of root's own: it is /%s now", ours, theirs)
                return

    async def _choose_name(self, directory: Path) -> bytes:
        """A name below `/.fusemirror-conflicts` that holds nothing yet, durably chosen for these files."""
        host = os.fsencode(self._unit.volume.identity.host_name)
        for number in itertools.count(1):
            name = host if number == 1 else b"%s-%d" % (host, number)
            try:
                found = await self._find([CONFLICTS_NAME, name])
            except OperationFailed:
                break
            if is_roots_own(found) and not await self._unit.listing(found.number, 0, 1):
                break
        quarantine.choose_name(directory, name)
        return name

    # --- whether there is a conflict ----------------------------------------------------------------------

    async def _same(self, kept: Quarantined, data: Path) -> InodeNumber | None:
        """The inode where the filesystem has the same under its own names: then nothing is in conflict."""
        try:
            found = [await self._find(path) for path in kept.paths]
        except OperationFailed:
            return None
        inode = found[0]
        if {each.number for each in found} != {inode.number} or not await self._is_alike(kept, inode):
            return None
        same = not inode.is_regular or await self._has_content(inode.number, kept, data)
        return inode.number if same else None

    async def _is_alike(self, kept: Quarantined, inode: Inode) -> bool:
        """Whether all is the same but the content and the times, which say nothing of a difference."""
        ours = (kept.mode, kept.uid, kept.gid, kept.rdev)
        if ours != (inode.mode, inode.uid, inode.gid, inode.rdev):
            return False
        if not inode.is_directory and kept.size != inode.size:
            return False
        if inode.is_symlink and kept.target != inode.target:
            return False
        number = inode.number
        names = await self._unit.xattrs(number)
        return {name: await self._unit.xattr(number, name) for name in names} == _xattrs(kept)

    async def _has_content(self, inode: InodeNumber, kept: Quarantined, data: Path) -> bool:
        """Whether both read alike: looked at is what either has as data, not how long they are."""
        with quarantine.open_data(data) as ours:
            for extent in extents_of(ours.fileno(), kept.size):
                if not await self._reads_alike(inode, ours, extent):
                    return False
            # One after the other, as a file may lie in very many places; and by requests as well, as an image
            # here need not be all that is read: it may be out of sync, or have writes under way on top.
            start = await self._next_data(inode, 0, kept.size)
            while start < kept.size:
                hole = await self._unit.seek(inode, start, data=False)
                end = min(max(hole, start + 1), kept.size)  # further, also where one was made there meanwhile
                if not await self._reads_alike(inode, ours, (start, end - start)):
                    return False
                start = await self._next_data(inode, end, kept.size)
        return True

    async def _reads_alike(self, inode: InodeNumber, ours: BinaryIO, extent: tuple[int, int]) -> bool:
        for offset, length in _pieces([extent]):
            await trio.lowlevel.checkpoint()  # neither a read nor a seek that this host answers has one
            if await self._unit.read(inode, offset, length) != os.pread(ours.fileno(), length, offset):
                return False
        return True

    async def _next_data(self, inode: InodeNumber, offset: int, stop: int) -> int:
        """Where, from `offset` on, the file has data; `stop` where it has none, or has been cut."""
        try:
            return await self._unit.seek(inode, offset, data=True)
        except OperationFailed as error:
            if error.errno != errno.ENXIO:
                raise
            return stop

    async def _find(self, path: list[bytes]) -> Inode:
        inode = await self._unit.attributes(ROOT_INODE)
        for name in path:
            inode = await self._unit.lookup(inode.number, name)
        return inode

    # --- putting it there ---------------------------------------------------------------------------------

    async def _put(self, kept: Quarantined, data: Path) -> InodeNumber:
        """The inode below `/.fusemirror-conflicts`."""
        number = await self._made(await self._create(kept))
        for path in kept.links:
            await self._link(number, await self._directory(path), path[-1])
        if stat.S_ISREG(kept.mode):
            with quarantine.open_data(data) as content:
                # Once it is known to be there: what an earlier attempt put here may be all that is left.
                await self._unit.perform(SetAttributes(number, size=0))
                for offset, length in _pieces(extents_of(content.fileno(), kept.size)):
                    await trio.lowlevel.checkpoint()  # alone, this host carries a write out at once
                    piece = os.pread(content.fileno(), length, offset)
                    await self._unit.perform(Write(number, offset), piece)
            await self._unit.perform(SetAttributes(number, size=kept.size))
        await self._set_attributes(number, kept)
        return number

    async def _create(self, kept: Quarantined) -> Create:
        parent = await self._directory(kept.path)
        return Create(parent, kept.path[-1], kept.mode, kept.uid, kept.gid, kept.rdev, kept.target)

    async def _directory(self, path: list[bytes]) -> InodeNumber:
        """The directory of what had this path, made where it is not there."""
        directory = ROOT_INODE
        for name in (CONFLICTS_NAME, self._name, *path[:-1]):
            directory = await self._made(Create(directory, name, _DIRECTORY_MODE, 0, 0))
        return directory

    async def _made(self, create: Create) -> InodeNumber:
        """The inode of a new name, or of one that an earlier attempt has made."""
        with suppress(OperationFailed):
            inode = await self._unit.perform(create)
            if inode is not None:
                return inode.number
        found = await self._unit.lookup(create.parent, create.name)
        if stat.S_IFMT(found.mode) != stat.S_IFMT(create.mode):
            raise OperationFailed(errno.EEXIST)
        return found.number

    async def _link(self, inode: InodeNumber, directory: InodeNumber, name: bytes) -> None:
        try:
            await self._unit.perform(HardLink(inode, directory, name))
        except OperationFailed as error:
            if error.errno != errno.EEXIST or (await self._unit.lookup(directory, name)).number != inode:
                raise

    async def _set_attributes(self, inode: InodeNumber, kept: Quarantined) -> None:
        """In this order: a new owner ends privileges, an access control list changes the mode, and everything
        changes the times.
        """
        await self._unit.perform(SetAttributes(inode, uid=kept.uid, gid=kept.gid))
        if not stat.S_ISLNK(kept.mode):
            await self._unit.perform(SetAttributes(inode, mode=stat.S_IMODE(kept.mode)))
        xattrs = _xattrs(kept)
        for name in await self._unit.xattrs(inode):
            if name not in xattrs:  # inherited from a directory that was published
                await self._unit.perform(RemoveXattr(inode, name))
        for name, value in xattrs.items():
            await self._unit.perform(SetXattr(inode, name, value))
        atime_ns = kept.atime_ns or kept.mtime_ns
        await self._unit.perform(SetAttributes(inode, atime_ns=atime_ns, mtime_ns=kept.mtime_ns))


def _xattrs(kept: Quarantined) -> dict[bytes, bytes]:
    """Those that a file may have now: a volume of an earlier version may have held others."""
    return {name: value for name, value in kept.xattrs.items() if has_namespace(name)}
