"""Requests on open directories: what they list."""

import pyfuse3
from pyfuse3 import RequestContext

from fusemirror.change import first_cookie
from fusemirror.control.unit import ControlUnit
from fusemirror.errors import FusemirrorError, OperationFailed, VolumeDamaged
from fusemirror.filesystem.access_times import AccessTimes
from fusemirror.filesystem.answers import Listing, list_entry
from fusemirror.filesystem.attributes import AttributeReplies, damaged_entry
from fusemirror.filesystem.errnos import ErrorLog, answers_errno
from fusemirror.filesystem.handles import DirectoryHandle, Handles, opening
from fusemirror.filesystem.kernel_cache import KernelCache
from fusemirror.identifiers import ROOT_INODE, ChangeNumber, InodeNumber
from fusemirror.volume.entries import Entry
from fusemirror.volume.inode import Inode

# Positions in a directory: 0 is the start, then "." and "..", then the entries' own cookies.
_DOT, _DOT_DOT = 1, 2
_ENTRIES_PER_TURN = 128  # about what fits into one reply of the kernel's 128 KiB


class DirectoryRequests:
    """See the module."""

    def __init__(
        self, unit: ControlUnit, cache: KernelCache, errors: ErrorLog, access_times: AccessTimes | None
    ) -> None:
        """`access_times` hears of what is read; None: nobody is to."""
        self.errors = errors
        self._unit = unit
        self._cache = cache
        self._access_times = access_times
        self._replies = AttributeReplies(unit, cache)
        self._directories = Handles[DirectoryHandle]()

    @answers_errno
    async def opendir(self, inode: InodeNumber, ctx: RequestContext) -> int:
        with opening(self._unit, inode):
            if inode != ROOT_INODE:  # which is there always, and df opens it
                await self._unit.attributes(inode)
        return self._directories.add(DirectoryHandle(inode, self._next_cookie()))

    @answers_errno
    async def releasedir(self, fh: int) -> None:
        self._unit.open_inodes.remove(self._directories.remove(fh).inode)

    @answers_errno
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._unit.flush(self._directories[fh].inode)

    @answers_errno
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken | Listing) -> None:
        handle = self._directories[fh]
        if self._access_times is not None:
            self._access_times.note(handle.inode)
        position = start_id
        if position < _DOT_DOT:
            own = await self._unit.attributes(handle.inode)
            if position == 0:  # opened, or rewound; and this host has heard of all changes by now
                handle.end = self._next_cookie()
            if not await self._reply_dots(own, position, token):
                return
        told = position < _DOT_DOT
        cookie = max(position, _DOT_DOT) - _DOT_DOT
        unit = self._unit
        try:
            while entries := await unit.listing(handle.inode, cookie, _ENTRIES_PER_TURN):
                keeping = unit.leases.keeping(handle.inode)
                for cookie, name, entry in entries:
                    if cookie >= handle.end:
                        return
                    inode = self._listed(handle.inode, name, entry)
                    shown = damaged_entry(entry) if inode is None else self._replies.of(unit.shown(inode))
                    if inode is not None:
                        shown.entry_timeout = unit.name_lifetime_s(handle.inode, name, keeping)
                    if not list_entry(token, name, shown, cookie + _DOT_DOT):
                        return
                    told = True
                    self._cache.named(entry.inode)
                    if inode is not None and inode.is_directory:
                        self._cache.directories.told(inode.number, (handle.inode, name))
        except FusemirrorError:
            # An answer is names or an error. A kernel that gets the error never has the names, and would not
            # let go of them; so it gets the names, and its next call meets the error.
            if not told:
                raise

    def _listed(self, directory: InodeNumber, name: bytes, entry: Entry) -> Inode | None:
        """The inode of a name; None, and a line in the log, where that is damaged: the others are listed
        all the same, and who looks at this one gets EIO."""
        try:
            return self._unit.volume.files.inode_of(directory, name, entry)
        except VolumeDamaged as error:
            self.errors.log(error)
            return None

    def _next_cookie(self) -> int:
        return first_cookie(ChangeNumber(self._unit.volume.number + 1))

    async def _reply_dots(self, own: Inode, position: int, token: pyfuse3.ReaddirToken | Listing) -> bool:
        if own.nlink == 0:
            return False  # a removed directory lists nothing, not even itself
        if position < _DOT and not list_entry(token, b".", self._replies.of(own), _DOT):
            return False
        number, above = own.number, own.parent
        try:
            parent = await self._unit.attributes(above)
        except OperationFailed:
            if self._unit.volume.catalog.inode(number) is own and own.nlink and own.parent == above:
                what = f"directory {number} names inode {above}, which is missing"
                raise self._unit.volume.catalog.contradicts(what) from None
            raise
        return list_entry(token, b"..", self._replies.of(parent), _DOT_DOT)
