"""`fusemirror conflicts`: what the hosts changed in a split brain, and what is in quarantine."""

import json
from typing import Any

import click

from fusemirror.admin.client import ask
from fusemirror.cli.arguments import Places, name_argument, pass_places
from fusemirror.errors import HistoriesDiverged
from fusemirror.printable import counted, printable_all
from fusemirror.settings import format_bytes

SILENCE_TIMEOUT_S = 120.0


@click.command("conflicts")
@name_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_places
def command(places: Places, name: str, as_json: bool) -> None:
    """List what the two hosts of NAME changed apart, and the files in quarantine.

    Exit status 7 while there is a split brain.
    """
    found = ask(places.runtime_dir, name, "conflicts", timeout_s=SILENCE_TIMEOUT_S)
    click.echo(json.dumps(found, indent=2) if as_json else describe(name, found))
    if found["diverged"]:
        raise HistoriesDiverged(
            f"{counted(len(found['changed']), 'name differs', 'names differ')}; "
            "choose a side with `fusemirror resolve`"
        )


def describe(name: str, found: dict[str, Any]) -> str:
    """A line for each name that was changed apart, for what is not known, and for each file in quarantine.

    Names are escaped.
    """
    found = printable_all(found)
    lines = [_changed(entry) for entry in found["changed"]]
    for host, said in found["hosts"].items():
        lines.extend(_unknown(host, said))
    deleted = sorted(
        {
            host
            for entry in found["changed"]
            for host, change in entry["changed_by"].items()
            if "deleted" in change["kinds"]
        }
    )
    lines.extend(f"what {host} deleted comes back where the copy of the other host stays" for host in deleted)
    lines.extend(
        f"in quarantine: /.fusemirror-conflicts{file['path']} ({format_bytes(file['size'])})"
        for file in found["set_aside"]
    )
    listed = len(found["set_aside"])
    if more := found.get("set_aside_count", listed) - listed:
        lines.append(f"in quarantine: {counted(more, 'file')} more; see /.fusemirror-conflicts")
    return "\n".join(lines) or f"{name}: no conflicts"


def _changed(entry: dict[str, Any]) -> str:
    return f"{entry['path']}: " + "; ".join(
        f"{host}: {_happened(change)}" for host, change in entry["changed_by"].items()
    )


def _happened(change: dict[str, Any]) -> str:
    kinds = ", ".join(change["kinds"])
    if change["was"]:
        kinds += f" (was {change['was']})"
    return kinds if "deleted" in change["kinds"] else f"{kinds}, {format_bytes(change['size'])}"


def _unknown(host: str, said: dict[str, Any] | None) -> list[str]:
    if said is None:
        return [f"what {host} changed is not known: it is not connected, or did not answer; ask there"]
    lines = []
    if said["count"] > said["listed"]:
        lines.append(f"{host} changed {counted(said['count'], 'name')}, of which {said['listed']} are listed")
    if not said["complete"]:
        lines.append(
            f"{host} may have changed more: its journal does not reach back to where the hosts parted"
        )
    return lines
