"""Draft: the effect of an operation under construction, as the rows and the change that make it true.

Only the primary decides. A draft looks at the catalog as it is now; nothing is changed there and nothing
waits, so a decision and its application are one step. Sources of what operations decide: the manual page of
each system call; inode(7) for set-group-id directories and time stamps.
"""

import errno
import stat

import msgspec

from fusemirror.change import COOKIES_PER_CHANGE, AnyChange, NamespaceChange, Row, Table, first_cookie
from fusemirror.errors import OperationFailed
from fusemirror.flags import Act, check_act
from fusemirror.identifiers import NO_REQUEST, ChangeNumber, InodeNumber, NameKey, RequestId
from fusemirror.limits import FILE_BYTES_MAX, NAME_BYTES_MAX
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.entries import Entry, entry_key, inode_key, pack_entry, xattr_key
from fusemirror.volume.inode import Inode

_DIRECTORY_LINKS_MIN = 2  # its own name, and `.`
_LINKS_OF_ROW_MAX = (1 << 32) - 1

Key = InodeNumber | NameKey
"""What a change touches, for those who must wait for it: an inode, or a name in a directory."""


class Decision(msgspec.Struct, frozen=True):
    """The effect of an operation, and what it touches.

    `change` is None where nothing changes and nobody waits for a change. `inode` is the one that its
    requester asks for. `new_file`: it is a file just made, which is mostly written next.
    """

    change: AnyChange | None
    inode: InodeNumber
    keys: tuple[Key, ...] = ()
    old_size: int = FILE_BYTES_MAX
    """How long the file was whose data changes."""
    new_file: bool = False


class Draft:
    """The place in the order, and rows under construction: inodes are copied when first changed, and packed
    once at the end."""

    __slots__ = (
        "_cookies",
        "_inodes",
        "_names",
        "_rows",
        "catalog",
        "file_bytes_max",
        "host",
        "keeps_privileges",
        "number",
        "request",
        "time_ns",
    )

    def __init__(
        self,
        catalog: Catalog,
        number: ChangeNumber,
        time_ns: int,
        request: RequestId = NO_REQUEST,
        host: bytes = b"",
        file_bytes_max: int = FILE_BYTES_MAX,
        keeps_privileges: bool = False,
    ) -> None:
        self.catalog = catalog
        self.number = number
        self.time_ns = time_ns
        self.request = request
        self.host = host
        """Which asks."""
        self.file_bytes_max = file_bytes_max
        self.keeps_privileges = keeps_privileges
        """A repair: data becomes what it was, and no privileges end."""
        self._inodes: dict[InodeNumber, Inode] = {}
        self._rows: list[Row] = []
        self._names: list[NameKey] = []
        self._cookies = 0

    # --- what is there ----------------------------------------------------------------------------------

    def file(self, number: InodeNumber) -> Inode:
        """A regular file as it is, not to be changed; ESTALE, EISDIR or EINVAL where there is none."""
        inode = self.catalog.inode(number)
        if inode is None:
            raise OperationFailed(errno.ESTALE)
        if not stat.S_ISREG(inode.mode):
            raise OperationFailed(errno.EISDIR if inode.is_directory else errno.EINVAL)
        return inode

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

    def check_taken_for(self, expected: InodeNumber, named: InodeNumber) -> None:
        """ESTALE where the kernel expects another directory under a name, and that one is not removed.

        The kernel would take the one that it expects for removed, whatever the other host has put under the
        name meanwhile. ESTALE makes it look and ask once more, but no oftener.
        """
        if expected and expected != named:
            inode = self.catalog.inode(expected)
            if inode is not None and inode.nlink:
                raise OperationFailed(errno.ESTALE)

    def named(self, parent: InodeNumber, name: bytes) -> Inode:
        """A copy of the inode of a name; ENOENT where there is none."""
        entry = self.catalog.entry(parent, name)
        if entry is None:
            raise OperationFailed(errno.ENOENT)
        return self.inode(entry.inode)

    def check_flags(self, inode: Inode, act: Act) -> None:
        """EPERM where a flag of the inode forbids it; nothing forbids a repair."""
        # A copy does not know the flags that its original does.
        known = self.catalog.inode(inode.number) or inode
        if known.flags != 0 and not self.keeps_privileges:
            check_act(self.catalog.xattrs.flags(known), act)

    # --- what becomes of it -----------------------------------------------------------------------------

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

    def change_links(self, inode: Inode, by: int) -> None:
        """So many names stand for the inode more than before. VolumeDamaged where its count cannot be right,
        as no row can have what would become of it, or says that a directory with names in it is removed."""
        inode.nlink += by
        least = _DIRECTORY_LINKS_MIN if inode.is_directory else 0
        if not least <= inode.nlink <= _LINKS_OF_ROW_MAX:
            raise self.catalog.contradicts(f"inode {inode.number} cannot have {inode.nlink - by} links")

    def drop_directory(self, parent: Inode, inode: Inode) -> None:
        """The directory loses its only name; it stays as an inode while someone stands in it. ENOTDIR,
        ENOTEMPTY."""
        if not inode.is_directory:
            raise OperationFailed(errno.ENOTDIR)
        if not self.catalog.is_empty(inode.number):
            raise OperationFailed(errno.ENOTEMPTY)
        inode.nlink = 0
        inode.ctime_ns = self.time_ns
        self.change_links(parent, -1)

    def put_xattr(self, inode: InodeNumber, name: bytes, value: bytes | None) -> None:
        self._rows.append((Table.XATTRS, xattr_key(inode, name), value))

    def put(self, row: Row) -> None:
        self._rows.append(row)

    # --- the result -------------------------------------------------------------------------------------

    def rows(self) -> tuple[Row, ...]:
        """What was drafted so far."""
        rows = [(Table.INODES, inode_key(number), drafted.pack()) for number, drafted in self._inodes.items()]
        return (*rows, *self._rows)

    def decision(self, inode: InodeNumber, *, new_file: bool = False) -> Decision:
        """The rows as a change."""
        rows = self.rows()
        if not rows:
            return self.unchanged(inode)
        change = NamespaceChange(self.number, self.request, self.time_ns, inode, rows)
        return Decision(change, inode, (*self._inodes, *self._names), new_file=new_file)

    def unchanged(self, inode: InodeNumber) -> Decision:
        """A success that changes nothing; a request of the peer is answered by a change all the same."""
        if not self.request:
            return Decision(None, inode)
        return Decision(NamespaceChange(self.number, self.request, self.time_ns, inode, ()), inode)


def check_name(name: bytes) -> None:
    """ENAMETOOLONG, EINVAL for what cannot become a name."""
    if len(name) > NAME_BYTES_MAX:
        raise OperationFailed(errno.ENAMETOOLONG)
    if name in (b"", b".", b".."):
        raise OperationFailed(errno.EINVAL)
