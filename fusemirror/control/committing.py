"""Committing the names, by a timer: the namespace becomes durable, as after a local disk's own commit."""

import trio

from fusemirror.control.host_state import HostState
from fusemirror.identifiers import ChangeNumber, InodeNumber
from fusemirror.limits import COMMIT_INTERVAL_S, SPACE_LOOK_INTERVAL_S


async def wait_commit_due(host: HostState) -> None:
    """Return when the names are to be made durable. On a full disk sooner: it frees what was deleted."""
    await trio.sleep(SPACE_LOOK_INTERVAL_S if host.volume.space.short else COMMIT_INTERVAL_S)


async def commit_names(host: HostState, peer_durable: ChangeNumber) -> None:
    """The namespace so far is durable; records are kept of what comes after `peer_durable`.

    DiskFailed, OSError: nothing is lost, and it may be tried again.
    """
    volume = host.volume
    if volume.health.failure is not None:
        return
    volume.space.measure()
    host.news.disks.look()
    await volume.syncing.flush(InodeNumber(0))
    await volume.files.removal.remove()
    volume.commit()
    # A backup is asked for nothing again.
    answered = volume.requests_done if volume.identity.role == "primary" else None
    volume.syncing.trim(peer_durable, answered)
