"""Room for bytes of a file, and holes in it."""

import errno

import pytest

from fusemirror.change import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, AllocateChange
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import FILE_BYTES_MAX, SPACE_PER_CHANGE_BYTES
from fusemirror.operations import Allocate
from tests.operations.conftest import NOWHERE, ROOT, Decider, Examples, Tree, refused

EXAMPLES: Examples = [
    (
        Allocate(InodeNumber(2), 4096, 4294967296, 0o3, clear_privileges=True),
        "962902cd1000cf000000010000000003c3",
    ),
    (Allocate(InodeNumber(2), 3, 9, 0o21, clear_privileges=True), "962902030911c3"),
]

HOLE = PUNCH_HOLE | KEEP_SIZE
PROGRAM = 0o106755


@pytest.mark.parametrize(
    ("mode", "size"),
    [(0, 150), (KEEP_SIZE, 100), (HOLE, 100), (ZERO_RANGE, 150), (ZERO_RANGE | KEEP_SIZE, 100)],
)
def test_it_is_a_change_of_data_that_says_how_long_the_file_becomes(
    decider: Decider, tree: Tree, mode: int, size: int
) -> None:
    decider.grow(tree.file, 100)
    decision = Allocate(tree.file, 50, 150, mode).decide(decider.draft())
    change = decision.change
    assert type(change) is AllocateChange
    assert (change.data_range(), change.size_after(100), change.rows) == ((tree.file, 50, 150), size, ())
    assert (decision.keys, decision.old_size) == ((tree.file,), 100)
    assert change.size_after(1000) == 1000
    grows = size > 100
    touched = Allocate(tree.file, 50, 150, mode).touched_range(decider.catalog, 0)
    assert touched == (tree.file, 50, FILE_BYTES_MAX if grows else 150)
    taken = 0 if mode == HOLE else 100
    assert change.taken_bytes == taken
    assert Allocate(tree.file, 50, 150, mode).space_needed(0) == (taken and SPACE_PER_CHANGE_BYTES + taken)


@pytest.mark.parametrize(
    ("mode", "end", "expected"),
    [
        (KEEP_SIZE, 101, True),
        (KEEP_SIZE, 100, False),
        (ZERO_RANGE | KEEP_SIZE, 101, True),
        (HOLE, 101, False),
        (0, 101, False),
        (ZERO_RANGE, 101, False),
    ],
)
def test_what_keeps_the_size_reserves_beyond_the_end(
    decider: Decider, tree: Tree, mode: int, end: int, expected: bool
) -> None:
    decider.grow(tree.file, 100)
    assert Allocate(tree.file, 50, end, mode).reserves_beyond_end(decider.catalog) is expected
    assert not Allocate(NOWHERE, 50, end, mode).reserves_beyond_end(decider.catalog)


def test_it_ends_privileges_as_a_write_does(decider: Decider) -> None:
    file = decider.create(b"file", PROGRAM)
    assert decider.do(Allocate(file, 0, 7, 0)).change is not None
    assert decider.inode(file).mode == PROGRAM
    decider.do(Allocate(file, 0, 7, 0, clear_privileges=True))
    assert (decider.inode(file).mode, decider.inode(file).size) == (0o102755 & ~0o2000 | 0o100000, 7)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (Allocate(NOWHERE, 0, 1, 0), errno.ESTALE),
        (Allocate(ROOT, 0, 1, 0), errno.EISDIR),
        (Allocate(InodeNumber(4), 0, FILE_BYTES_MAX + 1, KEEP_SIZE), errno.EFBIG),
    ],
)
def test_what_cannot_be_has_its_errno(
    decider: Decider, tree: Tree, operation: Allocate, expected: int
) -> None:
    assert tree.file == 4
    refused(decider, operation, expected)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (Allocate(InodeNumber(4), 0, 1, PUNCH_HOLE), errno.EOPNOTSUPP),
        (Allocate(InodeNumber(4), 0, 1, 8), errno.EOPNOTSUPP),
        (Allocate(InodeNumber(4), 5, 5, 0), errno.EINVAL),
        (Allocate(InodeNumber(4), -1, 5, 0), errno.EINVAL),
        (Allocate(InodeNumber(4), 0, FILE_BYTES_MAX + 1, 0), errno.EINVAL),
    ],
)
def test_what_no_kernel_asks_is_refused(operation: Allocate, expected: int) -> None:
    with pytest.raises(OperationFailed) as failed:
        operation.check()
    assert failed.value.errno == expected
    Allocate(InodeNumber(4), 0, FILE_BYTES_MAX, HOLE).check()
