"""`fusemirror takeover`: what the mount process is asked, and what a dry run tells."""

from pathlib import Path
from typing import Any

import pytest

from tests.admin.answering import answering, result
from tests.cli.conftest import Run

REPORT = {
    "role": "backup",
    "refused": None,
    "last_contact_seconds": 12.5,
    "pending_requests": 3,
    "pending_bytes": 4096,
    "out_of_sync": {"images": 1, "bytes": 0},
    "change": 70,
}


def asked(run: Run, tmp_path: Path, report: Any, *options: str) -> tuple[list[Any], Any]:
    requests: list[Any] = []

    def respond(request: Any) -> list[Any]:
        requests.append(request)
        return [result(report)]

    with answering(tmp_path / "run", "data", respond):
        return requests, run("takeover", "data", *options)


@pytest.mark.parametrize(("options", "force"), [((), False), (("--force",), True)])
def test_it_is_done(run: Run, tmp_path: Path, options: tuple[str, ...], force: bool) -> None:
    requests, done = asked(run, tmp_path, None, *options)
    assert requests == [{"command": "takeover", "force": force}]
    assert (done.exit_code, done.stdout) == (0, "data: this host is the primary now\n")


def test_a_dry_run_tells_what_would_be_lost(run: Run, tmp_path: Path) -> None:
    requests, done = asked(run, tmp_path, REPORT, "--dry-run")
    assert requests == [{"command": "takeover", "dry_run": True}]
    assert done.exit_code == 0
    for told in (
        "12.5 s ago",
        "change 70",
        "3 pending requests (4 KiB)",
        "older than the primary's: 1 image",
    ):
        assert told in done.stdout


REFUSAL = "fusemirror: data: refused: because; --force takes over all the same\n"


@pytest.mark.parametrize(("options", "code", "said"), [((), 6, REFUSAL), (("--force",), 0, "")])
def test_a_dry_run_exits_as_the_takeover_would(
    run: Run, tmp_path: Path, options: tuple[str, ...], code: int, said: str
) -> None:
    _, done = asked(run, tmp_path, {**REPORT, "refused": "because"}, "--dry-run", *options)
    assert (done.exit_code, done.stderr) == (code, said)


def test_a_primary_has_nothing_to_take_over(run: Run, tmp_path: Path) -> None:
    _, done = asked(run, tmp_path, {**REPORT, "role": "primary"}, "--dry-run")
    assert done.stdout == "data: this host is the primary already\n"
