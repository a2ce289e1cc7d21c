"""The status of a mount as one value, with the fields of conventions.md. Sizes in bytes, times in seconds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from fusemirror.channel.link import Linker
from fusemirror.control.unit import ControlUnit
from fusemirror.mirror.histories import generations_of
from fusemirror.settings import Settings

_MODES = ("access", "acknowledge", "communication", "fence")


@dataclass(frozen=True)
class Mounted:
    """What stays the same as long as a mount lives."""

    settings: Settings
    mountpoint: str
    process_id: int
    version: str
    kernel_cache: Callable[[], dict[str, int]]


def _why_not_as_set(modes: dict[str, str], effective: dict[str, str]) -> str | None:
    """Why a mode that is in effect is another than the one that was asked for."""
    if effective["communication"] != modes["communication"]:
        return "communication as set is taken by the next mount, once nothing is staged"
    if effective["access"] != modes["access"]:
        return "access is as the primary has it"
    if effective["acknowledge"] != modes["acknowledge"]:
        return "with exclusive access what is acknowledged is in both volumes"
    return None


def snapshot(
    mounted: Mounted, unit: ControlUnit, linker: Linker, now_ns: Callable[[], int]
) -> dict[str, Any]:
    settings, identity, link = mounted.settings, unit.volume.identity, unit.link
    modes = {key: str(getattr(settings, key)) for key in _MODES}
    effective = {**modes, **unit.modes_in_effect()}
    status = unit.status()
    if status["reason"] is None:
        status["reason"] = _why_not_as_set(modes, effective)
    generations = generations_of(unit.volume)
    session = link.mirror if link is not None else None
    since = None
    if session is not None:
        since = round(now_ns() / 1e9 - (trio.current_time() - session.connected_since), 3)
    return {
        "name": settings.name,
        "host": identity.host_name,
        **_where_nothing_is_served(status, unit),
        "replaced": unit.volume.health.replaced,
        "peer": {
            "name": identity.peer_name,
            "address": settings.peer,
            "connected": link is not None or unit.exchange.connected,
            "since": since,
            "round_trip_seconds": session and session.round_trip_seconds,
            "encrypted": settings.tls,
            "error": linker.last_error,
            "refused": linker.last_refusal,
            "last_contact_seconds": unit.last_contact_seconds(),
            "clock_ahead_seconds": unit.clock_ahead_s,
        },
        "settings": modes,
        "effective": effective,
        "generation": generations[0].identity.hex() if generations else None,
        "paths": unit.traffic.of_paths(link),
        "reads": {"local": unit.reads_local, "routed": unit.reads_routed},
        "locks": unit.locks.status(),
        "conflicts": unit.exchange.status(),
        "exclusive": unit.exclusive.status(),
        "reservations": unit.reservations(),
        "background": unit.background.status(now_ns()),
        "kernel_cache": mounted.kernel_cache(),
        "mountpoint": mounted.mountpoint,
        "volume": settings.volume,
        "pid": mounted.process_id,
        "version": mounted.version,
    }


def _where_nothing_is_served(status: dict[str, Any], unit: ControlUnit) -> dict[str, Any]:
    """A host whose disk failed, or that was replaced, mirrors nothing, whatever state its unit was in."""
    failure = status["disk"]["failure"]
    if unit.volume.health.replaced:
        return {**status, "mirror_state": "degraded", "reason": unit.volume.health.failure}
    if failure is None:
        return status
    return {**status, "mirror_state": "degraded", "reason": f"this host's disk failed: {failure}"}
