"""`fusemirror mount`: the parent's exit status is the mount's, whatever becomes of the child."""

import logging
import os
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fusemirror import settings
from fusemirror.cli import mount
from fusemirror.cli.arguments import Places
from fusemirror.cli.mount import JournalFormatter, PrintableFormatter, close_to_others, make_runtime_dir
from fusemirror.cli.mounts import FSTYPE, Mount, is_stale
from fusemirror.errors import RefusedForSafety
from tests.cli.conftest import STUB, Host


def test_the_command_returns_when_the_mount_answers(host: Host) -> None:
    assert host.run("fusemirror", "mount", "data", "mnt") == (0, "")
    assert os.stat(host.mountpoint).st_ino == 1
    assert host.run("fusemirror", "umount", "mnt") == (0, "")


def test_a_mount_that_is_refused_says_so_once(host: Host) -> None:
    code, errors = host.run("fusemirror", "mount", "data", "mnt", stub="refuse")
    assert (code, errors) == (
        1,
        "fusemirror: data: volume /nowhere is in use by process 12; unmount it first\n",
    )


def test_a_mount_process_that_is_killed_is_reported(host: Host) -> None:
    code, errors = host.run("fusemirror", "mount", "data", "mnt", stub="killed")
    assert code == 1
    why = "the mount process was ended by SIGKILL before it served"
    assert errors == f"fusemirror: data: cannot mount: {why}\n"


def test_a_bug_shows_a_traceback_and_is_logged(host: Host) -> None:
    code, errors = host.run("fusemirror", "mount", "data", "mnt", stub="bug")
    assert code == 1
    assert "Traceback" in errors
    assert errors.endswith(
        "fusemirror: data: internal error: KeyError('a bug'); please report it with the lines above\n"
    )
    if not os.path.exists("/dev/log"):
        assert "KeyError" in (host.runtime_dir / "data.log").read_text()


def test_a_mountpoint_in_use_by_us_is_refused(host: Host) -> None:
    host.run("fusemirror", "mount", "data", "mnt")
    code, errors = host.run("fusemirror", "mount", "data", "mnt")
    assert (code, errors) == (
        1,
        f"fusemirror: data: cannot mount: data is mounted on {host.mountpoint} already\n",
    )
    assert host.run("fusemirror", "umount", "data") == (0, "")


def test_a_mount_left_by_a_killed_process_is_cleaned_up(host: Host) -> None:
    with host.start("fusemirror", "mount", "-f", "data", "mnt") as process:
        while not host.is_mounted:
            assert process.poll() is None
        process.kill()
    assert is_stale(Mount(str(host.mountpoint), FSTYPE, "data"))
    assert host.run("fusemirror", "mount", "data", "mnt") == (0, "")
    assert os.stat(host.mountpoint).st_ino == 1
    assert host.run("fusemirror", "umount", "mnt") == (0, "")


def test_the_foreground_ends_with_the_mount(host: Host) -> None:
    with host.start("fusemirror", "mount", "-f", "data", "mnt") as process:
        while not host.is_mounted:
            assert process.poll() is None
        assert host.run("fusemirror", "umount", "mnt") == (0, "")
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("data", "nowhere"), 1, "is not a directory; make it first"),
        (("other", "mnt"), 10, "fusemirror create other"),
        (("data", "mnt", "-o", "remount"), 2, "mount option remount: "),
        (("data",), 2, "no mountpoint: name one, or keep it with `fusemirror set data mountpoint=DIR`"),
    ],
)
def test_what_cannot_be_mounted_is_one_line(
    host: Host, arguments: tuple[str, ...], code: int, message: str
) -> None:
    found, errors = host.run("fusemirror", "mount", *arguments)
    assert found == code
    assert message in errors
    assert errors.count("\n") == 1


def test_the_mountpoint_of_the_settings_is_used_where_the_command_names_none(host: Host) -> None:
    config = host.config_dir / "data.toml"
    config.write_text(config.read_text().replace('mountpoint = ""', f'mountpoint = "{host.mountpoint}"'))
    assert host.run("fusemirror", "mount", "data") == (0, "")
    assert host.is_mounted
    assert host.run("fusemirror", "umount", "data") == (0, "")


