"""A disk as a trace of system calls tells of it, and what a power cut could leave of it.

What counts as durable is the least that ext4 promises, and that POSIX lets one rely on:

- Bytes written and lengths set are durable after an fsync or fdatasync of the file. Before that each write
  may be there or not, whole or up to a sector, and later ones without earlier ones; a length that was cut
  and is lost takes with it what was written after it.
- Names and time stamps are in the filesystem's own journal: what a cut leaves is a beginning of their
  history. It reaches at least to the last name made or removed in a directory that was synced since, to the
  making of each file that was synced, and to the time stamps of each that was fsynced (fdatasync need not
  keep them).
"""

import enum
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

CALLS = (
    "trace="
    "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,lseek,ftruncate,truncate,fallocate,rename,renameat,"
    "renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,symlink,symlinkat,fsync,fdatasync,sync_file_range,"
    "syncfs,sync,msync,utimensat"
)
_NO_CHANGE = {"sync_file_range"}  # promises nothing
_SECTOR_BYTES = 512
_LINE = re.compile(r"(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)(.*)")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"(\d+)<([^>]*)>")
_TIME = re.compile(r"tv_sec=(\d+), tv_nsec=(\d+)")


class Keep(enum.Enum):
    """What a cut keeps of what was not synced."""

    NOTHING = "nothing"
    EVERYTHING = "everything"
    SOME = "some"
    TORN = "all but the end of one write"


@dataclass(frozen=True)
class Call:
    """One call of the trace that succeeded."""

    name: str
    descriptor: int
    paths: tuple[str, ...]
    data: bytes
    arguments: str
    result: int


@dataclass
class _Write:
    offset: int
    data: bytes


@dataclass
class _Length:
    size: int


