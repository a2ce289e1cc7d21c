"""Cache invalidation: who must hear of every change of a volume before anyone else can see it.

A kernel may hold attributes, names and content that it was told before. What it holds of a change is
taken back when the change is applied: at the primary that is before the backup can hear of it, at the
backup before the primary hears that it is there. So no program sees the new state while another, on
either host, can still be shown the old one (G2).
"""

from collections.abc import Collection, Iterable
from typing import Protocol

from fusemirror.change import Row
from fusemirror.identifiers import InodeNumber


class CacheInvalidator(Protocol):
    """Called on the event loop, right after the volume changed; must neither wait nor fail."""

    def data_changed(self, inode: InodeNumber, *, own: bool) -> None:
        """The content, size and times of an image; `own` where a program of this host did it."""

    def rows_changed(self, rows: Iterable[Row], *, own: bool) -> None:
        """Rows of the catalog; `own` as above."""

    def image_suspect(self, inode: InodeNumber) -> None:
        """Content that was read before may be wrong, though size and times tell nothing of it."""

    def catalog_replaced(self) -> None:
        """Everything may be otherwise."""

    def lease_over(self) -> None:
        """From now on the other host may change what it likes, and this one does not hear of it."""

    def has_let_go(self, inodes: Collection[InodeNumber]) -> Collection[InodeNumber]:
        """Those of some inodes without names that the kernel is known to refer to no more. It is asked about
        the others, so that a later call knows."""


class Nobody:
    """For a volume that no kernel shows."""

    def data_changed(self, inode: InodeNumber, *, own: bool) -> None:
        pass

    def rows_changed(self, rows: Iterable[Row], *, own: bool) -> None:
        pass

    def image_suspect(self, inode: InodeNumber) -> None:
        pass

    def catalog_replaced(self) -> None:
        pass

    def lease_over(self) -> None:
        pass

    def has_let_go(self, inodes: Collection[InodeNumber]) -> Collection[InodeNumber]:
        return inodes
