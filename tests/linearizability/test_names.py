"""The same where kernels keep names: what both hosts see fits one order.

Hosts that both work in one directory leave it to the other soon. So here kernels keep names from the
first look on, and each change waits until they have run out.
"""

import os
import sys
from pathlib import Path

from tests.linearizability.conftest import Judge, two_hosts
from tests.linearizability.crew import Crew

CALLS = int(os.environ.get("FUSEMIRROR_LINEARIZABILITY_CALLS", "10000")) // 10
MEMBERS = 6


def test_what_both_hosts_see_while_kernels_keep_names_fits_one_order(
    seed: int, judge: Judge, tmp_path: Path
) -> None:
    with two_hosts(sys.executable, "-m", "tests.linearizability.planted", "eager_names") as hosts:
        hosts.mount()
        with Crew(hosts.hosts, MEMBERS, tmp_path / "control", seed) as crew:
            crew.wait_calls(CALLS)
            history = crew.finish()
        for host in hosts:
            assert host.status()["kernel_cache"]["names_granted"] > 0
        hosts.check()
    judge(history)
