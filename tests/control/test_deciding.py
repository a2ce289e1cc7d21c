"""Decisions against a real catalog: the errno of each system call, and what becomes of names and links.

The last part compares random operations with a filesystem of plain dicts that knows no catalog.
"""

import errno
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fusemirror.change import COOKIES_PER_CHANGE, Table, first_cookie
from fusemirror.control import acl, deciding
from fusemirror.control.acl import GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, AclEntry
from fusemirror.control.deciding import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Decision,
    decide,
    end_privileges,
    has_privileges,
    purge_rows,
)
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import ROOT_INODE, ChangeNumber, InodeNumber
from fusemirror.limits import LINKS_MAX, NAME_BYTES_MAX, SYMLINK_BYTES_MAX, XATTR_VALUE_BYTES_MAX
from fusemirror.operations import (
    Create,
    Link,
    Operation,
    RemoveDirectory,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetXattr,
    Unlink,
)
from fusemirror.volume.catalog import Catalog, inode_key, key_inode
from fusemirror.volume.inode import Inode
from fusemirror.xattrs import CAPABILITY

FILE, DIRECTORY, SYMLINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
NOWHERE = InodeNumber(999_999)
TOO_LONG = b"n" * (NAME_BYTES_MAX + 1)


class Decider:
    """Decides and applies, each operation with the next number and time, as the primary does."""

    def __init__(self, directory: Path) -> None:
        Catalog.create(directory / "catalog")
        self.catalog = Catalog(directory / "catalog")
        self.number = ChangeNumber(0)

    @property
    def time_ns(self) -> int:
        return 1_000_000 + self.number

    def do(self, operation: Operation) -> Decision:
        decision = decide(self.catalog, operation, ChangeNumber(self.number + 1), self.time_ns + 1)
        self.number = ChangeNumber(self.number + 1)
        self.catalog.apply_rows(decision.rows, self.number)
        return decision

    def create(
        self,
        name: bytes,
        mode: int = FILE,
        parent: InodeNumber = ROOT_INODE,
        *,
        uid: int = 0,
        gid: int = 0,
    ) -> InodeNumber:
        return self.do(Create(parent, name, mode, uid, gid)).inode

    def inode(self, number: InodeNumber) -> Inode:
        inode = self.catalog.inode(number)
        assert inode is not None
        return inode

    def names(self, directory: InodeNumber = ROOT_INODE) -> list[bytes]:
        """In the order of a listing."""
        return [name for _, name, _ in self.catalog.listing(directory, 0, 1000)]

    def rows(self) -> dict[tuple[int, bytes], bytes]:
        """All of them; what is kept in memory must say the same."""
        for key, row in self.catalog.rows(Table.INODES, None, 1 << 20):
            assert self.inode(key_inode(key)).pack() == row
        return {(table, key): row for table in Table for key, row in self.catalog.rows(table, None, 1 << 20)}


class Tree:
    """`dir/inner`, `file`, an empty directory, and two inodes that have lost their names."""

    def __init__(self, decider: Decider) -> None:
        self.directory = decider.create(b"dir", DIRECTORY)
        self.inner = decider.create(b"inner", parent=self.directory)
        self.file = decider.create(b"file")
        self.empty = decider.create(b"empty", DIRECTORY)
        self.removed = decider.create(b"removed", DIRECTORY)
        decider.do(RemoveDirectory(ROOT_INODE, b"removed"))
        self.unlinked = decider.create(b"unlinked")
        decider.do(Unlink(ROOT_INODE, b"unlinked"))


@pytest.fixture
def decider(tmp_path: Path) -> Iterator[Decider]:
    made = Decider(tmp_path)
    yield made
    assert not made.catalog.derived_rows_wrong()
    made.catalog.close()


@pytest.fixture
def tree(decider: Decider) -> Tree:
    return Tree(decider)


# --- errors -----------------------------------------------------------------------------------------------

PLACES = {
    # (the attribute of Tree, or an inode): what using it as a directory gives
    "file": errno.ENOTDIR,
    "removed": errno.ENOENT,
    "nowhere": errno.ESTALE,
}


def place(tree: Tree, name: str) -> InodeNumber:
    number: InodeNumber = NOWHERE if name == "nowhere" else getattr(tree, name)
    return number


@pytest.mark.parametrize(("where", "expected"), PLACES.items(), ids=PLACES)
def test_what_is_no_directory_takes_and_gives_no_names(
    decider: Decider, tree: Tree, where: str, expected: int
) -> None:
    parent = place(tree, where)
    operations = [
        Create(parent, b"new", FILE, 0, 0),
        Link(tree.file, parent, b"new"),
        Unlink(parent, b"file"),
        RemoveDirectory(parent, b"dir"),
        Rename(parent, b"file", ROOT_INODE, b"new"),
        Rename(ROOT_INODE, b"file", parent, b"new"),
    ]
    for operation in operations:
        with pytest.raises(OperationFailed) as caught:
            decider.do(operation)
        assert caught.value.errno == expected, operation


