"""What of the subvolume is not the primary's yet, as far as the backup was told."""

from fusemirror.identifiers import InodeNumber
from fusemirror.protocol.messages import Resync
from fusemirror.volume.volume import Volume


class OutOfSyncHere:
    """Of one backup. What the primary knows of it stands in `out_of_sync.py`."""

    def __init__(self, volume: Volume) -> None:
        self.images: set[InodeNumber] = set()
        self.resync: Resync | None = None
        """How far it is, as the primary said last; None while there is none."""
        self._volume = volume

    @property
    def size_bytes(self) -> int:
        """How many bytes here may be old: what the primary has yet to compare, or all of such images."""
        if self.resync is not None:
            return max(self.resync.total_bytes - self.resync.done_bytes, 0)
        found = (self._volume.catalog.inode(inode) for inode in self.images)
        return sum(inode.size for inode in found if inode is not None)
