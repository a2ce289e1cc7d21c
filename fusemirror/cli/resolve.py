"""`fusemirror resolve`: say after a split brain whose copy is to stay."""

import click

from fusemirror.admin.client import ask
from fusemirror.cli.arguments import Places, name_argument, pass_places, tell
from fusemirror.cli.completing import complete_host

SILENCE_TIMEOUT_S = 120.0


@click.command("resolve")
@name_argument
@click.option(
    "--keep", metavar="HOST", required=True, shell_complete=complete_host, help="The host whose copy stays."
)
@pass_places
def command(places: Places, name: str, keep: str) -> None:
    """End the split brain of NAME: the other host becomes the backup of HOST, its files go to quarantine.

    On either host, again and again; while the other host is away it takes effect when they meet.
    """
    done = ask(places.runtime_dir, name, "resolve", {"keep": keep}, timeout_s=SILENCE_TIMEOUT_S)
    tell(f"{name}: {done}")
