"""`fusemirror conflicts`: the files are listed, and exit status 7 says that they are still apart."""

import json
from pathlib import Path
from typing import Any

from tests.admin.answering import answering, result
from tests.cli.conftest import Run

FILE = {"path": "/alpha/file", "size": 1024, "modified": 1.0}
NOTHING: dict[str, Any] = {"diverged": False, "hosts": {}, "changed": [], "set_aside": []}


def change(*kinds: str, was: str | None = None) -> dict[str, Any]:
    return {"kinds": list(kinds), "was": was, "size": 1024, "modified": 1.0}


APART: dict[str, Any] = {
    "diverged": True,
    "hosts": {
        "alpha": {"count": 2, "listed": 2, "complete": True},
        "beta": {"count": 9, "listed": 2, "complete": False},
    },
    "changed": [
        {
            "path": "/both",
            "changed_by": {"alpha": change("content"), "beta": change("content", "attributes")},
        },
        {"path": "/gone", "changed_by": {"beta": change("deleted")}},
        {"path": "/new", "changed_by": {"alpha": change("renamed", was="/old")}},
    ],
    "set_aside": [],
}


def answered(run: Run, tmp_path: Path, found: dict[str, Any], *options: str) -> Any:
    with answering(tmp_path / "run", "data", lambda _: [result(found)]):
        return run("conflicts", "data", *options)


def test_no_conflicts_are_said_so(run: Run, tmp_path: Path) -> None:
    done = answered(run, tmp_path, NOTHING)
    assert (done.exit_code, done.stdout) == (0, "data: no conflicts\n")


def test_it_is_said_how_much_more_was_set_aside(run: Run, tmp_path: Path) -> None:
    done = answered(run, tmp_path, {**NOTHING, "set_aside": [FILE], "set_aside_count": 3})
    assert "in quarantine: 2 files more" in done.stdout


def test_what_was_set_aside_is_listed(run: Run, tmp_path: Path) -> None:
    done = answered(run, tmp_path, {**NOTHING, "set_aside": [FILE]})
    assert (done.exit_code, done.stdout) == (0, "in quarantine: /.fusemirror-conflicts/alpha/file (1 KiB)\n")


def test_a_split_brain_has_its_exit_status_and_says_who_changed_what(run: Run, tmp_path: Path) -> None:
    done = answered(run, tmp_path, APART)
    assert done.exit_code == 7
    assert "3 names differ" in done.stderr
    assert done.stdout.splitlines() == [
        "/both: alpha: content, 1 KiB; beta: content, attributes, 1 KiB",
        "/gone: beta: deleted",
        "/new: alpha: renamed (was /old), 1 KiB",
        "beta changed 9 names, of which 2 are listed",
        "beta may have changed more: its journal does not reach back to where the hosts parted",
        "what beta deleted comes back where the copy of the other host stays",
    ]


def test_a_host_that_is_away_is_named(run: Run, tmp_path: Path) -> None:
    hosts = {"alpha": {"count": 0, "listed": 0, "complete": True}, "beta": None}
    done = answered(run, tmp_path, {**NOTHING, "diverged": True, "hosts": hosts})
    assert done.exit_code == 7
    assert (
        done.stdout == "what beta changed is not known: it is not connected, or did not answer; ask there\n"
    )


def test_json_is_what_the_mount_process_said(run: Run, tmp_path: Path) -> None:
    done = answered(run, tmp_path, APART, "--json")
    assert done.exit_code == 7
    assert json.loads(done.stdout) == APART


def test_names_of_users_do_nothing_to_a_terminal(run: Run, tmp_path: Path) -> None:
    hostile = "/evil\x1b[2J\x1b]0;owned\a\nname: normal\u202e\x9b"
    found = {
        **APART,
        "changed": [{"path": hostile, "changed_by": {"al\x1bpha": change("renamed", was=hostile)}}],
        "set_aside": [{**FILE, "path": hostile}],
        "hosts": {"be\x07ta": None},
    }
    done = answered(run, tmp_path, found)
    assert done.stdout.count(r"/evil\x1b[2J\x1b]0;owned\x07\nname: normal\u202e\x9b") == 3
    assert all(line.isprintable() for line in done.stdout.splitlines())
    assert len(done.stdout.splitlines()) == 3
