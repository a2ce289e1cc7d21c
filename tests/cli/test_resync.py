"""`fusemirror resync`: what is asked of the mount process, and how its answer is told."""

from pathlib import Path
from typing import Any

import pytest

from tests.admin.answering import answering, result
from tests.cli.conftest import Run

UNDER_WAY = {
    "mirror_state": "resyncing",
    "resync": {
        "done_bytes": 256 << 20,
        "total_bytes": 1 << 30,
        "sent_bytes": 1 << 20,
        "bytes_per_second": 64 << 20,
        "seconds_left": 12.0,
        "paused": False,
        "rate_limit_bytes": 0,
    },
}
TOLD = "data: resyncing, 256 MiB of 1 GiB (25%), 64 MiB/s, 12 s left\n"


@pytest.mark.parametrize(
    ("options", "rate", "paused", "said"),
    [
        ((), None, None, ""),
        (("--pause",), None, True, "data: resync paused\n"),
        (("--resume",), None, False, "data: resync goes on\n"),
        (("--rate", "2 MiB"), 2 << 20, None, "data: resync at 2 MiB/s at most\n"),
        (("--rate", "0", "--resume"), 0, False, "data: resync goes on\ndata: resync without a limit\n"),
    ],
)
def test_what_is_asked_for_is_passed_on_and_said(
    run: Run, tmp_path: Path, options: tuple[str, ...], rate: int | None, paused: bool | None, said: str
) -> None:
    asked: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> Any:
        asked.append(request)
        return [result(UNDER_WAY)]

    with answering(tmp_path / "run", "data", answer):
        done = run("resync", "data", *options)
    assert (done.exit_code, done.stderr, done.stdout) == (0, "", said + TOLD)
    assert asked == [{"command": "resync", "rate": rate, "paused": paused}]


def test_where_nothing_is_copied_it_says_so(run: Run, tmp_path: Path) -> None:
    status = {"mirror_state": "normal", "resync": None}
    with answering(tmp_path / "run", "data", lambda _request: [result(status)]):
        assert run("resync", "data").stdout == "data: normal, nothing is being copied\n"


@pytest.mark.parametrize("options", [("--pause", "--resume"), ("--rate", "fast"), ("--rate", "-1")])
def test_what_makes_no_sense_is_refused(run: Run, options: tuple[str, ...]) -> None:
    assert run("resync", "data", *options).exit_code == 2
