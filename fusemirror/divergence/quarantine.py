"""The quarantine: files of a volume copied to plain files beside it, until they are published.

VOLUME_DIR/aside/N holds one host's versions of one time: `I.file` describes a file, `I.data` is its
content. A directory without its final name was cut short, and is thrown away.
"""

import os
import shutil
from pathlib import Path
from typing import BinaryIO

import msgspec
import trio

from fusemirror.errors import VolumeDamaged
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import COPY_PIECE_BYTES
from fusemirror.settings import is_host_name
from fusemirror.volume.beneath import open_plain
from fusemirror.volume.durable import replace_file, sync_directory
from fusemirror.volume.inode import Inode
from fusemirror.volume.volume import Volume

_DIRECTORY = "aside"
_UNFINISHED = "new"
_NAME = "name"
_PER_TURN = 256


class Quarantined(msgspec.Struct, frozen=True):
    """One inode in quarantine: where it was, and its attributes."""

    path: list[bytes]
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes
    atime_ns: int = 0
    rdev: int = 0
    xattrs: dict[bytes, bytes] = {}
    links: list[list[bytes]] = []
    """Its other names, where it has more than one."""

    @property
    def paths(self) -> list[list[bytes]]:
        return [self.path, *self.links]


def place_of(volume: Volume) -> Path:
    return volume.directory / _DIRECTORY


def pending(volume: Volume) -> list[Path]:
    """The directories of what waits to be published, the oldest first. OSError."""
    place = place_of(volume)
    if not place.is_dir():
        return []
    found = [path for path in place.iterdir() if path.name.isdecimal() and not path.is_symlink()]
    return sorted(found, key=lambda path: int(path.name))


def name_in(directory: Path) -> bytes | None:
    """The name that was chosen for what a directory of `pending` holds, if one was. OSError.

    None also for one that an earlier version chose and no directory can have.
    """
    try:
        name = (directory / _NAME).read_bytes()
    except FileNotFoundError:
        return None
    return name if is_host_name(os.fsdecode(name)) else None


def choose_name(directory: Path, name: bytes) -> None:
    """On return `name_in` durably gives `name`. OSError."""
    replace_file(directory / _NAME, name)


def descriptions(directory: Path) -> list[Path]:
    """The descriptions in a directory of `pending`, in the order to publish them. OSError."""
    names = [path for path in directory.iterdir() if path.suffix == ".file" and path.stem.isdecimal()]
    return sorted(names, key=lambda path: int(path.stem))


def load(description: Path) -> Quarantined:
    """What a description says. VolumeDamaged, OSError."""
    try:
        with open_data(description) as file:
            return msgspec.msgpack.decode(file.read(), type=Quarantined)
    except msgspec.DecodeError as error:
        where = description.relative_to(description.parents[2])
        raise VolumeDamaged(description.parents[2], f"{where}: {error}") from error


def data_of(description: Path) -> Path:
    """The content that belongs to a description; there is none but of regular files."""
    return description.with_suffix(".data")


def open_data(data: Path) -> BinaryIO:
    """The content, opened. OSError where it is a link or no file."""
    return open(open_plain(data, os.O_RDONLY), "rb")


def forget(description: Path) -> None:
    """Remove a description, durably, and its content. Thread-safe. OSError."""
    # In this order whatever the disk is: content without a description is never looked at, and goes with the
    # directory. A description without its content would be published for ever, and in vain.
    description.unlink()
    sync_directory(description.parent)
    data_of(description).unlink(missing_ok=True)


async def quarantine_files(volume: Volume, files: dict[InodeNumber, list[list[bytes]]]) -> int:
    """Copy inodes, given with their paths, to plain files beside the volume; how many. Durable on return.

    Nothing may change them meanwhile. OSError, and cancellation: then nothing is in quarantine.
    """
    place = place_of(volume)
    place.mkdir(mode=0o700, exist_ok=True)
    unfinished = place / _UNFINISHED
    await volume.run_blocking(_remove, unfinished)
    unfinished.mkdir(mode=0o700)
    count = 0
    for number in await _in_order(volume, files):
        inode = volume.catalog.inode(number)
        if inode is None:
            continue
        if inode.is_regular:
            await _copy_out(volume, inode, unfinished / f"{count}.data")
        description = msgspec.msgpack.encode(_described(volume, inode, sorted(files[number])))
        (unfinished / f"{count}.file").write_bytes(description)
        count += 1
        await trio.lowlevel.checkpoint()  # programs of this host wait, but its peer and its commands do not
    sync_directory(unfinished)
    await volume.run_blocking(volume.images.unsynced.sync_filesystem)
    finished = place / f"{volume.identity.term}"
    await volume.run_blocking(_remove, finished)  # of an attempt that ended before this host gave way
    unfinished.rename(finished)
    sync_directory(place)
    return count


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


async def _in_order(volume: Volume, files: dict[InodeNumber, list[list[bytes]]]) -> list[InodeNumber]:
    """Files first, then directories, the deepest first: the times of one are set when all in it is made."""
    others: list[InodeNumber] = []
    directories: list[InodeNumber] = []
    for index, number in enumerate(files):
        if index % _PER_TURN == 0:
            await trio.lowlevel.checkpoint()
        inode = volume.catalog.inode(number)
        if inode is not None:
            (directories if inode.is_directory else others).append(number)
    return [*others, *sorted(directories, key=lambda number: -len(files[number][0]))]


def _described(volume: Volume, inode: Inode, paths: list[list[bytes]]) -> Quarantined:
    return Quarantined(
        path=paths[0],
        mode=inode.mode,
        uid=inode.uid,
        gid=inode.gid,
        size=inode.size,
        mtime_ns=inode.mtime_ns,
        target=inode.target,
        atime_ns=inode.atime_ns,
        rdev=inode.rdev,
        xattrs={
            name: volume.catalog.xattrs.value(inode.number, name) or b""
            for name in volume.catalog.xattrs.names(inode.number)
        },
        links=paths[1:],
    )


async def _copy_out(volume: Volume, inode: Inode, target: Path) -> None:
    number, size = inode.number, inode.size
    offset = 0
    with target.open("wb") as copy:
        while offset < size:
            step = (number, copy.fileno(), offset, min(size, offset + COPY_PIECE_BYTES))
            offset = await volume.run_blocking(volume.images.content.copy_out, *step)
        os.ftruncate(copy.fileno(), size)
