"""Unlink: which names it takes, and what it leaves to the kernel."""

import errno
import stat

import pytest

from fusemirror.identifiers import InodeNumber
from fusemirror.operations import Operation, Rename, Unlink
from tests.operations.conftest import FILE, ROOT, TOO_LONG, Decider, Examples, Tree, refused

EXAMPLES: Examples = [
    (Unlink(InodeNumber(3), b"n"), "930503c4016e"),
    (Unlink(InodeNumber(3), b"third"), "930503c4057468697264"),
]

ERRORS = {
    "no such name": (Unlink(ROOT, b"none"), errno.ENOENT),
    "a name longer than any": (Unlink(ROOT, TOO_LONG), errno.ENOENT),
    "a directory": (Unlink(ROOT, b"empty"), errno.EISDIR),
}


@pytest.mark.parametrize(("operation", "expected"), ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_has_its_errno_and_changes_nothing(
    decider: Decider, tree: Tree, operation: Operation, expected: int
) -> None:
    refused(decider, operation, expected)


def test_a_sticky_directory_is_the_kernels_business(decider: Decider) -> None:
    """The kernel has checked who asks (`default_permissions`); an operation does not say."""
    sticky = decider.create(b"tmp", stat.S_IFDIR | 0o1777)
    decider.create(b"file", FILE, sticky, uid=7)
    decider.do(Rename(sticky, b"file", sticky, b"moved"))
    decider.do(Unlink(sticky, b"moved"))
    assert not decider.names(sticky)
    assert decider.inode(sticky).mode & stat.S_ISVTX


def test_the_name_and_what_has_it_are_touched(decider: Decider, tree: Tree) -> None:
    unlink = Unlink(tree.directory, b"inner")
    assert unlink.touched_names() == ((tree.directory, b"inner"),)
    assert list(unlink.touched_inodes(decider.catalog)) == [tree.inner]
    assert not list(Unlink(ROOT, b"none").touched_inodes(decider.catalog))
