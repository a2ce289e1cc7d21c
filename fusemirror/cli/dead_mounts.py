"""What becomes of a mount whose process was killed: it answers ENOTCONN until it is mounted again.

The kernel keeps such a mount in its table under the name of the filesystem, where mount(8) takes it for one
that is there: `mount -a` would say "already mounted" for ever. So a watcher puts another mount in its place,
as dead as the first but with another source (`dead:NAME`). Programs get errors as before, and never write
into the directory below; `mount -a`, `fusemirror mount` and mount(8) mount anew.

The watcher is a fork of the mount process that does nothing but wait for its end. Who keeps a mount in the
foreground, as systemd does, sees that end by himself, and mounts anew.

**A killed process that does not end.** A thread that takes pages back may wait in the kernel for a page that
a program reads just then. Nobody answers that read any more, but as long as the thread is there the
process has its descriptor of the mount, and the kernel takes it for served: thread, program and whoever waits
for the process would wait for ever. So the watcher hears of the end of the main thread, with any kind
of mount, and has the kernel fail all requests of a process that is not gone a little later.
"""

import ctypes
import errno
import fcntl
import logging
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fusemirror.cli.mounts import (
    DEAD,
    FSTYPE,
    PUBLIC_UMASK,
    Mount,
    Process,
    detach,
    is_stale,
    mount_at,
    table_options,
)
from fusemirror.errors import FusemirrorError, MountFailed
from fusemirror.volume.beneath import open_plain

FUSE_DEVICE = Path("/dev/fuse")
THREADS_END_S = 1.0
"""After the end of the main thread; a thread that is in a system call of the disk may take longer, and is
waited for all the same."""
_MNT_FORCE = 1  # umount(2)
_PR_SET_PDEATHSIG = 1  # prctl(2)
_ENDED = ("Z", "X")  # proc(5)

_libc = ctypes.CDLL(None, use_errno=True)

logger = logging.getLogger(__name__)


@contextmanager
def clearing(runtime_dir: Path, name: str) -> Iterator[None]:
    """While this lasts nobody else takes a dead mount of `name` away: by then it might be a new one."""
    descriptor = open_plain(runtime_dir / f"{name}.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def clear(target: Mount, runtime_dir: Path) -> None:
    """On return nothing of ours is mounted there. MountFailed where that lives; what `detach` raises."""
    with clearing(runtime_dir, target.name):
        there = mount_at(target.directory)
        if there is not None and there.fstype == FSTYPE:
            if not is_stale(there):
                raise MountFailed(f"{there.source} is mounted on {there.directory} already")
            detach(there.directory, lazy=True)


def start_watcher(
    target: Mount, runtime_dir: Path, closing: Sequence[int] = (), *, in_foreground: bool = False
) -> None:
    """Fork the watcher of this process, which is about to mount. It lets go of the terminal and `closing`.

    Call it in the main thread. `in_foreground`: a dead mount stays as it is.
    """
    serving = Process(os.getpid())
    if os.fork() != 0:
        return
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        for descriptor in closing:
            os.close(descriptor)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # a terminal's, and systemd's, for all
            signal.signal(number, signal.SIG_IGN)
        _wait_until_ended(serving, target)
        if in_foreground:
            return
        # On an error the dead mount stays as it is, and `fusemirror mount` clears it.
        with suppress(FusemirrorError, OSError):
            if replace_dead(target, runtime_dir):
                logger.error(
                    "the mount process %d was killed; %s gives errors until it is mounted again",
                    serving.pid,
                    target.directory,
                )
    finally:
        os._exit(0)


def _wait_until_ended(serving: Process, target: Mount) -> None:
    """Return when all threads of the process that forked this one have ended; none waits for a dead mount."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)  # it comes when the thread that forked us has ended
    if os.getppid() == serving.pid:
        signal.sigwait({signal.SIGUSR1})
        # Anybody may have sent it; and the kernel sends it a moment before it calls the thread ended.
        while _main_thread_lives(serving.pid) and not serving.wait(THREADS_END_S):
            pass
    # What is left of it keeps its volume locked, so nobody else has mounted there meanwhile.
    if not serving.wait(THREADS_END_S):
        try:
            fail_requests(target)
        except OSError as error:
            logger.error(
                "the mount process %d was killed and may not end: %s; run `umount -f %s`",
                serving.pid,
                error,
                target.directory,
            )
    serving.wait(None)


def _main_thread_lives(pid: int) -> bool:
    """Whether the main thread of a process has not ended; others of its threads may live on."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="surrogateescape")
    except (FileNotFoundError, ProcessLookupError):
        return False
    state = status.rpartition(")")[2].split()[0]  # behind a name that may hold anything
    return state not in _ENDED


def fail_requests(target: Mount) -> None:
    """The kernel fails what waits for an answer of this mount, and whatever is asked of it later; it stays
    mounted. Nothing where it is not mounted. OSError."""
    # In use it stays where it is; and to open it so, or to look for it, asks nobody.
    descriptor = os.open(target.directory, os.O_PATH | os.O_DIRECTORY)
    try:
        if mount_at(target.directory) != target:
            return
        if _libc.umount2(os.fsencode(target.directory), _MNT_FORCE) != 0:
            number = ctypes.get_errno()
            if number != errno.EBUSY:
                raise OSError(number, os.strerror(number), target.directory)
    finally:
        os.close(descriptor)


def replace_dead(target: Mount, runtime_dir: Path) -> bool:
    """Put a mount with another source in the place of a dead one; False where there is none.

    UnmountFailed, MountFailed, OSError.
    """
    with clearing(runtime_dir, target.name):
        there = mount_at(target.directory)
        if there != target or not is_stale(there):
            return False
        descriptor = os.open(FUSE_DEVICE, os.O_RDWR)
        try:
            detach(target.directory, lazy=True)
            _mount_unserved(target, descriptor, runtime_dir)
        finally:
            os.close(descriptor)  # from now on the kernel answers for it, with ENOTCONN
        return True


def _mount_unserved(target: Mount, descriptor: int, runtime_dir: Path) -> None:
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,allow_other,nosuid,nodev"
    # A newer mount(8) does not pass on what stands behind the dot of a type.
    options += f",subtype=fusemirror,{table_options(runtime_dir)}"
    done = subprocess.run(
        ["mount", "-i", "-c", "-t", "fuse", "-o", options, DEAD + target.source, target.directory],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        umask=PUBLIC_UMASK,
        pass_fds=[descriptor],
        check=False,
    )
    if done.returncode != 0:
        raise MountFailed(done.stderr.strip())
