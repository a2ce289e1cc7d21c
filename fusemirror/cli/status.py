"""`fusemirror status`: how the mounts of this host are, for people or as JSON."""

import json
import sys
from datetime import datetime
from pathlib import Path
from threading import Event
from typing import Any

import click

from fusemirror.admin.client import ask, mounted_names
from fusemirror.cli.arguments import Places, optional_name_argument, pass_places
from fusemirror.errors import CommandFailed, HistoriesDiverged, NotMounted, NotNormal, TimedOut
from fusemirror.printable import counted, printable_all
from fusemirror.settings import format_bytes

CLOCKS_APART_MAX_S = 1.0  # beyond, times of files are not what people expect
WATCH_INTERVAL_S = 1.0
RESERVATIONS_LISTED_MAX = 10
CLEAR_SCREEN = "\x1b[H\x1b[2J"


@click.command("status")
@optional_name_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON object, or an array without NAME.")
@click.option("--watch", is_flag=True, help="Show it again each second, until Ctrl-C.")
@click.option(
    "--check", "checks", is_flag=True, help="Say only what is not normal; exit status 0 if nothing."
)
@pass_places
def command(places: Places, name: str | None, as_json: bool, watch: bool, checks: bool) -> None:
    """Show the state of the mount NAME, or of every mount of this host.

    Exit status 3 where NAME is not mounted. With --check 12 where something is not normal, 7 in a split
    brain, 3 where nothing is mounted.
    """
    if checks:
        check(places.runtime_dir, name)
        return
    show(places.runtime_dir, name, as_json=as_json)
    pause = Event()
    while watch:
        try:
            pause.wait(WATCH_INTERVAL_S)
            if sys.stdout.isatty():
                sys.stdout.write(CLEAR_SCREEN)  # not by click, which takes it for a colour
            show(places.runtime_dir, name, as_json=as_json)
        except KeyboardInterrupt:
            return


def show(runtime_dir: Path, name: str | None, *, as_json: bool) -> None:
    """Print the status of one mount, or of all."""
    if name is not None:
        found = ask(runtime_dir, name, "status")
        click.echo(json.dumps(found, indent=2) if as_json else describe(found))
        return
    all_found = []
    for each in mounted_names(runtime_dir):
        try:
            all_found.append(ask(runtime_dir, each, "status"))
        except NotMounted:
            continue  # a killed process left its socket
    if as_json:
        click.echo(json.dumps(all_found, indent=2))
    else:
        click.echo("\n\n".join(map(describe, all_found)) or "nothing is mounted")


def check(runtime_dir: Path, name: str | None) -> None:
    """Print a line for each thing that is not normal, of one mount or of all. NotNormal if there are some,
    HistoriesDiverged in a split brain, NotMounted where nothing is mounted."""
    names = mounted_names(runtime_dir) if name is None else [name]
    if not names:
        raise NotMounted("NAME")
    found: list[str] = []
    diverged = False
    for each in names:
        try:
            status = ask(runtime_dir, each, "status")
        except NotMounted as error:
            if name is not None:
                raise
            faults = [str(error)]  # a killed process left its socket
        except (CommandFailed, TimedOut) as error:
            faults = [str(error)]
        else:
            faults = faults_of(printable_all(status))
            diverged = diverged or status["mirror_state"] == "diverged"
        found += faults
        for fault in faults:
            click.echo(f"{each}: {fault}")
    if diverged:
        raise HistoriesDiverged(found[0])
    if found:
        raise NotNormal(found[0])


def faults_of(status: dict[str, Any]) -> list[str]:
    """What is not normal, for people."""
    faults = []
    if status["mirror_state"] != "normal":
        faults.append(_state(status, plain=True))
    if status["mirror_state"] == "degraded" and not status["peer"]["connected"]:
        faults.append(f"peer {_peer(status['peer'])}")
    rows = (*_disk(status), *_staging_disk(status["communication"]), *_clocks(status["peer"]))
    faults += [f"{label}: {text}" for label, text in rows]
    faults += [f"failing: {each['task']}: {each['error']}" for each in status.get("background", ())]
    witness = status.get("witness")
    if witness is not None and witness["state"] in ("unreachable", "unknown"):
        faults.append(f"witness {witness['state']}" + (f": {witness['reason']}" if witness["reason"] else ""))
    return faults


