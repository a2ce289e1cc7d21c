"""export: plain files out of a volume, without a mount, so that nobody's data depends on this program.

Modes, owners, times, extended attributes, hard links, symlinks, fifos, devices and holes come out as
they are. Files that are deleted but still open somewhere do not.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fusemirror.errors import ExportFailed, RefusedForSafety
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import MIB
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.durable import sync_filesystem
from fusemirror.volume.inode import Inode
from fusemirror.volume.volume import Volume
from fusemirror.xattrs import has_namespace

_NAMES_PER_TURN = 1024
_PATH_BYTES = 2048  # a path is taken in pieces of this at most, each well within PATH_MAX

Progress = Callable[[int, int], None]


def export(directory: Path, target: Path, progress: Progress) -> None:
    """On return `target`, which was empty or absent, durably holds every file of the volume.

    `progress` is called with the bytes done and the bytes in all. The errors of opening a volume;
    RefusedForSafety where `target` holds something; ExportFailed, which leaves what was done.
    Exported by other than root, files belong to who exports.
    """
    if target.resolve().is_relative_to(directory.resolve()):
        raise RefusedForSafety(f"{target} is inside the volume; choose another directory")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RefusedForSafety(f"{target} is not an empty directory; choose another")
    volume = Volume.open(directory)
    try:
        target.mkdir(parents=True, exist_ok=True)
        _Export(volume, progress).run(os.fsencode(target))
        sync_filesystem(target)
    except OSError as error:
        raise ExportFailed(os.fsdecode(error.filename or target), error.strerror) from error
    finally:
        volume.close()


class _Export:
    def __init__(self, volume: Volume, progress: Progress) -> None:
        self._volume = volume
        self._catalog = volume.catalog
        self._progress = progress
        self._links: dict[InodeNumber, bytes] = {}  # the first path of inodes with more
        self._done_bytes = 0
        self._total_bytes = sum(inode.size for inode in volume.inodes() if inode.is_regular and inode.nlink)

    def run(self, target: bytes) -> None:
        """Directories are made first and get their attributes last: a name put into one moves its times."""
        made = [(target, self._inode(ROOT_INODE))]
        pending = list(made)
        while pending:
            path, directory = pending.pop()
            for name, number in _names(self._catalog, directory.number):
                child_path, inode = os.path.join(path, name), self._inode(number)
                if inode.is_directory:
                    with _reached(child_path) as reached:
                        os.mkdir(reached, 0o700)
                    pending.append((child_path, inode))
                    made.append((child_path, inode))
                else:
                    self._export_file(child_path, inode)
        for path, inode in reversed(made):
            with _reached(path) as reached:
                self._set_attributes(reached, inode)

    def _inode(self, number: InodeNumber) -> Inode:
        inode = self._catalog.inode(number)
        if inode is None:
            raise ExportFailed(self._volume.directory, f"inode {number} is missing; run `fusemirror fsck`")
        return inode

    def _export_file(self, path: bytes, inode: Inode) -> None:
        first_path = self._links.get(inode.number)
        with _reached(path) as reached:
            if first_path is None:
                self._make_file(reached, inode)
            else:
                with _reached(first_path) as first:
                    os.link(first, reached, follow_symlinks=False)
        if inode.nlink > 1:
            self._links.setdefault(inode.number, path)

    def _make_file(self, path: bytes, inode: Inode) -> None:
        if inode.is_regular:
            self._copy_data(path, inode)
        elif inode.is_symlink:
            os.symlink(inode.target, path)
        else:
            os.mknod(path, stat.S_IFMT(inode.mode) | 0o600, inode.rdev)
        self._set_attributes(path, inode)

    def _copy_data(self, path: bytes, inode: Inode) -> None:
        copy = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            for offset, length in self._volume.images.extents(inode.number, inode.size):
                for start in range(offset, offset + length, MIB):
                    piece = self._volume.images.read(inode.number, start, min(MIB, offset + length - start))
                    os.pwrite(copy, piece, start)
                    self._progress(self._done_bytes + start, self._total_bytes)
            os.ftruncate(copy, inode.size)
        finally:
            os.close(copy)
        self._done_bytes += inode.size
        self._progress(self._done_bytes, self._total_bytes)

    def _set_attributes(self, path: bytes, inode: Inode) -> None:
        """In this order: a new owner clears set-user-id bits and capabilities, a mode changes an ACL."""
        if os.geteuid() == 0:
            os.chown(path, inode.uid, inode.gid, follow_symlinks=False)
        if not inode.is_symlink:
            os.chmod(path, stat.S_IMODE(inode.mode))
        for name in filter(has_namespace, self._catalog.xattrs(inode.number)):
            value = self._catalog.xattr(inode.number, name) or b""
            try:
                os.setxattr(path, name, value, follow_symlinks=False)
            except OSError as error:
                what = f"the target cannot hold {os.fsdecode(name)} of {os.fsdecode(path)}: {error.strerror}"
                raise ExportFailed(self._volume.directory, f"{what}; choose another filesystem") from error
        os.utime(path, ns=(inode.atime_ns, inode.mtime_ns), follow_symlinks=False)


@contextmanager
def _reached(path: bytes) -> Iterator[bytes]:
    """A name for `path` that the kernel takes, however deep in the tree it lies."""
    if len(path) <= _PATH_BYTES:
        yield path
        return
    parent, name = os.path.split(path)
    directory = _opened(parent)
    try:
        yield b"/proc/self/fd/%d/%b" % (directory, name)
    finally:
        os.close(directory)


def _opened(path: bytes) -> int:
    """A descriptor of a directory, reached in steps."""
    begun = os.open(b"/" if path.startswith(b"/") else b".", os.O_PATH | os.O_DIRECTORY)
    rest = path.lstrip(b"/")
    while rest:
        end = len(rest) if len(rest) <= _PATH_BYTES else rest.rindex(b"/", 0, _PATH_BYTES)
        step, rest = rest[:end], rest[end:].lstrip(b"/")
        try:
            reached = os.open(step, os.O_PATH | os.O_DIRECTORY, dir_fd=begun)
        finally:
            os.close(begun)
        begun = reached
    return begun


def _names(catalog: Catalog, directory: InodeNumber) -> Iterator[tuple[bytes, InodeNumber]]:
    after = 0
    while listing := catalog.listing(directory, after, _NAMES_PER_TURN):
        for _, name, entry in listing:
            yield name, entry.inode
        after = listing[-1][0]
