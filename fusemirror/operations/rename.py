"""Rename: an inode gets another name, in the place of what has it, or two exchange theirs; renameat2(2)."""

import errno
from collections.abc import Iterator

from fusemirror.errors import OperationFailed
from fusemirror.flags import Act
from fusemirror.identifiers import ROOT_INODE, InodeNumber, NameKey
from fusemirror.limits import ANCESTORS_MAX
from fusemirror.operations.draft import Decision, Draft, check_name
from fusemirror.operations.operation import NO_INODE, OfName, require
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.inode import Inode

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


class Rename(OfName, tag=7, frozen=True, array_like=True):
    """`flags`: 0, RENAME_NOREPLACE (1) or RENAME_EXCHANGE (2), as renameat2(2) has them.

    `expected`: the directory that is to be replaced, as for `RemoveDirectory`.
    """

    new_parent: InodeNumber
    new_name: bytes
    flags: int = 0
    expected: InodeNumber = NO_INODE

    def check(self) -> None:
        super().check()
        require(b"/" not in self.new_name)

    def touched_names(self) -> tuple[NameKey, ...]:
        return (self.parent, self.name), (self.new_parent, self.new_name)

    def must_be_empty(self, catalog: Catalog) -> InodeNumber | None:
        entry = catalog.entry(self.new_parent, self.new_name)
        return None if entry is None else entry.inode

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        check_name(self.name)
        check_name(self.new_name)
        require(self.flags in (0, RENAME_NOREPLACE, RENAME_EXCHANGE))
        old_parent, new_parent = draft.directory(self.parent), draft.directory(self.new_parent)
        moved = draft.named(self.parent, self.name)
        target = draft.catalog.entry(self.new_parent, self.new_name)
        _check_no_loop(draft.catalog, moved, self.new_parent)
        if target is None or target.inode != moved.number:  # else nothing is done
            draft.check_flags(old_parent, Act.REMOVE_ENTRY)
            draft.check_flags(moved, Act.LOSE_NAME)
            draft.check_flags(new_parent, Act.ADD_ENTRY if target is None else Act.REMOVE_ENTRY)
            if target is not None:
                draft.check_flags(draft.inode(target.inode), Act.LOSE_NAME)
        if self.flags == RENAME_EXCHANGE:
            require(target is not None, errno.ENOENT)
            other = draft.named(self.new_parent, self.new_name)
            _check_no_loop(draft.catalog, other, self.parent)
            _move(draft, moved, old_parent, new_parent)
            _move(draft, other, new_parent, old_parent)
            draft.put_name(self.new_parent, self.new_name, moved)
            draft.put_name(self.parent, self.name, other)
            return draft.decision(moved.number)
        draft.check_taken_for(self.expected, NO_INODE if target is None else target.inode)
        if target is not None:
            require(self.flags != RENAME_NOREPLACE, errno.EEXIST)
            if target.inode == moved.number:
                return draft.unchanged(moved.number)  # rename(2): two names of one file, nothing to do
            _replace(draft, moved, new_parent, draft.inode(target.inode))
        _move(draft, moved, old_parent, new_parent)
        draft.remove_name(self.parent, self.name)
        draft.put_name(self.new_parent, self.new_name, moved)
        return draft.decision(moved.number)


def _check_no_loop(catalog: Catalog, moved: Inode, new_parent: InodeNumber) -> None:
    """EINVAL where a directory would become part of itself; ELOOP where that would take too long to say."""
    if not moved.is_directory or moved.parent == new_parent:
        return
    for count, ancestor in enumerate(_ancestors(catalog, new_parent)):
        if ancestor == moved.number:
            raise OperationFailed(errno.EINVAL)
        if count >= ANCESTORS_MAX:
            raise OperationFailed(errno.ELOOP)


def _ancestors(catalog: Catalog, number: InodeNumber) -> Iterator[InodeNumber]:
    passed: set[InodeNumber] = set()
    while number not in passed:
        yield number
        passed.add(number)
        inode = catalog.inode(number)
        if number == ROOT_INODE or inode is None:
            return
        number = inode.parent
    raise OperationFailed(errno.ELOOP)  # of a volume that was damaged


def _replace(draft: Draft, moved: Inode, new_parent: Inode, replaced: Inode) -> None:
    if replaced.is_directory:
        if not moved.is_directory:
            raise OperationFailed(errno.EISDIR)
        draft.drop_directory(new_parent, replaced)
    else:
        if moved.is_directory:
            raise OperationFailed(errno.ENOTDIR)
        draft.change_links(replaced, -1)
        replaced.ctime_ns = draft.time_ns


def _move(draft: Draft, moved: Inode, old_parent: Inode, new_parent: Inode) -> None:
    moved.ctime_ns = draft.time_ns
    if moved.is_directory and old_parent is not new_parent:
        draft.change_links(old_parent, -1)
        draft.change_links(new_parent, 1)
        moved.parent = new_parent.number
