"""What programs of the primary's host may see: main, as far as the backup holds it, or will hold it soon.

With `acknowledge = "sync"` the primary shows nothing that the backup lacks; and nothing at all while the
other host may have gone on without this one. Source: seed [0061].
"""

from contextlib import suppress

import trio

from fusemirror.coherence.directory_leases import LeaseGrants
from fusemirror.control.exclusive import ExclusiveAccess
from fusemirror.control.granting import Granting
from fusemirror.control.host_state import HostState
from fusemirror.control.life import RoleLife
from fusemirror.control.local_reads import read_here, seek_here
from fusemirror.control.primary_modes import PrimaryModes
from fusemirror.control.role import Reads
from fusemirror.control.states import BEFORE_READY
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import FILE_BYTES_MAX
from fusemirror.mirror.sending import Mirror
from fusemirror.operations import Key
from fusemirror.volume.inode import Inode

_NAMES_WANTED_MAX = 64  # directories waiting to be asked for; more are asked for another time


async def wait_ready(life: RoleLife, mirror: Mirror) -> None:
    """Return once requests are served. RoleChanged; NotPermitted after `io_timeout`, or at once where that is
    asked for, where the witness does not let this host go on alone."""
    while not life.is_ready():
        with mirror.authority.waits.limited(mirror.authority.io_timeout_s):
            await life.until_ready()
        life.check()
        if not life.is_ready() and not mirror.authority.entitled:
            raise mirror.authority.not_permitted()


class PrimaryReads(Reads):
    """See the module."""

    def __init__(
        self,
        host: HostState,
        life: RoleLife,
        mirror: Mirror,
        modes: PrimaryModes,
        exclusive: ExclusiveAccess,
        granting: Granting,
        grants: LeaseGrants,
        peer_timeout_s: float,
    ) -> None:
        self._host = host
        self._volume = host.volume
        self._life = life
        self._mirror = mirror
        self._modes = modes
        self._exclusive = exclusive
        self._granting = granting
        self._grants = grants
        self.peer_timeout_s = peer_timeout_s
        self._names_wanted = trio.open_memory_channel[InodeNumber](_NAMES_WANTED_MAX)

    # --- names and attributes -----------------------------------------------------------------------------

    async def showable(self, key: Key) -> None:
        self._host.check_disk()
        if self._life.state in BEFORE_READY:
            await wait_ready(self._life, self._mirror)
        # In main's order this host sees what the backup sees a little later, if it need not wait for that.
        while not self._modes.shows_at_once:
            if number := self._mirror.window.unsettled(key):
                await self._mirror.window.settled(number)
            elif self._granting.inodes and key in self._granting.inodes:
                await self._granting.changed.wait()
                self._life.check()
            else:
                break
        if not self._mirror.authority.entitled:
            await self._mirror.authority.wait_entitled()

    def cacheable_s(self, key: Key) -> float:
        # No longer than a backup would wait before it takes over from a killed process, whose mount is
        # still there with all that its kernel keeps.
        mirror = self._mirror
        return 0.0 if mirror.window.unsettled(key) else mirror.authority.shows_for_s(self.peer_timeout_s)

    def want_lease(self, directory: InodeNumber) -> None:
        with suppress(trio.WouldBlock):  # another time
            self._names_wanted[0].send_nowait(directory)

    async def hold_names(self) -> None:
        """Try to get the next lease that was wanted."""
        directory = await self._names_wanted[1].receive()
        await self._grants.take(directory)

    async def free_directory(self, directory: InodeNumber, *, of_change: bool) -> None:
        with self._mirror.authority.waits.limited(self._mirror.authority.io_timeout_s):
            await self._grants.free(directory, of_change=of_change)
            return
        raise self._mirror.authority.not_permitted()

    def shown(self, inode: Inode) -> Inode:
        return inode

    def allocated_bytes(self, inode: Inode) -> int:
        return self._volume.files.allocated_bytes(inode)

    # --- content ------------------------------------------------------------------------------------------

    async def read(self, inode: InodeNumber, offset: int, length: int) -> bytes:
        await self._wait_readable(inode, offset, length)
        return read_here(self._host, inode, offset, length)

    async def seek(self, inode: InodeNumber, offset: int, *, data: bool) -> int:
        await self._wait_readable(inode, offset, FILE_BYTES_MAX - offset)
        return seek_here(self._host, inode, offset, data=data)

    async def _wait_readable(self, inode: InodeNumber, offset: int, length: int) -> None:
        """Return when programs of this host may see these bytes; without a checkpoint since they may."""
        self._host.check_disk()
        if self._life.state in BEFORE_READY:
            await wait_ready(self._life, self._mirror)
        claim = await self._exclusive.stand_by(inode, offset, offset + length)
        try:
            if not self._modes.shows_at_once:
                await self.wait_settled(inode, offset, length)
            if not self._mirror.authority.entitled:
                await self._mirror.authority.wait_entitled()
        finally:
            if claim is not None:
                self._exclusive.ranges.release(claim)

    async def wait_settled(self, inode: InodeNumber, offset: int, length: int) -> None:
        """Return when the backup holds these bytes as they are here."""
        while number := self._mirror.window.unsettled_range(inode, offset, offset + length):
            await self._mirror.window.settled(number)
        self._host.check_disk()
