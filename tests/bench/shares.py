"""What each of many writers of one block gets, with exclusive access: `python -m tests.bench.shares`.

Ten programs on each host write the same block for a minute, through real mounts. By the source the priority
is main's; nobody is to starve for that. Each writer's number of writes, and the largest against the smallest.
"""

import argparse
import subprocess
import sys

from tests.hosts import TwoHosts

_WRITER = """
import os, sys, time
path, seconds, number, size = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
descriptor, data, count, longest = os.open(path, os.O_RDWR), bytes([number]) * size, 0, 0.0
end = time.monotonic() + seconds
while (began := time.monotonic()) < end:
    os.pwrite(descriptor, data, 0)
    count, longest = count + 1, max(longest, time.monotonic() - began)
print(count, longest)
"""


def measure(writers: int, seconds: float, size_bytes: int, acknowledge: str) -> None:
    with TwoHosts() as hosts:
        hosts.create_and_join(access="exclusive", acknowledge=acknowledge)
        hosts.mount()
        (hosts.primary.mountpoint / "block").write_bytes(bytes(size_bytes))
        programs = [
            host.start(
                *(sys.executable, "-c", _WRITER, host.mountpoint / "block"),
                *(str(seconds), str(number), str(size_bytes)),
                stdout=subprocess.PIPE,
            )
            for host in hosts
            for number in range(writers)
        ]
        told = [program.communicate(timeout=seconds + 120)[0].split() for program in programs]
        counts, longest_s = [int(count) for count, _ in told], max(float(longest) for _, longest in told)
        print(f"{acknowledge}, {size_bytes} bytes, {seconds:g} s: {sum(counts)} writes")
        print(f"  at the primary {counts[:writers]}")
        print(f"  at the backup  {counts[writers:]}")
        print(f"  the largest share is {max(counts) / min(counts):.2f} times the smallest")
        print(f"  the longest write took {longest_s:.2f} s")
        for host in hosts:
            print(f"  {host.name}: {host.status()['exclusive']}")
        assert len({(host.mountpoint / "block").read_bytes() for host in hosts}) == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writers", type=int, default=10, help="on each host")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--bytes", type=int, default=4096)
    parser.add_argument("--acknowledge", choices=("sync", "async"), default="sync")
    options = parser.parse_args()
    measure(options.writers, options.seconds, options.bytes, options.acknowledge)


if __name__ == "__main__":
    main()
