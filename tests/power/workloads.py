"""What a volume goes through while its system calls are recorded: `python -m tests.power.workloads`.

Each workload has a directory of its own with a volume, and a file `marks` beside it. A line of that is
written at each step, so that it stands among the recorded calls: what is about to change, the names there
are, and what a call that persists has guaranteed on its return.
"""

import itertools
import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from fusemirror.identifiers import InodeNumber
from fusemirror.promise import Promise
from fusemirror.seams import Seams
from fusemirror.volume import catalog_copy, image_files, syncing
from fusemirror.volume import journal as journal_module
from fusemirror.volume import volume as volume_module
from fusemirror.volume.journal import Journal
from fusemirror.volume.unsynced import Unsynced
from fusemirror.volume.volume import Volume
from tests.volume.conftest import IDENTITY, Writer, contents_of, counting_seams

OPERATIONS = (
    *("create", "mkdir", "rename", "remove"),
    *("write", "overwrite", "request", "truncate", "cut_request"),
)
PERSISTENCE = ("flush", "make_durable", "commit", "close")
_SEGMENT_BYTES = 1500  # many segments in a short workload

Names = dict[str, str]


def names_of(volume: Volume) -> Names:
    """The names of a volume and what stands behind them."""
    found = {}
    for key, row in volume.catalog.tables.rows_from(2, b"\x00"):
        found[f"{int.from_bytes(key[:8], 'big')}/{key[8:].decode()}"] = row.hex()
    for inode in volume.catalog.tables.inodes():
        found[f"inode {inode.number}"] = f"{inode.mode:o} {inode.nlink}"
    return found


def requests_of(operations: int) -> list[tuple[str, ...]]:
    """All workloads of up to so many operations, each before each way to persist."""
    return [
        (*steps, persist)
        for count in range(1, operations + 1)
        for steps in itertools.product(OPERATIONS, repeat=count)
        for persist in PERSISTENCE
    ]


def _seams() -> Seams:
    """What the kernel would sync by itself is synced at once, by calls that the trace shows."""
    seams = counting_seams()

    def begin_sync(descriptor: int, *, data_only: bool) -> Promise[None]:
        (seams.fdatasync if data_only else seams.fsync)(descriptor)
        return _ended()

    return replace(seams, begin_sync=begin_sync)


def _ended() -> Promise[None]:
    promise = Promise[None]()
    promise.resolve(None)
    return promise


