"""Reservations: what one host holds, the other may not change. Only the primary decides.

While a host holds a file, the other gets EBUSY for whatever would change it: its data and length, its
attributes and extended attributes, and its names: unlinking, linking, renaming or replacing it. While
a host holds the whole filesystem, the other gets EBUSY for every change. Reading, fsync and what the
filesystem does by itself go on. Source: seed [0074]-[0076] (steps 834, 838, 848: reservation conflict).
"""

import errno
from collections.abc import Iterator

from fusemirror.change import Row
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import RESERVATIONS_MAX
from fusemirror.operations import (
    Link,
    Operation,
    Release,
    RemoveDirectory,
    RemoveXattr,
    Rename,
    Reserve,
    SetAttributes,
    SetXattr,
    Unlink,
    Write,
)
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.reservations import EVERYTHING, Reservation, reservation_row


def holder_against(catalog: Catalog, operation: Operation, host: bytes) -> Reservation | None:
    """The other host's reservation that forbids `host` this change, or None."""
    reservations = catalog.reservations
    if isinstance(operation, Reserve | Release):
        return None
    for inode in (EVERYTHING, *_changed(catalog, operation)):
        held = reservations.get(inode)
        if held is not None and held.holder != host:
            return held
    return None


def check_reserved(catalog: Catalog, operation: Operation, host: bytes) -> None:
    """Raise EBUSY where the other host's reservation forbids the change."""
    if holder_against(catalog, operation, host) is not None:
        raise OperationFailed(errno.EBUSY)


def _changed(catalog: Catalog, operation: Operation) -> Iterator[InodeNumber]:
    """The inodes that an operation changes as such; of a directory whose names change, nothing."""
    if isinstance(operation, Write | SetAttributes | SetXattr | RemoveXattr | Link):
        yield operation.inode
    elif isinstance(operation, Unlink | RemoveDirectory | Rename):
        yield from _named(catalog, operation.parent, operation.name)
        if isinstance(operation, Rename):
            yield from _named(catalog, operation.new_parent, operation.new_name)


def _named(catalog: Catalog, parent: InodeNumber, name: bytes) -> Iterator[InodeNumber]:
    entry = catalog.entry(parent, name)
    if entry is not None:
        yield entry.inode


# --- taking and giving up --------------------------------------------------------------------------------


def conflicts(catalog: Catalog, inode: InodeNumber, host: bytes) -> dict[InodeNumber, Reservation]:
    """What the other host holds of `inode`; of everything, whatever it holds."""
    return {
        held: reservation
        for held, reservation in catalog.reservations.items()
        if reservation.holder != host and (inode == EVERYTHING or held in (inode, EVERYTHING))
    }


def reserve_rows(catalog: Catalog, operation: Reserve, host: bytes, time_ns: int) -> tuple[Row, ...]:
    """The rows by which `host` takes a reservation; none where it has it already.

    EBUSY where the other host has one and it is not taken over; ENOENT, EISDIR where there is no such
    file; ENOLCK beyond RESERVATIONS_MAX.
    """
    inode = operation.inode
    if inode != EVERYTHING:
        found = catalog.inode(inode)
        if found is None or (found.nlink == 0 and not found.is_directory):
            raise OperationFailed(errno.ENOENT)
        if found.is_directory:
            raise OperationFailed(errno.EISDIR)
    in_the_way = conflicts(catalog, inode, host)
    if in_the_way and not operation.preempt:
        raise OperationFailed(errno.EBUSY)
    rows = [reservation_row(held, None) for held in in_the_way if held != inode]
    own = catalog.reservations.get(inode)
    if own is None or own.holder != host:
        if own is None and len(catalog.reservations) - len(rows) >= RESERVATIONS_MAX:
            raise OperationFailed(errno.ENOLCK)
        rows.append(reservation_row(inode, Reservation(host, time_ns, operation.path)))
    return tuple(rows)


def release_rows(catalog: Catalog, operation: Release, host: bytes) -> tuple[Row, ...]:
    """The rows by which a reservation ends; none where there is none. EBUSY for one of the other host's."""
    held = catalog.reservations.get(operation.inode)
    if held is None:
        return ()
    if held.holder != host and not operation.preempt:
        raise OperationFailed(errno.EBUSY)
    return (reservation_row(operation.inode, None),)
