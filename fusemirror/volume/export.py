"""export: plain files out of a volume, without a mount, so that nobody's data depends on this program.

Modes, owners, times, extended attributes, hard links, symlinks, fifos, devices and holes come out as
they are. Files that are deleted but still open somewhere do not.

The volume may be damaged, or somebody else's: nothing outside the target is made, changed or read
(`beneath.py`), and what cannot be exported is reported and left out. Nobody but root and who exports looks
into the target before all is done: its own attributes come last.
"""

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fusemirror.errors import ExportFailed, RefusedForSafety, VolumeDamaged
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import MIB
from fusemirror.volume.beneath import Walk, is_name, open_plain
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.durable import sync_filesystem
from fusemirror.volume.inode import Inode
from fusemirror.volume.volume import Volume
from fusemirror.xattrs import CAPABILITY, has_namespace

_NAMES_PER_TURN = 1024
_SPECIAL = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # nothing that follows would fare better

Progress = Callable[[int, int], None]
Report = Callable[[str], None]

# What a damaged row gives to a system call may also be more than fits into its argument, or hold a NUL.
_CANNOT = (OSError, OverflowError, ValueError, VolumeDamaged)


@dataclass
class Exported:
    """How many things were not exported as they are, and what is of interest to who looks after security."""

    problems: int = 0
    devices: int = 0
    privileged: int = 0
    """Files with set-user-id or set-group-id bits, or with capabilities."""


def export(directory: Path, target: Path, progress: Progress, report: Report) -> Exported:
    """On return `target`, which was empty or absent, durably holds what the volume has.

    `progress` is called with the bytes done and the bytes in all, `report` with a line for each thing that
    could not be exported as it is; everything else is. The errors of opening a volume; RefusedForSafety
    where `target` holds something or is not one's own; ExportFailed, which leaves what was done.
    Exported by other than root, files belong to who exports.
    """
    _check_target(directory, target)
    volume = Volume.open(directory)
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        exporting = _Export(volume, target, progress, report)
        try:
            exporting.run()
        finally:
            exporting.close()
        sync_filesystem(target)
    except OSError as error:
        raise ExportFailed(os.fsdecode(error.filename or target), error.strerror) from error
    finally:
        volume.close()
    return exporting.exported


def _check_target(directory: Path, target: Path) -> None:
    if target.resolve().is_relative_to(directory.resolve()):
        raise RefusedForSafety(f"{target} is inside the volume; choose another directory")
    if target.is_symlink():
        raise RefusedForSafety(f"{target} is a symbolic link; name the directory itself")
    if not target.exists():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise RefusedForSafety(f"{target} is not an empty directory; choose another")
    if target.stat().st_uid not in (0, os.geteuid()):
        raise RefusedForSafety(f"{target} belongs to user {target.stat().st_uid}; choose one of your own")


_Names = Iterator[tuple[bytes, InodeNumber]]


class _Place:
    """A directory of the target, by its way from the top."""

    def __init__(self, above: "_Place | None", name: bytes, inode: Inode, names: _Names) -> None:
        self.above = above
        self.name = name
        self.inode = inode
        self.names = names

    def way(self) -> list[bytes]:
        names: list[bytes] = []
        place: _Place | None = self
        while place is not None and place.above is not None:
            names.append(place.name)
            place = place.above
        return names[::-1]


