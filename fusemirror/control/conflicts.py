"""Conflicts: what two hosts changed apart, and how the versions that give way are kept beside.

What this host changed since the lines parted, its journal and its marked regions tell. Before it gives
way, it copies those files to plain files in its volume's directory; once it is the backup and the mirror
is normal, it puts those that really differ from the other host's into the mirrored filesystem itself,
below `/.fusemirror-conflicts/HOST/`, by ordinary requests: so both hosts have them, and a person reads or
deletes them as any file. Each step can be done again after a crash.
"""

import errno
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import trio

from fusemirror.change import NamespaceChange, Table, decode_change
from fusemirror.control.unit import ControlUnit
from fusemirror.errors import FusemirrorError, OperationFailed
from fusemirror.identifiers import ROOT_INODE, ChangeNumber, InodeNumber
from fusemirror.limits import MIB
from fusemirror.mirror.histories import generations_of
from fusemirror.operations import Create, SetAttributes, Write
from fusemirror.protocol.messages import History
from fusemirror.volume.catalog import key_inode, unpack_entry
from fusemirror.volume.durable import sync_directory
from fusemirror.volume.inode import Inode
from fusemirror.volume.volume import Volume

log = logging.getLogger(__name__)

CONFLICTS_NAME = b".fusemirror-conflicts"
_ASIDE = "aside"
_ENTRIES_PER_TURN = 256
# Only root looks in: the directories that stood between a private file and others are not rebuilt.
_DIRECTORY_MODE = stat.S_IFDIR | 0o700


class Kept(msgspec.Struct, frozen=True):
    """One file that was set aside: where it was, and its attributes."""

    path: list[bytes]
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes


# --- what was changed apart -----------------------------------------------------------------------------


def parted_at(volume: Volume, theirs: History | None) -> ChangeNumber:
    """The first change that this volume made in a line that the other does not have."""
    known = {generation.identity for generation in theirs.generations} if theirs is not None else set()
    first = ChangeNumber(volume.number + 1)
    for generation in generations_of(volume):
        if generation.identity in known:
            break
        first = generation.first_change
    return first


def changed_files(volume: Volume, theirs: History | None) -> list[tuple[list[bytes], Inode]]:
    """Files and symlinks that were changed here since the lines parted, by path; all if that is not known."""
    changed = _changed_inodes(volume, parted_at(volume, theirs))
    return [
        (path, inode)
        for path, inode in _walk(volume, ROOT_INODE, [])
        if changed is None or inode.number in changed
    ]


def _changed_inodes(volume: Volume, first: ChangeNumber) -> set[InodeNumber] | None:
    if volume.journal.first_number > first:
        return None
    changed = set(volume.regions.marks())
    for _, payload in volume.journal.records(ChangeNumber(first - 1)):
        change = decode_change(payload)
        if not isinstance(change, NamespaceChange):
            changed.add(change.inode)
            continue
        for table, key, value in change.rows:
            if table == Table.INODES and value is not None:
                changed.add(key_inode(key))
            elif table == Table.ENTRIES and value is not None:
                changed.add(unpack_entry(value).inode)
    return changed


def _walk(volume: Volume, directory: InodeNumber, path: list[bytes]) -> Iterator[tuple[list[bytes], Inode]]:
    """Every file and symlink below, but for what was set aside before."""
    cookie = 0
    while entries := volume.catalog.listing(directory, cookie, _ENTRIES_PER_TURN):
        cookie = entries[-1][0]
        for _, name, entry in entries:
            inode = volume.catalog.inode(entry.inode)
            if inode is None or (not path and name == CONFLICTS_NAME):
                continue
            if inode.is_directory:
                yield from _walk(volume, inode.number, [*path, name])
            elif inode.is_regular or inode.is_symlink:
                yield [*path, name], inode


def set_aside_files(volume: Volume) -> list[tuple[list[bytes], Inode]]:
    """What stands below `/.fusemirror-conflicts` now, by host and path."""
    entry = volume.catalog.entry(ROOT_INODE, CONFLICTS_NAME)
    inode = volume.catalog.inode(entry.inode) if entry is not None else None
    if inode is None or not inode.is_directory:
        return []
    return list(_walk(volume, inode.number, [b""]))


def described(files: list[tuple[list[bytes], Inode]]) -> list[dict[str, Any]]:
    """For the answer to a command."""
    return [
        {
            "path": "/" + os.fsdecode(b"/".join(part for part in path if part)),
            "size": inode.size,
            "modified": inode.mtime_ns / 1e9,
        }
        for path, inode in files
    ]


# --- setting aside --------------------------------------------------------------------------------------


