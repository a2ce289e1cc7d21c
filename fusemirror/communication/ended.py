"""Requests of a communication volume that have ended, and who waits for the next one to."""

import math

import trio

from fusemirror.communication.staged import Staged
from fusemirror.identifiers import RequestId


class Ended:
    """Of one communication volume."""

    def __init__(self, pending: dict[RequestId, Staged]) -> None:
        """`pending`: those that have not ended, the oldest first."""
        self._pending = pending
        self.total = 0
        self.last_at = -math.inf
        """When one ended last, in trio's time."""
        self.waiting = trio.lowlevel.ParkingLot()
        """Everyone who waits for requests to end, or for more room."""

    @property
    def newest_pending(self) -> int:
        """The serial of the newest request that has not ended, or 0."""
        return next((staged.serial for staged in reversed(self._pending.values())), 0)

    async def wait_up_to(self, serial: int) -> None:
        """Return when every request up to this one has ended."""
        # Once each, and no look for the first after each end: that goes over the places of all that ended.
        for identity in [each for each, staged in self._pending.items() if staged.serial <= serial]:
            while identity in self._pending:
                await self.waiting.park()
