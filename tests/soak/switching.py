"""Many switches, one after the other, while programs on both hosts work: nobody waits long for any.

Nothing fails here but the machine's patience: the load is what it is. A switch that ends with an error, a
program that waits longer than it may, or a host that goes on alone, ends it.
"""

import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

from tests.hosts import FILESYSTEM, Host, TwoHosts

PEER_TIMEOUT_S = 5.0
NORMAL_TIMEOUT_S = 30.0
PAUSE_S = 0.2
ALONE = ("-> ALONE", "it answers, but does not connect here")

# Each line: the longest time that one write, with the stat after it, took since the line before.
_PROGRAM = """
import os, select, sys, time
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)
count, longest = 0, 0.0
while True:
    began = time.monotonic()
    os.pwrite(descriptor, b"x" * 100, count % 5000)
    os.stat(sys.argv[1])
    longest = max(longest, time.monotonic() - began)
    count += 1
    if select.select([0], [], [], 0)[0]:
        if not os.read(0, 1):
            break
        print(f"{longest:.6f}", flush=True)
        longest = 0.0
"""


class Program:
    """It writes on one host, and says when asked how long it had to wait."""

    def __init__(self, host: Host) -> None:
        self.host = host
        path = host.mountpoint / f"written-on-{host.name}"
        command = (sys.executable, "-c", _PROGRAM, path)
        self._process: Popen[bytes] = Popen(command, stdin=PIPE, stdout=PIPE)

    def longest_s(self) -> float:
        """The longest that one step took since the last call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"?")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], 60)[0]:
            raise TimeoutError(f"the program on {self.host.name} does not get on")
        line = self._process.stdout.readline()
        assert line, f"the program on {self.host.name} ended"
        return float(line)

    def end(self) -> None:
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0


@contextmanager
def _burning(processes: int) -> Iterator[None]:
    """Other work of this machine, as much as so many programs can do."""
    burning = [Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in burning:
            process.kill()
            process.wait()


class Switches:
    """`run` makes the switches; what it saw is here afterwards."""

    def __init__(self, count: int, *, wait_max_s: float, load: int = 0) -> None:
        self._count = count
        self._wait_max_s = wait_max_s
        self._load = load
        self.waits_s: list[float] = []
        """The longest wait of a program around each switch."""
        self.took_s: list[float] = []
        """How long each command took, its start included."""

    def run(self, directory: Path | None = None) -> None:
        """AssertionError, or the command's error, at the first switch that was felt."""
        with TwoHosts(directory) as hosts, _burning(self._load):
            hosts.create_and_join(peer_timeout=PEER_TIMEOUT_S)
            hosts.mount()
            hosts.primary.wait_for("normal")
            programs = [Program(host) for host in hosts]
            try:
                for number in range(self._count):
                    self._switch(hosts, programs, number)
            except BaseException:
                for host in hosts:
                    print(f"--- log of {host.name} ---\n{host.log()[-6000:]}")
                raise
            finally:
                for program in programs:
                    program.end()
            hosts.check()
            assert not hosts.unexpected_warnings(), hosts.unexpected_warnings()

    def _switch(self, hosts: TwoHosts, programs: list[Program], number: int) -> None:
        asked = list(hosts)[number // 2 % 2]
        before = [len(host.log()) for host in hosts]
        for program in programs:
            program.longest_s()
        began = time.monotonic()  # noqa: TID251 - the clock of a test, not of the product
        asked.fusemirror("switch", FILESYSTEM)
        self.took_s.append(time.monotonic() - began)  # noqa: TID251
        select.select([], [], [], PAUSE_S)
        self.waits_s.append(max(program.longest_s() for program in programs))
        waited_s = self.waits_s[-1]
        assert waited_s < self._wait_max_s, f"switch {number}: a program waited {waited_s:.2f} s"
        for host in hosts:
            host.wait_for("normal", timeout_s=NORMAL_TIMEOUT_S)
        for host, length in zip(hosts, before, strict=True):
            said = host.log()[length:]
            assert not any(word in said for word in ALONE), f"switch {number}: {host.name} was alone"

    def summary(self) -> str:
        """What was seen, for people."""
        waits, took = sorted(self.waits_s), sorted(self.took_s)
        middle = len(waits) // 2
        return (
            f"{len(waits)} switches under load {os.getloadavg()[0]:.1f}: programs waited"
            f" {waits[middle]:.3f} s (median), {waits[-1]:.3f} s at most;"
            f" the command took {took[middle]:.2f} s (median), {took[-1]:.2f} s at most"
        )
