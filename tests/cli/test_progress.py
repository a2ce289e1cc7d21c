"""Progress is drawn on a terminal only, with all that people ask for."""

import io
import sys

import pytest

from fusemirror.cli.progress import shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_nothing_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    with shown("verify") as advance:
        advance(1, 2)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_done_total_percentage_and_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with shown("verify") as advance:
        advance(1 << 20, 4 << 20)
        advance(4 << 20, 4 << 20)
    last = terminal.getvalue().rpartition("\r")[2]
    assert last.startswith("verify: 100%")
    assert "4.00M/4.00M [" in last
    assert "B/s]" in last
