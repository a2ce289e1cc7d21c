"""`fusemirror release`: end what `fusemirror reserve` began."""

from pathlib import Path

import click

from fusemirror.cli.arguments import Places, name_argument, pass_places, tell
from fusemirror.cli.reserve import find, path_argument, send


@click.command("release")
@name_argument
@path_argument
@click.option("--preempt", is_flag=True, help="End what the other host holds, too.")
@pass_places
def command(places: Places, name: str, path: Path | None, preempt: bool) -> None:
    """End the reservation of the file PATH, or without PATH that of all of NAME.

    What is not reserved is no error. Exit status 6 where the other host holds it.
    """
    what = find(places, name, path)
    send(places, name, "release", what, preempt=preempt)
    tell(f"{name}: not reserved: {what.path or 'everything'}")
