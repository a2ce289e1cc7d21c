"""Frames: one encoded message, and beside it raw data, under one checksum.

    header   magic "fm", protocol version, flags (0), body length, data length, checksum: 20 bytes
    body     the message (`codec.py`)
    data     raw bytes, where the message has any

The checksum is the XXH3 (64 bits) of the header before it, the body and the data. It finds accidents,
not attackers: those are kept out below, by TLS. Nothing here knows what a message means.
"""

import struct

from xxhash import xxh3_64

from fusemirror import limits
from fusemirror.errors import LocalProtocolError, RemoteProtocolError

Buffer = bytes | memoryview
Frame = tuple[bytes, Buffer]
"""(body, data)"""

MAGIC = b"fm"
_VERSIONS = range(limits.PROTOCOL_VERSION_MIN, limits.PROTOCOL_VERSION + 1)
# What comes before the lengths, as one word: any of these in what is received, the last in what is sent.
_KNOWN_LEADS = frozenset(MAGIC + bytes((version, 0)) for version in _VERSIONS)
_LEAD = MAGIC + bytes((limits.PROTOCOL_VERSION, 0))
_PREFIX = struct.Struct("<4sII")
_CHECKSUM = struct.Struct("<Q")
_HEADER = struct.Struct("<4sIIQ")
HEADER_BYTES = _HEADER.size
_PREFIX_BYTES = _PREFIX.size

# Shorter data is copied out of the received chunk, which costs less than a view does and lets the
# chunk go; longer data stays a view of it.
_COPIED_BYTES_MAX = 16 * limits.KIB

_BAD_CHECKSUM = "the checksum of a frame is wrong"


def encode_frame(body: bytes, data: Buffer = b"") -> bytes:
    """The header that goes before `body` and `data`. `LocalProtocolError` if either is too long."""
    if len(body) > limits.MESSAGE_BYTES_MAX or len(data) > limits.DATA_BYTES_MAX:
        raise LocalProtocolError(f"a message of {len(body)} bytes with {len(data)} bytes of data is too long")
    prefix = _PREFIX.pack(_LEAD, len(body), len(data))
    checksum = xxh3_64(prefix)
    checksum.update(body)
    checksum.update(data)
    return prefix + _CHECKSUM.pack(checksum.intdigest())


class _Begun:
    """A large frame of which a part is there: the rest is copied to its place, and summed up, as it comes.

    So when the last of it arrives there is little left to do: the other end has made the rest meanwhile.
    """

    __slots__ = ("_filled", "_sum", "_view", "body_end", "checksum")

    def __init__(self, size_bytes: int, body_length: int, checksum: int, begin: memoryview) -> None:
        """`begin`: its first bytes, the whole header among them."""
        self.body_end = HEADER_BYTES + body_length
        self.checksum = checksum
        self._view = memoryview(bytearray(size_bytes))
        self._view[: len(begin)] = begin
        self._filled = len(begin)
        self._sum = xxh3_64(begin[:_PREFIX_BYTES])
        self._sum.update(begin[HEADER_BYTES:])

    def take(self, data: bytes) -> int:
        """Take what comes next; how many bytes of it are the frame's."""
        size = min(len(data), len(self._view) - self._filled)
        part = memoryview(data)[:size]
        self._view[self._filled : self._filled + size] = part
        self._sum.update(part)
        self._filled += size
        return size

    @property
    def is_sound(self) -> bool:
        return bool(self._sum.intdigest() == self.checksum)

    def frame(self) -> Frame:
        """Nothing is written to it any more."""
        assert self._filled == len(self._view), "it is whole"
        view = self._view.toreadonly()
        return bytes(view[HEADER_BYTES : self.body_end]), view[self.body_end :]


