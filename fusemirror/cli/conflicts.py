"""`fusemirror conflicts`: what the hosts changed apart, and what was set aside."""

from typing import Any

import click

from fusemirror.admin.client import ask
from fusemirror.cli.arguments import Places, name_argument, pass_places
from fusemirror.errors import HistoriesDiverged
from fusemirror.settings import format_bytes

SILENCE_TIMEOUT_S = 120.0


@click.command("conflicts")
@name_argument
@pass_places
def command(places: Places, name: str) -> None:
    """List the files of NAME that this host changed apart, and those that were set aside.

    Exit status 7 while there is a split brain.
    """
    found = ask(places.runtime_dir, name, "conflicts", timeout_s=SILENCE_TIMEOUT_S)
    for file in found["changed_here"]:
        click.echo(f"changed here: {_described(file)}")
    for file in found["set_aside"]:
        click.echo(f"set aside: /.fusemirror-conflicts{_described(file)}")
    if found["diverged"]:
        raise HistoriesDiverged(f"{len(found['changed_here'])} files on this host")
    if not found["set_aside"]:
        click.echo(f"{name}: no conflicts")


def _described(file: dict[str, Any]) -> str:
    return f"{file['path']} ({format_bytes(file['size'])})"
