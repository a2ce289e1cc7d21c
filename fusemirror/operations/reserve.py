"""Reserve: one host holds a file, or the whole filesystem, and the other may not change it."""

import errno
from typing import ClassVar

from fusemirror.errors import OperationFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import RESERVATIONS_MAX, RESERVED_PATH_BYTES_MAX
from fusemirror.operations.draft import Decision, Draft
from fusemirror.operations.operation import OfInode, check_fields, require
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.reservations import EVERYTHING, Reservation, reservation_row


def conflicts(catalog: Catalog, inode: InodeNumber, host: bytes) -> dict[InodeNumber, Reservation]:
    """What the other host holds of `inode`; of everything, whatever it holds."""
    return {
        held: reservation
        for held, reservation in catalog.reservations.items()
        if reservation.holder != host and (inode == EVERYTHING or held in (inode, EVERYTHING))
    }


class Reserve(OfInode, tag=20, frozen=True, array_like=True):
    """Hold a file, or with inode 0 the whole filesystem, for the host that asks; `preempt` takes it over.

    `path` is what people know the file by, from the root of the filesystem.
    """

    obeys_reservations: ClassVar[bool] = False  # it decides itself what is in the way

    path: bytes = b""
    preempt: bool = False

    def check(self) -> None:
        check_fields(self)
        require(len(self.path) <= RESERVED_PATH_BYTES_MAX, errno.ENAMETOOLONG)

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        """EBUSY where the other host has one and it is not taken over; ENOENT, EISDIR where there is no such
        file; ENOLCK beyond RESERVATIONS_MAX.
        """
        catalog, host, inode = draft.catalog, draft.host, self.inode
        if inode != EVERYTHING:
            found = catalog.inode(inode)
            if found is None or (found.nlink == 0 and not found.is_directory):
                raise OperationFailed(errno.ENOENT)
            if found.is_directory:
                raise OperationFailed(errno.EISDIR)
        in_the_way = conflicts(catalog, inode, host)
        if in_the_way and not self.preempt:
            raise OperationFailed(errno.EBUSY)
        ended = [held for held in in_the_way if held != inode]
        for held in ended:
            draft.put(reservation_row(held, None))
        own = catalog.reservations.get(inode)
        if own is None or own.holder != host:
            if own is None and len(catalog.reservations) - len(ended) >= RESERVATIONS_MAX:
                raise OperationFailed(errno.ENOLCK)
            draft.put(reservation_row(inode, Reservation(host, draft.time_ns, self.path)))
        return draft.decision(inode)