class FrameReader:
    """Bytes in, in pieces of any size; frames out.

    Once it has raised, it raises the same for ever: after a bad frame nobody knows where the next begins.
    Frames that stand whole before a bad one are always delivered, however the bytes were cut.
    It holds at most one frame and what the last `feed` brought beyond it, if the caller takes all
    frames after each `feed`.
    """

    def __init__(self, peer_name: str) -> None:
        self.handshake = True  # a stranger may make us hold little
        self._peer_name = peer_name
        self._fault: str | None = None
        self._chunk = b""  # what is being read, from _position on
        self._position = 0
        self._later: list[bytes] = []  # joined to it only when a whole frame is there
        self._begun: _Begun | None = None  # a large one, into which all goes that comes
        self._wanted_bytes = HEADER_BYTES  # nothing can be said before so many are held
        self.held_bytes = 0
        """How many bytes were fed that no frame was made of; behind the last whole one another has begun."""

    def take_rest(self) -> bytes:
        """The bytes that no frame was made of: they belong to what is read in another way from here on."""
        assert self._begun is None, "a frame that nobody looked for has not begun"
        if self._later:
            self._join()
        rest = self._chunk[self._position :]
        self._chunk, self._position, self.held_bytes = b"", 0, 0
        return rest

    def feed(self, data: bytes) -> None:
        if not self.held_bytes:  # as almost always
            self._chunk = data
        elif self._begun is None:
            self._later.append(data)
        elif (size := self._begun.take(data)) < len(data):
            self._later.append(data[size:])
        self.held_bytes += len(data)

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None if more bytes are needed. `RemoteProtocolError` if it is bad.

        The data is a copy, or a view of bytes that never change: it may be kept.
        """
        if self._fault is not None:
            raise RemoteProtocolError(self._peer_name, self._fault)
        if self.held_bytes < self._wanted_bytes:
            return None
        if self._begun is not None:
            return self._end_of_begun(self._begun)
        if self._later:
            self._join()
        chunk, start = self._chunk, self._position
        lead, body_length, data_length, checksum = _HEADER.unpack_from(chunk, start)
        if self._wanted_bytes == HEADER_BYTES:
            if lead not in _KNOWN_LEADS:
                raise self._poisoned(_why_unknown(lead))
            too_long = body_length > limits.MESSAGE_BYTES_MAX or data_length > limits.DATA_BYTES_MAX
            if too_long or (self.handshake and body_length + data_length > limits.HANDSHAKE_BYTES_MAX):
                raise self._poisoned(f"a frame of {body_length} and {data_length} bytes is too long")
            self._wanted_bytes += body_length + data_length
            if self.held_bytes < self._wanted_bytes:
                if data_length > _COPIED_BYTES_MAX:
                    begin = memoryview(chunk)[start:]
                    self._begun = _Begun(self._wanted_bytes, body_length, checksum, begin)
                    self._chunk, self._position = b"", 0
                return None

        data_start = start + HEADER_BYTES + body_length
        end = start + self._wanted_bytes
        body = chunk[start + HEADER_BYTES : data_start]
        data = (chunk if data_length <= _COPIED_BYTES_MAX else memoryview(chunk))[data_start:end]
        actual = xxh3_64(chunk[start : start + _PREFIX_BYTES])
        actual.update(body)
        actual.update(data)
        if actual.intdigest() != checksum:
            raise self._poisoned(_BAD_CHECKSUM)
        self.held_bytes -= self._wanted_bytes
        self._wanted_bytes = HEADER_BYTES
        if self.held_bytes:
            self._position = end
        else:
            self._chunk, self._position = b"", 0  # nothing here may keep it in memory
        return body, data

    def _end_of_begun(self, begun: _Begun) -> Frame:
        if not begun.is_sound:
            raise self._poisoned(_BAD_CHECKSUM)
        self._begun = None
        self.held_bytes -= self._wanted_bytes
        self._wanted_bytes = HEADER_BYTES
        return begun.frame()

    def _join(self) -> None:
        self._chunk = b"".join([memoryview(self._chunk)[self._position :], *self._later])
        self._position = 0
        self._later.clear()

    def _poisoned(self, fault: str) -> RemoteProtocolError:
        self._fault = fault
        self._chunk, self._position, self.held_bytes = b"", 0, 0
        self._begun = None
        self._later.clear()
        return RemoteProtocolError(self._peer_name, fault)


def _why_unknown(lead: bytes) -> str:
    version, flags = lead[len(MAGIC) :]
    if not lead.startswith(MAGIC):
        return "this is not the protocol of fusemirror"
    if version not in _VERSIONS:
        return f"protocol version {version} is unknown; use the same version on both hosts"
    return f"frame flags {flags:#04x} are unknown here"
