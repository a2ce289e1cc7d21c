"""SetAttributes: what changes beside what was named, and truncation as one change."""

import errno
import stat

import pytest

from fusemirror.change import TruncateChange
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import FILE_BYTES_MAX
from fusemirror.operations import Operation, SetAttributes, SetXattr, acl
from fusemirror.operations.privileges import EndPrivileges
from fusemirror.xattrs import CAPABILITY
from tests.operations.conftest import FILE, NOWHERE, SYMLINK, Decider, Examples, Tree, access_list, refused

EXAMPLES: Examples = [
    (
        SetAttributes(InodeNumber(2), 0o2, 3, 4, size=5, atime_ns=6, mtime_ns=7, clear_privileges=True),
        "990202020304050607c3",
    ),
    (SetAttributes(InodeNumber(2), size=4), "990202c0c0c004c0c0c2"),
    (SetAttributes(InodeNumber(2), 0o600, 1, 2, atime_ns=3, mtime_ns=4), "990202cd01800102c00304c2"),
    (SetAttributes(InodeNumber(2), size=5), "990202c0c0c005c0c0c2"),
]

ERRORS = {
    "of an inode that is gone": (SetAttributes(NOWHERE, mode=0), errno.ESTALE),
}


@pytest.mark.parametrize(("operation", "expected"), ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_has_its_errno_and_changes_nothing(
    decider: Decider, tree: Tree, operation: Operation, expected: int
) -> None:
    refused(decider, operation, expected)


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
    assert decider.catalog.xattrs.names(file) == []


def test_a_directory_keeps_its_bits_with_a_new_owner(decider: Decider) -> None:
    directory = decider.create(b"dir", stat.S_IFDIR | 0o6755)
    decider.do(SetAttributes(directory, uid=5))
    assert decider.inode(directory).mode == stat.S_IFDIR | 0o6755


def test_a_chmod_never_changes_the_type(decider: Decider) -> None:
    file = decider.create(b"file")
    decider.do(SetAttributes(file, mode=stat.S_IFDIR | 0o7777))
    assert decider.inode(file).mode == stat.S_IFREG | 0o7777


def test_a_chmod_changes_the_access_list_too(decider: Decider) -> None:
    file = decider.create(b"file")
    decider.do(SetXattr(file, acl.ACCESS, access_list(7, 4, 1, mask=6)))
    decider.do(SetAttributes(file, mode=0o640))
    assert decider.catalog.xattrs.value(file, acl.ACCESS) == access_list(6, 4, 0, mask=4)


def test_a_time_that_no_inode_can_hold_becomes_the_nearest(decider: Decider) -> None:
    file = decider.create(b"file", FILE)
    decider.do(SetAttributes(file, atime_ns=-(1 << 70), mtime_ns=1 << 70))
    assert (decider.inode(file).atime_ns, decider.inode(file).mtime_ns) == (-(1 << 63), (1 << 63) - 1)


# --- truncation -------------------------------------------------------------------------------------------


def truncated(decider: Decider, operation: SetAttributes) -> TruncateChange:
    change = operation.decide(decider.draft()).change
    assert type(change) is TruncateChange
    return change


def test_a_truncation_is_a_change_of_data(decider: Decider, tree: Tree) -> None:
    decider.grow(tree.file, 100)
    assert truncated(decider, SetAttributes(tree.file, size=7)).rows == ()
    decision = decider.do(SetAttributes(tree.file, size=7))
    assert (decision.keys, decision.old_size) == ((tree.file,), 100)


def test_other_attributes_are_rows_of_the_truncation(decider: Decider, tree: Tree) -> None:
    decider.do(SetAttributes(tree.file, size=7, mode=0o600))
    inode = decider.inode(tree.file)
    assert (inode.size, inode.mode, inode.mtime_ns) == (7, stat.S_IFREG | 0o600, decider.time_ns)


def test_a_truncation_ends_privileges(decider: Decider) -> None:
    file = decider.create(b"file", PROGRAM)
    assert not truncated(decider, SetAttributes(file, size=7)).rows
    decider.do(SetAttributes(file, size=7, clear_privileges=True))
    assert decider.inode(file).mode == stat.S_IFREG | 0o755


@pytest.mark.parametrize("size", [-1, FILE_BYTES_MAX + 1])
def test_no_file_is_so_long(decider: Decider, tree: Tree, size: int) -> None:
    refused(decider, SetAttributes(tree.file, size=size), errno.EFBIG)


def test_only_a_file_can_be_cut(decider: Decider, tree: Tree) -> None:
    refused(decider, SetAttributes(tree.directory, size=0), errno.EISDIR)
    refused(decider, SetAttributes(decider.create(b"link", SYMLINK), size=0), errno.EINVAL)


def test_a_peer_that_takes_no_rows_with_data_gets_each_by_itself(decider: Decider, tree: Tree) -> None:
    plain = SetAttributes(tree.file, size=7, clear_privileges=True)
    assert plain.in_steps() == (EndPrivileges(tree.file, clear_set_id=True), plain)
    both = SetAttributes(tree.file, mode=0o600, size=7)
    *_, last = both.in_steps()
    assert last == SetAttributes(tree.file, mode=0o600), "the last step answers the request"


@pytest.mark.parametrize(
    ("operation", "start"),
    [
        (SetAttributes(InodeNumber(4), size=500), 100),
        (SetAttributes(InodeNumber(4), size=7), 7),
        (SetAttributes(InodeNumber(4), mode=0), None),
        (SetAttributes(NOWHERE, size=7), None),
    ],
)
def test_a_truncation_touches_all_from_the_lower_end(
    decider: Decider, tree: Tree, operation: SetAttributes, start: int | None
) -> None:
    decider.grow(tree.file, 100)
    wanted = None if start is None else (tree.file, start, FILE_BYTES_MAX)
    assert operation.touched_range(decider.catalog, 0) == wanted
