"""The same where kernels keep names: what both hosts see fits one order.

Hosts that both work in one directory leave it to the other soon. So here kernels keep names from the
first look on, and each change waits until they have run out.
"""

import os
import sys
from pathlib import Path

from tests.hosts import Host, wait_until
from tests.linearizability.conftest import Judge, two_hosts
from tests.linearizability.crew import Crew

CALLS = int(os.environ.get("FUSEMIRROR_LINEARIZABILITY_CALLS", "10000")) // 10
MEMBERS = 6
GRANTS_TIMEOUT_S = 120.0


def test_what_both_hosts_see_while_kernels_keep_names_fits_one_order(
    seed: int, judge: Judge, tmp_path: Path
) -> None:
    with two_hosts(sys.executable, "-m", "tests.linearizability.planted", "eager_names") as hosts:
        hosts.mount()
        with Crew(hosts.hosts, MEMBERS, tmp_path / "control", seed) as crew:
            crew.wait_calls(CALLS)
            # A few in a thousand calls find a directory that the other host has just left alone.
            wait_until(
                lambda: all(map(_names_granted, hosts)), GRANTS_TIMEOUT_S, "names kept by both kernels"
            )
            history = crew.finish()
        hosts.check()
    judge(history)


def _names_granted(host: Host) -> int:
    granted: int = host.status()["kernel_cache"]["names_granted"]
    return granted
