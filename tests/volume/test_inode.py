import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.volume.inode import ROW_BYTES_MIN, Inode

_U32 = st.integers(0, (1 << 32) - 1)
_U64 = st.integers(0, (1 << 64) - 1)
_TIME = st.integers(-(1 << 63), (1 << 63) - 1)
_INODES = st.builds(
    Inode,
    number=_U64.map(InodeNumber),
    mode=_U32,
    nlink=_U32,
    uid=_U32,
    gid=_U32,
    rdev=_U64,
    birth_ns=_U64,
    size=_U64,
    atime_ns=_TIME,
    mtime_ns=_TIME,
    ctime_ns=_TIME,
    parent=_U64.map(InodeNumber),
    target=st.binary(max_size=100),
)


@given(inode=_INODES)
def test_an_inode_comes_back_from_its_row(inode: Inode) -> None:
    twin = Inode.unpack(inode.number, inode.pack())
    for name in Inode.__slots__:
        assert getattr(twin, name) == getattr(inode, name)


@pytest.mark.parametrize(
    ("mode", "rdev", "birth_ns"),
    [
        (0o100644, 0, 9),
        (0o040755, 0, 9),
        (0o120777, 0, 9),
        (0o010600, 0, 9),
        (0o020600, 5, None),
        (0o060600, 5, None),
    ],
)
def test_the_number_of_a_device_or_the_time_of_birth(mode: int, rdev: int, birth_ns: int | None) -> None:
    made = Inode(InodeNumber(2), mode, 1, 0, 0, 5, 0, 1, 1, 1, birth_ns=9)
    assert (made.rdev, made.birth_ns) == (rdev, birth_ns)
    twin = Inode.unpack(made.number, made.pack())
    assert (twin.rdev, twin.birth_ns) == (rdev, birth_ns)


def test_what_an_earlier_version_made_has_no_time_of_birth() -> None:
    assert Inode(InodeNumber(2), 0o100644, 1, 0, 0, 0, 0, 1, 1, 1).birth_ns is None


@given(inode=_INODES, row=_INODES)
def test_loading_a_row_changes_everything_but_the_number(inode: Inode, row: Inode) -> None:
    number = inode.number
    inode.load(row.pack())
    assert inode.number == number
    assert inode.pack() == row.pack()


@given(row=st.binary(max_size=ROW_BYTES_MIN - 1))
def test_a_short_row_is_no_inode(row: bytes) -> None:
    with pytest.raises(struct.error):
        Inode.unpack(InodeNumber(1), row)


@given(inode=_INODES)
def test_a_copy_is_equal_and_apart(inode: Inode) -> None:
    inode.changed = ChangeNumber(7)
    copy = inode.copy()
    assert (copy.pack(), copy.changed) == (inode.pack(), 7)
    copy.size ^= 1
    assert copy.pack() != inode.pack()


@pytest.mark.parametrize(
    ("mode", "types"),
    [
        (0o040755, (True, False, False)),
        (0o100644, (False, True, False)),
        (0o120777, (False, False, True)),
        (0o010644, (False, False, False)),
    ],
)
def test_the_mode_tells_the_type(mode: int, types: tuple[bool, bool, bool]) -> None:
    inode = Inode(InodeNumber(1), mode, 2, 0, 0, 0, 0, 0, 0, 0)
    assert (inode.is_directory, inode.is_regular, inode.is_symlink) == types
