"""A write that failed after it was acknowledged: each open file hears of it, once."""

import errno

from fusemirror.control.failed_writes import FailedWrites
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import FAILED_WRITES_MAX

FILE, OTHER = InodeNumber(5), InodeNumber(6)


def test_each_open_file_hears_of_a_failure_once() -> None:
    failed = FailedWrites()
    one, other = failed.seen_at_open(FILE), failed.seen_at_open(FILE)
    failed.note(FILE, errno.ENOSPC)
    assert failed.since(FILE, one) == errno.ENOSPC
    one = failed.serial
    assert failed.since(FILE, one) == 0
    assert failed.since(FILE, other) == errno.ENOSPC


def test_a_file_is_not_told_of_anothers_failure() -> None:
    failed = FailedWrites()
    seen = failed.seen_at_open(OTHER)
    failed.note(FILE, errno.EIO)
    assert failed.since(OTHER, seen) == 0


def test_a_failure_that_nobody_heard_of_is_told_to_who_opens_next_and_to_none_after() -> None:
    failed = FailedWrites()
    failed.note(FILE, errno.EIO)
    first = failed.seen_at_open(FILE)
    assert failed.since(FILE, first) == errno.EIO
    assert failed.since(FILE, failed.seen_at_open(FILE)) == 0


def test_the_newest_failure_is_the_one_that_is_told() -> None:
    failed = FailedWrites()
    seen = failed.seen_at_open(FILE)
    failed.note(FILE, errno.EIO)
    failed.note(FILE, errno.EFBIG)
    assert failed.since(FILE, seen) == errno.EFBIG


def test_of_many_failures_the_newest_are_remembered() -> None:
    failed = FailedWrites()
    for number in range(FAILED_WRITES_MAX + 1):
        failed.note(InodeNumber(number), errno.EIO)
    assert failed.since(InodeNumber(0), -1) == 0
    assert failed.since(InodeNumber(1), -1) == errno.EIO
