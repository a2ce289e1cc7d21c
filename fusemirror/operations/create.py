"""Create: an inode of any type and its first name; open(2) with O_CREAT, mkdir(2), mknod(2), symlink(2)."""

import errno
import stat
from collections.abc import Iterable

from fusemirror.errors import OperationFailed
from fusemirror.flags import INHERITED, Act, encode_flags
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import SPACE_PER_CHANGE_BYTES, SYMLINK_BYTES_MAX
from fusemirror.operations import acl
from fusemirror.operations.draft import Decision, Draft, check_name
from fusemirror.operations.operation import NO_INODE, OfName, require
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.inode import DIRECTORY_SIZE, Inode
from fusemirror.xattrs import FLAGS

_TYPES = frozenset(
    (
        stat.S_IFIFO,
        stat.S_IFCHR,
        stat.S_IFDIR,
        stat.S_IFBLK,
        stat.S_IFREG,
        stat.S_IFLNK,
        stat.S_IFSOCK,
    )
)


class Create(OfName, tag=3, frozen=True, array_like=True):
    """Make an inode of any type and its first name. `mode` holds the type; `target` is a symlink's.

    `umask` takes permissions away unless the directory has a default access control list (umask(2)).
    """

    mode: int
    uid: int
    gid: int
    rdev: int = 0
    target: bytes = b""
    umask: int = 0

    def check(self) -> None:
        super().check()
        require(stat.S_IFMT(self.mode) in _TYPES)
        require(stat.S_ISLNK(self.mode) == bool(self.target))

    def touched_inodes(self, catalog: Catalog) -> Iterable[InodeNumber]:
        return ()  # where there is the name, it says so and changes nothing

    def space_needed(self, data_bytes: int) -> int:
        return SPACE_PER_CHANGE_BYTES

    @property
    def inodes_needed(self) -> int:
        return int(stat.S_ISREG(self.mode))

    def decide(self, draft: Draft, data_bytes: int = 0) -> Decision:
        check_name(self.name)
        if len(self.target) > SYMLINK_BYTES_MAX:
            raise OperationFailed(errno.ENAMETOOLONG)
        parent = draft.directory(self.parent)
        if draft.catalog.entry(self.parent, self.name) is not None:
            raise OperationFailed(errno.EEXIST)
        draft.check_flags(parent, Act.ADD_ENTRY)
        inode = new_inode(
            draft, parent, self.mode, self.uid, self.gid, self.rdev, self.target, umask=self.umask
        )
        inode.nlink = 1
        if inode.is_directory:
            inode.nlink = 2
            draft.change_links(parent, 1)
        draft.put_name(self.parent, self.name, inode)
        return draft.decision(inode.number, new_file=inode.is_regular)


def new_inode(
    draft: Draft,
    parent: Inode,
    mode: int,
    uid: int,
    gid: int,
    rdev: int = 0,
    target: bytes = b"",
    *,
    umask: int,
) -> Inode:
    """An inode without names, drafted, with what it inherits of the directory in which it is made."""
    is_directory = stat.S_ISDIR(mode)
    if parent.mode & stat.S_ISGID:
        gid = parent.gid
        if is_directory:
            mode |= stat.S_ISGID
    inode = Inode(
        number=draft.catalog.next_inode,
        mode=mode,
        nlink=0,
        uid=uid,
        gid=gid,
        rdev=rdev,
        size=DIRECTORY_SIZE if is_directory else len(target),
        atime_ns=draft.time_ns,
        mtime_ns=draft.time_ns,
        ctime_ns=draft.time_ns,
        parent=parent.number if is_directory else NO_INODE,
        target=target,
        birth_ns=draft.time_ns,
    )
    if not inode.is_symlink:
        _limit_permissions(draft, parent.number, inode, umask)
    inherited = draft.catalog.xattrs.flags(draft.catalog.inode(parent.number) or parent) & INHERITED
    if inherited:
        draft.put_xattr(inode.number, FLAGS, encode_flags(inherited))
    draft.add_inode(inode)
    return inode


def _limit_permissions(draft: Draft, parent: InodeNumber, inode: Inode, umask: int) -> None:
    """A directory's default access control list stands in for the umask (umask(2))."""
    default = draft.catalog.xattrs.value(parent, acl.DEFAULT)
    if default is None:
        inode.mode &= ~umask
        return
    access = acl.inherited(acl.parse(default), inode.mode)
    inode.mode = acl.mode_of(access, inode.mode)
    if not acl.is_minimal(access):
        draft.put_xattr(inode.number, acl.ACCESS, acl.encode(access))
    if inode.is_directory:
        draft.put_xattr(inode.number, acl.DEFAULT, default)
