"""check: whether a volume is whole, and repairing it (fsck).

Everything that the parts of a volume say of each other is compared: names and inodes, types, counts,
parents, the derived tables, images and their sizes. Repair is towards keeping data: a file without
a name gets one in /lost+found, an image of no inode is moved to VOLUME_DIR/lost-images. A repaired
volume is compared with the peer's from end to end when they meet.

A damaged journal keeps what is whole of it, see `salvage.py`. Where marks of regions are damaged, every image
is compared. A catalog that cannot be read at all
is moved away, and made again: at the backup by a copy of the primary's, at the primary from the
journal and the images. Where the journal does not reach back to the beginning, names are lost;
their files are then in /lost+found, named by inode number, and the volume begins another line of
changes, so that it never overwrites a peer that knows better.
"""

import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from fusemirror.change import COOKIES_PER_CHANGE, Table
from fusemirror.errors import VolumeDamaged
from fusemirror.identifiers import ROOT_INODE, ChangeNumber, InodeNumber
from fusemirror.limits import FILE_BYTES_MAX, NAME_BYTES_MAX, SYMLINK_BYTES_MAX
from fusemirror.printable import counted
from fusemirror.seams import Seams
from fusemirror.settings import is_host_name, nearest_host_name
from fusemirror.volume.catalog import Catalog, new_directory
from fusemirror.volume.durable import check_movable, unused
from fusemirror.volume.entries import Entry, entry_key, inode_key, key_inode, pack_entry, unpack_entry
from fusemirror.volume.identity import Identity, Shutdown, VolumeLock
from fusemirror.volume.image_files import misfits
from fusemirror.volume.inode import ROW_BYTES_MIN, Inode
from fusemirror.volume.journal import Journal, check_is_there
from fusemirror.volume.private import check_plain_volume
from fusemirror.volume.probe import is_readable
from fusemirror.volume.recovery import quarantine_image
from fusemirror.volume.regions import Regions
from fusemirror.volume.reservations import EVERYTHING, KEY_PREFIX, is_reservation, reserved_inode
from fusemirror.volume.rows import FILE_TYPES, inode_fault
from fusemirror.volume.salvage import repair_journal
from fusemirror.volume.volume import Volume

_ROWS_PER_TURN = 4096
_LOST_AND_FOUND = b"lost+found"
_CATALOG_DAMAGED = "the catalog cannot be read"


@dataclass(frozen=True)
class CheckResult:
    """How many problems were found, and how many of them were repaired."""

    problems: int
    repaired: int

    @property
    def left(self) -> int:
        return self.problems - self.repaired


def check(directory: Path, repair: bool, report: Callable[[str], None]) -> CheckResult:
    """Check a volume that nobody has open, and with `repair` repair it; `report` gets a line per problem.

    Opening recovers from a crash first, as a mount does. VolumeMissing, VolumeInUse, VolumeFormat,
    DiskFailed, OSError: the volume could not be checked.
    """
    findings = _Findings(repair, report)
    rebuilt = False
    if not _check_plain(directory, findings):
        return CheckResult(findings.problems, findings.repaired)
    if _catalog_is_damaged(directory):
        rebuilt = findings.add(f"{_CATALOG_DAMAGED} of {directory}", lambda: _move_catalog_away(directory))
        if not rebuilt:
            return CheckResult(findings.problems, findings.repaired)
    volume = _open(directory, findings)
    if volume is not None:
        try:
            _check_host_name(volume, findings)
            findings.before_repair = lambda: volume.update_identity(compare_all=True)
            if rebuilt:
                _tell_what_is_lost(volume, report)
            _Check(volume, findings, rebuilt=rebuilt).run()
        finally:
            volume.close()
    return CheckResult(findings.problems, findings.repaired)


