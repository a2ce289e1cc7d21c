"""What the kernel is told of an inode: everything, and that it may keep none of it."""

import pytest

from fusemirror.filesystem.attributes import BLOCK_BYTES, entry_attributes
from fusemirror.identifiers import InodeNumber
from fusemirror.volume.inode import Inode


def inode(size: int = 0) -> Inode:
    return Inode(
        number=InodeNumber(12),
        mode=0o020640,
        nlink=3,
        uid=4,
        gid=5,
        rdev=6,
        size=size,
        atime_ns=1_000_000_007,
        mtime_ns=-8,
        ctime_ns=2_000_000_009,
    )


def test_every_attribute_arrives_to_the_nanosecond() -> None:
    entry = entry_attributes(inode(size=10), 10)
    assert (entry.st_ino, entry.st_mode, entry.st_nlink) == (12, 0o020640, 3)
    assert (entry.st_uid, entry.st_gid, entry.st_rdev, entry.st_size) == (4, 5, 6, 10)
    assert (entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns) == (1_000_000_007, -8, 2_000_000_009)
    assert entry.st_blksize == BLOCK_BYTES


def test_the_kernel_keeps_neither_names_nor_attributes() -> None:
    entry = entry_attributes(inode(), 0)
    assert (entry.entry_timeout, entry.attr_timeout) == (0, 0)


def test_an_inode_number_is_never_used_again_so_its_generation_stays() -> None:
    assert entry_attributes(inode(), 0).generation == 0


@pytest.mark.parametrize(("allocated", "blocks"), [(0, 0), (1, 1), (512, 1), (513, 2), (1 << 40, 1 << 31)])
def test_blocks_count_begun_sectors_of_what_is_on_the_disk(allocated: int, blocks: int) -> None:
    assert entry_attributes(inode(size=5000), allocated).st_blocks == blocks
