"""The systems that are measured against each other, each mounted and ready while its context lasts."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import Popen

from fusemirror.keys import CERTIFICATE, KEY, make_key_pair
from fusemirror.settings import KernelSession
from tests.hosts import CHECKOUT, PORT, Host, Namespace, Result, TwoHosts, mountpoints_below, run, wait_until

GLUSTER_ADDRESS = "10.77.90.1"
START_TIMEOUT_S = 30.0
_ON_CORE = ("taskset", "--cpu-list")


Enter = Callable[[Sequence[str | Path]], list[str | Path]]
"""Makes of a command the one that runs it where a system is visible."""


@dataclass(frozen=True)
class System:
    """Something mounted. Jobs work in `directory`; `enter` leads to where that is. `other_directory` is the
    same on the other host, where there is one, and `other_pids` are the processes there."""

    name: str
    directory: Path
    pids: Callable[[], list[int]]
    enter: Enter = list
    other_directory: Path | None = None
    other_pids: Callable[[], list[int]] = list

    def run(self, *command: str | Path) -> Result:
        """Run a program that works on the system."""
        return run(*self.enter(command), timeout_s=600.0)


@contextmanager
def fusemirror(directory: Path, session: KernelSession | None = None) -> Iterator[tuple[System, System]]:
    """Two mounted hosts in `sync` mode: the system seen from the primary, and from the backup.

    Without TLS, as the others come; `--modes` measures what that takes. With a `session` that is not the
    default the names of the systems end with it.
    """
    options = () if session is None else ("-o", f"session={session}")
    ending = "" if session is None else f"-{session}"
    with TwoHosts(directory) as hosts:
        hosts.create_and_join(tls=False)
        hosts.mount(*options)
        yield (
            seen_from(hosts.primary, hosts.backup, f"primary{ending}"),
            seen_from(hosts.backup, hosts.primary, f"backup{ending}"),
        )
        hosts.umount()
        for warning in hosts.unexpected_warnings():
            print(f"bench: {warning}", file=sys.stderr)


def seen_from(host: Host, other: Host, name: str) -> System:
    """The mount of a host as a system, with a directory of its own."""
    work = host.mountpoint / name
    work.mkdir()
    return System(
        name,
        work,
        lambda: [host.pid],
        other_directory=other.mountpoint / name,
        other_pids=lambda: [other.pid],
    )


def pinned(system: System) -> System:
    """The same with its processes on the first core, where programs that use it run too, and those of the
    other host on the second. Else a figure moves by half with where the scheduler puts two hosts."""
    here, there = sorted(os.sched_getaffinity(0))[:2]
    for pids, core in ((system.pids(), here), (system.other_pids(), there)):
        for pid in pids:
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), {core})
    return replace(system, enter=lambda command: [*_ON_CORE, str(here), *system.enter(command)])


def listens(host: Host, address: str) -> bool:
    """Whether a process of the host listens on an address and port."""
    found = host.run("ss", "--no-header", "--listening", "--tcp", "--numeric")
    return address in found.stdout


@contextmanager
def passthrough(directory: Path, *, own_session: bool) -> Iterator[System]:
    """`passthrough.py` over a directory of the same disk, served by our own session or by pyfuse3's loop."""
    name, arguments = ("passthrough-own", ["own-session"]) if own_session else ("passthrough", [])
    program = (sys.executable, "-m", "tests.bench.passthrough")
    with _mounted(name, directory, arguments, program=program) as system:
        yield system


@contextmanager
def bare_mirror(directory: Path, *, tls: bool, here_first: bool = False) -> Iterator[System]:
    """`bare_mirror.py`, over TLS or not; over TLS it may write here before it sends."""
    program, keys = (sys.executable, "-m", "tests.bench.bare_mirror"), []
    if tls:
        pair = make_key_pair("bare-mirror")
        (directory / CERTIFICATE).write_text(pair.certificate)
        (directory / KEY).write_text(pair.key)
        keys = [str(directory), *(["here-first"] if here_first else [])]
    name = "bare-mirror" + ("-tls" if tls else "") + ("-here-first" if here_first else "")
    with _mirror(name, directory, program, lambda address: [f"{address}:{PORT}", *keys]) as system:
        yield system


def limit_is_missing() -> str | None:
    """Why `limit.c` cannot be built here, in a few words, or None."""
    for program in ("gcc", "pkg-config"):
        if shutil.which(program) is None:
            return f"no {program}"
    found = run("pkg-config", "--exists", "fuse3", expect=None).returncode == 0
    return None if found else "no headers of libfuse 3"


def limit_program(directory: Path) -> Path:
    """Build `limit.c` into a directory."""
    program = directory / "limit-program"
    flags = run("pkg-config", "--cflags", "--libs", "fuse3").stdout.split()
    warnings = ("-Wall", "-Wextra", "-Werror")
    run("gcc", "-O2", *warnings, Path(__file__).with_name("limit.c"), *flags, "-o", program)
    return program


@contextmanager
def limit(directory: Path) -> Iterator[System]:
    """The mirror in C."""
    program = limit_program(directory)
    with _mirror("limit", directory, (program,), lambda address: [address, str(PORT)]) as system:
        yield system


@contextmanager
def _mirror(
    name: str, directory: Path, program: Sequence[str | Path], where: Callable[[str], list[str]]
) -> Iterator[System]:
    """Two processes of a program on two hosts that are joined as fusemirror's are: one mounts, and the other
    keeps copies. `where` is what it takes of the address of that."""
    copies = directory / f"{name}-copies"
    copies.mkdir()
    with TwoHosts(directory) as hosts:
        address = hosts.backup.namespace.address
        serving = hosts.backup.namespace.enter([*program, "--serve", copies, *where(address)])
        there = Popen(serving, cwd=CHECKOUT)
        try:
            wait_until(lambda: listens(hosts.backup, f":{PORT}"), START_TIMEOUT_S, f"{name}: peer")
            enter = hosts.primary.namespace.enter
            with _mounted(name, directory, where(address), enter, program=program) as system:
                yield replace(system, other_pids=lambda: [there.pid])
        finally:
            there.kill()
            there.wait(START_TIMEOUT_S)
    shutil.rmtree(copies)


