"""Many processes on both hosts, on the same few names: no hang, no odd errno, and both hosts the same."""

import os
import sys
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired

import pytest

from tests.hosts import CHECKOUT, TwoHosts

SECONDS = float(os.environ.get("FUSEMIRROR_HAMMER_SECONDS", "8"))
PROCESSES = 8  # on each host
HANG_S = 60.0


class Hammerer:
    """One process on one host, and what it said at its end."""

    def __init__(self, hosts: TwoHosts, number: int, seed: int, *options: str) -> None:
        host = hosts.hosts[number % 2]
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

    def outcome(self) -> tuple[int, list[str]]:
        """Calls made, and surprises; a hang is one, with the call that hangs."""
        try:
            out, errors = self._process.communicate(timeout=SECONDS + HANG_S)
        except TimeoutExpired:
            call = self._progress.read_text().strip()
            self._process.kill()
            self._process.communicate()
            return 0, [f"hangs in: {call}"]
        *surprises, last = out.decode().splitlines() or [errors.decode()]
        if self._process.returncode:
            return 0, [*surprises, errors.decode()]
        return int(last.split()[0]), surprises


@pytest.mark.parametrize("options", [(), ("moves",)], ids=["directories stay", "directories move"])
def test_hammered_on_the_same_names_both_hosts_stay_the_same(
    hosts: TwoHosts, seed: int, options: tuple[str, ...]
) -> None:
    hammerers = [Hammerer(hosts, number, seed, *options) for number in range(2 * PROCESSES)]
    outcomes = {hammerer.name: hammerer.outcome() for hammerer in hammerers}
    surprises = [f"{name}: {what}" for name, (_, found) in outcomes.items() for what in found]
    assert not surprises, "\n".join(surprises[:50])
    print({name: calls for name, (calls, _) in outcomes.items()})
    assert all(calls for calls, _ in outcomes.values())
