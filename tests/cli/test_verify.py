"""`fusemirror verify`: differences are listed, counted, and exit status 9."""

from pathlib import Path

import pytest

from tests.admin.answering import answering, progress, result
from tests.cli.conftest import Run

FOUND = {"images": 3, "rows": 40, "bytes": 3 << 20, "differences": []}


def test_equal_volumes_are_said_so(run: Run, tmp_path: Path) -> None:
    with answering(tmp_path / "run", "data", lambda _request: [progress(1, 3 << 20), result(FOUND)]):
        done = run("verify", "data")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == "data: no difference in 3 images (3 MiB), 40 catalog rows\n"


def test_differences_are_listed(run: Run, tmp_path: Path) -> None:
    differences = ["image 5: region 0", "row 2"]
    with answering(
        tmp_path / "run", "data", lambda _request: [result({**FOUND, "differences": differences})]
    ):
        done = run("verify", "data")
    assert done.exit_code == 9
    assert done.stdout.splitlines() == differences
    assert done.stderr == "fusemirror: data: verify found 2 differences, listed above\n"


@pytest.mark.parametrize(("options", "keep"), [((), "primary"), (("--keep", "beta"), "beta")])
def test_what_was_mended_is_counted_and_no_failure(
    run: Run, tmp_path: Path, options: tuple[str, ...], keep: str
) -> None:
    repaired = result({**FOUND, "repaired": 2})
    with answering(tmp_path / "run", "data", lambda _request: [repaired]) as requests:
        done = run("verify", "data", "--repair", *options)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[0] == "data: 2 differences repaired"
    assert requests[0]["keep"] == keep


def test_keep_alone_is_refused(run: Run) -> None:
    assert run("verify", "data", "--keep", "beta").exit_code == 2
