"""What programs of this host have open, and which inodes without names nobody here opens any more."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable

from fusemirror.identifiers import InodeNumber


class OpenInodes:
    """Counts over all roles that the host has, as long as its mount process lives."""

    def __init__(self) -> None:
        self._count: Counter[InodeNumber] = Counter()
        self._given_up: set[InodeNumber] = set()

    def __contains__(self, inode: InodeNumber) -> bool:
        return inode in self._count

    def add(self, inode: InodeNumber) -> None:
        self._count[inode] += 1

    def remove(self, inode: InodeNumber) -> None:
        self._count[inode] -= 1
        if not self._count[inode]:
            del self._count[inode]

    # --- inodes without names (`mirror/holdings.py`) ------------------------------------------------------

    def give_up(
        self,
        inodes: Iterable[InodeNumber],
        let_go: Collection[InodeNumber],
        has_no_name: Callable[[InodeNumber], bool],
    ) -> tuple[InodeNumber, ...]:
        """Those of `inodes` that are open, or that the kernel has not `let_go` of. The primary may end the
        others, so they are given up."""
        held = tuple(inode for inode in inodes if inode in self or inode not in let_go)
        self._given_up = {each for each in self._given_up.union(inodes).difference(held) if has_no_name(each)}
        return held

    def is_given_up(self, inode: InodeNumber) -> bool:
        return inode in self._given_up

    def keep_all(self) -> None:
        """This host is the primary: what it ends it looks up here at the same moment."""
        self._given_up.clear()
