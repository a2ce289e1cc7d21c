"""Drafts: what a decision tells, and random operations against a filesystem of plain dicts."""

import errno
import stat
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fusemirror.change import COOKIES_PER_CHANGE, first_cookie
from fusemirror.control.purging import purge_rows
from fusemirror.errors import OperationFailed, VolumeDamaged
from fusemirror.identifiers import ROOT_INODE, InodeNumber
from fusemirror.limits import NAME_BYTES_MAX
from fusemirror.operations import (
    Create,
    HardLink,
    Operation,
    RemoveDirectory,
    RemoveXattr,
    Rename,
    SetAttributes,
    SetXattr,
    Unlink,
)
from fusemirror.operations.rename import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.operations.conftest import DIRECTORY, FILE, NOWHERE, ROOT, SYMLINK, TOO_LONG, Decider, Tree
from tests.volume.conftest import inode_count

PLACES = {
    # (the attribute of Tree, or an inode): what using it as a directory gives
    "file": errno.ENOTDIR,
    "removed": errno.ENOENT,
    "nowhere": errno.ESTALE,
}


def place(tree: Tree, name: str) -> InodeNumber:
    number: InodeNumber = NOWHERE if name == "nowhere" else getattr(tree, name)
    return number


@pytest.mark.parametrize(("where", "expected"), PLACES.items(), ids=PLACES)
def test_what_is_no_directory_takes_and_gives_no_names(
    decider: Decider, tree: Tree, where: str, expected: int
) -> None:
    parent = place(tree, where)
    operations = [
        Create(parent, b"new", FILE, 0, 0),
        HardLink(tree.file, parent, b"new"),
        Unlink(parent, b"file"),
        RemoveDirectory(parent, b"dir"),
        Rename(parent, b"file", ROOT_INODE, b"new"),
        Rename(ROOT_INODE, b"file", parent, b"new"),
    ]
    for operation in operations:
        with pytest.raises(OperationFailed) as caught:
            decider.do(operation)
        assert caught.value.errno == expected, operation


def test_a_decision_names_every_inode_and_name_that_it_touches(decider: Decider, tree: Tree) -> None:
    root, directory, file = ROOT, tree.directory, tree.file
    created = decider.do(Create(directory, b"new", FILE, 0, 0))
    assert set(created.keys) == {directory, created.inode, (directory, b"new")}
    assert set(decider.do(HardLink(file, directory, b"l")).keys) == {file, directory, (directory, b"l")}
    assert set(decider.do(Unlink(directory, b"l")).keys) == {file, directory, (directory, b"l")}
    over = decider.do(Rename(root, b"file", directory, b"inner"))
    assert set(over.keys) == {root, directory, file, tree.inner, (root, b"file"), (directory, b"inner")}
    assert set(decider.do(SetAttributes(file, mode=0)).keys) == {file}
    assert set(decider.do(SetXattr(file, b"user.a", b"")).keys) == {file}


HIGHEST = (1 << 32) - 1


@pytest.mark.parametrize(
    ("damaged", "links", "operation"),
    [
        ("file", 0, Unlink(ROOT, b"file")),
        ("file", 0, Rename(ROOT, b"link", ROOT, b"file")),
        ("directory", 1, Rename(ROOT, b"empty", ROOT, b"other")),
        ("directory", 2, RemoveDirectory(ROOT, b"empty")),
        ("directory", HIGHEST, Create(ROOT, b"new", DIRECTORY, 0, 0)),
    ],
)
def test_a_count_of_links_that_cannot_be_right_is_damage(
    decider: Decider, damaged: str, links: int, operation: Operation
) -> None:
    """No row can have what would become of it; or a directory that has names would be taken for removed."""
    parent = decider.create(b"parent", DIRECTORY)
    file = decider.create(b"file", FILE, parent)
    decider.create(b"link", SYMLINK, parent)
    decider.create(b"empty", DIRECTORY, parent)
    inode = decider.inode(file if damaged == "file" else parent).copy()
    inode.nlink = links
    decider.put(inode)
    replaced = {"parent": parent}
    if isinstance(operation, Rename):
        replaced["new_parent"] = parent if damaged == "file" else ROOT
    operation = msgspec.structs.replace(operation, **replaced)
    before = decider.rows()
    with pytest.raises(VolumeDamaged, match=f"inode {inode.number} cannot have {links} links"):
        decider.do(operation)
    assert decider.rows() == before


