"""What `fusemirror locks` shows: who holds which lock, and who waits, with the names of the files."""

from itertools import islice
from typing import Any

from fusemirror.coherence.lock_table import END_OF_FILE, Lock, LockKey
from fusemirror.coherence.locks import Locks
from fusemirror.identifiers import InodeNumber
from fusemirror.limits import LOCKS_LISTED_MAX
from fusemirror.printable import path_shown
from fusemirror.volume.paths import Tree


async def listed(locks: Locks) -> dict[str, Any]:
    """`whole`: those of both hosts are among them; not at a backup that does not reach the primary. Times in
    seconds."""
    others = await locks.arbiter.others()
    rows, more = locks.all_rows(), 0
    if others is not None:
        rows += others.rows
        more = others.total - len(others.rows)
    tree = Tree(locks.volume)
    await tree.walk({key.inode for key, _, _ in rows} if rows else set())
    return {
        "whole": others is not None,
        "count": len(rows) + more,
        "locks": [
            _row(locks, key, lock, state, _path(tree, key.inode))
            for key, lock, state in islice(rows, LOCKS_LISTED_MAX)
        ],
    }


def _path(tree: Tree, inode: InodeNumber) -> str | None:
    """The file's first path; None where it has no name any more."""
    names = tree.names.get(inode)
    return path_shown(b"/" + b"/".join(tree.path(names[0], {}))) if names else None


def _row(locks: Locks, key: LockKey, lock: Lock, state: str, path: str | None) -> dict[str, Any]:
    identity = locks.volume.identity
    return {
        "path": path,
        "inode": key.inode,
        "kind": key.space.name.lower(),
        "host": identity.host_name if lock.owner.host == locks.host else identity.only_peer.name,
        "pid": lock.pid,
        "uid": lock.uid,
        "start": lock.start,
        "end": None if lock.end == END_OF_FILE else lock.end,
        "exclusive": lock.exclusive,
        "state": state,
        "since": lock.since_ns / 1e9 if lock.since_ns else None,
    }
