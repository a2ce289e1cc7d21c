"""One process that calls everything on the same few names as its fellows, and tells what it should not see.

    python -m tests.mount.hammering DIRECTORY SEED SECONDS PROGRESS_FILE [moves]

It prints one line per surprise, then the number of calls. PROGRESS_FILE holds the call under way, and was
written as it began, for whoever finds it hanging. A surprise is an errno that a local filesystem would not
give in that call, or a short write. With `moves`, directories are moved to other directories too.
"""

import errno
import mmap
import os
import random
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

FILES = ("a", "b", "c", "d/a", "d/b", "e/a", "e/d/a")
DIRECTORIES = ("d", "e", "e/d", "e/e")
NAMES = FILES + DIRECTORIES

# Nobody changes this one for most of the time, so that the kernels keep its content and attributes;
# then all do, by every means, while others have it open and mapped.
CALM = "calm"
CYCLE_S, STORM_S = 5.0, 2.0
CALM_SHARE = 0.1
MAPPED_BYTES_MAX = 1 << 18
SURPRISES_MAX = 50

# What the walk to a path may find when others work there: a component that is gone, or is a file by now.
WALK = {errno.ENOENT, errno.ENOTDIR}

ALLOWED: dict[str, set[int]] = {
    "create": WALK | {errno.EISDIR},
    "create_exclusive": WALK | {errno.EEXIST},
    # A file onto a directory and the reverse, a directory that is not empty, one into itself.
    "rename": WALK | {errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST, errno.EINVAL},
    "unlink": WALK | {errno.EISDIR},
    "link": WALK | {errno.EEXIST, errno.EPERM},  # EPERM: no second name for a directory
    "symlink": WALK | {errno.EEXIST},
    "mkdir": WALK | {errno.EEXIST},
    "rmdir": WALK | {errno.ENOTEMPTY},
    "write": WALK | {errno.EISDIR},
    "append": WALK | {errno.EISDIR},
    "truncate": WALK | {errno.EISDIR},
    "read": WALK | {errno.EISDIR},
    "stat": WALK,
    "readdir": WALK,
    "chmod": WALK,
    "utime": WALK,
    "setxattr": WALK,
    "fsync": WALK,
    "look_again": WALK | {errno.EISDIR},
    "map_and_read": WALK | {errno.EISDIR},
    "map_and_write": WALK | {errno.EISDIR},
}
LOOKS = {"read", "stat", "look_again", "map_and_read"}
# Any walk may meet a symbolic link to itself.
EVERYWHERE = {errno.ELOOP}
# A directory that the other host has moved is known to this kernel by its old place until somebody
# looks it up at its new one. If another call is just changing the old place, the kernel does not wait
# but answers ESTALE by itself (d_splice_alias), a second time as well: the request never reaches us.
OF_MOVES = {errno.ESTALE}
# The other host has moved the directory that was looked up, and put another in its place, before it could be
# removed or replaced; and once more when the kernel looked and asked a second time.
OF_DIRECTORIES = {"rmdir": OF_MOVES, "rename": OF_MOVES}


