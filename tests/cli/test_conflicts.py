"""`fusemirror conflicts`: the files are listed, and exit status 7 says that they are still apart."""

from pathlib import Path

from tests.admin.answering import answering, result
from tests.cli.conftest import Run

FILE = {"path": "/alpha/file", "size": 1024, "modified": 1.0}


def test_no_conflicts_are_said_so(run: Run, tmp_path: Path) -> None:
    found = {"diverged": False, "changed_here": [], "set_aside": []}
    with answering(tmp_path / "run", "data", lambda _: [result(found)]):
        done = run("conflicts", "data")
    assert (done.exit_code, done.stdout) == (0, "data: no conflicts\n")


def test_what_was_set_aside_is_listed(run: Run, tmp_path: Path) -> None:
    found = {"diverged": False, "changed_here": [], "set_aside": [FILE]}
    with answering(tmp_path / "run", "data", lambda _: [result(found)]):
        done = run("conflicts", "data")
    assert (done.exit_code, done.stdout) == (0, "set aside: /.fusemirror-conflicts/alpha/file (1 KiB)\n")


def test_a_split_brain_has_its_exit_status(run: Run, tmp_path: Path) -> None:
    found = {"diverged": True, "changed_here": [FILE], "set_aside": []}
    with answering(tmp_path / "run", "data", lambda _: [result(found)]):
        done = run("conflicts", "data")
    assert (done.exit_code, done.stdout) == (7, "changed here: /alpha/file (1 KiB)\n")