ROOT = ROOT_INODE
ERRORS = {
    "create: the name is there": (Create(ROOT, b"file", FILE, 0, 0), errno.EEXIST),
    "create: a directory has the name": (Create(ROOT, b"dir", DIRECTORY, 0, 0), errno.EEXIST),
    "create: the name is too long": (Create(ROOT, TOO_LONG, FILE, 0, 0), errno.ENAMETOOLONG),
    "create: no name": (Create(ROOT, b"", FILE, 0, 0), errno.EINVAL),
    "create: dot": (Create(ROOT, b".", DIRECTORY, 0, 0), errno.EINVAL),
    "create: dot dot": (Create(ROOT, b"..", DIRECTORY, 0, 0), errno.EINVAL),
    "symlink: the target is too long": (
        Create(ROOT, b"new", SYMLINK, 0, 0, target=b"t" * (SYMLINK_BYTES_MAX + 1)),
        errno.ENAMETOOLONG,
    ),
    "link: the name is there": (Link(InodeNumber(4), ROOT, b"dir"), errno.EEXIST),
    "link: the name is too long": (Link(InodeNumber(4), ROOT, TOO_LONG), errno.ENAMETOOLONG),
    "link: to a directory": (Link(InodeNumber(2), ROOT, b"new"), errno.EPERM),
    "link: to an inode that is gone": (Link(NOWHERE, ROOT, b"new"), errno.ESTALE),
    "link: to an inode without names": (Link(InodeNumber(7), ROOT, b"new"), errno.ENOENT),
    "unlink: no such name": (Unlink(ROOT, b"none"), errno.ENOENT),
    "unlink: a name longer than any": (Unlink(ROOT, TOO_LONG), errno.ENOENT),
    "unlink: a directory": (Unlink(ROOT, b"empty"), errno.EISDIR),
    "rmdir: another directory than expected": (RemoveDirectory(ROOT, b"dir", ROOT), errno.ESTALE),
    "rename: another directory than expected": (Rename(ROOT, b"file", ROOT, b"new", 0, ROOT), errno.ESTALE),
    "rmdir: no such name": (RemoveDirectory(ROOT, b"none"), errno.ENOENT),
    "rmdir: a file": (RemoveDirectory(ROOT, b"file"), errno.ENOTDIR),
    "rmdir: not empty": (RemoveDirectory(ROOT, b"dir"), errno.ENOTEMPTY),
    "rename: no such name": (Rename(ROOT, b"none", ROOT, b"new"), errno.ENOENT),
    "rename: the old name is too long": (Rename(ROOT, TOO_LONG, ROOT, b"new"), errno.ENAMETOOLONG),
    "rename: the new name is too long": (Rename(ROOT, b"file", ROOT, TOO_LONG), errno.ENAMETOOLONG),
    "rename: dot": (Rename(ROOT, b".", ROOT, b"new"), errno.EINVAL),
    "rename: to dot dot": (Rename(ROOT, b"dir", ROOT, b".."), errno.EINVAL),
    "rename: flags that nobody knows": (Rename(ROOT, b"file", ROOT, b"new", 4), errno.EINVAL),
    "rename: both flags": (Rename(ROOT, b"file", ROOT, b"new", 3), errno.EINVAL),
    "rename: a file over a directory": (Rename(ROOT, b"file", ROOT, b"empty"), errno.EISDIR),
    "rename: a directory over a file": (Rename(ROOT, b"empty", ROOT, b"file"), errno.ENOTDIR),
    "rename: over a directory with names": (Rename(ROOT, b"empty", ROOT, b"dir"), errno.ENOTEMPTY),
    "rename: a directory into itself": (Rename(ROOT, b"dir", InodeNumber(2), b"new"), errno.EINVAL),
    "rename without replacing: the name is there": (
        Rename(ROOT, b"file", ROOT, b"empty", RENAME_NOREPLACE),
        errno.EEXIST,
    ),
    "exchange: no such new name": (Rename(ROOT, b"file", ROOT, b"none", RENAME_EXCHANGE), errno.ENOENT),
    "exchange: a directory with what is in it": (
        Rename(ROOT, b"dir", InodeNumber(2), b"inner", RENAME_EXCHANGE),
        errno.EINVAL,
    ),
    "exchange: what is in a directory with it": (
        Rename(InodeNumber(2), b"inner", ROOT, b"dir", RENAME_EXCHANGE),
        errno.EINVAL,
    ),
    "attributes: of an inode that is gone": (SetAttributes(NOWHERE, mode=0), errno.ESTALE),
    "xattr: of an inode that is gone": (SetXattr(NOWHERE, b"user.a", b""), errno.ESTALE),
    "xattr: the name is too long": (SetXattr(ROOT, TOO_LONG, b""), errno.ERANGE),
    "xattr: the value is too long": (
        SetXattr(ROOT, b"user.a", bytes(XATTR_VALUE_BYTES_MAX + 1)),
        errno.E2BIG,
    ),
    "xattr: no access list": (SetXattr(ROOT, acl.ACCESS, b"nonsense"), errno.EINVAL),
    "xattr: no default list": (SetXattr(ROOT, acl.DEFAULT, b"nonsense"), errno.EINVAL),
    "xattr: a default list of a file": (SetXattr(InodeNumber(4), acl.DEFAULT, b""), errno.EACCES),
    "xattr: of no namespace": (SetXattr(ROOT, b"system.a", b""), errno.EOPNOTSUPP),
    "xattr: a bare prefix": (SetXattr(ROOT, b"user.", b""), errno.EINVAL),
    "xattr: removed, of no namespace": (RemoveXattr(ROOT, b"system.a"), errno.EOPNOTSUPP),
    "xattr: removed but not there": (RemoveXattr(ROOT, b"user.a"), errno.ENODATA),
    "xattr: removed from an inode that is gone": (RemoveXattr(NOWHERE, b"user.a"), errno.ESTALE),
}


