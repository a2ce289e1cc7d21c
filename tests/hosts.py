"""Two hosts on one machine: network namespaces joined by a veth pair, each with its own directories.

Shared by the tests that mount, by `bin/demo` and by `bin/bench`. Commands run inside a host through
`nsenter --net`, not through `ip netns exec`, which would give them a mount namespace of their own
and so hide their mounts. Everything is undone on exit, also after failures: every process in the two
namespaces is ours, because nobody else knows their names.
"""

import json
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tomlkit

from fusemirror.mirror.states import MIRROR_LOST

CHECKOUT = Path(__file__).resolve().parent.parent
PROGRAM = (sys.executable, "-P", "-m", "fusemirror")  # of PYTHONPATH, and not of where it is started
FILESYSTEM = "shared"
PORT = 7789
COMMAND_TIMEOUT_S = 120.0
POLL_S = 0.02

Result = subprocess.CompletedProcess[str]


class CommandFailed(AssertionError):
    """A command ended with another status than the one that was expected."""


def what_is_missing() -> str | None:
    """Why this machine cannot mount two hosts, in one line, or None."""
    if os.geteuid() != 0:
        return "not root: network namespaces and mounts need it; run it as root"
    if not Path("/dev/fuse").exists():
        return "no /dev/fuse: the kernel module is missing; run `modprobe fuse`"
    for program in ("ip", "nsenter", "fusermount3"):
        if shutil.which(program) is None:
            return f"no {program}: install the packages iproute2, util-linux and fuse3"
    return None


def unwind_on_sigterm() -> None:
    """From now on SIGTERM ends this program as Ctrl-C does, so that it leaves nothing behind."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def run(
    *command: str | Path, expect: int | None = 0, timeout_s: float = COMMAND_TIMEOUT_S, **more: Any
) -> Result:
    """Run a command to its end; `CommandFailed` shows what it said. `expect` None takes any status."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, **more)
    if expect is not None and result.returncode != expect:
        words = " ".join(map(str, command))
        raise CommandFailed(f"{words}: exit {result.returncode}\n{result.stdout}{result.stderr}".rstrip())
    return result


def mountpoints_below(directory: Path) -> list[Path]:
    """Mountpoints at or below `directory`, the innermost first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    mounted = [Path(line.split()[4].encode().decode("unicode_escape")) for line in lines]
    return sorted((path for path in mounted if path.is_relative_to(directory)), reverse=True)


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Return once `condition` holds. For the world outside, which sends no word when it changes."""
    deadline = time.monotonic() + timeout_s  # noqa: TID251 - the clock of a test, not of the product
    while not condition():
        if time.monotonic() > deadline:  # noqa: TID251
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        select.select([], [], [], POLL_S)


def wait_for_exit(pid: int, timeout_s: float) -> None:
    """Return once the process has ended, whoever its parent is; `TimeoutError` if it has not."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not select.select([descriptor], [], [], timeout_s)[0]:
            raise TimeoutError(f"process {pid} did not end within {timeout_s:g} s")
    finally:
        os.close(descriptor)


def memory_of(pid: int) -> dict[str, int]:
    """Memory of a process in bytes, by the names of /proc/PID/status."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {key: int(fields[key].split()[0]) * 1024 for key in ("VmHWM", "VmRSS", "RssAnon")}


class Namespace:
    """A network namespace; the processes started through `enter` live in it."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        run("ip", "netns", "add", name)
        self.run("ip", "link", "set", "lo", "up")

    def enter(self, command: Sequence[str | Path]) -> list[str | Path]:
        """The command that runs `command` inside, as the same process and in our mount namespace."""
        return ["nsenter", f"--net=/run/netns/{self.name}", *command]

    def run(self, *command: str | Path, **more: Any) -> Result:
        return run(*self.enter(command), **more)

    def pids(self) -> list[int]:
        """Processes inside; none once the namespace is gone."""
        return [int(word) for word in run("ip", "netns", "pids", self.name, expect=None).stdout.split()]

    def remove(self) -> None:
        """Kill whatever still runs inside, and delete the namespace."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            wait_for_exit(pid, COMMAND_TIMEOUT_S)
        run("ip", "netns", "delete", self.name, expect=None)


