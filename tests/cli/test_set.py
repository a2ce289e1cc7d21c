"""`fusemirror set` without a mount: exit codes and words. With one, see tests/mount/test_modes.py."""

from pathlib import Path

from tests.cli.conftest import Run
from tests.cli.test_create import ADDRESSES


def test_settings_are_set_for_the_next_mount(run: Run, tmp_path: Path) -> None:
    assert (
        run("create", "data", tmp_path / "main", *ADDRESSES, "--join-file", tmp_path / "join").exit_code == 0
    )
    done = run("set", "data", "acknowledge=async", "io_timeout=6")
    assert (done.exit_code, done.output) == (0, "data: set for the next mount\n")


def test_what_cannot_be_used_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    assert (
        run("create", "data", tmp_path / "main", *ADDRESSES, "--join-file", tmp_path / "join").exit_code == 0
    )
    done = run("set", "data", "colour=blue")
    assert done.exit_code == 2
    assert "data: colour: unknown key" in done.output
    assert run("set", "data").exit_code == 2
    assert run("set", "other", "io_timeout=6").exit_code == 10
