"""What fits in no message: each field beyond its bounds is refused by the message's and the field's name."""

import math
import typing
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import msgspec
import pytest

from fusemirror.change import AllocateChange, CopyChange, NamespaceChange, Table, TruncateChange, WriteChange
from fusemirror.errors import RemoteProtocolError
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber, RequestId
from fusemirror.limits import (
    CHANGE_NUMBER_CLAIMED_MAX,
    CHANGE_NUMBER_RECEIVED_MAX,
    CHANGE_TIME_NS_RECEIVED_MAX,
    COPY_BYTES_MAX,
    DATA_BYTES_MAX,
    FILE_BYTES_MAX,
    REGION_BYTES,
)
from fusemirror.operations import Write
from fusemirror.protocol import messages as m
from fusemirror.protocol.calls import Flush, Read, Seek, place_value
from fusemirror.protocol.checks import check_answer
from fusemirror.protocol.codec import decode, encode
from tests.protocol.test_codec import EXAMPLES, HISTORY, XATTR, data_of

FREE = {
    "Answer.value",
    "CatalogRows.rows",
    "NamespaceChange.rows",
    "TruncateChange.rows",
    "AllocateChange.rows",
    "CopyChange.rows",
    "WriteChange.rows",
    "Request.operation",  # `Operation.check`, by the primary
    "Digests.digests",
    "RowsDigest.digest",
    "Suspects.marks",
    "ReleaseLock.owner",
    "Hello.history",
    *(f"Resync.{name}" for name in m.Resync.__struct_fields__),
}
"""Fields of which one value beyond all bounds is not enough: see the tests below, or any value is good."""

BEYOND: dict[type, Any] = {int: (1 << 64) - 1, bytes: bytes(70_000), str: "x" * 20_000}


def spoilt_fields() -> Iterator[Any]:
    for message in EXAMPLES:
        for field in message.__struct_fields__:
            name = f"{type(message).__name__}.{field}"
            value = getattr(message, field)
            kind = int if isinstance(value, int) else type(value)
            if name not in FREE and kind in BEYOND and not isinstance(value, bool):
                bad = msgspec.structs.replace(message, **{field: BEYOND[kind]})
                yield pytest.param(bad, data_of(message), name, id=f"{name} beyond")
                if kind is int:
                    bad = msgspec.structs.replace(message, **{field: -(1 << 63)})
                    yield pytest.param(bad, data_of(message), name, id=f"{name} below")


@pytest.mark.parametrize(("message", "data", "name"), list(spoilt_fields()))
def test_a_field_beyond_its_bounds_is_refused_by_its_name(
    message: m.AnyMessage, data: bytes, name: str
) -> None:
    kind, field = name.split(".")
    with pytest.raises(RemoteProtocolError, match=rf"refused what beta sent: .*{kind}(\.|: ){field}"):
        decode(encode(message), "beta", len(data))


ID = RequestId(b"1234567812345678")
ONE, INODE = ChangeNumber(1), InodeNumber(2)


def write(**fields: Any) -> WriteChange:
    return msgspec.structs.replace(WriteChange(ONE, NO_REQUEST, 1, INODE, 0, 1), **fields)


def hello(**fields: Any) -> m.Hello:
    made = m.Hello(1, 1, "mirror", b"fs", b"a", b"b", b"i", "primary", HISTORY)
    return msgspec.structs.replace(made, **fields)


