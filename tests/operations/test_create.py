"""Create: whose a new inode is, what it inherits, and what cannot be made."""

import errno
import stat

import pytest

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import NAME_BYTES_MAX, SYMLINK_BYTES_MAX
from fusemirror.operations import Create, Operation, SetXattr, acl
from tests.operations.conftest import (
    DIRECTORY,
    FILE,
    ROOT,
    SYMLINK,
    TOO_LONG,
    Decider,
    Examples,
    Tree,
    access_list,
    refused,
)

EXAMPLES: Examples = [
    (Create(InodeNumber(1), b"n", 0o020644, 1, 2, rdev=3, umask=0o22), "990301c4016ecd21a4010203c40012"),
    (Create(InodeNumber(1), b"new", 0o100644, 0, 0), "990301c4036e6577cd81a4000000c40000"),
    (Create(InodeNumber(1), b"node", 0o60644, 0, 0, rdev=77), "990301c4046e6f6465cd61a400004dc40000"),
    (
        Create(InodeNumber(1), b"link", 0o120777, 0, 0, target=b"file"),
        "990301c4046c696e6bcda1ff000000c40466696c6500",
    ),
    (Create(InodeNumber(3), b"dir", 0o40755, 0, 0), "990303c403646972cd41ed000000c40000"),
]

ERRORS = {
    "the name is there": (Create(ROOT, b"file", FILE, 0, 0), errno.EEXIST),
    "a directory has the name": (Create(ROOT, b"dir", DIRECTORY, 0, 0), errno.EEXIST),
    "the name is too long": (Create(ROOT, TOO_LONG, FILE, 0, 0), errno.ENAMETOOLONG),
    "no name": (Create(ROOT, b"", FILE, 0, 0), errno.EINVAL),
    "dot": (Create(ROOT, b".", DIRECTORY, 0, 0), errno.EINVAL),
    "dot dot": (Create(ROOT, b"..", DIRECTORY, 0, 0), errno.EINVAL),
    "symlink: the target is too long": (
        Create(ROOT, b"new", SYMLINK, 0, 0, target=b"t" * (SYMLINK_BYTES_MAX + 1)),
        errno.ENAMETOOLONG,
    ),
}


@pytest.mark.parametrize(("operation", "expected"), ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_has_its_errno_and_changes_nothing(
    decider: Decider, tree: Tree, operation: Operation, expected: int
) -> None:
    refused(decider, operation, expected)


@pytest.mark.parametrize("name", [b"n" * NAME_BYTES_MAX, b"\xff\xfe", b"...", b"-"])
def test_any_other_name_is_taken(decider: Decider, name: bytes) -> None:
    decider.create(name)
    assert decider.names() == [name]


def test_a_new_file_is_its_creators(decider: Decider) -> None:
    number = decider.create(b"file", stat.S_IFREG | 0o4640, uid=7, gid=8)
    inode = decider.inode(number)
    assert (inode.mode, inode.nlink, inode.uid, inode.gid, inode.size) == (0o104640, 1, 7, 8, 0)
    assert inode.atime_ns == inode.mtime_ns == inode.ctime_ns == decider.time_ns
    assert decider.inode(ROOT).mtime_ns == decider.inode(ROOT).ctime_ns == decider.time_ns


def test_a_symlink_is_as_long_as_its_target(decider: Decider) -> None:
    number = decider.do(Create(ROOT, b"link", SYMLINK, 0, 0, target=b"to/there")).inode
    assert (decider.inode(number).target, decider.inode(number).size) == (b"to/there", 8)


def test_a_device_keeps_its_number(decider: Decider) -> None:
    number = decider.do(Create(ROOT, b"null", stat.S_IFCHR | 0o666, 0, 0, rdev=0x103)).inode
    assert decider.inode(number).rdev == 0x103


def test_a_set_group_id_directory_gives_its_group_and_to_directories_the_bit(decider: Decider) -> None:
    shared = decider.create(b"shared", stat.S_IFDIR | stat.S_ISGID | 0o775, gid=50)
    file = decider.inode(decider.create(b"file", FILE, shared, uid=7, gid=8))
    inner = decider.inode(decider.create(b"inner", DIRECTORY, shared, uid=7, gid=8))
    assert (file.uid, file.gid, file.mode) == (7, 50, FILE)
    assert (inner.uid, inner.gid, inner.mode) == (7, 50, DIRECTORY | stat.S_ISGID)


def test_what_is_made_in_a_directory_inherits_its_default_list(decider: Decider) -> None:
    directory = decider.create(b"dir", DIRECTORY)
    default = access_list(7, 5, 5, mask=7)
    decider.do(SetXattr(directory, acl.DEFAULT, default))
    file = decider.create(b"file", stat.S_IFREG | 0o640, directory)
    inner = decider.create(b"inner", stat.S_IFDIR | 0o777, directory)
    link = decider.create(b"link", SYMLINK, directory)
    assert decider.inode(file).mode == stat.S_IFREG | 0o640
    assert decider.catalog.xattrs.value(file, acl.ACCESS) == access_list(6, 5, 0, mask=4)
    assert decider.catalog.xattrs.value(file, acl.DEFAULT) is None
    assert decider.catalog.xattrs.value(inner, acl.DEFAULT) == default
    assert decider.catalog.xattrs.names(link) == []


def test_a_default_list_stands_in_for_the_umask(decider: Decider) -> None:
    directory = decider.create(b"dir", DIRECTORY)
    decider.do(SetXattr(directory, acl.DEFAULT, access_list(7, 7, 0)))
    for parent, mode in ((directory, 0o660), (ROOT, 0o600)):
        made = decider.do(Create(parent, b"new", stat.S_IFREG | 0o666, 0, 0, umask=0o077)).inode
        assert decider.inode(made).mode == stat.S_IFREG | mode
    link = decider.do(Create(ROOT, b"link", SYMLINK, 0, 0, target=b"to", umask=0o077)).inode
    assert decider.inode(link).mode == SYMLINK


def test_a_minimal_default_list_limits_the_mode_alone(decider: Decider) -> None:
    directory = decider.create(b"dir", DIRECTORY)
    decider.do(SetXattr(directory, acl.DEFAULT, access_list(7, 5, 0)))
    file = decider.create(b"file", stat.S_IFREG | 0o666, directory)
    assert decider.inode(file).mode == stat.S_IFREG | 0o640
    assert decider.catalog.xattrs.names(file) == []


def test_where_the_name_is_there_nothing_of_it_is_touched(decider: Decider, tree: Tree) -> None:
    assert Create(ROOT, b"file", FILE, 0, 0).touched_names() == ((ROOT, b"file"),)
    assert not list(Create(ROOT, b"file", FILE, 0, 0).touched_inodes(decider.catalog))
