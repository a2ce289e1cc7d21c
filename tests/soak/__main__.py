"""`python -m tests.soak --minutes N`: real trouble for two mounted hosts, until the time is over.

`--switches N [--load PROCESSES]` instead: so many exchanges of the roles without any trouble, while the
machine does other work; none may be felt for a second.

`--exercise [--switch-every S] [--cuts]` instead: for so many minutes programs that know what every call must
tell.
"""

import argparse
import os

from tests.hosts import what_is_missing
from tests.soak.exercising import Exercise
from tests.soak.soaking import Soak
from tests.soak.switching import Switches

FELT_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="How long; an era is ended in order.")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)), help="What is drawn from.")
    parser.add_argument("--switches", type=int, default=0, help="So many switches, and no trouble.")
    parser.add_argument("--load", type=int, default=2, help="Processes that keep the machine busy meanwhile.")
    parser.add_argument("--exercise", action="store_true", help="Programs that know the answers.")
    parser.add_argument("--switch-every", type=float, default=0.0, help="Seconds between switches, for them.")
    parser.add_argument("--cuts", action="store_true", help="Cut the link, for them.")
    arguments = parser.parse_args()
    if missing := what_is_missing():
        raise SystemExit(missing)
    if arguments.switches:
        switches = Switches(arguments.switches, wait_max_s=FELT_S, load=arguments.load)
        switches.run()
        print(switches.summary())
        return
    print(f"seed {arguments.seed}, {arguments.minutes:g} minutes", flush=True)
    if arguments.exercise:
        exercise = Exercise(
            arguments.minutes * 60,
            arguments.seed,
            switch_every_s=arguments.switch_every,
            cuts=arguments.cuts,
        )
        exercise.run()
        print(exercise.summary())
        return
    soak = Soak(arguments.minutes * 60, arguments.seed)
    soak.run()
    print(f"{soak.elapsed_s:.0f} s, {soak.rounds} rounds, {soak.steps} acknowledged steps, nothing lost")
    print(f"after trouble all programs got on within {soak.slowest_s:.1f} s")
    for fault, count in soak.faults.most_common():
        print(f"{count:5} {fault}")


if __name__ == "__main__":
    main()
