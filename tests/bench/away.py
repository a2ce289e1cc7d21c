"""How long a program waits when the peer is lost, and how soon both are normal again once it is back.

    python -m tests.bench.away [ROUNDS]

With the defaults of all settings. The first time is the longest wait of a program on the primary that
writes 4 KiB after 4 KiB; the second is from the moment when the fault has ended, or the mount process
was started again, until the mirror state is normal on both hosts.
"""

import os
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from fusemirror.admin.client import ask
from tests.hosts import FILESYSTEM, Host, TwoHosts, what_is_missing

SETTLE_S = 1.0
OUTAGE_S = 12.0  # longer than all timeouts
LIMIT_S = 60.0

now = time.monotonic  # noqa: TID251 - the clock of a measurement, not of the product

FAULTS: dict[str, tuple[Callable[[TwoHosts], None], Callable[[TwoHosts], None]]] = {
    "the link goes down": (TwoHosts.cut, TwoHosts.heal),
    "all packets are lost": (TwoHosts.drop, TwoHosts.heal),
    "its packets are lost": (lambda hosts: hosts.drop_from(hosts.backup), TwoHosts.heal),
    "it is killed": (lambda hosts: hosts.backup.kill(), lambda hosts: hosts.backup.mount()),
    "it is stopped": (lambda hosts: hosts.backup.stop(), lambda hosts: hosts.backup.resume()),
    "it is unmounted": (lambda hosts: hosts.backup.umount(), lambda hosts: hosts.backup.mount()),
}


class Writer(threading.Thread):
    """Writes for ever, and remembers the longest wait."""

    def __init__(self, host: Host) -> None:
        super().__init__(daemon=True)
        self.longest_s = 0.0
        self.ends = threading.Event()
        self._file = os.open(host.mountpoint / "written", os.O_CREAT | os.O_WRONLY)

    def run(self) -> None:
        data = os.urandom(4096)
        while not self.ends.is_set():
            began = now()
            os.pwrite(self._file, data, 0)
            self.longest_s = max(self.longest_s, now() - began)
            self.ends.wait(0.005)
        os.close(self._file)


def status(host: Host) -> Any:
    return ask(host.runtime_directory, FILESYSTEM, "status")


def until_normal(hosts: TwoHosts) -> float:
    began = now()
    while not all(status(host)["mirror_state"] == "normal" for host in hosts):
        assert now() - began < LIMIT_S, "not normal in time"
        threading.Event().wait(0.01)
    return now() - began


def measure(hosts: TwoHosts, fault: str) -> tuple[float, float]:
    begin, end = FAULTS[fault]
    writer = Writer(hosts.primary)
    writer.start()
    threading.Event().wait(SETTLE_S)
    writer.longest_s = 0.0
    begin(hosts)
    threading.Event().wait(OUTAGE_S)
    waited_s = writer.longest_s
    end(hosts)
    normal_s = until_normal(hosts)
    writer.ends.set()
    writer.join(LIMIT_S)
    return waited_s, normal_s


def main() -> None:
    if missing := what_is_missing():
        raise SystemExit(missing)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with TwoHosts() as hosts:
        hosts.create_and_join()
        hosts.mount()
        for _ in range(rounds):
            for fault in FAULTS:
                times[fault].append(measure(hosts, fault))
        hosts.check()
    print(f"seconds, median (worst) of {rounds}")
    print(f"{'the backup is lost, since':28} {'longest wait':>13} {'normal again':>13}")
    for fault, measured in times.items():
        columns = zip(*measured, strict=True)
        waited, normal = (f"{statistics.median(column):.2f} ({max(column):.2f})" for column in columns)
        print(f"{fault:28} {waited:>13} {normal:>13}")


if __name__ == "__main__":
    main()
