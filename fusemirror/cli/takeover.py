"""`fusemirror takeover`: the backup becomes the primary, without the other host."""

from typing import Any

import click

from fusemirror.admin.client import ask
from fusemirror.cli.arguments import Places, name_argument, pass_places, tell
from fusemirror.errors import RefusedForSafety
from fusemirror.printable import counted
from fusemirror.settings import format_bytes

SILENCE_TIMEOUT_S = 120.0


@click.command("takeover")
@name_argument
@click.option("--dry-run", is_flag=True, help="Say what would be lost, and do nothing; the same exit status.")
@click.option(
    "--force",
    is_flag=True,
    help="Also while the primary is connected, with an older copy, or without the witness.",
)
@pass_places
def command(places: Places, name: str, dry_run: bool, force: bool) -> None:
    """Let this host be the primary of NAME, because the other is lost.

    Refused without --force (exit status 6) while the primary is connected, this copy is not consistent,
    or a witness does not permit it.
    """
    if dry_run:
        report = ask(places.runtime_dir, name, "takeover", {"dry_run": True})
        describe(name, report)
        if report["role"] != "primary" and report["refused"] and not force:
            raise RefusedForSafety(f"{report['refused']}; --force takes over all the same")
        return
    ask(places.runtime_dir, name, "takeover", {"force": force}, timeout_s=SILENCE_TIMEOUT_S)
    tell(f"{name}: this host is the primary now")


def describe(name: str, report: dict[str, Any]) -> None:
    """Print what a takeover would do."""
    if report["role"] == "primary":
        tell(f"{name}: this host is the primary already")
        return
    contact, out_of_sync = report["last_contact_seconds"], report["out_of_sync"]
    told = "not since the mount" if contact is None else f"{contact:g} s ago"
    tell(f"{name}: the primary was last heard of: {told}")
    tell(f"{name}: this copy has everything up to change {report['change']}")
    pending = format_bytes(report["pending_bytes"])
    requests = counted(report["pending_requests"], "pending request")
    tell(f"{name}: to be carried out here: {requests} ({pending})")
    size = format_bytes(out_of_sync["bytes"])
    tell(f"{name}: older than the primary's: {counted(out_of_sync['images'], 'image')} ({size})")
