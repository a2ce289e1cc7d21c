"""A lying peer: what one host sends the other, changed on its way so that it must be refused.

A lie is a message with one field beyond what may stand in it, or one that only the other role may send. Its
checksum is right: only what the receiver checks keeps it out. What a peer may say, true or not, is no lie
here, for nobody could tell.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any
from unittest import mock

import msgspec
import trio

from fusemirror.change import Table, WriteChange
from fusemirror.channel.session import InPlace, Session
from fusemirror.channel.transport import Transport
from fusemirror.identifiers import NO_REQUEST, ROOT_INODE, ChangeNumber, InodeNumber, RequestId
from fusemirror.operations import Write
from fusemirror.protocol import messages as m
from fusemirror.protocol.codec import decode, encode
from fusemirror.protocol.connection import Received
from fusemirror.protocol.framing import HEADER_BYTES, MAGIC, Buffer, encode_frame
from tests.memory_network import MemoryTransport

LIES = ("lie primary", "lie backup")
"""Faults, and whose messages are changed."""

_LENGTHS = struct.Struct("<4xII8x")  # of the body and the data of a frame, in its header
_HUGE = (1 << 64) - 1
_FAR = 1 << 50
_PATIENCE_S = 60.0
_REQUEST = RequestId(b"r" * 16)
_ROOT = bytes(7) + b"\1"
_NUMBERS = (-2, _HUGE)  # -1 stands for something here and there
_BAD_ROWS = (
    ((9, b"key", b"of no table"),),
    ((0, b"number", bytes(8)),),
    ((1, _ROOT, None),),
    ((1, bytes(7) + b"\7", b"short"),),
    ((2, _ROOT + b"..", None),),
    ((2, _ROOT + b"a/b", None),),
    ((2, _ROOT + b"name", b"short"),),
    ((3, _ROOT + b"x" * 300, b"value"),),
)
_BEYOND: dict[str, Sequence[Any]] = {
    **dict.fromkeys(("number", "journal_number", "durable", "after"), _NUMBERS),
    **dict.fromkeys(("inode", "next_inode", "directory"), _NUMBERS),
    **dict.fromkeys(("token", "serial", "term", "checkpoint", "count", "limit"), _NUMBERS),
    **dict.fromkeys(("first_region", "end_region", "length", "errno", "time_ns"), _NUMBERS),
    **dict.fromkeys(("offset", "size"), (-2, 1 << 63)),
    **dict.fromkeys(("digest", "done_bytes", "total_bytes", "protocol"), (-2,)),
    **dict.fromkeys(("digests", "values"), ((-2,),)),
    **dict.fromkeys(("identity", "oldest_live", "request"), (b"short",)),
    **dict.fromkeys(("first", "last", "instance", "call"), (b"x" * 1000,)),
    "access": ("anarchy",),
    "host_name": ("a/b",),
    "inodes": ((-2,), (_HUGE,)),
    "marks": (((_HUGE, (0,)),),),
    "reason": ("x" * 20_000,),
    "rows": _BAD_ROWS,
    "table": (9,),
}
"""By the name of a field: what may stand there in no message."""

_UNTRUE: dict[type, Callable[[Any], Any]] = {
    m.Applied: lambda message: _with(message, number=message.number + _FAR),
    m.CaughtUp: lambda message: _with(message, journal_number=message.number + 1),
    m.Checkpoint: lambda message: _with(message, checkpoint=message.checkpoint + _FAR),
    m.HandOver: lambda message: _with(message, term=message.term + _FAR),
    m.Pong: lambda message: _with(message, serial=message.serial + _FAR),
    m.Reply: lambda message: _with(message, token=message.token + _FAR),
}
"""What could be, and is not: nothing like that was made, or asked."""

_ONLY_OF: dict[str, Sequence[m.AnyMessage]] = {
    "primary": (
        WriteChange(ChangeNumber(1), NO_REQUEST, 1, ROOT_INODE, 0, 4),
        m.Begin(True, (), ChangeNumber(1)),
        m.CatalogRows(()),
        m.CaughtUp(ChangeNumber(1), ChangeNumber(1)),
        m.Checkpoint(1, ChangeNumber(1)),
        m.HandOver(1),
        m.LendNames(ROOT_INODE),
        m.ReplaceRows(Table.INODES, b"", b"\xff", ()),
    ),
    "backup": (
        m.Applied(ChangeNumber(1)),
        m.Ended(_REQUEST),
        m.Fetched(1),
        m.Reply(1),
        m.Request(_REQUEST, Write(InodeNumber(2), 0)),
        m.Suspects((), True),
        m.WantNames(ROOT_INODE),
    ),
}
"""What a host with this role may send, and the other never."""


@dataclass(frozen=True)
class Lie:
    """A message that a process has read. `deep`: not the message by itself is bad, but that it comes now."""

    message: m.AnyMessage
    data: Buffer
    deep: bool = False
    over: trio.Event = field(default_factory=trio.Event)
    """The connection by which it came has ended."""

    def __str__(self) -> str:
        return f"{repr(self.message)[:300]} with {len(self.data)} bytes"


class Lies:
    """What one host is told that it must not believe, over all lives of its process."""

    def __init__(self, random: Random) -> None:
        self.told: list[Lie] = []
        self._random = random
        self._wanted = 0

    @property
    def wanted(self) -> bool:
        return self._wanted > 0

    def tell_one(self) -> None:
        """From now on one of the next messages is a lie."""
        self._wanted += 1

    def tell_no_more(self) -> None:
        self._wanted = 0

    def holds(self, refusal: str) -> bool:
        """Whether such a message was a lie, or came of one: each is put into the stream behind the back of
        the peer, which then hears that more of it has arrived than it has sent; where a path has just moved,
        perhaps in the middle of a frame."""
        nameless = "Arrived: count: " in refusal or "the checksum of a frame is wrong" in refusal
        return any(nameless or type(lie.message).__name__ in refusal for lie in self.told)

    async def check_refused(self) -> None:
        """AssertionError if the connection by which a lie came goes on."""
        for lie in self.told:
            with trio.move_on_after(_PATIENCE_S):
                await lie.over.wait()
            assert lie.over.is_set(), f"it was told {lie}, and listens on"

    def draw(self, arrived: bytes, role: str | None) -> tuple[Lie, int] | None:
        """A lie, and how many of the bytes that have arrived it takes the place of: none if it comes between.
        None if there is none to tell here. `role` is the sender's, where it is known."""
        if not self.wanted:
            return None
        lie: tuple[Lie, int] | None = None
        if role is not None and self._random.random() < 0.1:
            message = self._random.choice(_ONLY_OF["backup" if role == "primary" else "primary"])
            data = bytes(message.length) if isinstance(message, WriteChange) else b""
            lie = Lie(message, data, deep=True), 0
        elif (frame := _first_frame(arrived)) is not None:
            message, data, size = frame
            share = 0.05 if isinstance(message, m.Hello | m.Ping | m.Pong) else 0.5
            if self._random.random() < share and not isinstance(message, m.Refused):
                lie = self._changed(message, data), size
        if lie is not None:
            self._wanted -= 1
            self.told.append(lie[0])
        return lie

    def _changed(self, message: m.AnyMessage, data: bytes) -> Lie:
        kind, ways = type(message), list[Callable[[], Lie]]()
        names = [name for name in message.__struct_fields__ if name in _BEYOND]
        if names:
            name = self._random.choice(names)
            spoilt = _with(message, **{name: self._random.choice(_BEYOND[name])})
            # Rows that were asked for are looked at by who asked.
            ways += [lambda: Lie(spoilt, data, deep=kind is m.Fetched and name == "rows")] * 3
        if kind in _UNTRUE:
            ways += [lambda: Lie(_UNTRUE[kind](message), data, deep=True)] * 2
        if kind is m.RegionData:
            ways.append(lambda: Lie(message, b""))
        elif not isinstance(message, WriteChange | m.Request | m.Answer):
            ways.append(lambda: Lie(message, b"nothing comes beside this"))
        elif isinstance(message, WriteChange) and not message.request:  # else the receiver may have the data
            ways.append(lambda: Lie(message, data[1:]))
        return self._random.choice(ways)()


