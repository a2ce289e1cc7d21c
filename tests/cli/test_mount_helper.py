"""mount.fusemirror: called as mount(8) and mount(8)'s callers do, with mount(8)'s exit codes."""

from pathlib import Path

import pytest

from fusemirror.cli.mount_helper import (
    BUG,
    FAILED,
    SYSTEM_ERROR,
    USAGE_ERROR,
    exit_code,
    places_of_environment,
)
from fusemirror.errors import MountFailed, PermissionRefused, UsageError
from fusemirror.settings import RUNTIME_DIR
from tests.cli.conftest import Host


def test_it_mounts_as_mount_calls_it(host: Host) -> None:
    arguments = ("data", str(host.mountpoint), "-v", "-o", "rw,nosuid,_netdev", "-t", "fusemirror")
    assert host.run("mount.fusemirror", *arguments) == (0, "")
    lines = Path("/proc/self/mounts").read_text().splitlines()
    assert ["nosuid" in line for line in lines if str(host.mountpoint) in line] == [True]
    assert host.run("fusemirror", "umount", "data") == (0, "")


@pytest.mark.parametrize("command", [("mount.fusemirror",), ("fusemirror", "mount")])
def test_options_add_up_as_those_of_mount_do(host: Host, command: tuple[str, ...]) -> None:
    assert host.run(*command, "data", "mnt", "-o", "ro", "-o", "noexec") == (0, "")
    lines = [
        line for line in Path("/proc/self/mounts").read_text().splitlines() if str(host.mountpoint) in line
    ]
    assert [("ro," in line, ",noexec," in line) for line in lines] == [(True, True)]
    assert host.run("fusemirror", "umount", "data") == (0, "")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 1, "usage: mount.fusemirror NAME DIR"),
        (("data", "mnt", "-q"), 1, "option -q not recognized; usage:"),
        (("data", "mnt", "-o", "remount,colour=red"), 1, "unknown mount option colour=red"),
        (("data", "/", "-o", "bind"), 1, "mount option bind"),
        (("data", "mnt", "-o", "colour=red"), 1, "unknown mount option colour=red"),
        (("other", "mnt"), 1, "fusemirror create other"),
        (("data", "nowhere"), 32, "is not a directory"),
    ],
)
def test_what_cannot_be_mounted_has_the_code_of_mount(
    host: Host, arguments: tuple[str, ...], code: int, message: str
) -> None:
    found, errors = host.run("mount.fusemirror", *arguments)
    assert found == code
    assert message in errors
    assert errors.count("\n") == 1


def test_a_mount_becomes_read_only_and_writable_again(host: Host) -> None:
    assert host.run("mount.fusemirror", "data", str(host.mountpoint)) == (0, "")
    for flag in ("ro", "rw"):
        assert host.run("mount.fusemirror", "data", str(host.mountpoint), "-o", f"remount,{flag}") == (0, "")
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        assert [words[3].split(",")[0] for words in mounts if words[1] == str(host.mountpoint)] == [flag]
    assert host.run("fusemirror", "umount", "data") == (0, "")


def test_the_fake_mount_checks_and_does_nothing(host: Host) -> None:
    assert host.run("mount.fusemirror", "-f", "data", "mnt") == (0, "")
    assert not host.is_mounted


def test_a_sloppy_mount_passes_over_unknown_options(host: Host) -> None:
    assert host.run("mount.fusemirror", "-s", "-f", "data", "mnt", "-o", "colour=red") == (0, "")


def test_a_failing_daemon_is_a_failed_mount(host: Host) -> None:
    assert host.run("mount.fusemirror", "data", "mnt", stub="refuse")[0] == 32
    assert host.run("mount.fusemirror", "data", "mnt", stub="killed")[0] == 32
    assert host.run("mount.fusemirror", "data", "mnt", stub="bug")[0] == 4


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), USAGE_ERROR),
        (PermissionRefused("x"), USAGE_ERROR),
        (PermissionError(), USAGE_ERROR),
        (MountFailed("x"), FAILED),
        (OSError(), SYSTEM_ERROR),
        (KeyError(), BUG),
    ],
)
def test_each_error_has_its_code(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def test_places_of_the_environment_are_as_the_command_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSEMIRROR_CONFIG_DIR", "etc")  # the mount process leaves this directory
    monkeypatch.setenv("FUSEMIRROR_RUNTIME_DIR", "")
    places = places_of_environment()
    assert (places.config_dir, places.runtime_dir) == (tmp_path / "etc", RUNTIME_DIR)
