"""What programs of the backup's host may see: the subvolume, with their own pending writes on top.

Reads are served from the subvolume while the primary's lease lasts: the primary shows no effect that is not
here yet, and goes on alone only once the lease is over, so what is read here is never old (G2). An image that
is out of sync is read at the primary. Source: seed [0061].
"""

import errno
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import trio

from fusemirror.coherence.directory_leases import LeaseRequests
from fusemirror.coherence.lock_asking import Asking
from fusemirror.communication.volume import CommunicationVolume
from fusemirror.control.exclusive import ExclusiveAccess
from fusemirror.control.host_state import HostState
from fusemirror.control.landing import Landing
from fusemirror.control.life import RoleLife
from fusemirror.control.local_reads import found, read_here, seek_here, size_to_seek
from fusemirror.control.overlay import attributes_with, content_with
from fusemirror.control.patience import Patience
from fusemirror.control.role import Reads
from fusemirror.errors import ConnectionLost, OperationFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import FILE_BYTES_MAX, KERNEL_DELAY_S
from fusemirror.mirror.applying import Applier
from fusemirror.mirror.states import BackupState
from fusemirror.operations import Key
from fusemirror.protocol.calls import AnyCall, Read, Seek, place_in
from fusemirror.protocol.messages import Answer
from fusemirror.volume.inode import Inode

T = TypeVar("T")

MakeCall = Callable[[AnyCall], Awaitable[tuple[Answer, bytes]]]


