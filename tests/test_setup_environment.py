"""bin/setup-environment makes the environment of a checkout, whatever stands in its place."""

import os
import shutil
from pathlib import Path

import pytest

from tests.hosts import CHECKOUT, run

SOURCES = ("pyproject.toml", ".ci/requirements-build.txt", ".ci/requirements.txt")
PREPARES = "preparing"
PYTHON = """#!/bin/sh
case "$*" in
"-m venv"*)
    for directory; do :; done
    mkdir -p "$directory/bin" && cp "$0" "$directory/bin/python" ;;
esac
"""
"""A Python that makes environments of itself, and takes everything for installed."""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the script reads of a checkout, on a host that has the Debian packages."""
    checkout = tmp_path / "checkout"
    for name in ("bin/setup-environment", *SOURCES):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, checkout / name)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "python3").write_text(PYTHON)
    for name in ("apt-get", "dpkg-query", "pkg-config"):
        (tools / name).write_text("#!/bin/sh\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return checkout


def test_a_link_that_leads_nowhere_gives_way_to_an_environment(checkout: Path) -> None:
    environment = checkout / ".venv"
    environment.symlink_to("nowhere")
    for _ in range(2):  # the second finds nothing to do
        run(checkout / "bin" / "setup-environment", timeout_s=60.0)
    assert (environment.is_dir(), environment.is_symlink()) == (True, False)
    assert (environment / "complete").exists()
    assert not (checkout / "nowhere").exists()


@pytest.mark.parametrize("source", SOURCES)
def test_an_environment_is_installed_again_when_what_it_was_made_from_changes(
    checkout: Path, source: str
) -> None:
    prepare = (checkout / "bin" / "setup-environment",)
    assert PREPARES in run(*prepare, timeout_s=60.0).stderr
    assert PREPARES not in run(*prepare, timeout_s=60.0).stderr
    with (checkout / source).open("a") as file:
        file.write("# another version\n")
    assert PREPARES in run(*prepare, timeout_s=60.0).stderr
    assert PREPARES not in run(*prepare, timeout_s=60.0).stderr
