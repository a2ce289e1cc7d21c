"""Errors become one line and an exit code; a traceback is for bugs, or on request."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import fusemirror
from fusemirror.cli.arguments import attempt, explain, report, say, tell
from fusemirror.cli.main import COMMANDS, program
from fusemirror.errors import BadConfig, NotMounted
from tests.cli.conftest import Run


def test_an_error_is_one_line_with_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(BadConfig("a.toml", 3, "two\nlines"), "data", debug=False) == 10
    assert capsys.readouterr().err == "fusemirror: data: a.toml, line 3: two lines\n"


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    report(NotMounted("data"), None, debug=True)
    assert "NotMounted" in capsys.readouterr().err


def test_a_bug_shows_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise KeyError("x")

    assert attempt(fail, lambda _error: 8) == 8
    assert "in fail" in capsys.readouterr().err


def test_errors_of_the_system_are_no_bugs() -> None:
    assert explain(PermissionError(errno.EACCES, "Permission denied", "/etc/x"))[1] == 4
    assert explain(OSError(errno.ENOSPC, "No space left on device", "/x")) == (
        "/x: No space left on device",
        1,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(run: Run, command: str) -> None:
    done = run(command, "--help")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"Usage: fusemirror {command} ")


@pytest.mark.parametrize(
    "arguments", [("promote", "data"), ("status", "--colour"), ("status", "a/b"), ("mount",), ()]
)
def test_wrong_usage_is_one_line_and_exit_status_2(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    if arguments:
        assert done.stderr.startswith("fusemirror: ")
        assert done.stderr.count("\n") == 1


def test_without_anything_it_shows_its_help() -> None:
    done = CliRunner().invoke(program, [], prog_name="fusemirror")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: fusemirror ")
    assert done.stderr.splitlines()[-1].strip().startswith("completion ")


def test_a_bad_config_names_file_and_line(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "etc" / "data.toml"
    config.parent.mkdir()
    config.write_text('name = "data"\ncolour = "red"\n')
    done = run("mount", "data", tmp_path)
    assert done.exit_code == 10
    assert done.stderr == f"fusemirror: data: {config}, line 2: colour: unknown key\n"


def test_a_message_is_one_line_that_does_nothing_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("no \x1b[2J\udcff\nfile", "data")
    tell("/\x1b\n")
    said = capsys.readouterr()
    assert said.err == "fusemirror: data: no \\x1b[2J\\xff file\n"
    assert said.out == "/\\x1b\\n\n"


def test_the_version_comes_with_those_of_the_protocol_and_the_formats(run: Run) -> None:
    done = run("--version")
    assert done.exit_code == 0
    assert done.stdout == (
        f"fusemirror {fusemirror.__version__} "
        "(protocol 1, volume format 1 to 2, journal format 1 to 2, join file format 2 to 3)\n"
    )


def test_a_message_for_a_closed_stderr_is_not_on_stdout() -> None:
    command = [sys.executable, "-P", "-m", "fusemirror", "status", "nothing-of-this-name"]
    done = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *command], stdout=subprocess.PIPE, timeout=30)
    assert (done.returncode, done.stdout) == (3, b"")


@pytest.mark.parametrize("command", [("umount", "data"), ("wait", "data", "--for", "normal")])
@pytest.mark.parametrize("timeout", ["nan", "inf", "1e300", "9999999", "-1"])
def test_a_time_that_the_system_cannot_wait_is_wrong_usage(
    run: Run, command: tuple[str, ...], timeout: str
) -> None:
    done = run(*command, "--timeout", timeout)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("command", "redirected", "code"),
    [
        ("fusemirror status nothing-of-this-name", "2>/dev/full", 3),
        ("fusemirror.cli.mount_helper", "2>/dev/full", 1),
        ("fusemirror completion bash", ">/dev/full", 1),
        ("fusemirror --version", ">/dev/full", 1),
        ("fusemirror --help", ">/dev/full", 1),
    ],
)
def test_output_that_is_not_taken_leaves_the_exit_code(command: str, redirected: str, code: int) -> None:
    line = f"{sys.executable} -P -m {command} {redirected}"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=30, env=environment)
    said = "" if redirected.startswith("2") else "fusemirror: No space left on device\n"
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


def test_a_locale_that_lacks_a_character_is_no_bug(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('"\u65e5" = 1')
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fusemirror", "--config-dir", tmp_path, "list"],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        timeout=30,
    )
    assert (done.returncode, rb"\u65e5: unknown key" in done.stdout) == (0, True)