class _Findings:
    """Counts and reports problems, and lets them be repaired where that was asked for."""

    def __init__(self, repair: bool, report: Callable[[str], None]) -> None:
        self._repair = repair
        self.report = report
        self.problems = 0
        self.repaired = 0
        self.before_repair: Callable[[], None] = lambda: None

    def add(self, problem: str, repair: Callable[[], object] | None = None) -> bool:
        """Whether the problem has been repaired."""
        self.problems += 1
        if repair is None or not self._repair:
            self.report(problem)
            return False
        self.before_repair()
        repair()
        self.repaired += 1
        self.report(f"{problem}: repaired")
        return True


def _open(directory: Path, findings: _Findings) -> Volume | None:
    for open_log, repair in ((_open_journal, repair_journal), (_open_regions, _forget_unreadable_marks)):
        try:
            return Volume.open(directory)
        except VolumeDamaged as error:
            if _is_damaged(directory, open_log) and not findings.add(
                str(error), partial(repair, directory, findings.report)
            ):
                return None
    try:
        return Volume.open(directory)
    except VolumeDamaged as error:
        findings.add(str(error))
        return None


def _check_plain(directory: Path, findings: _Findings) -> bool:
    """Whether every image is a file, or was repaired; nothing else looks at one before that is known."""
    with suppress(VolumeDamaged):  # opening says so
        Identity.load(directory)  # before the lock, which would make a file in any directory
    check_plain_volume(directory)
    lock = VolumeLock(directory)
    plain = True
    try:
        for path in list(misfits(directory / "images")):
            where = path.relative_to(directory)
            plain &= findings.add(
                f"{where} is a link, a device or a directory, and no image",
                lambda path=path: _move_misfit_away(directory, path),  # type: ignore[misc]
            )
    finally:
        lock.release()
    return plain


def _move_misfit_away(directory: Path, path: Path) -> None:
    lost = directory / "lost-images"
    lost.mkdir(mode=0o700, exist_ok=True)
    path.rename(unused(lost / path.name))


def _check_host_name(volume: Volume, findings: _Findings) -> None:
    """Versions before took any text for a host's name, which also names a directory."""
    name = volume.identity.host_name
    if not is_host_name(name):
        nearest = nearest_host_name(name)
        findings.add(
            f"the host name `{name}` cannot be used; `{nearest}` can",
            lambda: volume.update_identity(host_name=nearest),
        )


def _is_damaged(directory: Path, open_log: Callable[[Path, bool], Journal | Regions]) -> bool:
    """Whether this log of the volume is why it does not open; `open_log` is told whether power was lost."""
    lock = VolumeLock(directory)
    try:
        open_log(directory, Shutdown.load(directory).lost_power).close()
    except VolumeDamaged:
        return True
    except OSError:
        return False
    finally:
        lock.release()
    return False


def _open_journal(directory: Path, lost_power: bool) -> Journal:
    check_is_there(directory)
    return Journal(directory / "journal", Seams(), lost_power=lost_power)


def _open_regions(directory: Path, lost_power: bool) -> Regions:
    return Regions(directory / "regions", lost_power=lost_power)


def _forget_unreadable_marks(directory: Path, report: Callable[[str], None]) -> None:
    """Opening then compares everything, as after a power cut, and cuts off what cannot be read."""
    Shutdown(clean=False, boot_id="").store(directory)
    report("nobody knows which images the marks named that cannot be read: every image will be compared")


def _catalog_is_damaged(directory: Path) -> bool:
    try:
        Identity.load(directory)  # before the lock, which would make a file in any directory
    except VolumeDamaged:
        return False  # opening says so
    lock = VolumeLock(directory)
    try:
        if (directory / "catalog.new").exists():
            return False  # opening decides which of the two counts
        return not is_readable(directory / "catalog")
    finally:
        lock.release()