@contextmanager
def suppress_truncated() -> Iterator[None]:
    """Others truncate what is mapped here."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise


class Hammer:
    def __init__(self, directory: Path, seed: int, progress: Path, *, moves: bool) -> None:
        self.moves = moves
        self.everywhere = EVERYWHERE | OF_MOVES if moves else EVERYWHERE
        self.random = random.Random(seed)
        self.directory = directory
        self.calls = 0
        self.mapped = 0
        self.surprises: list[str] = []
        self._kept = -1  # a descriptor that stays open over many calls
        self._memory = os.memfd_create("hammer")
        os.truncate(self._memory, MAPPED_BYTES_MAX)
        self._progress = os.open(progress, os.O_CREAT | os.O_WRONLY)
        self._calls: list[Callable[[], None]] = [getattr(self, name) for name in ALLOWED]

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds  # noqa: TID251 - a program of its own
        while time.monotonic() < end:  # noqa: TID251
            call = self.random.choice(self._calls)
            try:
                call()
            except OSError as error:
                name = call.__name__
                if error.errno not in ALLOWED[name] | OF_DIRECTORIES.get(name, set()) | self.everywhere:
                    self._surprise(f"{self._now}: {errno.errorcode.get(error.errno or 0)}")
            self.calls += 1

    def _surprise(self, what: str) -> None:
        self.surprises.append(what)
        if len(self.surprises) <= SURPRISES_MAX:  # what nobody reads yet must fit into a pipe
            print(what, flush=True)

    def _path(self, call: str) -> Path:
        storm = time.monotonic() % CYCLE_S < STORM_S  # noqa: TID251 - the same for all processes
        if self.random.random() < CALM_SHARE and (storm or call in LOOKS):
            return self._note(call, self.directory / CALM)
        return self._note(call, self._any())

    def _any(self, names: Sequence[str] = NAMES) -> Path:
        return self.directory / self.random.choice(names)

    def _note(self, call: str, *paths: Path) -> Path:
        self._now = f"{call} {' '.join(str(path.relative_to(self.directory)) for path in paths)}"
        os.pwrite(self._progress, f"{self._now:<60}\n".encode(), 0)
        return paths[0]

    # --- names --------------------------------------------------------------------------------------

    def create(self) -> None:
        os.close(os.open(self._path("create"), os.O_CREAT | os.O_WRONLY, 0o644))

    def create_exclusive(self) -> None:
        os.close(os.open(self._path("create_exclusive"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

    def rename(self) -> None:
        if not self.moves and self.random.randrange(3) == 0:
            self._rename_in_place()
            return
        old, new = self._any(NAMES if self.moves else FILES), self._any()
        self._note("rename", old, new)
        os.rename(old, new)

    def _rename_in_place(self) -> None:
        """A directory keeps its parent, whichever has that name by now."""
        old = self._any(DIRECTORIES)
        new = old.with_name(self.random.choice("de"))
        self._note("rename", old, new)
        parent = os.open(old.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            os.rename(old.name, new.name, src_dir_fd=parent, dst_dir_fd=parent)
        finally:
            os.close(parent)

    def unlink(self) -> None:
        self._path("unlink").unlink()

    def link(self) -> None:
        old, new = self._any(), self._any()
        self._note("link", old, new)
        os.link(old, new)

    def symlink(self) -> None:
        self._path("symlink").symlink_to(self.random.choice(("a", "b", "d", "e/a")))

    def mkdir(self) -> None:
        self._note("mkdir", path := self._any(NAMES if self.moves else DIRECTORIES))
        path.mkdir()

    def rmdir(self) -> None:
        self._path("rmdir").rmdir()

    def stat(self) -> None:
        self._path("stat").stat()

    def readdir(self) -> None:
        with os.scandir(self._path("readdir")) as entries:
            names = [entry.name for entry in entries]
        if len(names) != len(set(names)):
            self._surprise(f"{self._now}: a name twice in {names}")

    # --- content ------------------------------------------------------------------------------------

    def _in_file(self, call: str, flags: int, work: Callable[[int], None]) -> None:
        descriptor = os.open(self._path(call), flags)
        try:
            work(descriptor)
        except OSError as error:
            if error.errno != errno.EISDIR:  # an open file works, whatever became of its names
                self._surprise(f"{self._now}, open: {errno.errorcode.get(error.errno or 0)}")
        finally:
            os.close(descriptor)

    def _put(self, descriptor: int, at: int | None) -> None:
        data = self.random.randbytes(self.random.choice((1, 100, 4096, 70_000)))
        written = os.write(descriptor, data) if at is None else os.pwrite(descriptor, data, at)
        if written != len(data):
            self._surprise(f"{self._now}: {written} of {len(data)} bytes")

    def write(self) -> None:
        offset = self.random.choice((0, 4095, 100_000))
        self._in_file("write", os.O_WRONLY, lambda descriptor: self._put(descriptor, offset))

    def append(self) -> None:
        self._in_file("append", os.O_WRONLY | os.O_APPEND, lambda descriptor: self._put(descriptor, None))

    def read(self) -> None:
        self._in_file("read", os.O_RDONLY, lambda descriptor: self._get(descriptor))

    def _get(self, descriptor: int) -> None:
        os.pread(descriptor, 100_000, self.random.choice((0, 4096)))
        os.fstat(descriptor)

    def look_again(self) -> None:
        """Through a descriptor that only reads, and for which the kernel may keep the content."""
        if self._kept < 0 or self.random.random() < 0.02:
            path = self._path("look_again")
            if self._kept >= 0:
                os.close(self._kept)
                self._kept = -1
            self._kept = os.open(path, os.O_RDONLY)
        self._note("look_again", self.directory)
        self._get(self._kept) if stat.S_ISREG(os.fstat(self._kept).st_mode) else os.fsync(self._kept)

    def map_and_read(self) -> None:
        self._in_file("map_and_read", os.O_RDONLY, lambda file: self._in_mapping(file, mmap.PROT_READ))

    def map_and_write(self) -> None:
        self._in_file(
            "map_and_write", os.O_RDWR, lambda file: self._in_mapping(file, mmap.PROT_READ | mmap.PROT_WRITE)
        )

    def _in_mapping(self, file: int, protection: int) -> None:
        """The kernel copies, so that a page which was truncated is an error and no signal."""
        found = os.fstat(file)
        size = min(found.st_size, MAPPED_BYTES_MAX)
        if not stat.S_ISREG(found.st_mode) or not size:
            return
        offset = self.random.randrange(size)
        # ValueError: it was truncated since.
        with suppress(ValueError), mmap.mmap(file, size, mmap.MAP_SHARED, protection) as mapped:
            with memoryview(mapped) as view, view[offset : offset + 5_000] as part, suppress_truncated():
                os.pwrite(self._memory, part, 0)
                if protection & mmap.PROT_WRITE:
                    os.preadv(self._memory, [part], 0)
                    mapped.flush()
            self.mapped += 1

    def fsync(self) -> None:
        self._in_file("fsync", os.O_RDONLY, os.fsync)

    def truncate(self) -> None:
        os.truncate(self._path("truncate"), self.random.choice((0, 1, 5_000, 200_000)))

    # --- attributes ---------------------------------------------------------------------------------

    def chmod(self) -> None:
        self._path("chmod").chmod(self.random.choice((0o600, 0o644, 0o755)))

    def utime(self) -> None:
        os.utime(self._path("utime"), ns=(1, self.random.randrange(1 << 40)))

    def setxattr(self) -> None:
        os.setxattr(self._path("setxattr"), "user.hammer", self.random.randbytes(8))


def main(directory: str, seed: str, seconds: str, progress: str, *options: str) -> None:
    hammer = Hammer(Path(directory), int(seed), Path(progress), moves="moves" in options)
    hammer.run(float(seconds))
    print(f"{hammer.calls} calls, {hammer.mapped} mappings")


if __name__ == "__main__":
    main(*sys.argv[1:])
