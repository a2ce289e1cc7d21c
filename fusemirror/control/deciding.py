"""Deciding: what an operation on the namespace does, as catalog rows. Only the primary decides.

Every function looks at the catalog as it is now, raises the errno that a local filesystem would
give, or returns the rows that make the operation true. Nothing is changed here and nothing waits,
so a decision and its application are one step. Sources: the manual page of each system call;
inode(7) for set-group-id directories and time stamps.
"""

import errno
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from fusemirror.change import COOKIES_PER_CHANGE, Row, Table, first_cookie, row_bytes
from fusemirror.control import acl
from fusemirror.control.reservations import release_rows, reserve_rows
from fusemirror.control.unit import Key, NameKey
from fusemirror.errors import OperationFailed
from fusemirror.identifiers import ROOT_INODE, ChangeNumber, InodeNumber
from fusemirror.limits import (
    ANCESTORS_MAX,
    LINKS_MAX,
    NAME_BYTES_MAX,
    ROW_BYTES_PER_RECORD,
    SYMLINK_BYTES_MAX,
    TIME_NS_MAX,
    TIME_NS_MIN,
    XATTR_NAME_BYTES_MAX,
    XATTR_NAMES_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
)
from fusemirror.operations import (
    Create,
    Link,
    Operation,
    Release,
    RemoveDirectory,
    RemoveXattr,
    Rename,
    Reserve,
    SetAttributes,
    SetXattr,
    Unlink,
)
from fusemirror.pieces import first_piece
from fusemirror.volume.catalog import Catalog, Entry, entry_key, inode_key, pack_entry, xattr_key
from fusemirror.volume.inode import Inode
from fusemirror.volume.reservations import reservation_row
from fusemirror.xattrs import CAPABILITY, check_settable, namespace_of

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_DIRECTORY_SIZE = 4096  # what ext4 shows for a small one


class Decision(NamedTuple):
    """The effect of an operation: rows, the inode that its requester asks for, and what it touches."""

    rows: tuple[Row, ...]
    inode: InodeNumber
    keys: tuple[Key, ...]


class Draft:
    """Rows under construction: inodes are copied when first changed, and packed once at the end."""

    def __init__(self, catalog: Catalog, number: ChangeNumber, time_ns: int, host: bytes = b"") -> None:
        self.catalog = catalog
        self.number = number
        self.time_ns = time_ns
        self.host = host  # that asks
        self._inodes: dict[InodeNumber, Inode] = {}
        self._rows: list[Row] = []
        self._names: list[NameKey] = []
        self._cookies = 0

    def inode(self, number: InodeNumber) -> Inode:
        """A copy to change, the same one each time; ESTALE where the inode has gone.

        ESTALE makes the kernel look the path up again, and so give the error that fits.
        """
        drafted = self._inodes.get(number)
        if drafted is None:
            found = self.catalog.inode(number)
            if found is None:
                raise OperationFailed(errno.ESTALE)
            drafted = self._inodes[number] = found.copy()
        return drafted

    def directory(self, number: InodeNumber) -> Inode:
        """A copy of a directory that still has a name, with its time stamps set to this change."""
        inode = self.inode(number)
        if not inode.is_directory:
            raise OperationFailed(errno.ENOTDIR)
        if inode.nlink == 0:
            raise OperationFailed(errno.ENOENT)
        inode.mtime_ns = inode.ctime_ns = self.time_ns
        return inode

    def add_inode(self, inode: Inode) -> None:
        self._inodes[inode.number] = inode

    def put_name(self, parent: InodeNumber, name: bytes, inode: Inode) -> None:
        """A name that there is keeps its place: a listing under way shows it, with one inode or the other."""
        there = self.catalog.entry(parent, name)
        cookie = self._new_cookie() if there is None else there.cookie
        entry = pack_entry(Entry(inode.number, stat.S_IFMT(inode.mode) >> 12, cookie))
        self._rows.append((Table.ENTRIES, entry_key(parent, name), entry))
        self._names.append((parent, name))

    def _new_cookie(self) -> int:
        assert self._cookies < COOKIES_PER_CHANGE
        self._cookies += 1
        return first_cookie(self.number) + self._cookies - 1

    def remove_name(self, parent: InodeNumber, name: bytes) -> None:
        self._rows.append((Table.ENTRIES, entry_key(parent, name), None))
        self._names.append((parent, name))

    def put_xattr(self, inode: InodeNumber, name: bytes, value: bytes | None) -> None:
        self._rows.append((Table.XATTRS, xattr_key(inode, name), value))

    def decision(self, inode: InodeNumber) -> Decision:
        rows = [(Table.INODES, inode_key(number), drafted.pack()) for number, drafted in self._inodes.items()]
        return Decision((*rows, *self._rows), inode, (*self._inodes, *self._names))


