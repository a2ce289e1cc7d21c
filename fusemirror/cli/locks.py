"""`fusemirror locks`: who holds which lock, and who waits for one."""

import json
from datetime import datetime
from typing import Any

import click

from fusemirror.admin.client import ask
from fusemirror.cli.arguments import Places, name_argument, pass_places
from fusemirror.printable import printable_all

SILENCE_TIMEOUT_S = 60.0


@click.command("locks")
@name_argument
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@pass_places
def command(places: Places, name: str, as_json: bool) -> None:
    """List who holds locks of flock(2) and fcntl(2) in NAME, and who waits for one."""
    found = ask(places.runtime_dir, name, "locks", timeout_s=SILENCE_TIMEOUT_S)
    click.echo(json.dumps(found, indent=2) if as_json else describe(name, found))


def describe(name: str, found: dict[str, Any]) -> str:
    """A line for each lock, what users chose escaped."""
    found = printable_all(found)
    lines = [_line(lock) for lock in found["locks"]]
    if more := found["count"] - len(found["locks"]):
        lines.append(f"and {more} more")
    if not found["whole"]:
        lines.append("these are this host's: the primary, which knows those of both hosts, is not reached")
    return "\n".join(lines) if found["locks"] else "\n".join([f"{name}: no locks", *lines])


def _line(lock: dict[str, Any]) -> str:
    kind = f"{lock['kind']} {'exclusive' if lock['exclusive'] else 'shared'}"
    what = lock["path"] or f"inode {lock['inode']}, which has no name"
    if lock["kind"] == "fcntl":
        what += f", bytes {lock['start']} to {'the end' if lock['end'] is None else lock['end']}"
    since = ""
    if lock["since"] is not None:
        since = f" since {datetime.fromtimestamp(int(lock['since'])).astimezone().isoformat(sep=' ')}"
    return f"{lock['state']}: {what}: {kind}, by process {lock['pid']} of {lock['host']}{since}"