@pytest.mark.parametrize(("operation", "expected"), ERRORS.values(), ids=ERRORS)
def test_an_operation_that_cannot_be_has_its_errno_and_changes_nothing(
    decider: Decider, tree: Tree, operation: Operation, expected: int
) -> None:
    assert (tree.directory, tree.file, tree.unlinked) == (2, 4, 7), "the operations above name them"
    before = decider.rows()
    with pytest.raises(OperationFailed) as caught:
        decider.do(operation)
    assert caught.value.errno == expected
    assert decider.rows() == before


def test_a_file_has_no_more_links_than_the_limit(decider: Decider) -> None:
    file = decider.create(b"file")
    inode = decider.inode(file).copy()
    inode.nlink = LINKS_MAX - 1
    decider.catalog.apply_rows([(Table.INODES, inode_key(file), inode.pack())])
    decider.do(Link(file, ROOT, b"last"))
    with pytest.raises(OperationFailed) as caught:
        decider.do(Link(file, ROOT, b"one too many"))
    assert caught.value.errno == errno.EMLINK


@pytest.mark.parametrize("name", [b"n" * NAME_BYTES_MAX, b"\xff\xfe", b"...", b"-"])
def test_any_other_name_is_taken(decider: Decider, name: bytes) -> None:
    decider.create(name)
    assert decider.names() == [name]


# --- effects ----------------------------------------------------------------------------------------------


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


def test_a_sticky_directory_is_the_kernels_business(decider: Decider) -> None:
    """The kernel has checked who asks (`default_permissions`); an operation does not say."""
    sticky = decider.create(b"tmp", stat.S_IFDIR | 0o1777)
    decider.create(b"file", FILE, sticky, uid=7)
    decider.do(Rename(sticky, b"file", sticky, b"moved"))
    decider.do(Unlink(sticky, b"moved"))
    assert not decider.names(sticky)
    assert decider.inode(sticky).mode & stat.S_ISVTX


def test_directories_count_the_directories_in_them(decider: Decider) -> None:
    one, other = decider.create(b"one", DIRECTORY), decider.create(b"other", DIRECTORY)
    child = decider.create(b"child", DIRECTORY, one)

    def counts() -> list[int]:
        return [decider.inode(number).nlink for number in (ROOT, one, other, child)]

    assert counts() == [4, 3, 2, 2]
    decider.do(Rename(one, b"child", other, b"child"))
    assert counts() == [4, 2, 3, 2]
    assert decider.inode(child).parent == other
    decider.do(Rename(other, b"child", ROOT, b"one"))  # over an empty one
    assert counts() == [4, 0, 2, 2]
    decider.do(RemoveDirectory(ROOT, b"one"))
    assert counts() == [3, 0, 2, 0]
    assert decider.catalog.orphans() == [one, child]


