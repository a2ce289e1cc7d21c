"""Release: whose reservation it ends."""

import errno

from fusemirror.identifiers import InodeNumber
from fusemirror.operations import Release, Reserve
from tests.operations.conftest import Decider, Examples, Tree, refused

EXAMPLES: Examples = [
    (Release(InodeNumber(2), True), "931502c3"),
    (Release(InodeNumber(2)), "931502c2"),
]

FILE = InodeNumber(4)


def test_one_of_the_other_host_is_ended_only_when_that_is_meant(decider: Decider, tree: Tree) -> None:
    decider.do(Reserve(FILE), host=b"theirs")
    refused(decider, Release(FILE), errno.EBUSY)
    decider.do(Release(FILE, preempt=True), host=b"ours")
    assert not decider.catalog.reservations


def test_where_there_is_none_nothing_changes(decider: Decider, tree: Tree) -> None:
    assert decider.do(Release(FILE)).change is None
    decider.do(Reserve(FILE), host=b"ours")
    assert decider.do(Release(FILE), host=b"ours").change is not None
    assert decider.do(Release(FILE), host=b"ours").change is None
