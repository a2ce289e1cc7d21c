"""Run seeds: `python -m tests.simulation SEED...`, or `--count N [--first SEED] [--jobs N]`."""

import sys
import time
import traceback
from argparse import ArgumentParser
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.simulate import Run, simulate


def main() -> int:
    parser = ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seeds", nargs="*", type=int, help="seeds to run, each with its trace")
    parser.add_argument("--count", type=int, default=0, help="run so many seeds, and print those that fail")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--quiet", action="store_true", help="no traces")
    arguments = parser.parse_args()
    failed = sum(_show(seed, quiet=arguments.quiet) for seed in arguments.seeds)
    if arguments.count:
        failed += _run_many(range(arguments.first, arguments.first + arguments.count), arguments.jobs)
    return 1 if failed else 0


def _show(seed: int, *, quiet: bool) -> bool:
    run = simulate(seed)
    print(run.header)
    if not quiet:
        print(*run.trace, sep="\n")
    print(_verdict(run))
    if run.failure is not None:
        traceback.print_exception(run.failure, file=sys.stdout)
    return run.failure is not None


def _run_many(seeds: range, jobs: int) -> int:
    failed, operations, faults = 0, 0, Counter[str]()
    slowest = (0.0, 0)
    with ProcessPoolExecutor(jobs) as pool:
        for line, good, count, happened, took in pool.map(_one_line, seeds, chunksize=4):
            slowest = max(slowest, took)
            operations += count
            faults += happened
            if not good:
                failed += 1
                print(line, flush=True)
    for fault, count in sorted(faults.items()):
        print(f"{count:9,} {fault}")
    print(f"{operations:9,} operations")
    print("the slowest took {:.1f} s of the processor: seed {}".format(*slowest))
    print(f"{failed} of {len(seeds)} seeds failed")
    return failed


def _one_line(seed: int) -> tuple[str, bool, int, Counter[str], tuple[float, int]]:
    began = time.process_time()
    run = simulate(seed)
    took = time.process_time() - began, seed
    return f"{run.header}\n  {_verdict(run)}", run.failure is None, run.operations, run.faults, took


def _verdict(run: Run) -> str:
    if run.failure is None:
        return f"seed {run.seed}: good, {run.operations} operations"
    return f"seed {run.seed}: FAILED: {_first_line(run.failure)}"


def _first_line(failure: BaseException) -> str:
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return f"{type(failure).__name__}: {str(failure)[:600]}"


if __name__ == "__main__":
    sys.exit(main())
