"""Lines: spare connections of a session. Each shows that it works, until the session goes on over it.

Who dialed the session dials its lines too, one to each address of the peer that the session does not use. A
line carries probes of full size, there and back: so it is known to be there, how long an answer takes, and
that the network between loses no large packets. Then `Resume` and `Resumed` say how much of the session has
arrived at either end, and whatever follows is the session (`moving.py`).
"""

from collections.abc import Callable
from contextlib import suppress

import trio

from fusemirror import limits
from fusemirror.channel.moving import MovingTransport
from fusemirror.channel.transport import Transport
from fusemirror.errors import ChannelError, ConnectionLost, RemoteProtocolError
from fusemirror.protocol.codec import refusal
from fusemirror.protocol.connection import Connection, Received
from fusemirror.protocol.framing import Buffer
from fusemirror.protocol.messages import AnyMessage, Probe, Refused, Resume, Resumed

_PADDING = bytes(limits.PROBE_BYTES)


class Line:
    """One end of one connection, after its handshake. One task uses it at a time. It owns the connection."""

    def __init__(self, transport: Transport, connection: Connection) -> None:
        assert connection.peer is not None, "the handshake comes first"
        self.peer = connection.peer
        self.peer_name = transport.peer_name
        self.peer_host = transport.peer_host
        self.local_name = transport.local_name
        self.since = trio.current_time()
        self.round_trip_seconds: float | None = None
        self.is_proven = False
        """A message of full size has come through."""
        self.transport = transport
        self._connection = connection
        self._probes = 0

    def close(self) -> None:
        self.transport.close()

    async def _send(self, message: AnyMessage, data: Buffer = b"") -> None:
        await self.transport.send_all(self._connection.send(message, data))

    async def _receive(self) -> Received:
        while (received := self._connection.next_message()) is None:
            data = await self.transport.receive(limits.RECEIVE_BYTES)
            if not data:
                raise ConnectionLost(self.peer_name, "the peer ended it")
            self._connection.receive_data(data)
        return received

    # --- at who dialed it -------------------------------------------------------------------------------

    async def probe(self) -> None:
        """Return when a message of full size came back. ChannelError; cancelled, the line is of no use."""
        self._probes += 1
        sent_at = trio.current_time()
        await self._send(Probe(self._probes), _PADDING)
        message, _ = await self._receive()
        if type(message) is not Probe or message.serial != self._probes:
            raise refusal(self.peer_name, message, "it answers no probe")
        self.round_trip_seconds = trio.current_time() - sent_at
        self.is_proven = True

    async def resume(self, moving: MovingTransport, reason: str) -> None:
        """Let the stream go on over this line, which is of its own connection no more, for `reason`.

        ChannelError: the stream has no connection then. Cancelled, likewise.
        """
        arrived, turn = moving.drop(reason), moving.turn
        await self._send(Resume(arrived, attempt=turn))  # each has a drop of its own, and so a number
        message, _ = await self._receive()
        if type(message) is not Resumed:
            raise refusal(self.peer_name, message, "it answers no Resume")
        moving.go_on(self.transport, message.count, turn=turn, rest=self._connection.take_rest())

    # --- at the other end -------------------------------------------------------------------------------

    async def serve(self, moving: MovingTransport, silence_s: float) -> None:
        """Answer probes, until the stream goes on over this line. ChannelError, also after silence."""
        while True:
            with trio.move_on_after(silence_s) as patience:
                message, data = await self._receive()
            if patience.cancelled_caught:
                raise ConnectionLost(self.peer_name, f"the peer said nothing for {silence_s:g} s")
            if type(message) is Resume:
                break
            if type(message) is not Probe:
                raise refusal(self.peer_name, message, "it has no place on a spare connection")
            await self._send(message, data)
            self.is_proven = True
        if self._connection.take_rest():
            raise RemoteProtocolError(self.peer_name, "it went on before it was told from where")
        if not moving.takes(message.attempt, message.count):
            raise ConnectionLost(self.peer_name, "the peer had given it up before its Resume came")
        arrived, turn = moving.drop("the peer goes on over another connection"), moving.turn
        await self._send(Resumed(arrived))
        moving.go_on(self.transport, message.count, turn=turn)

    async def refuse(self, reason: str) -> None:
        """Say that there is no such session, and let the other end close: a reset would overtake the word."""
        with trio.move_on_after(limits.HANDSHAKE_TIMEOUT_S), suppress(ConnectionLost):
            await self._send(Refused(reason))
            while await self.transport.receive(limits.RECEIVE_BYTES):
                pass


class Lines:
    """The lines of one session at the end that accepts them."""

    def __init__(self, moving: MovingTransport, silence_s: float) -> None:
        self.spares: list[Line] = []
        self._moving = moving
        self._silence_s = silence_s

    async def run(self, line: Line, lost: Callable[[ChannelError], None]) -> None:
        """Keep a line until the stream goes on over it, or it is lost. Cancellation closes it."""
        self.spares.append(line)
        for each in self.spares[: -limits.LINES_MAX]:
            each.close()
        try:
            await line.serve(self._moving, self._silence_s)
        except ChannelError as error:
            line.close()
            lost(error)
            return
        except BaseException:
            line.close()
            raise
        finally:
            self.spares.remove(line)
        await self._moving.run_resend()

    def close(self) -> None:
        """End them all; for a session that is over."""
        for line in list(self.spares):
            line.close()
