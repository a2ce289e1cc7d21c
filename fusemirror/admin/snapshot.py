"""The status of a mount as one value, with the fields of conventions.md. Sizes in bytes, times in seconds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from fusemirror.channel.link import Link, Linker
from fusemirror.channel.session import Session
from fusemirror.control.management import reservations
from fusemirror.control.role import Role
from fusemirror.mirror.histories import generations_of
from fusemirror.settings import Settings, joined

_MODES = ("access", "acknowledge", "communication", "fence")


@dataclass(frozen=True)
class Mounted:
    """What stays the same as long as a mount lives."""

    settings: Settings
    mountpoint: str
    process_id: int
    version: str
    kernel_cache: Callable[[], dict[str, int]]


def _why_not_as_set(modes: dict[str, str], effective: dict[str, str], *, is_primary: bool) -> str | None:
    """Why a mode that is in effect is another than the one that was asked for."""
    if effective["communication"] != modes["communication"]:
        if is_primary:
            return "communication is as the backup has it"
        return "communication as set is taken by the next mount, once nothing is staged"
    if effective["fence"] != modes["fence"]:
        return "fence is as the primary has it"
    if effective["access"] != modes["access"]:
        return "access is as the primary has it"
    if effective["acknowledge"] != modes["acknowledge"]:
        return "the other host's version takes no exclusive statuses ahead of the data; upgrade it"
    return None


def snapshot(mounted: Mounted, role: Role, linker: Linker, now_ns: Callable[[], int]) -> dict[str, Any]:
    settings, identity, link = mounted.settings, role.host.volume.identity, role.link
    modes = {key: str(getattr(settings, key)) for key in _MODES}
    effective = {**modes, **role.modes.in_effect()}
    status = role.status()
    if status["reason"] is None:
        status["reason"] = _why_not_as_set(modes, effective, is_primary=role.is_primary)
    generations = generations_of(role.host.volume)
    session = link.mirror if link is not None else None
    since = None
    if session is not None:
        since = round(now_ns() / 1e9 - (trio.current_time() - session.counters.since), 3)
    return {
        "name": settings.name,
        "host": identity.host_name,
        **_where_nothing_is_served(status, role),
        "replaced": role.host.volume.health.replaced,
        "peer": {
            "name": identity.only_peer.name,
            "address": joined(settings.peer),
            "connected": link is not None or role.host.exchange.connected,
            "since": since,
            "round_trip_seconds": session and session.heartbeat.round_trip_seconds,
            "encrypted": settings.tls,
            "error": linker.last_error,
            "refused": linker.reception.last_refusal,
            "last_contact_seconds": role.host.links.last_contact_seconds(),
            "clock_ahead_seconds": role.host.clocks.ahead_s,
        },
        "settings": modes,
        "effective": effective,
        "generation": generations[0].identity.hex() if generations else None,
        "paths": _paths(role.host.links.traffic.of_paths(link), link, linker, now_ns),
        "reads": {"local": role.host.reads.local, "routed": role.host.reads.routed},
        "locks": role.host.locks.status(),
        "conflicts": role.host.exchange.status(),
        "exclusive": role.exclusive.status(),
        "reservations": reservations(role.host),
        "background": role.host.background.status(now_ns()),
        "kernel_cache": mounted.kernel_cache(),
        "mountpoint": mounted.mountpoint,
        "volume": settings.volume,
        "pid": mounted.process_id,
        "version": mounted.version,
    }


def _paths(
    traffic: dict[str, dict[str, int]], link: Link | None, linker: Linker, now_ns: Callable[[], int]
) -> dict[str, dict[str, Any]]:
    """Each path with its counts, and each address that it may go by."""
    found: dict[str, dict[str, Any]] = {}
    for path, counts in traffic.items():
        session = None if link is None else link.mirror if path == "mirror" else link.forward
        accepted = session is not None and session.lines is not None
        rows = _accepted(session) if session is not None and accepted else _dialed(session, linker)
        for row in rows:
            row["since"] = round(now_ns() / 1e9 - (trio.current_time() - row["since"]), 3)
        found[path] = {**counts, "addresses": rows}
    return found


def _dialed(session: Session | None, linker: Linker) -> list[dict[str, Any]]:
    """Of a path that this host dials, or would; without a link that is so of both."""
    in_use = None if session is None else linker.dialing.table.in_use
    return [
        {
            "local": session.moving.local_name
            if session and session.moving and in_use == row.address
            else row.local,
            "remote": str(row.address),
            "in_use": in_use == row.address,
            "up": row.is_up,
            "since": row.since,
            "round_trip_seconds": session.heartbeat.round_trip_seconds
            if session is not None and in_use == row.address
            else row.round_trip_seconds,
            "reason": row.reason,
        }
        for row in linker.dialing.table.rows()
    ]


def _accepted(session: Session) -> list[dict[str, Any]]:
    """Of a path that the peer dials: the connections that it has made."""
    assert session.lines is not None, "the peer dialed it"
    assert session.moving is not None, "or there would be no lines"
    lost = session.moving.lost_reason
    used = {
        "local": session.moving.local_name,
        "remote": session.moving.peer_name,
        "in_use": True,
        "up": lost is None,
        "since": session.moving.since,
        "round_trip_seconds": session.heartbeat.round_trip_seconds,
        "reason": lost,
    }
    return [
        used,
        *(
            {
                "local": line.local_name,
                "remote": line.peer_name,
                "in_use": False,
                "up": line.is_proven,
                "since": line.since,
                "round_trip_seconds": None,
                "reason": None,
            }
            for line in session.lines.spares
        ),
    ]


def _where_nothing_is_served(status: dict[str, Any], role: Role) -> dict[str, Any]:
    """A host whose disk failed, or that was replaced, mirrors nothing, whatever state its role was in."""
    failure = status["disk"]["failure"]
    if role.host.volume.health.replaced:
        return {**status, "mirror_state": "degraded", "reason": role.host.volume.health.failure}
    if failure is None:
        return status
    return {**status, "mirror_state": "degraded", "reason": f"this host's disk failed: {failure}"}
