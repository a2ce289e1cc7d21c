"""Names that kernels keep: what a change of one waits for."""

from collections.abc import Awaitable
from typing import Protocol

from fusemirror.control.host_state import HostState
from fusemirror.identifiers import InodeNumber
from fusemirror.operations import Operation


class FreeDirectory(Protocol):
    """`Reads.free_directory` of the role that makes the change."""

    def __call__(self, directory: InodeNumber, *, of_change: bool) -> Awaitable[None]: ...


async def make_way(host: HostState, operation: Operation, free: FreeDirectory) -> bool:
    """On return no kernel keeps names that `operation` changes, but for this one's what it holds.

    Whether that took a wait. A check report as `free` raises it.
    """
    leases, waited = host.leases, False
    leases.change(operation)
    while leases.theirs or leases.shared:
        changed = [parent for parent, _ in operation.touched_names()]
        kept = [each for each in changed if leases.is_in_the_way(each, of_change=True)]
        emptied = operation.must_be_empty(host.volume.catalog)
        if kept:
            await free(kept[0], of_change=True)
        elif emptied in leases.theirs:
            await free(emptied, of_change=False)
        else:
            break
        waited = True
    return waited