class Host:
    """One host: a namespace, a volume, a mountpoint, and the mount process while there is one."""

    def __init__(self, name: str, namespace: Namespace, directory: Path, checkout: Path = CHECKOUT) -> None:
        """It runs the code of `checkout`."""
        self.name = name
        self.namespace = namespace
        self.directory = directory
        self.checkout = checkout
        self.volume = directory / "volume"
        self.mountpoint = directory / "mnt"
        self.config_directory = directory / "etc"
        self.runtime_directory = directory / "run"
        self.log_file = directory / "log"
        self.program: tuple[str, ...] = PROGRAM  # what mounts
        self._process: subprocess.Popen[bytes] | None = None
        self._expected_warnings: list[str] = []
        for made in (self.mountpoint, self.config_directory, self.runtime_directory):
            made.mkdir(parents=True)
        self.log_file.touch()

    # --- commands ---------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {
            "FUSEMIRROR_CONFIG_DIR": str(self.config_directory),
            "FUSEMIRROR_RUNTIME_DIR": str(self.runtime_directory),
            "PYTHONPATH": str(self.checkout),
        }

    def run(self, *command: str | Path, **more: Any) -> Result:
        """Run a program on this host, as `run` does."""
        return self.namespace.run(*command, env=self.environment, **more)

    def start(self, *command: str | Path, **more: Any) -> subprocess.Popen[bytes]:
        """Start a program on this host, out of reach of the terminal's signals; the caller waits for it."""
        entered, quiet = self.namespace.enter(command), subprocess.DEVNULL
        return subprocess.Popen(entered, env=self.environment, stdin=quiet, start_new_session=True, **more)

    def fusemirror(self, *arguments: str | Path, **more: Any) -> Result:
        """Run a `fusemirror` command on this host, as `run` does."""
        return self.run(*PROGRAM, *arguments, **more)

    def configure(self, **settings: str | int | float | bool) -> None:
        """Set keys of the config file, as a person would with an editor."""
        path = self.config_directory / f"{FILESYSTEM}.toml"
        document = tomlkit.parse(path.read_text())
        document.update(settings)
        path.write_text(tomlkit.dumps(document))

    # --- the mount process ------------------------------------------------------------------------

    def mount(self, *options: str, timeout_s: float = 30.0) -> None:
        """Mount in a child process whose log goes to `log_file`; it serves on return."""
        assert self._process is None, f"{self.name} is mounted already"
        with self.log_file.open("ab") as log:
            asked = os.environ.get("FUSEMIRROR_TEST_SESSION")  # a whole run on one session with the kernel
            if asked and "-o" not in options:
                options = ("-o", f"session={asked}", *options)
            command = (*self.program, "mount", "-f", *options, FILESYSTEM)
            self._process = self.start(*command, self.mountpoint, stdout=log, stderr=log)
        wait_until(self._serves, timeout_s, f"{self.name}: mount")

    def _serves(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            code, self._process = self._process.returncode, None
            raise CommandFailed(f"{self.name}: mount ended with {code}\n{self.log()[-4000:]}")
        if not self.is_mounted:
            return False
        return self.fusemirror("status", FILESYSTEM, "--json", expect=None).returncode == 0

    @property
    def is_mounted(self) -> bool:
        """Whether there is a mount, be it of a living process or not."""
        return self.mountpoint in mountpoints_below(self.mountpoint)

    @property
    def is_running(self) -> bool:
        """Whether the mount process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The mount process."""
        assert self._process is not None, f"{self.name} is not mounted"
        return self._process.pid

    def umount(self, timeout_s: float = 60.0) -> None:
        """Unmount as a person does; the mount process has ended well on return."""
        try:
            self.fusemirror("umount", self.mountpoint, timeout_s=timeout_s)
        except subprocess.TimeoutExpired:
            print(f"--- {self.name} was not unmounted ---\n{self.where_it_waits()}")
            raise
        self.ended(expect=0)

    def where_it_waits(self) -> str:
        """For people: what the kernel does for the mount process and for each other one that names the
        mountpoint, such as umount(8), and which processes have a copy of the mount.
        """
        place = os.fsencode(self.mountpoint)
        found = [f"it is {'mounted' if self.is_mounted else 'not mounted'}"]
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended
                if place in (process / "cmdline").read_bytes():
                    found += [f"{stack}:\n{stack.read_text()}" for stack in process.glob("task/*/stack")]
                elsewhere = not (process / "ns/mnt").samefile("/proc/self/ns/mnt")
                if elsewhere and place in (process / "mountinfo").read_bytes():
                    found.append(f"{process} has a copy: {(process / 'cmdline').read_bytes()!r}")
        return "\n".join(found)

    def kill(self, number: signal.Signals = signal.SIGKILL, timeout_s: float = 60.0) -> None:
        """Send a signal that ends the mount process, and wait until it has ended."""
        os.kill(self.pid, number)
        self.ended(expect=-signal.SIGKILL if number == signal.SIGKILL else 0, timeout_s=timeout_s)

    def ended(self, expect: int = 0, timeout_s: float = 30.0) -> None:
        """Wait for the end of the mount process that something else brings about, and take its status."""
        assert self._process is not None
        process, self._process = self._process, None
        code = process.wait(timeout_s)
        if code != expect:
            raise CommandFailed(f"{self.name}: the mount process ended with {code}\n{self.log()[-4000:]}")

    def reap(self) -> None:
        """Take the exit status of a mount process that was killed without a word to us."""
        if self._process is not None:
            self._process.wait(COMMAND_TIMEOUT_S)

    def stop(self) -> None:
        """SIGSTOP: the host stalls, and the network still takes what is sent to it."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    # --- what it says -----------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """`fusemirror status --json`."""
        status: dict[str, Any] = json.loads(self.fusemirror("status", FILESYSTEM, "--json").stdout)
        return status

    def wait_for(self, state: str, timeout_s: float = 30.0) -> None:
        """`fusemirror wait --for`: connected, normal or drained."""
        limit = ("--timeout", f"{timeout_s:g}")
        self.fusemirror("wait", FILESYSTEM, "--for", state, *limit, timeout_s=timeout_s + 10)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def expect_warnings(self, pattern: str) -> None:
        """Lines of the log that match are no surprise to `unexpected_warnings`."""
        self._expected_warnings.append(pattern)

    def unexpected_warnings(self) -> list[str]:
        """Lines of the log that are a warning or worse, or begin a traceback, and were not announced."""
        loud = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|^Traceback ")
        return [
            line
            for line in self.log().splitlines()
            if loud.search(line)
            and MIRROR_LOST not in line  # whoever cuts a network or kills a host means it
            and not any(re.search(pattern, line) for pattern in self._expected_warnings)
        ]

    def memory(self) -> dict[str, int]:
        """Memory of the mount process, as `memory_of` has it."""
        return memory_of(self.pid)


class TwoHosts:
    """A pair of hosts, `primary` and `backup`, and the network between them."""

    def __init__(self, directory: Path | None = None, checkout: Path = CHECKOUT) -> None:
        """Everything is kept below a new directory in `directory`, by default that of temporary files.

        Both run the code of `checkout`.
        """
        self._parent = directory
        self._checkout = checkout
        self.directory = Path()

    def __enter__(self) -> Self:
        unwind_on_sigterm()
        self.directory = Path(tempfile.mkdtemp(prefix="fusemirror-", dir=self._parent)).resolve()
        unique = self.directory.name.removeprefix("fusemirror-")
        self._namespaces: list[Namespace] = []
        self._hosts: list[Host] = []
        try:
            self._namespaces = [Namespace(f"fm-{unique}-{n}", f"10.77.89.{n}") for n in (1, 2)]
            self._join()
            first, second = self._namespaces
            self.primary = Host("alpha", first, self.directory / "alpha", self._checkout)
            self.backup = Host("beta", second, self.directory / "beta", self._checkout)
            self._hosts = [self.primary, self.backup]
        except BaseException:
            self._tear_down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tear_down()
        assert not self.leftovers(), f"left behind: {self.leftovers()}"

    @property
    def hosts(self) -> tuple[Host, Host]:
        return self.primary, self.backup

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts)

    def _join(self) -> None:
        first, second = self._namespaces
        ends = ("netns", first.name, "type", "veth", "peer", "veth0", "netns", second.name)
        run("ip", "link", "add", "veth0", *ends)
        for namespace in self._namespaces:
            namespace.run("ip", "address", "add", f"{namespace.address}/24", "dev", "veth0")
            namespace.run("ip", "link", "set", "veth0", "up")

    def _tear_down(self) -> None:
        for mountpoint in mountpoints_below(self.directory):
            run("umount", "--internal-only", "--lazy", mountpoint, expect=None)
        for namespace in self._namespaces:
            namespace.remove()
        for host in self._hosts:
            host.reap()
        # A walk into a mount that is still there would remove what is in it.
        if not mountpoints_below(self.directory):
            shutil.rmtree(self.directory)

    def leftovers(self) -> list[str]:
        """Whatever of ours is still there: mounts, processes, namespaces, directories."""
        names = run("ip", "netns", "list").stdout.split()
        return [
            *(str(path) for path in mountpoints_below(self.directory)),
            *(namespace.name for namespace in self._namespaces if namespace.name in names),
            *([str(self.directory)] if self.directory.exists() else []),
        ]

    # --- the mirrored filesystem ------------------------------------------------------------------

    def create_and_join(self, **settings: str | int | float | bool) -> None:
        """Make the main volume and the subvolume, with these settings on both hosts."""
        join_file = self.directory / f"{FILESYSTEM}.join"
        primary, backup = (f"{namespace.address}:{PORT}" for namespace in self._namespaces)
        self.primary.fusemirror(
            *("create", FILESYSTEM, self.primary.volume, "--listen", primary, "--peer", backup),
            *("--host-name", self.primary.name, "--join-file", join_file),
        )
        self.backup.fusemirror("join", join_file, self.backup.volume, "--host-name", self.backup.name)
        for host in self:
            host.configure(**settings)

    def mount(self, *options: str) -> None:
        """Mount both hosts; the mirror state is normal on return."""
        for host in self:
            host.mount(*options)
        for host in self:
            host.wait_for("normal")

    def umount(self) -> None:
        """Unmount both hosts in good order, the backup first."""
        self.backup.umount()
        self.primary.umount()

    def converge(self) -> None:
        """Mend all that a test broke; both hosts are mounted and their mirror state is normal on return."""
        self.heal()
        for host in self:
            if host.is_running:
                host.resume()
            else:
                host.mount()
        for host in self:
            host.wait_for("normal", timeout_s=60.0)

    def check(self) -> None:
        """The oracle: both volumes are clean and hold the same, by their own word and by an independent look.

        Both hosts are mounted before, and unmounted on return.
        """
        self.primary.fusemirror("verify", FILESYSTEM)
        seen = [snapshot(host.mountpoint) for host in self]
        self.umount()
        with ThreadPoolExecutor(max_workers=2) as pool:
            kept = list(pool.map(_check_and_export, self))
        assert_same(seen[0], seen[1], "the two mounts")
        assert_same(kept[0], kept[1], "the two volumes")
        assert_same(seen[0], kept[0], "mount and volume")

    def unexpected_warnings(self) -> list[str]:
        return [f"{host.name}: {line}" for host in self for line in host.unexpected_warnings()]

    # --- the network ------------------------------------------------------------------------------

    def both_addresses(self, host: Host) -> list[str]:
        """Where a host is found by both networks (`join_again`)."""
        return [f"{host.namespace.address}:{PORT}", f"[fd77:89::{self.hosts.index(host) + 1}]:{PORT}"]

    def join_again(self) -> None:
        """Connect the hosts by a second network, of IPv6."""
        first, second = self._namespaces
        ends = ("netns", first.name, "type", "veth", "peer", "veth1", "netns", second.name)
        run("ip", "link", "add", "veth1", *ends)
        for number, namespace in enumerate(self._namespaces, start=1):
            # Else `cut` would take the address away for good, as a cable that is pulled does not.
            setting = "/proc/sys/net/ipv6/conf/veth1/keep_addr_on_down"
            namespace.run("sh", "-c", f"echo 1 > {setting}")
            namespace.run("ip", "address", "add", f"fd77:89::{number}/64", "dev", "veth1", "nodad")
            namespace.run("ip", "link", "set", "veth1", "up")

    def cut(self, device: str = "veth0") -> None:
        """Unplug the cable: both sides see that the link is down."""
        self._namespaces[0].run("ip", "link", "set", device, "down")

    def drop(self, device: str = "veth0") -> None:
        """Lose every packet without a word, as a broken switch does."""
        for host in self:
            self.drop_from(host, device)

    def drop_from(self, host: Host, device: str = "veth0") -> None:
        """Lose every packet that `host` sends; what is sent to it arrives."""
        host.run("tc", "qdisc", "replace", "dev", device, "root", "blackhole")

    def drop_answers_of(self, host: Host, address: str) -> None:
        """Lose what `host` says, from the port where it listens, to this address of the other: one direction
        of one path."""
        family = "-6" if ":" in address else "-4"
        rule = ("to", address, "ipproto", "tcp", "sport", str(PORT), "blackhole")
        host.run("ip", family, "rule", "add", "pref", "1", *rule)

    def narrow(self, device: str = "veth0") -> None:
        """Lose large packets without a word, as where the MTU is smaller somewhere on the way."""
        for host in self:
            self._limit(host, device, rate="80mbit", burst="900")  # none is larger than a burst

    def slow_down(self, device: str = "veth0") -> None:
        """Send 1 MB/s and no more, so that data is on its way for long."""
        for host in self:
            self._limit(host, device, rate="8mbit", burst="3000")

    def _limit(self, host: Host, device: str, *, rate: str, burst: str) -> None:
        limits = ("rate", rate, "burst", burst, "limit", "1000000")
        host.run("tc", "qdisc", "replace", "dev", device, "root", "tbf", *limits)

    def heal(self) -> None:
        """Undo all these faults."""
        for namespace in self._namespaces:
            for family in ("-4", "-6"):
                namespace.run("ip", family, "rule", "delete", "pref", "1", expect=None)
            for device in ("veth0", "veth1"):
                namespace.run("tc", "qdisc", "delete", "dev", device, "root", expect=None)
                namespace.run("ip", "link", "set", device, "up", expect=None)


def _check_and_export(host: Host) -> "dict[str, Facts]":
    """What a host's volume holds, read without a mount; `CommandFailed` if it is not clean."""
    copy = host.directory / "export"
    host.fusemirror("fsck", host.volume)
    host.fusemirror("export", host.volume, copy)
    kept = snapshot(copy)
    shutil.rmtree(copy)
    return kept


# --- comparing --------------------------------------------------------------------------------------

Facts = tuple[object, ...]


def snapshot(root: Path) -> dict[str, Facts]:
    """What a walk sees below `root`: names, attributes, extended attributes, content."""

    def fail(error: OSError) -> None:
        raise error

    found = {".": _facts(root)}
    for directory, names, files in os.walk(root, onerror=fail):
        for name in names + files:
            path = Path(directory, name)
            found[str(path.relative_to(root))] = _facts(path)
    return found


def _facts(path: Path) -> Facts:
    found = path.lstat()
    is_directory, is_file = stat.S_ISDIR(found.st_mode), stat.S_ISREG(found.st_mode)
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return (
        oct(found.st_mode),
        (found.st_uid, found.st_gid),
        found.st_rdev,
        None if is_directory else (found.st_nlink, found.st_size),
        found.st_mtime_ns,
        [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names],
        path.readlink() if path.is_symlink() else None,
        digest(path) if is_file else None,
    )


def digest(path: Path) -> str:
    """Checksum of a file's content."""
    total = blake2b(digest_size=16)
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            total.update(piece)
    return total.hexdigest()


def assert_same(one: dict[str, Facts], other: dict[str, Facts], what: str) -> None:
    """`AssertionError` that names the first paths in which the snapshots differ."""
    differing = sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))
    shown = "\n".join(f"  {path}: {one.get(path)} | {other.get(path)}" for path in differing[:10])
    assert not differing, f"{what} differ in {len(differing)} paths:\n{shown}"
