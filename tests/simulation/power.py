"""What of a host's directory survives when its power goes: what was synced, and any part of the rest.

The directory is a real one. A file's content is kept as it was at its last fsync; names are kept as at
the last fsync of their directory, with the changes since then in their order. When the power goes, each
sector that differs may be the old or the new one, and of the changes of names the first so many are
there, or even later ones where no earlier one concerns the same directories. The files of LMDB are taken
as they are: it syncs every commit by itself, and writes nothing in place before (design.md, section 5).
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

_SECTOR_BYTES = 512
_LMDB = "data.mdb"
_CONTENT_BYTES_MAX = 1 << 28  # longer is only what a host asks its disk with, whether it takes such a file
_FILES_WATCHED_MAX = 150
_NOTHING = "lock.mdb", "lock"

Names = dict[int, dict[str, int]]
"""For each directory, by inode number: what stands under each name, by inode number."""


@dataclass(frozen=True)
class _Content:
    data: bytes
    times_ns: tuple[int, int]


@dataclass(frozen=True)
class _NameChange:
    """What one step did to names; None where a name goes."""

    names: tuple[tuple[int, str, int | None], ...]

    @property
    def directories(self) -> set[int]:
        return {directory for directory, _, _ in self.names}


class Surface:
    """One host's directory, as its disk holds it. All methods but `lose` only watch."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[int, int] = {}  # inode number -> a descriptor: what was unlinked can be read
        self.begin()

    def begin(self) -> None:
        """Everything that is there now is durable."""
        self.close()
        self._modes: dict[int, bool] = {}  # inode number -> whether it is a directory
        self._labels: dict[int, str] = {}
        self._now = self._scan()
        self._durable = {directory: dict(names) for directory, names in self._now.items()}
        self._pending: list[_NameChange] = []
        self._synced = {inode: self._read(descriptor) for inode, descriptor in self._files.items()}

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    # --- watching -----------------------------------------------------------------------------------------

    def names_changed(self) -> None:
        """Called after each step that may have changed names."""
        before, self._now = self._now, self._scan()
        changes: list[tuple[int, str, int | None]] = []
        for directory in before.keys() | self._now.keys():
            old, new = before.get(directory, {}), self._now.get(directory, {})
            if old != new:
                changes += [
                    (directory, name, new.get(name))
                    for name in sorted(old.keys() | new.keys())
                    if old.get(name) != new.get(name)
                ]
        if changes:
            self._pending.append(_NameChange(tuple(changes)))
        if len(self._files) > _FILES_WATCHED_MAX:
            self._forget_files()

    def _forget_files(self) -> None:
        """Let go of files that have no name, and of which no loss can bring a name back."""
        trees = (*self._now.values(), *self._durable.values())
        kept = {inode for names in trees for inode in names.values()}
        kept.update(inode for change in self._pending for *_, inode in change.names if inode is not None)
        for inode in self._files.keys() - kept:
            os.close(self._files.pop(inode))
            self._synced.pop(inode, None)

    def synced(self, descriptor: int, *, times: bool) -> None:
        """Called by each fsync, and fdatasync, which need not save the times."""
        inode = os.fstat(descriptor).st_ino
        if inode in self._files:
            self._sync_file(inode, times=times)
        else:
            self.names_changed()  # by LMDB, whose calls nobody watches
            self._sync_names(inode)

    def everything_synced(self) -> None:
        """Called by each sync of the whole filesystem."""
        for change in self._pending:
            self._apply(change)
        self._pending.clear()
        self._forget_files()  # one that a killed process left without a name may be said to be endless
        for inode in self._files:
            self._sync_file(inode, times=True)

    def _sync_file(self, inode: int, *, times: bool) -> None:
        content, before = self._read(self._files[inode]), self._synced.get(inode)
        if not times and before is not None and len(before.data) == len(content.data):
            content = _Content(content.data, before.times_ns)
        self._synced[inode] = content

    def _sync_names(self, directory: int) -> None:
        """Every change that concerns the directory is durable, with those that it stands on."""
        concerned, kept = {directory}, list[_NameChange]()
        due: list[_NameChange] = []
        for change in reversed(self._pending):
            if change.directories & concerned:
                concerned |= change.directories
                due.append(change)
            else:
                kept.append(change)
        self._pending = kept[::-1]
        for change in reversed(due):
            self._apply(change)

    def _apply(self, change: _NameChange) -> None:
        for directory, name, inode in change.names:
            names = self._durable.setdefault(directory, {})
            if inode is None:
                names.pop(name, None)
            else:
                names[name] = inode

    def _scan(self) -> Names:
        found: Names = {}
        waiting = [os.fspath(self._root)]
        while waiting:
            path = waiting.pop()
            names: dict[str, int] = {}
            for entry in os.scandir(path):
                if entry.name in _NOTHING:
                    continue
                inode = entry.inode()
                names[entry.name] = inode
                if entry.is_dir(follow_symlinks=False):
                    self._modes[inode] = True
                    waiting.append(entry.path)
                elif inode not in self._files:
                    self._modes[inode] = False
                    self._labels[inode] = entry.name
                    self._files[inode] = os.open(entry.path, os.O_RDONLY | os.O_NOATIME)
            found[os.stat(path).st_ino] = names
        return found

    def _read(self, descriptor: int) -> _Content:
        facts = os.fstat(descriptor)
        size = min(facts.st_size, _CONTENT_BYTES_MAX)
        return _Content(os.pread(descriptor, size, 0), (facts.st_atime_ns, facts.st_mtime_ns))

    # --- the loss -------------------------------------------------------------------------------------------

    def lose(self, random: Random) -> str:
        """The power goes: the directory becomes what the disk holds, by chance; what was lost, in words.

        Nobody has any of its files open.
        """
        self.names_changed()
        lost_names = self._choose_names(random)
        share = random.choice((0.0, 0.0, 0.5, 0.9, 1.0))
        plan: list[tuple[Path, _Content | None]] = []
        root = os.stat(self._root).st_ino
        lost_files = self._plan(self._root, root, random, share, plan)
        shutil.rmtree(self._root)
        self._root.mkdir(mode=0o700)
        for path, content in plan:
            if content is None:
                path.mkdir(mode=0o700)
            else:
                path.write_bytes(content.data)
                os.utime(path, ns=content.times_ns)
        # The root has another inode number now, as everything has.
        self.begin()
        return f"{lost_names} changes of names, {lost_files} files with a part of what was not synced"

    def _choose_names(self, random: Random) -> int:
        """Most often the first so many changes survive; sometimes any that do not hang on lost ones."""
        lost: set[int] = set()
        lost_count = 0
        survivors = random.randint(0, len(self._pending))
        in_order = random.random() < 0.7
        for index, change in enumerate(self._pending):
            survives = index < survivors if in_order else random.random() < 0.5
            if survives and not change.directories & lost:
                self._apply(change)
            else:
                lost |= change.directories
                lost_count += 1
        return lost_count

    def _plan(
        self,
        path: Path,
        directory: int,
        random: Random,
        share: float,
        plan: list[tuple[Path, _Content | None]],
    ) -> int:
        lost = 0
        for name, inode in sorted(self._durable.get(directory, {}).items()):
            if self._modes[inode]:
                plan.append((path / name, None))
                lost += self._plan(path / name, inode, random, share, plan)
                continue
            now = self._read(self._files[inode])
            old = self._synced.get(inode, _Content(b"", now.times_ns))
            kept = now if self._labels[inode] == _LMDB else _torn(old, now, random, share)
            lost += kept != now
            plan.append((path / name, kept))
        return lost


def _torn(old: _Content, new: _Content, random: Random, share: float) -> _Content:
    """Some of the sectors that differ are the new ones."""
    if old == new:
        return new
    size = len(new.data) if random.random() < max(share, 0.3) else len(old.data)
    data = bytearray(old.data[:size].ljust(size, b"\0"))
    for start in range(0, size, _SECTOR_BYTES):
        sector = slice(start, min(start + _SECTOR_BYTES, size))
        if data[sector] != new.data[sector] and random.random() < share:
            data[sector] = new.data[sector].ljust(sector.stop - start, b"\0")
    return _Content(bytes(data), new.times_ns if random.random() < 0.5 else old.times_ns)
