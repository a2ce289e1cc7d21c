"""Mount processes killed at random moments under load: nothing acknowledged is lost, and both converge."""

import os
import random
import signal
from collections.abc import Sequence
from functools import partial

from tests.crash.workers import Load
from tests.hosts import FILESYSTEM, Host, TwoHosts, wait_until

ROUNDS = int(os.environ.get("FUSEMIRROR_KILLS", "6"))
WORKERS = 3  # on each host
STEPS_MAX = 400
KILLS_MAX = 3  # in one round: the later ones often strike while the hosts still catch up


def test_killed_at_random_moments_nothing_acknowledged_is_lost(hosts: TwoHosts, seed: int) -> None:
    chance = random.Random(seed)
    for number in range(ROUNDS):
        with Load(hosts, f"round{number}", seed + 1000 * number) as load:
            print(f"round {number}:", end=" ")
            _round(load, number, chance)
    for host in hosts:
        wait_until(partial(_has_only_named, host), 60.0, "the end of files that never got a name")


def _has_only_named(host: Host) -> bool:
    return not host.status()["nameless"]["inodes"]


def _round(load: Load, number: int, chance: random.Random) -> None:
    hosts = load.two
    for host in hosts:
        load.start(host, WORKERS)
    load.wait_steps(chance.randrange(STEPS_MAX))
    # Each kind in turn, so that a short run has all of them.
    first = [[hosts.backup], [hosts.primary], [hosts.backup, hosts.primary]][number % 3]
    _kill_and_mount(first, load, chance)
    for _ in range(chance.randrange(KILLS_MAX)):
        _kill_and_mount(chance.sample(hosts.hosts, chance.choice((1, 1, 2))), load, chance)
    for host in hosts:
        host.wait_for("normal", timeout_s=60.0)
    load.wait_steps(STEPS_MAX // 10)
    load.stop()
    print(f"{load.steps_taken} steps in all")
    hosts.primary.fusemirror("verify", FILESYSTEM)
    load.check()


def _kill_and_mount(victims: Sequence[Host], load: Load, chance: random.Random) -> None:
    """Kill these hosts at once, mount them again in this order, and let them work."""
    print(f"{load.steps_taken} steps, kill {' and '.join(host.name for host in victims)};", end=" ")
    for host in victims:
        os.kill(host.pid, signal.SIGKILL)
    for host in victims:
        host.kill()
        load.host_died(host)
    if victims == [load.two.backup] and chance.randrange(2):
        load.wait_steps(chance.randrange(STEPS_MAX))  # the primary goes on alone
    for host in victims:
        host.mount()
        load.start(host, WORKERS)