def check_name(name: bytes) -> None:
    if len(name) > NAME_BYTES_MAX:
        raise OperationFailed(errno.ENAMETOOLONG)
    if name in (b"", b".", b".."):
        raise OperationFailed(errno.EINVAL)


def _existing(draft: Draft, parent: InodeNumber, name: bytes) -> Inode:
    entry = draft.catalog.entry(parent, name)
    if entry is None:
        raise OperationFailed(errno.ENOENT)
    return draft.inode(entry.inode)


def _create(draft: Draft, operation: Create) -> Decision:
    check_name(operation.name)
    if len(operation.target) > SYMLINK_BYTES_MAX:
        raise OperationFailed(errno.ENAMETOOLONG)
    parent = draft.directory(operation.parent)
    if draft.catalog.entry(operation.parent, operation.name) is not None:
        raise OperationFailed(errno.EEXIST)
    inode = _new_inode(draft, operation, parent)
    if inode.is_directory:
        parent.nlink += 1
    if not inode.is_symlink:
        _limit_permissions(draft, parent.number, inode, operation.umask)
    draft.add_inode(inode)
    draft.put_name(parent.number, operation.name, inode)
    return draft.decision(inode.number)


def _new_inode(draft: Draft, operation: Create, parent: Inode) -> Inode:
    mode, gid = operation.mode, operation.gid
    is_directory = stat.S_ISDIR(mode)
    if parent.mode & stat.S_ISGID:
        gid = parent.gid
        if is_directory:
            mode |= stat.S_ISGID
    size = _DIRECTORY_SIZE if is_directory else len(operation.target)
    return Inode(
        number=draft.catalog.next_inode,
        mode=mode,
        nlink=2 if is_directory else 1,
        uid=operation.uid,
        gid=gid,
        rdev=operation.rdev,
        size=size,
        atime_ns=draft.time_ns,
        mtime_ns=draft.time_ns,
        ctime_ns=draft.time_ns,
        parent=parent.number if is_directory else InodeNumber(0),
        target=operation.target,
    )


def _limit_permissions(draft: Draft, parent: InodeNumber, inode: Inode, umask: int) -> None:
    """A directory's default access control list stands in for the umask (umask(2))."""
    default = draft.catalog.xattr(parent, acl.DEFAULT)
    if default is None:
        inode.mode &= ~umask
        return
    access = acl.inherited(acl.parse(default), inode.mode)
    inode.mode = acl.mode_of(access, inode.mode)
    if not acl.is_minimal(access):
        draft.put_xattr(inode.number, acl.ACCESS, acl.encode(access))
    if inode.is_directory:
        draft.put_xattr(inode.number, acl.DEFAULT, default)


def _link(draft: Draft, operation: Link) -> Decision:
    check_name(operation.name)
    inode = draft.inode(operation.inode)
    if inode.is_directory:
        raise OperationFailed(errno.EPERM)
    if inode.nlink == 0:
        raise OperationFailed(errno.ENOENT)
    if inode.nlink >= LINKS_MAX:
        raise OperationFailed(errno.EMLINK)
    draft.directory(operation.parent)
    if draft.catalog.entry(operation.parent, operation.name) is not None:
        raise OperationFailed(errno.EEXIST)
    inode.nlink += 1
    inode.ctime_ns = draft.time_ns
    draft.put_name(operation.parent, operation.name, inode)
    return draft.decision(inode.number)


def _unlink(draft: Draft, operation: Unlink) -> Decision:
    draft.directory(operation.parent)
    inode = _existing(draft, operation.parent, operation.name)
    if inode.is_directory:
        raise OperationFailed(errno.EISDIR)
    inode.nlink -= 1
    inode.ctime_ns = draft.time_ns
    draft.remove_name(operation.parent, operation.name)
    return draft.decision(inode.number)


def _remove_directory(draft: Draft, operation: RemoveDirectory) -> Decision:
    parent = draft.directory(operation.parent)
    inode = _existing(draft, operation.parent, operation.name)
    _check_expected(operation, inode.number)
    _drop_directory(draft, parent, inode)
    draft.remove_name(operation.parent, operation.name)
    return draft.decision(inode.number)


def _check_expected(operation: RemoveDirectory | Rename, found: InodeNumber | None) -> None:
    """ESTALE makes the kernel that expected another directory look again, and ask again."""
    if operation.expected and operation.expected != found:
        raise OperationFailed(errno.ESTALE)


def _drop_directory(draft: Draft, parent: Inode, inode: Inode) -> None:
    """The directory loses its only name; it stays as an inode while someone stands in it."""
    if not inode.is_directory:
        raise OperationFailed(errno.ENOTDIR)
    if not draft.catalog.is_empty(inode.number):
        raise OperationFailed(errno.ENOTEMPTY)
    inode.nlink = 0
    inode.ctime_ns = draft.time_ns
    parent.nlink -= 1


