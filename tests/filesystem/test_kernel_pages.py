"""Pages: they are old for as long as the kernel may have them so, and dropped when nothing is in the way.

With attributes and changes, `test_kernel_cache.py`.
"""

import threading

import pytest
import trio
import trio.testing

from fusemirror.filesystem.kernel_pages import Pages
from fusemirror.filesystem.notifier import Notifier
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import KERNEL_STEADY_S, MAPPING_DELAY_S

FILE = InodeNumber(7)
PATIENCE_S = 30


class Kernel:
    """Counts whose pages are dropped, and may need an answer first."""

    def __init__(self) -> None:
        self.dropped: list[InodeNumber] = []
        self.stored: list[tuple[int, bytes]] = []
        self.needs_an_answer = False
        self.questions = 0
        self.ending: tuple[int, bytes] | None = None
        self.heard = threading.Event()
        notifier = Notifier(self._invalidate)
        self.pages = Pages(notifier, self._must_wait, self._store, lambda _: self.ending)

    def _invalidate(self, inode: InodeNumber, attributes_only: bool) -> None:
        assert not attributes_only
        self.dropped.append(inode)
        self.heard.set()

    def _must_wait(self, _: InodeNumber) -> bool:
        self.questions += 1
        return self.needs_an_answer

    def _store(self, inode: InodeNumber, offset: int, content: bytes) -> None:
        self.stored.append((offset, content))


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


async def read(pages: Pages) -> None:
    pages.reads(FILE)
    pages.has_moved_data(FILE)


async def test_old_pages_are_fresh_again_once_the_kernel_must_have_heard(
    kernel: Kernel, autojump_clock: trio.testing.MockClock
) -> None:
    pages = kernel.pages
    seen = [pages.are_fresh(FILE)]
    await read(pages)
    seen.append(pages.are_fresh(FILE))
    pages.changed(FILE, must_drop=False)
    seen.append(pages.are_fresh(FILE))
    await trio.sleep(KERNEL_STEADY_S)
    assert [*seen, pages.are_fresh(FILE)] == [True, True, False, True]


async def test_what_is_suspect_is_dropped_when_no_answer_is_on_its_way(
    kernel: Kernel, autojump_clock: trio.testing.MockClock
) -> None:
    await read(kernel.pages)
    kernel.needs_an_answer = True
    kernel.pages.changed(FILE, must_drop=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kernel.pages.run)
        await trio.sleep(10 * MAPPING_DELAY_S)
        assert kernel.questions > 1, "it is put off, and looked at again"
        assert not kernel.dropped
        kernel.needs_an_answer = False
        assert await trio.to_thread.run_sync(kernel.heard.wait, PATIENCE_S)
        nursery.cancel_scope.cancel()
    assert kernel.dropped == [FILE]


async def test_a_file_that_grew_is_told_once_how_long_it_is(kernel: Kernel) -> None:
    await read(kernel.pages)
    kernel.ending = (99, b"z")
    kernel.pages.refresh(FILE)
    kernel.pages.copied(FILE, is_open=True)
    assert kernel.stored == [(99, b"z")]
    assert FILE not in kernel.pages.held
    kernel.pages.forget_end(FILE)
    kernel.pages.copied(FILE, is_open=True)
    assert kernel.stored == [(99, b"z")] * 2, "it may be shorter, for what is known"


async def test_a_read_under_way_is_not_waited_for_in_the_loop(kernel: Kernel) -> None:
    kernel.pages.reads(FILE)
    kernel.pages.refresh(FILE)
    assert FILE in kernel.pages.held, "they go a moment later"
    kernel.pages.has_moved_data(FILE)
    with trio.fail_after(PATIENCE_S):
        await kernel.pages.dropped(FILE)
    assert FILE in kernel.dropped
