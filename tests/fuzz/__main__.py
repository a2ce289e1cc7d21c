"""Lie to units of both roles: `python -m tests.fuzz [--count N] [--seconds S] [--seed SEED]`."""

import logging
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path
from random import Random

import trio
import trio.testing

from tests.fuzz.decoding import fuzz_decoding
from tests.fuzz.victims import ROLES, Fuzz
from tests.scheduling import deterministic_trio

_DECODED_PER_ROUND = 20_000
_SENT_PER_ROUND = 1_000
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


def lie(role: str, seed: int, count: int) -> Fuzz:
    """Send so many messages to a unit; what harms it is raised."""
    with tempfile.TemporaryDirectory(prefix="fm-fuzz-", dir=MEMORY) as directory:
        fuzz = Fuzz(role, Random(f"{seed} {role}"), Path(directory))
        with deterministic_trio(f"{seed} {role}"):
            trio.run(fuzz.run, count, clock=trio.testing.MockClock(autojump_threshold=0))
        return fuzz


def main() -> int:
    parser = ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="messages, most of them only decoded")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.getLogger("fusemirror").setLevel(logging.CRITICAL)
    began, seed = time.perf_counter(), arguments.seed
    decoded = refused = sent = refused_by_units = links = 0
    while decoded + sent < arguments.count and time.perf_counter() - began < arguments.seconds:
        try:
            refused += fuzz_decoding(Random(f"{seed} decoding"), _DECODED_PER_ROUND)[0]
            decoded += _DECODED_PER_ROUND
            for role in ROLES:
                fuzz = lie(role, seed, _SENT_PER_ROUND)
                sent, refused_by_units, links = (
                    sent + fuzz.sent,
                    refused_by_units + fuzz.refused,
                    links + fuzz.links,
                )
        except BaseException:
            print(f"seed {seed} does harm", flush=True)
            raise
        seed += 1
    print(f"{decoded:,} decoded, {refused:,} refused; {sent:,} sent to units over {links:,} links,")
    print(f"{refused_by_units:,} links ended by a refusal; seeds {arguments.seed} to {seed - 1}, no harm")
    return 0


if __name__ == "__main__":
    sys.exit(main())
