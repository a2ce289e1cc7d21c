"""The amended FUSE_INIT, over bytes as kernels send them; tests/mount maps files over the real one."""

import struct

import pytest

from fusemirror.filesystem.negotiation import amend

INIT_EXT, DONT_MASK, SOME_FLAGS = 1 << 30, 1 << 6, 0x1234
ALLOW_MMAP = 1 << 4


def request(flags: int, flags2: int, opcode: int = 26) -> bytes:
    header = struct.pack("=IIQQIIIHH", 104, opcode, 2, 0, 0, 0, 0, 0, 0)
    return header + struct.pack("=IIIII", 7, 41, 131072, flags, flags2) + bytes(44)


def reply(error: int = 0) -> bytes:
    body = struct.pack("=IIIIHHIIHHI", 7, 38, 131072, SOME_FLAGS, 12, 9, 1 << 20, 1, 256, 0, 0) + bytes(28)
    return struct.pack("=IiQ", 16 + len(body), error, 2) + body


def flags_of(answer: bytes) -> tuple[int, int]:
    fields = struct.unpack_from("=IIIIHHIIHHI", answer, 16)
    return fields[3], fields[10]


def test_the_flag_is_set_where_the_kernel_offers_it() -> None:
    answer, allowed = amend(request(INIT_EXT | 1, ALLOW_MMAP | 2), reply())
    assert allowed
    assert flags_of(answer) == (SOME_FLAGS | INIT_EXT, ALLOW_MMAP)
    assert len(answer) == len(reply())


def test_the_umask_is_left_to_us_where_the_kernel_offers_it() -> None:
    answer, allowed = amend(request(DONT_MASK | 1, 0), reply())
    assert not allowed
    assert flags_of(answer) == (SOME_FLAGS | DONT_MASK, 0)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (request(INIT_EXT, 2), reply()),
        (request(1, ALLOW_MMAP), reply()),
        (request(INIT_EXT, ALLOW_MMAP), reply(error=-71)),
        (request(INIT_EXT, ALLOW_MMAP, opcode=3), reply()),
        (request(INIT_EXT, ALLOW_MMAP)[:52], reply()),
        (request(INIT_EXT, ALLOW_MMAP), reply()[:40]),
    ],
    ids=["not offered", "no second flags", "refused", "not INIT", "a short request", "a short reply"],
)
def test_otherwise_the_reply_stays_as_it_is(asked: bytes, answered: bytes) -> None:
    assert amend(asked, answered) == (answered, False)