class Workload:
    """One volume, and the file that tells what happened to it."""

    def __init__(self, directory: Path, seed: str) -> None:
        directory.mkdir()
        self._marks = os.open(directory / "marks", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._choose = random.Random(seed)
        Volume.create(directory / "volume", IDENTITY)
        self._mark("created")
        self._volume = Volume.open(directory / "volume", _seams())
        self._writer = Writer(self._volume)
        self._mark("opened", names=names_of(self._volume))

    def run(self, steps: tuple[str, ...]) -> None:
        """A file with content is there durably; then the steps, and some that nothing makes durable."""
        for step in ("create", "write", "make_durable", *steps):
            self.do(step)
        if steps[-1] == "close":
            os.close(self._marks)
            return
        for step in ("overwrite", "rename", "remove"):
            self.do(step)
        self._volume.abandon()
        os.close(self._marks)

    def run_randomly(self, count: int) -> None:
        """Many steps, then a close."""
        for _ in range(count):
            steps = (*OPERATIONS, "create", *PERSISTENCE[:-1], "checkpoint")
            self.do(self._choose.choice(steps))
        self.do("close")
        os.close(self._marks)

    def do(self, step: str) -> None:
        """One step, and the lines about it."""
        getattr(self, f"_{step}")()

    # --- what changes ----------------------------------------------------------------------------------

    def _create(self) -> None:
        self._named(lambda: self._writer.create(self._new_name()))

    def _mkdir(self) -> None:
        self._named(lambda: self._writer.mkdir(self._new_name()))

    def _rename(self) -> None:
        names = self._file_names()
        if names:
            self._named(lambda: self._writer.rename(self._choose.choice(names), self._new_name()))

    def _remove(self) -> None:
        """Unlink and purge: the image goes once the record is durable."""
        names = self._file_names()
        if names:
            name = self._choose.choice(names)
            inode = self._writer.catalog.entry(1, name).inode
            self._named(lambda: self._writer.unlink(name))
            self._named(lambda: self._writer.purge(inode))

    def _write(self) -> None:
        self._write_at(None)

    def _overwrite(self) -> None:
        self._write_at(self._choose.choice((0, 100, 4000)))

    def _request(self) -> None:
        self._write_at(self._choose.choice((None, 0, 50)), self._new_request())

    def _truncate(self) -> None:
        self._cut(b"")

    def _cut_request(self) -> None:
        self._cut(self._new_request())

    def _write_at(self, offset: int | None, request: bytes = b"") -> None:
        if (inode := self._some_file()) is None:
            return
        offset = self._writer.inode(inode).size if offset is None else offset
        data = self._choose.randbytes(self._choose.choice((10, 700, 5000)))
        self._mark("data", inode=inode, start=offset, end=offset + len(data))
        self._writer.write(inode, offset, data, request)

    def _cut(self, request: bytes) -> None:
        if (inode := self._some_file()) is None:
            return
        size = self._choose.choice((0, 10, 600, 6000))
        self._mark("data", inode=inode, start=size, end=None)
        self._writer.truncate(inode, size, request)

    # --- what persists ---------------------------------------------------------------------------------

    def _flush(self) -> None:
        inode = self._some_file()
        trio.run(self._volume.syncing.flush, InodeNumber(0) if inode is None else inode)
        self._durable([] if inode is None else [inode])

    def _make_durable(self) -> None:
        trio.run(self._volume.make_durable)
        self._durable(list(contents_of(self._volume)))

    def _commit(self) -> None:
        if self._volume.catalog.changes_since_commit:
            self._volume.commit()
            self._durable([])

    def _checkpoint(self) -> None:
        """As with a peer: everything durable, the marks of it dropped, the journal let go of."""
        epoch = self._volume.regions.rotate()
        number = trio.run(self._volume.make_durable)
        self._durable(list(contents_of(self._volume)))
        self._volume.drop_marks(epoch)
        self._volume.syncing.trim(number)

    def _close(self) -> None:
        contents = contents_of(self._volume)
        marks = {inode: list(marked) for inode, marked in self._volume.regions.marks().items()}
        self._mark("closing", contents={n: c.hex() for n, c in contents.items()}, marks=marks)
        self._volume.close()
        self._mark("durable", contents={n: c.hex() for n, c in contents.items()})

    # --- lines -----------------------------------------------------------------------------------------

    def _named(self, change: Callable[[], Any]) -> None:
        change()
        self._mark("names", names=names_of(self._volume))

    def _durable(self, inodes: list[InodeNumber]) -> None:
        self._mark("durable", contents={inode: self._writer.content(inode).hex() for inode in inodes})

    def _mark(self, mark: str, **fields: Any) -> None:
        os.write(self._marks, json.dumps({"mark": mark, **fields}).encode() + b"\n")

    # --- choices ---------------------------------------------------------------------------------------

    def _new_name(self) -> bytes:
        return b"name-%d" % self._volume.number

    def _new_request(self) -> bytes:
        return self._choose.randbytes(16)

    def _file_names(self) -> list[bytes]:
        entries = self._writer.catalog.listing(1, 0, 1000)
        return [name for _, name, entry in entries if entry.type == 8]

    def _some_file(self) -> InodeNumber | None:
        names = self._file_names()
        return self._writer.catalog.entry(1, self._choose.choice(names)).inode if names else None


def _do_nothing(*_arguments: Any) -> None:
    pass


async def _sync_in_place(journal: Journal) -> None:
    journal.sync()


def _break(what: str) -> None:
    """Leave a sync out, for the test of the test."""
    if what == "journal":
        Journal._sync_files = _do_nothing  # type: ignore[method-assign,assignment]
        Journal.sync_beside = _sync_in_place  # type: ignore[method-assign,assignment]
    elif what == "begun":
        Unsynced.begin_sync = lambda *_: _ended()  # type: ignore[method-assign]
    elif what == "images":
        Unsynced.sync = _do_nothing  # type: ignore[method-assign,assignment]
    else:
        assert what == "directories", what
        for module in (
            journal_module,
            volume_module,
            catalog_copy,
            image_files,
            sys.modules[Unsynced.__module__],
        ):
            module.sync_directory = _do_nothing  # type: ignore[attr-defined]


def main(directory: str, seed: str, operations: str, count: str, steps: str, broken: str = "") -> None:
    """Run `count` of all workloads with up to so many operations, and one of so many random steps."""
    if broken:
        _break(broken)
    wanted = requests_of(int(operations))
    wanted = random.Random(seed).sample(wanted, min(int(count), len(wanted)))
    for number, workload in enumerate(wanted):
        Workload(Path(directory) / f"{number}-{'-'.join(workload)}", f"{seed}/{number}").run(workload)
    for module in (journal_module, syncing):
        module.JOURNAL_SEGMENT_BYTES = _SEGMENT_BYTES  # type: ignore[attr-defined]
    Workload(Path(directory) / "random", seed).run_randomly(int(steps))


if __name__ == "__main__":
    main(*sys.argv[1:])
