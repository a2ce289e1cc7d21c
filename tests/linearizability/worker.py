"""One process that works on a few shared names and files, and keeps a timed record of it.

    python -m tests.linearizability.worker DIRECTORY CONTROL NUMBER SEED

The names and files are in a directory that moves: all stand in it by a descriptor of theirs, and each moves
it from one of a few places to another now and then.

Besides there are files that nobody renames or removes. They are left alone for seconds; then everybody opens
them to read, and keeps them open while the processes of one host change them. So the kernels keep what they
read of them; they are read by sendfile(2), splice(2) and copy_file_range(2), too. Some things that such a
read may show are excepted in fusemirror(7), and kept out: only one host changes each of them, and one that it
truncates is read on the other host only, by one process at a time.
NUMBER is odd on one of the hosts.

DIRECTORY is the shared one, with the one that moves in it (`make_places`). CONTROL is a directory on another
filesystem: the process ends once there is a file `stop`, waits while there is a file `pause-NUMBER`, and
appends its record to the file `record-NUMBER`: a line when a call begins, and a line with what it was told;
it is "busy" with calls that tell nothing, and "reopens" the files that were left alone. After a call that
ended in an error of the mount, the outcome is in doubt. An errno that a local filesystem would not give ends
the process. With `FUSEMIRROR_LINEARIZABILITY_EARLY` each write counts as acknowledged "early": it is in doubt
unless an fsync after it succeeds, and where a fault kept that waiting, the write has ended only then.
"""

import errno
import fcntl
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from select import select
from typing import Any, TypeVar

from tests.linearizability.history import Operation, parse
from tests.linearizability.model import OBSERVERS, READ_BLOCKS

NAMES = ("a", "b", "c")
PLACES = ("left/here", "left/there", "right/here", "right/there")  # of the directory with the names
BLOCK_BYTES = int(os.environ.get("FUSEMIRROR_LINEARIZABILITY_BLOCK", "4096"))
TAG_BYTES = 8
TAGS_PER_PROCESS = 1 << 24
BLOCKS_MAX = 5
IN_FILES_SHARE = 0.75  # how often a process works on the file that it has open, and not on names
POLL_S = 0.005
EARLY = "FUSEMIRROR_LINEARIZABILITY_EARLY" in os.environ
EARLY_MAX = 4  # so many writes, and then an fsync
HELD_S = 0.5  # so long at least the other host waits for what was acknowledged early; then it may go on alone

CALM = ("written-0", "written-1", "cut-0", "cut-1")  # the number is that of the host that changes it
# How often a process works on one of the files that are left alone for a while. Kernels keep these in pages,
# and may show half of a larger block.
CALM_SHARE = 0.3 if BLOCK_BYTES == 4096 else 0.0
BY_PAGES_SHARE = 0.4  # how often it reads one of these, that the other host changes, past read(2)
CYCLE_S = 4.0
STORM_S, REOPEN_S = 1.5, 3.7  # in a cycle they are changed until the one, and opened again after the other

# What a mount says when it cannot tell: a check report, or the process that served it has gone.
DOUBT = {errno.EIO, errno.ENOTCONN, errno.ECONNABORTED}

LOOKS = OBSERVERS | {"list"}

T = TypeVar("T")
Done = tuple[str, tuple[Any, ...], Any, int]
"""An operation that a system call stands for."""
OUTCOME = ("call", "arguments", "result", "error")


class Lost(Exception):
    """The mount could not tell what became of a call."""


