"""By which name this host's kernel has each directory, and how it lets go of one that has moved.

A kernel has a directory under one name. Where it finds the directory under another, which the other host
gave it, it moves it there, if the locks that this takes are free; else the look fails with ESTALE. They
never are in a rename(2) between directories, which takes them itself and then looks: so a program could
not move on what the other host had moved, until something else had looked. So the kernel is told to drop
the old name, as for a name that was removed: when the move is applied here, by a thread, because that waits
for the lock of the old directory, which a call may hold that waits for the other host. And a look that
finds the directory is answered when that is done, or after `NAME_DROPPED_S`: the call that holds the lock
may be the one that looks, and the kernel then tries once more by itself.

A directory in which a program of this host stands, or has a file open below it, stays where it was until
something looks it up by the new name outside of such a rename. So `run` does that, by the path below the
mountpoint, as any program would: when the old name was dropped and the kernel has not let go of the
directory, and again after each look that finds it, until it has worked once.

A directory that the other host removed is reported to the kernel as such (FUSE_NOTIFY_DELETE), as if its
own rmdir(2) had: a program may stand in it, and what it looks for there is missing without a question. Else
the kernel would keep each such name in its cache, and with them the directory, when no program holds it any
more. (It does where it could not take the word: something in the directory was in use.)
"""

import errno
import logging
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import pyfuse3
import trio

from fusemirror.change import Row, Table
from fusemirror.errors import DiskFailed, VolumeDamaged
from fusemirror.identifiers import ROOT_INODE, InodeNumber, NameKey
from fusemirror.limits import MOVED_LOOK_DELAY_S, MOVED_LOOKS_MAX, NAME_DROPPED_S
from fusemirror.volume.entries import key_inode, unpack_entry
from fusemirror.volume.inode import Inode

log = logging.getLogger(__name__)

# The kernel does not have the name, or not the mount any more; libfuse says the last. Of what was removed: it
# still holds something in it, or something is mounted there; the name it has dropped all the same.
_LET_GO = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENODEV,
    errno.ENOTCONN,
    errno.EINVAL,
    errno.ENOTEMPTY,
    errno.EBUSY,
}
_DROPPERS = 8  # threads: each may wait for a call that holds its directory's lock
_DIRECTORY_TYPE = 4

DropName = Callable[..., None]
"""(parent, name), and the inode if it was removed: pyfuse3.invalidate_entry."""
Look = Callable[[bytes], int]
"""Look a path below the mountpoint up; the inode that is there. OSError."""

NameOf = Callable[[InodeNumber], Awaitable[NameKey | None]]
"""The name that a directory has, as the volume knows it. DiskFailed, VolumeDamaged."""


async def _nameless(_: InodeNumber) -> NameKey | None:
    return None


