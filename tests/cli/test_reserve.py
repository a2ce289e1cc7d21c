"""`fusemirror reserve`: what PATH means, what the mount process is asked, and what is told."""

from pathlib import Path
from typing import Any

import pytest

from fusemirror import settings
from tests.admin.answering import answering, result
from tests.cli.conftest import Run


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """A directory that stands in for the mount, with a file; and the configuration."""
    (tmp_path / "etc").mkdir()
    chosen = settings.make(name="data", volume="/nowhere", listen="127.0.0.1:1", peer="127.0.0.1:2")
    (tmp_path / "etc" / "data.toml").write_text(settings.render(chosen))
    mountpoint = tmp_path / "mnt"
    (mountpoint / "sub").mkdir(parents=True)
    (mountpoint / "sub" / "file").touch()
    return mountpoint


def asked(run: Run, mountpoint: Path, *arguments: object) -> tuple[list[dict[str, Any]], Any]:
    """What the mount process was asked besides its status, and what came of it."""
    requests: list[dict[str, Any]] = []

    def respond(request: dict[str, Any]) -> list[Any]:
        if request["command"] == "status":
            return [result({"mountpoint": str(mountpoint)})]
        requests.append(request)
        return [result([])]

    with answering(mountpoint.parent / "run", "data", respond):
        return requests, run(*arguments)


@pytest.mark.parametrize("command", ["reserve", "release"])
def test_a_file_is_named_by_its_inode_and_path(run: Run, mounted: Path, command: str) -> None:
    file = mounted / "sub" / "file"
    requests, done = asked(run, mounted, command, "data", file)
    assert requests == [
        {"command": command, "inode": file.stat().st_ino, "path": "sub/file", "preempt": False}
    ]
    assert (done.exit_code, done.stderr) == (0, "")
    assert "sub/file" in done.stdout


@pytest.mark.parametrize("command", ["reserve", "release"])
def test_without_a_path_it_is_everything(run: Run, mounted: Path, command: str) -> None:
    requests, done = asked(run, mounted, command, "data", "--preempt")
    assert requests == [{"command": command, "inode": 0, "path": "", "preempt": True}]
    assert "everything" in done.stdout


@pytest.mark.parametrize("path", ["", "sub", "sub/none"])
def test_what_is_no_file_is_refused(run: Run, mounted: Path, path: str) -> None:
    requests, done = asked(run, mounted, "reserve", "data", mounted / path)
    assert not requests
    assert done.exit_code != 0
    assert str(mounted / path) in done.stderr


def test_a_file_elsewhere_is_refused(run: Run, mounted: Path) -> None:
    requests, done = asked(run, mounted, "reserve", "data", "/proc/version")
    assert not requests
    assert done.exit_code == 2
    assert f"is not in {mounted}" in done.stderr


def test_without_a_mount_its_exit_code_says_so(run: Run, mounted: Path) -> None:
    assert run("reserve", "data").exit_code == 3
