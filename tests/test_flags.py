"""The table of flags, and how they are stored and told."""

import errno

import pytest

from fusemirror.errors import OperationFailed
from fusemirror.flags import (
    FORBIDDEN_BY,
    KNOWN,
    Act,
    Flag,
    check_act,
    decode_flags,
    encode_flags,
    extended_of,
    flags_of_extended,
)


@pytest.mark.parametrize("act", Act, ids=lambda act: act.name)
@pytest.mark.parametrize("flag", Flag, ids=lambda flag: flag.name)
def test_every_act_is_forbidden_or_allowed_by_every_flag(act: Act, flag: Flag) -> None:
    check_act(0, act)
    if flag & FORBIDDEN_BY[act]:
        with pytest.raises(OperationFailed) as failed:
            check_act(flag, act)
        assert failed.value.errno == errno.EPERM
    else:
        check_act(flag, act)


def test_an_immutable_file_lets_nothing_be_done_to_it() -> None:
    assert FORBIDDEN_BY.keys() == set(Act)
    assert all(flags & Flag.IMMUTABLE for flags in FORBIDDEN_BY.values())


def test_they_are_stored_and_told_in_both_ways() -> None:
    for flags in range(0, KNOWN + 1, 16):
        assert decode_flags(encode_flags(flags)) == flags
        assert flags_of_extended(extended_of(flags)) == flags
    assert encode_flags(0) is None
    assert decode_flags(b"\xff" * 9) == KNOWN
    assert decode_flags(b"") == 0
    with pytest.raises(OperationFailed) as failed:
        flags_of_extended(0x20)
    assert failed.value.errno == errno.EOPNOTSUPP