class _Export:
    def __init__(self, volume: Volume, target: Path, progress: Progress, report: Report) -> None:
        self.exported = Exported()
        self._volume = volume
        self._catalog = volume.catalog
        self._progress = progress
        self._report = report
        self._target = target
        self._walk = Walk(target)
        os.fchmod(self._walk.descriptor, 0o700)
        self._links: dict[InodeNumber, tuple[_Place, bytes]] = {}  # the first name of inodes with more
        self._directories: set[InodeNumber] = set()
        self._done_bytes = 0
        self._total_bytes = sum(inode.size for inode in self._inodes() if inode.is_regular and inode.nlink)

    def close(self) -> None:
        self._walk.close()

    def _inodes(self) -> Iterator[Inode]:
        """Those that can be read; the others are reported where a name leads to them."""
        with suppress(VolumeDamaged, struct.error):
            yield from self._volume.catalog.tables.inodes()

    def run(self) -> None:
        """Depth first. A directory gets its attributes when all in it is made: each name moves its times."""
        root = self._catalog.stored_inode(ROOT_INODE)
        if root is None or not root.is_directory:
            raise VolumeDamaged(self._volume.directory, "the root directory is missing")
        place: _Place | None = self._enter(None, b"", root)
        while place is not None:
            entry = self._next(place)
            if entry is not None:
                place = self._export(place, *entry)
                continue
            with self._reporting(place, b""):
                self._set_attributes(place, b"", self._walk.descriptor, place.inode)
            if place.above is not None:
                self._walk.up()
            place = place.above

    def _enter(self, above: _Place | None, name: bytes, inode: Inode) -> _Place:
        self._directories.add(inode.number)
        return _Place(above, name, inode, _names(self._catalog, inode.number))

    def _next(self, place: _Place) -> tuple[bytes, InodeNumber] | None:
        found = None
        with self._reporting(place, b""):
            found = next(place.names, None)
        return found  # noqa: RET504 - None after what was reported

    def _export(self, place: _Place, name: bytes, number: InodeNumber) -> _Place:
        """Export what a name stands for; the directory to go on in."""
        with self._reporting(place, name):
            if not is_name(name):
                raise ValueError("no name that a file can have")
            inode = self._catalog.stored_inode(number)
            if inode is None:
                raise ValueError(f"inode {number} is missing; run `fusemirror fsck`")
            if not inode.is_directory:
                self._export_file(place, name, inode)
            elif number in self._directories:
                raise ValueError(f"a second name of directory {number}; run `fusemirror fsck`")
            else:
                os.mkdir(name, 0o700, dir_fd=self._walk.descriptor)
                self._walk.down(name)
                return self._enter(place, name, inode)
        return place

    @contextmanager
    def _reporting(self, place: _Place, name: bytes) -> Iterator[None]:
        """What cannot be done is reported, and the export goes on. OSError where that would be pointless."""
        try:
            yield
        except _CANNOT as error:
            if isinstance(error, OSError) and error.errno in _HOPELESS:
                raise OSError(error.errno, error.strerror, self._path(place, name)) from error
            self._problem(place, name, error)

    def _problem(self, place: _Place, name: bytes, error: Exception) -> None:
        what = error.strerror if isinstance(error, OSError) else error.args[-1]
        self.exported.problems += 1
        self._report(f"{self._path(place, name)}: {what}")

    def _path(self, place: _Place, name: bytes) -> str:
        return os.fsdecode(b"/".join([os.fsencode(self._target), *place.way(), *filter(None, [name])]))

    def _export_file(self, place: _Place, name: bytes, inode: Inode) -> None:
        if inode.number in self._links:
            self._link(name, *self._links[inode.number])
            return
        if inode.is_regular:
            self._copy_data(place, name, inode)
        else:
            self._make_special(place, name, inode)
        if inode.nlink > 1:
            self._links[inode.number] = place, name

    def _make_special(self, place: _Place, name: bytes, inode: Inode) -> None:
        if inode.is_symlink:
            os.symlink(inode.target, name, dir_fd=self._walk.descriptor)
        elif (kind := stat.S_IFMT(inode.mode)) in _SPECIAL:
            os.mknod(name, kind | 0o600, inode.rdev, dir_fd=self._walk.descriptor)
            self.exported.devices += stat.S_ISCHR(kind) or stat.S_ISBLK(kind)
        else:
            raise ValueError(f"no type that a file can have: {inode.mode:o}; run `fusemirror fsck`")
        made = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._walk.descriptor)
        try:
            self._set_attributes(place, name, made, inode)
        finally:
            os.close(made)

    def _link(self, name: bytes, place: _Place, first_name: bytes) -> None:
        first = Walk(self._target)
        try:
            for step in place.way():
                first.down(step)
            there, here = first.descriptor, self._walk.descriptor
            os.link(first_name, name, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)
        finally:
            first.close()

    def _copy_data(self, place: _Place, name: bytes, inode: Inode) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        copy = open_plain(name, flags, dir_fd=self._walk.descriptor)
        try:
            with self._reporting(place, name):  # attributes it gets all the same
                self._copy_pieces(copy, inode)
            self._set_attributes(place, name, copy, inode)
        finally:
            os.close(copy)
        self._done_bytes += inode.size
        self._progress(self._done_bytes, self._total_bytes)

    def _copy_pieces(self, copy: int, inode: Inode) -> None:
        for offset, length in self._volume.images.content.extents(inode.number, inode.size):
            for start in range(offset, offset + length, MIB):
                piece = self._volume.images.read(inode.number, start, min(MIB, offset + length - start))
                os.pwrite(copy, piece, start)
                self._progress(self._done_bytes + start, self._total_bytes)
        os.ftruncate(copy, inode.size)

    def _set_attributes(self, place: _Place, name: bytes, made: int, inode: Inode) -> None:
        """In this order: a new owner clears set-user-id bits and capabilities, a mode changes an ACL.

        All is set through the descriptor, of which the kernel knows a path that goes through no link.
        """
        path = b"/proc/self/fd/%d" % made
        with self._reporting(place, name):
            if os.geteuid() == 0:
                os.chown(path, inode.uid, inode.gid)
            if not inode.is_symlink:
                os.chmod(path, stat.S_IMODE(inode.mode))
        names = [*filter(has_namespace, self._catalog.xattrs.names(inode.number))]
        for attribute in names:
            with self._reporting(place, name + b": " + attribute):
                os.setxattr(path, attribute, self._catalog.xattrs.value(inode.number, attribute) or b"")
        os.utime(path, ns=(inode.atime_ns, inode.mtime_ns))
        privileged = inode.mode & (stat.S_ISUID | stat.S_ISGID) or CAPABILITY in names
        self.exported.privileged += bool(inode.is_regular and privileged)


def _names(catalog: Catalog, directory: InodeNumber) -> Iterator[tuple[bytes, InodeNumber]]:
    after = 0
    while listing := catalog.listing(directory, after, _NAMES_PER_TURN):
        for _, name, entry in listing:
            yield name, entry.inode
        after = listing[-1][0]
