"""Frames: any fragmentation gives the same frames; bad bytes give one error and no frame."""

import itertools
import struct
import sys
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from fusemirror import limits
from fusemirror.errors import LocalProtocolError, RemoteProtocolError
from fusemirror.protocol.framing import HEADER_BYTES, Frame, FrameReader, encode_frame

LARGE = 16 * limits.KIB + 1

Frames = list[tuple[bytes, bytes]]

frames = st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=40)), max_size=6)
a_frame = st.tuples(st.binary(max_size=40), st.binary(max_size=40))


def stream_of(some: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(encode_frame(body, data) + body + data for body, data in some)


def open_reader() -> FrameReader:
    reader = FrameReader("the peer")
    reader.handshake = False
    return reader


def read_all(reader: FrameReader, pieces: Iterable[bytes]) -> tuple[Frames, str | None]:
    """All frames, and the error that ended them."""
    read: Frames = []
    try:
        for piece in pieces:
            reader.feed(piece)
            while (frame := reader.next_frame()) is not None:
                read.append((frame[0], bytes(frame[1])))
    except RemoteProtocolError as error:
        return read, str(error)
    return read, None


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


def header(**other: int | bytes) -> bytes:
    """A header with a right checksum and some wrong field."""
    fields: dict[str, int | bytes] = {"magic": b"fm", "version": 1, "flags": 0, "body": 0, "data": 0, **other}
    prefix = struct.pack("<2sBBII", *fields.values())
    return prefix + struct.pack("<Q", xxh3_64_intdigest(prefix))


def test_a_frame_looks_on_the_wire_as_it_always_did() -> None:
    assert stream_of([(b"body", b"data!")]) == (
        b"fm\x01\x00" + b"\x04\x00\x00\x00" + b"\x05\x00\x00\x00"
        + struct.pack("<Q", xxh3_64_intdigest(b"fm\x01\x00\x04\x00\x00\x00\x05\x00\x00\x00bodydata!"))
        + b"body" + b"data!"
    )  # fmt: skip


@given(frames, st.lists(st.integers(min_value=0), max_size=20))
def test_any_fragmentation_gives_the_same_frames(some: Frames, places: list[int]) -> None:
    assert read_all(open_reader(), cut(stream_of(some), places)) == (some, None)


@given(frames)
def test_single_bytes_give_the_same_frames(some: Frames) -> None:
    stream = stream_of(some)
    assert read_all(open_reader(), [stream[i : i + 1] for i in range(len(stream))]) == (some, None)


@given(frames, a_frame, st.integers(min_value=0))
def test_a_truncated_frame_is_not_delivered_and_is_known_to_be_cut(
    some: Frames, last: tuple[bytes, bytes], place: int
) -> None:
    end = stream_of([last])
    kept = place % len(end)
    reader = open_reader()
    assert read_all(reader, [stream_of(some) + end[:kept]]) == (some, None)
    assert (reader.held_bytes > 0) == (kept > 0)


@given(frames, a_frame, st.integers(min_value=0), st.lists(st.integers(min_value=0), max_size=5))
@example([(b"a", b"b")], (b"c", b"d"), 8 * (HEADER_BYTES + 1), [])
def test_a_flipped_bit_costs_its_frame_and_none_before_it(
    some: Frames, last: tuple[bytes, bytes], bit: int, places: list[int]
) -> None:
    bad = bytearray(stream_of([last]))
    bit %= 8 * len(bad)
    bad[bit // 8] ^= 1 << bit % 8
    read, _ = read_all(open_reader(), cut(stream_of(some) + bytes(bad), places))
    assert read == some  # a length that grew makes the reader wait; it never makes a frame


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_garbage_gives_nothing_but_the_error_of_a_bad_frame(pieces: list[bytes]) -> None:
    read, _ = read_all(open_reader(), pieces)
    assert read == []


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (header(magic=b"HT"), "not the protocol of fusemirror"),
        (header(version=0), "protocol version 0"),
        (header(version=limits.PROTOCOL_VERSION + 1), "protocol version 2"),
        (header(flags=1), "flags 0x01"),
        (header(body=limits.MESSAGE_BYTES_MAX + 1), "too long"),
        (header(data=limits.DATA_BYTES_MAX + 1), "too long"),
        (header()[:-1] + b"\xff", "checksum"),
    ],
)
def test_a_bad_header_is_refused_with_its_reason_for_ever(bad: bytes, reason: str) -> None:
    reader = open_reader()
    reader.feed(bad)
    for _ in range(3):
        with pytest.raises(RemoteProtocolError, match=f"refused what the peer sent: .*{reason}"):
            reader.next_frame()
        reader.feed(stream_of([(b"good", b"")]))


