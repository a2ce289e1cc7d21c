"""The notifier: what the kernel has let go of needs no notification, and another error is logged."""

import errno
import logging
import os

import pytest

from fusemirror.filesystem.notifier import LET_GO, Notifier
from fusemirror.identifiers import InodeNumber

INODE = InodeNumber(7)


@pytest.mark.parametrize("number", [*sorted(LET_GO), errno.EIO])
@pytest.mark.expects_warnings
def test_only_an_error_that_means_something_is_logged(number: int, caplog: pytest.LogCaptureFixture) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    notifier = Notifier(fails)
    with caplog.at_level(logging.INFO):
        notifier.take_back_attributes(INODE)
        notifier.drop_pages(INODE)
    assert bool(caplog.records) == (number not in LET_GO)


def test_attributes_and_pages_are_notified_as_what_they_are() -> None:
    told: list[tuple[InodeNumber, bool]] = []
    notifier = Notifier(lambda inode, attributes_only: told.append((inode, attributes_only)))
    notifier.take_back_attributes(INODE)
    notifier.drop_pages(INODE)
    assert told == [(INODE, True), (INODE, False)]
