"""Bytes of a file that become those of another place, or of another file."""

import errno

import pytest

from fusemirror.change import CopyChange
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import COPY_BYTES_MAX, FILE_BYTES_MAX, SPACE_PER_CHANGE_BYTES
from fusemirror.operations import Copy
from tests.operations.conftest import NOWHERE, ROOT, Decider, Examples, Tree, refused

EXAMPLES: Examples = [
    (Copy(InodeNumber(2), 4096, 5000, InodeNumber(3), 1, clear_privileges=True), "972c02cd1000cd13880301c3"),
    (Copy(InodeNumber(2), 3, 4, InodeNumber(2), 0, clear_privileges=True), "972c0203040200c3"),
]

FILE = InodeNumber(4)
PROGRAM = 0o106755


def test_it_is_a_change_of_data_that_names_where_it_copies_from(decider: Decider, tree: Tree) -> None:
    source = decider.create(b"source")
    decider.grow(tree.file, 100)
    decider.grow(source, 70)
    operation = Copy(tree.file, 50, 110, source, 10)
    decision = operation.decide(decider.draft())
    change = decision.change
    assert type(change) is CopyChange
    assert (change.data_range(), change.source, change.source_offset) == ((tree.file, 50, 110), source, 10)
    assert (change.rows, change.length, change.taken_bytes) == ((), 0, 60)
    assert (change.size_after(100), change.size_after(1000)) == (110, 1000)
    assert (decision.keys, decision.old_size) == ((tree.file,), 100)
    assert (operation.image, operation.copied_image) == (tree.file, source)
    assert operation.touched_range(decider.catalog, 0) == (tree.file, 50, FILE_BYTES_MAX)
    assert Copy(tree.file, 50, 60, source, 10).touched_range(decider.catalog, 0) == (tree.file, 50, 60)
    assert operation.space_needed(0) == SPACE_PER_CHANGE_BYTES + 60


def test_what_the_source_does_not_have_is_not_copied_in_part(decider: Decider, tree: Tree) -> None:
    decider.grow(tree.file, 100)
    refused(decider, Copy(tree.file, 200, 251, tree.file, 50), errno.ENODATA)
    assert decider.do(Copy(tree.file, 200, 250, tree.file, 50)).change is not None


def test_it_ends_privileges_as_a_write_does(decider: Decider, tree: Tree) -> None:
    decider.grow(tree.file, 100)
    file = decider.create(b"program", PROGRAM)
    assert decider.do(Copy(file, 0, 7, tree.file, 0)).change is not None
    assert decider.inode(file).mode == PROGRAM
    decider.do(Copy(file, 3, 10, tree.file, 0, clear_privileges=True))
    assert (decider.inode(file).mode, decider.inode(file).size) == (0o102755 & ~0o2000 | 0o100000, 10)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (Copy(NOWHERE, 0, 1, FILE, 0), errno.ESTALE),
        (Copy(FILE, 0, 1, NOWHERE, 0), errno.ESTALE),
        (Copy(ROOT, 0, 1, FILE, 0), errno.EISDIR),
        (Copy(FILE, 0, 1, ROOT, 0), errno.EISDIR),
        (Copy(FILE, FILE_BYTES_MAX, FILE_BYTES_MAX + 1, FILE, 0), errno.EFBIG),
    ],
)
def test_what_cannot_be_has_its_errno(decider: Decider, tree: Tree, operation: Copy, expected: int) -> None:
    assert tree.file == FILE
    refused(decider, operation, expected)


@pytest.mark.parametrize(
    "operation",
    [
        Copy(FILE, 5, 5, FILE, 0),
        Copy(FILE, -1, 5, FILE, 100),
        Copy(FILE, 0, 5, FILE, 4),
        Copy(FILE, 4, 9, FILE, 0),
        Copy(FILE, 0, COPY_BYTES_MAX + 1, ROOT, 0),
        Copy(FILE, 0, 2, ROOT, FILE_BYTES_MAX - 1),
        Copy(FILE, FILE_BYTES_MAX, FILE_BYTES_MAX + 1, ROOT, 0),
    ],
)
def test_what_no_kernel_asks_is_refused(operation: Copy) -> None:
    with pytest.raises(OperationFailed) as failed:
        operation.check()
    assert failed.value.errno == errno.EINVAL
    Copy(FILE, 5, 10, FILE, 0).check()
