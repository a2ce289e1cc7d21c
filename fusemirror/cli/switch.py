"""`fusemirror switch`: exchange the roles of the two hosts."""

import click

from fusemirror.admin.client import ask
from fusemirror.cli.arguments import Places, name_argument, pass_places, tell

SILENCE_TIMEOUT_S = 120.0
"""Both hosts make their volumes durable first, and give up after `io_timeout`."""


@click.command("switch")
@name_argument
@pass_places
def command(places: Places, name: str) -> None:
    """Exchange the roles of the hosts of NAME, from either; programs go on, and wait less than a second.

    Refused (exit status 6) unless the mirror state is normal.
    """
    role = ask(places.runtime_dir, name, "switch", timeout_s=SILENCE_TIMEOUT_S)
    tell(f"{name}: this host is the {role} now")
