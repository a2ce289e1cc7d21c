"""`fusemirror resolve`: what the mount process is asked, and what is told."""

from pathlib import Path
from typing import Any

from tests.admin.answering import answering, result
from tests.cli.conftest import Run


def test_the_host_to_keep_is_passed_on(run: Run, tmp_path: Path) -> None:
    requests: list[Any] = []

    def respond(request: Any) -> list[Any]:
        requests.append(request)
        return [result("the copy of alpha stays")]

    with answering(tmp_path / "run", "data", respond):
        done = run("resolve", "data", "--keep", "alpha")
    assert requests == [{"command": "resolve", "keep": "alpha"}]
    assert (done.exit_code, done.stdout) == (0, "data: the copy of alpha stays\n")


def test_a_host_must_be_named(run: Run) -> None:
    assert run("resolve", "data").exit_code == 2
