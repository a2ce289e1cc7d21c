"""The amended FUSE_INIT, over bytes as kernels send them; tests/mount maps files over the real one."""

import struct

import pytest

from fusemirror.kernel.negotiation import Agreed, amend

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
    answer, agreed = amend(request(INIT_EXT | 1, ALLOW_MMAP | 2), reply(), own_session=False)
    assert agreed == Agreed(maps_direct_io=True)
    assert flags_of(answer) == (SOME_FLAGS | INIT_EXT, ALLOW_MMAP)
    assert len(answer) == len(reply())


def test_the_umask_is_left_to_us_where_the_kernel_offers_it() -> None:
    answer, agreed = amend(request(DONT_MASK | 1, 0), reply(), own_session=False)
    assert agreed == Agreed()
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
    assert amend(asked, answered, own_session=True) == (answered, Agreed())


# What kernels offer: the first and the second flags (fs/fuse/inode.c, fuse_send_init), seen with 6.18.
FIRST, SECURITY_CONTEXT = 0x73FFFFFB, 1 << 0
CREATE_GROUP, EXPIRE_ONLY, MAP_DIRECT, PASSTHROUGH = 1 << 2, 1 << 3, 1 << 4, 1 << 5
NO_EXPORT, RESEND, IDMAP, REQUEST_TIMEOUT = 1 << 6, 1 << 7, 1 << 8, 1 << 10
KILLPRIV_V2 = 1 << 28
LOCKS = 1 << 1 | 1 << 10  # of fcntl(2), and of flock(2)

KERNELS = {
    "5.10": (31, 0x03FFFFFB, None),
    "6.1": (38, FIRST, SECURITY_CONTEXT),
    "6.12": (
        41,
        FIRST,
        SECURITY_CONTEXT
        | (CREATE_GROUP | EXPIRE_ONLY | MAP_DIRECT | PASSTHROUGH | NO_EXPORT | RESEND | IDMAP),
    ),
    "6.18": (45, FIRST, 0x5FD),
}


@pytest.mark.parametrize("own_session", [True, False], ids=["own session", "pyfuse3"])
@pytest.mark.parametrize("version", KERNELS)
def test_what_each_kernel_gives(version: str, own_session: bool) -> None:
    """The table in fusemirror-posix(7)."""
    minor, flags, flags2 = KERNELS[version]
    asked = request(flags, flags2 or 0)
    asked = asked[:44] + struct.pack("=I", minor) + asked[48:]
    if flags2 is None:
        asked = asked[:56]
    answer, agreed = amend(asked, reply(), own_session=own_session)
    given, given2 = flags_of(answer)
    assert agreed.maps_direct_io == (version not in ("5.10", "6.1"))
    assert agreed.tells_of_privileges == (own_session and version != "5.10")
    ours = DONT_MASK | (KILLPRIV_V2 if agreed.tells_of_privileges else 0) | (LOCKS if own_session else 0)
    assert given & ~(SOME_FLAGS | INIT_EXT) == ours
    assert given2 == (ALLOW_MMAP if agreed.maps_direct_io else 0)
    assert bool(given & INIT_EXT) == bool(given2)
