"""Places for the commands, and the commands run in this process or as processes of their own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fusemirror import settings
from fusemirror.cli.main import program
from fusemirror.cli.mounts import FSTYPE, our_mounts
from tests.hosts import what_is_missing

CHECKOUT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).with_name("stub.py")
HELPERS = Path("/sbin")

Run = Callable[..., Result]


class Host:
    """The directories of one host, and its commands as processes over the stub of the daemon."""

    def __init__(self, directory: Path) -> None:
        self.config_dir = directory / "etc"
        self.runtime_dir = directory / "run"
        self.mountpoint = directory / "mnt"
        for path in (self.config_dir, self.runtime_dir, self.mountpoint):
            path.mkdir()
        chosen = settings.make(name="data", volume="/nowhere", listen="127.0.0.1:1", peer="127.0.0.1:2")
        (self.config_dir / "data.toml").write_text(settings.render(chosen))

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "FUSEMIRROR_CONFIG_DIR": str(self.config_dir),
            "FUSEMIRROR_RUNTIME_DIR": str(self.runtime_dir),
            "PYTHONPATH": str(CHECKOUT),
        }

    def start(self, *arguments: str, stub: str = "") -> "subprocess.Popen[str]":
        """A command line of the stub: `fusemirror mount ...` or `mount.fusemirror ...`."""
        return subprocess.Popen(
            [sys.executable, "-P", STUB, *arguments],
            env={**self.environment, "STUB": stub},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.mountpoint.parent,
        )

    def run(self, *arguments: str, stub: str = "") -> tuple[int, str]:
        """Its exit code, and what it said on stderr."""
        with self.start(*arguments, stub=stub) as process:
            _, errors = process.communicate(timeout=30)
        return process.returncode, errors

    @property
    def is_mounted(self) -> bool:
        return any(mount.directory == str(self.mountpoint) for mount in our_mounts())


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host that can mount; nothing of it stays mounted."""
    if reason := what_is_missing():
        pytest.skip(reason)
    host = Host(tmp_path)
    yield host
    with suppress(FileNotFoundError):
        (host.runtime_dir / "drain").unlink()
    while host.is_mounted:
        subprocess.run(["umount", "-i", "-l", host.mountpoint], check=True)


@pytest.fixture
def helpers() -> Iterator[None]:
    """mount(8) and umount(8) find our helpers, as long as the test runs."""
    links = [HELPERS / f"{kind}.{name}" for kind in ("mount", "umount") for name in ("fusemirror", FSTYPE)]
    made = [link for link in links if not os.path.lexists(link)]
    for link in made:
        link.symlink_to(CHECKOUT / "bin" / link.name.replace(FSTYPE, "fusemirror"))
    yield
    for link in made:
        link.unlink()


@pytest.fixture
def own_disk() -> Iterator[Callable[[Path], None]]:
    """Moves what a directory holds to a disk of its own, which is mounted there as long as the test runs."""
    if reason := what_is_missing():
        pytest.skip(reason)
    mounted: list[Path] = []

    def move(directory: Path) -> None:
        held = directory.rename(directory.with_name("held"))
        directory.mkdir(mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=0700", "none", directory], check=True)
        mounted.append(directory)
        for path in held.iterdir():
            shutil.move(path, directory)
        held.rmdir()

    yield move
    for directory in mounted:
        subprocess.run(["umount", directory], check=True)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command line in this process, with config and runtime directories of its own."""

    def run_command(*arguments: object) -> Result:
        places = ["--config-dir", str(tmp_path / "etc"), "--runtime-dir", str(tmp_path / "run")]
        return CliRunner().invoke(program, [*places, *map(str, arguments)], prog_name="fusemirror")

    return run_command
