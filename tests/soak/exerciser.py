"""A program that works through both mounts of a filesystem, and knows what each call must tell it.

    python -m tests.soak.exerciser MOUNTPOINT MOUNTPOINT NAME SEED REPORT LATE_S

It alone works in the directory NAME, one call after the other, on either host as it draws. So there is one
right answer to each call, which a model here knows: of the content of files that are open on both hosts for
long, of names, of open files that have no name any more, of directories that move while descriptors of both
hosts stand in them. It asks by read(2), sendfile(2), splice(2), copy_file_range(2) and through maps, on
descriptors kept from before. Another errno or another byte ends it; how long a call takes is only noted.
Where links are cut, all ways but read(2) may tell for up to LATE_S seconds more of what was before.

It ends in good order once its standard input ends. REPORT gets a line of JSON for each call that was slow
(`slow`, when it began and ended, the host, the call) and in the end the number of calls of each kind.
"""

import errno
import json
import mmap
import os
import random
import select
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

BYTES_MAX = 40_000  # fits into a pipe
PIECE_BYTES_MAX = 9000
HANDLES_MAX = 24
FILES_MAX, NAMELESS_MAX = 12, 6
STANDS_MAX = 6
SLOW_S = 0.2
LAST = 40
MOVED = "a directory in use had moved"
LATE = "a host that was apart showed by its pages what was before"
MOVED_ERRNOS = {errno.ESTALE, errno.ELOOP, errno.EINVAL}  # for a moment: see fusemirror-posix(7)
MOVED_TRIES, MOVED_PAUSE_S = 100, 0.02
HOSTS = ("first", "second")

FILE_NAMES = tuple(f"f{number}" for number in range(5))
DIRECTORY_NAMES = tuple(f"d{number}" for number in range(4))

T = TypeVar("T")


class Wrong(Exception):
    """A call told something else than it must."""


@dataclass(eq=False)
class Directory:
    name: str
    parent: "Directory | None"
    children: "dict[str, Directory | File]" = field(default_factory=dict)
    stands: dict[int, int] = field(default_factory=dict)
    """A descriptor of it, by host."""

    def chain(self) -> "Iterator[Directory]":
        """It, and all above it."""
        at: Directory | None = self
        while at is not None:
            yield at
            at = at.parent

    def below(self) -> "Iterator[Directory]":
        """It, and all directories below it."""
        yield self
        for child in self.children.values():
            if isinstance(child, Directory):
                yield from child.below()


class Handle(NamedTuple):
    """An open file."""

    host: int
    descriptor: int
    flags: int
    through: tuple[Directory, ...]
    """The directories by which it was opened; the kernel keeps these while it is open."""


@dataclass(eq=False)
class File:
    content: bytearray = field(default_factory=bytearray)
    places: list[tuple[Directory, str]] = field(default_factory=list)
    handles: list[Handle] = field(default_factory=list)


class At(NamedTuple):
    """How a call names something: a path, or a name below an open directory."""

    path: str
    directory: int | None
    through: tuple[Directory, ...]
    """The directories that lead to it, and may have moved since the kernel saw them."""


