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
_PREFIX = struct.Struct("<2sBBII")
_CHECKSUM = struct.Struct("<Q")
_HEADER = struct.Struct("<2sBBIIQ")
HEADER_BYTES = _HEADER.size

# Shorter data is copied out of the received chunk, which costs less than a view does and lets the
# chunk go; longer data stays a view of it.
_COPIED_BYTES_MAX = 16 * limits.KIB


def encode_frame(body: bytes, data: Buffer = b"") -> bytes:
    """The header that goes before `body` and `data`. `LocalProtocolError` if either is too long."""
    if len(body) > limits.MESSAGE_BYTES_MAX or len(data) > limits.DATA_BYTES_MAX:
        raise LocalProtocolError(f"a message of {len(body)} bytes with {len(data)} bytes of data is too long")
    prefix = _PREFIX.pack(MAGIC, limits.PROTOCOL_VERSION, 0, len(body), len(data))
    checksum = xxh3_64(prefix)
    checksum.update(body)
    checksum.update(data)
    return prefix + _CHECKSUM.pack(checksum.intdigest())


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
        self._held_bytes = 0
        self._wanted_bytes = HEADER_BYTES  # nothing can be said before so many are held

    @property
    def missing_bytes(self) -> int:
        """How many bytes must still be fed before there can be another frame."""
        return max(0, self._wanted_bytes - self._held_bytes)

    @property
    def within_frame(self) -> bool:
        """Whether a frame has begun that is not whole."""
        return self._held_bytes > 0

    def feed(self, data: bytes) -> None:
        self._later.append(data)
        self._held_bytes += len(data)

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None if more bytes are needed. `RemoteProtocolError` if it is bad.

        The data is a copy, or a view of bytes that never change: it may be kept.
        """
        if self._fault is not None:
            raise RemoteProtocolError(self._peer_name, self._fault)
        if self._held_bytes < self._wanted_bytes:
            return None
        if self._later:
            self._join()
        chunk, start = self._chunk, self._position
        magic, version, flags, body_length, data_length, checksum = _HEADER.unpack_from(chunk, start)
        if self._wanted_bytes == HEADER_BYTES:
            self._check_header(magic, version, flags, body_length, data_length)
            self._wanted_bytes += body_length + data_length
            if self._held_bytes < self._wanted_bytes:
                return None

        body_start = start + HEADER_BYTES
        data_start = body_start + body_length
        end = data_start + data_length
        view = memoryview(chunk)
        actual = xxh3_64(view[start : start + _PREFIX.size])
        actual.update(view[body_start:end])
        if actual.intdigest() != checksum:
            raise self._poisoned("the checksum of a frame is wrong")
        self._consume(end)
        data = chunk[data_start:end] if data_length <= _COPIED_BYTES_MAX else view[data_start:end]
        return chunk[body_start:data_start], data

    def _join(self) -> None:
        rest = memoryview(self._chunk)[self._position :]
        if rest or len(self._later) > 1:
            self._chunk = b"".join([rest, *self._later])
        else:
            self._chunk = self._later[0]
        self._position = 0
        self._later.clear()

    def _consume(self, end: int) -> None:
        self._held_bytes -= self._wanted_bytes
        self._wanted_bytes = HEADER_BYTES
        self._position = end
        if not self._held_bytes:
            self._chunk, self._position = b"", 0  # nothing here may keep it in memory

    def _check_header(
        self, magic: bytes, version: int, flags: int, body_length: int, data_length: int
    ) -> None:
        if magic != MAGIC:
            raise self._poisoned("this is not the protocol of fusemirror")
        if not limits.PROTOCOL_VERSION_MIN <= version <= limits.PROTOCOL_VERSION:
            raise self._poisoned(f"protocol version {version} is unknown; use the same version on both hosts")
        if flags:
            raise self._poisoned(f"frame flags {flags:#04x} are unknown here")
        too_long = body_length > limits.MESSAGE_BYTES_MAX or data_length > limits.DATA_BYTES_MAX
        if too_long or (self.handshake and body_length + data_length > limits.HANDSHAKE_BYTES_MAX):
            raise self._poisoned(f"a frame of {body_length} and {data_length} bytes is too long")

    def _poisoned(self, fault: str) -> RemoteProtocolError:
        self._fault = fault
        self._chunk, self._position, self._held_bytes = b"", 0, 0
        self._later.clear()
        return RemoteProtocolError(self._peer_name, fault)
