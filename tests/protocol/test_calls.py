"""Calls: what makes no sense is refused, and only a read brings data back."""

import errno

import msgspec
import pytest

from fusemirror.errors import OperationFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import DATA_BYTES_MAX
from fusemirror.protocol.calls import (
    AnyCall,
    ChangeAccess,
    ChangePace,
    Flush,
    Read,
    StartVerify,
    SwitchRoles,
    VerifyProgress,
)
from fusemirror.settings import Access

INODE = InodeNumber(2)

WRONG: list[AnyCall] = [
    Read(INODE, 0, DATA_BYTES_MAX + 1),
    Read(INODE, -1, 1),
    Flush(InodeNumber(-1)),
    ChangePace(rate_bytes=-1),
]


SENT: list[tuple[AnyCall, str]] = [
    (Read(INODE, 5, 3), "940a020503"),
    (Flush(INODE), "920b02"),
    (StartVerify("primary"), "920ca77072696d617279"),
    (VerifyProgress(), "910d"),
    (SwitchRoles(), "910e"),
    (ChangeAccess(Access.EXCLUSIVE), "9216a96578636c7573697665"),
    (ChangePace(5, paused=True), "931e05c3"),
]
"""As the versions before send them."""


@pytest.mark.parametrize(("call", "sent"), SENT, ids=lambda value: type(value).__name__)
def test_a_call_travels_as_it_always_did(call: AnyCall, sent: str) -> None:
    assert msgspec.msgpack.encode(call) == bytes.fromhex(sent)


@pytest.mark.parametrize("call", WRONG, ids=str)
def test_what_makes_no_sense_is_no_argument(call: AnyCall) -> None:
    with pytest.raises(OperationFailed) as failed:
        call.check()
    assert failed.value.errno == errno.EINVAL


def test_only_a_read_brings_data_back_and_only_a_switch_is_asked_once() -> None:
    for call in (Read(INODE, 0, 7), Flush(INODE), StartVerify(), ChangePace(), SwitchRoles()):
        call.check()
        assert call.answer_bytes_max == (7 if type(call) is Read else 0)
        assert call.is_repeated != (type(call) is SwitchRoles)
        assert not call.carries_data