class BackupReads(Reads):
    """See the module."""

    def __init__(
        self,
        host: HostState,
        life: RoleLife,
        applier: Applier,
        communication: CommunicationVolume,
        exclusive: ExclusiveAccess,
        landing: Landing,
        asking: Asking,
        lease_requests: LeaseRequests,
        patience: Patience,
        call: MakeCall,
        *,
        stale_reads: bool,
    ) -> None:
        """`call` asks the primary; `stale_reads`: what is here is shown while the primary is away."""
        self.stale = stale_reads
        self._host = host
        self._volume = host.volume
        self._links = host.links
        self._life = life
        self._applier = applier
        self._communication = communication
        self._exclusive = exclusive
        self._landing = landing
        self._asking = asking
        self._lease_requests = lease_requests
        self._patience = patience
        self._call = call

    # --- names and attributes -----------------------------------------------------------------------------

    async def showable(self, key: Key, *, content: bool = False) -> None:
        """The subvolume shows what is, while it is up to date and the lease lasts.

        With what this host's own writes put on top; one in doubt must have taken its place first. And no
        attributes of a file that main has been written to since: its `content` has statuses of its own.
        """
        while key == self._landing.held_back and not content:
            await self._patience.in_time(self._landing.changed.wait)
        self._host.check_disk()
        link = self._links.link
        serves = self._applier.serves and not self._asking.in_doubt
        if link is None or not serves or trio.current_time() >= link.mirror.heartbeat.lease_until:
            if self.stale and link is None and self._volume.identity.whole:
                return
            await self._wait_readable()
        if not isinstance(key, tuple) and (last := self._communication.kept.newest_in_doubt(key)):
            await self._patience.while_progressing(self._communication.kept.wait_ended, key, last)
            await self.showable(key, content=content)

    async def _wait_readable(self) -> None:
        with self._patience.limited():
            while True:
                self._life.check()
                link = self._links.link
                if link is None or not self._applier.serves:
                    await self._applier.changed.wait()
                elif self._asking.in_doubt and not link.mirror.closed:
                    await self._host.locks.changed.wait()
                elif trio.current_time() < link.mirror.heartbeat.lease_until:
                    return
                elif link.mirror.closed:  # the applier has yet to hear of it
                    await self._applier.changed.wait()
                else:
                    await link.mirror.heartbeat.wait_lease()
        raise self._patience.report()

    async def watch_lease(self) -> None:
        """Once a lease is over the primary may go on alone, and what asks nobody must not show old pages."""
        link = self._links.link
        if link is None or link.mirror.closed:
            await self._applier.changed.wait()
            return
        await link.mirror.heartbeat.wait_lease()
        until = link.mirror.heartbeat.lease_until
        while trio.current_time() < until:
            await trio.sleep_until(until)
            # The next link has none at first.
            until = (self._links.link or link).mirror.heartbeat.lease_until or until
        if not self.stale:
            self._volume.invalidator.lease_over()

    def cacheable_s(self, key: Key) -> float:
        link = self._links.link
        if link is None or not self._applier.serves:
            return 0.0
        if not isinstance(key, tuple) and self._communication.kept.of(key):
            return 0.0
        # The kernel begins to count when it has taken the answer, a little later than now.
        return max(0.0, link.mirror.heartbeat.lease_until - trio.current_time() - KERNEL_DELAY_S)

    def want_lease(self, directory: InodeNumber) -> None:
        if self._links.link is not None and self._applier.state is BackupState.NORMAL:
            self._lease_requests.request(self._links.link.forward, directory)

    async def free_directory(self, directory: InodeNumber, *, of_change: bool) -> None:
        link = self._links.link
        if link is not None:
            with suppress(ConnectionLost):
                free = partial(self._lease_requests.free, link.forward, directory, of_change=of_change)
                await self._patience.in_time(free)
                return
            await self._patience.in_time(self._links.ended.wait)  # one of its paths was lost
        self._life.check()
        await self._wait_readable()

    def shown(self, inode: Inode) -> Inode:
        writes = self._communication.kept.of(inode.number)
        return attributes_with(inode, writes) if writes else inode

    def allocated_bytes(self, inode: Inode) -> int:
        """As if there were no holes, where this volume does not say it: programs take a file of no blocks
        for one great hole.
        """
        of_peer = inode.number in self._applier.out_of_sync.images or not self._volume.identity.whole
        if of_peer or self._communication.kept.of(inode.number):
            return inode.size
        return self._volume.files.allocated_bytes(inode)

    # --- content ------------------------------------------------------------------------------------------

    async def read(self, inode: InodeNumber, offset: int, length: int) -> bytes:
        end = offset + length
        if not self._exclusive.ranges.is_exclusive(inode, offset, end):
            return await self._read(inode, offset, length)
        return await self._standing_by(inode, offset, end, partial(self._read, inode, offset, length))

    async def _read(self, inode: InodeNumber, offset: int, length: int) -> bytes:
        await self.showable(inode, content=True)
        if inode in self._applier.out_of_sync.images and self._links.link is not None:
            self._host.reads.routed += 1
            _, data = await self._call(Read(inode, offset, length))
            return data
        content = read_here(self._host, inode, offset, length)
        writes = self._communication.kept.of(inode)
        if not writes:
            return content
        size = found(self._volume.catalog.inode(inode), errno.ESTALE).size
        try:
            return content_with(content, offset, length, size, writes, self._communication.data_of)
        except OSError as error:
            self._volume.health.note(error)
            raise OperationFailed(errno.EIO) from error

    async def seek(self, inode: InodeNumber, offset: int, *, data: bool) -> int:
        return await self._standing_by(
            inode, offset, FILE_BYTES_MAX, partial(self._seek, inode, offset, data=data)
        )

    async def _seek(self, inode: InodeNumber, offset: int, *, data: bool) -> int:
        await self.showable(inode, content=True)
        writes = self._communication.kept.of(inode)
        if inode not in self._applier.out_of_sync.images or self._links.link is None:
            return seek_here(self._host, inode, offset, data=data, writes=writes)
        size = size_to_seek(self._host, inode, offset, writes)
        if not self._links.link.peer.takes_seeks:
            return offset if data else size  # as if it had no holes
        self._host.reads.routed += 1
        answer, _ = await self._call(Seek(inode, offset, data))
        return place_in(answer.value)

    async def _standing_by(
        self, inode: InodeNumber, start: int, end: int, look: Callable[[], Awaitable[T]]
    ) -> T:
        """What `look` returns, while nobody else holds these bytes."""
        claim = await self._patience.in_time(partial(self._exclusive.stand_by, inode, start, end))
        try:
            return await look()
        finally:
            if claim is not None:
                self._exclusive.ranges.release(claim)
