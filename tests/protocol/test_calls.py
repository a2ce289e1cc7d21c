"""Calls: what makes no sense is refused, and only a read brings data back."""

import errno

import pytest

from fusemirror.errors import OperationFailed
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import DATA_BYTES_MAX
from fusemirror.protocol.calls import AnyCall, ChangePace, Flush, Read, StartVerify, SwitchRoles

INODE = InodeNumber(2)

WRONG: list[AnyCall] = [
    Read(INODE, 0, DATA_BYTES_MAX + 1),
    Read(INODE, -1, 1),
    Flush(InodeNumber(-1)),
    ChangePace(rate_bytes=-1),
]


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
