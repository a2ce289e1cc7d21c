"""Many processes on both hosts, on the same few names: no hang, no odd errno, and both hosts the same."""

import os
import sys
import time
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from tests.hosts import CHECKOUT, TwoHosts, wait_until

SECONDS = float(os.environ.get("FUSEMIRROR_HAMMER_SECONDS", "8"))
PROCESSES = 8  # on each host
CALL_S = 60.0  # longer than any call may take


class Hammerer:
    """One process on one host, and what it said at its end."""

    def __init__(self, hosts: TwoHosts, number: int, seed: int, *options: str) -> None:
        host = hosts.hosts[number % 2]
        self._host = host
        self._hangs = ""
        self._began = time.time()  # noqa: TID251
        self.name = f"{host.name}-{number}"
        self._progress: Path = host.directory / f"hammer-{number}"
        arguments: tuple[str | Path, ...] = (
            host.mountpoint,
            str(seed + number),
            str(SECONDS),
            self._progress,
            *options,
        )
        module = (sys.executable, "-m", "tests.mount.hammering")
        self._process: Popen[bytes] = host.start(*module, *arguments, stdout=PIPE, stderr=PIPE, cwd=CHECKOUT)

    @property
    def ended(self) -> bool:
        """True too once it was killed because a call took longer than `CALL_S`."""
        if self._process.poll() is None and time.time() - self._progress_time > CALL_S:  # noqa: TID251
            self._hangs = f"hangs in: {self._progress.read_text().strip()}\n{self._where()}"
            self._process.kill()
        return bool(self._hangs) or self._process.poll() is not None

    @property
    def _progress_time(self) -> float:
        """When its last call began."""
        return self._progress.stat().st_mtime if self._progress.exists() else self._began

    def _where(self) -> str:
        """What the kernel does for it, and for the process that serves its host."""
        processes = (self._process.pid, self._host.pid)
        stacks = [stack for pid in processes for stack in Path(f"/proc/{pid}/task").glob("*/stack")]
        return "\n".join(f"{stack}:\n{stack.read_text()}" for stack in stacks)

    def outcome(self) -> tuple[str, list[str]]:
        """What it did, and surprises; a hang is one, with the call that hangs."""
        if self._hangs:
            return "", [self._hangs]
        out, errors = self._process.communicate()
        *surprises, last = out.decode().splitlines() or [errors.decode()]
        if self._process.returncode:
            return "", [*surprises, errors.decode()]
        return last, surprises


@pytest.mark.parametrize("options", [(), ("moves",)], ids=["directories stay", "directories move"])
def test_hammered_on_the_same_names_both_hosts_stay_the_same(
    hosts: TwoHosts, seed: int, options: tuple[str, ...]
) -> None:
    hammerers = [Hammerer(hosts, number, seed, *options) for number in range(2 * PROCESSES)]

    def ended() -> bool:
        return not [hammerer for hammerer in hammerers if not hammerer.ended]

    wait_until(ended, SECONDS + 2 * CALL_S, "the end of the hammering")
    outcomes = {hammerer.name: hammerer.outcome() for hammerer in hammerers}
    surprises = [f"{name}: {what}" for name, (_, found) in outcomes.items() for what in found]
    assert not surprises, "\n".join(surprises[:50])
    print({name: done for name, (done, _) in outcomes.items()})
    assert all("calls" in done for done, _ in outcomes.values())
    for host in hosts:  # all of one host's together: on a loaded machine a single process may get to none
        assert any(
            " 0 mappings" not in done for name, (done, _) in outcomes.items() if name.startswith(host.name)
        )
