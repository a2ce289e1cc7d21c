"""`fusemirror verify`: compare both volumes by checksums, while in use."""

from typing import Any

import click

from fusemirror.admin.client import ask
from fusemirror.cli.arguments import Places, name_argument, pass_places, tell
from fusemirror.cli.completing import complete_host
from fusemirror.cli.progress import shown
from fusemirror.errors import DifferencesFound, UsageError
from fusemirror.printable import counted
from fusemirror.settings import format_bytes

SILENCE_TIMEOUT_S = 120.0
"""The longest silence between two records of progress: a digest of a large range of a slow disk."""


@click.command("verify")
@name_argument
@click.option("--repair", is_flag=True, help="Replace what differs by the version of the primary.")
@click.option(
    "--keep",
    metavar="HOST",
    shell_complete=complete_host,
    help="With --repair: by the version of HOST, a name or a role.",
)
@pass_places
def command(places: Places, name: str, repair: bool, keep: str | None) -> None:
    """Compare every image and every catalog row of both volumes; exit status 9 where they differ.

    With --repair: exit status 0 where no difference is left.
    """
    if keep and not repair:
        raise UsageError("--keep says what --repair does; use both")
    chosen = {"keep": keep or "primary"} if repair else {}
    with shown("verify") as advance:

        def progress(record: dict[str, Any]) -> None:
            advance(int(record["done"]), int(record["total"]))

        result = ask(
            places.runtime_dir, name, "verify", chosen, timeout_s=SILENCE_TIMEOUT_S, progress=progress
        )
    for difference in result["differences"]:
        tell(difference)
    if more := result.get("more_differences", 0):
        tell(f"and {more} more")
    if result["differences"]:
        raise DifferencesFound(counted(len(result["differences"]) + more, "difference"))
    if result.get("repaired"):
        tell(f"{name}: {counted(result['repaired'], 'difference')} repaired")
    size = format_bytes(result["bytes"])
    images, rows = counted(result["images"], "image"), counted(result["rows"], "catalog row")
    tell(f"{name}: no difference in {images} ({size}), {rows}")
