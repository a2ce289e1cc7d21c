"""`fusemirror wait`: what is asked of the mount process, and its answers as exit codes."""

from pathlib import Path

from tests.admin.answering import answering, failure, result
from tests.cli.conftest import Run


def test_the_state_and_the_time_are_sent(run: Run, tmp_path: Path) -> None:
    with answering(tmp_path / "run", "data", lambda _request: [result(None)]) as requests:
        assert run("wait", "data", "--for", "normal", "--timeout", "7").exit_code == 0
    assert requests == [{"command": "wait", "for": "normal", "timeout": 7.0}]


def test_a_timeout_is_exit_status_8(run: Run, tmp_path: Path) -> None:
    with answering(tmp_path / "run", "data", lambda _request: [failure("timed out after 7 s: x", 8)]):
        done = run("wait", "data", "--for", "drained")
    assert (done.exit_code, done.stderr) == (8, "fusemirror: data: timed out after 7 s: x\n")


def test_an_unknown_state_is_wrong_usage(run: Run) -> None:
    assert run("wait", "data", "--for", "ever").exit_code == 2
    assert run("wait", "data").exit_code == 2
