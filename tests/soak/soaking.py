"""The soak: real trouble for two mounted hosts at work, drawn from a seed, for as long as one likes.

An *era* is one pair of hosts with settings of its own; it has *rounds*. In a round programs on both
hosts work, and what they are told is noted outside (`tests.crash.load`). Meanwhile *episodes* of
trouble come: one to three faults that overlap, then everything is mended and all programs must get on.
At the end of a round both hosts become normal, `verify` finds no difference, and everything that was
acknowledged is there, once, on both.
"""

import os
import random
import select
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

from tests.crash.workers import Load
from tests.hosts import FILESYSTEM, Host, TwoHosts

WORKERS = 2  # on each host
ROUNDS_PER_ERA = 4
EPISODES_MAX = 6  # in a round
OUTAGE_MAX_S = 5.0
PEER_TIMEOUT_S = 1.0
NORMAL_TIMEOUT_S = 90.0
STEPS = 10

ERAS: tuple[dict[str, str | float], ...] = (
    {"fence": "never", "io_timeout": 60.0},
    {"fence": "never", "io_timeout": 2.0},  # programs of the backup meet check reports
    {"fence": "data", "io_timeout": 60.0},  # and those of the primary
)
EXPECTED_WARNINGS = (
    "EIO: ",
    "stopped before everything was drained",
    "the last checkpoint failed",
    "did not say Hello",  # it dialed just before it was lost
)


def pause(seconds: float) -> None:
    """Trouble lasts so long; nothing tells when it is enough."""
    select.select([], [], [], seconds)


class Trouble:
    """What can happen to two hosts. Each fault returns what ends it; that may be called once."""

    def __init__(self, hosts: TwoHosts, chance: random.Random) -> None:
        self.hosts = hosts
        self.chance = chance
        self.killed: set[str] = set()  # in this episode
        self.faults: dict[str, Callable[[], Callable[[], None]]] = {
            "link down": lambda: self._line(hosts.cut),
            "packets lost": lambda: self._line(hosts.drop),
            "lost from the primary": lambda: self._line(lambda: hosts.drop_from(hosts.primary)),
            "lost from the backup": lambda: self._line(lambda: hosts.drop_from(hosts.backup)),
            "flapping": self._flap,
            "stop primary": lambda: self._stall(hosts.primary),
            "stop backup": lambda: self._stall(hosts.backup),
            "stop both": lambda: self._stall(*hosts),
            "kill primary": lambda: self._kill(hosts.primary),
            "kill backup": lambda: self._kill(hosts.backup),
            "kill both": lambda: self._kill(*hosts),
            "primary gone": lambda: self._gone(hosts.primary),
            "backup gone": lambda: self._gone(hosts.backup),
            "resync paused": self._hold_resync,
        }

    def _line(self, fault: Callable[[], None]) -> Callable[[], None]:
        fault()
        return self.hosts.heal

    def _flap(self) -> Callable[[], None]:
        for _ in range(self.chance.randrange(2, 8)):
            self.hosts.cut()
            pause(self.chance.random() * 0.5)
            self.hosts.heal()
            pause(self.chance.random())
        return self.hosts.heal

    def _stall(self, *victims: Host) -> Callable[[], None]:
        alive = [host for host in victims if host.is_running]
        for host in alive:
            host.stop()

        def resume() -> None:
            for host in alive:
                if host.is_running:
                    host.resume()

        return resume

    def _kill(self, *victims: Host) -> Callable[[], None]:
        alive = [host for host in victims if host.is_running]
        for host in alive:
            os.kill(host.pid, signal.SIGKILL)
        for host in alive:
            host.kill()
            self.killed.add(host.name)
        self.chance.shuffle(alive)

        def restart() -> None:
            for host in alive:
                host.mount()

        return restart

    def _gone(self, host: Host) -> Callable[[], None]:
        """The other hears nothing of it, not even that its connections have ended."""
        self.hosts.drop()
        restart = self._kill(host)

        def back() -> None:
            self.hosts.heal()
            restart()

        return back

    def _hold_resync(self) -> Callable[[], None]:
        if not self.hosts.primary.is_running:
            return lambda: None
        self.hosts.primary.fusemirror("resync", FILESYSTEM, "--pause", expect=None, timeout_s=90.0)

        def go_on() -> None:
            self.hosts.primary.fusemirror("resync", FILESYSTEM, "--resume", timeout_s=90.0)

        return go_on

    def episode(self) -> str:
        """Some faults that overlap; on return all are ended. What happened, for people."""
        self.killed.clear()
        names = self.chance.sample(sorted(self.faults), self.chance.choice((1, 1, 1, 2, 2, 3)))
        # A process that is stopped answers no command, so the resync is held first and goes on last.
        names.sort(key=lambda name: name != "resync paused")
        with ExitStack() as ending:
            for name in names:
                ending.callback(self.faults[name]())
                pause(self.chance.random() * OUTAGE_MAX_S / len(names))
            for host in self.hosts:
                if host.is_running and self.chance.randrange(2):
                    host.resume()
        return " and ".join(names)