class Worker:
    def __init__(self, directory: str, control: str, number: str, seed: str) -> None:
        self._path = directory
        self._control = control
        self._stop = Path(control, "stop")
        self._pause = Path(control, f"pause-{number}")
        self._record = os.open(Path(control, f"record-{number}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._random = random.Random(int(seed))
        self._side = int(number) % 2
        self._calm: dict[str, tuple[int, int]] = {}  # descriptor and inode number, by name
        self._reopened = -1  # in this cycle
        self._tag = int(number) * TAGS_PER_PROCESS
        self._number = number
        self._top = -1
        self._directory = -1  # the one that moves
        self._copy = -1  # a file of its own to copy to
        self._pipe = os.pipe()
        self._file = -1  # its descriptor, inode number, and whether it was opened to append
        self._inode = 0
        self._appends = False
        self._early = 0  # writes through it since its last fsync

    def run(self) -> None:
        while not self._stop.exists():
            if self._pause.exists():
                self._rest()
            if not self._enter():
                select([], [], [], POLL_S)
                continue
            try:
                self._step()
            except Lost as lost:
                self._leave(whole=lost.args[0] != errno.EIO)
        self._leave(whole=True)

    def _rest(self) -> None:
        self._write("paused")
        while self._pause.exists() and not self._stop.exists():
            select([], [], [], POLL_S)

    def _enter(self) -> bool:
        """Have the directory open, so that no name is ever looked for below a mountpoint without a mount."""
        if self._directory < 0:
            self._write("busy")
            with suppress(OSError):
                if self._top < 0:
                    self._top = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
                self._directory = self._open_moving()
            self._write("idle")
        return self._directory >= 0

    def _open_moving(self) -> int:
        """-1 where it moves away meanwhile. OSError of the mount."""
        for place in PLACES:
            try:
                return os.open(place, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._top)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ESTALE):
                    raise
        return -1

    def _leave(self, *, whole: bool) -> None:
        if whole:
            for descriptor in (self._top, self._directory, self._copy):
                if descriptor >= 0:
                    with suppress(OSError):
                        os.close(descriptor)
            self._top = self._directory = self._copy = -1
        if self._file >= 0:
            if self._early:
                self._sync()
            self._close(self._file)
            self._file = -1
        if whole:
            self._leave_calm()

    def _leave_calm(self) -> None:
        for descriptor, _ in self._calm.values():
            self._close(descriptor)
        self._calm.clear()

    def _close(self, descriptor: int) -> None:
        self._write("busy")
        with suppress(OSError):
            os.close(descriptor)
        self._write("idle")

    def _step(self) -> None:
        if self._random.random() < CALM_SHARE:
            self._in_calm_file()
            return
        in_file = self._file >= 0 and self._random.random() < IN_FILES_SHARE
        table = IN_FILES if in_file else ON_NAMES
        (action,) = self._random.choices([*table], [*table.values()])
        action(self)

    # --- the record -----------------------------------------------------------------------------------

    def _timed(
        self, call: str, *arguments: Any, do: Callable[[], T], said: set[int] | None = None
    ) -> T | None:
        """Do a system call, and record that it begins. None after one of the errnos in `said`."""
        self._said, self._error = said or set(), 0
        self._write("begins", call, arguments, time.monotonic_ns())
        result = None
        try:
            result = do()
        except OSError as error:
            self._error = error.errno or errno.EIO
        self._returned = time.monotonic_ns()
        if self._error in DOUBT:
            self._write("doubt", self._error, self._returned)
            raise Lost(self._error)
        if self._error and self._error not in self._said:
            raise AssertionError(f"{call}{arguments}: {os.strerror(self._error)}")
        return result

    def _told(self, *operations: Done) -> None:
        """Record what the system call that was timed last has told."""
        self._write("told", operations, self._returned)

    def _write(self, *line: Any) -> None:
        os.write(self._record, json.dumps(line).encode() + b"\n")

    # --- names ----------------------------------------------------------------------------------------

    def _name(self) -> str:
        return self._random.choice(NAMES)

    def _open(self, call: str, flags: int, refusal: int) -> None:
        self._leave(whole=False)
        name, appends = self._name(), self._random.random() < 0.3
        flags |= os.O_RDWR | (os.O_APPEND if appends else 0)
        opened = self._timed(
            call, name, do=lambda: os.open(name, flags, 0o600, dir_fd=self._directory), said={refusal}
        )
        if opened is None:
            self._told((call, (name,), None, self._error))
            return
        self._file, self._appends = opened, appends
        self._write("busy")
        try:
            self._inode = os.fstat(opened).st_ino
        except OSError as error:
            if error.errno not in DOUBT:
                raise
            if call != "lookup":
                self._told((call, (name,), None, 0))
            raise Lost(error.errno) from error
        self._told((call, (name,), self._inode, 0))

    def open(self) -> None:
        self._open("lookup", 0, errno.ENOENT)

    def create(self) -> None:
        self._open("create", os.O_CREAT | os.O_EXCL, errno.EEXIST)

    def open_or_create(self) -> None:
        self._open("open_or_create", os.O_CREAT, 0)

    def unlink(self) -> None:
        name = self._name()
        self._timed("unlink", name, do=lambda: os.unlink(name, dir_fd=self._directory), said={errno.ENOENT})
        self._told(("unlink", (name,), None, self._error))

    def rename(self) -> None:
        old, new = self._random.sample(NAMES, 2)
        within = {"src_dir_fd": self._directory, "dst_dir_fd": self._directory}
        self._timed("rename", old, new, do=lambda: os.rename(old, new, **within), said={errno.ENOENT})
        self._told(("rename", (old, new), None, self._error))

    def stat(self) -> None:
        """Two operations: the name is looked up first, then its file is asked for its size."""
        name = self._name()
        found = self._timed(
            "lookup", name, do=lambda: os.stat(name, dir_fd=self._directory), said={errno.ENOENT}
        )
        if found is None:
            self._told(("lookup", (name,), None, self._error))
        else:
            size = ("size", (found.st_ino,), _blocks(found.st_size), 0)
            self._told(("lookup", (name,), found.st_ino, 0), size)

    def list(self) -> None:
        """One look at each name, at no common time: POSIX wants no more of readdir(3)."""
        found = self._timed("list", do=self._scan)
        assert found is not None
        self._told(
            *(("lookup", (name,), found.get(name), 0 if name in found else errno.ENOENT) for name in NAMES)
        )

    def _scan(self) -> dict[str, int]:
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._directory)
        try:
            with os.scandir(descriptor) as entries:
                return {entry.name: entry.inode() for entry in entries}
        finally:
            os.close(descriptor)

    def move(self) -> None:
        """Move the directory in which all stand, also after the other host has moved it."""
        old, new = self._random.sample(PLACES, 2)
        if self._look(old):
            within = {"src_dir_fd": self._top, "dst_dir_fd": self._top}
            said = {errno.ENOENT, errno.ESTALE}
            self._timed("rename", old, new, do=lambda: os.rename(old, new, **within), said=said)
            self._told_unless_stale(("rename", (old, new), None, self._error))

    def look(self) -> None:
        self._look(self._random.choice(PLACES))

    def _look(self, place: str) -> bool:
        """Whether the directory is there."""
        said = {errno.ENOENT, errno.ESTALE}
        found = self._timed("lookup", place, do=lambda: os.stat(place, dir_fd=self._top), said=said)
        self._told_unless_stale(("lookup", (place,), found and found.st_ino, self._error))
        return found is not None

    def _told_unless_stale(self, operation: Done) -> None:
        """ESTALE tells nothing: the kernel finds a directory in use in two places (fusemirror-posix(7))."""
        self._told(*[] if self._error == errno.ESTALE else [operation])

    # --- files ----------------------------------------------------------------------------------------

    def _new_block(self) -> tuple[int, bytes]:
        self._tag += 1
        return self._tag, self._tag.to_bytes(TAG_BYTES) * (BLOCK_BYTES // TAG_BYTES)

    def write(self) -> None:
        """Where the file was opened to append, wherever one writes is its end (open(2))."""
        if self._appends:
            tag, data = self._new_block()
            self._put(self._file, "append", (self._inode, tag), data, 0)
        else:
            self._overwrite(self._file, self._inode)

    def _overwrite(self, descriptor: int, inode: int) -> None:
        block, (tag, data) = self._random.randrange(BLOCKS_MAX), self._new_block()
        self._put(descriptor, "write", (inode, block, tag), data, block)

    def _put(self, descriptor: int, call: str, arguments: tuple[int, ...], data: bytes, block: int) -> None:
        written = self._timed(call, *arguments, do=lambda: os.pwrite(descriptor, data, block * BLOCK_BYTES))
        assert written == BLOCK_BYTES, f"{written} of {BLOCK_BYTES} bytes"
        self._told((call, arguments, None, 0))
        if EARLY:
            self._write("early")
            self._early += 1
            if self._early == EARLY_MAX:
                self._sync()

    def _sync(self) -> None:
        """Be told whether what was acknowledged early has been done."""
        self._early = 0
        self._write("busy")
        try:
            os.fsync(self._file)
        except OSError as error:
            if error.errno not in DOUBT | {errno.ESTALE}:
                raise
            self._write("unsynced", time.monotonic_ns())
        else:
            self._write("synced", time.monotonic_ns())

    def truncate(self) -> None:
        self._truncate(self._file, self._inode)

    def _truncate(self, descriptor: int, inode: int) -> None:
        size = self._random.randrange(BLOCKS_MAX)
        self._timed("truncate", inode, size, do=lambda: os.ftruncate(descriptor, size * BLOCK_BYTES))
        self._told(("truncate", (inode, size), None, 0))

    def read(self) -> None:
        tags = self._tags(self._file, "read", (self._inode,), READ_BLOCKS, 0, Worker._by_read)
        self._told(("read", (self._inode,), tags, 0))

    def read_block(self) -> None:
        self._read_block(self._file, self._inode)

    def _read_block(self, descriptor: int, inode: int, way: "Way | None" = None) -> None:
        arguments = (inode, self._random.randrange(BLOCKS_MAX))
        way = way or Worker._by_read
        call = "read_block" if way is Worker._by_read else "page_block"
        tags = self._tags(descriptor, call, arguments, 1, arguments[1], way)
        self._told((call, arguments, tags[0] if tags else None, 0))

    def _tags(
        self, descriptor: int, call: str, arguments: tuple[int, ...], count: int, block: int, way: "Way"
    ) -> tuple[int, ...]:
        length, offset = count * BLOCK_BYTES, block * BLOCK_BYTES
        data = self._timed(call, *arguments, do=lambda: way(self, descriptor, length, offset))
        assert data is not None
        return tuple(_tag(data[start : start + BLOCK_BYTES]) for start in range(0, len(data), BLOCK_BYTES))

    def _by_read(self, descriptor: int, length: int, offset: int) -> bytes:
        return os.pread(descriptor, length, offset)

    def _by_sendfile(self, descriptor: int, length: int, offset: int) -> bytes:
        return self._piped(os.sendfile(self._pipe[1], descriptor, offset, length))

    def _by_splice(self, descriptor: int, length: int, offset: int) -> bytes:
        return self._piped(os.splice(descriptor, self._pipe[1], length, offset_src=offset))

    def _piped(self, length: int) -> bytes:
        return os.read(self._pipe[0], length) if length else b""

    def _by_copy(self, descriptor: int, length: int, offset: int) -> bytes:
        if self._copy < 0:
            name = f"copy-{self._number}"
            self._copy = os.open(name, os.O_RDWR | os.O_CREAT, 0o600, dir_fd=self._top)
        copied = os.copy_file_range(descriptor, self._copy, length, offset, 0)
        return os.pread(self._copy, copied, 0)

    def size(self) -> None:
        self._size(self._file, self._inode)

    def _size(self, descriptor: int, inode: int) -> None:
        found = self._timed("size", inode, do=lambda: os.fstat(descriptor))
        assert found is not None
        self._told(("size", (inode,), _blocks(found.st_size), 0))

    # --- files that are left alone for a while ----------------------------------------------------------

    def _in_calm_file(self) -> None:
        cycle, phase = divmod(time.monotonic(), CYCLE_S)  # noqa: TID251 - the same for all processes
        if phase > REOPEN_S and cycle != self._reopened:
            self._reopened = int(cycle)
            self._leave_calm()
            self._write("reopens")
        name = self._random.choice(CALM)
        mine, cut = name.endswith(str(self._side)), name.startswith("cut")
        with self._turn(name) as has_turn:
            if has_turn or mine or not cut:
                self._in_open_calm_file(name, phase, mine=mine, cut=cut)

    @contextmanager
    def _turn(self, name: str) -> Iterator[bool]:
        """Whether no other process of this host works on the file until the context is left."""
        turn = os.open(f"{self._control}/turn-{name}-{self._side}", os.O_WRONLY | os.O_CREAT)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(turn)

    def _in_open_calm_file(self, name: str, phase: float, *, mine: bool, cut: bool) -> None:
        descriptor, inode = self._calm_file(name)
        if mine and phase < STORM_S and self._random.random() < 0.5:
            self._change_calm_file(name, inode, cut=cut)
        elif (mine and cut) or self._random.random() < 0.3:
            self._size(descriptor, inode)
        else:
            # Of more than one block the kernel reads each for itself. Where programs of this host write, too,
            # its pages are shown while they are written, as on any filesystem.
            by_pages = not mine and self._random.random() < BY_PAGES_SHARE
            self._read_block(descriptor, inode, self._random.choice(PAGE_WAYS) if by_pages else None)

    def _calm_file(self, name: str) -> tuple[int, int]:
        """Open to read."""
        if name not in self._calm:
            descriptor = self._untold(lambda: self._open_calm(name, os.O_RDONLY | os.O_CREAT))
            self._calm[name] = descriptor, self._untold(lambda: os.fstat(descriptor).st_ino)
        return self._calm[name]

    def _open_calm(self, name: str, flags: int) -> int:
        return os.open(name, flags, 0o600, dir_fd=self._directory)

    def _untold(self, do: Callable[[], int]) -> int:
        """Do what is no part of the history."""
        self._write("busy")
        try:
            return do()
        except OSError as error:
            if error.errno not in DOUBT:
                raise
            raise Lost(error.errno) from error
        finally:
            self._write("idle")

    def _change_calm_file(self, name: str, inode: int, *, cut: bool) -> None:
        descriptor = self._untold(lambda: self._open_calm(name, os.O_WRONLY))
        try:
            if cut and self._random.random() < 0.3:
                self._truncate(descriptor, inode)
            else:
                self._overwrite(descriptor, inode)
        finally:
            self._close(descriptor)


ON_NAMES: dict[Callable[[Worker], None], int] = {
    Worker.open: 10,
    Worker.create: 4,
    Worker.open_or_create: 4,
    Worker.unlink: 2,
    Worker.rename: 3,
    Worker.stat: 5,
    Worker.list: 3,
    Worker.look: 1,
    Worker.move: 1,
}
IN_FILES: dict[Callable[[Worker], None], int] = {
    Worker.write: 6,
    Worker.truncate: 2,
    Worker.read: 5,
    Worker.read_block: 3,
    Worker.size: 3,
}
"""What a process does, and how often."""
Way = Callable[[Worker, int, int, int], bytes]
PAGE_WAYS: tuple[Way, ...] = (Worker._by_sendfile, Worker._by_splice, Worker._by_copy)
"""How a block is read that only the other host changes, where not by read(2)."""


def make_places(directory: Path) -> Operation:
    """Make the directory that moves; that it is there from the beginning."""
    for place in PLACES:
        (directory / place).parent.mkdir(exist_ok=True)
    (directory / PLACES[0]).mkdir()
    inode = (directory / PLACES[0]).stat().st_ino
    return Operation("crew", "create", (PLACES[0],), 0, 1, inode)


def _blocks(size_bytes: int) -> int:
    assert size_bytes % BLOCK_BYTES == 0, f"a size of {size_bytes} bytes"
    return size_bytes // BLOCK_BYTES


def _tag(block: bytes) -> int:
    """The tag of a whole block, 0 for a hole."""
    tag = block[:TAG_BYTES]
    assert block == tag * (BLOCK_BYTES // TAG_BYTES), f"a torn block that begins with {tag!r}"
    return int.from_bytes(tag)


Overtaken = tuple[int, int, int]
"""Of a write that was acknowledged early and overtaken by a fault: the inode, when it began, and when
an fsync told what became of it."""


def read_record(process: str, path: Path, overtaken: list[Overtaken] | None = None) -> list[Operation]:
    """The operations of one process. What began and was told nothing is in doubt, and so is what was
    acknowledged early and not synced. `overtaken` is extended by the writes that were."""
    operations: list[Operation] = []
    under_way: list[Operation] = []  # one at most
    early: list[int] = []  # where they stand among these

    def end_early(at_ns: int, synced: bool) -> None:
        for number in early:
            write = operations[number]
            if not synced:
                operations[number] = write.in_doubt()
            elif at_ns - (write.returned or 0) > HELD_S * 1e9:
                operations[number] = replace(write, returned=at_ns)
            else:
                continue
            if overtaken is not None:
                overtaken.append((write.arguments[0], write.invoked, at_ns))
        early.clear()

    for kind, *words in map(json.loads, path.read_text().splitlines()):
        if kind == "told":
            told, returned = words
            times = {"process": process, "invoked": under_way.pop().invoked, "returned": returned}
            operations += [parse(dict(zip(OUTCOME, each, strict=True)) | times) for each in told]
        elif kind == "begins":
            operations += under_way
            times = {"process": process, "invoked": words.pop()}
            under_way = [parse(dict(zip(OUTCOME, words, strict=False)) | times)]
        elif kind == "early":
            early.append(len(operations) - 1)
        elif kind in ("synced", "unsynced"):
            end_early(words[0], kind == "synced")
    end_early(sys.maxsize, synced=False)
    # What only looked, and was told nothing, says nothing.
    return [each for each in operations + under_way if each.returned or each.call not in LOOKS]


if __name__ == "__main__":
    Worker(*sys.argv[1:]).run()
