"""Write: where its bytes go, what ends with them, and which of them are acknowledged early."""

import errno
import stat

import pytest

from fusemirror.change import NamespaceChange, Table, WriteChange
from fusemirror.identifiers import InodeNumber, RequestId
from fusemirror.limits import FILE_BYTES_MAX, WRITE_BYTES_MAX
from fusemirror.operations import Operation, SetXattr, Write
from fusemirror.operations.operation import ByteRange
from fusemirror.operations.privileges import EndPrivileges
from fusemirror.volume.entries import inode_key
from fusemirror.xattrs import CAPABILITY
from tests.operations.conftest import DIRECTORY, NOWHERE, ROOT, Decider, Examples, Tree, refused

EXAMPLES: Examples = [
    (Write(InodeNumber(2), 7, True, True), "95010207c3c3"),
    (Write(InodeNumber(2), 0), "95010200c2c2"),
    (Write(InodeNumber(2), 0, True), "95010200c3c2"),
]

FILE = InodeNumber(4)
REQUEST = RequestId(b"1" * 16)
TO_THE_END = FILE_BYTES_MAX

ERRORS: dict[str, tuple[Operation, int, int]] = {
    "to an inode that is gone": (Write(NOWHERE, 0), 1, errno.ESTALE),
    "to a directory": (Write(ROOT, 0), 1, errno.EISDIR),
    "beyond what a file can be": (Write(FILE, FILE_BYTES_MAX), 1, errno.EFBIG),
    "before the file": (Write(FILE, -1), 1, errno.EFBIG),
    "more than one change carries": (Write(FILE, 0), WRITE_BYTES_MAX + 1, errno.EFBIG),
}


@pytest.mark.parametrize(("operation", "data_bytes", "expected"), ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_has_its_errno_and_changes_nothing(
    decider: Decider, tree: Tree, operation: Operation, data_bytes: int, expected: int
) -> None:
    refused(decider, operation, expected, data_bytes)


def test_a_symlink_is_nothing_to_write_to(decider: Decider) -> None:
    link = decider.create(b"link", stat.S_IFLNK | 0o777)
    refused(decider, Write(link, 0), errno.EINVAL, 1)


def test_an_append_goes_to_where_the_file_ends_now(decider: Decider, tree: Tree) -> None:
    decider.grow(FILE, 100)
    for write, offset in ((Write(FILE, 7), 7), (Write(FILE, 7, append=True), 100)):
        decision = write.decide(decider.draft(REQUEST), 5)
        change = WriteChange(decider.draft().number, REQUEST, decider.draft().time_ns, FILE, offset, 5)
        assert (decision.change, decision.inode, decision.keys) == (change, FILE, (FILE,))
        assert decision.old_size == 100


def test_no_bytes_change_nothing_but_answer_the_peer(decider: Decider, tree: Tree) -> None:
    assert Write(FILE, 7).decide(decider.draft(), 0).change is None
    answer = Write(FILE, 7).decide(decider.draft(REQUEST), 0).change
    assert type(answer) is NamespaceChange
    assert (answer.request, answer.inode, answer.rows) == (REQUEST, FILE, ())


def test_privileges_end_with_the_data_in_one_change(decider: Decider) -> None:
    file = decider.create(b"file", stat.S_IFREG | 0o4755)
    assert not decider.do(Write(file, 0), 5).change.rows  # type: ignore[union-attr]  # by one who may keep them
    decision = decider.do(Write(file, 10, clear_privileges=True), 5)
    assert decision.change is not None
    assert [(table, key) for table, key, _ in decision.change.rows] == [(Table.INODES, inode_key(file))]
    inode = decider.inode(file)
    assert (inode.mode, inode.size, inode.mtime_ns) == (stat.S_IFREG | 0o755, 15, decider.time_ns)


def test_a_repair_ends_no_privileges(decider: Decider) -> None:
    file = decider.create(b"file", stat.S_IFREG | 0o4755)
    draft = decider.draft()
    draft.keeps_privileges = True
    change = Write(file, 10, clear_privileges=True).decide(draft, 5).change
    assert change is not None
    assert not change.rows


def test_a_peer_that_takes_no_rows_with_data_gets_them_first(decider: Decider) -> None:
    write = Write(FILE, 10, clear_privileges=True)
    assert write.in_steps() == (EndPrivileges(FILE, clear_set_id=True), write)


@pytest.mark.parametrize(
    ("operation", "data_bytes", "touched"),
    [
        (Write(FILE, 10), 20, (FILE, 10, 30)),
        (Write(FILE, 90), 10, (FILE, 90, 100)),
        (Write(FILE, 90), 11, (FILE, 90, TO_THE_END)),
        (Write(FILE, 500), 1, (FILE, 100, TO_THE_END)),
        (Write(FILE, 0, append=True), 1, (FILE, 100, TO_THE_END)),
        (Write(FILE, 10), 0, None),
        (Write(NOWHERE, 10), 20, None),
    ],
)
def test_one_that_makes_the_file_longer_touches_all_from_its_end(
    decider: Decider,
    tree: Tree,
    operation: Write,
    data_bytes: int,
    touched: ByteRange | None,
) -> None:
    decider.grow(FILE, 100)
    assert operation.touched_range(decider.catalog, data_bytes) == touched


def test_only_a_plain_write_to_a_file_is_acknowledged_before_it_has_its_place(
    decider: Decider, tree: Tree
) -> None:
    program = decider.create(b"program", stat.S_IFREG | 0o4755)
    capable = decider.create(b"capable")
    decider.do(SetXattr(capable, CAPABILITY, b"value"))
    directory = decider.create(b"another", DIRECTORY)

    def may(operation: Write, data_bytes: int = 5) -> bool:
        return operation.may_be_written_behind(decider.catalog, data_bytes, 1000)

    assert may(Write(FILE, 0))
    assert may(Write(FILE, 995))
    assert not may(Write(FILE, 996)), "the disks do not take files that long"
    assert not may(Write(FILE, 0), 0)
    assert not may(Write(FILE, 0, append=True)), "the primary says where the file ends"
    assert not may(Write(NOWHERE, 0))
    assert not may(Write(directory, 0))
    assert may(Write(program, 0))
    assert not may(Write(program, 0, clear_privileges=True))
    assert not may(Write(capable, 0))


@pytest.mark.parametrize("append", [False, True])
def test_only_a_write_that_says_where_may_be_done_twice(append: bool) -> None:
    assert Write(InodeNumber(2), 0, append=append).may_repeat is not append
    assert not SetXattr(InodeNumber(2), b"user.a", b"value").may_repeat
