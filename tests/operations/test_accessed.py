"""Times of access, by the rule of relatime."""

import errno

import pytest

from fusemirror.errors import OperationFailed
from fusemirror.flags import Flag
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import ACCESSED_AGAIN_S, ACCESSED_PER_CHANGE
from fusemirror.operations import Accessed, SetAttributes, SetFlags
from fusemirror.operations.accessed import is_due
from tests.operations.conftest import NOWHERE, ROOT, Decider, Examples

EXAMPLES: Examples = [
    (Accessed((InodeNumber(2), InodeNumber(3))), "922e920203"),
]


def test_they_follow_a_change_and_change_nothing_else(decider: Decider) -> None:
    file, other = decider.create(b"file"), decider.create(b"other")
    before = decider.inode(file).copy()
    assert decider.do(Accessed((file, NOWHERE, file))).change is not None
    read_ns = decider.time_ns
    after = decider.inode(file)
    assert after.atime_ns == read_ns > before.atime_ns
    assert (after.mtime_ns, after.ctime_ns, after.size) == (before.mtime_ns, before.ctime_ns, before.size)
    assert decider.inode(other).atime_ns < read_ns
    assert decider.do(Accessed((file,))).change is None  # it says nothing new
    assert decider.inode(file).atime_ns == read_ns
    decider.do(SetAttributes(file, mode=0o600))
    assert decider.do(Accessed((file,))).change is not None
    assert decider.inode(file).atime_ns == decider.time_ns


def test_they_are_a_day_old_at_most(decider: Decider) -> None:
    file = decider.create(b"file")
    decider.do(Accessed((file,)))
    inode = decider.inode(file)
    day_ns = ACCESSED_AGAIN_S * 10**9
    assert not is_due(decider.catalog, inode, inode.atime_ns + day_ns - 1)
    assert is_due(decider.catalog, inode, inode.atime_ns + day_ns)


def test_a_file_with_the_flag_keeps_its_own(decider: Decider) -> None:
    file = decider.create(b"file")
    decider.do(SetFlags(file, Flag.NOATIME))
    assert decider.do(Accessed((file, ROOT))).change is not None
    assert decider.inode(file).atime_ns < decider.time_ns == decider.inode(ROOT).atime_ns


@pytest.mark.parametrize(
    "operation",
    [Accessed(()), Accessed((InodeNumber(1 << 64),)), Accessed((ROOT,) * (ACCESSED_PER_CHANGE + 1))],
)
def test_what_no_host_asks_is_refused(operation: Accessed) -> None:
    with pytest.raises(OperationFailed) as failed:
        operation.check()
    assert failed.value.errno == errno.EINVAL
