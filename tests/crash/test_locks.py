"""Locks while mount processes are killed and the line is cut under contention: never two holders.

Each holder writes its name into the file under the lock, and finds it before it lets go. Whoever lost the
lock meanwhile gets an error, and no other answer.
"""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hosts import Host, TwoHosts, wait_until

ROUNDS = int(os.environ.get("FUSEMIRROR_LOCK_ROUNDS", "3"))
WORKERS = 2  # on each host, and for each kind of lock
SECTIONS = 10  # between two troubles, at least
OUTAGES_S = (0.2, 1.5, 3.0)  # shorter and longer than the lease

# Writes a line for each section that it came through, and one for what it must never see.
WORK = """
import fcntl, os, random, sys, time
path, way, name = sys.argv[1:]
lock = fcntl.flock if way == "flock" else fcntl.lockf
count = 0
while True:
    count += 1
    mine = f"{name} {count}".ljust(40).encode()
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        time.sleep(0.05)
        continue
    try:
        lock(file, fcntl.LOCK_EX)
        os.pwrite(file, mine, 0)
        time.sleep(random.expovariate(200))
        found = os.pread(file, 40, 0)
        print("held" if found == mine else f"two holders: {mine!r} finds {found!r}", flush=True)
    except OSError as error:
        print(f"lost: {error}", flush=True)
        time.sleep(0.05)
    finally:
        try:
            os.close(file)
        except OSError:
            pass
"""


class Contention:
    """Programs on both hosts that want the same locks."""

    def __init__(self, hosts: TwoHosts, directory: Path) -> None:
        self.hosts = hosts
        self._logs: list[Path] = []
        self._directory = directory
        self._workers: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        for host in self.hosts:
            for number in range(WORKERS):
                for way in ("flock", "fcntl"):
                    name = f"{host.name}-{way}-{number}"
                    log = self._directory / name
                    with log.open("wb") as output:
                        command = (sys.executable, "-c", WORK, host.mountpoint / way, way, name)
                        self._workers.append(host.start(*command, stdout=output))
                    self._logs.append(log)

    def end(self) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait(60)

    def count(self, word: str, of: str = "") -> int:
        return sum(log.read_text().count(word) for log in self._logs if log.name.startswith(of))

    def wait_sections(self, host: Host) -> None:
        """Until programs of the host have come through some more."""
        enough = self.count("held", host.name) + SECTIONS
        wait_until(lambda: self.count("held", host.name) >= enough, 60, f"locks are held at {host.name}")


@contextmanager
def contention(hosts: TwoHosts, directory: Path) -> Iterator[Contention]:
    made = Contention(hosts, directory)
    try:
        made.begin()
        yield made
    finally:
        made.end()


def _cut(hosts: TwoHosts, chance: random.Random) -> None:
    """The line is cut for a while, in which the primary goes on, if it is long enough."""
    (hosts.cut if chance.randrange(2) else hosts.drop)()
    subprocess.run(["sleep", str(chance.choice(OUTAGES_S))], check=True)
    hosts.heal()


def _kill(host: Host) -> None:
    os.kill(host.pid, signal.SIGKILL)
    host.kill()
    host.mount()


def test_killed_and_cut_under_contention_nobody_holds_what_another_holds(
    hosts: TwoHosts, tmp_path: Path, seed: int
) -> None:
    for host in hosts:
        host.expect_warnings("locks on .* are lost")
    for way in ("flock", "fcntl"):
        (hosts.primary.mountpoint / way).write_bytes(b" " * 40)
    chance = random.Random(seed)
    with contention(hosts, tmp_path) as work:
        for number in range(ROUNDS):
            what = ("cut", "kill the primary", "kill the backup", "cut")[number % 4]
            print(f"round {number}: {what}, after {work.count('held')} sections, {work.count('lost')} lost")
            if what == "cut":
                _cut(hosts, chance)
            else:
                _kill(hosts.primary if what == "kill the primary" else hosts.backup)
            for host in hosts:
                host.wait_for("normal", timeout_s=60)
            for host in hosts:
                work.wait_sections(host)
            assert not work.count("two holders"), [log.read_text() for log in work._logs]
        print(f"{work.count('held')} sections, {work.count('lost')} lost")
    wait_until(lambda: all(host.status()["locks"]["held"] == 0 for host in hosts), 30, "nobody holds a lock")