def test_the_longest_frame_passes() -> None:
    longest = (b"b" * limits.MESSAGE_BYTES_MAX, b"d" * limits.DATA_BYTES_MAX)
    stream = stream_of([longest])
    pieces = [stream[i : i + limits.RECEIVE_BYTES] for i in range(0, len(stream), limits.RECEIVE_BYTES)]
    assert read_all(open_reader(), pieces) == ([longest], None)


@pytest.mark.parametrize(
    ("body_bytes", "data_bytes"), [(limits.MESSAGE_BYTES_MAX + 1, 0), (0, limits.DATA_BYTES_MAX + 1)]
)
def test_a_frame_that_is_too_long_is_not_made(body_bytes: int, data_bytes: int) -> None:
    with pytest.raises(LocalProtocolError, match="too long"):
        encode_frame(bytes(body_bytes), bytes(data_bytes))


def test_in_the_handshake_a_stranger_may_send_little() -> None:
    half = limits.HANDSHAKE_BYTES_MAX // 2
    assert read_all(FrameReader("x"), [stream_of([(b"h" * half, b"h" * half)])])[1] is None
    read, error = read_all(FrameReader("x"), [header(body=half, data=half + 1)])
    assert (read, error) == ([], f"refused what x sent: a frame of {half} and {half + 1} bytes is too long")


@pytest.mark.parametrize("data_bytes", [100, 16 * limits.KIB, 16 * limits.KIB + 1, limits.MIB])
def test_data_may_be_kept_while_other_frames_come(data_bytes: int) -> None:
    reader = open_reader()
    kept: list[Frame] = []
    for fill in (b"1", b"2", b"3"):
        stream = stream_of([(b"body", fill * data_bytes)])
        for piece in cut(stream, [10, 50, data_bytes // 2]):
            reader.feed(piece)
            if frame := reader.next_frame():
                kept.append(frame)
    assert [bytes(data) for _, data in kept] == [fill * data_bytes for fill in (b"1", b"2", b"3")]


def test_small_data_does_not_hold_a_large_chunk_in_memory() -> None:
    reader = open_reader()
    reader.feed(stream_of([(b"body", b"d" * 4096)] * 16))
    frame = reader.next_frame()
    assert frame is not None
    assert type(frame[1]) is bytes


@given(st.lists(st.integers(min_value=0), max_size=8), st.integers(min_value=0))
def test_large_frames_come_whole_in_any_pieces_and_a_flipped_bit_costs_all_from_its_own_on(
    places: list[int], bit: int
) -> None:
    some = [(b"a", b"1" * LARGE), (b"b", b"2"), (b"c" * 100, b"3" * LARGE), (b"d", b"")]
    stream = bytearray(stream_of(some))
    assert read_all(open_reader(), cut(bytes(stream), places)) == (some, None)
    begin = len(stream_of(some[:2]))
    bit %= 8 * (HEADER_BYTES + 100 + LARGE)
    stream[begin + bit // 8] ^= 1 << bit % 8
    read, _ = read_all(open_reader(), cut(bytes(stream), places))
    assert read == some[:2]


def test_what_a_large_frame_came_in_is_not_kept_until_it_is_whole() -> None:
    reader = open_reader()
    stream = stream_of([(b"body", b"d" * limits.MIB)])
    reader.feed(stream[:100])
    assert reader.next_frame() is None
    piece = stream[100 : limits.MIB]
    references = sys.getrefcount(piece)
    reader.feed(piece)
    assert sys.getrefcount(piece) == references
    reader.feed(stream[limits.MIB :])
    frame = reader.next_frame()
    assert frame is not None
    assert isinstance(frame[1], memoryview)
    assert frame[1].readonly
    assert frame == (b"body", b"d" * limits.MIB)
