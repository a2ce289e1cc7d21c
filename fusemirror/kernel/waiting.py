"""Requests of the kernel whose handlers have to wait, and how many may.

At most `REQUESTS_WAITING_MAX` wait, with at most `REQUESTS_WAITING_BYTES_MAX` of data; beyond, nothing is
read, and the kernel keeps the others.
"""

import trio

from fusemirror.kernel.codec import InHeader
from fusemirror.limits import REQUESTS_WAITING_BYTES_MAX, REQUESTS_WAITING_MAX


class WaitingRequest:
    """From when its handler has to wait until that has ended."""

    __slots__ = ("answered", "body", "bytes", "header", "since")

    def __init__(self, header: InHeader, body: bytes, since: float) -> None:
        self.header = header
        self.bytes = header.len
        self.body = body  # of a request that changes names, else empty
        self.since = since
        self.answered = False  # with EINTR, before the handler has ended


class WaitingRequests:
    """Those of a session."""

    def __init__(self) -> None:
        self.by_number: dict[int, WaitingRequest] = {}
        """By the kernel's number of the request."""
        self.without_task = 0
        """So many of them wait in no task: whoever settles a promise goes on with each."""
        self._bytes = 0
        self._room = trio.Event()

    def is_full(self) -> bool:
        return len(self.by_number) >= REQUESTS_WAITING_MAX or self._bytes > REQUESTS_WAITING_BYTES_MAX

    def add(self, waiting: WaitingRequest) -> None:
        self.by_number[waiting.header.unique] = waiting
        self._bytes += waiting.bytes

    def remove(self, waiting: WaitingRequest) -> None:
        """It waits no more."""
        del self.by_number[waiting.header.unique]
        self._bytes -= waiting.bytes
        self._room.set()

    async def until_fewer(self) -> None:
        """Return when one has ended, or the session reads no more. One task waits at a time."""
        self._room = trio.Event()
        await self._room.wait()

    def stop(self) -> None:
        """The session reads no more."""
        self._room.set()
