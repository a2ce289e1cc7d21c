"""`fusemirror keys`: what the mount process is asked, and what is told."""

from pathlib import Path

from tests.admin.answering import answering, failure, result
from tests.cli.conftest import Run


def test_new_keys_are_told(run: Run, tmp_path: Path) -> None:
    with answering(tmp_path / "run", "data", lambda _: [result(None)]) as requests:
        done = run("keys", "data", "--renew")
    assert requests == [{"command": "renew-keys"}]
    assert (done.exit_code, done.stdout) == (0, "data: both hosts have new keys; the old ones are refused\n")


def test_a_refusal_keeps_its_reason_and_exit_code(run: Run, tmp_path: Path) -> None:
    with answering(tmp_path / "run", "data", lambda _: [failure("timed out after 30 s: not yet", 8)]):
        done = run("keys", "data", "--renew")
    assert (done.exit_code, done.stderr) == (8, "fusemirror: data: timed out after 30 s: not yet\n")


def test_nothing_is_asked_where_nothing_is_to_be_done(run: Run, tmp_path: Path) -> None:
    with answering(tmp_path / "run", "data", lambda _: [result(None)]) as requests:
        done = run("keys", "data")
    assert (requests, done.exit_code) == ([], 2)
    assert "--renew" in done.stderr
