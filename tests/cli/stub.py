"""The commands over a nearly empty filesystem in place of the daemon: what forks, registers and waits, alone.

    python stub.py fusemirror|mount.fusemirror ARGUMENTS

STUB says how the daemon behaves: `refuse`, `killed` or `bug` before it serves; otherwise it serves, as a
backup without its primary, with requests that it keeps where STUB is `keeps`, with a file that it takes
back from the kernel while it is read, and never answers for, where STUB is `stuck`, and
after the unmount reads RUNTIME_DIR/drain to its end, if that is there, before it writes `drained` and ends.
"""

import errno
import json
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from fusemirror.errors import VolumeInUse
from fusemirror.settings import MountOptions, Settings

FILE = 3  # an inode


def run(
    settings: Settings,
    _keys: Path,
    mountpoint: str,
    options: MountOptions,
    runtime_dir: Path,
    ready: Callable[[], None],
    _reread: Callable[[], Settings],
    _keep: Callable[[dict[str, Any]], object],
) -> int:
    """Stands in for `fusemirror.daemon.run`."""
    match os.environ.get("STUB"):
        case "refuse":
            raise VolumeInUse(settings.volume, 12)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "bug":
            raise KeyError("a bug")
    socket_path = runtime_dir / f"{settings.name}.sock"
    socket_path.unlink(missing_ok=True)
    kept = 3 if os.environ.get("STUB") == "keeps" else 0
    status = {
        "mountpoint": mountpoint,
        "pid": os.getpid(),
        "role": "backup",
        "peer": {"connected": False},
        "communication": {"pending_requests": kept, "pending_bytes": kept * 1024},
    }
    _answer_commands(socket_path, status)
    _serve_kernel(mountpoint, options, ready)
    drain = runtime_dir / "drain"
    if drain.exists():
        drain.read_bytes()
    (runtime_dir / "drained").touch()
    socket_path.unlink()
    return 0


def _answer_commands(path: Path, status: dict[str, Any]) -> None:
    import socket

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def answer() -> None:
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb") as stream:
                if stream.readline():
                    stream.write(json.dumps({"ok": True, "result": status}).encode() + b"\n")

    threading.Thread(target=answer, daemon=True).start()


def _serve_kernel(mountpoint: str, options: MountOptions, ready: Callable[[], None]) -> None:
    import pyfuse3
    import trio

    class Nearly(pyfuse3.Operations):
        async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
            attributes = pyfuse3.EntryAttributes()
            attributes.st_ino = inode
            attributes.st_mode = stat.S_IFREG | 0o644 if inode == FILE else stat.S_IFDIR | 0o755
            attributes.st_size = 1 if inode == FILE else 0
            attributes.st_nlink = 2
            return attributes

        async def lookup(self, parent: int, name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
            if name == b"file" and os.environ.get("STUB") == "stuck":
                return await self.getattr(FILE)
            if name != b"inside":
                raise pyfuse3.FUSEError(errno.ENOENT)
            return await self.getattr(2)

        async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
            return pyfuse3.FileInfo(fh=inode)

        async def read(self, fh: int, offset: int, size: int) -> bytes:
            await trio.to_thread.run_sync(pyfuse3.invalidate_inode, fh)  # it waits for the page that is read
            return bytes(size)

        async def opendir(self, inode: int, ctx: object) -> int:
            return inode

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            ready()

    pyfuse3.init(Nearly(), mountpoint, set(options.fuse))
    trio.run(main)
    pyfuse3.close(unmount=False)


if __name__ == "__main__":
    import fusemirror
    from fusemirror.cli import main, mount_helper

    daemon = ModuleType("fusemirror.daemon")
    daemon.run = run  # type: ignore[attr-defined]
    fusemirror.daemon = daemon
    sys.modules["fusemirror.daemon"] = daemon
    if sys.argv.pop(1) == "mount.fusemirror":
        mount_helper.main()
    main.main()
