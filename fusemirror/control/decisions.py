"""Decisions of the primary: each change is decided, applied to main and published, with no wait in between.

So the order of numbers is the order in both volumes. What a repair brings back from the backup, and what the
filesystem does by itself, takes the same way. Source: seed [0053], [0054] (JOB4).
"""

import errno
import logging
import stat
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple, cast

from fusemirror.change import AnyChange, NamespaceChange, Row, Table, WriteChange, encode_change
from fusemirror.control.host_state import HostState
from fusemirror.control.local_reads import found
from fusemirror.control.reservations import check_reserved
from fusemirror.errors import (
    BadChange,
    DiskFailed,
    DiskFull,
    FusemirrorError,
    OperationFailed,
)
from fusemirror.identifiers import NO_CHANGE, NO_REQUEST, ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import FILE_BYTES_MAX, WRITE_BYTES_MAX
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.sending import Mirror
from fusemirror.mirror.states import PrimaryState
from fusemirror.operations import Key, Operation, SetAttributes, Write
from fusemirror.operations.draft import Decision, Draft
from fusemirror.operations.privileges import has_privileges
from fusemirror.protocol.framing import Buffer
from fusemirror.volume.contradictions import contradiction_of
from fusemirror.volume.entries import key_inode

log = logging.getLogger(__name__)


class _Refusal(NamedTuple):
    """Of a write that was acknowledged early; `told` is called once that is recorded."""

    inode: InodeNumber
    errno: int
    told: Callable[[], None]


