"""Session: one connection after its handshake, and the tasks that live exactly as long.

Sending is a plain function: what the stream takes at once is gone when it returns, the rest is queued
for the writer task. Receiving is one wake-up, and brings all messages that have arrived. Heartbeats show
that both processes are alive, measure the round trip, and carry the lease: a peer that answered a Ping
was there when the Ping was sent, and will be held to be there for `peer_timeout` from then on.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import NoReturn

import trio

from fusemirror import limits
from fusemirror.channel.transport import Transport, drop_sent
from fusemirror.errors import ChannelError, ConnectionLost, HandshakeRefused, RemoteProtocolError, SameRole
from fusemirror.protocol.codec import encode, refusal
from fusemirror.protocol.connection import Connection, Received
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import AnyMessage, Hello, Ping, Pong
from fusemirror.protocol.states import ConnectionState

log = logging.getLogger(__name__)

InPlace = Callable[[list[Received]], list[Received]]
"""Takes messages as they arrive, and returns those that need a task."""


async def open_session(transport: Transport, ours: Hello, *, dialer: bool, peer_timeout: float) -> "Session":
    """Shake hands over a new stream.

    `PeerRefused` if we do not talk to that peer, `HandshakeRefused` if it does not talk to us,
    `RemoteProtocolError` for a stranger's bytes, `ConnectionLost` if the stream ends. `SameRole` if both
    hosts say that they are the primary, or the backup: it holds the session, which makes no link.
    The stream is closed on any other error and on cancellation.
    """
    try:
        await transport.open()
        connection = Connection(
            ours, dialer=dialer, peer_name=transport.peer_name, replaced=transport.replaced
        )
        while True:
            await transport.send_all(connection.shake_hands())
            if connection.refusal is not None:
                raise connection.refusal
            if connection.peer is not None and connection.peer.role == ours.role:
                session = Session(transport, connection, peer_timeout=peer_timeout)
                raise SameRole(transport.peer_name, ours.role, session)
            if connection.state is ConnectionState.OPEN:
                return Session(transport, connection, peer_timeout=peer_timeout)
            data = await transport.receive(limits.HANDSHAKE_BYTES_MAX)
            if not data:
                if connection.within_frame:
                    raise RemoteProtocolError(transport.peer_name, "it ended in the middle of its Hello")
                raise ConnectionLost(transport.peer_name, "it ended without a Hello")
            connection.receive_data(data)
    except SameRole:
        raise
    except BaseException:
        transport.close()
        raise


class Session:
    """One path to the peer. One task receives; any may send; `run` serves it from start to end.

    Once closed, by either side or by silence, everything raises `ConnectionLost` with the reason.
    """

    def __init__(self, transport: Transport, connection: Connection, *, peer_timeout: float) -> None:
        assert connection.peer is not None, "the handshake comes first"
        self.peer: Hello = connection.peer
        self.ours: Hello = connection.ours
        self.path = connection.ours.path
        self.call = connection.ours.call
        self.peer_name = transport.peer_name
        self.peer_timeout = peer_timeout
        # Each host counts a lease by its own setting and clock: it is over for its holder when it is by
        # the shorter of the two and by the faster clock.
        self._lease_s = min(peer_timeout, self.peer.peer_timeout_s) * (1 - limits.LEASE_CLOCK_MARGIN)
        self.connected_since = trio.current_time()
        self.round_trip_seconds: float | None = None
        self.lease_until = 0.0
        """Until then (trio time) the peer holds itself bound to us, counted from when the newest answered
        Ping was sent; a little less than `peer_timeout`."""
        self.answered_until = 0.0
        """Until then (trio time) the peer may hold a lease from us: we answered its Ping."""
        self.backlog_bytes = 0
        self.sent_bytes = self.received_bytes = 0
        self.sent_data_bytes = self.received_data_bytes = 0
        self.close_reason: str | None = None
        self.refused = False
        """It ended because the peer sent what it may not."""

        self._transport = transport
        self._connection = connection
        self._scope = trio.CancelScope()
        self._unsent: deque[Buffer] = deque()
        self._left: list[Received] = []  # by who took messages in place
        self._corked = False
        self._writer = trio.lowlevel.ParkingLot()  # the writer task, while there is nothing unsent
        self._senders = trio.lowlevel.ParkingLot()  # tasks that wait for room
        self._leases = trio.lowlevel.ParkingLot()  # tasks that wait for the next Pong
        self._silent_since: float | None = None  # while someone listens and nothing comes
        self._pings: deque[tuple[int, float]] = deque(maxlen=2 * limits.HEARTBEATS_PER_TIMEOUT)
        self._pings_sent = 0

    @property
    def closed(self) -> bool:
        return self.close_reason is not None

    def refuse(self, error: RemoteProtocolError) -> None:
        """End the session because of what the peer sent; the log says so, once."""
        if self.close_reason is None:
            log.warning("%s", error)
            self.refused = True
            self.close(error.why)

    def close(self, reason: str) -> None:
        """End the session at once: what is unsent is dropped, whoever waits gets `ConnectionLost`."""
        if self.close_reason is None:
            self.close_reason = reason
            self._connection.end()
            self._transport.close()
            self._unsent.clear()
            self.backlog_bytes = 0
            self._senders.unpark_all()
            self._leases.unpark_all()
            self._scope.cancel()

    # --- sending ----------------------------------------------------------------------------------

    def send(self, message: AnyMessage, data: Buffer = b"") -> None:
        """Send a message, after all before it. `ConnectionLost` if closed.

        `data` must not change any more: it may be written later.
        """
        self.send_encoded(encode(message), data)

    def send_encoded(self, body: bytes, data: Buffer = b"") -> None:
        """The same for a message that is encoded already."""
        self._check_open()
        buffers = self._connection.send_encoded(body, data)
        self.sent_bytes += sum(map(len, buffers))
        self.sent_data_bytes += len(data)
        if not self._unsent and not self._corked:
            buffers = drop_sent(buffers, self._try_send(buffers))
        if buffers:
            self._unsent.extend(buffers)
            self.backlog_bytes += sum(map(len, buffers))
            if not self._corked:
                self._writer.unpark()

    @contextmanager
    def corked(self) -> Iterator[None]:
        """Gather what is sent inside, which must not wait; it goes at the end, by as few calls as it takes.

        `ConnectionLost` at the end if the stream is broken.
        """
        self._corked = True
        try:
            yield
        finally:
            self._corked = False
            if self._unsent:
                self._send_backlog()
            if self._unsent:
                self._writer.unpark()

    async def wait_room(self, bytes_max: int | None = None) -> None:
        """Return when the backlog is within `bytes_max` (`BACKLOG_BYTES_MAX`); without a checkpoint if it is.

        Who sends much waits here before each message. `ConnectionLost` if closed. Cancellation: atomic.
        """
        await self._wait_backlog(limits.BACKLOG_BYTES_MAX if bytes_max is None else bytes_max)

    async def wait_sent(self) -> None:
        """Return when the system has taken everything, as before an orderly `close`. Else as `wait_room`."""
        await self._wait_backlog(0)

    async def _wait_backlog(self, bytes_max: int) -> None:
        self._check_open()
        while self.backlog_bytes > bytes_max:
            await self._senders.park()
            self._check_open()

    def _try_send(self, buffers: Sequence[Buffer]) -> int:
        try:
            return self._transport.try_send(buffers)
        except ConnectionLost as error:
            self.close(error.args[1])
            raise

    def _send_backlog(self) -> None:
        batch = list(islice(self._unsent, limits.SEND_BUFFERS_MAX))
        sent_bytes = self._try_send(batch)
        self.backlog_bytes -= sent_bytes
        rest = drop_sent(batch, sent_bytes)
        for _ in range(len(batch) - len(rest)):
            self._unsent.popleft()
        if rest:
            self._unsent[0] = rest[0]
        # Here, not in the writer task: it is not woken for what the end of a cork has sent.
        if self.backlog_bytes <= limits.BACKLOG_BYTES_MAX:
            self._senders.unpark_all()

    # --- receiving --------------------------------------------------------------------------------

    async def receive(self, in_place: InPlace | None = None) -> list[Received]:
        """All messages that have arrived, in their order; at least one. Heartbeats are dealt with inside.

        `in_place` is called with them first, before this task wakes up, and returns those that it leaves; it
        is not called again before those were received. It must not wait (`hot.py`), and what it raises is
        raised here.

        Must be called again soon: a Ping is answered only here. `ConnectionLost` at the end of the stream,
        after a reset, a close or `peer_timeout` of silence; `RemoteProtocolError` for a bad frame: the
        session is then closed. Cancellation: atomic, no message is lost.
        """
        while True:
            self._check_open()
            if self._left:
                received, self._left = self._left, []
                return received
            if received := self._events():
                return received
            if in_place is not None:
                await self._receive_in_place(in_place)
                continue
            self._take_in(await self._receive_data())

    async def _receive_in_place(self, in_place: InPlace) -> None:
        """Return with messages that are left, or where a frame has begun that is large, or is bad."""
        connection = self._connection

        def take(data: bytes) -> bool:
            if not data:
                self._end_of_stream()
            self._take_in(data)
            if received := self._events():
                self._left = in_place(received)
            self._silent_since = trio.current_time()  # after that: it is not the peer who was slow
            return bool(self._left) or connection.within_frame or connection.is_bad

        with self._listening():
            await self._transport.receive_with(self._bytes_wanted(), take)

    async def discard(self) -> None:
        """Return when the session has closed. What comes until then is dropped, whatever it says; heartbeats
        are dealt with, and a bad frame ends it, as in `receive`.
        """
        with suppress(ChannelError):
            while True:
                await self.receive()

    async def read_ahead(self) -> None:
        """Return when the session has closed; for one that nobody receives from yet, or its end at the peer
        would go unnoticed. What comes is kept for `receive`, and a little more than that is not read.

        Cancellation: atomic, no message is lost.
        """
        ahead_bytes = 0
        with suppress(ConnectionLost):
            while not self.closed and ahead_bytes < limits.READ_AHEAD_BYTES_MAX:
                data = await self._receive_data()
                ahead_bytes += len(data)
                self._take_in(data)

    async def _receive_data(self) -> bytes:
        with self._listening():
            data = await self._transport.receive(self._bytes_wanted())
        if not data:
            self._end_of_stream()
        return data

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """While this lasts the peer's silence counts, and the loss of the stream closes the session."""
        self._silent_since = trio.current_time()
        try:
            yield
        except ConnectionLost as error:
            self.close(error.args[1])
            self._check_open()
            raise
        finally:
            self._silent_since = None

    def _take_in(self, data: bytes) -> None:
        self.received_bytes += len(data)
        self._connection.receive_data(data)

    def _bytes_wanted(self) -> int:
        return max(limits.RECEIVE_BYTES_MIN, min(self._connection.missing_bytes, limits.RECEIVE_BYTES))

    def _end_of_stream(self) -> NoReturn:
        cut = " in the middle of a message" if self._connection.within_frame else ""
        self.close(f"the peer ended it{cut}")
        raise ConnectionLost(self.peer_name, self.close_reason)

    def _events(self) -> list[Received]:
        try:
            received = self._connection.events()
        except RemoteProtocolError as error:
            self.refuse(error)
            raise
        except HandshakeRefused as error:
            self.close(f"the peer refused it: {error.args[1]}")
            self._check_open()
        messages = []
        for message, data in received:
            kind = type(message)
            if kind is Ping or kind is Pong:
                self._heartbeat(message)
            else:
                self.received_data_bytes += len(data)
                messages.append((message, data))
        return messages

    def _heartbeat(self, message: AnyMessage) -> None:
        now = trio.current_time()
        if isinstance(message, Ping):
            self.answered_until = now + self.peer_timeout
            with suppress(ConnectionLost):  # what came with it is delivered first
                self.send(Pong(message.serial))
        elif isinstance(message, Pong):
            if not 0 < message.serial <= self._pings_sent:
                self.refuse(refusal(self.peer_name, message, "serial: no such Ping was sent"))
            while self._pings and self._pings[0][0] <= message.serial:
                serial, sent_at = self._pings.popleft()
                if serial == message.serial:
                    self.round_trip_seconds = now - sent_at
                    self.lease_until = sent_at + self._lease_s
                    self._leases.unpark_all()

    async def wait_lease(self) -> None:
        """Return when the lease has been renewed, or the session has closed. Cancellation: atomic."""
        if not self.closed:
            await self._leases.park()

    def _check_open(self) -> None:
        if self.close_reason is not None:
            raise ConnectionLost(self.peer_name, self.close_reason)

    # --- its tasks --------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve the session until it is closed; then return. Cancellation closes it."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._until_lost, self._write)
                    nursery.start_soon(self._until_lost, self._beat)
                    task_status.started()
        finally:
            self.close("closed on this host")

    async def _until_lost(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except ConnectionLost as error:
            self.close(error.args[1])

    async def _write(self) -> None:
        # The only place that writes, besides the tries in send_encoded() and corked(), which yield to it.
        while True:
            while not self._unsent:
                await self._writer.park()
            with trio.move_on_after(self.peer_timeout) as patience:
                await self._transport.wait_writable()
            if patience.cancelled_caught:
                self.close(f"the peer took nothing for {self.peer_timeout:g} s")
                return
            self._send_backlog()

    async def _beat(self) -> None:
        """Ping, and notice silence: while someone listens, and not while our own side is slow."""
        while True:
            since = self._silent_since
            now = trio.current_time()
            if since is not None and now - since >= self.peer_timeout:
                self.close(f"the peer said nothing for {self.peer_timeout:g} s")
                return
            self._pings_sent += 1
            self._pings.append((self._pings_sent, now))
            self.send(Ping(self._pings_sent))
            await trio.sleep(self.peer_timeout / limits.HEARTBEATS_PER_TIMEOUT)