def test_a_rename_over_a_file_takes_one_link_of_it(decider: Decider) -> None:
    old, new = decider.create(b"old"), decider.create(b"new")
    decider.do(Link(new, ROOT, b"second"))
    decider.do(Rename(ROOT, b"old", ROOT, b"new"))
    assert decider.names() == [b"new", b"second"]
    assert (decider.inode(old).nlink, decider.inode(new).nlink) == (1, 1)
    assert decider.inode(new).ctime_ns == decider.time_ns


def test_a_rename_between_two_names_of_one_file_changes_nothing(decider: Decider) -> None:
    file = decider.create(b"file")
    decider.do(Link(file, ROOT, b"second"))
    decision = decider.do(Rename(ROOT, b"file", ROOT, b"second"))
    assert decision == Decision((), file, ())
    assert decider.names() == [b"file", b"second"]


def test_an_exchange_moves_a_directory_and_a_file_at_once(decider: Decider) -> None:
    outer = decider.create(b"outer", DIRECTORY)
    directory, file = decider.create(b"dir", DIRECTORY, outer), decider.create(b"file")
    decider.do(Rename(outer, b"dir", ROOT, b"file", RENAME_EXCHANGE))
    found = [decider.catalog.listing(number, 0, 10)[-1] for number in (ROOT, outer)]
    assert [(name, entry.inode) for _, name, entry in found] == [(b"file", directory), (b"dir", file)]
    assert found[0][0] != found[1][0], "each name has a cookie of its own"
    assert decider.inode(directory).parent == ROOT
    assert [decider.inode(number).nlink for number in (ROOT, outer, directory, file)] == [4, 2, 2, 1]


def test_a_directory_may_not_move_below_itself_however_deep(decider: Decider) -> None:
    chain = [decider.create(b"0", DIRECTORY)]
    for depth in range(1, 5):
        chain.append(decider.create(b"%d" % depth, DIRECTORY, chain[-1]))
    for below in chain:
        with pytest.raises(OperationFailed) as caught:
            decider.do(Rename(ROOT, b"0", below, b"loop"))
        assert caught.value.errno == errno.EINVAL
    decider.do(Rename(chain[3], b"4", ROOT, b"up"))


def test_only_the_attributes_that_were_named_change(decider: Decider) -> None:
    file = decider.create(b"file", uid=1, gid=2)
    decider.do(SetAttributes(file, mode=0o100600))
    decider.do(SetAttributes(file, gid=3))
    decider.do(SetAttributes(file, atime_ns=5))
    inode = decider.inode(file)
    assert (inode.mode, inode.uid, inode.gid, inode.atime_ns) == (0o100600, 1, 3, 5)
    assert inode.ctime_ns == decider.time_ns > inode.mtime_ns


PROGRAM = stat.S_IFREG | 0o6755


@pytest.mark.parametrize("operation", [{"uid": 0}, {"gid": 5}, {"uid": 1, "mode": 0o6755}])
def test_a_new_owner_ends_privileges(decider: Decider, operation: dict[str, int]) -> None:
    file = decider.create(b"file", PROGRAM)
    decider.do(SetXattr(file, CAPABILITY, b"value"))
    decider.do(SetAttributes(file, **operation))  # type: ignore[arg-type]
    assert decider.inode(file).mode == stat.S_IFREG | 0o755
    assert decider.catalog.xattrs(file) == []


def test_a_directory_keeps_its_bits_with_a_new_owner(decider: Decider) -> None:
    directory = decider.create(b"dir", stat.S_IFDIR | 0o6755)
    decider.do(SetAttributes(directory, uid=5))
    assert decider.inode(directory).mode == stat.S_IFDIR | 0o6755


def test_set_group_id_of_a_file_that_the_group_cannot_run_stays(decider: Decider) -> None:
    file = decider.create(b"file", stat.S_IFREG | 0o6705)
    assert has_privileges(decider.catalog, decider.inode(file), clear_set_id=True)
    decider.catalog.apply_rows(end_privileges(decider.catalog, file, 7, clear_set_id=True))
    assert decider.inode(file).mode == stat.S_IFREG | 0o2705
    assert not has_privileges(decider.catalog, decider.inode(file), clear_set_id=True)


def test_a_chmod_never_changes_the_type(decider: Decider) -> None:
    file = decider.create(b"file")
    decider.do(SetAttributes(file, mode=stat.S_IFDIR | 0o7777))
    assert decider.inode(file).mode == stat.S_IFREG | 0o7777


def test_an_attribute_set_again_is_replaced_and_removed(decider: Decider) -> None:
    file = decider.create(b"file")
    for value in (b"", b"one", bytes(XATTR_VALUE_BYTES_MAX)):
        decider.do(SetXattr(file, b"user.a", value))
        assert decider.catalog.xattr(file, b"user.a") == value
    decider.do(RemoveXattr(file, b"user.a"))
    assert decider.catalog.xattrs(file) == []
    assert decider.inode(file).ctime_ns == decider.time_ns


