"""The notifier: what this host's kernel is told of inodes, by threads where it may make them wait."""

import errno
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pyfuse3

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import NOTIFICATION_TIMEOUT_S

log = logging.getLogger(__name__)

# The kernel does not have the inode, or not the mount any more; libfuse says the last.
LET_GO = frozenset({errno.ENOENT, errno.ENODEV, errno.ENOTCONN, errno.EINVAL})
_NOTIFIERS = 4  # threads: one that waits for an inode to be freed must not keep the others waiting

Invalidate = Callable[[InodeNumber, bool], None]
"""(inode, whether only its attributes): pyfuse3.invalidate_inode."""


class Notifier:
    """See the module."""

    def __init__(self, invalidate: Invalidate = pyfuse3.invalidate_inode) -> None:
        self.invalidate = invalidate
        self._threads = ThreadPoolExecutor(_NOTIFIERS, "notifier")

    def beside(self, work: Callable[[], None]) -> Future[None]:
        """Do it in a thread."""
        return self._threads.submit(work)

    def take_back_attributes(self, inode: InodeNumber) -> None:
        """On return the kernel asks again, or it is letting go of the inode.

        The notification takes no lock, but it waits for an inode that is being freed, and that may wait
        for the answer to its last write: hence a thread, and a limit. A freed inode is granted nothing.
        """
        notified = self.beside(lambda: self._notify(inode, attributes_only=True))
        try:
            notified.result(timeout=NOTIFICATION_TIMEOUT_S)
        except TimeoutError:
            log.info("the kernel is letting go of inode %d, and was not waited for", inode)

    def drop_pages(self, inode: InodeNumber) -> None:
        """On return the kernel has no pages of the inode. It waits for locks of pages."""
        self._notify(inode, attributes_only=False)

    def _notify(self, inode: InodeNumber, *, attributes_only: bool) -> None:
        self.tell(inode, lambda: self.invalidate(inode, attributes_only))

    def tell(self, inode: InodeNumber, notify: Callable[[], None]) -> None:
        """Call `notify`; an inode that the kernel has let go of needs no notification."""
        try:
            notify()
        except OSError as error:
            if error.errno not in LET_GO:
                log.error("the kernel could not be told that inode %d changed: %s", inode, error)
