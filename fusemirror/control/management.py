"""What people and scripts ask of a mounted filesystem: comparisons, pace, access, reservations."""

import errno
from datetime import datetime
from typing import Any

from fusemirror.control.host_state import HostState
from fusemirror.control.unit import ControlUnit
from fusemirror.errors import OperationFailed, ReservationConflict
from fusemirror.identifiers import InodeNumber
from fusemirror.operations import Release, Reserve
from fusemirror.operations.reserve import conflicts
from fusemirror.printable import path_shown
from fusemirror.settings import Access


class Management:
    """See the module. Requests go to the present role, and anew to the next one, as those of programs do."""

    def __init__(self, unit: ControlUnit) -> None:
        self.unit = unit
        self.host = unit.host
        self._present = unit.present

    async def verify(self, keep: str = "") -> None:
        """See `Comparing.begin`."""
        await self._present.ask(lambda role: role.comparisons.begin(keep))

    async def verify_report(self) -> dict[str, Any]:
        """See `Comparing.report`."""
        return await self._present.ask(lambda role: role.comparisons.report())

    async def change_pace(self, *, rate_bytes: int | None = None, paused: bool | None = None) -> None:
        """See `Role.change_pace`."""
        await self._present.ask(lambda role: role.change_pace(rate_bytes=rate_bytes, paused=paused))

    async def change_access(self, access: Access) -> None:
        """See `Role.change_access`."""
        await self._present.ask(lambda role: role.change_access(access))

    async def wait_safe(self) -> None:
        """See `Role.wait_safe`."""
        await self._present.ask(lambda role: role.wait_safe())

    # --- reservations -------------------------------------------------------------------------------------

    async def reserve(self, inode: InodeNumber, path: bytes, *, preempt: bool) -> None:
        """Hold a file, or with inode 0 everything, for this host. On return both volumes know it.

        `ReservationConflict` where the other host holds it and `preempt` is not given.
        """
        try:
            await self.unit.perform(Reserve(inode, path, preempt))
        except OperationFailed as error:
            raise self._reservation_error(error, inode) from None

    async def release(self, inode: InodeNumber, *, preempt: bool) -> None:
        """End a reservation; there need be none. `ReservationConflict` as for `reserve`."""
        try:
            await self.unit.perform(Release(inode, preempt))
        except OperationFailed as error:
            raise self._reservation_error(error, inode) from None

    def _reservation_error(self, error: OperationFailed, inode: InodeNumber) -> Exception:
        in_the_way = conflicts(self.host.volume.catalog, inode, self.host.identity)
        if error.errno != errno.EBUSY or not in_the_way:
            return error
        held_inode, held = next(iter(in_the_way.items()))
        what = path_shown(held.path) if held_inode else "everything"
        since = datetime.fromtimestamp(held.since_ns // 10**9).astimezone().isoformat(sep=" ")
        return ReservationConflict(what, host_name(self.host, held.holder), since)


def reservations(host: HostState) -> list[dict[str, Any]]:
    """Who holds what, the oldest first; `inode` and `path` are None for the whole filesystem."""
    held = sorted(host.volume.catalog.reservations.items(), key=lambda item: item[1].since_ns)
    return [
        {
            "inode": inode or None,
            "path": path_shown(reservation.path) if inode else None,
            "holder": host_name(host, reservation.holder),
            "since": reservation.since_ns / 1e9,
        }
        for inode, reservation in held
    ]


def host_name(host: HostState, identity: bytes) -> str:
    """What people call the host with this identity."""
    names = host.volume.identity
    return names.host_name if identity == host.identity else names.only_peer.name
