"""Removal: images on their way out.

An image goes when the record that removed its inode is durable: before, a power cut could bring the inode
back without its data. What takes long to free is discarded first, under another name, and freed a little at
a time in a thread (`images.py`).
"""

from collections import deque
from collections.abc import Iterable

import trio

from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.seams import Seams
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.health import Health, noting_async
from fusemirror.volume.images import Images
from fusemirror.volume.journal import Journal
from fusemirror.volume.regions import Regions
from fusemirror.volume.space import Space


class Removal:
    """The images of one volume whose inodes were removed, in the order of the changes that did it."""

    def __init__(
        self,
        catalog: Catalog,
        images: Images,
        journal: Journal,
        regions: Regions,
        space: Space,
        health: Health,
        seams: Seams,
    ) -> None:
        self._catalog = catalog
        self._images = images
        self._journal = journal
        self._regions = regions
        self._space = space
        self._seams = seams
        self.health = health
        self._purged: deque[tuple[ChangeNumber, InodeNumber]] = deque()
        self._discarded = trio.Event()

    @property
    def oldest(self) -> ChangeNumber | None:
        """The first change whose record is needed still, as an image is there that it removed."""
        return self._purged[0][0] if self._purged else None

    def add(self, number: ChangeNumber, inodes: Iterable[InodeNumber]) -> None:
        """Change `number` removed these inodes."""
        self._purged.extend((number, inode) for inode in inodes)

    def forget(self) -> None:
        """No image is removed any more; a new catalog says at its end which are in none."""
        self._purged.clear()
        self._images.spares.keep_all()

    @noting_async
    async def remove(self) -> None:
        """Remove the images of inodes whose end is durable. Cancelled, some may stay a while. OSError."""
        durable = self._journal.durable_number
        self._images.spares.keep(not self._space.lacks_inodes)
        if purged := self._release(durable):
            used = set(await self._seams.run_blocking(self._images.spares.recycle, purged))
            gone = list[tuple[ChangeNumber, InodeNumber]]()
            while self._purged and self._purged[0][0] <= durable:
                gone.append(self._purged.popleft())
            # A comparison that was in the middle of one opened it again: it goes the next time.
            self._purged.extendleft(
                (number, inode)
                for number, inode in reversed(gone)
                if inode in used and self._catalog.inode(inode) is None
            )
        self.note_discarded()

    def remove_blocking(self) -> None:
        """The same at the end of a mount, when nobody uses an image. OSError."""
        self._images.spares.recycle(self._release(self._journal.durable_number))

    def _release(self, durable: ChangeNumber) -> list[InodeNumber]:
        """The images that durable records removed, let go of. They stay in the queue, for `oldest`."""
        inodes = [inode for number, inode in self._purged if number <= durable]
        for inode in inodes:
            self._images.leave(inode)
            self._regions.forget(inode)
        return inodes

    @noting_async
    async def free_discarded(self) -> None:
        """Wait until images are discarded, and free what they held, in a thread. Cancelled, it goes on with
        the rest another time. OSError.

        It hears at once of images that were cut, and of all others when their end is made durable.
        """
        self.note_discarded()
        await self._discarded.wait()
        self._discarded = trio.Event()
        while await self._seams.run_blocking(self._images.discarded.free_some):
            pass

    def note_discarded(self) -> None:
        """An image may have been discarded: whoever frees them is to look."""
        if not self._images.discarded.is_empty:
            self._discarded.set()
