"""What the tests of the volume share: a clock that only counts, and someone who makes changes."""

import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest

from fusemirror.change import (
    AllocateChange,
    CopyChange,
    NamespaceChange,
    Row,
    Table,
    TruncateChange,
    WriteChange,
)
from fusemirror.identifiers import NO_REQUEST, ROOT_INODE, ChangeNumber, InodeNumber, RequestId
from fusemirror.seams import Seams
from fusemirror.volume import check as check_module
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.check import check
from fusemirror.volume.entries import Entry, entry_key, inode_key, pack_entry, xattr_key
from fusemirror.volume.identity import Identity, KnownPeer
from fusemirror.volume.inode import Inode
from fusemirror.volume.probe import walk
from fusemirror.volume.volume import Volume
from fusemirror.xattrs import CAPABILITY

T = TypeVar("T")

ALPHA, BETA, GAMMA = KnownPeer("01", "alpha"), KnownPeer("02", "beta"), KnownPeer("03", "gamma")
IDENTITY = Identity(
    filesystem="aa" * 16,
    name="shared",
    host="01",
    host_name="alpha",
    peers=(BETA,),
    role="primary",
    complete=True,
    compare_all=False,
)


async def run_at_once(function: Callable[..., T], *args: Any) -> T:
    return function(*args)


def counting_seams() -> Seams:
    """Time that only counts, and no threads: the same run gives the same times."""
    ticks = itertools.count(1_000_000_000, 1000)
    return Seams(now_ns=lambda: next(ticks), run_blocking=run_at_once)


