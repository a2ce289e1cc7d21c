"""Requests of a communication volume that have ended, and who waits for the next one to."""

import math

import trio

from fusemirror.communication.order import Order


class Ended:
    """Of one communication volume."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self.total = 0
        self.last_at = -math.inf
        """When one ended last, in trio's time."""
        self.waiting = trio.lowlevel.ParkingLot()
        """Everyone who waits for requests to end, or for more room."""

    async def wait_up_to(self, serial: int) -> None:
        """Return when every request up to this one has ended. Without a checkpoint if all have."""
        while (oldest := self._order.oldest) is not None and oldest.serial <= serial:
            await self.waiting.park()
