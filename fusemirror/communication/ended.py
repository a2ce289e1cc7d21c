"""Requests of a communication volume that have ended, and who waits for the next one to."""

import math

import trio


class Ended:
    """Of one communication volume."""

    def __init__(self) -> None:
        self.total = 0
        self.last_at = -math.inf
        """When one ended last, in trio's time."""
        self.waiting = trio.lowlevel.ParkingLot()
        """Everyone who waits for requests to end, or for more room."""
