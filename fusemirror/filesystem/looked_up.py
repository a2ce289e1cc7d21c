"""Looked-up dentries: which directory a thread takes a name for, as it was told last.

FUSE asks to remove or to replace a name. When that succeeds the kernel takes the directory that the thread
has looked up for removed, and shows it empty from then on (S_DEAD). The other host may have moved that one
away, and put another under the name, since the thread looked. So the request says what was expected. A
thread looks just before it asks, unless the kernel keeps the name: then the other host has not changed it.
One that looked long before, and has been told nothing since, has to look and ask once more.
"""

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import DIRECTORIES_TOLD_MAX
from fusemirror.volume.inode import Inode

_UNKNOWN = InodeNumber(0)


class LookedUpDentries:
    """The last that were told, by thread, parent and name."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, InodeNumber, bytes], InodeNumber] = {}

    def note(self, thread: int, parent: InodeNumber, name: bytes, inode: Inode) -> None:
        """A thread is told of a name now."""
        self.forget(thread, parent, name)
        if inode.is_directory:
            self._seen[thread, parent, name] = inode.number
            if len(self._seen) > DIRECTORIES_TOLD_MAX:
                del self._seen[next(iter(self._seen))]

    def forget(self, thread: int, parent: InodeNumber, name: bytes) -> None:
        """The thread is told that there is no such name."""
        self._seen.pop((thread, parent, name), None)

    def pop(self, thread: int, parent: InodeNumber, name: bytes) -> InodeNumber:
        """The directory that the thread was told last, once; 0 where it was none, or is not known."""
        return self._seen.pop((thread, parent, name), _UNKNOWN)
