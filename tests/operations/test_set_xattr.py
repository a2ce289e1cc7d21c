"""SetXattr: names and values that fit, and access control lists that show in the mode."""

import errno
import os
import stat

import msgspec
import pytest

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import XATTR_VALUE_BYTES_MAX
from fusemirror.operations import Operation, SetXattr, acl
from tests.operations.conftest import NOWHERE, ROOT, TOO_LONG, Decider, Examples, Tree, access_list, refused

EXAMPLES: Examples = [
    (SetXattr(InodeNumber(2), b"user.a", b"v"), "950802c406757365722e61c4017600"),
    (SetXattr(InodeNumber(2), b"user.name", b"value"), "950802c409757365722e6e616d65c40576616c756500"),
    (SetXattr(InodeNumber(2), b"user.a", b"v", os.XATTR_CREATE), "950802c406757365722e61c4017601"),
]

ERRORS = {
    "of an inode that is gone": (SetXattr(NOWHERE, b"user.a", b""), errno.ESTALE),
    "the name is too long": (SetXattr(ROOT, TOO_LONG, b""), errno.ERANGE),
    "the value is too long": (
        SetXattr(ROOT, b"user.a", bytes(XATTR_VALUE_BYTES_MAX + 1)),
        errno.E2BIG,
    ),
    "no access list": (SetXattr(ROOT, acl.ACCESS, b"nonsense"), errno.EINVAL),
    "no default list": (SetXattr(ROOT, acl.DEFAULT, b"nonsense"), errno.EINVAL),
    "a default list of a file": (SetXattr(InodeNumber(4), acl.DEFAULT, b""), errno.EACCES),
    "to be replaced, and not there": (SetXattr(ROOT, b"user.a", b"", os.XATTR_REPLACE), errno.ENODATA),
    "of no namespace": (SetXattr(ROOT, b"system.a", b""), errno.EOPNOTSUPP),
    "a bare prefix": (SetXattr(ROOT, b"user.", b""), errno.EINVAL),
}


@pytest.mark.parametrize(("operation", "expected"), ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_has_its_errno_and_changes_nothing(
    decider: Decider, tree: Tree, operation: Operation, expected: int
) -> None:
    refused(decider, operation, expected)


def test_one_that_is_there_is_replaced_and_not_made(decider: Decider) -> None:
    file = decider.create(b"file")
    for flags, value in ((os.XATTR_CREATE, b"one"), (os.XATTR_REPLACE, b"two"), (0, b"three")):
        decider.do(SetXattr(file, b"user.a", value, flags))
        assert decider.catalog.xattrs.value(file, b"user.a") == value
    for flags in (os.XATTR_CREATE, os.XATTR_CREATE | os.XATTR_REPLACE):
        refused(decider, SetXattr(file, b"user.a", b"four", flags), errno.EEXIST)


def test_as_versions_before_send_and_stage_it_it_has_no_flags() -> None:
    sent = bytes.fromhex("940802c406757365722e61c40176")
    assert msgspec.msgpack.decode(sent, type=SetXattr) == SetXattr(InodeNumber(2), b"user.a", b"v")


def test_an_access_list_shows_in_the_mode(decider: Decider) -> None:
    file = decider.create(b"file")
    decider.do(SetXattr(file, acl.ACCESS, access_list(7, 4, 1, mask=6)))
    assert decider.inode(file).mode == stat.S_IFREG | 0o761
    assert decider.catalog.xattrs.value(file, acl.ACCESS) == access_list(7, 4, 1, mask=6)


def test_an_access_list_that_is_just_a_mode_is_not_kept(decider: Decider) -> None:
    file = decider.create(b"file")
    decider.do(SetXattr(file, acl.ACCESS, access_list(7, 4, 1, mask=6)))
    decider.do(SetXattr(file, acl.ACCESS, access_list(6, 4, 0)))
    assert decider.inode(file).mode == stat.S_IFREG | 0o640
    assert decider.catalog.xattrs.names(file) == []