class Decisions:
    """See the module. Nobody else changes main."""

    def __init__(self, host: HostState, mirror: Mirror) -> None:
        self.unrecorded: dict[RequestId, _Refusal] = {}
        """Refused for good, with no room on the disk for the record; the oldest first. No change of the same
        files goes before, nor any that needs room itself. So a write whose refusal a kill forgets may be
        carried out: nothing that it could undo went before it.
        """
        self._host = host
        self._volume = host.volume
        self._mirror = mirror

    def make(
        self,
        operation: Operation,
        data: Buffer,
        request: RequestId,
        *,
        holder: Replica | None = None,
        repairs: bool = False,
    ) -> InodeNumber:
        """Decide, apply and publish. On return the main volume holds it; raises `OperationFailed`.

        `holder` is whose request it is: it has the data, which crosses the network once. `repairs`: the data
        becomes what it was; no privileges end.
        """
        try:
            if operation.carries_data and not repairs:
                write = cast(Write, operation)
                if self.write(write, data, request, holder):
                    return write.inode
            decision = self._make(operation, data, request, holder, repairs=repairs)
        except OperationFailed:
            raise
        except (OSError, FusemirrorError) as error:
            raise self.failure(operation, error) from error
        if decision.new_file:
            self._volume.files.prepare(decision.inode)  # while the backup applies it: most are written next
        return decision.inode

    def failure(self, operation: Operation, error: OSError | FusemirrorError) -> OperationFailed:
        """What whoever asked for it gets."""
        if isinstance(error, OperationFailed):
            return error
        if not isinstance(error, OSError | DiskFailed):
            log.error("%s failed: %s", type(operation).__name__, error)
        return OperationFailed(error.errno or errno.EIO)

    def _make(
        self,
        operation: Operation,
        data: Buffer,
        request: RequestId,
        holder: Replica | None,
        *,
        repairs: bool,
    ) -> Decision:
        catalog = self._volume.catalog
        host = self._host.identity if holder is None else holder.known.identity
        if catalog.reservations:
            check_reserved(catalog, operation, host)
        if not all(replica.knows(operation) for replica in self._mirror.replicas):
            raise OperationFailed(errno.EOPNOTSUPP)
        if not operation.begins_line and self._mirror.must_begin_generation:
            raise OperationFailed(errno.EAGAIN)
        data_bytes = len(data)
        if self.unrecorded:
            self._refuse_before(operation, data_bytes)
        needed = operation.space_needed(data_bytes)
        inodes = operation.inodes_needed
        if needed and not (
            self._volume.space.take(needed, inodes)
            and all(replica.room.has(needed, inodes) for replica in self._mirror.replicas)
        ):
            self._check_in_place(operation, data_bytes)
        if operation.reserves_beyond_end(catalog):
            self._check_reserved(operation)
        decision = self._decide(operation, data_bytes, request, host, repairs)
        change = decision.change
        if change is None:
            return decision
        if change.rows and change.image and not all(replica.takes_rows for replica in self._mirror.replicas):
            return self._make_in_steps(operation, data, request, host, holder)
        self._publish(change, data, decision.keys, decision.old_size, holder)
        return decision

    def write(
        self,
        operation: Write,
        data: Buffer,
        request: RequestId = NO_REQUEST,
        holder: Replica | None = None,
    ) -> ChangeNumber:
        """`make`, for a write about which nothing special is to be decided: the number of its change.

        NO_CHANGE: there is, and nothing was done. OSError, FusemirrorError: it did not take effect.
        """
        volume, size_bytes = self._volume, len(data)
        if volume.catalog.reservations or operation.append or self.unrecorded:
            return NO_CHANGE
        inode = volume.catalog.inode(operation.inode)
        if (
            inode is None
            or inode.flags != 0  # or nobody has looked, as with the capability
            or inode.capable is not False
            or (operation.clear_privileges and has_privileges(volume.catalog, inode, clear_set_id=True))
            or not stat.S_ISREG(inode.mode)
            or not 0 < size_bytes <= WRITE_BYTES_MAX
            or operation.offset + size_bytes > volume.file_bytes_max
        ):
            return NO_CHANGE
        needed_bytes = operation.space_needed(size_bytes)
        for replica in self._mirror.replicas:
            if replica.state is not PrimaryState.NORMAL or not replica.room.has(needed_bytes):
                return NO_CHANGE
        if not volume.space.take(needed_bytes):
            return NO_CHANGE
        number, time_ns = ChangeNumber(volume.number + 1), volume.clock.next_ns()
        change = WriteChange(number, request, time_ns, operation.inode, operation.offset, size_bytes)
        self._publish(change, data, (operation.inode,), inode.size, holder)
        return number

    def _check_in_place(self, operation: Operation, data_bytes: int) -> None:
        """ENOSPC, but for what only overwrites bytes that have their room on the disk."""
        covered = operation.touched_range(self._volume.catalog, data_bytes)
        if covered is None or not self._volume.images.content.is_allocated(*covered):
            raise OperationFailed(errno.ENOSPC)

    def _check_reserved(self, operation: Operation) -> None:
        """EOPNOTSUPP where so many places are reserved beyond the end of the file that a truncation, which
        frees them all at once, would take long."""
        if self._volume.images.content.is_scattered_beyond_end(operation.image):
            raise OperationFailed(errno.EOPNOTSUPP)

    def _decide(
        self, operation: Operation, data_bytes: int, request: RequestId, host: bytes, repairs: bool = False
    ) -> Decision:
        """What it does as the next change. OperationFailed."""
        volume = self._volume
        while True:
            number, time_ns = ChangeNumber(volume.number + 1), volume.clock.next_ns()
            draft = Draft(volume.catalog, number, time_ns, request, host, volume.file_bytes_max, repairs)
            decision = operation.decide(draft, data_bytes)
            if decision.change is None or not self._mirror.must_begin_generation:
                return decision
            # Only now is it sure that there is a change; its number comes after the generation's.
            self._mirror.begin_generation()

    def _publish(
        self,
        change: AnyChange,
        data: Buffer = b"",
        keys: tuple[Key, ...] = (),
        old_size_bytes: int = FILE_BYTES_MAX,
        holder: Replica | None = None,
    ) -> None:
        """Apply a change and send it; of one of data, the file was so long. `holder` as for `make`."""
        # Decided by what the catalog holds now: of a change that came between the decision knows nothing.
        assert change.number == self._volume.number + 1
        encoded = encode_change(change)
        try:
            of_peer = change.request != NO_REQUEST
            self._volume.apply(change, data, encoded=encoded, journal_request=of_peer, own=not of_peer)
        except (OSError, DiskFailed):
            if change.image:
                self._mirror.repair(change)
            raise
        self._mirror.publish(change, encoded, data, keys, old_size_bytes, holder)

    def _make_in_steps(
        self, operation: Operation, data: Buffer, request: RequestId, host: bytes, holder: Replica | None
    ) -> Decision:
        """`make` for a backup of an earlier version, which would leave out the rows of a change of data: it
        becomes several changes, and the last of them answers the request.
        """
        *before, last = operation.in_steps()
        for step in before:
            decision = self._decide(step, 0, NO_REQUEST, host)
            if decision.change is not None:
                self._publish(decision.change, b"", decision.keys, decision.old_size)
        decision = self._decide(last, len(data), request, host)
        assert decision.change is not None, "it has data"
        self._publish(decision.change, data, decision.keys, decision.old_size, holder)
        return decision

    def publish_rows(self, rows: tuple[Row, ...], keys: tuple[Key, ...] = ()) -> None:
        """Make rows that nobody asked for a change. OSError, FusemirrorError."""
        self.record_refusals()
        number, time_ns = ChangeNumber(self._volume.number + 1), self._volume.clock.next_ns()
        change = NamespaceChange(number, NO_REQUEST, time_ns, InodeNumber(0), rows)
        self._publish(change, keys=keys)

    def refuse(
        self, request: RequestId, inode: InodeNumber, error: int, told: Callable[[], None] = lambda: None
    ) -> bool:
        """A write that was acknowledged early is refused for good, as later changes go before it.

        True: the backup hears so in the order of changes, and `told` is called then. That is before return;
        where the disk has no room for the record, before any other change that touches the file or needs
        room. False: the backup is of an earlier version, and the refusal is remembered as long as this
        process lives; `told` was called.
        """
        streams = [replica.stream for replica in self._mirror.replicas if replica.stream is not None]
        if not all(stream.session.peer.takes_refusals for stream in streams):
            self._volume.requests_done.refuse(request, error, self._volume.number)
            told()
            return False
        is_first = not self.unrecorded
        self.unrecorded[request] = _Refusal(inode, error, told)
        try:
            self.record_refusals()
        except (OSError, FusemirrorError):
            if is_first:
                what = "a write of the backup is refused, and waits for room for the record of that"
                log.warning("%s", DiskFull(self._volume.directory, what))
        return True

    def _refuse_before(self, operation: Operation, data_bytes: int) -> None:
        """Before an operation goes what was refused; where there is no room for that yet, nothing but what
        needs none and is of other files, as it may make the room. OSError, FusemirrorError."""
        try:
            self.record_refusals()
        except (OSError, FusemirrorError) as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or operation.space_needed(data_bytes):
                raise
            touched = operation.touched_inodes(self._volume.catalog)
            if any(refusal.inode in touched for refusal in self.unrecorded.values()):
                raise

    def check_recorded(self, inode: InodeNumber) -> None:
        """OperationFailed where a write of the file was refused, and the disk has no room for the record of
        that yet: it is in no volume, and its program was told of success."""
        for refusal in self.unrecorded.values():
            if refusal.inode == inode:
                raise OperationFailed(refusal.errno)

    def record_refusals(self) -> None:
        """On return every refusal is recorded, in its place. OSError, FusemirrorError: there is no room."""
        while self.unrecorded:
            self.record_some(len(self.unrecorded))

    def record_some(self, count: int) -> None:
        """Record so many of them, the oldest first. OSError, FusemirrorError: there is no room."""
        # From a list: the first of a dict is behind the places of all that were recorded.
        for request, refusal in list(islice(self.unrecorded.items(), count)):
            if request in self.unrecorded:  # whoever was told goes on at once, and may have come here
                self._record_refusal(request, refusal)

    def _record_refusal(self, request: RequestId, refusal: _Refusal) -> None:
        if self._mirror.must_begin_generation:
            self._mirror.begin_generation()
        number, time_ns = ChangeNumber(self._volume.number + 1), self._volume.clock.next_ns()
        self._publish(NamespaceChange(number, request, time_ns, InodeNumber(0), (), refusal.errno))
        del self.unrecorded[request]
        refusal.told()

    def restore_rows(self, rows: tuple[Row, ...]) -> None:
        """Make rows of the backup, found by a repair, a change of both volumes. FusemirrorError, OSError."""
        inodes = tuple({key_inode(key) for table, key, _ in rows if table != Table.META})
        contradiction = contradiction_of(self._volume.catalog, rows, retyped=True)
        if contradiction is not None:
            raise BadChange(contradiction)
        if rows:
            self.publish_rows(rows, inodes)

    def restore_length(self, inode: InodeNumber) -> None:
        """Make both images as long as the row says. OperationFailed."""
        size = found(self._volume.catalog.inode(inode), errno.ESTALE).size
        self.make(SetAttributes(inode, size=size), b"", NO_REQUEST, repairs=True)

    def restore_data(self, inode: InodeNumber, offset: int, data: bytes) -> None:
        """Make bytes of the backup a change of both volumes. OperationFailed."""
        self.make(Write(inode, offset), data, NO_REQUEST, repairs=True)
