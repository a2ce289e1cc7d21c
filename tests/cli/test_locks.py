"""`fusemirror locks`: a line for each lock, or JSON; and what it shows, of two hosts."""

import json
from pathlib import Path
from typing import Any

from tests.admin.answering import answering, result
from tests.cli.conftest import Run

HELD = {
    "path": "/a\nfile",
    "inode": 7,
    "kind": "fcntl",
    "host": "alpha",
    "pid": 4711,
    "uid": 0,
    "start": 5,
    "end": None,
    "exclusive": True,
    "state": "held",
    "since": None,
}
WAITS = {**HELD, "path": None, "kind": "flock", "state": "waiting", "exclusive": False, "since": 1.0}


def answered(run: Run, tmp_path: Path, found: dict[str, Any], *options: str) -> Any:
    with answering(tmp_path / "run", "data", lambda _: [result(found)]):
        return run("locks", "data", *options)


def test_each_lock_is_a_line(run: Run, tmp_path: Path) -> None:
    done = answered(run, tmp_path, {"whole": False, "count": 5, "locks": [HELD, WAITS]})
    first, second, more, whose = done.stdout.splitlines()
    assert first == "held: /a\\nfile, bytes 5 to the end: fcntl exclusive, by process 4711 of alpha"
    assert second.startswith(
        "waiting: inode 7, which has no name: flock shared, by process 4711 of alpha since"
    )
    assert more == "and 3 more"
    assert whose == "these are this host's: the primary, which knows those of both hosts, is not reached"


def test_without_any_it_says_so(run: Run, tmp_path: Path) -> None:
    assert answered(run, tmp_path, {"whole": True, "count": 0, "locks": []}).stdout == "data: no locks\n"


def test_json(run: Run, tmp_path: Path) -> None:
    found = {"whole": True, "count": 1, "locks": [HELD]}
    assert json.loads(answered(run, tmp_path, found, "--json").stdout) == found