def _with(message: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(message, **fields)


class LyingTransport(Transport):
    """A stream as it is, until there is a lie to tell in it; a process that read one must end the stream."""

    def __init__(self, transport: MemoryTransport, lies: Lies, trace: Callable[[str], None]) -> None:
        self.peer_name, self.peer_host = transport.peer_name, transport.peer_host
        self._transport = transport
        self._lies = lies
        self._trace = trace
        self._role: str | None = None  # the sender's, as its Hello said
        self._header = b""  # what has arrived of one that is not whole
        self._left_bytes = 0  # of the frame that has begun
        self._lie: Lie | None = None
        self._taken = False  # by who goes by what it means, and must refuse it then
        self._dropping = False  # what comes: nobody goes by it any more

    async def open(self) -> None:
        await self._transport.open()

    def try_send(self, buffers: Sequence[Buffer]) -> int:
        return self._transport.try_send(buffers)

    async def wait_writable(self) -> None:
        await self._transport.wait_writable()

    def close(self) -> None:
        self._transport.close()
        self._end()

    def vanish(self, host: str) -> None:
        self._transport.vanish(host)
        self._end()

    def _end(self) -> None:
        if self._lie is not None:
            self._lie.over.set()

    async def receive(self, bytes_max: int) -> bytes:
        data = await self._transport.receive(bytes_max)
        return data if self._lie is not None else self._with_a_lie(data)

    def _with_a_lie(self, data: bytes) -> bytes:
        at = 0
        while at < len(data):
            if not self._left_bytes:
                if not self._header:
                    arrived = data[at:] if self._lies.wanted or self._role is None else b""
                    if (drawn := self._lies.draw(arrived, self._role)) is not None:
                        return data[:at] + self._tell(drawn[0]) + arrived[drawn[1] :]
                    self._look_for_hello(arrived)
                at = self._read_header(data, at)
            step = min(self._left_bytes, len(data) - at)
            self._left_bytes -= step
            at += step
        return data

    def _read_header(self, data: bytes, at: int) -> int:
        """Where what follows it begins."""
        end = at + HEADER_BYTES - len(self._header)
        self._header += data[at:end]
        if len(self._header) == HEADER_BYTES:
            self._left_bytes, self._header = sum(_LENGTHS.unpack(self._header)), b""
        return min(end, len(data))

    def _look_for_hello(self, arrived: bytes) -> None:
        if self._role is None and (frame := _first_frame(arrived)) is not None:
            self._role = frame[0].role if isinstance(frame[0], m.Hello) else None

    def _tell(self, lie: Lie) -> bytes:
        self._lie = lie
        self._trace(f"a lie over {self.peer_name}: {lie}")
        body = encode(lie.message)
        return b"".join((encode_frame(body, lie.data), body, lie.data))

    def check_taken(self, received: Sequence[Received]) -> None:
        """AssertionError if one of these, which are taken for messages, is a lie by itself."""
        lie = self._lie
        if lie is not None and any(each == (lie.message, lie.data) for each in received):
            assert lie.deep, f"it was told {lie}, and took it for a message"
            self._taken = not self._dropping

    def drop(self) -> None:
        """From now on nothing that comes is gone by, nor what came before."""
        self._taken, self._dropping = False, True

    def check_wanted(self) -> None:
        """AssertionError if a lie was taken before, and the next message is wanted all the same."""
        assert not self._taken, f"it was told {self._lie}, and went on"


@contextmanager
def lies_noticed() -> Iterator[None]:
    """While this lasts, an AssertionError ends a process that takes a lie for a message."""
    receive, discard = Session.receive, Session.discard

    async def dropping(session: Session) -> None:
        if isinstance(session._transport, LyingTransport):
            session._transport.drop()
        await discard(session)

    async def checked(session: Session, in_place: InPlace | None = None) -> list[Received]:
        transport = session._transport
        if not isinstance(transport, LyingTransport):
            return await receive(session, in_place)

        def checked_in_place(arrived: list[Received]) -> list[Received]:
            assert in_place is not None
            transport.check_wanted()
            transport.check_taken(arrived)
            return in_place(arrived)

        transport.check_wanted()
        received = await receive(session, None if in_place is None else checked_in_place)
        transport.check_taken(received)
        return received

    with mock.patch.multiple(Session, receive=checked, discard=dropping):
        yield


def _first_frame(arrived: bytes) -> tuple[m.AnyMessage, bytes, int] | None:
    """Of the frame that the bytes begin with, if it is whole: the message, the data beside it, its length.

    They may stand in the middle of one that goes on over another connection.
    """
    if len(arrived) < HEADER_BYTES or not arrived.startswith(MAGIC):
        return None
    body_bytes, data_bytes = _LENGTHS.unpack_from(arrived)
    end = HEADER_BYTES + body_bytes
    size = end + data_bytes
    if len(arrived) < size:
        return None
    data = arrived[end:size]
    return decode(arrived[HEADER_BYTES:end], data_bytes=data_bytes), data, size
