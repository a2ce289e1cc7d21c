"""The completion scripts: for each shell, and they complete our commands."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import CHECKOUT, Run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(run: Run, shell: str) -> None:
    done = run("completion", shell)
    assert done.exit_code == 0
    assert f"_FUSEMIRROR_COMPLETE={shell}_complete" in done.stdout


def test_another_shell_is_wrong_usage(run: Run) -> None:
    assert run("completion", "tcsh").exit_code == 2


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_reads_its_script(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(run("completion", "bash").stdout)
    subprocess.run(["bash", "-n", script], check=True)


def test_a_command_and_an_option_are_completed() -> None:
    def completed(words: str, place: int) -> str:
        environment = {
            **os.environ,
            "_FUSEMIRROR_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(place),
            "PYTHONPATH": str(CHECKOUT),
        }
        command = [sys.executable, "-P", "-m", "fusemirror"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout

    assert completed("fusemirror um", 1) == "plain,umount\n"
    assert "plain,--lazy\n" in completed("fusemirror umount --", 2)
