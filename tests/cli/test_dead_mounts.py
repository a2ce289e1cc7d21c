"""A mount whose process was killed: programs get errors, and nothing takes it for one that is there."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from fusemirror.admin.client import process_id
from fusemirror.cli.dead_mounts import THREADS_END_S, clear, replace_dead
from fusemirror.cli.mounts import FSTYPE, Mount, Process, is_stale, mount_at
from fusemirror.errors import MountFailed
from tests.cli.conftest import Host
from tests.hosts import wait_until


def killed(host: Host) -> str:
    """The mountpoint of a killed background mount, once its watcher has acted."""
    place = str(host.mountpoint)
    assert host.run("fusemirror", "mount", "data", "mnt") == (0, "")
    os.kill(process_id(host.runtime_dir, "data"), signal.SIGKILL)
    dead = Mount(place, FSTYPE, "dead:data")
    wait_until(lambda: mount_at(place) == dead, 30, "a dead mount takes its place")
    return place


def test_a_dead_mount_gives_errors_and_is_mounted_anew(host: Host) -> None:
    place = killed(host)
    for _ in range(2):
        with pytest.raises(OSError, match="not connected"):
            os.listdir(place)
    assert host.run("fusemirror", "mount", "data", "mnt") == (0, "")
    assert mount_at(place) == Mount(place, FSTYPE, "data")
    assert os.stat(place).st_ino == 1
    assert host.run("fusemirror", "umount", "mnt") == (0, "")


@pytest.mark.usefixtures("helpers")
def test_mount_a_does_not_take_it_for_mounted(host: Host, tmp_path: Path) -> None:
    place = killed(host)
    table = tmp_path / "fstab"
    table.write_text(f"data {place} fusemirror defaults 0 0\n")
    command = ["mount", "-a", "-f", "-v", "-T", str(table)]
    done = subprocess.run(command, env=host.environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "already mounted" in done.stdout) == (0, False), done


@pytest.mark.parametrize("target", ["data", "mnt"])
def test_it_is_unmounted_by_its_name_too(host: Host, target: str) -> None:
    killed(host)
    assert host.run("fusemirror", "umount", target) == (0, "")
    assert not host.is_mounted


def waits_for_a_page(pid: int) -> bool:
    """Whether a thread of a process takes pages back that are being read."""
    stacks = Path(f"/proc/{pid}/task").glob("*/stack")
    return any("fuse_reverse_inval_inode" in stack.read_text() for stack in stacks)


@pytest.mark.parametrize("in_foreground", [False, True])
def test_a_killed_process_ends_though_a_thread_waits_for_what_nobody_answers(
    host: Host, in_foreground: bool
) -> None:
    place, dead = str(host.mountpoint), "data" if in_foreground else "dead:data"
    options = ["-f"] if in_foreground else []
    mounting = host.start("fusemirror", "mount", *options, "data", "mnt", stub="stuck")
    wait_until(lambda: mount_at(place) == Mount(place, FSTYPE, "data"), 30, "the mount")
    pid = process_id(host.runtime_dir, "data")
    process = Process(pid)
    with subprocess.Popen(["cat", host.mountpoint / "file"], stderr=subprocess.PIPE, text=True) as reader:
        try:
            wait_until(lambda: waits_for_a_page(pid), 30, "a thread that waits in the kernel")
            os.kill(pid, signal.SIGKILL)
            if in_foreground:
                mounting.communicate(timeout=30)  # it is this process
            assert process.wait(30)
        finally:
            if not process.wait(0):
                subprocess.run(["umount", "-i", "-f", place], check=False)
        assert "not connected" in reader.communicate(timeout=30)[1]
    if not in_foreground:
        mounting.communicate(timeout=30)
    wait_until(lambda: mount_at(place) == Mount(place, FSTYPE, dead), 30, "a dead mount")
    assert is_stale(Mount(place, FSTYPE, dead))
    assert host.run("fusemirror", "umount", "mnt") == (0, "")


def watcher_of(pid: int) -> int:
    """The one child of a mount process."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def test_a_signal_of_somebody_else_does_not_end_a_mount_that_lives(host: Host) -> None:
    place = str(host.mountpoint)
    assert host.run("fusemirror", "mount", "data", "mnt") == (0, "")
    pid = process_id(host.runtime_dir, "data")
    watcher = Process(watcher_of(pid))
    os.kill(watcher.pid, signal.SIGUSR1)
    assert not watcher.wait(2 * THREADS_END_S), "it goes on watching"
    assert os.stat(place).st_ino == 1
    assert not is_stale(Mount(place, FSTYPE, "data"))
    os.kill(pid, signal.SIGKILL)
    dead = Mount(place, FSTYPE, "dead:data")
    wait_until(lambda: mount_at(place) == dead, 30, "a dead mount takes its place")
    assert host.run("fusemirror", "umount", "mnt") == (0, "")


def test_a_mount_that_lives_is_left_alone(host: Host) -> None:
    target = Mount(str(host.mountpoint), FSTYPE, "data")
    assert not replace_dead(target, host.runtime_dir)
    assert host.run("fusemirror", "mount", "data", "mnt") == (0, "")
    assert not replace_dead(target, host.runtime_dir)
    with pytest.raises(MountFailed, match=r"data is mounted on .* already"):
        clear(target, host.runtime_dir)
    assert os.stat(host.mountpoint).st_ino == 1
    assert host.run("fusemirror", "umount", "mnt") == (0, "")
