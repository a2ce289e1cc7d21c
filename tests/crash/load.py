"""One process that works in a directory of its own, and notes on a local disk what was acknowledged.

    python -m tests.crash.load DIRECTORY SHARED_FILE LOG STOP_FILE SEED

It makes the directory. Before each step the log gets the step, after it a word: `ok`, or the errno. So
whoever reads the log knows what the directory holds, but for one step at its end that may have taken
effect or not. The process ends when STOP_FILE exists, or at its first error. SHARED_FILE takes records
of all processes.
"""

import errno
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusemirror.change import ALLOCATION_MODES, KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from fusemirror.volume import durable

MODES = sorted(ALLOCATION_MODES)
NAMES = [f"name{number}" for number in range(6)]
OFFSET_MAX = 300_000
RECORD_BYTES = 64

Step = list[Any]
"""The name of a method of `Steps`, and its arguments."""


def content(length: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(length)


def record(worker: str, serial: int) -> bytes:
    return f"{worker} {serial}".ljust(RECORD_BYTES - 1).encode() + b"\n"


class Model:
    """What the directory holds by the steps taken: names, and for each the content of its file."""

    def __init__(self) -> None:
        self.files: dict[str, bytearray] = {}  # hard links share one

    def take(self, step: Step) -> None:
        name, *arguments = step
        getattr(self, name)(*arguments)

    def create(self, name: str) -> None:
        self.files[name] = bytearray()

    def unnamed(self, name: str, length: int, seed: int) -> None:
        """A file that has its content before it has a name; it gets none where `name` is ""."""
        if name:
            self.files[name] = bytearray(content(length, seed))

    def write(self, name: str, offset: int, length: int, seed: int) -> None:
        file = self.files[name]
        file.extend(bytes(max(0, offset - len(file))))
        file[offset : offset + length] = content(length, seed)

    def append(self, name: str, length: int, seed: int) -> None:
        self.files[name] += content(length, seed)

    def truncate(self, name: str, size: int) -> None:
        file = self.files[name]
        file.extend(bytes(max(0, size - len(file))))
        del file[size:]

    def allocate(self, name: str, mode: int, offset: int, end: int) -> None:
        file = self.files[name]
        size = len(file) if mode & KEEP_SIZE else max(len(file), end)
        file.extend(bytes(max(0, end - len(file))))
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            file[offset:end] = bytes(end - offset)
        del file[size:]

    def copy(self, name: str, offset: int, source: str, source_offset: int, length: int) -> None:
        piece = bytes(self.files[source][source_offset : source_offset + length])
        file = self.files[name]
        if piece:
            file.extend(bytes(max(0, offset - len(file))))
            file[offset : offset + len(piece)] = piece

    def sync(self, name: str) -> None:
        pass

    def rename(self, old: str, new: str) -> None:
        if self.files.get(new) is not self.files[old]:
            self.files[new] = self.files.pop(old)

    def link(self, old: str, new: str) -> None:
        self.files[new] = self.files[old]

    def unlink(self, name: str) -> None:
        del self.files[name]

    def share(self, worker: str, serial: int) -> None:
        pass


class Steps:
    """The same steps, taken for real."""

    def __init__(self, directory: Path, shared: Path) -> None:
        self._directory = directory
        self._shared = shared

    def take(self, step: Step) -> None:
        name, *arguments = step
        getattr(self, name)(*arguments)

    def _with(self, path: Path, flags: int, work: Callable[[int], object]) -> None:
        descriptor = os.open(path, flags, 0o644)
        try:
            work(descriptor)
        finally:
            os.close(descriptor)

    def create(self, name: str) -> None:
        self._with(self._directory / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, os.fstat)

    def unnamed(self, name: str, length: int, seed: int) -> None:
        def fill_and_name(descriptor: int) -> None:
            os.write(descriptor, content(length, seed))
            if name:  # by linkat(2), which follows it
                os.link(f"/proc/self/fd/{descriptor}", self._directory / name, src_dir_fd=descriptor)

        self._with(self._directory, os.O_TMPFILE | os.O_RDWR, fill_and_name)

    def write(self, name: str, offset: int, length: int, seed: int) -> None:
        data = content(length, seed)
        self._with(self._directory / name, os.O_WRONLY, lambda to: os.pwrite(to, data, offset))

    def append(self, name: str, length: int, seed: int) -> None:
        data = content(length, seed)
        self._with(self._directory / name, os.O_WRONLY | os.O_APPEND, lambda to: os.write(to, data))

    def truncate(self, name: str, size: int) -> None:
        os.truncate(self._directory / name, size)

    def allocate(self, name: str, mode: int, offset: int, end: int) -> None:
        path = self._directory / name
        self._with(path, os.O_WRONLY, lambda to: durable.allocate(to, mode, offset, end - offset))

    def copy(self, name: str, offset: int, source: str, source_offset: int, length: int) -> None:
        def into(target: int) -> None:
            # Once: a file that is copied behind its own end is longer then, and would be copied on.
            def of(origin: int) -> None:
                os.copy_file_range(origin, target, length, source_offset, offset)

            self._with(self._directory / source, os.O_RDONLY, of)

        self._with(self._directory / name, os.O_WRONLY, into)

    def sync(self, name: str) -> None:
        self._with(self._directory / name, os.O_RDONLY, os.fsync)

    def rename(self, old: str, new: str) -> None:
        os.rename(self._directory / old, self._directory / new)

    def link(self, old: str, new: str) -> None:
        os.link(self._directory / old, self._directory / new)

    def unlink(self, name: str) -> None:
        (self._directory / name).unlink()

    def share(self, worker: str, serial: int) -> None:
        data = record(worker, serial)
        self._with(self._shared, os.O_WRONLY | os.O_APPEND, lambda to: os.write(to, data))


def choose(chance: random.Random, model: Model, worker: str, serial: int) -> Step:
    """A step that succeeds on what the model holds."""
    held = sorted(model.files)
    free = [name for name in NAMES if name not in model.files]
    if free and (not held or chance.randrange(5) == 0):
        links = held and chance.randrange(3) == 0
        if not links and chance.randrange(2):
            return ["unnamed", chance.choice((free[0], "")), 100, chance.randrange(1 << 30)]
        return ["link", chance.choice(held), free[0]] if links else ["create", free[0]]
    name, length, seed = chance.choice(held), chance.choice((1, 100, 4096, 65_537)), chance.randrange(1 << 30)
    steps: list[Step] = [
        ["write", name, chance.randrange(OFFSET_MAX), length, seed],
        ["append", name, length, seed],
        ["truncate", name, chance.randrange(OFFSET_MAX)],
        ["allocate", name, chance.choice(MODES), (at := chance.randrange(OFFSET_MAX)), at + length],
        ["copy", name, OFFSET_MAX + length, chance.choice(held), chance.randrange(OFFSET_MAX), length],
        ["rename", name, chance.choice(NAMES)],
        ["unlink", name],
        ["sync", name],
        ["share", worker, serial],
    ]
    return chance.choices(steps, weights=(4, 4, 1, 2, 2, 2, 1, 1, 4))[0]


def make_directory(path: Path) -> None:
    """Make it within the mount, not below: the mount of a killed process may just have been taken away."""
    root = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    if os.fstat(root).st_dev == path.parent.parent.stat().st_dev:
        raise FileNotFoundError(errno.ENOENT, "not mounted", path.parent)
    os.mkdir(path.name, dir_fd=root)
    os.close(root)


def main(directory: str, shared: str, log: str, stop: str, seed: str) -> None:
    chance = random.Random(int(seed))
    model, steps = Model(), Steps(Path(directory), Path(shared))
    note = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        make_directory(Path(directory))
    except OSError as error:
        os.write(note, f"{errno.errorcode[error.errno or 0]}\n".encode())
        return
    for serial in range(sys.maxsize):
        if os.path.exists(stop):
            return
        step = choose(chance, model, Path(directory).name, serial)
        os.write(note, json.dumps(step).encode() + b"\n")
        try:
            steps.take(step)
        except OSError as error:
            os.write(note, f"{errno.errorcode[error.errno or 0]}\n".encode())
            return
        os.write(note, b"ok\n")
        model.take(step)


if __name__ == "__main__":
    main(*sys.argv[1:])
