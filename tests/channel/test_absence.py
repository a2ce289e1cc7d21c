"""Absence: why there is no link, in the status always, and in the log once in a while."""

import logging

import pytest

from fusemirror import limits
from fusemirror.channel.absence import Absence
from fusemirror.errors import PeerRefused, PeerUnreachable

REFUSED = PeerUnreachable("beta:7000", "Connection refused")
SLOW = PeerUnreachable("beta:7000", "no answer for 2 s")


@pytest.fixture
def absence(caplog: pytest.LogCaptureFixture) -> Absence:
    caplog.set_level(logging.INFO)
    return Absence()


def test_the_newest_reason_is_known_and_the_log_has_one_of_them_a_minute(
    absence: Absence, caplog: pytest.LogCaptureFixture
) -> None:
    assert absence.reason is None
    for second in range(3 * int(limits.AWAY_LOG_INTERVAL_S)):
        error = (REFUSED, SLOW)[second % 2]
        absence.report(error, 1000.0 + second)
        assert absence.reason == str(error)
    assert len(caplog.records) == 3


def test_the_same_reason_is_not_told_again(absence: Absence, caplog: pytest.LogCaptureFixture) -> None:
    for minute in range(10):
        absence.report(REFUSED, minute * 2 * limits.AWAY_LOG_INTERVAL_S)
    assert len(caplog.records) == 1


def test_after_a_link_the_log_hears_at_once(absence: Absence, caplog: pytest.LogCaptureFixture) -> None:
    absence.report(REFUSED, 1000.0)
    absence.over()
    assert absence.reason is None
    absence.report(REFUSED, 1001.0)
    assert len(caplog.records) == 2


def test_what_the_log_has_already_is_only_noted(absence: Absence, caplog: pytest.LogCaptureFixture) -> None:
    absence.note(PeerRefused("beta:7000", "both hosts are primary"))
    assert "both hosts are primary" in str(absence.reason)
    assert not caplog.records


@pytest.mark.expects_warnings
def test_a_peer_that_is_away_is_no_warning_and_one_that_refuses_is(
    absence: Absence, caplog: pytest.LogCaptureFixture
) -> None:
    absence.report(REFUSED, 1000.0)
    absence.report(PeerRefused("beta:7000", "another filesystem"), 1000.0 + limits.AWAY_LOG_INTERVAL_S)
    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.WARNING]