def describe(status: dict[str, Any]) -> str:
    """The status for people: a line for each thing that they would ask, what users chose escaped."""
    status = printable_all(status)
    rows = [
        ("role", status["role"]),
        ("mirror state", _state(status)),
        ("peer", _peer(status["peer"])),
        *_clocks(status["peer"]),
        ("change", f"{status['change']}, of which the peer has {status['peer_change']} safely on disk"),
        ("pending", _pending(status)),
        *_conflicts(status),
        ("out of sync", _out_of_sync(status["out_of_sync"])),
        *_resync(status["resync"]),
        *(row for path, counters in status["paths"].items() for row in _path(path, counters)),
        ("reads", f"{status['reads']['local']} here, {status['reads']['routed']} at the primary"),
        *_reserved(status["reservations"]),
        *_locks(status.get("locks")),
        *_disk(status),
        *_staging_disk(status["communication"]),
        *_nameless(status.get("nameless")),
        ("modes", _modes(status)),
        *_witness(status.get("witness")),
        *_keys(status.get("keys")),
        *(("failing", f"{each['task']}: {each['error']}") for each in status.get("background", ())),
        ("mounted on", status["mountpoint"]),
        ("volume", status["volume"]),
        ("process", f"{status['pid']}, version {status['version']}"),
    ]
    heading = click.style(f"{status['name']} on {status['host']}", bold=True)
    return "\n".join([heading, *(f"  {label:<13} {text}" for label, text in rows)])


COLOURS = {"normal": "green", "resyncing": "yellow", "degraded": "red", "diverged": "red"}


def _state(status: dict[str, Any], *, plain: bool = False) -> str:
    state = status["mirror_state"]
    if not plain:
        state = click.style(state, fg=COLOURS.get(state))
    return f"{state}: {status['reason']}" if status["reason"] else state


def _peer(peer: dict[str, Any]) -> str:
    if not peer["connected"]:
        away_s = peer.get("last_contact_seconds")
        since = "" if away_s is None else f" for {_duration(away_s)}"
        reasons = [reason for reason in (peer.get("error"), peer.get("refused")) if reason]
        return f"{peer['address']}, not connected{since}" + "".join(f"; {reason}" for reason in reasons)
    round_trip = peer["round_trip_seconds"]
    away = f", {round_trip * 1000:.3g} ms away" if round_trip else ""
    return f"{peer['address']}, connected{away}{', encrypted' if peer.get('encrypted') else ''}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _clocks(peer: dict[str, Any]) -> list[tuple[str, str]]:
    ahead_s = peer.get("clock_ahead_seconds")
    if ahead_s is None or abs(ahead_s) <= CLOCKS_APART_MAX_S:
        return []
    way = "ahead of" if ahead_s > 0 else "behind"
    text = f"that of {peer.get('name', 'the peer')} was {abs(ahead_s):.1f} s {way} this host's when they met"
    return [("clocks", f"{text}; set both by the same time service")]


def _pending(status: dict[str, Any]) -> str:
    communication = status["communication"]
    used, capacity = (format_bytes(communication[key]) for key in ("pending_bytes", "capacity_bytes"))
    # A primary stages nothing: what is pending there is on its way to the backup.
    room = f" of {capacity}" if status["role"] == "backup" else ""
    oldest = communication["oldest_seconds"]
    age = f", the oldest {oldest:.3g} s" if oldest else ""
    return f"{counted(communication['pending_requests'], 'request')}, {used}{room}{age}"


def _out_of_sync(counters: dict[str, Any]) -> str:
    if not counters["images"] and not counters["bytes"]:
        return "nothing"
    return f"{counted(counters['images'], 'image')}, {format_bytes(counters['bytes'])}"


def _conflicts(status: dict[str, Any]) -> list[tuple[str, str]]:
    counts = status.get("conflicts")
    if counts is None:
        return []
    here, there = ("unknown" if count is None else count for count in (counts["here"], counts["there"]))
    text = f"names changed apart: {here} here, {there} at {status['peer'].get('name', 'the peer')}"
    return [("split brain", f"{text}; see `fusemirror conflicts {status['name']}`")]


def _resync(resync: dict[str, Any] | None) -> list[tuple[str, str]]:
    if resync is None:
        return []
    done, total = resync["done_bytes"], resync["total_bytes"]
    text = f"{format_bytes(done)} of {format_bytes(total)} ({done / total if total else 0:.0%})"
    if resync["bytes_per_second"]:
        text += f", {format_bytes(resync['bytes_per_second'])}/s"
    if resync["seconds_left"] is not None:
        text += f", {resync['seconds_left']:.0f} s left"
    if resync.get("paused"):
        text += ", paused"
    return [("resync", text)]


