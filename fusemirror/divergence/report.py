"""What `fusemirror conflicts` answers: what each host changed since the fork point, and what is published."""

from typing import Any

from fusemirror.divergence.conflicts import published_files
from fusemirror.divergence.exchange import DivergenceExchange, Listed
from fusemirror.printable import path_shown
from fusemirror.protocol.connection import shown
from fusemirror.protocol.messages import Difference
from fusemirror.volume.volume import Volume


async def report(volume: Volume, exchange: DivergenceExchange | None, timeout_s: float) -> dict[str, Any]:
    """The answer; `exchange` is None where there is no split brain. The other host is given `timeout_s`."""
    identity = volume.identity
    hosts: dict[str, Listed | None] = {}
    if exchange is not None:
        hosts[identity.host_name] = await exchange.list_here()
        hosts[identity.only_peer.name] = await exchange.list_there(timeout_s)
    files, count = await published_files(volume)
    return {
        "diverged": exchange is not None,
        "hosts": {name: _counted(listed) for name, listed in hosts.items()},
        "changed": _joined({name: listed.differences for name, listed in hosts.items() if listed}),
        "set_aside": files,
        "set_aside_count": count,
    }


def _counted(listed: Listed | None) -> dict[str, Any] | None:
    """What is said of a host's list; None where the host did not say anything."""
    if listed is None:
        return None
    return {"count": listed.count, "listed": len(listed.differences), "complete": listed.whole}


def _joined(lists: dict[str, list[Difference]]) -> list[dict[str, Any]]:
    """By path: which hosts changed it, and how."""
    paths: dict[bytes, dict[str, Any]] = {}
    for host, differences in lists.items():
        for difference in differences:
            paths.setdefault(difference.path, {})[host] = {
                "kinds": [shown(kind) for kind in difference.kinds],
                "was": path_shown(difference.was) or None,
                "size": difference.size,
                "modified": difference.mtime_ns / 1e9,
            }
    return [{"path": path_shown(path), "changed_by": by_host} for path, by_host in sorted(paths.items())]
