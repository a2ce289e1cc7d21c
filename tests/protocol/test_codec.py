"""Every message survives the wire; what is none is refused."""

import contextlib
import typing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusemirror.change import (
    AllocateChange,
    CopyChange,
    NamespaceChange,
    Table,
    TruncateChange,
    WriteChange,
    encode_change,
)
from fusemirror.errors import RemoteProtocolError
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import PROBE_BYTES
from fusemirror.operations import Rename, Write
from fusemirror.protocol import messages as m
from fusemirror.protocol.codec import decode, encode
from fusemirror.settings import Access, Communication, Fence

FIVE = ChangeNumber(5)
INODE = InodeNumber(7)
GENERATION = m.Generation(b"g", FIVE)
XATTR = (int(Table.XATTRS), bytes(7) + b"\7user.a", b"value")
HISTORY = m.History((GENERATION,), FIVE, ChangeNumber(1), True, False)

HELD = m.HeldLock(INODE, 0, (1 << 64) - 1, 5, 9, True, 1234, 1000, 10**18)
EXAMPLES: list[m.AnyMessage] = [
    NamespaceChange(FIVE, RequestId(b"1234567812345678"), 1, INODE, (XATTR, (2, bytes(7) + b"\1gone", None))),
    WriteChange(FIVE, NO_REQUEST, 1_700_000_000_000_000_000, INODE, 4096, 4096),
    TruncateChange(FIVE, NO_REQUEST, 1, INODE, 1 << 62, ((3, bytes(7) + b"\7user.a", None),)),
    AllocateChange(FIVE, NO_REQUEST, 1, INODE, 4096, 1 << 62, 3, ((3, bytes(7) + b"\7user.a", None),)),
    CopyChange(FIVE, NO_REQUEST, 1, INODE, 4096, 8192, INODE, 0, ((3, bytes(7) + b"\7user.a", None),)),
    m.Hello(1, 1, "mirror", b"fs", b"a", b"b", b"i", "primary", HISTORY, "0.1"),
    m.Refused("because"),
    m.Ping(1),
    m.Pong(1),
    m.Over(),
    m.Arrived(1 << 40),
    m.Probe(7),
    m.Resume(1 << 40, 3),
    m.Resumed(0),
    m.Bye("unmounted"),
    m.Begin(True, (GENERATION,), FIVE),
    m.CatalogRows((XATTR,)),
    m.OutOfSync((INODE,)),
    m.CaughtUp(FIVE, FIVE),
    m.Digests(1, INODE, 100, 0, (1, (1 << 64) - 1), True),
    m.Hole(8, INODE, 1 << 40, 3, 1 << 24, True),
    m.RegionData(INODE, 65536),
    m.ImageCopied(INODE),
    m.Normal(FIVE),
    m.FlushImage(1, INODE),
    m.Checkpoint(1, FIVE),
    m.ForgetMarks(1),
    m.PurgeOffer(1, (INODE,)),
    m.RowsDigest(1, Table.INODES, b"", b"\xff", 10, 1 << 63),
    m.Resync(1, 2, 3, 4, 5.0, True, 6),
    m.HandOver(3),
    m.ReplaceRows(Table.XATTRS, b"", b"b", (XATTR,)),
    m.FetchRows(1, Table.INODES, b"a", b"b"),
    m.FetchRegion(1, INODE, 65536, 65536),
    m.Applied(FIVE),
    m.Declined(FIVE, INODE, 1, "Operation not permitted"),
    m.Reply(1, 2, FIVE, (1, 2)),
    m.Suspects(((INODE, (-1,)),), True, ((INODE, (0, 5, 9, 1 << 47)),)),
    m.Room(1 << 30, True),
    m.DiskSpace(1 << 40, 1 << 30, 1 << 29, 1000, 10, True),
    m.Modes(Fence.DATA, Communication.MEMORY),
    m.KeyNews(b"s" * 32, b"k" * 32, "a certificate"),
    m.Fetched(1, 5, b"bytes", (XATTR,)),
    m.Request(RequestId(b"1234567812345678"), Rename(INODE, b"\xff\xfe", INODE, b"new", 1)),
    m.Answer(RequestId(b"1234567812345678"), 2, FIVE, INODE, b"value"),
    m.Excluded(RequestId(b"r" * 16)),
    m.AccessInEffect(Access.EXCLUSIVE),
    m.WantApplied(),
    m.TakeStatus(FIVE, INODE, 4096, 1 << 20, True),
    m.StatusTaken(FIVE),
    m.AskStatus(RequestId(b"r" * 16), INODE, 4096, 1 << 20),
    m.StatusGranted(RequestId(b"r" * 16)),
    m.LendNames(INODE),
    m.HoldNames(1, INODE),
    m.ShareNames(1, INODE),
    m.RecallNames(1, True),
    m.FreeNames(True),
    m.Ended(RequestId(b"1234567812345678")),
    m.CountApart(3),
    m.AskApart(4),
    m.Apart(4, (m.Difference(b"/new", ("renamed",), b"/old", 5, -1),), True, 6, False),
    m.WantNames(INODE),
    m.WantBack(INODE, True),
    m.LockAnswer(1, 11, FIVE, HELD),
    m.LocksReclaimed(b"epoch", True),
    m.AskLock(1, HELD, True, True, False),
    m.CancelLock(1),
    m.ReleaseLock(INODE, 0, (1 << 64) - 1, 0, 9, True, 5),
    m.ReclaimLocks(b"epoch", (HELD,), True),
    m.ListLocks(1),
    m.LocksListed(1, 3, (HELD,), (HELD,)),
]