class Soak:
    """Runs until the time is over, and always at least one whole round."""

    def __init__(self, seconds: float, seed: int) -> None:
        self.chance = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.steps = 0
        self.rounds = 0
        self.slowest_s = 0.0
        self._began = time.monotonic()  # noqa: TID251 - the clock of a test, not of the product
        self._seconds = seconds
        self._seed = seed

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began  # noqa: TID251

    @property
    def is_over(self) -> bool:
        return self.elapsed_s >= self._seconds

    def run(self, eras: tuple[dict[str, str | float], ...] = ERAS) -> None:
        era = 0
        while not self.rounds or not self.is_over:
            self._era(eras[era % len(eras)])
            era += 1

    def _era(self, settings: dict[str, str | float]) -> None:
        print(f"era: {settings}", flush=True)
        with TwoHosts() as hosts:
            try:
                hosts.create_and_join(peer_timeout=PEER_TIMEOUT_S, **settings)
                for host in hosts:
                    for pattern in EXPECTED_WARNINGS:
                        host.expect_warnings(pattern)
                hosts.mount()
                for _ in range(ROUNDS_PER_ERA):
                    self._round(hosts, excused=settings != ERAS[0])
                    if self.is_over:
                        break
                hosts.check()
                assert not hosts.unexpected_warnings(), hosts.unexpected_warnings()
            except BaseException:
                for host in hosts:
                    print(f"--- log of {host.name} ---\n{host.log()[-12000:]}\n{host.where_it_waits()}")
                raise

    def _round(self, hosts: TwoHosts, *, excused: bool) -> None:
        name = f"round{self.rounds}"
        self.rounds += 1
        with Load(hosts, name, self._seed + 1000 * self.rounds) as load:
            for host in hosts:
                load.start(host, WORKERS)
            trouble = Trouble(hosts, self.chance)
            for _ in range(self.chance.randrange(2, EPISODES_MAX + 1)):
                if self._episode(load, trouble, excused=excused):
                    break
            self._settle(load, excused=excused)
            hosts.primary.fusemirror("verify", FILESYSTEM)
            load.check()
            self.steps += load.steps_taken
            print(f"{self.elapsed_s:6.0f} s {name}: {load.steps_taken} steps, all kept", flush=True)
        _clear(hosts.primary, name)

    def _episode(self, load: Load, trouble: Trouble, *, excused: bool) -> bool:
        """Trouble, and then everyone gets on; whether the time is over."""
        load.wait_steps(self.chance.randrange(STEPS))
        what = trouble.episode()
        for word in what.split(" and "):
            self.faults[word] += 1
        began = self.elapsed_s
        for host in trouble.hosts:
            if host.name in trouble.killed:
                load.host_died(host)
                load.start(host, WORKERS)
        if excused:
            self._replace_refused(load)
        load.wait_everyone(STEPS)
        self.slowest_s = max(self.slowest_s, self.elapsed_s - began)
        print(f"{self.elapsed_s:6.0f} s {what}: on after {self.elapsed_s - began:.1f} s", flush=True)
        return self.is_over

    def _replace_refused(self, load: Load) -> None:
        """Programs that met a check report have ended, and others take their places."""
        for host in load.two:
            host.wait_for("connected", timeout_s=NORMAL_TIMEOUT_S)
        for host in load.two:
            host.wait_for("normal", timeout_s=NORMAL_TIMEOUT_S)
        for worker in load.workers:
            if not worker.host_died and worker.error == "EIO":
                worker.host_died = True
        for host in load.two:
            count = sum(1 for worker in load.workers if worker.host is host and not worker.host_died)
            load.start(host, WORKERS - count)

    def _settle(self, load: Load, *, excused: bool) -> None:
        for host in load.two:
            host.wait_for("normal", timeout_s=NORMAL_TIMEOUT_S)
        if excused:
            self._replace_refused(load)
        load.stop()


def _clear(host: Host, name: str) -> None:
    """Remove what a round made, so that the next one's checks do not grow: work for both hosts too."""
    for path in sorted(host.mountpoint.glob(f"{name}-*")):
        if path.is_dir():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        else:
            path.unlink()
