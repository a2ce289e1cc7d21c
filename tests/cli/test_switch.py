"""`fusemirror switch`: what the mount process is asked, and what is told."""

from pathlib import Path

from tests.admin.answering import answering, failure, result
from tests.cli.conftest import Run


def test_the_new_role_is_told(run: Run, tmp_path: Path) -> None:
    with answering(tmp_path / "run", "data", lambda _: [result("backup")]) as requests:
        done = run("switch", "data")
    assert requests == [{"command": "switch"}]
    assert (done.exit_code, done.stdout) == (0, "data: this host is the backup now\n")


def test_a_refusal_keeps_its_reason_and_exit_code(run: Run, tmp_path: Path) -> None:
    with answering(tmp_path / "run", "data", lambda _: [failure("refused: not normal", 6)]):
        done = run("switch", "data")
    assert (done.exit_code, done.stderr) == (6, "fusemirror: data: refused: not normal\n")