# --- access lists -----------------------------------------------------------------------------------------


def entries(user: int, group: int, other: int, *, mask: int | None = None) -> bytes:
    """A list as the kernel writes it; with a mask, user 1000 may read and write."""
    nobody = 0xFFFFFFFF
    made = [
        AclEntry(USER_OBJ, user, nobody),
        AclEntry(GROUP_OBJ, group, nobody),
        AclEntry(OTHER, other, nobody),
    ]
    if mask is not None:
        made[1:1] = [AclEntry(USER, 6, 1000)]
        made[3:3] = [AclEntry(MASK, mask, nobody)]
    return acl.encode(made)


def test_an_access_list_shows_in_the_mode(decider: Decider) -> None:
    file = decider.create(b"file")
    decider.do(SetXattr(file, acl.ACCESS, entries(7, 4, 1, mask=6)))
    assert decider.inode(file).mode == stat.S_IFREG | 0o761
    assert decider.catalog.xattr(file, acl.ACCESS) == entries(7, 4, 1, mask=6)


def test_an_access_list_that_is_just_a_mode_is_not_kept(decider: Decider) -> None:
    file = decider.create(b"file")
    decider.do(SetXattr(file, acl.ACCESS, entries(7, 4, 1, mask=6)))
    decider.do(SetXattr(file, acl.ACCESS, entries(6, 4, 0)))
    assert decider.inode(file).mode == stat.S_IFREG | 0o640
    assert decider.catalog.xattrs(file) == []


def test_a_chmod_changes_the_access_list_too(decider: Decider) -> None:
    file = decider.create(b"file")
    decider.do(SetXattr(file, acl.ACCESS, entries(7, 4, 1, mask=6)))
    decider.do(SetAttributes(file, mode=0o640))
    assert decider.catalog.xattr(file, acl.ACCESS) == entries(6, 4, 0, mask=4)


def test_what_is_made_in_a_directory_inherits_its_default_list(decider: Decider) -> None:
    directory = decider.create(b"dir", DIRECTORY)
    default = entries(7, 5, 5, mask=7)
    decider.do(SetXattr(directory, acl.DEFAULT, default))
    file = decider.create(b"file", stat.S_IFREG | 0o640, directory)
    inner = decider.create(b"inner", stat.S_IFDIR | 0o777, directory)
    link = decider.create(b"link", SYMLINK, directory)
    assert decider.inode(file).mode == stat.S_IFREG | 0o640
    assert decider.catalog.xattr(file, acl.ACCESS) == entries(6, 5, 0, mask=4)
    assert decider.catalog.xattr(file, acl.DEFAULT) is None
    assert decider.catalog.xattr(inner, acl.DEFAULT) == default
    assert decider.catalog.xattrs(link) == []


def test_a_time_that_no_inode_can_hold_becomes_the_nearest(decider: Decider) -> None:
    file = decider.create(b"file", FILE)
    decider.do(SetAttributes(file, atime_ns=-(1 << 70), mtime_ns=1 << 70))
    assert (decider.inode(file).atime_ns, decider.inode(file).mtime_ns) == (-(1 << 63), (1 << 63) - 1)


def test_a_default_list_stands_in_for_the_umask(decider: Decider) -> None:
    directory = decider.create(b"dir", DIRECTORY)
    decider.do(SetXattr(directory, acl.DEFAULT, entries(7, 7, 0)))
    for parent, mode in ((directory, 0o660), (ROOT, 0o600)):
        made = decider.do(Create(parent, b"new", stat.S_IFREG | 0o666, 0, 0, umask=0o077)).inode
        assert decider.inode(made).mode == stat.S_IFREG | mode
    link = decider.do(Create(ROOT, b"link", SYMLINK, 0, 0, target=b"to", umask=0o077)).inode
    assert decider.inode(link).mode == SYMLINK


def test_a_minimal_default_list_limits_the_mode_alone(decider: Decider) -> None:
    directory = decider.create(b"dir", DIRECTORY)
    decider.do(SetXattr(directory, acl.DEFAULT, entries(7, 5, 0)))
    file = decider.create(b"file", stat.S_IFREG | 0o666, directory)
    assert decider.inode(file).mode == stat.S_IFREG | 0o640
    assert decider.catalog.xattrs(file) == []