BAD: list[tuple[m.AnyMessage, bytes]] = [
    (write(number=ChangeNumber(0)), b"x"),
    (write(number=ChangeNumber(CHANGE_NUMBER_RECEIVED_MAX + 1)), b"x"),
    (write(time_ns=CHANGE_TIME_NS_RECEIVED_MAX + 1), b"x"),
    (write(time_ns=-1), b"x"),
    (write(request=RequestId(b"nope")), b""),
    (write(offset=FILE_BYTES_MAX), b"x"),
    (write(offset=-1), b"x"),
    (write(length=0), b""),
    (write(length=77), b"x"),
    (write(length=77, request=ID), b"x"),
    (write(), b""),
    (write(length=DATA_BYTES_MAX + 1), bytes(DATA_BYTES_MAX + 1)),
    (write(rows=((3, XATTR[1], None),)), b"x"),  # of another inode
    (write(rows=((1, bytes(7) + b"\2", None),)), b"x"),
    (TruncateChange(ONE, NO_REQUEST, 1, INODE, 5, ((2, bytes(7) + b"\2name", None),)), b""),
    (TruncateChange(ONE, NO_REQUEST, 1, INODE, -1), b""),
    (TruncateChange(ONE, NO_REQUEST, 1, INODE, 5), b"data"),
    (AllocateChange(ONE, NO_REQUEST, 1, INODE, 5, 6, 0), b"data"),
    (AllocateChange(ONE, NO_REQUEST, 1, INODE, 5, 6, 2), b""),
    (AllocateChange(ONE, NO_REQUEST, 1, INODE, 5, 5, 0), b""),
    (AllocateChange(ONE, NO_REQUEST, 1, INODE, 5, FILE_BYTES_MAX + 1, 0), b""),
    (AllocateChange(ONE, NO_REQUEST, 1, INODE, 5, 6, 0, ((2, bytes(7) + b"\2name", None),)), b""),
    (CopyChange(ONE, NO_REQUEST, 1, INODE, 5, 6, INODE, 0), b"d"),
    (CopyChange(ONE, NO_REQUEST, 1, INODE, 5, 5, INODE, 0), b""),
    (CopyChange(ONE, NO_REQUEST, 1, INODE, 5, 8, INODE, 7), b""),
    (CopyChange(ONE, NO_REQUEST, 1, INODE, 5, 8, INODE, 3), b""),
    (CopyChange(ONE, NO_REQUEST, 1, INODE, 0, COPY_BYTES_MAX + 1, INODE, 1 << 40), b""),
    (CopyChange(ONE, NO_REQUEST, 1, INODE, 5, 8, INODE, FILE_BYTES_MAX - 2), b""),
    (CopyChange(ONE, NO_REQUEST, 1, INODE, 5, 6, INODE, 0, ((2, bytes(7) + b"\2name", None),)), b""),
    (NamespaceChange(ONE, NO_REQUEST, 1, INODE, (XATTR,)), b"data"),
    (NamespaceChange(ONE, NO_REQUEST, 1, INODE, ((1, bytes(7) + b"\1", None),)), b""),
    (m.CatalogRows(((3, XATTR[1], None),)), b""),
    (m.CatalogRows(((99, b"x" * 9, b""),)), b""),
    (m.ReplaceRows(Table.XATTRS, b"", b"", (XATTR,)), b""),
    (m.ReplaceRows(Table.INODES, b"", b"\xff", (XATTR,)), b""),
    (m.CaughtUp(ONE, ChangeNumber(2)), b""),
    (m.RegionData(INODE, 0), b""),
    (m.RegionData(INODE, FILE_BYTES_MAX), b"x"),
    (m.FetchRegion(1, INODE, FILE_BYTES_MAX, 1), b""),
    (m.FetchRegion(1, INODE, 0, REGION_BYTES + 1), b""),
    (m.Request(ID, Flush(INODE)), b"data"),
    (m.Request(ID, Flush(INODE), kept=True), b""),
    (m.Request(ID, Write(INODE, 0), kept=True), b""),
    (m.Applied(ONE), b"data"),
    (m.Digests(1, INODE, 0, 0, (1,) * 17, False), b""),
    (m.Digests(1, INODE, 0, 0, (-1,), False), b""),
    (m.Suspects(((INODE, (-(1 << 63),)),), True), b""),
    (m.Suspects(((InodeNumber(-1), (0,)),), True), b""),
    (m.OutOfSync((InodeNumber(-1),)), b""),
    (m.Begin(True, (m.Generation(b"g" * 65, ONE),), ONE), b""),
    (m.Begin(True, (m.Generation(b"g", ONE),) * 65, ONE), b""),
    (m.Apart(1, (m.Difference(b"/" * 5000, ()),)), b""),
    (m.Apart(1, (m.Difference(b"/", (), mtime_ns=1 << 63),)), b""),
    *((hello(host_name=name), b"") for name in ("a/b", "a\n", "a\x1b[2J", "x" * 256)),
    *((hello(peer_timeout_s=seconds), b"") for seconds in (0.0, -1.0, math.nan, math.inf)),
    (
        hello(history=msgspec.structs.replace(HISTORY, number=ChangeNumber(CHANGE_NUMBER_CLAIMED_MAX + 1))),
        b"",
    ),
    (hello(history=msgspec.structs.replace(HISTORY, checkpoint=-1)), b""),
]


@pytest.mark.parametrize(("message", "data"), BAD, ids=lambda value: str(value)[:60])
def test_what_does_not_fit_together_is_refused(message: m.AnyMessage, data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=type(message).__name__):
        decode(encode(message), "beta", len(data))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_data_comes_only_beside_a_message_that_has_some(example: m.AnyMessage) -> None:
    if isinstance(example, WriteChange | m.RegionData | m.Answer | m.Probe):
        return
    with pytest.raises(RemoteProtocolError, match=f"{type(example).__name__}.*data"):
        decode(encode(example), "beta", 4)


@pytest.mark.parametrize(
    ("operation", "data_bytes", "good"),
    [
        (Read(INODE, 0, 5), 5, True),
        (Read(INODE, 0, 5), 6, False),
        (Flush(INODE), 0, True),
        (Flush(INODE), 1, False),
    ],
)
def test_an_answer_holds_no_more_than_was_asked_for(operation: Any, data_bytes: int, good: bool) -> None:
    with nullcontext() if good else pytest.raises(ValueError, match="data"):
        check_answer(m.Request(ID, operation), m.Answer(ID), data_bytes)


@pytest.mark.parametrize(
    ("value", "errno", "good"),
    [
        (place_value(100), 0, True),
        (place_value(FILE_BYTES_MAX), 0, True),
        (b"", 6, True),
        (b"", 0, False),
        (b"1234567", 0, False),
        (place_value(99), 0, False),
        (place_value(FILE_BYTES_MAX + 1), 0, False),
    ],
)
def test_a_place_in_a_file_is_where_it_was_asked_for(value: bytes, errno: int, good: bool) -> None:
    request = m.Request(ID, Seek(INODE, 100, data=True))
    with nullcontext() if good else pytest.raises(ValueError, match="value"):
        check_answer(request, m.Answer(ID, errno=errno, value=value), 0)


def test_what_is_free_is_a_field() -> None:
    fields = {
        f"{kind.__name__}.{name}" for kind in typing.get_args(m.AnyMessage) for name in kind.__struct_fields__
    }
    assert fields >= FREE
