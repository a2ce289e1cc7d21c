"""Heartbeat: what Pings and their answers show of the peer, and what its silence does.

It measures the round trip, and carries the lease: a peer that answered a Ping was there when the Ping was
sent, and will be held to be there for `peer_timeout` from then on. Silence counts only while somebody
listens, and not while our own side is slow. The session sends and receives; here is what it means.
"""

import math
from collections import deque

import trio

from fusemirror import limits
from fusemirror.protocol.messages import Ping, Pong


class Heartbeat:
    """Of one session. Times are trio's, and given by the caller."""

    def __init__(
        self, *, peer_timeout: float, their_timeout: float, interval_max_s: float = math.inf
    ) -> None:
        self.peer_timeout = peer_timeout
        self.interval_s = min(peer_timeout / limits.HEARTBEATS_PER_TIMEOUT, interval_max_s)
        self.round_trip_seconds: float | None = None
        self.lease_until = 0.0
        """Until then the peer holds itself bound to us, counted from when the newest answered Ping was sent;
        a little less than `peer_timeout`."""
        self.answered_until = 0.0
        """Until then the peer may hold a lease from us: we answered its Ping."""
        # Each host counts a lease by its own setting and clock: it is over for its holder when it is by
        # the shorter of the two and by the faster clock.
        self._lease_s = min(peer_timeout, their_timeout) * (1 - limits.LEASE_CLOCK_MARGIN)
        self._silent_since: float | None = None  # while someone listens and nothing comes
        self._sent = 0
        # Those whose answers may come: an older one would renew no lease.
        self._pings: deque[tuple[int, float]] = deque(maxlen=math.ceil(2 * peer_timeout / self.interval_s))
        self._pongs: deque[int] = deque()  # which the peer has yet to take: at which byte of all each ends
        self._renewals = trio.lowlevel.ParkingLot()  # tasks that wait for the next Pong
        self._ended = False

    def ping(self, now: float) -> Ping:
        """The next Ping, which is sent now."""
        self._sent += 1
        self._pings.append((self._sent, now))
        return Ping(self._sent)

    def pinged(self, ping: Ping, now: float, taken_bytes: int) -> Pong | None:
        """The answer to the peer's Ping, which is sent now; None where too many are on their way: who takes
        so few has given this host up, or means no good. The peer has taken so much of what was sent.
        """
        while self._pongs and self._pongs[0] <= taken_bytes:
            self._pongs.popleft()
        if len(self._pongs) >= limits.PONGS_UNSENT_MAX:
            return None
        # Later than the lease that this gives can end: its holder counts from when the Ping was sent, and by
        # the shorter timeout. So whoever goes on without the peer does it when that shows nothing any more
        # (G2).
        self.answered_until = now + self.peer_timeout
        return Pong(ping.serial)

    def sent_pong(self, sent_bytes: int) -> None:
        """That is sent, and ends there in all that was."""
        self._pongs.append(sent_bytes)

    def answered(self, serial: int, now: float) -> None:
        """The peer's Pong came. ValueError where no such Ping was sent."""
        if not 0 < serial <= self._sent:
            raise ValueError("serial: no such Ping was sent")
        # With an answer all earlier Pings are void: their leases would end before this one.
        while self._pings and self._pings[0][0] <= serial:
            oldest, sent_at = self._pings.popleft()
            if oldest == serial:
                self.round_trip_seconds = now - sent_at
                self.lease_until = sent_at + self._lease_s
                self._renewals.unpark_all()

    async def wait_lease(self) -> None:
        """Return when the lease has been renewed, or the session has closed. Cancellation: atomic."""
        # A session that has closed renews nothing, and nobody would wake who waits.
        if not self._ended:
            await self._renewals.park()

    def end(self) -> None:
        """The session has closed."""
        self._ended = True
        self._renewals.unpark_all()

    # --- silence ----------------------------------------------------------------------------------------

    def listen(self, now: float) -> None:
        """Somebody listens, and has heard nothing since now."""
        self._silent_since = now

    def stop_listening(self) -> None:
        self._silent_since = None

    def is_silent(self, now: float) -> bool:
        """Whether the peer has said nothing for `peer_timeout`, while somebody listened."""
        return self._silent_since is not None and now - self._silent_since >= self.peer_timeout
