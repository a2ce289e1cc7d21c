"""The mounts of this host: finding them, registering them with libmount, detaching them, who holds them.

mount(8) and umount(8) are called with `-i` (no helpers) for what they know best: the table
/run/mount/utab with its lock. A line there with `helper=fusemirror` makes a plain `umount DIR` call
/sbin/umount.fusemirror, which waits until the data is safe; FUSE by itself would return at once.
"""

import errno
import os
import re
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fusemirror.errors import MountBusy, TimedOut, UnmountFailed

FSTYPE = "fuse.fusemirror"
_MOUNTINFO = Path("/proc/self/mountinfo")
UTAB = Path("/run/mount/utab")
DEAD = "dead:"
"""Begins the source of what stands in for the mount of a killed process, see `dead_mounts.py`."""

RUNTIME_OPTION = "x-fusemirror.runtime-dir"
HOLDERS_LISTED_MAX = 8
PUBLIC_UMASK = 0o022
"""For mount(8) and umount(8), whose tables everybody may read."""


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo."""

    directory: str
    fstype: str
    source: str

    @property
    def name(self) -> str:
        """Of the mirrored filesystem, dead or alive."""
        return self.source.removeprefix(DEAD)


def _unescaped(field: str) -> str:
    r"""The kernel and libmount write white space in a path as \040 and so on."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _mounts_with_roots() -> Iterator[tuple[str, Mount]]:
    """Every mount of this namespace, oldest first, and which directory or file of its filesystem it shows."""
    # Spaces, tabs and newlines are escaped there; a name may hold all else that ends a line of a text.
    for line in os.fsdecode(_MOUNTINFO.read_bytes()).removesuffix("\n").split("\n"):
        before, _, after = line.partition(" - ")
        fstype, source = after.split(" ")[:2]
        root, directory = before.split(" ")[3:5]
        yield root, Mount(_unescaped(directory), fstype, _unescaped(source))


def all_mounts() -> list[Mount]:
    """Every mount of this namespace, oldest first."""
    return [mount for _, mount in _mounts_with_roots()]


def our_mounts(name: str | None = None) -> list[Mount]:
    """Mounts of fusemirror, all or those of one name; not what somebody has bind-mounted out of them."""
    return [
        mount
        for root, mount in _mounts_with_roots()
        if mount.fstype == FSTYPE and root == "/" and name in (None, mount.name)
    ]


def real_path(path: str) -> str:
    """`os.path.realpath`, but it asks nothing of what is mounted there: a stuck mount would not answer."""
    parent, name = os.path.split(path.rstrip("/"))
    if name in ("", ".", "..") or _is_link(path.rstrip("/")):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(parent), name)


def _is_link(path: str) -> bool:
    try:
        os.readlink(path)  # unlike lstat(2), the kernel answers it by itself for what is no link
    except OSError:
        return False
    return True


def mount_at(directory: str) -> Mount | None:
    """What is mounted on a directory, the topmost; its path has no symbolic links."""
    return next((mount for mount in reversed(all_mounts()) if mount.directory == directory), None)


def is_stale(mount: Mount) -> bool:
    """Whether the process that served the mount is gone.

    The attributes of the directory a kernel may have by itself for a while; statfs always asks.
    """
    try:
        os.statvfs(mount.directory)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def table_options(runtime_dir: Path) -> str:
    """What libmount's table says of our mounts: umount(8) calls our helper, and systemd unmounts them before
    it ends the network."""
    return f"helper=fusemirror,_netdev,{RUNTIME_OPTION}={runtime_dir}"


def register(mount: Mount, runtime_dir: Path) -> subprocess.Popen[bytes]:
    """Tell libmount about a new mount. The process returned ends soon by itself; failing does no harm.

    In the process that serves the mount, waiting for it would be waiting for oneself.
    """
    options = table_options(runtime_dir)
    return subprocess.Popen(
        ["mount", "-i", "-f", "-c", "-t", FSTYPE, "-o", options, mount.source, mount.directory],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        umask=PUBLIC_UMASK,
    )


def registered_runtime_dir(directory: str) -> Path | None:
    """Where the socket of a mount's process is, as `register` noted it."""
    runtime_dir = options_in_the_table(directory).get(RUNTIME_OPTION)
    return Path(runtime_dir) if runtime_dir else None


def options_in_the_table(directory: str) -> dict[str, str]:
    """What libmount's table says of the mount on a directory; nothing where it is not in it."""
    try:
        lines = UTAB.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        fields = dict(field.partition("=")[::2] for field in line.split(" "))
        if _unescaped(fields.get("TARGET", "")) == directory:
            return dict(
                option.partition("=")[::2] for option in _unescaped(fields.get("OPTS", "")).split(",")
            )
    return {}


def detach(directory: str, *, force: bool = False, lazy: bool = False) -> None:
    """Take a mount out of the tree. MountBusy names the holders; UnmountFailed says why else.

    `lazy`: even while it is in use. `force`: requests that wait for an answer fail, too.
    """
    if os.geteuid() == 0:
        flags = ["-f"] * force + ["-l"] * (force or lazy)
        command = ["umount", "-i", "-c", *flags, directory]
    else:
        command = ["fusermount3", "-u", *["-z"] * (force or lazy), directory]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",  # it names the directory
        umask=PUBLIC_UMASK,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode == 0:
        return
    if done.stderr.rstrip().rstrip(".").endswith("busy"):
        raise MountBusy(directory, ", ".join(holders(directory)) or "a process that cannot be seen from here")
    raise UnmountFailed(done.stderr.strip() or f"{command[0]} failed with {done.returncode}")


def holders(directory: str) -> list[str]:
    """Who keeps a mount busy, for people. Asks nothing of the mount, so that a stuck one is no trouble."""
    found = [f"a mount on {mount.directory}" for mount in all_mounts() if _inside(mount.directory, directory)]
    found += [
        f"/dev/{loop.parts[3]}"
        for loop in Path("/sys/block").glob("loop*/loop/backing_file")
        if _inside(_text_of(loop), directory)
    ]
    found += [
        f"{_text_of(process / 'comm')} (process {process.name})"
        for process in Path("/proc").glob("[0-9]*")
        if any(path == directory or _inside(path, directory) for path in _paths_of(process))
    ]
    return found[:HOLDERS_LISTED_MAX]


def _inside(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")


def _text_of(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape").strip()
    except OSError:  # it ended meanwhile
        return ""


def _paths_of(process: Path) -> Iterator[str]:
    """Every path that a process has open, mapped, or stands in."""
    try:
        for link in (process / "cwd", process / "root", *(process / "fd").iterdir()):
            yield os.readlink(link)
    except OSError:
        pass
    for line in _text_of(process / "maps").splitlines():
        yield _unescaped(line.partition("/")[1] + line.partition("/")[2])


class Process:
    """A mount process to wait for; a number used again by another process is not mistaken for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._descriptor: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._descriptor = None

    def wait(self, timeout_s: float | None) -> bool:
        """Whether the process has ended within the time; None is for as long as it takes."""
        if self._descriptor is None:
            return True
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))

    def wait_until_safe(self, timeout_s: float) -> None:
        """Return when the process has ended: its data is then safe. TimedOut."""
        if not self.wait(timeout_s):
            raise TimedOut(timeout_s, f"process {self.pid} is still bringing data to safety, and goes on")