@dataclass
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[_Write | _Length] = field(default_factory=list)
    size: int = 0

    def write(self, offset: int, data: bytes) -> None:
        self.pending.append(_Write(offset, data))
        self.size = max(self.size, offset + len(data))

    def cut(self, size: int) -> None:
        self.pending.append(_Length(size))
        self.size = size

    def sync(self) -> None:
        _apply(self.durable, self.pending)
        self.pending.clear()

    def sync_last(self) -> None:
        """The last change alone is durable."""
        _apply(self.durable, [self.pending.pop()])

    def left(self, keep: Keep, choose: random.Random, torn: "_File | None") -> bytes:
        content = bytearray(self.durable)
        kept: list[_Write | _Length] = [] if keep is Keep.NOTHING else list(self.pending)
        if keep is Keep.SOME:
            kept = list(_some(kept, choose))
        elif self is torn and kept:
            last = kept.pop()
            if isinstance(last, _Write):
                beyond = last.offset + len(last.data) + _SECTOR_BYTES - 1
                sectors = range(last.offset // _SECTOR_BYTES, beyond // _SECTOR_BYTES)
                end = choose.choice(sectors) * _SECTOR_BYTES
                kept.append(_Write(last.offset, last.data[: max(0, end - last.offset)]))
        _apply(content, kept)
        return bytes(content)


def _some(pending: list[_Write | _Length], choose: random.Random) -> Iterator[_Write | _Length]:
    for change in pending:
        if choose.random() < 0.5:
            yield change
        elif isinstance(change, _Length):
            return


def _apply(content: bytearray, changes: list[_Write | _Length]) -> None:
    for change in changes:
        if isinstance(change, _Length):
            del content[change.size :]
            content.extend(bytes(change.size - len(content)))
        elif change.data:
            content.extend(bytes(max(0, change.offset - len(content))))
            content[change.offset : change.offset + len(change.data)] = change.data


@dataclass(frozen=True)
class _Make:
    path: str
    file: _File | None  # None for a directory


@dataclass(frozen=True)
class _Rename:
    path: str
    to: str


@dataclass(frozen=True)
class _Remove:
    path: str


@dataclass(frozen=True)
class _Times:
    file: _File
    atime_ns: int
    mtime_ns: int


_History = list[_Make | _Rename | _Remove | _Times]


class Disk:
    """Everything below `root`, as of the calls done so far."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._history: _History = []
        self._durable = 0  # so much of the history
        self._names: dict[str, _File | None] = {self._root: None}
        self._made: dict[int, int] = {}  # by identity of the file: where in the history
        self._made_directories: dict[str, int] = {}
        self._positions: dict[int, int] = {}
        self._append: set[int] = set()
        self._at_once: set[int] = set()

    def do(self, call: Call) -> bool:
        """Whether the call changed something, or made it durable."""
        name = call.name
        if name == "openat":
            return self._open(call)
        path = call.paths[0] if call.paths else ""
        if name == "mkdir":
            self._made_directories[path] = len(self._history)
            self._add(_Make(path, None))
        elif name == "rename":
            self._add(_Rename(path, call.paths[1]))
        elif name in ("unlink", "rmdir"):
            self._add(_Remove(path))
        elif path not in self._names:
            assert path.endswith("(deleted)"), call
            return False
        elif name in ("fsync", "fdatasync"):
            self._sync(path, with_times=name == "fsync")
        elif name == "syncfs":
            self._durable = len(self._history)
            for file in self._names.values():
                if file is not None:
                    file.sync()
        else:
            return self._change_file(call, path)
        return True

    def _open(self, call: Call) -> bool:
        path, number = call.paths[0], call.result
        self._positions[number] = 0
        self._append.discard(number)
        self._at_once.discard(number)
        if "O_APPEND" in call.arguments:
            self._append.add(number)
        if "O_DSYNC" in call.arguments or "O_SYNC" in call.arguments:
            self._at_once.add(number)
        if path not in self._names and "O_CREAT" in call.arguments:
            file = _File()
            self._made[id(file)] = len(self._history)
            self._add(_Make(path, file))
            return True
        file_or_none = self._names[path]
        if "O_TRUNC" in call.arguments and file_or_none is not None and file_or_none.size:
            file_or_none.cut(0)
            return True
        return False

    def _change_file(self, call: Call, path: str) -> bool:
        file, number = self._names[path], call.descriptor
        assert file is not None, call
        after = call.arguments.rpartition(", ")[2]
        if call.name == "lseek":
            self._positions[number] = call.result
            return False
        if call.name in ("write", "writev"):
            offset = file.size if number in self._append else self._positions[number]
            file.write(offset, call.data[: call.result])
            self._positions[number] = offset + call.result
        elif call.name in ("pwrite64", "pwritev"):
            file.write(int(after), call.data[: call.result])
        elif call.name in ("ftruncate", "truncate"):
            file.cut(int(after))
        elif call.name == "utimensat":
            (access, access_ns), (change, change_ns) = _TIME.findall(call.arguments)
            times = int(access) * 10**9 + int(access_ns), int(change) * 10**9 + int(change_ns)
            self._history.append(_Times(file, *times))
        else:
            assert call.name in _NO_CHANGE, call
        if number in self._at_once:
            file.sync_last()
        return True

    def _add(self, change: _Make | _Rename | _Remove) -> None:
        self._history.append(change)
        _apply_name(self._names, change)

    def _sync(self, path: str, *, with_times: bool) -> None:
        file = self._names[path]
        if file is not None:
            file.sync()
            self._reach(self._made[id(file)])
        elif path in self._made_directories:
            self._reach(self._made_directories[path])
        for place in range(len(self._history) - 1, self._durable - 1, -1):
            change = self._history[place]
            if isinstance(change, _Times):
                reached = with_times and change.file is file
            elif isinstance(change, _Rename):
                reached = file is None and path in (_parent(change.path), _parent(change.to))
            else:
                reached = file is None and _parent(change.path) == path
            if reached:
                self._reach(place)
                return

    def _reach(self, place: int) -> None:
        self._durable = max(self._durable, place + 1)

    # --- the cut -------------------------------------------------------------------------------------

    def leave(self, directory: Path, keep: Keep, choose: random.Random) -> None:
        """Put into `directory`, which must not exist, what a power cut now could leave."""
        end = len(self._history)
        if keep is Keep.NOTHING:
            end = self._durable
        elif keep is Keep.SOME:
            end = choose.randint(self._durable, end)
        names: dict[str, _File | None] = {self._root: None}
        times: dict[int, _Times] = {}
        for change in self._history[:end]:
            if isinstance(change, _Times):
                times[id(change.file)] = change
            else:
                _apply_name(names, change)
        unsynced = [file for file in names.values() if file is not None and file.pending]
        torn = choose.choice(unsynced) if unsynced else None
        for path in sorted(names):
            target = directory / PurePosixPath(path).relative_to(self._root)
            file = names[path]
            if file is None:
                target.mkdir()
                continue
            target.write_bytes(file.left(keep, choose, torn if keep is Keep.TORN else None))
            if (found := times.get(id(file))) is not None:
                os.utime(target, ns=(found.atime_ns, found.mtime_ns))


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _apply_name(names: dict[str, _File | None], change: _Make | _Rename | _Remove) -> None:
    if isinstance(change, _Make):
        names[change.path] = change.file
    elif isinstance(change, _Remove):
        del names[change.path]
    else:
        below = [path for path in names if path.startswith(change.path + "/")]
        for path in (change.path, *below):
            names[change.to + path.removeprefix(change.path)] = names.pop(path)


# --- the trace -------------------------------------------------------------------------------------------


def calls(trace: Path, root: Path) -> Iterator[Call]:
    """The calls of a trace that concern what is below `root`, in their order. All are of one thread."""
    needle = "".join(f"\\x{byte:02x}" for byte in os.fsencode(f"{root}/"))
    with trace.open(encoding="ascii") as lines:
        for line in lines:
            if needle in line:
                yield _parse(line)


def _parse(line: str) -> Call:
    found = _LINE.fullmatch(line.strip())
    assert found, line[:200]
    name, arguments, result, _ = found.groups()
    strings = [_decoded(string) for string in _STRING.findall(arguments)]
    descriptor, paths, data = -1, tuple(os.fsdecode(string) for string in strings), b""
    if name not in ("openat", "mkdir", "rename", "unlink", "rmdir", "truncate"):
        first = _DESCRIPTOR.match(arguments)
        assert first, f"a call that the model does not know: {line[:200]}"
        descriptor, paths = int(first[1]), (os.fsdecode(_decoded(first[2])),)
        data = b"".join(strings)
    return Call(name, descriptor, paths, data, _STRING.sub("", arguments), int(result))


def _decoded(text: str) -> bytes:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text).encode("latin-1")
