"""Reserve: what can be held, and what is in the way."""

import errno

import pytest

from fusemirror.identifiers import InodeNumber
from fusemirror.operations import Operation, Reserve, reserve
from fusemirror.operations.reserve import conflicts
from fusemirror.volume.reservations import EVERYTHING
from tests.operations.conftest import NOWHERE, ROOT, Decider, Examples, Tree, refused

EXAMPLES: Examples = [
    (Reserve(InodeNumber(2), b"p", True), "941402c40170c3"),
    (Reserve(InodeNumber(2), b"/file"), "941402c4052f66696c65c2"),
]

FILE, INNER = InodeNumber(4), InodeNumber(3)
OURS, THEIRS = b"a" * 16, b"b" * 16

ERRORS = {
    "of a directory": (Reserve(ROOT), errno.EISDIR),
    "of a file without names": (Reserve(InodeNumber(7)), errno.ENOENT),
    "of no file": (Reserve(NOWHERE), errno.ENOENT),
}


@pytest.mark.parametrize(("operation", "expected"), ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_has_its_errno_and_changes_nothing(
    decider: Decider, tree: Tree, operation: Operation, expected: int
) -> None:
    refused(decider, operation, expected)


def test_what_the_other_host_holds_is_in_the_way_until_it_is_preempted(decider: Decider, tree: Tree) -> None:
    decider.do(Reserve(FILE, b"file"), host=THEIRS)
    assert list(conflicts(decider.catalog, FILE, OURS)) == [FILE]
    assert list(conflicts(decider.catalog, EVERYTHING, OURS)) == [FILE]
    assert not conflicts(decider.catalog, INNER, OURS)
    refused(decider, Reserve(FILE, b"file"), errno.EBUSY)
    decider.do(Reserve(EVERYTHING, preempt=True), host=OURS)
    assert {held: each.holder for held, each in decider.catalog.reservations.items()} == {EVERYTHING: OURS}
    assert list(conflicts(decider.catalog, FILE, THEIRS)) == [EVERYTHING]


def test_what_a_host_has_already_it_keeps_as_it_is(decider: Decider, tree: Tree) -> None:
    decider.do(Reserve(FILE, b"file"), host=OURS)
    assert decider.do(Reserve(FILE, b"another path"), host=OURS).change is None
    assert decider.catalog.reservations[FILE].path == b"file"


def test_there_is_a_limit(decider: Decider, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserve, "RESERVATIONS_MAX", 1)
    decider.do(Reserve(FILE), host=OURS)
    refused(decider, Reserve(INNER), errno.ENOLCK)
