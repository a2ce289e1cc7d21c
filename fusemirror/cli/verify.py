"""`fusemirror verify`: compare both volumes by checksums, while in use."""

from typing import Any

import click

from fusemirror.admin.client import ask
from fusemirror.cli.arguments import Places, name_argument, pass_places
from fusemirror.cli.progress import shown
from fusemirror.errors import DifferencesFound
from fusemirror.settings import format_bytes

SILENCE_TIMEOUT_S = 120.0
"""The longest silence between two records of progress: a digest of a large range of a slow disk."""


@click.command("verify")
@name_argument
@pass_places
def command(places: Places, name: str) -> None:
    """Compare every image and every catalog row of both volumes; exit status 9 where they differ."""
    with shown("verify") as advance:

        def progress(record: dict[str, Any]) -> None:
            advance(int(record["done"]), int(record["total"]))

        result = ask(places.runtime_dir, name, "verify", timeout_s=SILENCE_TIMEOUT_S, progress=progress)
    for difference in result["differences"]:
        click.echo(difference)
    if result["differences"]:
        raise DifferencesFound(len(result["differences"]))
    size = format_bytes(result["bytes"])
    click.echo(f"{name}: no difference in {result['images']} images ({size}), {result['rows']} catalog rows")
