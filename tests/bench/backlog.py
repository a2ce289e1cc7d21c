"""A backlog of the backup against its memory: `python -m tests.bench.backlog --gib 10 DIRECTORY`.

The primary is stopped, a program at the backup writes that much, acknowledged early; the primary goes on, and
gets it. The memory of the backup's real mount process is read from /proc all the time. Not a part of CI: it
takes minutes, and twice that much disk.
"""

import argparse
import threading
import time
from pathlib import Path

from tests.hosts import FILESYSTEM, TwoHosts, wait_until

MIB = 1 << 20
_PATIENCE_S = 3000.0


class Watch:
    """The most memory that a process has had, looked at twenty times a second."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.most: dict[str, int] = {}

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.05):
            for line in self._status.read_text().splitlines():
                key, _, value = line.partition(":")
                if key in ("VmRSS", "RssAnon", "RssFile"):
                    self.most[key] = max(self.most.get(key, 0), int(value.split()[0]) * 1024)

    def __str__(self) -> str:
        return ", ".join(f"{key} {value / MIB:.0f} MiB" for key, value in self.most.items())


def measure(size_bytes: int, memory_bytes: int, kind: str, directory: Path) -> None:
    with TwoHosts(directory) as hosts:
        hosts.create_and_join(
            acknowledge="async",
            communication=kind,
            communication_capacity=2 * size_bytes,
            communication_memory=memory_bytes,
            io_timeout=600,
            peer_timeout=300,
        )
        hosts.mount()
        backup, path = hosts.backup, hosts.backup.mountpoint / "file"
        path.touch()
        with Watch(backup.pid) as watch:
            hosts.primary.stop()
            began = time.monotonic()  # noqa: TID251
            count = size_bytes // MIB
            with backup.start(
                "dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={count}", "conv=notrunc"
            ) as dd:
                wait_until(
                    lambda: backup.status()["communication"]["pending_bytes"] == count * MIB,
                    _PATIENCE_S,
                    "all of it in the communication volume",
                )
                status = backup.status()["communication"]
                took_s = time.monotonic() - began  # noqa: TID251
                print(f"{kind}: a backlog of {count / 1024:g} GiB after {took_s:.0f} s: {watch}", flush=True)
                print(f"  {status}")
                hosts.primary.resume()
                began = time.monotonic()  # noqa: TID251
                assert dd.wait(_PATIENCE_S) == 0
            backup.fusemirror(
                *("wait", FILESYSTEM, "--for", "drained", "--timeout", "3000"), timeout_s=_PATIENCE_S
            )
            took_s = time.monotonic() - began  # noqa: TID251
            print(f"  at the primary after {took_s:.0f} s more: {watch}")
        print(f"  {backup.status()['communication']}")
        for host in hosts:
            assert (host.mountpoint / "file").stat().st_size == size_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=10.0)
    parser.add_argument("--memory-mib", type=int, default=64)
    parser.add_argument("--kind", choices=("lmdb", "subvolume"), default="lmdb")
    parser.add_argument("directory", type=Path, help="where the volumes are; it must not be there")
    options = parser.parse_args()
    options.directory.mkdir()
    measure(int(options.gib * 1024) * MIB, options.memory_mib * MIB, options.kind, options.directory)


if __name__ == "__main__":
    main()