def _move_catalog_away(directory: Path) -> None:
    """Opening then puts what the journal holds into an empty catalog, and sizes and times of images.

    RefusedForSafety where something is mounted there, before anything is changed.
    """
    if (directory / "catalog").exists():
        check_movable(directory / "catalog")
    identity = Identity.load(directory)
    complete = identity.complete and identity.role == "primary"
    msgspec.structs.replace(identity, compare_all=True, complete=complete).store(directory)
    Shutdown(clean=False, boot_id="").store(directory)
    if (directory / "catalog").exists():
        (directory / "catalog").rename(unused(directory / "lost-catalog"))
    Catalog.create(directory / "catalog")


def _tell_what_is_lost(volume: Volume, report: Callable[[str], None]) -> None:
    first = volume.journal.first_number
    if volume.identity.role == "backup":
        report("the primary's catalog will be copied when the hosts meet; images that are the same stay")
    elif first <= 1:
        report("the journal held the whole history: no name is lost")
    else:
        report(f"names made before change {first} are lost: their files are in /lost+found by inode number")
        # What this volume shows is no state that the peer ever saw.
        volume.catalog.discard(Table.META, b"generations")


class _Check:
    """One pass over each table and over the images, each relying on what the passes before repaired."""

    def __init__(self, volume: Volume, findings: _Findings, *, rebuilt: bool) -> None:
        self._volume = volume
        self._rebuilt = rebuilt
        self._catalog = volume.catalog
        self._found = findings
        self._names: Counter[InodeNumber] = Counter()  # entries of each inode
        self._subdirectories: Counter[InodeNumber] = Counter()
        self._home: dict[InodeNumber, InodeNumber] = {}  # of each directory: where its entry is
        self._nameless: set[InodeNumber] = set()  # reported as such, and not of other counts as well
        self._cookies: set[int] = set()
        self._cookies_of = InodeNumber(0)
        self._highest: dict[InodeNumber, int] = {}  # cookie of each directory that was given one here

    def run(self) -> None:
        if self._rebuilt:
            self._adopt_images()
        for key, row in self._rows(Table.INODES):
            self._check_inode(key, row)
        self._check_root()
        for key, row in self._rows(Table.ENTRIES):
            self._check_entry(key, row)
        self._check_reachable()
        for number in self._inode_numbers():
            self._check_counts(number)
        for key, _ in self._rows(Table.XATTRS):
            self._check_xattr(key)
        for key, row in self._rows(Table.META):
            self._check_meta(key, row)
        for number in self._inode_numbers():
            self._check_image(number)
        self._check_strays()
        if wrong := self._catalog.derived.wrong():
            rows = counted(wrong, "row")
            self._found.add(f"wrong: {rows} of listings and orphans", self._catalog.rebuild_derived)

    def _rows(self, table: Table) -> Iterator[tuple[bytes, bytes]]:
        after: bytes | None = None
        while rows := self._catalog.tables.rows(table, after, _ROWS_PER_TURN):
            yield from rows
            after = rows[-1][0]

    def _inode_numbers(self) -> Iterator[InodeNumber]:
        for key, _ in self._rows(Table.INODES):
            if len(key) == 8:
                yield key_inode(key)

    def _inode(self, number: InodeNumber) -> Inode | None:
        """The inode as it is; None where it is missing or cannot be read, which has been reported."""
        try:
            return self._catalog.stored_inode(number)
        except VolumeDamaged:
            return None

    def _put_inode(self, inode: Inode) -> None:
        self._catalog.apply_rows([(Table.INODES, inode_key(inode.number), inode.pack())])

    # --- rows by themselves ----------------------------------------------------------------------------

    def _check_inode(self, key: bytes, row: bytes) -> None:
        if len(key) != 8 or len(row) < ROW_BYTES_MIN:
            self._found.add(
                f"an inode that cannot be read, key {key.hex()}",
                lambda: self._catalog.discard(Table.INODES, key),
            )
            return
        number = key_inode(key)
        if fault := inode_fault(key, row):
            self._found.add(f"inode {number}: {fault}", lambda: self._repair_inode(Inode.unpack(number, row)))
        if number >= self._catalog.next_inode:
            self._found.add(
                f"inode {number} is beyond the next to be given, {self._catalog.next_inode}",
                lambda: self._catalog.reserve_inodes(number),
            )

    def _repair_inode(self, inode: Inode) -> None:
        """Put right what no inode can have. Of one whose type is unknown its content tells; else it goes."""
        inode.mode &= 0xFFFF
        if inode.number == ROOT_INODE or not self._catalog.is_empty(inode.number):
            inode.mode = stat.S_IFDIR | stat.S_IMODE(inode.mode)
        elif inode.mode >> 12 not in FILE_TYPES and self._volume.images.facts(inode.number) is not None:
            inode.mode = stat.S_IFREG | stat.S_IMODE(inode.mode)
        inode.size = min(inode.size, FILE_BYTES_MAX)  # and that of a file is its image's
        inode.ctime_ns = min(inode.ctime_ns, self._volume.clock.next_ns())
        inode.parent = ROOT_INODE if inode.is_directory else InodeNumber(0)  # until its name is found
        inode.target = inode.target.replace(b"\0", b"")[:SYMLINK_BYTES_MAX] if inode.is_symlink else b""
        if inode_fault(inode_key(inode.number), inode.pack()) is None:
            self._put_inode(inode)
        else:
            self._catalog.discard(Table.INODES, inode_key(inode.number))

    def _check_root(self) -> None:
        if self._inode(ROOT_INODE) is None:
            self._found.add(
                "the root directory is missing",
                lambda: self._put_inode(new_directory(ROOT_INODE, parent=ROOT_INODE, time_ns=0)),
            )

    def _check_entry(self, key: bytes, row: bytes) -> None:
        problem = self._entry_problem(key, row)
        if problem is not None:
            where = f"directory {key_inode(key)}, name {key[8:]!r}"
            self._found.add(f"{where}: {problem}", lambda: self._catalog.discard(Table.ENTRIES, key))
            return
        parent, entry = key_inode(key), unpack_entry(row)
        inode = self._inode(entry.inode)
        assert inode is not None  # else it were a problem
        self._names[entry.inode] += 1
        if inode.is_directory:
            self._home[entry.inode] = parent
            self._subdirectories[parent] += 1
        self._check_type_and_cookie(key, entry, inode)

    def _entry_problem(self, key: bytes, row: bytes) -> str | None:
        """Why an entry cannot stay, or None."""
        parent, name = self._inode(key_inode(key)), key[8:]
        if not 0 < len(name) <= NAME_BYTES_MAX or name in (b".", b"..") or b"/" in name or b"\0" in name:
            return "no name that a file can have"
        try:
            entry = unpack_entry(row)
        except ValueError:
            return "the entry cannot be read"
        if parent is None or not parent.is_directory:
            return "the directory does not exist"
        inode = self._inode(entry.inode)
        if inode is None or entry.inode == ROOT_INODE:
            return f"points to inode {entry.inode}, which does not exist"
        if inode.is_directory and entry.inode in self._home:
            return f"a second name of directory {entry.inode}"
        return None

    def _check_type_and_cookie(self, key: bytes, entry: Entry, inode: Inode) -> None:
        parent, name = key_inode(key), key[8:]
        if parent != self._cookies_of:
            self._cookies_of, self._cookies = parent, set()
        file_type = stat.S_IFMT(inode.mode) >> 12
        if entry.type != file_type:
            entry = entry._replace(type=file_type)
            self._found.add(
                f"directory {parent}, name {name!r}: another type than inode {entry.inode}",
                lambda: self._put_entry(key, entry),
            )
        if entry.cookie in self._cookies:
            fresh = entry._replace(cookie=self._new_cookie(parent))
            self._found.add(
                f"directory {parent}, name {name!r}: the cookie of another name",
                lambda: self._put_entry(key, fresh),
            )
            entry = fresh
        self._cookies.add(entry.cookie)

    def _put_entry(self, key: bytes, entry: Entry) -> None:
        self._catalog.discard(Table.ENTRIES, key)  # whose old cookie may be another's in the listing
        self._catalog.apply_rows([(Table.ENTRIES, key, pack_entry(entry))])

    def _new_cookie(self, parent: InodeNumber) -> int:
        """Above all of the directory, and below what the changes to come give."""
        if parent not in self._highest:
            # Looked for once: a directory that gets a name for each of very many files has as many itself.
            self._highest[parent] = max(map(_cookie, self._names_in(parent)), default=0)
        self._highest[parent] = highest = self._highest[parent] + 1
        if self._volume.identity.role == "primary":  # a backup's numbers are its primary's
            self._volume.advance(ChangeNumber(highest // COOKIES_PER_CHANGE))
        return highest

    def _names_in(self, directory: InodeNumber) -> Iterator[tuple[bytes, Entry]]:
        """The keys and entries of a directory that can be read. Nothing may be put while they are walked."""
        prefix = inode_key(directory)
        for key, row in self._catalog.tables.rows_from(Table.ENTRIES, prefix):
            if not key.startswith(prefix):
                return
            with suppress(ValueError):  # of one that is still to be checked
                yield key, unpack_entry(row)

    def _check_xattr(self, key: bytes) -> None:
        if len(key) <= 8 or self._inode(key_inode(key)) is None:
            self._found.add(
                f"an extended attribute of inode {key_inode(key)}, which does not exist",
                lambda: self._catalog.discard(Table.XATTRS, key),
            )

    def _check_meta(self, key: bytes, row: bytes) -> None:
        if not key.startswith(KEY_PREFIX):
            return
        if not is_reservation(key, row):
            problem = f"a reservation that cannot be read, key {key.hex()}"
        elif reserved_inode(key) != EVERYTHING and self._inode(reserved_inode(key)) is None:
            problem = f"a reservation of inode {reserved_inode(key)}, which does not exist"
        else:
            return
        self._found.add(problem, lambda: self._catalog.discard(Table.META, key))

    # --- the tree --------------------------------------------------------------------------------------

    def _check_reachable(self) -> None:
        """Every directory leads up to the root, and every file that is not deleted has a name."""
        reached = {ROOT_INODE}
        self._home[ROOT_INODE] = ROOT_INODE
        for directory in list(self._home):
            self._climb(directory, reached)
        for number in self._inode_numbers():
            inode = self._inode(number)
            if inode is None or number == ROOT_INODE or self._names[number]:
                continue
            deleted = inode.nlink == 0 and (not inode.is_directory or self._catalog.is_empty(number))
            if not deleted and not self._found.add(
                f"inode {number} has no name",
                lambda inode=inode: self._give_name(inode),  # type: ignore[misc]
            ):
                self._nameless.add(number)

    def _climb(self, directory: InodeNumber, reached: set[InodeNumber]) -> None:
        path: set[InodeNumber] = set()
        step: InodeNumber | None = directory
        # One without a name ends the path too; that it has none is found elsewhere.
        while step is not None and step not in reached and step not in path:
            path.add(step)
            step = self._home.get(step)
        reached |= path
        if step in path:
            self._found.add(f"directory {step} is inside itself", lambda: self._take_name_of_directory(step))

    def _take_name_of_directory(self, number: InodeNumber) -> None:
        parent = self._home.pop(number)
        for key in [key for key, entry in self._names_in(parent) if entry.inode == number]:
            self._catalog.discard(Table.ENTRIES, key)
        self._names[number] -= 1
        self._subdirectories[parent] -= 1

    def _give_name(self, inode: Inode) -> None:
        home = self._lost_and_found()
        self._add_name(home, b"#%d" % inode.number, inode)

    def _lost_and_found(self) -> InodeNumber:
        """The directory /lost+found, made where it is missing."""
        entry = self._catalog.entry(ROOT_INODE, _LOST_AND_FOUND)
        if entry is not None and entry.type == stat.S_IFDIR >> 12:
            return entry.inode
        directory = new_directory(self._catalog.next_inode, ROOT_INODE, self._volume.clock.next_ns())
        directory.mode = stat.S_IFDIR | 0o700
        self._put_inode(directory)
        # A file of that name stays: the directory gets another.
        name = _LOST_AND_FOUND if entry is None else b"%s-%d" % (_LOST_AND_FOUND, directory.number)
        self._add_name(ROOT_INODE, name, directory)
        return directory.number

    def _add_name(self, parent: InodeNumber, name: bytes, inode: Inode) -> None:
        entry = Entry(inode.number, stat.S_IFMT(inode.mode) >> 12, self._new_cookie(parent))
        self._catalog.apply_rows([(Table.ENTRIES, entry_key(parent, name), pack_entry(entry))])
        self._names[inode.number] += 1
        if inode.is_directory:
            self._home[inode.number] = parent
            self._subdirectories[parent] += 1

    def _check_counts(self, number: InodeNumber) -> None:
        inode = self._inode(number)
        if inode is None or number in self._nameless:
            return
        fixed = inode.copy()
        fixed.nlink = self._names[number]
        if inode.is_directory and number in self._home:
            fixed.nlink = 2 + self._subdirectories[number]
            fixed.parent = self._home[number]
        if inode.nlink != fixed.nlink:
            self._found.add(
                f"inode {number} has link count {inode.nlink}, and should have {fixed.nlink}",
                lambda: self._put_inode(fixed),
            )
        if inode.parent != fixed.parent:
            self._found.add(
                f"inode {number} names directory {inode.parent} as its parent, and is in {fixed.parent}",
                lambda: self._put_inode(fixed),
            )

    # --- images ----------------------------------------------------------------------------------------

    def _check_image(self, number: InodeNumber) -> None:
        inode = self._inode(number)
        if inode is None or not inode.is_regular or self._is_being_copied(number):
            return
        facts = self._volume.images.facts(number)
        size = 0 if facts is None else facts.size
        if size != inode.size:
            self._found.add(
                f"inode {number} is {inode.size} bytes long, and its image {size}",
                lambda: self._set_size(inode, size),
            )

    def _is_being_copied(self, number: InodeNumber) -> bool:
        """On a backup that is not up to date, an inode may be there before its data."""
        identity = self._volume.identity
        return identity.role == "backup" and (not identity.whole or self._volume.regions.has(number))

    def _set_size(self, inode: Inode, size: int) -> None:
        inode.size = size
        self._put_inode(inode)

    def _adopt_images(self) -> None:
        """Give every image of no inode an inode, which gets a name in /lost+found then."""
        if self._volume.identity.role == "backup":
            return
        for number in sorted(self._volume.images.numbers()):
            self._catalog.reserve_inodes(number)
            inode = self._inode(number)
            facts = self._volume.images.facts(number)
            if inode is not None or facts is None or facts.size == 0:
                continue
            found = new_directory(number, ROOT_INODE, facts.ctime_ns)
            found.mode, found.nlink, found.size = stat.S_IFREG | 0o600, 1, facts.size
            found.parent, found.mtime_ns = InodeNumber(0), facts.mtime_ns
            self._put_inode(found)

    def _check_strays(self) -> None:
        identity = self._volume.identity
        if not identity.complete and identity.role == "backup":
            return  # the copy to come finds what is the same, and removes the rest
        for number in list(self._volume.images.numbers()):
            inode = self._inode(number)
            if inode is None or not inode.is_regular:
                self._found.add(
                    f"an image of inode {number}, which is no file",
                    lambda number=number: quarantine_image(
                        self._volume.directory, self._volume.images, number
                    ),  # type: ignore[misc]
                )


def _cookie(name: tuple[bytes, Entry]) -> int:
    return name[1].cookie