def data_of(message: m.AnyMessage) -> bytes:
    """What has to come beside a message."""
    if isinstance(message, WriteChange):
        return bytes(message.length)
    if isinstance(message, m.Probe):
        return bytes(PROBE_BYTES)
    return b"data" if isinstance(message, m.RegionData) else b""


def test_there_is_an_example_of_every_message() -> None:
    assert [type(example) for example in EXAMPLES] == list(typing.get_args(m.AnyMessage))


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_survives(message: m.AnyMessage) -> None:
    assert decode(encode(message), data_bytes=len(data_of(message))) == message


def test_a_change_has_the_same_bytes_on_the_wire_and_in_the_journal() -> None:
    for change in EXAMPLES[:3]:
        assert isinstance(change, NamespaceChange | WriteChange | TruncateChange | AllocateChange)
        assert encode(change) == encode_change(change)


def test_a_request_carries_any_operation() -> None:
    request = m.Request(RequestId(b"1" * 16), Write(INODE, 0, append=True))
    assert decode(encode(request)) == request


def test_the_fields_of_a_hello_keep_their_places_as_earlier_versions_read_them_by_those() -> None:
    sent = [
        "protocol",
        "protocol_min",
        "path",
        "filesystem",
        "host",
        "peer",
        "instance",
        "role",
        "history",
        "version",
        "peer_timeout_s",
        "call",
        "term",
        "handed_over",
        "consistent",
        "keep",
        "keep_at",
        "host_name",
        "takes_rows",
        "clock_ns",
        "takes_holes",
        "file_bytes_max",
        "takes_seeks",
        "takes_disk_space",
        "name",
        "witness",
        "pairing",
        "takes_keys",
        "takes_allocations",
        "takes_locks",
        "witness_identity",
        "takes_unnamed",
        "takes_copies",
        "takes_flags",
        "takes_accesses",
        "takes_moves",
        "session",
        "line",
        "forgot_requests",
        "takes_statuses",
        "takes_modes",
        "takes_declines",
        "owes_writes",
        "takes_refusals",
        "takes_delays",
    ]
    assert list(m.Hello.__struct_fields__[: len(sent)]) == sent, "new ones come last"


def test_fields_that_a_newer_peer_adds_are_skipped() -> None:
    assert decode(msgspec.msgpack.encode([64, 5, "new field", {"a": [1]}])) == m.Applied(FIVE)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        b"\x90",
        encode(m.Applied(FIVE))[:-1],
        encode(m.Applied(FIVE)) + b"\x00",
        msgspec.msgpack.encode([999, 1]),  # a tag that is nobody's
        msgspec.msgpack.encode([64]),  # a field is missing
        msgspec.msgpack.encode([64, "five"]),
        b"\x92\x11\xa2\xff\xfe",  # a Refused whose text is no UTF-8
        b"\x93\x40\x05" + b"\x91" * 200_000,  # an unknown field that nests without end
    ],
    ids=lambda body: f"{body[:12]!r}",
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="refused what alpha sent: not a message"):
        decode(body, "alpha")


@given(st.binary(max_size=200))
def test_random_bytes_are_a_message_or_refused(body: bytes) -> None:
    try:
        message = decode(body)
    except RemoteProtocolError:
        return
    assert type(message) in typing.get_args(m.AnyMessage)


@given(st.sampled_from(EXAMPLES), st.data())
def test_a_changed_message_is_a_message_or_refused(message: m.AnyMessage, data: st.DataObject) -> None:
    body = bytearray(encode(message))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RemoteProtocolError):
        assert type(decode(bytes(body), data_bytes=len(data_of(message)))) in typing.get_args(m.AnyMessage)