def describe_resync(status: dict[str, Any]) -> str:
    """One line: the mirror state, and how far a resync is."""
    row = _resync(status["resync"])
    return f"{status['mirror_state']}, " + (row[0][1] if row else "nothing is being copied")


def _disk(status: dict[str, Any]) -> list[tuple[str, str]]:
    disk = status["disk"]
    if disk["failure"] is not None:
        return [("disk", f"failed: {disk['failure']}; nothing is served, mount again once it is repaired")]
    full = [status["host"]] if disk["full"] else []
    if disk.get("peer_full"):
        full.append(status["peer"].get("name", "the peer"))
    what = "only deleting, cutting and overwriting work"
    return [("disk", f"full on {' and '.join(full)}: {what}")] if full else []


def _staging_disk(communication: dict[str, Any]) -> list[tuple[str, str]]:
    if communication.get("failure"):
        return [("staging", f"{communication['directory']} cannot be used: {communication['failure']}")]
    if not communication.get("full"):
        return []
    return [
        (
            "staging",
            f"the disk of {communication['directory']} is full: with async what needs room gets ENOSPC",
        )
    ]


def _nameless(nameless: dict[str, int] | None) -> list[tuple[str, str]]:
    if nameless is None or not nameless["inodes"]:
        return []
    size = format_bytes(nameless["bytes"])
    files = counted(nameless["inodes"], "deleted file")
    text = f"{files}, {size}, kept while open on either host, or possibly open"
    return [("nameless", text)]


def _traffic(counters: dict[str, Any]) -> str:
    sent, data = format_bytes(counters["sent_bytes"]), format_bytes(counters["sent_data_bytes"])
    return f"sent {sent} ({data} of data), received {format_bytes(counters['received_bytes'])}"


def _path(path: str, counters: dict[str, Any]) -> list[tuple[str, str]]:
    """What went by it, and the addresses that it may go by, where there are several or one is down."""
    rows = [(f"{path} path", _traffic(counters))]
    addresses = counters.get("addresses", ())
    if len(addresses) > 1 or not all(each["up"] for each in addresses):
        rows += [("", _address(each)) for each in addresses]
    return rows


def _address(address: dict[str, Any]) -> str:
    use = "in use" if address["in_use"] else "spare" if address["up"] else "down"
    since = datetime.fromtimestamp(int(address["since"])).astimezone().isoformat(sep=" ")
    local = f" from {address['local']}" if address["local"] else ""
    trip = address["round_trip_seconds"]
    away = f", {trip * 1000:.3g} ms away" if trip and address["up"] else ""
    why = f": {address['reason']}" if address["reason"] else ""
    return f"{address['remote']}{local}, {use} since {since}{away}{why}"


def _reserved(reservations: list[dict[str, Any]]) -> list[tuple[str, str]]:
    rows = []
    for held in reservations[:RESERVATIONS_LISTED_MAX]:
        since = datetime.fromtimestamp(int(held["since"])).astimezone().isoformat(sep=" ")
        what = "everything" if held["inode"] is None else f"{held['path']} (inode {held['inode']})"
        rows.append(("reserved", f"{what}, by {held['holder']} since {since}"))
    if more := len(reservations) - len(rows):
        rows.append(("reserved", f"and {more} more, see --json"))
    return rows


def _keys(keys: dict[str, Any] | None) -> list[tuple[str, str]]:
    if keys is None or not keys["renewing"]:
        return []
    return [("keys", "being renewed: old and new ones count until both hosts have confirmed")]


def _locks(locks: dict[str, Any] | None) -> list[tuple[str, str]]:
    if locks is None:
        return []
    bind = "" if locks["bind"] == "both hosts" else f"; those given now bind {locks['bind']}"
    if not (bind or locks["held"] or locks["waiting"] or locks["lost"]):
        return []
    lost = f", lost by {counted(locks['lost'], 'open file')}" if locks["lost"] else ""
    return [("locks", f"{locks['held']} held, {locks['waiting']} waited for{lost}{bind}")]


def _witness(witness: dict[str, Any] | None) -> list[tuple[str, str]]:
    if witness is None:
        return []
    return [("witness", ": ".join(filter(None, (witness["state"], witness["reason"]))))]


def _modes(status: dict[str, Any]) -> str:
    """What is in effect, and beside it what was asked for where that differs."""
    wanted = status["settings"]
    return ", ".join(
        f"{key} {value}" + ("" if value == wanted[key] else f" (set: {wanted[key]})")
        for key, value in status["effective"].items()
    )
