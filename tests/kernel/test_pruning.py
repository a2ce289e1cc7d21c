"""Pruning: what threads tell the kernel, until the descriptor leads to it no more."""

import errno
import os
import threading

import pytest

from fusemirror.kernel import codec
from fusemirror.kernel.pruning import Pruning

DEADLINE_S = 5.0


def test_the_kernel_is_told_until_the_end() -> None:
    theirs, ours = os.pipe()
    try:
        pruning = Pruning(ours)
        pruning.prune([7])
        assert os.read(theirs, 1000) == codec.prune_notice([7])
        pruning.end()
        with pytest.raises(OSError, match="unmounted") as raised:
            pruning.prune([7])
        assert raised.value.errno == errno.ENODEV
    finally:
        os.close(ours)
        os.close(theirs)


def test_the_end_waits_for_a_thread_that_is_about_to_write_and_not_for_one_in_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, done = threading.Event(), threading.Event()

    def write(_: int, data: bytes) -> int:
        held.set()
        done.wait(DEADLINE_S)  # in the kernel, which waits for an inode that is being freed
        return len(data)

    monkeypatch.setattr(os, "write", write)
    pruning = Pruning(0)
    thread = threading.Thread(target=pruning.prune, args=([7],))
    thread.start()
    assert held.wait(DEADLINE_S)
    pruning.end()
    assert thread.is_alive()
    done.set()
    thread.join(DEADLINE_S)
    with pytest.raises(OSError, match="unmounted"):
        pruning.prune([7])
