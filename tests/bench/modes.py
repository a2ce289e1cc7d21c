"""The modes by job: each on two hosts of its own, all measured in turn, as ratios to synchronous routed.

All twelve that there are: access, when success is reported, and what keeps the requests meanwhile. Both hosts
run on one machine, joined directly, or through relays that make them `round_trip_ms` apart.
"""

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fusemirror.settings import Access, Acknowledge, Communication
from tests.bench import jobs
from tests.bench.jobs import Job, Scale
from tests.bench.report import aligned
from tests.bench.systems import System, listens, seen_from
from tests.hosts import CHECKOUT, PORT, Host, TwoHosts, wait_until

REFERENCE = "routed sync lmdb"
MODES: dict[str, dict[str, str | bool]] = {
    f"{access} {acknowledge} {communication}": {
        "access": str(access),
        "acknowledge": str(acknowledge),
        "communication": str(communication),
    }
    for access in Access
    for acknowledge in Acknowledge
    for communication in Communication
}
"""Settings of both hosts; what is not named is as it comes."""
WITHOUT_TLS = "no tls"
MODES[WITHOUT_TLS] = MODES[REFERENCE] | {"tls": False}

JOBS = ("randwrite", "randwrite4", "fsync", "write", "randread", "files")
HOSTS = ("primary", "backup")

RELAY = f"127.0.0.1:{PORT + 1}"
RELAY_TIMEOUT_S = 10.0


@dataclass
class Measured:
    """The medians by figure, host and mode; what relays add to a round trip, and what the hosts measured."""

    values: dict[tuple[str, str, str], float]
    relayed_ms: float
    round_trips_s: list[float]

    def table(self, selected: Sequence[Job]) -> str:
        """For each host the rates of the reference, and below them those of the others as ratios to these."""
        figures = [figure for job in selected for figure in job.figures if figure.unit != "us"]
        blocks = [aligned([[figure.key, figure.title, figure.unit] for figure in figures])]
        for host in HOSTS:
            base = [self.values[figure.key, host, REFERENCE] for figure in figures]
            rows = [
                [f"at the {host}", *(figure.key for figure in figures)],
                [REFERENCE, *(f"{value:,.0f}" for value in base)],
            ]
            for mode in [each for each in MODES if each != REFERENCE]:
                values = [self.values[figure.key, host, mode] for figure in figures]
                ratios = [f"{value / first:.2f}" for value, first in zip(values, base, strict=True)]
                rows.append([mode, *ratios])
            blocks.append(aligned(rows))
        measured_ms = 1000 * statistics.median(self.round_trips_s)
        how = f"through relays that add {self.relayed_ms:g} ms" if self.relayed_ms else "directly"
        title = f"hosts joined {how}; round trip at rest, woken up at both ends: {measured_ms:.2f} ms"
        return "\n\n".join([title, *("\n".join(block) for block in blocks)])


@contextmanager
def mounted(directory: Path, mode: str, round_trip_ms: float) -> Iterator[tuple[TwoHosts, dict[str, System]]]:
    """Two mounted hosts in one mode, each seen as a system."""
    with TwoHosts(directory) as hosts:
        hosts.create_and_join(**MODES[mode])
        if round_trip_ms:
            for host, peer in ((hosts.primary, hosts.backup), (hosts.backup, hosts.primary)):
                start_relay(host, peer, round_trip_ms / 2000)
        hosts.mount()
        seen = {
            "primary": seen_from(hosts.primary, hosts.backup, "primary"),
            "backup": seen_from(hosts.backup, hosts.primary, "backup"),
        }
        yield hosts, seen
        hosts.umount()


def start_relay(host: Host, peer: Host, delay_s: float) -> None:
    """From now on `host` dials its peer through a relay. It ends with the namespace of the host."""
    target = f"{peer.namespace.address}:{PORT}"
    host.start(sys.executable, "-m", "tests.bench.relay", RELAY, target, str(delay_s), cwd=CHECKOUT)
    wait_until(lambda: listens(host, RELAY), RELAY_TIMEOUT_S, "relay")
    host.configure(peer=RELAY)


def measure(directory: Path, selected: Sequence[Job], scale: Scale, round_trip_ms: float = 0.0) -> Measured:
    """Run every job in every mode on each host, in turn."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    with ExitStack() as stack:
        mounts = {mode: stack.enter_context(mounted(directory, mode, round_trip_ms)) for mode in MODES}
        for _, pair in mounts.values():
            for system in pair.values():
                jobs.lay_out(system, scale)
        for job in selected:
            for _ in range(scale.rounds):
                for host in HOSTS:
                    for mode, (_, pair) in mounts.items():
                        for key, value in job.run(pair[host], scale).items():
                            found[key, host, mode].append(value)
        round_trips_s = [round_trip for pair, _ in mounts.values() for round_trip in round_trips(pair)]
    medians = {key: statistics.median(values) for key, values in found.items()}
    return Measured(medians, round_trip_ms, round_trips_s)


def round_trips(hosts: TwoHosts) -> list[float]:
    """What each host measured last, in seconds; at the end all but the last job's hosts have come to rest."""
    return [host.status()["peer"]["round_trip_seconds"] for host in hosts]