@contextmanager
def _mounted(
    name: str,
    directory: Path,
    arguments: Sequence[str],
    enter: Enter = list,
    *,
    program: Sequence[str | Path],
) -> Iterator[System]:
    """A program of this directory that mounts, over a directory of the same disk."""
    source, mountpoint = directory / f"{name}-source", directory / name
    source.mkdir()
    mountpoint.mkdir()
    process = Popen(enter([*program, source, mountpoint, *arguments]), cwd=CHECKOUT)
    try:
        wait_until(lambda: bool(mountpoints_below(mountpoint)), START_TIMEOUT_S, f"{name}: mount")
        yield System(name, mountpoint, lambda: [process.pid])
    finally:
        run("umount", "--lazy", mountpoint, expect=None)
        process.send_signal(signal.SIGTERM)
        process.wait(START_TIMEOUT_S)
        shutil.rmtree(source)


NO_WRITE_BEHIND = {"write-behind": "off"}
STRICT = dict.fromkeys(
    ("write-behind", "io-cache", "quick-read", "read-ahead", "readdir-ahead", "open-behind", "stat-prefetch"),
    "off",
)
STRICT_MOUNT = ("--attribute-timeout=0", "--entry-timeout=0", "--direct-io-mode=enable")
"""GlusterFS with the promise of fusemirror: what one host was told, the other sees at once."""


@contextmanager
def glusterfs(
    directory: Path, name: str, settings: Mapping[str, str] = {}, options: Sequence[str] = ()
) -> Iterator[System]:
    """GlusterFS with two replicas on one host, all of it in namespaces of its own.

    Without `settings` (of its volume, in the group "performance") and `options` (of its mount) as it
    comes. That is with "write-behind": it reports the success of a small write before any brick has it,
    until fsync or close. And names, attributes and pages stay in the kernel for a second, and attributes
    and small files in the client, whatever the other host does meanwhile.

    Its daemons listen on an address that only they have, and the directories that are built into
    them are covered by temporary ones, so an installed GlusterFS is left as it was. Mounts end with
    the mount namespace, processes with the network namespace.
    """
    base = directory / name
    for part in ("run/gluster", "log", "work", "brick1", "brick2", "mnt"):
        (base / part).mkdir(parents=True)
    namespace = Namespace(f"fm-{directory.name.removeprefix('fusemirror-')}-{name}", GLUSTER_ADDRESS)
    try:
        namespace.run("ip", "address", "add", f"{GLUSTER_ADDRESS}/32", "dev", "lo")
        enter = _private_mounts(namespace, base)
        _start_volume(enter, base, settings, options)
        yield System(name, base / "mnt", namespace.pids, enter)
        _gluster(enter, "volume", "stop", "bench", "force")
        _gluster(enter, "volume", "delete", "bench")
    finally:
        namespace.remove()
        shutil.rmtree(base)


def _private_mounts(namespace: Namespace, base: Path) -> Enter:
    """Start the process that keeps a mount namespace alive; returns the way into it."""
    covered = {"run": "/run", "log": "/var/log/glusterfs", "work": "/var/lib/glusterd"}
    binds = " && ".join(f"mount --bind {base / name} {place}" for name, place in covered.items())
    script = f"mkdir -p {' '.join(covered.values())} && {binds} && touch {base}/ready && exec sleep infinity"
    holder = Popen(namespace.enter(["unshare", "--mount", "--propagation", "private", "sh", "-c", script]))
    wait_until((base / "ready").exists, START_TIMEOUT_S, "glusterfs: namespaces")
    mounts = f"--mount=/proc/{holder.pid}/ns/mnt"
    return lambda command: ["nsenter", f"--net=/run/netns/{namespace.name}", mounts, *command]


def _start_volume(enter: Enter, base: Path, settings: Mapping[str, str], options: Sequence[str]) -> None:
    run(*enter(["glusterd", f"--pid-file={base}/glusterd.pid"]))

    def answers() -> bool:
        return _gluster(enter, "volume", "list", expect=None).returncode == 0

    wait_until(answers, START_TIMEOUT_S, "glusterfs: glusterd")
    bricks = [f"{GLUSTER_ADDRESS}:{base / name}" for name in ("brick1", "brick2")]
    _gluster(enter, "volume", "create", "bench", "replica", "2", *bricks, "force")
    for key, value in settings.items():
        _gluster(enter, "volume", "set", "bench", f"performance.{key}", value)
    _gluster(enter, "volume", "start", "bench")
    server = (f"--volfile-server={GLUSTER_ADDRESS}", "--volfile-id=bench")
    run(*enter(["glusterfs", *server, *options, base / "mnt"]))
    # The client answers as soon as one brick does; measured are writes to both.
    probe = base / "mnt" / "probe"
    run(*enter(["touch", probe]))
    wait_until((base / "brick1" / "probe").exists, START_TIMEOUT_S, "glusterfs: first brick")
    wait_until((base / "brick2" / "probe").exists, START_TIMEOUT_S, "glusterfs: second brick")
    run(*enter(["rm", probe]))


def _gluster(enter: Enter, *arguments: str, expect: int | None = 0) -> Result:
    return run(*enter(["gluster", "--mode=script", *arguments]), expect=expect)
