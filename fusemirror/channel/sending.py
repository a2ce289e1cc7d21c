"""Sending: what a session sends, in its order.

Sending is a plain function: what the stream takes at once is gone when it returns, the rest is queued for the
writer task. Who sends much waits for room. Whatever the stream raises here ends the session, which is told by
`ConnectionLost`.
"""

from collections import deque
from collections.abc import Sequence
from itertools import islice

import trio

from fusemirror import limits
from fusemirror.channel.transport import Transport, drop_sent
from fusemirror.errors import ConnectionLost
from fusemirror.protocol.framing import Buffer


class Sending:
    """To one stream, which somebody else owns and closes."""

    def __init__(self, transport: Transport) -> None:
        self.backlog_bytes = 0
        """Of what the stream has not taken yet."""
        self._transport = transport
        self._unsent: deque[Buffer] = deque()
        self._corked = False
        self._writer = trio.lowlevel.ParkingLot()  # the writer task, while there is nothing unsent
        self._senders = trio.lowlevel.ParkingLot()  # tasks that wait for room

    def send(self, buffers: Sequence[Buffer], size: int) -> None:
        """Send these, of `size` bytes in all, after all before them. They must not change any more."""
        if not self._unsent and not self._corked:
            sent_bytes = self._transport.try_send(buffers)
            if sent_bytes == size:
                return  # as almost always
            size -= sent_bytes
            buffers = drop_sent(buffers, sent_bytes)
        self._unsent.extend(buffers)
        self.backlog_bytes += size
        if not self._corked:
            self._writer.unpark()

    def cork(self) -> None:
        """Gather what is sent from now on."""
        self._corked = True

    def uncork(self) -> None:
        """Send what was gathered, by as few calls as it takes."""
        self._corked = False
        if self._unsent:
            self._send_backlog()
        if self._unsent:
            self._writer.unpark()

    async def wait_within(self, bytes_max: int) -> None:
        """Return when the backlog is within `bytes_max`, as it is after the end. Cancellation: atomic."""
        while self.backlog_bytes > bytes_max:
            await self._senders.park()

    async def run_out(self) -> None:
        """Return when the stream has taken everything, for whoever has no writer task yet."""
        while self._unsent:
            await self._transport.wait_writable()
            self._send_backlog()

    async def run(self, patience_s: float) -> None:
        """Write what the stream does not take at once, for ever. `ConnectionLost` also where it takes nothing
        for `patience_s`, nor the peer of what it took before. The only place that writes, besides the tries
        in `send` and `uncork`, which yield to it.
        """
        while True:
            while not self._unsent:
                await self._writer.park()
            await self._wait_writable(patience_s)
            self._send_backlog()

    async def _wait_writable(self, patience_s: float) -> None:
        """The system takes more when half of what it took has gone (UNSENT_BYTES), and a stream that has
        moved when all is sent again. A slow network needs longer for that, and its peer is there meanwhile.
        """
        transport = self._transport
        looks, confirmed = 0, transport.acknowledged_bytes()
        while looks < limits.LOOKS_PER_PATIENCE:
            with trio.move_on_after(patience_s / limits.LOOKS_PER_PATIENCE) as look:
                await transport.wait_writable()
            if not look.cancelled_caught:
                return
            before, confirmed = confirmed, transport.acknowledged_bytes()
            looks = looks + 1 if confirmed in (0, before) else 0
        raise ConnectionLost(transport.peer_name, f"the peer took nothing for {patience_s:g} s")

    def _send_backlog(self) -> None:
        batch = list(islice(self._unsent, limits.SEND_BUFFERS_MAX))
        sent_bytes = self._transport.try_send(batch)
        self.backlog_bytes -= sent_bytes
        rest = drop_sent(batch, sent_bytes)
        for _ in range(len(batch) - len(rest)):
            self._unsent.popleft()
        if rest:
            self._unsent[0] = rest[0]
        # Here, not in the writer task: it is not woken for what the end of a cork has sent.
        if self.backlog_bytes <= limits.BACKLOG_BYTES_MAX:
            self._senders.unpark_all()

    def end(self) -> None:
        """Drop what is unsent: the session has closed. Whoever waits is woken."""
        self._unsent.clear()
        self.backlog_bytes = 0
        self._senders.unpark_all()
