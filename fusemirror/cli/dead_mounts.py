"""What becomes of a mount whose process was killed: it answers ENOTCONN until it is mounted again.

The kernel keeps such a mount in its table under the name of the filesystem, where mount(8) takes it for one
that is there: `mount -a` would say "already mounted" for ever. So a watcher puts another mount in its place,
as dead as the first but with another source (`dead:NAME`). Programs get errors as before, and never write
into the directory below; `mount -a`, `fusemirror mount` and mount(8) mount anew.

The watcher is a fork of the mount process that does nothing but wait for its end. Who keeps a mount in the
foreground, as systemd does, watches by himself.
"""

import fcntl
import logging
import os
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


def start_watcher(target: Mount, runtime_dir: Path, closing: Sequence[int]) -> None:
    """Fork the watcher of this process, which is about to mount. It lets go of the terminal and `closing`."""
    serving = Process(os.getpid())
    if os.fork() != 0:
        return
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        for descriptor in closing:
            os.close(descriptor)
        serving.wait(None)
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
        umask=PUBLIC_UMASK,
        pass_fds=[descriptor],
        check=False,
    )
    if done.returncode != 0:
        raise MountFailed(done.stderr.strip())
