"""Session: one connection after its handshake, and the tasks that live exactly as long.

Sending is a plain function (`sending.py`). Receiving is one wake-up, and brings all messages that have
arrived. Heartbeats show that both processes are alive, and carry the lease (`heartbeat.py`).
"""

import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import trio

from fusemirror import limits
from fusemirror.channel.heartbeat import Heartbeat
from fusemirror.channel.lines import Lines
from fusemirror.channel.moving import MovingTransport
from fusemirror.channel.sending import Sending
from fusemirror.channel.transport import Transport
from fusemirror.errors import ChannelError, ConnectionLost, HandshakeRefused, RemoteProtocolError, SameRole
from fusemirror.protocol.codec import encode, refusal
from fusemirror.protocol.connection import Connection, Received
from fusemirror.protocol.framing import HEADER_BYTES, Buffer
from fusemirror.protocol.messages import (
    AnyMessage,
    Arrived,
    Hello,
    Over,
    Ping,
    Pong,
    Probe,
    Resume,
    Resumed,
)
from fusemirror.protocol.states import ConnectionState

log = logging.getLogger(__name__)

_INNER = frozenset({Ping, Pong, Over, Arrived, Probe, Resume, Resumed})
"""Messages that a session deals with itself."""

InPlace = Callable[[list[Received]], list[Received]]
"""Takes messages as they arrive, and returns those that need a task."""


