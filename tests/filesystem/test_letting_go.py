"""Letting go: an inode counts as gone once the kernel has said so, and not a moment longer."""

import errno
import os
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from fusemirror.filesystem.letting_go import LettingGo
from fusemirror.filesystem.notifier import Notifier
from fusemirror.identifiers import InodeNumber

HELD, FREED, BROKEN = InodeNumber(7), InodeNumber(8), InodeNumber(9)


class Kernel(Notifier):
    """Answers at once, in the thread of the test."""

    def __init__(self) -> None:
        super().__init__(self._invalidate)
        self.pruned: list[InodeNumber] = []

    def beside(self, work: Any) -> Future[None]:
        work()
        return Future()

    def prune(self, inodes: Sequence[InodeNumber]) -> None:
        self.pruned += inodes

    def _invalidate(self, inode: InodeNumber, attributes_only: bool) -> None:
        assert attributes_only, "its pages may still be read"
        if inode != HELD:
            number = errno.ENOENT if inode == FREED else errno.EIO
            raise OSError(number, os.strerror(number))


def test_a_kernel_that_cannot_be_told_is_not_waited_for() -> None:
    assert LettingGo(Kernel(), lambda _: None).gone([HELD, FREED]) == [HELD, FREED]


@pytest.mark.expects_warnings
def test_only_what_the_kernel_does_not_know_is_gone() -> None:
    kernel, removed = Kernel(), list[InodeNumber]()
    letting_go = LettingGo(kernel, removed.append)
    letting_go.attach(kernel.prune)
    assert not letting_go.gone([HELD, FREED, BROKEN]), "it is asked only now"
    assert removed == kernel.pruned == [HELD, FREED, BROKEN]
    assert not letting_go._asked
    assert set(letting_go.gone([HELD, FREED, BROKEN])) == {FREED}


def test_what_got_a_name_again_is_asked_about_anew() -> None:
    kernel = Kernel()
    letting_go = LettingGo(kernel, lambda _: None)
    letting_go.attach(kernel.prune)
    letting_go.gone([FREED])
    assert letting_go.gone([FREED])
    letting_go.changed(FREED)
    assert not letting_go.gone([FREED])
    letting_go.clear()
    assert not letting_go.gone([FREED])