def keep(volume: Volume, theirs: History | None) -> int:
    """Copy what was changed here to plain files beside the volume; how many. They are durable on return.

    OSError: then nothing was set aside. Runs in the event loop's thread: nothing else is served meanwhile.
    """
    place = volume.directory / _ASIDE
    place.mkdir(mode=0o700, exist_ok=True)
    unfinished = place / "new"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    files = changed_files(volume, theirs)
    for index, (path, inode) in enumerate(files):
        _copy_out(volume, inode, unfinished / f"{index}.data")
        kept = Kept(path, inode.mode, inode.uid, inode.gid, inode.size, inode.mtime_ns, inode.target)
        (unfinished / f"{index}.file").write_bytes(msgspec.msgpack.encode(kept))
    sync_directory(unfinished)
    volume.images.sync_filesystem()
    finished = place / f"{volume.identity.term}"
    shutil.rmtree(finished, ignore_errors=True)  # of an attempt that ended before this host gave way
    unfinished.rename(finished)
    sync_directory(place)
    return len(files)


def _copy_out(volume: Volume, inode: Inode, target: Path) -> None:
    with target.open("wb") as copy:
        if inode.is_regular:
            for start in range(0, inode.size, MIB):
                copy.write(volume.images.read(inode.number, start, MIB))
            copy.truncate(inode.size)


# --- bringing in ----------------------------------------------------------------------------------------


def _descriptions(directory: Path) -> list[Path]:
    names = [path for path in directory.iterdir() if path.suffix == ".file"]
    return sorted(names, key=lambda path: int(path.stem))


class BringingIn:
    """Puts what was set aside into the mirrored filesystem, through the unit that programs use."""

    def __init__(self, unit: ControlUnit) -> None:
        self._unit = unit
        self._place = unit.volume.directory / _ASIDE
        self._host = os.fsencode(unit.volume.identity.host_name)
        self.wanted = trio.Event()
        if self._pending():
            self.wanted.set()

    def _pending(self) -> list[Path]:
        if not self._place.is_dir():
            return []
        return sorted(path for path in self._place.iterdir() if path.is_dir() and path.name != "new")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Bring in what there is, and whatever comes, for ever. Cancelled, it goes on at the next mount."""
        task_status.started()
        while True:
            await self.wanted.wait()
            self.wanted = trio.Event()
            await self._unit.wait_normal()
            try:
                for directory in self._pending():
                    await self._bring_in(directory)
            except (FusemirrorError, OSError) as error:
                log.error("what was set aside stays in %s until the next mount: %s", self._place, error)

    async def _bring_in(self, directory: Path) -> None:
        for description in _descriptions(directory):
            kept = msgspec.msgpack.decode(description.read_bytes(), type=Kept)
            data = description.with_suffix(".data")
            if not await self._is_there(kept, data):
                await self._put(kept, data)
            description.unlink()
            data.unlink(missing_ok=True)
        shutil.rmtree(directory)
        log.info("what this host had changed apart is in /%s", os.fsdecode(CONFLICTS_NAME))

    async def _is_there(self, kept: Kept, data: Path) -> bool:
        """Whether the filesystem has the same under its own name: then nothing is in conflict."""
        try:
            inode = await self._find(kept.path)
        except OperationFailed:
            return False
        if stat.S_IFMT(inode.mode) != stat.S_IFMT(kept.mode) or inode.size != kept.size:
            return False
        if inode.is_symlink:
            return inode.target == kept.target
        with data.open("rb") as ours:
            for start in range(0, kept.size, MIB):
                if await self._unit.read(inode.number, start, MIB) != ours.read(MIB):
                    return False
        return True

    async def _find(self, path: list[bytes]) -> Inode:
        inode = await self._unit.attributes(ROOT_INODE)
        for name in path:
            inode = await self._unit.lookup(inode.number, name)
        return inode

    async def _put(self, kept: Kept, data: Path) -> None:
        directory = ROOT_INODE
        for name in (CONFLICTS_NAME, self._host, *kept.path[:-1]):
            directory = await self._made(Create(directory, name, _DIRECTORY_MODE, 0, 0))
        mode = kept.mode
        create = Create(directory, kept.path[-1], mode, kept.uid, kept.gid, target=kept.target)
        number = await self._made(create)
        if not stat.S_ISREG(mode):
            return
        await self._unit.perform(SetAttributes(number, size=0))
        with data.open("rb") as content:
            offset = 0
            while piece := content.read(MIB):
                await self._unit.perform(Write(number, offset), piece)
                offset += len(piece)
        await self._unit.perform(SetAttributes(number, mtime_ns=kept.mtime_ns))

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