class Writer:
    """Makes changes as a primary does, each with the next number and time."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume

    @property
    def catalog(self) -> Any:
        return self.volume.catalog

    def namespace(self, *rows: Row, request: RequestId = NO_REQUEST, inode: int = 0) -> None:
        number, time_ns = self._next()
        change = NamespaceChange(number, request, time_ns, InodeNumber(inode), rows)
        self.volume.apply(change, own=request == NO_REQUEST)

    def create(
        self, name: bytes, parent: InodeNumber = ROOT_INODE, mode: int = 0o100644, target: bytes = b""
    ) -> InodeNumber:
        number, time_ns = self._next()
        directory = self.inode(parent)
        directory.mtime_ns = directory.ctime_ns = time_ns
        is_directory = stat.S_ISDIR(mode)
        directory.nlink += is_directory
        inode = Inode(
            number=self.volume.catalog.next_inode,
            mode=mode,
            nlink=1 + is_directory,
            uid=0,
            gid=0,
            rdev=0,
            size=4096 if is_directory else len(target),
            atime_ns=time_ns,
            mtime_ns=time_ns,
            ctime_ns=time_ns,
            parent=parent if is_directory else InodeNumber(0),
            target=target,
        )
        rows = (put_inode(inode), put_inode(directory), put_name(parent, name, inode, number * 2))
        self.volume.apply(NamespaceChange(number, NO_REQUEST, time_ns, inode.number, rows), own=True)
        return inode.number

    def mkdir(self, name: bytes, parent: InodeNumber = ROOT_INODE) -> InodeNumber:
        return self.create(name, parent, 0o040755)

    def link(self, inode: InodeNumber, name: bytes, parent: InodeNumber = ROOT_INODE) -> None:
        linked = self.inode(inode)
        linked.nlink += 1
        cookie = (self.volume.number + 1) * 2
        self.namespace(put_inode(linked), put_name(parent, name, linked, cookie))

    def unlink(self, name: bytes, parent: InodeNumber = ROOT_INODE) -> None:
        entry = self.volume.catalog.entry(parent, name)
        assert entry is not None
        inode = self.inode(entry.inode)
        inode.nlink -= 1
        self.namespace(put_inode(inode), (Table.ENTRIES, entry_key(parent, name), None))

    def purge(self, inode: InodeNumber) -> None:
        self.namespace((Table.INODES, inode_key(inode), None))

    def rename(self, name: bytes, new_name: bytes, parent: InodeNumber = ROOT_INODE) -> None:
        entry = self.volume.catalog.entry(parent, name)
        assert entry is not None
        inode = self.inode(entry.inode)
        self.namespace(
            (Table.ENTRIES, entry_key(parent, name), None),
            put_name(parent, new_name, inode, (self.volume.number + 1) * 2),
        )

    def chmod(self, inode: InodeNumber, mode: int) -> None:
        changed = self.inode(inode)
        changed.mode = stat.S_IFMT(changed.mode) | mode
        changed.ctime_ns = self.volume.clock.next_ns()
        self.namespace(put_inode(changed))

    def set_xattr(self, inode: InodeNumber, name: bytes, value: bytes | None) -> None:
        self.namespace((Table.XATTRS, xattr_key(inode, name), value))

    def write(
        self, inode: InodeNumber, offset: int, data: bytes, request: bytes = NO_REQUEST
    ) -> ChangeNumber:
        number, time_ns = self._next()
        change = WriteChange(number, RequestId(request), time_ns, inode, offset, len(data))
        self.volume.apply(change, data, journal_request=request != NO_REQUEST, own=request == NO_REQUEST)
        return number

    def write_program(self, inode: InodeNumber, offset: int, data: bytes) -> ChangeNumber:
        """A write that ends the privileges of the file, as rows of the same change."""
        number, time_ns = self._next()
        after = self.inode(inode)
        after.mode &= ~0o6000
        after.size = max(after.size, offset + len(data))
        after.mtime_ns = after.ctime_ns = time_ns
        rows = (put_inode(after), (Table.XATTRS, xattr_key(inode, CAPABILITY), None))
        change = WriteChange(number, NO_REQUEST, time_ns, inode, offset, len(data), rows)
        self.volume.apply(change, data, own=True)
        return number

    def truncate(self, inode: InodeNumber, size: int, request: bytes = NO_REQUEST) -> ChangeNumber:
        number, time_ns = self._next()
        change = TruncateChange(number, RequestId(request), time_ns, inode, size)
        self.volume.apply(change, journal_request=request != NO_REQUEST, own=request == NO_REQUEST)
        return number

    def allocate(
        self, inode: InodeNumber, offset: int, end: int, mode: int, request: bytes = NO_REQUEST
    ) -> ChangeNumber:
        number, time_ns = self._next()
        change = AllocateChange(number, RequestId(request), time_ns, inode, offset, end, mode)
        self.volume.apply(change, journal_request=request != NO_REQUEST, own=request == NO_REQUEST)
        return number

    def copy(
        self,
        inode: InodeNumber,
        offset: int,
        end: int,
        source: InodeNumber,
        source_offset: int,
        request: bytes = NO_REQUEST,
    ) -> ChangeNumber:
        number, time_ns = self._next()
        change = CopyChange(number, RequestId(request), time_ns, inode, offset, end, source, source_offset)
        self.volume.apply(change, journal_request=request != NO_REQUEST, own=request == NO_REQUEST)
        return number

    def inode(self, number: InodeNumber) -> Inode:
        inode = self.volume.catalog.inode(number)
        assert inode is not None
        return inode.copy()

    def content(self, number: InodeNumber) -> bytes:
        return self.volume.read(number, 0, 1 << 40)

    def _next(self) -> tuple[ChangeNumber, int]:
        return ChangeNumber(self.volume.number + 1), self.volume.clock.next_ns()


def put_inode(inode: Inode) -> Row:
    return Table.INODES, inode_key(inode.number), inode.pack()


def put_name(parent: InodeNumber, name: bytes, inode: Inode, cookie: int) -> Row:
    entry = Entry(inode.number, stat.S_IFMT(inode.mode) >> 12, cookie)
    return Table.ENTRIES, entry_key(parent, name), pack_entry(entry)


def inode_count(catalog: Catalog) -> int:
    return int(catalog._store.txn.stat(catalog._store.inodes)["entries"])


def rows_of(volume: Volume) -> dict[tuple[int, bytes], bytes]:
    """Every row of the catalog, with the newest attributes."""
    return {
        (table, key): row for table in Table for key, row in volume.catalog.tables.rows(table, None, 1 << 30)
    }


def contents_of(volume: Volume) -> dict[InodeNumber, bytes]:
    return {
        inode.number: volume.read(inode.number, 0, inode.size)
        for inode in volume.catalog.tables.inodes()
        if inode.is_regular
    }


def problems_of(directory: Path) -> list[str]:
    """What `check` finds in a volume that should be whole.

    The catalog is walked in this process: one of its own, which may end over a damaged one, takes longer
    than most tests.
    """
    problems: list[str] = []
    with mock.patch.object(check_module, "is_readable", _is_readable):
        check(directory, repair=False, report=problems.append)
    return problems


def _is_readable(directory: Path) -> bool:
    walk(str(directory))
    return True


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Of an empty volume, which must be whole at the end."""
    path = tmp_path / "volume"
    Volume.create(path, IDENTITY)
    yield path
    assert not problems_of(path)


@pytest.fixture
def volume(directory: Path) -> Iterator[Volume]:
    opened = Volume.open(directory, counting_seams())
    yield opened
    opened.close()


@pytest.fixture
def writer(volume: Volume) -> Writer:
    return Writer(volume)


def broken_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a write writes ten bytes only, and no file can be cut."""
    real_write = os.write

    def failing(*_arguments: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "write", lambda descriptor, data: real_write(descriptor, data[:10]))
    monkeypatch.setattr(os, "ftruncate", failing)