def test_the_service_manager_is_told_once_the_mount_serves(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        with host.start("fusemirror", "mount", "-f", "data", "mnt") as process:
            assert manager.recv(100) == b"READY=1"
            assert os.stat(host.mountpoint).st_ino == 1
            assert host.run("fusemirror", "umount", "mnt") == (0, "")
            assert process.wait(10) == 0


def test_a_caller_that_has_closed_its_standard_streams_gets_its_mount(host: Host) -> None:
    """The pipe to the parent, and files of the volume, would get their numbers."""
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-P", str(STUB)]
    arguments = ["fusemirror", "mount", "data", str(host.mountpoint)]
    assert subprocess.run([*command, *arguments], env=host.environment, timeout=30).returncode == 0
    assert os.stat(host.mountpoint).st_ino == 1
    assert host.run("fusemirror", "umount", "data") == (0, "")


def test_a_mount_keeps_nothing_open_that_its_caller_had(host: Host) -> None:
    reading, writing = os.pipe()
    command = [sys.executable, "-P", str(STUB), "fusemirror", "mount", "data", str(host.mountpoint)]
    try:
        subprocess.run(command, env=host.environment, pass_fds=[writing], check=True)
    finally:
        os.close(writing)
    with open(reading, "rb") as pipe:
        assert select.select([pipe], [], [], 10)[0], "its end has come, while the mount is there"
    assert host.is_mounted
    assert host.run("fusemirror", "umount", "data") == (0, "")


def test_a_line_for_the_journal_begins_with_its_priority() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "peer away", (), None)
    assert JournalFormatter("%(levelname)s data: %(message)s").format(record) == "<4>WARNING data: peer away"


def test_a_line_of_the_log_holds_no_users_bytes_as_they_are() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "moved %s", ("a\n2026 ERROR \x1b[2J",), None)
    assert PrintableFormatter("data: %(message)s").format(record) == r"data: moved a\n2026 ERROR \x1b[2J"


def test_a_log_that_was_moved_away_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As logrotate(8) does it, with a SIGHUP, which writes a line, or without."""
    monkeypatch.setattr(mount, "SYSLOG", tmp_path / "no system log here")
    handler = mount._background_handler("data", tmp_path)
    file, moved = tmp_path / "data.log", tmp_path / "data.log.1"
    handler.emit(logging.LogRecord("x", logging.INFO, "", 0, "before", (), None))
    file.rename(moved)
    handler.emit(logging.LogRecord("x", logging.INFO, "", 0, "after", (), None))
    handler.close()
    assert (moved.read_text(), file.read_text()) == ("before\n", "after\n")


def test_a_system_log_that_is_stuck_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mount, "SYSLOG", tmp_path / "log")
    monkeypatch.setattr(logging, "raiseExceptions", False)
    record = logging.LogRecord("x", logging.INFO, "", 0, "message %s", ("1",), None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(tmp_path / "log"))
        handler = mount._background_handler("data", tmp_path)
        held = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) + 1

        def write() -> None:
            for _ in range(held + 1):
                handler.emit(record)

        writing = threading.Thread(target=write, daemon=True)
        writing.start()
        writing.join(10)
        assert not writing.is_alive()
        assert log.recv(1000).endswith(b"message 1\0")
        for _ in range(held - 1):
            log.recv(1000)
        handler.emit(record)
        assert log.recv(1000).endswith(b"message 1\0"), "it is written to again as soon as it takes any"
        handler.close()


def test_what_was_open_to_others_is_closed_by_a_mount_and_told(tmp_path: Path) -> None:
    config, keys, volume = tmp_path / "etc" / "data.toml", tmp_path / "etc" / "data", tmp_path / "volume"
    for directory in (keys, volume):
        directory.mkdir(parents=True)
    for file in (config, keys / "key.pem", volume / "identity.json"):
        file.touch()
        file.chmod(0o644)
    volume.chmod(0o755)
    (tmp_path / "etc").chmod(0o777)
    places = Places(tmp_path / "etc", tmp_path / "run", debug=False)
    chosen = settings.make(name="data", volume=str(volume), listen="a:1", peer="b:1")
    told = {*close_to_others(places, chosen)}
    assert told == {tmp_path / "etc", config, keys, keys / "key.pem", volume, volume / "identity.json"}
    assert {path.stat().st_mode & 0o077 for path in told - {tmp_path / "etc"}} == {0}
    assert list(close_to_others(places, chosen)) == []
    config.rename(tmp_path / "etc" / "elsewhere")
    config.symlink_to("elsewhere")
    with pytest.raises(RefusedForSafety, match=r"data\.toml is a symbolic link"):
        list(close_to_others(places, chosen))


def test_a_runtime_directory_is_made_for_its_owner_and_closed_to_writers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_runtime_dir(tmp_path / "run")
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    (tmp_path / "run").chmod(0o777)
    make_runtime_dir(tmp_path / "run")
    assert (tmp_path / "run").stat().st_mode & 0o022 == 0
    assert "others could write to" in capsys.readouterr().err
