"""Exercisers on two mounted hosts, while the roles are exchanged, the link is cut, or both.

Each exerciser (`exerciser.py`) works on both hosts and knows what each call must tell it; so any errno and
any wrong byte ends this. How long calls took is told and not judged: one may have to wait until names that
the other kernel keeps have run out. Where there are no cuts, no host may go on alone.
"""

import json
import os
import random
import select
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import NamedTuple

from tests.hosts import CHECKOUT, FILESYSTEM, TwoHosts
from tests.soak.switching import ALONE

PROGRAMS = 3
PEER_TIMEOUT_S = 5.0
PEER_TIMEOUT_OF_CUTS_S = 1.0  # so that most cuts leave the primary alone
OUTAGES_S = (0.2, 1.0, 2.0, 4.0, 8.0)
PAGES_LATE_S = 4.0  # after the lease of a host that is apart, until its kernel has dropped its pages
NORMAL_TIMEOUT_S = 60.0
END_TIMEOUT_S = 90.0
POLL_S = 0.2


class Span(NamedTuple):
    """Of CLOCK_MONOTONIC, which the programs share."""

    began: float
    ended: float

    def meets(self, other: "Span") -> bool:
        return self.began <= other.ended and other.began <= self.ended


def _now() -> float:
    return time.monotonic()  # noqa: TID251 - the clock of a test, not of the product


