"""Kept: what was sent, and how much of it is known to have arrived. Pure.

Places of the stream are counted in bytes from its beginning. A connection that was dropped while it was
written to may have carried more than it said: what the other end then says to have, beyond what is kept here,
is *ahead*, and is given here again by whoever sends.
"""

from collections import deque
from collections.abc import Sequence

from fusemirror import limits
from fusemirror.channel.transport import drop_sent
from fusemirror.protocol.framing import Buffer


class Kept:
    """What was sent and has not been confirmed: the bytes from `start` to `end` of the stream.

    Every message passes here, and hardly any is sent again: so each send is kept as it was made, and cut to
    bytes only by `rest`.
    """

    def __init__(self) -> None:
        self.start = self.end = 0
        self.ahead = 0
        """So many bytes have arrived that are yet to be given here again."""
        self.arrived = 0
        """What the other end has said to have."""
        self.again: list[Buffer] = []
        """What goes first over the connection in use."""
        self._attempt = 0  # the newest of the other end's to go on over another connection
        self._offered = 0  # end of what a connection that was dropped may have sent beyond what it said
        # Where each send ends, how many bytes it was, and of which buffers.
        self._sends: deque[tuple[int, int, Sequence[Buffer]]] = deque()

    def add(self, buffers: Sequence[Buffer], size: int) -> None:
        """The first `size` bytes of these follow. What they hold beyond is sent next, and so kept anyway."""
        self.end += size
        self._sends.append((self.end, size, buffers))
        if self.end - self.start > limits.RESENT_BYTES_MAX:
            self._drop(self.end - limits.RESENT_BYTES_MAX)
        if len(self._sends) > limits.RESENT_SENDS_MAX:
            self._drop(self._sends[0][0])

    def rest(self) -> list[Buffer]:
        """The bytes from `start` to `end`. Many small sends make few pieces: what is left of these is listed
        anew after each call that sends some."""
        rest: list[Buffer] = []
        for end, size, buffers in self._sends:
            missing = end - max(self.start, end - size)
            for buffer in drop_sent(buffers, size - missing):
                if missing:
                    rest.append(buffer if len(buffer) <= missing else memoryview(buffer)[:missing])
                    missing -= len(rest[-1])
        assert sum(map(len, rest)) == self.end - self.start, "what is sent again follows what has arrived"
        pieces = range(0, len(rest), limits.SEND_BUFFERS_MAX)
        return rest if len(pieces) <= 1 else [b"".join(rest[at : at + pieces.step]) for at in pieces]

    def clear(self) -> None:
        self._sends.clear()
        self.start = self.end

    def _drop(self, until: int) -> None:
        """Keep nothing before this place of the stream, but for the rest of what was sent together."""
        self.start = max(self.start, until)
        sends = self._sends
        while sends and sends[0][0] <= self.start:
            sends.popleft()

    # --- what has arrived -------------------------------------------------------------------------------

    def confirmed(self, count: int, untold_bytes: int = 0) -> None:
        """The other end has so many bytes; it may have said more since, where this was sent again. Of
        `untold_bytes` the connection has not said whether they went. ValueError where that cannot be."""
        if count > self.end + max(self.ahead, untold_bytes):
            raise ValueError(f"count: {count} bytes, and {self.end} were sent")
        self._confirm(max(self.arrived, min(count, self.end)))

    def _confirm(self, count: int) -> None:
        self.arrived = count
        self._drop(count)

    def offered(self, size: int) -> None:
        """A connection is dropped that was given `size` bytes more: nobody here knows how many went."""
        self._offered = max(self._offered, self.end + size)

    def takes(self, attempt: int, theirs: int) -> bool:
        """Whether the other end, which has `theirs` bytes, may go on over another connection by this attempt.

        An earlier version does not number its attempts (0). One is old for sure where the other end is known
        to have more than it says.
        """
        if attempt == 0:
            return theirs >= self.arrived
        if attempt <= self._attempt:
            return False
        self._attempt = attempt
        return True

    def resume(self, theirs: int) -> None:
        """Over a new connection, where the other end says that it has `theirs` bytes, the rest is sent again.
        ValueError where it cannot have them; LookupError where it lacks what is not kept any more: nothing
        has changed then.
        """
        if not self.arrived <= theirs <= max(self.end, self._offered):
            raise ValueError("it says that more, or less, has arrived than was sent")
        if theirs < self.start:
            raise LookupError("more was under way than is kept to be sent again")
        self.ahead = max(0, theirs - self.end)
        self._confirm(theirs - self.ahead)
        self.again = self.rest()

    def take_ahead(self, buffers: Sequence[Buffer]) -> int:
        """How many bytes of these have arrived already."""
        size = min(self.ahead, sum(map(len, buffers)))
        self.ahead -= size
        self.add(buffers, size)
        self._confirm(self.end)
        return size