# --- a filesystem of plain dicts --------------------------------------------------------------------------


class Node:
    """What a person would say of a file: its kind, its attributes, and what is in it."""

    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.names: dict[bytes, int] = {}
        self.xattrs: dict[bytes, bytes] = {}
        self.removed = False

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


NAMES = st.sampled_from((b"a", b"b", b"c", b"d"))
PLACE = st.integers(0, 7)  # among the inodes that are, ever were, or never will be
ODD_NAMES = st.one_of(NAMES, NAMES, NAMES, st.sampled_from((b"", b".", b"..", TOO_LONG)))


class Filesystem(RuleBasedStateMachine):
    """Every rule says first which errors are right; without one the operation must succeed."""

    @initialize()
    def begin(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.decider = Decider(Path(self.directory.name))
        self.nodes = {int(ROOT_INODE): Node(DIRECTORY)}
        self.newest_cookie = 0
        self.last_inode = int(ROOT_INODE)

    def teardown(self) -> None:
        if hasattr(self, "decider"):
            self.decider.catalog.close()
            self.directory.cleanup()

    # --- what the plain filesystem knows ---

    def pick(self, place: int) -> InodeNumber:
        """The newest inodes most of the time; 0 is the root, 7 none at all."""
        candidates = [int(ROOT_INODE), *list(self.nodes)[-6:]]
        return InodeNumber(candidates[place] if place < len(candidates) else NOWHERE)

    def wrong_directory(self, number: int) -> set[int]:
        node = self.nodes.get(number)
        if node is None:
            return {errno.ESTALE}
        if not node.is_directory:
            return {errno.ENOTDIR}
        return {errno.ENOENT} if node.removed else set()

    def wrong_name(self, name: bytes) -> set[int]:
        if len(name) > NAME_BYTES_MAX:
            return {errno.ENAMETOOLONG}
        return {errno.EINVAL} if name in (b"", b".", b"..") else set()

    def child(self, parent: int, name: bytes) -> int | None:
        return self.nodes[parent].names.get(name) if parent in self.nodes else None

    def links(self, number: int) -> int:
        node = self.nodes[number]
        if not node.is_directory:
            return sum(list(other.names.values()).count(number) for other in self.nodes.values())
        if node.removed:
            return 0
        return 2 + sum(self.nodes[child].is_directory for child in node.names.values())

    def holds(self, directory: int, number: int) -> bool:
        """Whether `number` is `directory` or somewhere below it."""
        below = self.nodes[directory].names.values()
        return directory == number or any(self.holds(child, number) for child in below)

    def attempt(self, operation: Operation, errors: set[int]) -> InodeNumber | None:
        """Do it; the inode, or None where it failed with one of the errors, as it must."""
        if not errors:
            return self.decider.do(operation).inode
        with pytest.raises(OperationFailed) as caught:
            self.decider.do(operation)
        assert caught.value.errno in errors, operation
        return None

    # --- operations ---

    @rule(place=PLACE, name=ODD_NAMES, mode=st.sampled_from((FILE, DIRECTORY, SYMLINK)))
    def create(self, place: int, name: bytes, mode: int) -> None:
        parent = self.pick(place)
        errors = self.wrong_directory(parent) | self.wrong_name(name)
        if self.child(parent, name) is not None:
            errors |= {errno.EEXIST}
        number = self.attempt(Create(parent, name, mode, 0, 0), errors)
        if number is not None:
            assert number > self.last_inode, "inode numbers are never used again"
            self.last_inode = number
            inherited = self.nodes[parent].mode & stat.S_ISGID if stat.S_ISDIR(mode) else 0
            self.nodes[number] = Node(mode | inherited)
            self.nodes[parent].names[name] = number

    @rule(place=PLACE, linked=PLACE, name=ODD_NAMES)
    def link(self, place: int, linked: int, name: bytes) -> None:
        parent, number = self.pick(place), self.pick(linked)
        errors = self.wrong_directory(parent) | self.wrong_name(name)
        node = self.nodes.get(number)
        if node is None:
            errors |= {errno.ESTALE}
        elif node.is_directory:
            errors |= {errno.EPERM}
        elif not self.links(number):
            errors |= {errno.ENOENT}
        if self.child(parent, name) is not None:
            errors |= {errno.EEXIST}
        if self.attempt(HardLink(number, parent, name), errors) is not None:
            self.nodes[parent].names[name] = number

    @rule(place=PLACE, name=NAMES)
    def unlink(self, place: int, name: bytes) -> None:
        parent = self.pick(place)
        errors, child = self.wrong_directory(parent), self.child(parent, name)
        if child is None:
            errors |= {errno.ENOENT} if not errors else set()
        elif self.nodes[child].is_directory:
            errors |= {errno.EISDIR}
        if self.attempt(Unlink(parent, name), errors) is not None:
            del self.nodes[parent].names[name]

    @rule(place=PLACE, name=NAMES)
    def remove_directory(self, place: int, name: bytes) -> None:
        parent = self.pick(place)
        errors, child = self.wrong_directory(parent), self.child(parent, name)
        if child is None:
            errors |= {errno.ENOENT} if not errors else set()
        elif not self.nodes[child].is_directory:
            errors |= {errno.ENOTDIR}
        elif self.nodes[child].names:
            errors |= {errno.ENOTEMPTY}
        if self.attempt(RemoveDirectory(parent, name), errors) is not None:
            self.nodes[self.nodes[parent].names.pop(name)].removed = True

    @rule(
        old=PLACE,
        name=ODD_NAMES,
        new=PLACE,
        new_name=ODD_NAMES,
        flags=st.sampled_from((0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, 4)),
    )
    def rename(self, old: int, name: bytes, new: int, new_name: bytes, flags: int) -> None:
        self.attempt_rename(self.pick(old), name, self.pick(new), new_name, flags)

    @rule(
        old=st.integers(0, 50),
        new=st.integers(0, 50),
        flags=st.sampled_from((0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_EXCHANGE)),
    )
    def rename_over(self, old: int, new: int, flags: int) -> None:
        """From a name that is there to a name that is there."""
        names = [(InodeNumber(parent), name) for parent, node in self.nodes.items() for name in node.names]
        if names:
            self.attempt_rename(*names[old % len(names)], *names[new % len(names)], flags)

    def attempt_rename(
        self, parent: InodeNumber, name: bytes, new_parent: InodeNumber, new_name: bytes, flags: int
    ) -> None:
        moved, other = self.child(parent, name), self.child(new_parent, new_name)
        errors = self.wrong_directory(parent) | self.wrong_directory(new_parent)
        errors |= self.wrong_name(name) | self.wrong_name(new_name)
        errors |= {errno.EINVAL} if flags == 4 else set()
        if moved is None:
            errors |= {errno.ENOENT}
        elif not errors:
            errors |= self.wrong_move(moved, parent, new_parent, other, flags)
        if self.attempt(Rename(parent, name, new_parent, new_name, flags), errors) is None:
            return
        assert moved is not None
        if flags == RENAME_EXCHANGE:
            assert other is not None
            self.nodes[parent].names[name] = other
        elif other == moved:
            return
        else:
            del self.nodes[parent].names[name]
            if other is not None and self.nodes[other].is_directory:
                self.nodes[other].removed = True
        self.nodes[new_parent].names[new_name] = moved

    def wrong_move(self, moved: int, parent: int, new_parent: int, other: int | None, flags: int) -> set[int]:
        errors: set[int] = set()
        if self.holds(moved, new_parent):
            errors |= {errno.EINVAL}
        if flags == RENAME_EXCHANGE:
            if other is None:
                errors |= {errno.ENOENT}
            elif self.holds(other, parent):
                errors |= {errno.EINVAL}
        elif other is not None and flags == RENAME_NOREPLACE:
            errors |= {errno.EEXIST}
        elif other is not None and other != moved:
            target = self.nodes[other]
            if target.is_directory and not self.nodes[moved].is_directory:
                errors |= {errno.EISDIR}
            elif self.nodes[moved].is_directory and not target.is_directory:
                errors |= {errno.ENOTDIR}
            elif target.names:
                errors |= {errno.ENOTEMPTY}
        return errors

    @rule(place=PLACE, mode=st.integers(0, 0o7777))
    def change_mode(self, place: int, mode: int) -> None:
        number = self.pick(place)
        errors = set() if number in self.nodes else {errno.ESTALE}
        if self.attempt(SetAttributes(number, mode=mode), errors) is not None:
            node = self.nodes[number]
            node.mode = stat.S_IFMT(node.mode) | mode

    @rule(place=PLACE, name=st.sampled_from((b"trusted.a", b"trusted.b")), value=st.binary(max_size=3))
    def set_xattr(self, place: int, name: bytes, value: bytes) -> None:
        number = self.pick(place)
        errors = set() if number in self.nodes else {errno.ESTALE}
        if self.attempt(SetXattr(number, name, value), errors) is not None:
            self.nodes[number].xattrs[name] = value

    @rule(place=PLACE, name=st.sampled_from((b"trusted.a", b"trusted.b")))
    def remove_xattr(self, place: int, name: bytes) -> None:
        number = self.pick(place)
        node = self.nodes.get(number)
        errors = {errno.ESTALE} if node is None else set() if name in node.xattrs else {errno.ENODATA}
        if self.attempt(RemoveXattr(number, name), errors) is not None:
            del self.nodes[number].xattrs[name]

    @rule()
    def purge(self) -> None:
        orphans = self.decider.catalog.orphans()
        assert set(orphans) == {number for number in self.nodes if not self.links(number)}
        self.decider.catalog.apply_rows(purge_rows(self.decider.catalog, orphans))
        for number in orphans:
            del self.nodes[number]

    # --- both are the same ---

    @invariant()
    def every_inode_is_as_expected(self) -> None:
        catalog = self.decider.catalog
        assert inode_count(catalog) == len(self.nodes)
        for number, node in self.nodes.items():
            inode = self.decider.inode(InodeNumber(number))
            assert (inode.mode, inode.nlink) == (node.mode, self.links(number)), number
            assert {
                name: catalog.xattrs.value(inode.number, name) for name in catalog.xattrs.names(inode.number)
            } == (node.xattrs)

    @invariant()
    def every_directory_holds_its_names(self) -> None:
        cookies: list[int] = []
        for number, node in self.nodes.items():
            listing = self.decider.catalog.listing(InodeNumber(number), 0, 1000)
            assert {name: entry.inode for _, name, entry in listing} == node.names
            cookies.extend(cookie for cookie, _, _ in listing)
            for _, _, entry in listing:
                child = self.nodes[entry.inode]
                assert entry.type == stat.S_IFMT(child.mode) >> 12
                if child.is_directory:
                    assert self.decider.inode(entry.inode).parent == number
        assert len(set(cookies)) == len(cookies), "a cookie names one entry for ever"

    @invariant()
    def new_cookies_are_above_all_old_ones(self) -> None:
        catalog, first = self.decider.catalog, first_cookie(self.decider.number)
        listings = (catalog.listing(InodeNumber(number), 0, 1000) for number in self.nodes)
        newest = max((cookie for listing in listings for cookie, _, _ in listing), default=0)
        assert newest <= self.newest_cookie or newest in range(first, first + COOKIES_PER_CHANGE)
        self.newest_cookie = max(self.newest_cookie, newest)

    @invariant()
    def the_derived_tables_agree(self) -> None:
        assert not self.decider.catalog.derived.wrong()


TestAgainstPlainDicts = Filesystem.TestCase
TestAgainstPlainDicts.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