def _rename(draft: Draft, operation: Rename) -> Decision:
    check_name(operation.name)
    check_name(operation.new_name)
    if operation.flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        raise OperationFailed(errno.EINVAL)
    old_parent = draft.directory(operation.parent)
    new_parent = draft.directory(operation.new_parent)
    moved = _existing(draft, operation.parent, operation.name)
    target = draft.catalog.entry(operation.new_parent, operation.new_name)
    _check_no_loop(draft.catalog, moved, operation.new_parent)
    if operation.flags == RENAME_EXCHANGE:
        if target is None:
            raise OperationFailed(errno.ENOENT)
        other = draft.inode(target.inode)
        _check_no_loop(draft.catalog, other, operation.parent)
        return _exchange(draft, operation, moved, other)
    _check_expected(operation, None if target is None else target.inode)
    if target is not None:
        if operation.flags == RENAME_NOREPLACE:
            raise OperationFailed(errno.EEXIST)
        if target.inode == moved.number:
            return Decision((), moved.number, ())  # rename(2): two names of one file, nothing to do
        _replace(draft, moved, new_parent, draft.inode(target.inode))
    _move(draft, moved, old_parent, new_parent)
    draft.remove_name(operation.parent, operation.name)
    draft.put_name(operation.new_parent, operation.new_name, moved)
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
        _drop_directory(draft, new_parent, replaced)
    else:
        if moved.is_directory:
            raise OperationFailed(errno.ENOTDIR)
        replaced.nlink -= 1
        replaced.ctime_ns = draft.time_ns


def _move(draft: Draft, moved: Inode, old_parent: Inode, new_parent: Inode) -> None:
    moved.ctime_ns = draft.time_ns
    if moved.is_directory and old_parent is not new_parent:
        old_parent.nlink -= 1
        new_parent.nlink += 1
        moved.parent = new_parent.number


def _exchange(draft: Draft, operation: Rename, moved: Inode, other: Inode) -> Decision:
    old_parent, new_parent = draft.inode(operation.parent), draft.inode(operation.new_parent)
    _move(draft, moved, old_parent, new_parent)
    _move(draft, other, new_parent, old_parent)
    draft.put_name(operation.new_parent, operation.new_name, moved)
    draft.put_name(operation.parent, operation.name, other)
    return draft.decision(moved.number)


_SET_ID = stat.S_ISUID | stat.S_ISGID


def _without_set_id(mode: int) -> int:
    """As the kernel does on a write: set-group-id goes only where the group may execute."""
    kept = mode & ~stat.S_ISUID
    return kept & ~stat.S_ISGID if mode & stat.S_IXGRP else kept


def has_privileges(catalog: Catalog, inode: Inode, *, clear_set_id: bool) -> bool:
    """Whether a change of the inode's data ends any; `clear_set_id`: by one who may not keep set-id bits.

    A file capability ends with a change by anyone, root too (capabilities(7)).
    """
    if inode.capable is not False and catalog.has_capability(inode):
        return True
    return clear_set_id and inode.mode & _SET_ID != 0 and _without_set_id(inode.mode) != inode.mode


def _end_privileges(draft: Draft, inode: Inode, *, clear_set_id: bool) -> None:
    if clear_set_id:
        inode.mode = _without_set_id(inode.mode)
    if draft.catalog.xattr(inode.number, CAPABILITY) is not None:
        draft.put_xattr(inode.number, CAPABILITY, None)


def end_privileges(
    catalog: Catalog, inode: InodeNumber, time_ns: int, *, clear_set_id: bool, size: int | None = None
) -> tuple[Row, ...]:
    """The rows that end an inode's privileges; with `size` as after a change of its data too."""
    draft = Draft(catalog, ChangeNumber(0), time_ns)
    ended = draft.inode(inode)
    ended.ctime_ns = time_ns
    if size is not None:
        ended.size, ended.mtime_ns = size, time_ns
    _end_privileges(draft, ended, clear_set_id=clear_set_id)
    return draft.decision(inode).rows


def nearest_time(time_ns: int) -> int:
    """The time itself, or the first or last that an inode can hold, as Linux does it (utimensat(2))."""
    return min(max(time_ns, TIME_NS_MIN), TIME_NS_MAX)


