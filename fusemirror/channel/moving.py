"""Moving: the stream of a session that outlives its connections.

What was sent is kept until the other end says that it has arrived. Where a connection is lost, or makes no
progress, another takes its place: both ends say how many bytes of the session have arrived there, and each
sends what the other lacks. So nothing is lost, nothing comes twice and nothing out of its order, and nobody
above notices more than a delay: not the mirror, not the lease, which counts from when a Ping was sent.

Who dialed the session finds the connections (`mover.py`); the other end takes what comes (`lines.py`).
"""

from collections.abc import Sequence

import trio

from fusemirror import limits
from fusemirror.channel.kept import Kept
from fusemirror.channel.transport import Take, Transport, drop_sent
from fusemirror.errors import ConnectionLost, RemoteProtocolError
from fusemirror.protocol.framing import Buffer

_CLOSED_HERE = "closed on this host"


class MovingTransport(Transport):
    """See the module. It owns the connection that it goes by.

    Until `begin` the loss of a connection is the end of the stream, as everywhere.
    """

    def __init__(self, first: Transport, *, received_bytes: int) -> None:
        """`received_bytes` of the stream were read already."""
        self.peer_name = first.peer_name
        self.peer_host = first.peer_host
        self.received_bytes = received_bytes
        self.told_bytes = 0
        """Of those, as many as the other end has been told to have arrived."""
        self.lost_reason: str | None = None
        """Why there is no connection now; None while there is one."""
        self.is_waited_for = False
        """Somebody waits for what arrives: silence is not this end's own."""
        self.since = trio.current_time()
        """When the connection in use, or its loss, began."""
        self.turn = 0
        """How often a connection was dropped."""
        self.changed = trio.lowlevel.ParkingLot()
        """Whoever waits for a connection, or for its loss."""
        self._connection: Transport | None = first
        self._closed = False
        self._moves = False
        self._kept = Kept()
        self._rest = b""  # came with the word that a new connection goes on

    @property
    def sent_bytes(self) -> int:
        return self._kept.end

    def begin(self) -> None:
        """From now on a connection that is lost is waited for to be replaced."""
        self._moves = True

    # --- connections ------------------------------------------------------------------------------------

    def drop(self, reason: str) -> int:
        """Go by the connection no more. How many bytes have arrived here: no more will, until `go_on`."""
        if self._connection is not None:
            self._kept.offered(self._connection.untold_bytes())
            self._connection.close()
            self._connection = None
        self.lost_reason = reason
        self.since = trio.current_time()
        self.turn += 1
        self.changed.unpark_all()
        return self.received_bytes

    def takes(self, attempt: int, theirs: int) -> bool:
        """Whether the other end, which has `theirs` bytes, may go on over another connection by this attempt.
        Ask before `drop`: one that it gave up may arrive after a later one, and nobody is at the other end of
        that connection any more.
        """
        return self._kept.takes(attempt, theirs)

    def go_on(self, connection: Transport, theirs: int, *, turn: int, rest: bytes = b"") -> None:
        """Go by this connection, whose other end has `theirs` bytes of what was sent; `rest` came from it.
        `turn` is that of the `drop` before which the other end was told what had arrived here.

        `run_resend` must follow. `RemoteProtocolError` where the other end cannot have so much,
        `ConnectionLost` where more is lost than is kept here, and the stream is at its end: the connection
        is then still the caller's.
        """
        if self._closed:
            raise ConnectionLost(self.peer_name, _CLOSED_HERE)
        if turn != self.turn:
            raise ConnectionLost(self.peer_name, "another connection was taken")
        assert self._connection is None, "the connection before it was dropped"
        try:
            self._kept.resume(theirs)
        except ValueError as error:
            raise RemoteProtocolError(self.peer_name, str(error)) from error
        except LookupError as error:
            self._moves = False
            self.changed.unpark_all()
            raise ConnectionLost(self.peer_name, str(error)) from error
        self._connection, self._rest = connection, rest
        self.peer_name, self.peer_host = connection.peer_name, connection.peer_host
        self.lost_reason = None
        self.since = trio.current_time()
        self.changed.unpark_all()

    async def run_resend(self) -> None:
        """Send again what the other end lacks; what comes after it waits. Return when that has gone, or the
        connection is lost. Cancellation: the connection is then of no use."""
        connection, kept = self._connection, self._kept
        try:
            while kept.again and connection is not None and connection is self._connection:
                sent_bytes = connection.try_send(kept.again[: limits.SEND_BUFFERS_MAX])
                kept.again = drop_sent(kept.again, sent_bytes)
                if kept.again:
                    await connection.wait_writable()
        except ConnectionLost as error:
            if connection is self._connection and not self._closed:
                self.drop(error.why)
        self.changed.unpark_all()

    def confirmed(self, count: int) -> None:
        """The other end has so many bytes. ValueError where that cannot be."""
        self._kept.confirmed(count, 0 if self._connection is None else self._connection.untold_bytes())

    def tell(self) -> int:
        """How many bytes have arrived, which the other end is told now."""
        self.told_bytes = self.received_bytes
        return self.told_bytes

    def _goes_on_without(self, connection: Transport, reason: str) -> bool:
        """The connection is lost: whether the stream waits for another, or has one already."""
        if self._closed or not self._moves:
            return False
        if connection is self._connection:
            self.drop(reason)
        return True

    async def _wait_connection(self) -> None:
        if self._closed:
            raise ConnectionLost(self.peer_name, _CLOSED_HERE)
        if not self._moves:
            raise ConnectionLost(self.peer_name, self.lost_reason)
        await self.changed.park()

    # --- the stream -------------------------------------------------------------------------------------

    def try_send(self, buffers: Sequence[Buffer]) -> int:
        if self._closed:
            raise ConnectionLost(self.peer_name, _CLOSED_HERE)
        connection = self._connection
        if connection is None or self._kept.again:
            return 0
        if self._kept.ahead:
            return self._kept.take_ahead(buffers)
        try:
            sent_bytes = connection.try_send(buffers)
        except ConnectionLost as error:
            self._kept.offered(sum(map(len, buffers)))
            if self._goes_on_without(connection, error.why):
                return 0
            raise
        if sent_bytes:
            self._kept.add(buffers, sent_bytes)
        return sent_bytes

    async def wait_writable(self) -> None:
        while True:
            connection = self._connection
            if connection is None or self._kept.again:
                await self._wait_connection()
                continue
            try:
                await connection.wait_writable()
            except ConnectionLost as error:
                if not self._goes_on_without(connection, error.why):
                    raise
                continue
            if connection is self._connection:
                return

    async def receive(self, bytes_max: int) -> bytes:
        received = b""

        def take(data: bytes) -> bool:
            nonlocal received
            received = data
            return True

        await self._receive(take, bytes_max, hot=False)
        return received

    async def receive_with(self, bytes_max: int, take: Take) -> None:
        await self._receive(take, bytes_max, hot=True)

    async def _receive(self, take: Take, bytes_max: int, *, hot: bool) -> None:
        """As `receive_with`; b"" only where the stream is at its end."""
        connection: Transport | None = None
        ended = False
        taken = False
        raised: BaseException | None = None

        def take_counted(data: bytes) -> bool:
            nonlocal ended, raised, taken
            if connection is not self._connection:
                return True  # decrypted before it was dropped: the other end sends it again
            if not data:
                ended = True
                return True
            self.received_bytes += len(data)
            try:
                taken = take(data)
            except BaseException as error:
                raised = error
                raise
            return taken

        self.is_waited_for = True
        try:
            while True:
                connection = self._connection
                if connection is None:
                    await self._wait_connection()
                    continue
                if self._rest:
                    await trio.lowlevel.checkpoint()
                    rest, self._rest = self._rest, b""
                    if rest:
                        take_counted(rest)
                    if taken:
                        return
                    continue
                try:
                    if hot:
                        await connection.receive_with(bytes_max, take_counted)
                    else:
                        take_counted(await connection.receive(bytes_max))
                except ConnectionLost as error:
                    if error is raised or not self._goes_on_without(connection, error.why):
                        raise
                    continue
                if taken:
                    return
                if not ended:
                    continue
                ended = False
                if not self._goes_on_without(connection, "the peer ended it"):
                    take(b"")
                    return
        finally:
            self.is_waited_for = False

    def acknowledged_bytes(self) -> int:
        return 0 if self._connection is None else self._connection.acknowledged_bytes()

    def queued_bytes(self) -> int:
        return 0 if self._connection is None else self._connection.queued_bytes()

    @property
    def local_name(self) -> str | None:
        return None if self._connection is None else self._connection.local_name

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._connection is not None:
                self._connection.close()
            self._kept.clear()
            self.changed.unpark_all()
