"""Reservations: what one host holds, the other may not change. Only the primary decides.

While a host holds a file, the other gets EBUSY for whatever would change it: its data and length, its
attributes and extended attributes, and its names: unlinking, linking, renaming or replacing it. While
a host holds the whole filesystem, the other gets EBUSY for every change. Reading, fsync and what the
filesystem does by itself go on. Source: seed [0074]-[0076] (steps 834, 838, 848: reservation conflict).
"""

import errno

from fusemirror.errors import OperationFailed
from fusemirror.operations import Operation
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.reservations import EVERYTHING, Reservation


def holder_against(catalog: Catalog, operation: Operation, host: bytes) -> Reservation | None:
    """The other host's reservation that forbids `host` this change, or None."""
    if operation.obeys_reservations:
        for inode in (EVERYTHING, *operation.touched_inodes(catalog)):
            held = catalog.reservations.get(inode)
            if held is not None and held.holder != host:
                return held
    return None


def check_reserved(catalog: Catalog, operation: Operation, host: bytes) -> None:
    """Raise EBUSY where the other host's reservation forbids the change."""
    if holder_against(catalog, operation, host) is not None:
        raise OperationFailed(errno.EBUSY)
