"""`fusemirror umount` and umount(8): they return when the mount process has ended, and name who holds it."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from fusemirror.admin import client
from fusemirror.cli import umount
from fusemirror.cli.mounts import FSTYPE, Mount, mount_at, options_in_the_table, registered_runtime_dir
from fusemirror.errors import TimedOut
from tests.cli.conftest import Host


@pytest.fixture
def mounted(host: Host) -> Host:
    assert host.run("fusemirror", "mount", "data", "mnt") == (0, "")
    return host


@contextmanager
def someone_inside(host: Host) -> Iterator[int]:
    """A process whose current directory is the mount."""
    command = [sys.executable, "-P", "-c", "print(flush=True); input()"]
    with subprocess.Popen(
        command, cwd=host.mountpoint, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.communicate("\n")


@pytest.mark.parametrize("target", ["data", "mnt", "./mnt/"])
def test_it_returns_when_the_data_is_safe(mounted: Host, target: str) -> None:
    assert mounted.run("fusemirror", "umount", target) == (0, "")
    assert (mounted.runtime_dir / "drained").exists()
    assert not mounted.is_mounted


def test_a_name_is_no_directory_of_that_name(mounted: Host) -> None:
    host = mounted
    other = host.mountpoint.with_name("data")  # a mount point called as another filesystem is
    other.mkdir()
    text = (host.config_dir / "data.toml").read_text().replace('"data"', '"other"')
    (host.config_dir / "other.toml").write_text(text)
    assert host.run("fusemirror", "mount", "other", "data") == (0, "")
    try:
        assert host.run("fusemirror", "umount", "data") == (0, "")
        assert not host.is_mounted
        assert mount_at(str(other)) is not None
        assert host.run("fusemirror", "umount", "./data") == (0, "")
        assert mount_at(str(other)) is None
    finally:
        while mount_at(str(other)) is not None:
            subprocess.run(["umount", "-i", "-l", other], check=True)


def test_a_directory_may_be_called_as_no_filesystem_can(host: Host) -> None:
    place = host.mountpoint.with_name("long-" * 20)
    place.mkdir()
    assert host.run("fusemirror", "mount", "data", place.name) == (0, "")
    try:
        assert host.run("fusemirror", "umount", place.name) == (0, "")
        assert mount_at(str(place)) is None
    finally:
        while mount_at(str(place)) is not None:
            subprocess.run(["umount", "-i", "-l", place], check=True)


@pytest.mark.parametrize(("force", "lazy"), [(False, False), (True, False), (False, True)])
def test_a_process_that_takes_no_commands_is_said_and_its_mount_detached_only_if_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool, lazy: bool
) -> None:
    detached: list[str] = []
    monkeypatch.setattr(client, "ANSWER_TIMEOUT_S", 0.05)
    monkeypatch.setattr(umount, "detach", lambda directory, **_how: detached.append(directory))
    monkeypatch.setattr(umount, "our_mounts", lambda _name: [Mount("/mnt/data", FSTYPE, "data")])
    monkeypatch.setattr(umount, "registered_runtime_dir", lambda _directory: tmp_path)
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as waiting:
        listening.bind(str(tmp_path / "data.sock"))
        listening.listen(0)
        waiting.connect(str(tmp_path / "data.sock"))
        with nullcontext() if lazy else pytest.raises(TimedOut, match="the mount process takes no commands"):
            umount.unmount("data", tmp_path, force=force, lazy=lazy)
    assert detached == (["/mnt/data"] if force or lazy else [])


def test_a_mount_of_the_same_name_on_another_host_of_this_machine_is_left_alone(
    mounted: Host, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    assert Host(tmp_path / "other").run("fusemirror", "umount", "data")[0] == 3
    assert mounted.is_mounted
    assert mounted.run("fusemirror", "umount", "data") == (0, "")


@pytest.mark.parametrize("part", [".", "inside"])
def test_what_is_bind_mounted_of_it_is_left_alone(mounted: Host, tmp_path: Path, part: str) -> None:
    bound, other = tmp_path / "bound", tmp_path / "other"
    for directory in (bound, other):
        directory.mkdir()
    subprocess.run(["mount", "--bind", mounted.mountpoint / part, bound], check=True)
    try:
        assert Host(other).run("fusemirror", "umount", "data")[0] == 3  # a host with a mount of this name
        assert mount_at(str(bound)) is not None
        for _ in range(2):  # the second finds no mount of it, and a process that serves what is bound
            assert mounted.run("fusemirror", "umount", "--lazy", "data") == (0, "")
            assert not mounted.is_mounted
            assert mount_at(str(bound)) is not None
    finally:
        subprocess.run(["umount", "-i", bound], check=True)


def test_it_says_what_waits_for_the_other_host(host: Host) -> None:
    assert host.run("fusemirror", "mount", "data", "mnt", stub="keeps") == (0, "")
    code, said = host.run("fusemirror", "umount", "data")
    assert code == 0
    assert "waiting here for the other host: 3 requests (3 KiB); the next mount sends them" in said


@pytest.mark.parametrize("timeout", ["0", "0.01"])
def test_it_says_when_the_data_is_not_safe_in_time(mounted: Host, timeout: str) -> None:
    drain = mounted.runtime_dir / "drain"
    os.mkfifo(drain)
    code, errors = mounted.run("fusemirror", "umount", "mnt", "--timeout", timeout)
    assert code == 8
    assert "is still bringing data to safety" in errors
    assert not mounted.is_mounted
    drain.write_bytes(b"")
    assert mounted.run("fusemirror", "umount", "data")[0] in (0, 3)
    assert (mounted.runtime_dir / "drained").exists()


def test_who_holds_the_mount_is_named(mounted: Host) -> None:
    with someone_inside(mounted) as pid:
        code, errors = mounted.run("fusemirror", "umount", "data")
        assert code == 1
        assert f"(process {pid})" in errors
        assert mounted.is_mounted
    assert mounted.run("fusemirror", "umount", "data") == (0, "")


def test_lazy_detaches_what_is_in_use(mounted: Host) -> None:
    with someone_inside(mounted):
        assert mounted.run("fusemirror", "umount", "--lazy", "data") == (0, "")
        assert not mounted.is_mounted
        assert not (mounted.runtime_dir / "drained").exists()


def test_force_ends_what_is_in_use(mounted: Host) -> None:
    with someone_inside(mounted):
        assert mounted.run("fusemirror", "umount", "--force", "data") == (0, "")
        assert (mounted.runtime_dir / "drained").exists()


@pytest.mark.usefixtures("helpers")
def test_a_plain_umount_waits_too(mounted: Host) -> None:
    # Without our environment: umount(8) finds the mount's socket through /run/mount/utab.
    done = subprocess.run(["umount", mounted.mountpoint], env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (mounted.runtime_dir / "drained").exists()


@pytest.mark.usefixtures("helpers")
def test_a_plain_umount_waits_after_a_remount_too(mounted: Host) -> None:
    place = mounted.mountpoint
    assert subprocess.run(["mount", "-o", "remount,ro", place], env={}, check=False).returncode == 0
    found = options_in_the_table(str(place))
    assert (found["helper"], "_netdev" in found) == ("fusemirror", True)
    assert registered_runtime_dir(str(place)) == mounted.runtime_dir
    assert subprocess.run(["umount", place], env={}, check=False).returncode == 0
    assert (mounted.runtime_dir / "drained").exists()


@pytest.mark.usefixtures("helpers")
def test_a_type_copied_from_the_kernels_table_is_ours(host: Host) -> None:
    with host.start("fusemirror", "mount", "-f", "data", "mnt") as process:
        while not host.is_mounted:
            assert process.poll() is None
        (copied,) = (
            line.split()
            for line in Path("/proc/self/mounts").read_text().splitlines()
            if line.split()[1] == str(host.mountpoint)
        )
        assert host.run("fusemirror", "umount", "data")[0] == 0
    source, target, fstype, options = copied[:4]
    command = ["mount", "-f", "-t", fstype, source, target, "-o", options]
    done = subprocess.run(command, env=host.environment, capture_output=True, text=True, check=False)
    assert (fstype, done.returncode, done.stderr) == (FSTYPE, 0, "")


@pytest.mark.usefixtures("helpers")
def test_a_plain_umount_of_a_busy_mount_exits_as_mount_does(mounted: Host) -> None:
    with someone_inside(mounted) as pid:
        done = subprocess.run(["umount", mounted.mountpoint], capture_output=True, text=True, check=False)
        assert done.returncode == 32
        assert f"(process {pid})" in done.stderr


@pytest.mark.parametrize(
    ("target", "code"),
    [("nobody-mounts-this", 3), ("mnt", 3), ("/", 3), ("/nowhere", 3), ("long-" * 20, 3), ("ü" * 60, 3)],
)
def test_what_is_not_mounted_is_said_so(host: Host, target: str, code: int) -> None:
    found, errors = host.run("fusemirror", "umount", target)
    assert found == code
    assert errors.count("\n") == 1
