"""A real etcd of our own, with its data in a directory that the test gives."""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.hosts import wait_until

CLIENT_PORT = 23790
_START_S = 30.0

Command = Sequence[str | Path]


def is_there() -> bool:
    return shutil.which("etcd") is not None


@contextmanager
def etcd(
    directory: Path,
    *,
    address: str = "127.0.0.1",
    port: int = CLIENT_PORT,
    enter: Callable[[Command], Command] = lambda command: command,
) -> Iterator[str]:
    """The endpoint of an etcd that answers; it has ended on leaving. `enter` puts it into a namespace."""
    clients, peers = f"http://{address}:{port}", f"http://127.0.0.1:{port + 1}"
    options = {
        "--name": "witness",
        "--data-dir": str(directory),
        "--listen-client-urls": f"http://0.0.0.0:{port}",
        "--advertise-client-urls": clients,
        "--listen-peer-urls": peers,
        "--initial-advertise-peer-urls": peers,
        "--initial-cluster": f"witness={peers}",
    }
    command = enter(["etcd", *(word for option in options.items() for word in option)])
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            health = enter(["python3", "-c", _HEALTH, f"{clients}/health"])
            wait_until(
                lambda: subprocess.run(health, capture_output=True, check=False).returncode == 0,
                _START_S,
                "etcd answers",
            )
            yield clients
        finally:
            process.kill()


_HEALTH = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)"