class DirectoryNames:
    """See the module. For each directory that the kernel knows, `_names` has the name by which it does, or
    the kernel was told to drop that one."""

    def __init__(
        self,
        drop: DropName = pyfuse3.invalidate_entry,
        look: Look = lambda _: 0,
        name_of: NameOf = _nameless,
    ) -> None:
        self._drop = drop
        self.look = look
        self.name_of = name_of
        # By the name that each has now: those that the kernel may not have moved there.
        self._left: dict[InodeNumber, NameKey] = {}
        self._wanted = trio.Event()
        self._names: dict[InodeNumber, NameKey] = {}
        self._dropping: dict[InodeNumber, trio.Event] = {}
        self._droppers = ThreadPoolExecutor(_DROPPERS, "dropper")

    def rows_changed(self, rows: Iterable[Row]) -> None:
        """A change of the other host."""
        for table, key, value in rows:
            if value is None:
                continue
            if table == Table.INODES and (number := key_inode(key)) in self._names:
                if Inode.unpack(number, value).nlink == 0:
                    self.removed(number)
            elif table == Table.ENTRIES:
                entry = unpack_entry(value)
                if entry.type == _DIRECTORY_TYPE:
                    self._leave(entry.inode, (key_inode(key), key[8:]))

    def removed(self, inode: InodeNumber) -> None:
        """The directory has no name any more: begin to tell that, if the kernel has it by one."""
        self._left.pop(inode, None)
        known = self._names.pop(inode, None)
        if known is not None:
            self._droppers.submit(self._drop_name, *known, inode)

    def forgotten(self, inode: InodeNumber) -> None:
        self._names.pop(inode, None)
        self._left.pop(inode, None)

    def told(self, inode: InodeNumber, name: NameKey) -> None:
        """The kernel is told a directory by a name now."""
        self._leave(inode, name)
        self._names[inode] = name

    def renamed(self, inode: InodeNumber, name: NameKey) -> None:
        """The kernel has moved a directory to a name, or does once it has the answer to its request."""
        if self._left.pop(inode, None) or inode in self._names:
            self._names[inode] = name

    def changed_untold(self, name: NameKey, other: NameKey, inode: InodeNumber | None) -> None:
        """What the kernel has by this name may be old: begin to drop it. A directory that has the name by a
        rename that the kernel does not know of, it still has by the `other` one."""
        if inode is not None and other != name and self._names.get(inode) == name:
            self._names[inode] = other
            self._leave(inode, name)
        self._droppers.submit(self._drop_name, *name)

    async def found(self, inode: InodeNumber, name: NameKey) -> bool:
        """On return the kernel does not have the directory by another name, or is late in dropping that.
        Whether that took a wait."""
        self._leave(inode, name)
        dropped = self._dropping.get(inode)
        if dropped is None:
            return False
        with trio.move_on_after(NAME_DROPPED_S):
            await dropped.wait()
        return True

    def _leave(self, inode: InodeNumber, name: NameKey) -> None:
        """The directory has this name and no other: begin to drop what the kernel has it by."""
        if inode in self._left:
            self._left[inode] = name
            self._wanted.set()
        known = self._names.get(inode, name)
        if known == name:
            return
        del self._names[inode]
        self._left[inode] = name
        self._dropping[inode] = dropped = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def tell(_: Future[None]) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(partial(self._has_dropped, inode, dropped))

        self._droppers.submit(self._drop_name, *known).add_done_callback(tell)

    def _has_dropped(self, inode: InodeNumber, dropped: trio.Event) -> None:
        dropped.set()
        if self._dropping.get(inode) is dropped:
            del self._dropping[inode]
            self._wanted.set()

    async def run(self) -> None:
        """Look, for ever, at directories that the kernel may have where they were."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            await trio.sleep(MOVED_LOOK_DELAY_S)  # the kernel lets go of most at once
            await self.look_at_left()

    async def look_at_left(self) -> None:
        """Look at each, or until no rename is in the way; again as long as one that is found may make way for
        others, of which this kernel still has one above the other."""
        left = -1
        while len(self._left) != left:
            left = len(self._left)
            for inode, name in list(self._left.items()):
                await self._look_at(inode, name)

    async def _look_at(self, inode: InodeNumber, name: NameKey) -> None:
        for _ in range(MOVED_LOOKS_MAX):
            path = await self._path(name)
            if path is None or self._left.get(inode) != name:
                return
            try:
                found = await trio.to_thread.run_sync(self.look, path, abandon_on_cancel=True)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    return
                await trio.sleep(MOVED_LOOK_DELAY_S)  # a rename of this host has the locks just now
            else:
                if found == inode and self._left.get(inode) == name:
                    del self._left[inode]
                    self._names[inode] = name
                return

    async def _path(self, name: NameKey) -> bytes | None:
        """Of a name, below the mountpoint; it may lead through directories that the kernel has not met. None
        where it leads nowhere just now, as while moves arrive: each that does is followed by another look."""
        parts: list[bytes] = []
        met: set[InodeNumber] = set()
        at: NameKey | None = name
        while at is not None:
            parent, part = at
            parts.append(part)
            if parent == ROOT_INODE:
                return b"/".join(reversed(parts))
            if parent in met:
                return None
            met.add(parent)
            at = self._left.get(parent) or self._names.get(parent)
            if at is None:
                with suppress(DiskFailed, VolumeDamaged):  # whoever looks there meets it
                    at = await self.name_of(parent)
        return None

    def _drop_name(self, parent: InodeNumber, name: bytes, *removed: InodeNumber) -> None:
        try:
            self._drop(parent, name, *removed)
        except OSError as error:
            if error.errno not in _LET_GO:
                log.error("the kernel could not be told that %r in inode %d moved: %s", name, parent, error)
