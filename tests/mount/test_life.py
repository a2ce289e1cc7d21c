"""The life of a mount: how it begins and ends, what it says when it cannot, and that ending loses nothing."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fusemirror.cli.mounts import FSTYPE, Mount, mount_at
from tests.cli.conftest import helpers  # noqa: F401 - used by name below
from tests.crash.workers import Load
from tests.hosts import FILESYSTEM, PORT, TwoHosts, run, wait_for_exit, wait_until, what_is_missing
from tests.mount.conftest import IO_TIMEOUT_S


@pytest.fixture(scope="module")
def unmounted() -> Iterator[TwoHosts]:
    """Two hosts that nobody has mounted yet; whoever does unmounts them."""
    if missing := what_is_missing():
        pytest.skip(missing)
    with TwoHosts() as hosts:
        hosts.create_and_join()
        yield hosts


def one_line(result: "subprocess.CompletedProcess[str]", *words: str) -> None:
    """It failed with one line on stderr that begins as all do, and says these words."""
    assert result.stderr.startswith("fusemirror: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


# --- the end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_mount_under_load_and_loses_nothing(
    hosts: TwoHosts, seed: int, number: signal.Signals
) -> None:
    with Load(hosts, "load", seed) as load:
        for host in hosts:
            load.start(host, 2)
        load.wait_steps(50)
        hosts.backup.kill(number)
        load.host_died(hosts.backup)
        assert not hosts.backup.is_mounted
        load.wait_steps(50)
        hosts.primary.kill(number)
        load.host_died(hosts.primary)
        hosts.converge()
        load.stop()
        load.check()


def test_a_signal_ends_a_mount_with_open_files(hosts: TwoHosts) -> None:
    for host in (hosts.backup, hosts.primary):
        descriptor = os.open(host.mountpoint / host.name, os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, b"written")
        host.kill(signal.SIGTERM)
        for call in (lambda to: os.write(to, b"too late"), os.close):
            with pytest.raises(OSError, match="not connected") as raised:
                call(descriptor)
            assert raised.value.errno == errno.ENOTCONN
    hosts.converge()
    for host in hosts:
        assert (hosts.primary.mountpoint / host.name).read_bytes() == b"written"


def test_the_peer_hears_at_once_that_a_host_was_unmounted(hosts: TwoHosts) -> None:
    hosts.backup.umount()
    status = hosts.primary.status()
    assert (status["mirror_state"], status["peer"]["connected"]) == ("degraded", False)
    assert "goodbye" in status["reason"]
    (hosts.primary.mountpoint / "alone").touch()  # waits for no lease


def test_a_backup_without_its_primary_is_unmounted(hosts: TwoHosts) -> None:
    """Sooner than a request that waits for it would end."""
    hosts.primary.kill()
    hosts.backup.umount(timeout_s=IO_TIMEOUT_S - 5)


def test_a_primary_without_its_backup_is_unmounted(hosts: TwoHosts) -> None:
    hosts.backup.kill()
    (hosts.primary.mountpoint / "alone").write_text("kept")
    hosts.primary.umount(timeout_s=IO_TIMEOUT_S - 5)


def test_a_busy_mount_stays_and_its_holder_is_named(pair: TwoHosts) -> None:
    for host in pair:
        with (host.mountpoint / "held").open("w"):
            result = host.fusemirror("umount", host.mountpoint, expect=1)
            one_line(result, f"(process {os.getpid()})", "--lazy")
            assert host.fusemirror("status", FILESYSTEM).returncode == 0
            (host.mountpoint / "works").touch()


def test_a_lazy_umount_waits_for_nobody_and_ends_when_the_last_user_has_gone(hosts: TwoHosts) -> None:
    host = hosts.backup
    pid = host.pid
    with (host.mountpoint / "held").open("w", buffering=1) as held:
        host.fusemirror("umount", "--lazy", host.mountpoint)
        assert not host.is_mounted
        held.write("still written\n")
    wait_for_exit(pid, 30.0)
    host.ended()
    assert (hosts.primary.mountpoint / "held").read_text() == "still written\n"


# --- the beginning --------------------------------------------------------------------------------------


def test_a_mount_that_another_mount_namespace_keeps_is_ended(hosts: TwoHosts) -> None:
    """A container that was started meanwhile, or unshare(1), has a copy of every mount."""
    host = hosts.backup
    (hosts.primary.mountpoint / "file").write_text("safe")
    with someone_keeps_all_mounts():
        host.umount()
        assert not host.is_mounted
        assert "unmounted: asked to stop" in host.log()
        host.mount()
        assert (host.mountpoint / "file").read_text() == "safe"


@contextmanager
def someone_keeps_all_mounts() -> Iterator[None]:
    command = ("unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 300")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        try:
            keeper.stdout.readline()
            yield
        finally:
            keeper.kill()


def test_a_mount_takes_the_place_of_a_killed_process(hosts: TwoHosts) -> None:
    for host in hosts:
        host.kill()
        with pytest.raises(OSError, match="not connected") as raised:
            host.mountpoint.stat()
        assert raised.value.errno == errno.ENOTCONN
        host.mount()
        assert [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()].count(
            str(host.mountpoint)
        ) == 1


def test_a_place_where_something_is_mounted_is_refused(pair: TwoHosts) -> None:
    result = pair.primary.fusemirror("mount", FILESYSTEM, pair.primary.mountpoint, expect=1)
    one_line(result, "mounted", "already")


@pytest.mark.parametrize("foreground", [(), ("-f",)], ids=["background", "foreground"])
class TestRefusals:
    """What cannot be mounted says so in one line, and the exit status of the command is its own."""

    def test_a_volume_in_use(self, pair: TwoHosts, foreground: tuple[str, ...], tmp_path: Path) -> None:
        result = pair.backup.fusemirror("mount", *foreground, FILESYSTEM, tmp_path, expect=1)
        one_line(result, "in use by process", str(pair.backup.pid))

    def test_a_volume_that_is_missing(self, unmounted: TwoHosts, foreground: tuple[str, ...]) -> None:
        host = unmounted.primary
        away = host.volume.rename(host.volume.with_name("away"))
        try:
            result = host.fusemirror("mount", *foreground, FILESYSTEM, host.mountpoint, expect=1)
        finally:
            away.rename(host.volume)
        one_line(result, "not a fusemirror volume")
        assert not host.is_mounted

    def test_an_address_in_use(self, unmounted: TwoHosts, foreground: tuple[str, ...]) -> None:
        host = unmounted.primary
        program = (
            "import socket, subprocess, sys\n"
            f"taken = socket.create_server(('{host.namespace.address}', {PORT}))\n"
            "sys.exit(subprocess.call(sys.argv[1:]))"
        )
        mount = (sys.executable, "-m", "fusemirror", "mount", *foreground, FILESYSTEM)
        result = host.run(sys.executable, "-c", program, *mount, host.mountpoint, expect=1)
        one_line(result, "cannot listen on")
        assert not host.is_mounted

    def test_a_place_that_is_no_directory(self, unmounted: TwoHosts, foreground: tuple[str, ...]) -> None:
        host = unmounted.primary
        result = host.fusemirror("mount", *foreground, FILESYSTEM, host.log_file, expect=1)
        one_line(result, "not a directory")


def test_commands_for_what_is_not_mounted_say_so(unmounted: TwoHosts) -> None:
    for arguments in (
        ("status", FILESYSTEM),
        ("verify", FILESYSTEM),
        ("wait", FILESYSTEM, "--for", "normal"),
        ("umount", FILESYSTEM),
    ):
        one_line(unmounted.primary.fusemirror(*arguments, expect=3), "not mounted")


@pytest.mark.parametrize("number", [0, 1], ids=["at the primary", "at the backup"])
def test_a_read_only_mount_changes_nothing_and_follows_the_other_host(hosts: TwoHosts, number: int) -> None:
    host, peer = hosts.hosts[number], hosts.hosts[1 - number]
    host.umount()
    host.mount("-o", "ro")
    host.wait_for("normal")
    (peer.mountpoint / "file").write_text("from the other host")
    assert (host.mountpoint / "file").read_text() == "from the other host"
    for act in (
        lambda: (host.mountpoint / "new").touch(),
        lambda: (host.mountpoint / "file").write_text("changed"),
        lambda: (host.mountpoint / "file").unlink(),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            act()


# --- as the system does it ------------------------------------------------------------------------------


@pytest.fixture
def background(unmounted: TwoHosts) -> Iterator[TwoHosts]:
    """Both hosts mounted by mount(8), as /etc/fstab has it."""
    for host in unmounted:
        options = "_netdev,nofail,x-systemd.device-timeout=5"
        host.run("mount", "-t", "fusemirror", FILESYSTEM, host.mountpoint, "-o", options)
    yield unmounted
    for host in unmounted:
        run("umount", host.mountpoint, env=host.environment, expect=None)


@pytest.mark.usefixtures("helpers")
def test_mount_and_umount_as_the_system_calls_them(background: TwoHosts) -> None:
    for host in background:
        host.wait_for("normal")
    (background.backup.mountpoint / "large").write_bytes(os.urandom(20 << 20))
    for host in (background.backup, background.primary):
        pid = host.status()["pid"]
        run("umount", host.mountpoint)  # without our environment: it finds the process by itself
        assert not host.is_mounted
        wait_for_exit(pid, 0.0)  # a plain umount returns when the data is safe
        assert not (host.runtime_directory / f"{FILESYSTEM}.sock").exists()


@pytest.mark.usefixtures("helpers")
def test_a_background_mount_rereads_its_settings_and_mount_a_mends_it_once_killed(
    unmounted: TwoHosts, tmp_path: Path
) -> None:
    host = unmounted.primary
    host.fusemirror("mount", FILESYSTEM, host.mountpoint)
    pid = host.status()["pid"]
    host.configure(acknowledge="async")
    os.kill(pid, signal.SIGHUP)
    wait_until(lambda: host.status()["settings"]["acknowledge"] == "async", 30, "the settings are read again")
    host.configure(acknowledge="sync")
    os.kill(pid, signal.SIGKILL)
    dead = Mount(str(host.mountpoint), FSTYPE, f"dead:{FILESYSTEM}")
    wait_until(lambda: mount_at(str(host.mountpoint)) == dead, 30, "a dead mount takes its place")
    with pytest.raises(OSError, match="not connected"):
        (host.mountpoint / "lost").touch()
    table = tmp_path / "fstab"
    table.write_text(f"{FILESYSTEM} {host.mountpoint} fusemirror _netdev,nofail 0 0\n")
    for _ in range(2):  # the second finds it mounted
        host.run("mount", "-a", "-T", table)
        assert mount_at(str(host.mountpoint)) == Mount(str(host.mountpoint), FSTYPE, FILESYSTEM)
    assert host.status()["pid"] != pid
    host.fusemirror("umount", FILESYSTEM)


def test_the_background_mount_logs_and_lets_go_of_its_terminal(unmounted: TwoHosts) -> None:
    host = unmounted.primary
    result = host.fusemirror("mount", FILESYSTEM, host.mountpoint)
    assert (result.stdout, result.stderr) == ("", "")
    pid = host.status()["pid"]
    for descriptor in (0, 1, 2):
        assert os.readlink(f"/proc/{pid}/fd/{descriptor}") == os.devnull
    assert os.getsid(pid) == pid
    assert "\nUmask:\t0077\n" in Path(f"/proc/{pid}/status").read_text()  # what it makes is its own
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    host.fusemirror("umount", FILESYSTEM)
    wait_for_exit(pid, 0.0)