async def shake_hands(transport: Transport, ours: Hello, *, dialer: bool) -> Connection:
    """Open a new stream, and exchange Hellos over it; the connection is open on return, and has the peer's.

    `PeerRefused` if we do not talk to that peer, `HandshakeRefused` if it does not talk to us,
    `RemoteProtocolError` for a stranger's bytes, `ConnectionLost` if the stream ends. Of a peer of the same
    role the connection has the Hello, and is not open at the dialer. The stream is closed on any error and on
    cancellation.
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
                return connection
            if connection.state is ConnectionState.OPEN:
                return connection
            data = await transport.receive(limits.HANDSHAKE_BYTES_MAX)
            if not data:
                where = "in the middle of its Hello" if connection.within_frame else "without a Hello"
                raise ConnectionLost(transport.peer_name, f"it ended {where}")
            connection.receive_data(data)
    except BaseException:
        transport.close()
        raise


async def open_session(
    transport: Transport,
    ours: Hello,
    *,
    dialer: bool,
    peer_timeout: float,
    path_timeout: float = limits.PATH_TIMEOUT_S,
) -> "Session":
    """Begin a session over a new stream. Raises as `shake_hands`; `SameRole` if both hosts say that they are
    the primary, or the backup: it holds the session, which makes no link. The stream is closed on any other
    error and on cancellation.
    """
    connection = await shake_hands(transport, ours, dialer=dialer)
    return await begin_session(transport, connection, peer_timeout=peer_timeout, path_timeout=path_timeout)


async def begin_session(
    transport: Transport, connection: Connection, *, peer_timeout: float, path_timeout: float
) -> "Session":
    """The session of a stream whose hands were shaken; as `open_session`."""
    peer, ours = connection.peer, connection.ours
    assert peer is not None, "the handshake comes first"
    if peer.role == ours.role:
        raise SameRole(
            transport.peer_name, ours.role, Session(transport, connection, peer_timeout=peer_timeout)
        )
    if not (peer.takes_moves and ours.takes_moves):
        return Session(transport, connection, peer_timeout=peer_timeout)
    moving = MovingTransport(transport, received_bytes=connection.held_bytes)
    session = Session(moving, connection, peer_timeout=peer_timeout, path_timeout=path_timeout)
    try:
        with trio.move_on_after(limits.PROBE_TIMEOUT_S) as patience:
            await session.run_probe()
        if patience.cancelled_caught:
            raise ConnectionLost(transport.peer_name, LARGE_ONES_LOST)
    except BaseException:
        moving.close()
        raise
    if session.lines is not None:
        moving.begin()
    return session


LARGE_ONES_LOST = "small packets get through and large ones do not; see to the MTU of the network between"


@dataclass(slots=True)
class Counters:
    """Bytes of a session since it began; *data* is what stood beside messages."""

    since: float
    """When that was (trio time)."""
    sent_bytes: int = 0
    received_bytes: int = 0
    sent_data_bytes: int = 0
    received_data_bytes: int = 0


class Session:
    """One path to the peer. One task receives; any may send; `run` serves it from start to end.

    Once closed, by either side or by silence, everything raises `ConnectionLost` with the reason.
    """

    def __init__(
        self,
        transport: Transport,
        connection: Connection,
        *,
        peer_timeout: float,
        path_timeout: float = math.inf,
    ) -> None:
        assert connection.peer is not None, "the handshake comes first"
        self.peer: Hello = connection.peer
        self.ours: Hello = connection.ours
        self.counters = Counters(trio.current_time())
        self.close_reason: str | None = None
        self.refused = False
        """It ended because the peer sent what it may not."""
        self.moving = transport if isinstance(transport, MovingTransport) else None
        """Its stream, where that outlives its connections."""
        self.lines = None if self.moving is None or connection.dialer else Lines(self.moving, peer_timeout)
        """The spare connections that the peer keeps for it, where the peer dialed."""
        self.sending = Sending(transport)
        # Who dialed finds another connection where this one makes no progress: its Pings show that.
        pings_s = path_timeout / limits.PINGS_PER_PATH_TIMEOUT if connection.dialer else math.inf
        self.heartbeat = Heartbeat(
            peer_timeout=peer_timeout, their_timeout=self.peer.peer_timeout_s, interval_max_s=pings_s
        )
        self._transport = transport
        self._connection = connection
        self._scope = trio.CancelScope()
        self._left: list[Received] = []  # by who took messages in place
        self._is_probed = False

    @property
    def path(self) -> str:
        return self.ours.path

    @property
    def peer_name(self) -> str:
        """Where the peer is; another address of it after the session has moved."""
        return self._transport.peer_name

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
            self._say_over()
            self._connection.end()
            self._transport.close()
            if self.lines is not None:
                self.lines.close()
            self.sending.end()
            self.heartbeat.end()
            self._scope.cancel()

    def _say_over(self) -> None:
        """Tell a peer that would go on over another connection, if that can be done without a wait; else it
        is refused there."""
        moving, is_open = self.moving, self._connection.state is ConnectionState.OPEN
        if moving is not None and is_open and not self.sending.backlog_bytes:
            with suppress(ConnectionLost):
                moving.try_send(self._connection.send(Over()))

    # --- sending ----------------------------------------------------------------------------------

    def send(self, message: AnyMessage, data: Buffer = b"") -> None:
        """Send a message, after all before it. `ConnectionLost` if closed.

        `data` must not change any more: it may be written later.
        """
        self.send_encoded(encode(message), data)

    def send_encoded(self, body: bytes, data: Buffer = b"") -> None:
        """The same for a message that is encoded already."""
        if self.close_reason is not None:
            self._check_open()
        buffers = self._connection.send_encoded(body, data)
        data_bytes = len(data)
        size = HEADER_BYTES + len(body) + data_bytes
        counters = self.counters
        counters.sent_bytes += size
        counters.sent_data_bytes += data_bytes
        try:
            self.sending.send(buffers, size)
        except ConnectionLost as error:
            self.close(error.why)
            raise

    @contextmanager
    def corked(self) -> Iterator[None]:
        """Gather what is sent inside, which must not wait; it goes at the end, by as few calls as it takes.

        `ConnectionLost` at the end if the stream is broken.
        """
        self.sending.cork()
        try:
            yield
        finally:
            try:
                self.sending.uncork()
            except ConnectionLost as error:
                self.close(error.why)
                raise

    async def wait_room(self, bytes_max: int | None = None) -> None:
        """Return when the backlog is within `bytes_max` (`BACKLOG_BYTES_MAX`); without a checkpoint if it is.

        Who sends much waits here before each message. `ConnectionLost` if closed. Cancellation: atomic.
        """
        self._check_open()
        await self.sending.wait_within(limits.BACKLOG_BYTES_MAX if bytes_max is None else bytes_max)
        self._check_open()

    async def wait_sent(self) -> None:
        """Return when the system has taken everything, as before an orderly `close`. Else as `wait_room`."""
        await self.wait_room(0)

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
        """Return with messages that are left, or where a frame is bad."""
        connection = self._connection

        def take(data: bytes) -> bool:
            if not data:
                self._end_of_stream()
            self._take_in(data)
            if received := self._events():
                self._left = in_place(received)
            self.heartbeat.listen(trio.current_time())  # after that: it is not the peer who was slow
            return bool(self._left) or connection.fault is not None

        with self._listening():
            await self._transport.receive_with(limits.RECEIVE_BYTES, take)

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
            data = await self._transport.receive(limits.RECEIVE_BYTES)
        if not data:
            self._end_of_stream()
        return data

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """While this lasts the peer's silence counts, and the loss of the stream closes the session."""
        self.heartbeat.listen(trio.current_time())
        try:
            yield
        except ConnectionLost as error:
            self.close(error.why)
            self._check_open()
            raise
        finally:
            self.heartbeat.stop_listening()

    def _take_in(self, data: bytes) -> None:
        self.counters.received_bytes += len(data)
        self._connection.receive_data(data)
        moving = self.moving
        if moving is not None and moving.received_bytes - moving.told_bytes > limits.RECEIVED_TOLD_BYTES:
            self._tell_arrived(moving)

    def _tell_arrived(self, moving: MovingTransport) -> None:
        if moving.received_bytes > moving.told_bytes:
            with suppress(ConnectionLost):
                self.send(Arrived(moving.tell()))

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
        for each in received:
            if type(each[0]) in _INNER:
                self._take_inner(*each)
            else:
                self.counters.received_data_bytes += len(each[1])
                messages.append(each)
        return messages

    def _take_inner(self, message: AnyMessage, data: Buffer) -> None:
        """What is between the two sessions, and no business of anybody above."""
        moving, now = self.moving, trio.current_time()
        if type(message) is Ping:
            pong = self.heartbeat.pinged(message, now, self.counters.sent_bytes - self.sending.backlog_bytes)
            if pong is not None:
                with suppress(ConnectionLost):  # what came with it is delivered first
                    self.send(pong)
                    self.heartbeat.sent_pong(self.counters.sent_bytes)
        elif type(message) is Pong:
            try:
                self.heartbeat.answered(message.serial, now)
            except ValueError as error:
                self.refuse(refusal(self.peer_name, message, error))
        elif moving is None:
            self.refuse(refusal(self.peer_name, message, "this session does not move"))
        elif type(message) is Arrived:
            try:
                moving.confirmed(message.count)
            except ValueError as error:
                self.refuse(refusal(self.peer_name, message, error))
        elif type(message) is Probe and not self._is_probed:
            self._is_probed = True
            if not self._connection.dialer:
                self._send_probe(message, data)
        elif type(message) is Over:
            self.close("the peer ended it")
        else:
            self.refuse(refusal(self.peer_name, message, "it has no place in a session"))

    async def run_probe(self) -> None:
        """Return when a message of full size has come through both ways. It is called first, once.

        `ConnectionLost`; `RemoteProtocolError`, also where the peer sends much and no Probe, for all that
        would be kept. Cancelled, the session is of no use.
        """
        if self._connection.dialer:
            self._send_probe(Probe(0), bytes(limits.PROBE_BYTES))
        while True:
            self._left += self._events()
            await self.sending.run_out()
            if self._is_probed:
                return
            if self.counters.received_bytes > limits.BEFORE_PROBE_BYTES_MAX:
                why = f"it sent more than {limits.BEFORE_PROBE_BYTES_MAX} bytes and no Probe"
                raise RemoteProtocolError(self.peer_name, why)
            self._take_in(await self._receive_data())

    def _send_probe(self, message: Probe, padding: Buffer) -> None:
        self.send(message, padding)
        self.counters.sent_data_bytes -= len(padding)  # it is nobody's data

    def _check_open(self) -> None:
        if self.close_reason is not None:
            raise ConnectionLost(self.peer_name, self.close_reason)

    # --- its tasks --------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve the session until it is closed; then return. Cancellation closes it."""
        write = partial(self.sending.run, self.heartbeat.peer_timeout)
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._until_lost, write)
                    nursery.start_soon(self._until_lost, self._beat)
                    task_status.started()
        finally:
            self.close("closed on this host")

    async def _until_lost(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except ConnectionLost as error:
            self.close(error.why)

    async def _beat(self) -> None:
        """Ping, and notice silence."""
        heartbeat = self.heartbeat
        while not heartbeat.is_silent(now := trio.current_time()):
            self.send(heartbeat.ping(now))
            if self.moving is not None:
                self._tell_arrived(self.moving)
            await trio.sleep(heartbeat.interval_s)
        self.close(f"the peer said nothing for {heartbeat.peer_timeout:g} s")