class Exerciser:
    def __init__(
        self, mountpoints: tuple[str, str], name: str, seed: int, report: Path, late_s: float
    ) -> None:
        self._random = random.Random(seed)
        self._mountpoints = mountpoints
        self._late_s = late_s
        self._root = Directory(name, None)
        self._nameless: list[File] = []
        self._host = 0
        self._stays = self._random.choice((0.5, 0.9, 0.98))  # how likely the next call is on the same host
        self._stamp = 0
        self._report_file = report.open("w", buffering=1)
        self.counts: Counter[str] = Counter()
        self.last: deque[str] = deque(maxlen=LAST)
        """The last calls, and on what."""

    def run(self) -> None:
        self._call("mkdir", 0, lambda: os.mkdir(self._path(self._root, 0).path))
        actions, weights = [*ACTIONS], [*ACTIONS.values()]
        while not select.select([0], [], [], 0)[0]:
            if self._random.random() > self._stays:
                self._host = 1 - self._host
            self._random.choices(actions, weights)[0](self)
        for file in [*self._files(), *self._nameless]:
            self._read_everywhere(file)
            while file.handles:
                self._close(file, file.handles[-1])
        for directory in self._root.below():
            while directory.stands:
                self._leave(directory, next(iter(directory.stands)))
        self._report("counts", dict(self.counts))

    # --- calls ------------------------------------------------------------------------------------------

    def _report(self, *line: object) -> None:
        self._report_file.write(json.dumps(line) + "\n")

    def _call(self, what: str, host: int, do: Callable[[], T], *on: At, expect: int = 0) -> T:
        """Do one call on a host; it must end with the errno `expect`. None then."""
        self.last.append(f"{what} on the {HOSTS[host]} host: {' '.join(each.path for each in on)}")
        self.counts[what] += 1
        found, result = self._timed(what, host, do)
        tries = 0
        while found in MOVED_ERRNOS and tries < MOVED_TRIES and self._in_use(on, host):
            tries += 1
            self.counts[MOVED] += 1
            select.select([], [], [], MOVED_PAUSE_S)
            found, result = self._timed(what, host, do)
        if found != expect:
            words = [errno.errorcode.get(each, "success") for each in (found, expect)]
            raise Wrong(
                f"{what} on the {HOSTS[host]} host: {words[0]}, and not {words[1]} ({tries} tries);"
                f" {'; '.join(self._seen(each, host) for each in on)}"
            )
        return result  # type: ignore[return-value]

    def _seen(self, at: At, host: int) -> str:
        """Where the kernel has the descriptor by which something is named, and where its directories are."""
        kernels = "" if at.directory is None else os.readlink(f"/proc/self/fd/{at.directory}")
        return f"{at.path} from {kernels!r}, by way of {[self._path(each, host).path for each in at.through]}"

    def _timed(self, what: str, host: int, do: Callable[[], T]) -> tuple[int, T | None]:
        """The errno with which a call ends, or 0, and what it returns."""
        found, result = 0, None
        began = time.monotonic()  # noqa: TID251 - the clock of a test, not of the product
        try:
            result = do()
        except OSError as error:
            found = error.errno or -1
        ended = time.monotonic()  # noqa: TID251
        if ended - began > SLOW_S:
            self._report("slow", began, ended, host, what)
        return found, result

    def _in_use(self, on: tuple[At, ...], host: int) -> bool:
        """Whether the kernel of the host cannot let go of a directory on the way, which may have moved."""
        return any(self._pinned(directory, host) for each in on for directory in each.through)

    def _expect(self, what: str, host: int, found: object, wanted: object) -> None:
        if found != wanted:
            raise Wrong(f"{what} on the {HOSTS[host]} host: {_short(found)}, and not {_short(wanted)}")

    # --- where things are -------------------------------------------------------------------------------

    def _path(self, directory: Directory, host: int) -> At:
        chain = tuple(directory.chain())
        names = [each.name for each in chain]
        return At(os.path.join(self._mountpoints[host], *reversed(names)), None, chain[:-1])

    def _at(self, directory: Directory, name: str, host: int) -> At:
        """By a descriptor of the directory or of one above it, if there is one; or by the path."""
        child = directory.children.get(name)
        through = (*([child] if isinstance(child, Directory) else []), *directory.chain())[:-1]
        names = [name]
        for each in directory.chain():
            if host in each.stands and self._random.random() < 0.5:
                return At("/".join(reversed(names)), each.stands[host], through)
            names.append(each.name)
        return At(os.path.join(self._mountpoints[host], *reversed(names)), None, through)

    def _directories(self) -> list[Directory]:
        return list(self._root.below())

    def _files(self) -> list[File]:
        found: dict[int, File] = {}
        for directory in self._root.below():
            for child in directory.children.values():
                if isinstance(child, File):
                    found[id(child)] = child
        return list(found.values())

    def _any_name(self) -> tuple[Directory, str]:
        return self._random.choice(self._directories()), self._random.choice(FILE_NAMES)

    def _any_file(self) -> File | None:
        files = [*self._files(), *self._nameless]
        return self._random.choice(files) if files else None

    def _pinned(self, directory: Directory, host: int) -> bool:
        """Whether the kernel of the host keeps the directory for what is open there."""
        below = set(map(id, directory.below()))
        if any(host in each.stands for each in directory.below()):
            return True
        return any(
            handle.host == host and any(id(each) in below for each in handle.through)
            for file in [*self._files(), *self._nameless]
            for handle in file.handles
        )

    # --- open files -------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open a file that has a name, and keep it open."""
        files = self._files()
        if not files:
            return
        file = self._random.choice(files)
        self._open(file, self._host)
        while sum(len(each.handles) for each in [*self._files(), *self._nameless]) > HANDLES_MAX:
            holding = self._random.choice([each for each in self._files() if each.handles] or [file])
            self._close(holding, self._random.choice(holding.handles))

    def _open(self, file: File, host: int) -> Handle:
        directory, name = self._random.choice(file.places)
        flags = self._random.choice((os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND))
        at = self._at(directory, name, host)
        descriptor = self._call("open", host, lambda: os.open(at.path, flags, dir_fd=at.directory), at)
        handle = Handle(host, descriptor, flags, tuple(directory.chain()))
        file.handles.append(handle)
        return handle

    def _close(self, file: File, handle: Handle) -> None:
        self._call("close", handle.host, lambda: os.close(handle.descriptor))
        file.handles.remove(handle)

    def _any_handle(self, *, writes: bool = False) -> tuple[File, Handle] | None:
        """Of this host, if there is one."""
        found = [
            (file, handle)
            for file in [*self._files(), *self._nameless, *self._nameless]
            for handle in file.handles
            if not writes or handle.flags & os.O_ACCMODE == os.O_RDWR
        ]
        here = [each for each in found if each[1].host == self._host]
        return self._random.choice(here or found) if found else None

    def _piece(self) -> bytes:
        self._stamp += 1
        stamp = b"%07d." % self._stamp
        return (stamp * (PIECE_BYTES_MAX // len(stamp) + 1))[: self._random.randrange(1, PIECE_BYTES_MAX)]

    def write(self) -> None:
        if (chosen := self._any_handle(writes=True)) is None:
            return
        file, (host, descriptor, flags, _) = chosen
        piece = self._piece()
        if flags & os.O_APPEND:
            if len(file.content) + len(piece) > BYTES_MAX:
                return
            offset = len(file.content)
            written = self._call("append", host, lambda: os.write(descriptor, piece))
        else:
            offset = self._random.randrange(BYTES_MAX - len(piece))
            written = self._call("write", host, lambda: os.pwrite(descriptor, piece, offset))
        self._expect("the length of a write", host, written, len(piece))
        file.content.extend(bytes(max(0, offset - len(file.content))))
        file.content[offset : offset + len(piece)] = piece

    def truncate(self) -> None:
        if (chosen := self._any_handle(writes=True)) is None:
            return
        file, handle = chosen
        size = self._random.randrange(BYTES_MAX)
        self._call("truncate", handle.host, lambda: os.ftruncate(handle.descriptor, size))
        del file.content[size:]
        file.content.extend(bytes(size - len(file.content)))

    def fsync(self) -> None:
        if (chosen := self._any_handle()) is not None:
            _, handle = chosen
            self._call("fsync", handle.host, lambda: os.fsync(handle.descriptor))

    def read(self) -> None:
        """What is in a file, by one of the ways in which a descriptor from before shows it."""
        if (chosen := self._any_handle()) is None:
            return
        file, handle = chosen
        self._read(file, handle, self._random.choice([*WAYS]))

    def _read(self, file: File, handle: Handle, way: str) -> None:
        offset = self._random.choice((0, 0, self._random.randrange(len(file.content) + 1)))
        wanted = bytes(file.content[offset:])
        what = f"{way}{'' if file.places else ' without a name'}"
        read = partial(WAYS[way], self, handle, offset, len(file.content))
        found = self._call(what, handle.host, read)
        if way != "pread" and found != wanted:
            found = self._late(read, wanted)
        self._expect(f"{what} from byte {offset} of {len(file.content)}", handle.host, found, wanted)

    def _late(self, read: Callable[[], bytes], wanted: bytes) -> bytes:
        """What is told in the end: what the kernel has of a file it shows without asking (fusemirror(7))."""
        self.counts[LATE] += 1
        end = time.monotonic() + self._late_s  # noqa: TID251
        while (found := read()) != wanted and time.monotonic() < end:  # noqa: TID251
            select.select([], [], [], MOVED_PAUSE_S)
        return found

    def size(self) -> None:
        if (chosen := self._any_handle()) is None:
            return
        file, handle = chosen
        found = self._call("fstat", handle.host, lambda: os.fstat(handle.descriptor))
        self._expect("the size", handle.host, found.st_size, len(file.content))
        self._expect("the link count", handle.host, found.st_nlink, len(file.places))

    def _by_pread(self, handle: Handle, offset: int, _: int) -> bytes:
        return os.pread(handle.descriptor, BYTES_MAX + 1, offset)

    def _by_sendfile(self, handle: Handle, offset: int, _: int) -> bytes:
        return _piped(lambda end, at: os.sendfile(end, handle.descriptor, at, BYTES_MAX), offset)

    def _by_splice(self, handle: Handle, offset: int, _: int) -> bytes:
        return _piped(lambda end, at: os.splice(handle.descriptor, end, BYTES_MAX, offset_src=at), offset)

    def _by_copy(self, handle: Handle, offset: int, _: int) -> bytes:
        path = os.path.join(self._mountpoints[handle.host], f"copied-{self._root.name}")
        copy = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            at = 0
            while moved := os.copy_file_range(handle.descriptor, copy, BYTES_MAX, offset + at, at):
                at += moved
                if at > 2 * BYTES_MAX:
                    raise Wrong("copy_file_range does not come to an end")
            return os.pread(copy, BYTES_MAX + 1, 0)
        finally:
            os.close(copy)

    def _by_map(self, handle: Handle, offset: int, size: int) -> bytes:
        if not size:
            return b""
        with mmap.mmap(handle.descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
            return mapped[offset:]

    def _read_everywhere(self, file: File) -> None:
        for handle in file.handles:
            self._read(file, handle, "pread")

    # --- names ------------------------------------------------------------------------------------------

    def create(self) -> None:
        (directory, name), host = self._any_name(), self._host
        at = self._at(directory, name, host)
        taken = name in directory.children
        if not taken and len(self._files()) >= FILES_MAX:
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        descriptor = self._call(
            "create",
            host,
            lambda: os.open(at.path, flags, 0o600, dir_fd=at.directory),
            at,
            expect=errno.EEXIST if taken else 0,
        )
        if not taken:
            file = File(places=[(directory, name)])
            file.handles.append(Handle(host, descriptor, os.O_RDWR, tuple(directory.chain())))
            directory.children[name] = file

    def unlink(self) -> None:
        """Also of what has a handle on either host, which goes on."""
        (directory, name), host = self._any_name(), self._host
        file = directory.children.get(name)
        assert file is None or isinstance(file, File)
        at = self._at(directory, name, host)
        if file is not None and self._random.random() < 0.5 and len(file.handles) < 4:
            self._open(file, self._random.choice((host, 1 - host)))
        expect = errno.ENOENT if file is None else 0
        self._call("unlink", host, lambda: os.unlink(at.path, dir_fd=at.directory), at, expect=expect)
        if file is not None:
            del directory.children[name]
            self._lost(file, directory, name)

    def _lost(self, file: File, directory: Directory, name: str) -> None:
        """A file has lost a name."""
        file.places.remove((directory, name))
        if not file.places and file.handles:
            self._nameless.append(file)
        if len(self._nameless) > NAMELESS_MAX:
            gone = self._nameless.pop(self._random.randrange(len(self._nameless)))
            self._read_everywhere(gone)
            while gone.handles:
                self._close(gone, gone.handles[-1])

    def link(self) -> None:
        files, (directory, name), host = self._files(), self._any_name(), self._host
        if not files or name in directory.children:
            return
        file = self._random.choice(files)
        old, new = self._at(*self._random.choice(file.places), host), self._at(directory, name, host)
        self._call(
            "link",
            host,
            lambda: os.link(old.path, new.path, src_dir_fd=old.directory, dst_dir_fd=new.directory),
            old,
            new,
        )
        directory.children[name] = file
        file.places.append((directory, name))

    def rename(self) -> None:
        """A file, within a directory or to another; what has the new name loses it."""
        (directory, name), (onto, new_name), host = self._any_name(), self._any_name(), self._host
        file, replaced = directory.children.get(name), onto.children.get(new_name)
        assert not isinstance(file, Directory)
        assert not isinstance(replaced, Directory)
        old, new = self._at(directory, name, host), self._at(onto, new_name, host)
        ends = {"src_dir_fd": old.directory, "dst_dir_fd": new.directory}
        expect = errno.ENOENT if file is None else 0
        self._call("rename", host, lambda: os.rename(old.path, new.path, **ends), old, new, expect=expect)
        if file is None or file is replaced:
            return
        del directory.children[name]
        file.places.remove((directory, name))
        onto.children[new_name] = file
        file.places.append((onto, new_name))
        if replaced is not None:
            self._lost(replaced, onto, new_name)

    def stat(self) -> None:
        (directory, name), host = self._any_name(), self._host
        file = directory.children.get(name)
        at = self._at(directory, name, host)
        expect = errno.ENOENT if file is None else 0
        found = self._call("stat", host, lambda: os.stat(at.path, dir_fd=at.directory), at, expect=expect)
        if file is not None:
            assert isinstance(file, File)
            wanted = (len(file.content), len(file.places))
            self._expect("size and links", host, (found.st_size, found.st_nlink), wanted)

    def read_anew(self) -> None:
        """Open a file by its name, to read it."""
        files, host = self._files(), self._host
        if not files:
            return
        file = self._random.choice(files)
        at = self._at(*self._random.choice(file.places), host)

        def content() -> bytes:
            descriptor = os.open(at.path, os.O_RDONLY, dir_fd=at.directory)
            try:
                return os.pread(descriptor, BYTES_MAX + 1, 0)
            finally:
                os.close(descriptor)

        self._expect("content", host, self._call("open and read", host, content, at), bytes(file.content))

    def list(self) -> None:
        directory, host = self._random.choice(self._directories()), self._host
        if host in directory.stands and self._random.random() < 0.5:
            found = self._call("list", host, lambda: os.listdir(directory.stands[host]))
        else:
            at = self._path(directory, host)
            found = self._call("list", host, lambda: os.listdir(at.path), at)
        self._expect("a list", host, sorted(found), sorted(directory.children))

    # --- directories ------------------------------------------------------------------------------------

    def mkdir(self) -> None:
        parent, host = self._random.choice(self._directories()), self._host
        name = self._random.choice(DIRECTORY_NAMES)
        at, taken = self._at(parent, name, host), name in parent.children
        if len(list(parent.chain())) > 4:
            return
        expect = errno.EEXIST if taken else 0
        self._call("mkdir", host, lambda: os.mkdir(at.path, dir_fd=at.directory), at, expect=expect)
        if not taken:
            parent.children[name] = Directory(name, parent)

    def rmdir(self) -> None:
        directories = self._directories()[1:]
        if not directories:
            return
        directory, host = self._random.choice(directories), self._host
        assert directory.parent is not None
        full = bool(directory.children)
        if not full:
            for stands in [*directory.stands]:
                self._leave(directory, stands)
        at = self._at(directory.parent, directory.name, host)
        expect = errno.ENOTEMPTY if full else 0
        self._call("rmdir", host, lambda: os.rmdir(at.path, dir_fd=at.directory), at, expect=expect)
        if not full:
            del directory.parent.children[directory.name]

    def stand(self) -> None:
        """Open a directory, and keep it open: calls of this host go by it from now on, wherever it moves."""
        directory, host = self._random.choice(self._directories()), self._host
        at = self._path(directory, host)
        if host not in directory.stands:
            directory.stands[host] = self._call("open", host, lambda: os.open(at.path, os.O_DIRECTORY), at)
        standing = [(each, on) for each in self._directories() for on in each.stands]
        if len(standing) > STANDS_MAX:
            self._leave(*self._random.choice(standing))

    def _leave(self, directory: Directory, host: int) -> None:
        descriptor = directory.stands.pop(host)
        self._call("close", host, lambda: os.close(descriptor))

    def move(self) -> None:
        """Give a directory another name, or move it to another directory, with all that works below it."""
        directories, host = self._directories(), self._host
        moving = self._random.choice(directories)
        outside = [each for each in directories if moving not in each.chain()]
        if moving.parent is None or not outside:
            return
        onto = self._random.choice((moving.parent, self._random.choice(outside)))
        free = [name for name in DIRECTORY_NAMES if name not in onto.children]
        if not free:
            return
        name = self._random.choice(free)
        old, new = self._at(moving.parent, moving.name, host), self._at(onto, name, host)
        ends = {"src_dir_fd": old.directory, "dst_dir_fd": new.directory}
        what = "rename a directory" if onto is moving.parent else "move a directory"
        self._call(
            what,
            host,
            lambda: os.rename(old.path, new.path, **ends),
            old,
            new._replace(through=(moving, *new.through)),
        )
        del moving.parent.children[moving.name]
        moving.name, moving.parent = name, onto
        onto.children[name] = moving


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def _piped(move: Callable[[int, int], int], offset: int) -> bytes:
    """What `move` brings into a pipe, until it brings nothing more."""
    found = bytearray()
    with _pipe() as (read_end, write_end):
        while moved := move(write_end, offset + len(found)):
            while moved:
                piece = os.read(read_end, moved)
                moved -= len(piece)
                found += piece
    return bytes(found)


def _short(value: object) -> str:
    """For people: of bytes the length, and those around the first that is not as before."""
    return f"{len(value)} bytes, {value[:30]!r}.." if isinstance(value, bytes) else repr(value)


WAYS: dict[str, Callable[[Exerciser, Handle, int, int], bytes]] = {
    "pread": Exerciser._by_pread,
    "sendfile": Exerciser._by_sendfile,
    "splice": Exerciser._by_splice,
    "copy_file_range": Exerciser._by_copy,
    "map": Exerciser._by_map,
}
ACTIONS: dict[Callable[[Exerciser], None], int] = {
    Exerciser.open: 6,
    Exerciser.write: 14,
    Exerciser.truncate: 3,
    Exerciser.fsync: 3,
    Exerciser.read: 20,
    Exerciser.size: 5,
    Exerciser.create: 6,
    Exerciser.unlink: 5,
    Exerciser.link: 2,
    Exerciser.rename: 5,
    Exerciser.stat: 6,
    Exerciser.read_anew: 5,
    Exerciser.list: 3,
    Exerciser.mkdir: 4,
    Exerciser.rmdir: 2,
    Exerciser.stand: 3,
    Exerciser.move: 6,
}


def main(first: str, second: str, name: str, seed: str, report: str, late_s: str) -> None:
    exerciser = Exerciser((first, second), name, int(seed), Path(report), float(late_s))
    try:
        exerciser.run()
    except Wrong as wrong:
        last = "\n".join(exerciser.last)
        sys.exit(f"{last}\n{name}, seed {seed}, after {sum(exerciser.counts.values())} calls: {wrong}")


if __name__ == "__main__":
    main(*sys.argv[1:])