def test_a_directory_goes_nowhere_so_deep_that_it_takes_too_long_to_look_up_from_there(
    decider: Decider, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tree.directory
    for _ in range(6):
        parent = decider.do(Create(parent, b"deeper", 0o040755, 0, 0)).inode
    moved = decider.do(Create(ROOT, b"moved", 0o040755, 0, 0)).inode
    monkeypatch.setattr(deciding, "ANCESTORS_MAX", 3)
    decider.do(Rename(ROOT, b"moved", ROOT, b"still here"))
    with pytest.raises(OperationFailed) as caught:
        decider.do(Rename(ROOT, b"still here", parent, b"moved"))
    assert caught.value.errno == errno.ELOOP
    monkeypatch.undo()
    decider.do(Rename(ROOT, b"still here", parent, b"moved"))
    assert decider.inode(moved).parent == parent


# --- what a decision tells ---------------------------------------------------------------------------------


def test_a_decision_names_every_inode_and_name_that_it_touches(decider: Decider, tree: Tree) -> None:
    root, directory, file = ROOT, tree.directory, tree.file
    created = decider.do(Create(directory, b"new", FILE, 0, 0))
    assert set(created.keys) == {directory, created.inode, (directory, b"new")}
    assert set(decider.do(Link(file, directory, b"l")).keys) == {file, directory, (directory, b"l")}
    assert set(decider.do(Unlink(directory, b"l")).keys) == {file, directory, (directory, b"l")}
    over = decider.do(Rename(root, b"file", directory, b"inner"))
    assert set(over.keys) == {root, directory, file, tree.inner, (root, b"file"), (directory, b"inner")}
    assert set(decider.do(SetAttributes(file, mode=0)).keys) == {file}
    assert set(decider.do(SetXattr(file, b"user.a", b"")).keys) == {file}


def test_a_purge_takes_the_attributes_with_the_inode(decider: Decider, tree: Tree) -> None:
    before = decider.rows()
    for name in (b"user.a", b"user.b"):
        decider.do(SetXattr(tree.unlinked, name, b"value"))
    decider.catalog.apply_rows(purge_rows(decider.catalog, [tree.unlinked, tree.removed]))
    gone = {(Table.INODES, inode_key(number)) for number in (tree.unlinked, tree.removed)}
    assert decider.rows() == {key: row for key, row in before.items() if key not in gone}
    assert not decider.catalog.orphans()


# --- a filesystem of plain dicts --------------------------------------------------------------------------


class Node:
    """What a person would say of a file: its kind, its attributes, and what is in it."""

    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.names: dict[bytes, int] = {}
        self.xattrs: dict[bytes, bytes] = {}
        self.removed = False

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


NAMES = st.sampled_from((b"a", b"b", b"c", b"d"))
PLACE = st.integers(0, 7)  # among the inodes that are, ever were, or never will be
ODD_NAMES = st.one_of(NAMES, NAMES, NAMES, st.sampled_from((b"", b".", b"..", TOO_LONG)))


class Filesystem(RuleBasedStateMachine):
    """Every rule says first which errors are right; without one the operation must succeed."""

    @initialize()
    def begin(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.decider = Decider(Path(self.directory.name))
        self.nodes = {int(ROOT_INODE): Node(DIRECTORY)}
        self.newest_cookie = 0
        self.last_inode = int(ROOT_INODE)

    def teardown(self) -> None:
        if hasattr(self, "decider"):
            self.decider.catalog.close()
            self.directory.cleanup()

    # --- what the plain filesystem knows ---

    def pick(self, place: int) -> InodeNumber:
        """The newest inodes most of the time; 0 is the root, 7 none at all."""
        candidates = [int(ROOT_INODE), *list(self.nodes)[-6:]]
        return InodeNumber(candidates[place] if place < len(candidates) else NOWHERE)

    def wrong_directory(self, number: int) -> set[int]:
        node = self.nodes.get(number)
        if node is None:
            return {errno.ESTALE}
        if not node.is_directory:
            return {errno.ENOTDIR}
        return {errno.ENOENT} if node.removed else set()

    def wrong_name(self, name: bytes) -> set[int]:
        if len(name) > NAME_BYTES_MAX:
            return {errno.ENAMETOOLONG}
        return {errno.EINVAL} if name in (b"", b".", b"..") else set()

    def child(self, parent: int, name: bytes) -> int | None:
        return self.nodes[parent].names.get(name) if parent in self.nodes else None

    def links(self, number: int) -> int:
        node = self.nodes[number]
        if not node.is_directory:
            return sum(list(other.names.values()).count(number) for other in self.nodes.values())
        if node.removed:
            return 0
        return 2 + sum(self.nodes[child].is_directory for child in node.names.values())

    def holds(self, directory: int, number: int) -> bool:
        """Whether `number` is `directory` or somewhere below it."""
        below = self.nodes[directory].names.values()
        return directory == number or any(self.holds(child, number) for child in below)

    def attempt(self, operation: Operation, errors: set[int]) -> InodeNumber | None:
        """Do it; the inode, or None where it failed with one of the errors, as it must."""
        if not errors:
            return self.decider.do(operation).inode
        with pytest.raises(OperationFailed) as caught:
            self.decider.do(operation)
        assert caught.value.errno in errors, operation
        return None

    # --- operations ---

    @rule(place=PLACE, name=ODD_NAMES, mode=st.sampled_from((FILE, DIRECTORY, SYMLINK)))
    def create(self, place: int, name: bytes, mode: int) -> None:
        parent = self.pick(place)
        errors = self.wrong_directory(parent) | self.wrong_name(name)
        if self.child(parent, name) is not None:
            errors |= {errno.EEXIST}
        number = self.attempt(Create(parent, name, mode, 0, 0), errors)
        if number is not None:
            assert number > self.last_inode, "inode numbers are never used again"
            self.last_inode = number
            inherited = self.nodes[parent].mode & stat.S_ISGID if stat.S_ISDIR(mode) else 0
            self.nodes[number] = Node(mode | inherited)
            self.nodes[parent].names[name] = number

    @rule(place=PLACE, linked=PLACE, name=ODD_NAMES)
    def link(self, place: int, linked: int, name: bytes) -> None:
        parent, number = self.pick(place), self.pick(linked)
        errors = self.wrong_directory(parent) | self.wrong_name(name)
        node = self.nodes.get(number)
        if node is None:
            errors |= {errno.ESTALE}
        elif node.is_directory:
            errors |= {errno.EPERM}
        elif not self.links(number):
            errors |= {errno.ENOENT}
        if self.child(parent, name) is not None:
            errors |= {errno.EEXIST}
        if self.attempt(Link(number, parent, name), errors) is not None:
            self.nodes[parent].names[name] = number

    @rule(place=PLACE, name=NAMES)
    def unlink(self, place: int, name: bytes) -> None:
        parent = self.pick(place)
        errors, child = self.wrong_directory(parent), self.child(parent, name)
        if child is None:
            errors |= {errno.ENOENT} if not errors else set()
        elif self.nodes[child].is_directory:
            errors |= {errno.EISDIR}
        if self.attempt(Unlink(parent, name), errors) is not None:
            del self.nodes[parent].names[name]

    @rule(place=PLACE, name=NAMES)
    def remove_directory(self, place: int, name: bytes) -> None:
        parent = self.pick(place)
        errors, child = self.wrong_directory(parent), self.child(parent, name)
        if child is None:
            errors |= {errno.ENOENT} if not errors else set()
        elif not self.nodes[child].is_directory:
            errors |= {errno.ENOTDIR}
        elif self.nodes[child].names:
            errors |= {errno.ENOTEMPTY}
        if self.attempt(RemoveDirectory(parent, name), errors) is not None:
            self.nodes[self.nodes[parent].names.pop(name)].removed = True

    @rule(
        old=PLACE,
        name=ODD_NAMES,
        new=PLACE,
        new_name=ODD_NAMES,
        flags=st.sampled_from((0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, 4)),
    )
    def rename(self, old: int, name: bytes, new: int, new_name: bytes, flags: int) -> None:
        self.attempt_rename(self.pick(old), name, self.pick(new), new_name, flags)

    @rule(
        old=st.integers(0, 50),
        new=st.integers(0, 50),
        flags=st.sampled_from((0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_EXCHANGE)),
    )
    def rename_over(self, old: int, new: int, flags: int) -> None:
        """From a name that is there to a name that is there."""
        names = [(InodeNumber(parent), name) for parent, node in self.nodes.items() for name in node.names]
        if names:
            self.attempt_rename(*names[old % len(names)], *names[new % len(names)], flags)

    def attempt_rename(
        self, parent: InodeNumber, name: bytes, new_parent: InodeNumber, new_name: bytes, flags: int
    ) -> None:
        moved, other = self.child(parent, name), self.child(new_parent, new_name)
        errors = self.wrong_directory(parent) | self.wrong_directory(new_parent)
        errors |= self.wrong_name(name) | self.wrong_name(new_name)
        errors |= {errno.EINVAL} if flags == 4 else set()
        if moved is None:
            errors |= {errno.ENOENT}
        elif not errors:
            errors |= self.wrong_move(moved, parent, new_parent, other, flags)
        if self.attempt(Rename(parent, name, new_parent, new_name, flags), errors) is None:
            return
        assert moved is not None
        if flags == RENAME_EXCHANGE:
            assert other is not None
            self.nodes[parent].names[name] = other
        elif other == moved:
            return
        else:
            del self.nodes[parent].names[name]
            if other is not None and self.nodes[other].is_directory:
                self.nodes[other].removed = True
        self.nodes[new_parent].names[new_name] = moved

    def wrong_move(self, moved: int, parent: int, new_parent: int, other: int | None, flags: int) -> set[int]:
        errors: set[int] = set()
        if self.holds(moved, new_parent):
            errors |= {errno.EINVAL}
        if flags == RENAME_EXCHANGE:
            if other is None:
                errors |= {errno.ENOENT}
            elif self.holds(other, parent):
                errors |= {errno.EINVAL}
        elif other is not None and flags == RENAME_NOREPLACE:
            errors |= {errno.EEXIST}
        elif other is not None and other != moved:
            target = self.nodes[other]
            if target.is_directory and not self.nodes[moved].is_directory:
                errors |= {errno.EISDIR}
            elif self.nodes[moved].is_directory and not target.is_directory:
                errors |= {errno.ENOTDIR}
            elif target.names:
                errors |= {errno.ENOTEMPTY}
        return errors

    @rule(place=PLACE, mode=st.integers(0, 0o7777))
    def change_mode(self, place: int, mode: int) -> None:
        number = self.pick(place)
        errors = set() if number in self.nodes else {errno.ESTALE}
        if self.attempt(SetAttributes(number, mode=mode), errors) is not None:
            node = self.nodes[number]
            node.mode = stat.S_IFMT(node.mode) | mode

    @rule(place=PLACE, name=st.sampled_from((b"trusted.a", b"trusted.b")), value=st.binary(max_size=3))
    def set_xattr(self, place: int, name: bytes, value: bytes) -> None:
        number = self.pick(place)
        errors = set() if number in self.nodes else {errno.ESTALE}
        if self.attempt(SetXattr(number, name, value), errors) is not None:
            self.nodes[number].xattrs[name] = value

    @rule(place=PLACE, name=st.sampled_from((b"trusted.a", b"trusted.b")))
    def remove_xattr(self, place: int, name: bytes) -> None:
        number = self.pick(place)
        node = self.nodes.get(number)
        errors = {errno.ESTALE} if node is None else set() if name in node.xattrs else {errno.ENODATA}
        if self.attempt(RemoveXattr(number, name), errors) is not None:
            del self.nodes[number].xattrs[name]

    @rule()
    def purge(self) -> None:
        orphans = self.decider.catalog.orphans()
        assert set(orphans) == {number for number in self.nodes if not self.links(number)}
        self.decider.catalog.apply_rows(purge_rows(self.decider.catalog, orphans))
        for number in orphans:
            del self.nodes[number]

    # --- both are the same ---

    @invariant()
    def every_inode_is_as_expected(self) -> None:
        catalog = self.decider.catalog
        assert catalog.inode_count() == len(self.nodes)
        for number, node in self.nodes.items():
            inode = self.decider.inode(InodeNumber(number))
            assert (inode.mode, inode.nlink) == (node.mode, self.links(number)), number
            assert {name: catalog.xattr(inode.number, name) for name in catalog.xattrs(inode.number)} == (
                node.xattrs
            )

    @invariant()
    def every_directory_holds_its_names(self) -> None:
        cookies: list[int] = []
        for number, node in self.nodes.items():
            listing = self.decider.catalog.listing(InodeNumber(number), 0, 1000)
            assert {name: entry.inode for _, name, entry in listing} == node.names
            cookies.extend(cookie for cookie, _, _ in listing)
            for _, _, entry in listing:
                child = self.nodes[entry.inode]
                assert entry.type == stat.S_IFMT(child.mode) >> 12
                if child.is_directory:
                    assert self.decider.inode(entry.inode).parent == number
        assert len(set(cookies)) == len(cookies), "a cookie names one entry for ever"

    @invariant()
    def new_cookies_are_above_all_old_ones(self) -> None:
        catalog, first = self.decider.catalog, first_cookie(self.decider.number)
        listings = (catalog.listing(InodeNumber(number), 0, 1000) for number in self.nodes)
        newest = max((cookie for listing in listings for cookie, _, _ in listing), default=0)
        assert newest <= self.newest_cookie or newest in range(first, first + COOKIES_PER_CHANGE)
        self.newest_cookie = max(self.newest_cookie, newest)

    @invariant()
    def the_derived_tables_agree(self) -> None:
        assert not self.decider.catalog.derived_rows_wrong()


TestAgainstPlainDicts = Filesystem.TestCase
TestAgainstPlainDicts.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
