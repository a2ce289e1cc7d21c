"""A minute's look at what a lying peer can do to either role; `python -m tests.fuzz` looks for an hour."""

from random import Random
from unittest import mock

import pytest

from fusemirror.volume import volume
from tests.fuzz.__main__ import lie
from tests.fuzz.decoding import fuzz_decoding
from tests.fuzz.victims import ROLES


def test_whatever_comes_is_a_message_that_fits_or_is_refused() -> None:
    refused, taken = fuzz_decoding(Random("fixed"), 200_000)
    assert refused > taken / 2 > 0


@pytest.mark.expects_warnings
@pytest.mark.parametrize("role", ROLES)
def test_a_lying_peer_harms_neither_role(role: str) -> None:
    fuzz = lie(role, 1, 4_000)
    assert fuzz.refused > 30
    assert fuzz.sent > fuzz.refused


@pytest.mark.expects_warnings
def test_a_check_that_is_taken_out_is_noticed() -> None:
    """The rows of a change are put as they come, and its data wherever it says."""
    unchecked = mock.patch("fusemirror.protocol.codec.check_message", return_value=None)
    rows = mock.patch.object(volume, "check_rows", return_value=None)
    with unchecked, rows, pytest.raises((Exception, BaseExceptionGroup)):
        _lie_often()


def _lie_often() -> None:
    for seed in range(20):
        lie("backup", seed, 100)
