"""Connection: one end of one path, from the first byte; bytes in, messages out.

It shakes hands, frames what is sent, and checks what is received. It has no stream: whoever drives it
(`channel/session.py`, a test) carries the bytes. Hellos say who the hosts are and which path this is;
`check_hello` is the one place that decides who may talk to whom.
"""

from fusemirror.errors import (
    HandshakeRefused,
    IllegalTransition,
    LocalProtocolError,
    PeerRefused,
    RemoteProtocolError,
    ReplacedByPeer,
)
from fusemirror.limits import COUNTER_SKIPPED_MAX
from fusemirror.printable import printable
from fusemirror.protocol.codec import decode, encode
from fusemirror.protocol.framing import Buffer, FrameReader, encode_frame
from fusemirror.protocol.messages import AnyMessage, Hello, Refused
from fusemirror.protocol.states import ConnectionEvent, ConnectionState, next_state

Received = tuple[AnyMessage, Buffer]
"""(message, the data beside it)"""

DIALED_BY = {"mirror": "primary", "forward": "backup"}
"""Each path, and the role of the host that dials it: requests travel from there."""

_OPEN = ConnectionState.OPEN  # each message asks for it, and looking it up in its Enum is slow
_SHOWN_CHARACTERS_MAX = 200


def shown(text: str) -> str:
    """A stranger's text, fit for one line of a log: short, and escaped."""
    return printable(text[:_SHOWN_CHARACTERS_MAX])[:_SHOWN_CHARACTERS_MAX]


def check_hello(ours: Hello, theirs: Hello, *, dialer: bool) -> str | None:
    """Why we do not talk to the sender of `theirs`, or None if we do. `dialer`: it was us who dialed."""
    if theirs.protocol < ours.protocol_min or theirs.protocol_min > ours.protocol:
        return (
            f"protocol versions {theirs.protocol_min} to {theirs.protocol} there, "
            f"{ours.protocol_min} to {ours.protocol} here; use the same version on both hosts"
        )
    if theirs.filesystem != ours.filesystem:
        return "another filesystem; check the peer addresses in both configs"
    if theirs.host == ours.host:
        return "this is myself; check the peer address in the config"
    if theirs.host != ours.peer or theirs.peer != ours.host:
        return (
            "another host of this filesystem than the peer; let it join anew, with the join file of a "
            "`fusemirror invite` on the host whose copy stays"
        )
    if theirs.name and ours.name and theirs.name != ours.name:
        return _differs("name", ours.name, theirs.name)
    # One that asks a witness, and one that asks none, would both go on alone. Its address may well be another
    # for each host: each may reach it by a network of its own.
    if None not in (ours.witness, theirs.witness) and bool(ours.witness) != bool(theirs.witness):
        return _differs("witness", ours.witness, theirs.witness)
    if "" not in (ours.witness_identity, theirs.witness_identity, ours.witness, theirs.witness) and (
        theirs.witness_identity != ours.witness_identity
    ):
        return (
            f"`witness` is '{shown(ours.witness or '')}' here and '{shown(theirs.witness or '')}' there, and "
            "these are two: each would let its host go on alone; set it so that both reach the same one"
        )
    if theirs.term > ours.term + COUNTER_SKIPPED_MAX:
        return f"term {theirs.term} is beyond what can be"
    if theirs.path not in DIALED_BY:
        return f"path '{shown(theirs.path)}' is unknown here"
    if theirs.role not in DIALED_BY.values():
        return f"role '{shown(theirs.role)}' is unknown here"
    if theirs.role == ours.role:
        return None  # they make no link, but each must know the other's Hello: see `open_session`
    if theirs.path != ours.path or (ours.role == DIALED_BY[ours.path]) != dialer:
        return f"the {shown(theirs.path)} path from the wrong side"
    return None


def _differs(key: str, ours: str | None, theirs: str | None) -> str:
    """Of a setting that must be the same on both hosts; `ours` is shown there, and `theirs` here."""
    return (
        f"`{key}` is '{shown(ours or '')}' here and '{shown(theirs or '')}' there; set it alike on both hosts"
    )


def is_replaced(ours: Hello, theirs: Hello) -> bool:
    """Whether the sender of `theirs` takes us for its peer, and we have another one since.

    Not by the identities alone: a volume that was put back from a copy names the peer of that time.
    """
    takes_us = (theirs.filesystem, theirs.peer) == (ours.filesystem, ours.host)
    return takes_us and theirs.host not in (ours.peer, ours.host) and theirs.pairing < ours.pairing


