"""Reading this host's own volume: what it has as data, and where, with pending writes on top."""

import errno
from collections.abc import Collection

from fusemirror.communication.staged import Staged
from fusemirror.control.host_state import HostState
from fusemirror.control.overlay import data_with, hole_with, size_with
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.volume.inode import Inode


def found(inode: Inode | None, error: int) -> Inode:
    """The inode, or the errno raised."""
    if inode is None:
        raise OperationFailed(error)
    return inode


def read_here(host: HostState, inode: InodeNumber, offset: int, length: int) -> bytes:
    """Content as this host's volume has it."""
    host.reads.local += 1
    try:
        return host.volume.read(inode, offset, length)
    except OSError as error:
        raise OperationFailed(error.errno or errno.EIO) from error


def size_to_seek(host: HostState, inode: InodeNumber, offset: int, writes: Collection[Staged] = ()) -> int:
    """How long a file is that is looked into from `offset` on; ENXIO where that is behind its end."""
    size = size_with(found(host.volume.catalog.inode(inode), errno.ESTALE).size, writes)
    if offset >= size:
        raise OperationFailed(errno.ENXIO)
    return size


def seek_here(
    host: HostState, inode: InodeNumber, offset: int, *, data: bool, writes: Collection[Staged] = ()
) -> int:
    """`Reads.seek` in this host's volume, with these writes on top."""
    size = size_to_seek(host, inode, offset, writes)
    volume = host.volume
    try:
        if data:
            place = data_with(volume.files.next_data(inode, offset, size), offset, writes)
        else:
            place = hole_with(lambda at: volume.files.next_hole(inode, at, size), offset, writes)
    except OSError as error:
        raise OperationFailed(error.errno or errno.EIO) from error
    if data and place >= size:
        raise OperationFailed(errno.ENXIO)
    return min(place, size)
