"""Letting go: which inodes without names this host's kernel holds no more.

A current directory, an O_PATH descriptor and a bind mount hold an inode without an open that this host
hears of; so do names that the kernel has cached, until it is told to drop them.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial

from fusemirror.filesystem.notifier import LET_GO, Notifier
from fusemirror.identifiers import InodeNumber

log = logging.getLogger(__name__)

Prune = Callable[[Sequence[InodeNumber]], None]
"""Tells the kernel to let go of what no program holds."""


class LettingGo:
    """See the module. Before `attach`, and for ever where the kernel cannot be told, it says of every inode
    that it is gone, as nothing else can be known.
    """

    def __init__(self, notifier: Notifier, removed: Callable[[InodeNumber], None]) -> None:
        """`removed` is called before the kernel is asked about an inode."""
        self._notifier = notifier
        self._removed = removed
        self._prune: Prune | None = None
        self._gone: set[InodeNumber] = set()  # a thread adds
        self._asked: set[InodeNumber] = set()

    def attach(self, prune: Prune) -> None:
        self._prune = prune

    def gone(self, inodes: Collection[InodeNumber]) -> Collection[InodeNumber]:
        """Which of these the kernel has let go of; it is asked about the others, for the next time."""
        if self._prune is None:
            return inodes
        gone = self._gone.intersection(inodes)
        unasked = [inode for inode in inodes if inode not in gone and inode not in self._asked]
        for inode in unasked:
            self._removed(inode)
        if unasked:
            self._asked.update(unasked)
            self._notifier.beside(partial(self._ask, self._prune, unasked))
        return gone

    def _ask(self, prune: Prune, inodes: Sequence[InodeNumber]) -> None:
        """In a thread: the kernel may wait for an inode that is being freed."""
        for inode in inodes:
            try:
                prune((inode,))
                self._notifier.invalidate(inode, True)  # an error where it does not have the inode
            except OSError as error:
                if error.errno in LET_GO:
                    self._gone.add(inode)
                else:
                    log.error("the kernel could not be asked to let go of inode %d: %s", inode, error)
        self._asked.difference_update(inodes)

    def changed(self, inode: InodeNumber) -> None:
        """It may have got a name; or it has ended."""
        self._gone.discard(inode)

    def clear(self) -> None:
        self._gone.clear()
