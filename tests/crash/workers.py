"""The load as a test sees it: workers on both hosts, and what must be found of their work afterwards."""

import copy
import json
import sys
from collections import Counter
from subprocess import Popen
from typing import Self

from tests.crash.load import NAMES, RECORD_BYTES, Model, Step, record
from tests.hosts import CHECKOUT, Host, TwoHosts, wait_until

END_S = 60.0


class Worker:
    """One process of `tests.crash.load` on one host."""

    def __init__(self, host: Host, load: "Load", name: str, seed: int) -> None:
        self.host = host
        self.name = name
        self.host_died = False
        self._log = load.local / f"{name}.log"
        self.process: Popen[bytes] = host.start(
            *(sys.executable, "-m", "tests.crash.load", host.mountpoint / name),
            *(host.mountpoint / load.shared, self._log, load.stop_file, str(seed)),
            cwd=CHECKOUT,
            stderr=load.errors,
        )

    def lines(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []

    @property
    def steps_taken(self) -> int:
        return self.lines().count("ok")

    @property
    def error(self) -> str | None:
        """The error at which it ended."""
        lines = self.lines()
        return lines[-1] if lines and lines[-1].isupper() else None

    def outcome(self) -> tuple[Model, Step | None, list[int]]:
        """What it was told, the step in doubt if there is one, and its acknowledged shared records."""
        model, serials = Model(), list[int]()
        step: Step | None = None
        for line in self.lines():
            if line.startswith("["):
                step = json.loads(line)
            elif line == "ok" and step is not None:
                model.take(step)
                if step[0] == "share":
                    serials.append(step[2])
                step = None
        return model, step, serials

    def check(self, on: Host) -> None:
        """This host shows all that was acknowledged, and of the step in doubt the effect or none."""
        before, step, _ = self.outcome()
        directory = on.mountpoint / self.name
        if self.host_died and not any(line.startswith("[") for line in self.lines()):
            return  # it never got to its first step
        found = {path.name: path.read_bytes() for path in directory.iterdir()}
        if _same(before, found):
            return
        assert step is not None, f"{on.name}: {self.name}: {_differences(before, found)}"
        after = copy.deepcopy(before)
        after.take(step)
        if _same(after, found):
            return
        assert step[0] in ("write", "append", "truncate", "allocate", "copy"), (
            f"{on.name}: {self.name}: neither before nor after {step}: {_differences(before, found)}"
        )
        assert found.keys() == before.files.keys(), f"{on.name}: {self.name}: {step}"
        for name in found:
            assert _torn(found[name], bytes(before.files[name]), bytes(after.files[name])), (
                f"{on.name}: {self.name}: {name} after {step} in doubt: {_differences(before, found)}"
            )


def _same(model: Model, found: dict[str, bytes]) -> bool:
    return {name: bytes(file) for name, file in model.files.items()} == found


def _torn(found: bytes, before: bytes, after: bytes) -> bool:
    """A killed process may leave part of a write that nobody was told of: each byte is old or new."""
    if not min(len(before), len(after)) <= len(found) <= max(len(before), len(after)):
        return False
    size = len(found)
    old, new = before.ljust(size, b"\0"), after.ljust(size, b"\0")
    return all(byte in pair for byte, *pair in zip(found, old, new, strict=False))


def _differences(model: Model, found: dict[str, bytes]) -> str:
    """For people: which names differ, and where."""
    words = []
    for name in NAMES:
        told, seen = model.files.get(name), found.get(name)
        if told is None and seen is None:
            continue
        if told is None or seen is None:
            words.append(f"{name}: {'not there' if seen is None else 'there'}")
        elif bytes(told) != seen:
            shared = zip(told, seen, strict=False)
            first = next((at for at, (one, other) in enumerate(shared) if one != other), "the end")
            words.append(f"{name}: {len(told)} bytes, found {len(seen)}, first difference at {first}")
    return "; ".join(words)


class Load:
    """Workers on both hosts, each in its own directory, and one file that all append to."""

    def __init__(self, two: TwoHosts, name: str, seed: int) -> None:
        self.two = two
        self.name = name
        self.local = two.directory / name
        self.local.mkdir()
        self.shared = f"{name}-shared"
        self.stop_file = self.local / "stop"
        self.errors = (self.local / "errors").open("ab")
        self.workers: list[Worker] = []
        self._seed = seed
        (two.primary.mountpoint / self.shared).touch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.workers:
            worker.process.kill()
            worker.process.wait()
        self.errors.close()

    def start(self, host: Host, count: int) -> None:
        """Workers on a host that is mounted."""
        for _ in range(count):
            number = len(self.workers)
            self.workers.append(Worker(host, self, f"{self.name}-{number}-{host.name}", self._seed + number))

    def host_died(self, host: Host) -> None:
        """Its workers so far end with an error."""
        for worker in self.workers:
            worker.host_died = worker.host_died or worker.host is host

    def wait_steps(self, count: int) -> None:
        """Return when the workers whose host lives have taken that many more steps."""
        watched = [worker for worker in self.workers if not worker.host_died]
        before = sum(worker.steps_taken for worker in watched)

        def taken() -> bool:
            return sum(worker.steps_taken for worker in watched) >= before + count

        if watched:
            wait_until(taken, END_S, f"{count} more steps")

    def wait_everyone(self, count: int) -> None:
        """Return when each worker whose host lives has taken that many more steps: nobody hangs."""
        wanted = {worker: worker.steps_taken + count for worker in self.workers if not worker.host_died}

        def taken() -> bool:
            return all(worker.steps_taken >= steps for worker, steps in wanted.items())

        wait_until(taken, END_S, f"{count} more steps of each of {len(wanted)} workers")

    @property
    def steps_taken(self) -> int:
        return sum(worker.steps_taken for worker in self.workers)

    def stop(self) -> None:
        """End all workers: none hangs, and none has seen an error but those whose host died."""
        self.stop_file.touch()
        for worker in self.workers:
            worker.process.wait(END_S)
        ended = {worker.name: worker.error or worker.process.returncode for worker in self.workers}
        failed = {worker.name: ended[worker.name] for worker in self.workers if not worker.host_died}
        assert not any(failed.values()), f"errors on a host that was not killed: {failed}"

    def check(self) -> None:
        """Everything acknowledged is there, once, on both hosts."""
        for host in self.two:
            for worker in self.workers:
                worker.check(host)
            self._check_shared(host)

    def _check_shared(self, host: Host) -> None:
        found = (host.mountpoint / self.shared).read_bytes()
        records = [found[at : at + RECORD_BYTES] for at in range(0, len(found), RECORD_BYTES)]
        counts = Counter(records)
        for worker in self.workers:
            _, step, serials = worker.outcome()
            for serial in serials:
                assert counts.pop(record(worker.name, serial), 0) == 1, f"{host.name}: {worker.name} {serial}"
            if step is not None and step[0] == "share":
                assert counts.pop(record(worker.name, step[2]), 0) <= 1
        assert not counts, f"{host.name}: nobody wrote {list(counts)[:3]}"
