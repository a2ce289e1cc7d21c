"""RemoveXattr: of what is there."""

import errno

import pytest

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import XATTR_VALUE_BYTES_MAX
from fusemirror.operations import Operation, RemoveXattr, SetXattr
from tests.operations.conftest import NOWHERE, ROOT, Decider, Examples, Tree, refused

EXAMPLES: Examples = [
    (RemoveXattr(InodeNumber(2), b"user.a"), "930902c406757365722e61"),
    (RemoveXattr(InodeNumber(2), b"user.name"), "930902c409757365722e6e616d65"),
]

ERRORS = {
    "of no namespace": (RemoveXattr(ROOT, b"system.a"), errno.EOPNOTSUPP),
    "but not there": (RemoveXattr(ROOT, b"user.a"), errno.ENODATA),
    "from an inode that is gone": (RemoveXattr(NOWHERE, b"user.a"), errno.ESTALE),
}


@pytest.mark.parametrize(("operation", "expected"), ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_has_its_errno_and_changes_nothing(
    decider: Decider, tree: Tree, operation: Operation, expected: int
) -> None:
    refused(decider, operation, expected)


def test_an_attribute_set_again_is_replaced_and_removed(decider: Decider) -> None:
    file = decider.create(b"file")
    for value in (b"", b"one", bytes(XATTR_VALUE_BYTES_MAX)):
        decider.do(SetXattr(file, b"user.a", value))
        assert decider.catalog.xattrs.value(file, b"user.a") == value
    decider.do(RemoveXattr(file, b"user.a"))
    assert decider.catalog.xattrs.names(file) == []
    assert decider.inode(file).ctime_ns == decider.time_ns