class Exercise:
    """`run` does it; what it saw is here afterwards."""

    def __init__(self, seconds: float, seed: int, *, switch_every_s: float = 0.0, cuts: bool = False) -> None:
        self.calls: Counter[str] = Counter()
        self.switches: list[Span] = []
        self.refused = 0
        """Switches that a cut did not let happen."""
        self.cuts: list[Span] = []
        self.slow: list[tuple[Span, str]] = []
        """Calls that took long, and what they were."""
        self._seconds = seconds
        self._seed = seed
        self._switch_every_s = switch_every_s
        self._has_cuts = cuts
        self._random = random.Random(seed)
        self._over = threading.Event()

    def run(self, directory: Path | None = None) -> None:
        """AssertionError, or a command's error, at the first thing that went wrong."""
        with TwoHosts(directory) as hosts:
            peer_timeout_s = PEER_TIMEOUT_OF_CUTS_S if self._has_cuts else PEER_TIMEOUT_S
            hosts.create_and_join(peer_timeout=peer_timeout_s, io_timeout=60.0)
            if self._has_cuts:
                for host in hosts:
                    host.expect_warnings("did not say Hello")  # it dialed just before a cut
            hosts.mount()
            try:
                self._exercise(hosts)
                if not self._has_cuts:  # before `check` unmounts one host before the other
                    for host in hosts:
                        assert not any(word in host.log() for word in ALONE), f"{host.name} was alone"
                hosts.check()
                assert not hosts.unexpected_warnings(), hosts.unexpected_warnings()
            except BaseException:
                for host in hosts:
                    print(f"--- log of {host.name} ---\n{host.log()[-8000:]}")
                raise

    def _exercise(self, hosts: TwoHosts) -> None:
        reports = [hosts.directory / f"report{number}" for number in range(PROGRAMS)]
        command = (sys.executable, "-m", "tests.soak.exerciser", *(str(each.mountpoint) for each in hosts))
        late_s = PAGES_LATE_S if self._has_cuts else 0.0
        programs = [
            Popen(
                [*command, f"of{number}", str(self._seed + number), report, str(late_s)],
                stdin=PIPE,
                stdout=DEVNULL,
                stderr=PIPE,
                cwd=CHECKOUT,
            )
            for number, report in enumerate(reports)
        ]
        troubles: list[Callable[[TwoHosts], None]] = []
        if self._switch_every_s:
            troubles.append(self._switch_for_long)
        if self._has_cuts:
            troubles.append(self._cut_for_long)
        try:
            with ThreadPoolExecutor(len(troubles) + 1) as pool:
                under_way = [pool.submit(trouble, hosts) for trouble in troubles]
                try:
                    self._watch(programs, lambda: any(each.done() for each in under_way))
                finally:
                    self._over.set()
                for each in under_way:
                    each.result()
            hosts.heal()
            for host in hosts:
                host.wait_for("normal", timeout_s=NORMAL_TIMEOUT_S)
            for program in programs:
                errors = program.communicate(timeout=END_TIMEOUT_S)[1]
                assert program.returncode == 0, errors.decode()
        finally:
            for program in programs:
                program.kill()
                program.communicate()
        for report in reports:
            self._read(report)

    def _watch(self, programs: "list[Popen[bytes]]", trouble_ended: Callable[[], bool]) -> None:
        """Until the time is over, or something went wrong."""
        end = _now() + self._seconds
        while _now() < end and not trouble_ended():
            select.select([], [], [], POLL_S)
            for program in programs:
                if program.poll() is not None:
                    raise AssertionError(program.communicate()[1].decode())

    def _read(self, report: Path) -> None:
        for kind, *words in map(json.loads, report.read_text().splitlines()):
            if kind == "counts":
                self.calls.update(words[0])
            else:
                began, ended, host, what = words
                self.slow.append((Span(began, ended), f"{what} on {('alpha', 'beta')[host]}"))

    # --- trouble ------------------------------------------------------------------------------------------

    def _switch_for_long(self, hosts: TwoHosts) -> None:
        number = 0
        while not self._over.wait(self._switch_every_s):
            asked = hosts.hosts[number % 2]
            number += 1
            began = _now()
            done = asked.fusemirror("switch", FILESYSTEM, expect=None if self._has_cuts else 0)
            if done.returncode:
                self.refused += 1
            else:
                self.switches.append(Span(began, _now()))

    def _cut_for_long(self, hosts: TwoHosts) -> None:
        while not self._over.wait(self._random.uniform(0.5, 6.0)):
            began = _now()
            self._random.choice((hosts.cut, hosts.drop))()
            self._over.wait(self._random.choice(OUTAGES_S) * self._random.uniform(0.7, 1.1))
            hosts.heal()
            if self._random.random() < 0.7:  # else the next comes while they find each other again
                for host in hosts:
                    host.wait_for("normal", timeout_s=NORMAL_TIMEOUT_S)
            self.cuts.append(Span(began, _now()))

    # --- what was seen ------------------------------------------------------------------------------------

    @property
    def longest(self) -> tuple[float, str]:
        """The call that took longest, how long, where no cut was under way."""
        apart = [each for each in self.slow if not any(each[0].meets(cut) for cut in self.cuts)]
        return max(((span.ended - span.began, what) for span, what in apart), default=(0.0, "none"))

    def summary(self) -> str:
        """What was seen, for people."""
        took = sorted(span.ended - span.began for span in self.switches)
        felt = [
            span.ended - span.began
            for span, _ in self.slow
            if any(span.meets(switch) for switch in self.switches)
            and not any(span.meets(cut) for cut in self.cuts)
        ]
        lines = [f"{self.calls.total()} calls of {PROGRAMS} programs, load {os.getloadavg()[0]:.1f}"]
        if self.switches or self.refused:
            lines.append(
                f"{len(self.switches)} switches, {self.refused} refused in a cut; the command took"
                f" {took[len(took) // 2]:.2f} s (median), {took[-1]:.2f} s at most; a call beside one took"
                f" {max(felt, default=0.0):.2f} s at most"
                if took
                else f"no switch, {self.refused} refused"
            )
        if self.cuts:
            lasted = [span.ended - span.began for span in self.cuts]
            lines.append(f"{len(self.cuts)} cuts, of {max(lasted):.1f} s at most until both were normal")
        lines.append("apart from cuts the longest call took {:.2f} s: {}".format(*self.longest))
        lines += [f"{count:8} {what}" for what, count in self.calls.most_common()]
        return "\n".join(lines)