class Connection:
    """One end of one path. After the handshake `peer` is the peer's Hello.

    `replaced`: the other end showed that it is a host in whose place there is another now.
    """

    def __init__(
        self, ours: Hello, *, dialer: bool, peer_name: str = "the peer", replaced: bool = False
    ) -> None:
        self.ours = ours
        self._replaced = replaced
        self.peer: Hello | None = None
        self.refusal: PeerRefused | None = None  # why we refused the peer
        self.state = ConnectionState.CALLING if dialer else ConnectionState.LISTENING
        self.dialer = dialer
        """This host has dialed it."""
        self._peer_name = peer_name
        self._reader = FrameReader(peer_name)
        self.receive_data = self._reader.feed
        """Take in what the stream brought. Then ask `shake_hands` or `events` what it was."""
        self.fault: RemoteProtocolError | HandshakeRefused | None = None
        """What `events` has met, and will raise."""

    @property
    def held_bytes(self) -> int:
        """How many bytes were received that stand behind all messages delivered so far."""
        return self._reader.held_bytes

    def next_message(self) -> Received | None:
        """The next whole message, and no more than that is taken of what was received; else as `events`."""
        received = self.events(most=1)
        return received[0] if received else None

    def take_rest(self) -> bytes:
        """What was received behind all messages delivered so far: what comes next is read by another."""
        return self._reader.take_rest()

    @property
    def within_frame(self) -> bool:
        """Whether the stream would be cut in the middle of a frame if it ended here."""
        return self._reader.held_bytes > 0

    # --- the handshake ----------------------------------------------------------------------------

    def shake_hands(self) -> list[Buffer]:
        """Go on with the handshake as far as the bytes received allow; return what to send.

        The state is then OPEN, or more bytes are needed, or it is CLOSED and `refusal` says why we
        refused. `HandshakeRefused` if the peer refused us, `RemoteProtocolError` for all else.
        """
        if self.state is ConnectionState.CALLING:
            self._move(ConnectionEvent.SEND_HELLO)
            return self._frame(self.ours)
        received = self.next_message()
        if received is None:
            return []
        hello, data = received
        if not isinstance(hello, Hello) or data:
            self.end()
            raise RemoteProtocolError(self._peer_name, "the handshake holds more than a Hello")
        return self._answer(hello)

    def _answer(self, hello: Hello) -> list[Buffer]:
        reason = check_hello(self.ours, hello, dialer=self.dialer)
        replaced_by = b""
        if self._replaced or is_replaced(self.ours, hello):
            reason = "it was replaced: this host has invited another in its place"
            replaced_by = self.ours.host
        if reason is not None:
            self._move(ConnectionEvent.SEND_REFUSED)
            self.refusal = PeerRefused(self._peer_name, reason)
            return self._frame(Refused(reason, replaced_by))
        self.peer = hello
        self._reader.handshake = False
        if self.dialer:
            return []
        self._move(ConnectionEvent.SEND_HELLO)
        return self._frame(self.ours)

    # --- messages ---------------------------------------------------------------------------------

    def send(self, message: AnyMessage, data: Buffer = b"") -> list[Buffer]:
        """The buffers to be written, in this order. `LocalProtocolError` if the connection is not open."""
        return self.send_encoded(encode(message), data)

    def send_encoded(self, body: bytes, data: Buffer = b"") -> list[Buffer]:
        """The same for a message that is encoded already. `data` must not change before it is written."""
        if self.state is not _OPEN:
            raise LocalProtocolError(f"the connection is {self.state.name}")
        header = encode_frame(body, data)
        return [header, body, data] if data else [header, body]

    def events(self, most: int | None = None) -> list[Received]:
        """All whole messages received, or so many, in their order; none if more bytes are needed.

        `RemoteProtocolError` for what is none, `HandshakeRefused` if the peer refused late; what came
        before it is returned first, and may still be answered; every later call raises it again.
        """
        if self.fault is not None:
            self.end()
            raise self.fault
        received: list[Received] = []
        reader = self._reader
        try:
            while reader.held_bytes and len(received) != most and (frame := reader.next_frame()):
                body, data = frame
                message = decode(body, self._peer_name, len(data))
                kind = type(message)
                # An open connection stays open with each message: the table is asked for all other cases.
                if self.state is not _OPEN or kind is Hello or kind is Refused:
                    self._received(message)
                received.append((message, data))
        except (RemoteProtocolError, HandshakeRefused) as fault:
            self.fault = fault
            if not received:
                self.end()
                raise
        return received

    def end(self) -> None:
        """The stream has ended, or will be of no more use."""
        self._move(ConnectionEvent.END)

    # --- below both -------------------------------------------------------------------------------

    def _received(self, message: AnyMessage) -> None:
        if isinstance(message, Hello):
            event = ConnectionEvent.RECEIVE_HELLO
        elif isinstance(message, Refused):
            event = ConnectionEvent.RECEIVE_REFUSED
        else:
            event = ConnectionEvent.RECEIVE_MESSAGE
        try:
            state = next_state(self.state, event)
        except IllegalTransition:
            why = f"{type(message).__name__} came when the connection was {self.state.name}"
            raise RemoteProtocolError(self._peer_name, why) from None
        if isinstance(message, Refused):
            # Only the word of the host that we take for our peer counts.
            replaced = message.replaced_by != b"" and message.replaced_by == self.ours.peer
            raise (ReplacedByPeer if replaced else HandshakeRefused)(self._peer_name, shown(message.reason))
        self.state = state

    def _frame(self, message: Hello | Refused) -> list[Buffer]:
        body = encode(message)
        return [encode_frame(body), body]

    def _move(self, event: ConnectionEvent) -> None:
        self.state = next_state(self.state, event)