def _set_attributes(draft: Draft, operation: SetAttributes) -> Decision:
    """With a size, as it is after the truncation that comes with it: the rows of one change."""
    inode = draft.inode(operation.inode)
    if operation.size is not None:
        inode.size, inode.mtime_ns = operation.size, draft.time_ns
        _end_privileges(draft, inode, clear_set_id=operation.clear_privileges)
    if operation.mode is not None:
        inode.mode = stat.S_IFMT(inode.mode) | (operation.mode & 0o7777)
        access = draft.catalog.xattr(inode.number, acl.ACCESS)
        if access is not None:
            changed = acl.after_chmod(acl.parse(access), inode.mode)
            draft.put_xattr(inode.number, acl.ACCESS, acl.encode(changed))
    for field in ("uid", "gid"):
        value = getattr(operation, field)
        if value is not None:
            setattr(inode, field, value)
    if not inode.is_directory and (operation.uid is not None or operation.gid is not None):
        _end_privileges(draft, inode, clear_set_id=True)  # root's chown too (chown(2))
    for field in ("atime_ns", "mtime_ns"):
        time_ns = getattr(operation, field)
        if time_ns is not None:
            setattr(inode, field, nearest_time(time_ns))
    inode.ctime_ns = draft.time_ns
    return draft.decision(inode.number)


def _set_xattr(draft: Draft, operation: SetXattr) -> Decision:
    if len(operation.name) > XATTR_NAME_BYTES_MAX:
        raise OperationFailed(errno.ERANGE)
    if len(operation.value) > XATTR_VALUE_BYTES_MAX:
        raise OperationFailed(errno.E2BIG)
    inode = draft.inode(operation.inode)
    check_settable(operation.name, inode.mode)
    _check_names_fit(draft.catalog, inode.number, operation.name)
    inode.ctime_ns = draft.time_ns
    value: bytes | None = operation.value
    if operation.name == acl.ACCESS:
        access = acl.parse(operation.value)
        inode.mode = acl.mode_of(access, inode.mode)
        value = None if acl.is_minimal(access) else operation.value
    elif operation.name == acl.DEFAULT:
        acl.parse(operation.value)
    draft.put_xattr(inode.number, operation.name, value)
    return draft.decision(inode.number)


def _check_names_fit(catalog: Catalog, inode: InodeNumber, name: bytes) -> None:
    """ENOSPC where listxattr(2) could not tell all names any more. A value can always be replaced."""
    if catalog.xattr(inode, name) is None:
        names_bytes = sum(len(each) + 1 for each in catalog.xattr_names(inode))
        if names_bytes + len(name) + 1 > XATTR_NAMES_BYTES_MAX:
            raise OperationFailed(errno.ENOSPC)


def _remove_xattr(draft: Draft, operation: RemoveXattr) -> Decision:
    inode = draft.inode(operation.inode)
    namespace_of(operation.name)
    if draft.catalog.xattr(inode.number, operation.name) is None:
        raise OperationFailed(errno.ENODATA)
    inode.ctime_ns = draft.time_ns
    draft.put_xattr(inode.number, operation.name, None)
    return draft.decision(inode.number)


def _reserve(draft: Draft, operation: Reserve) -> Decision:
    rows = reserve_rows(draft.catalog, operation, draft.host, draft.time_ns)
    return Decision(rows, operation.inode, ())


def _release(draft: Draft, operation: Release) -> Decision:
    return Decision(release_rows(draft.catalog, operation, draft.host), operation.inode, ())


_DECISIONS: dict[type[Operation], Callable[[Draft, Any], Decision]] = {
    Create: _create,
    Link: _link,
    Unlink: _unlink,
    RemoveDirectory: _remove_directory,
    Rename: _rename,
    SetAttributes: _set_attributes,
    SetXattr: _set_xattr,
    RemoveXattr: _remove_xattr,
    Reserve: _reserve,
    Release: _release,
}


def decide(
    catalog: Catalog, operation: Operation, number: ChangeNumber, time_ns: int, host: bytes = b""
) -> Decision:
    """What `operation` of `host` does as change `number` at `time_ns`; raises `OperationFailed`.

    A decision without rows is a success that changes nothing.
    """
    return _DECISIONS[type(operation)](Draft(catalog, number, time_ns, host), operation)


def purge_rows(catalog: Catalog, inodes: Iterable[InodeNumber]) -> tuple[Row, ...]:
    """Rows that end inodes without names, with all that they have: as many as one change should carry.

    Once these are applied, the next call gives the next of them; none where all inodes are ended. An inode
    goes last of what belongs to it: one whose purge was cut short anywhere is still there to be purged.
    """
    rows = (row for number in inodes for row in _rows_of_end(catalog, number))
    return tuple(first_piece(rows, row_bytes, ROW_BYTES_PER_RECORD))


def _rows_of_end(catalog: Catalog, number: InodeNumber) -> Iterator[Row]:
    if catalog.inode(number) is None:
        return
    for name in catalog.xattr_names(number):
        yield (Table.XATTRS, xattr_key(number, name), None)
    if number in catalog.reservations:
        yield reservation_row(number, None)
    yield (Table.INODES, inode_key(number), None)
