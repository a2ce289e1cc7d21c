"""pyfuse3's types as the kernel's structures; replies as a whole stand in test_server.py."""

import stat

import pyfuse3
import pytest

from fusemirror.filesystem.answers import Listing, attr_of, entry_of, open_flags_of
from fusemirror.kernel import codec


def some_entry() -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino, entry.generation = pyfuse3.InodeT(7), 3
    entry.entry_timeout, entry.attr_timeout = 0.5, 2.25
    entry.st_mode, entry.st_nlink = pyfuse3.ModeT(stat.S_IFREG | 0o640), 2
    entry.st_uid, entry.st_gid, entry.st_rdev = 1000, 1001, 5
    entry.st_size, entry.st_blksize, entry.st_blocks = 1 << 40, 4096, 8
    entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = -1, 1_500_000_000, 2_000_000_001
    return entry


def test_attributes() -> None:
    found = codec.Attr(*attr_of(some_entry()))
    assert (found.ino, found.size, found.blocks, found.blksize) == (7, 1 << 40, 8, 4096)
    assert (found.mode, found.nlink, found.uid, found.gid, found.rdev) == (0o100640, 2, 1000, 1001, 5)
    assert (found.atime, found.atimensec) == (-1, 999_999_999)
    assert (found.mtime, found.mtimensec, found.ctime, found.ctimensec) == (1, 500_000_000, 2, 1)


def test_an_entry() -> None:
    found = codec.EntryOut(*entry_of(some_entry())[:6])
    assert found == (7, 3, 0, 2, 500_000_000, 250_000_000)


@pytest.mark.parametrize(
    ("info", "flags"),
    [
        (pyfuse3.FileInfo(fh=1, direct_io=True, keep_cache=False), codec.FOPEN_DIRECT_IO),
        (pyfuse3.FileInfo(fh=1, direct_io=False, keep_cache=True), codec.FOPEN_KEEP_CACHE),
        (pyfuse3.FileInfo(fh=1, keep_cache=False, nonseekable=True), codec.FOPEN_NONSEEKABLE),
    ],
)
def test_how_a_file_is_open(info: pyfuse3.FileInfo, flags: int) -> None:
    assert open_flags_of(info) == flags


def test_a_listing_takes_what_fits() -> None:
    listing = Listing(2 * 160 + 100)  # a name takes 152 bytes and itself, to the next 8
    assert [listing.add(b"name", some_entry(), number) for number in (1, 2, 3)] == [True, True, False]
    found = list(codec.directory_entries(listing.data))
    assert [(name, dirent.off, dirent.type) for name, _, dirent in found] == [
        (b"name", 1, 8),
        (b"name", 2, 8),
    ]
