"""`fusemirror wait`: return when a mount has reached a state."""

import click

from fusemirror.admin.client import ANSWER_TIMEOUT_S, ask
from fusemirror.cli.arguments import Places, name_argument, pass_places, seconds_type


@click.command("wait")
@name_argument
@click.option(
    "--for",
    "state",
    required=True,
    type=click.Choice(["connected", "normal", "drained"]),
    help="connected: the peer is there. normal: both volumes hold the same. drained: no request is pending.",
)
@click.option("--timeout", type=seconds_type, default=60.0, show_default=True, help="Seconds to wait.")
@pass_places
def command(places: Places, name: str, state: str, timeout: float) -> None:
    """Wait until the mount NAME is connected, normal or drained; exit status 8 if it takes too long."""
    arguments = {"for": state, "timeout": timeout}
    ask(places.runtime_dir, name, "wait", arguments, timeout_s=timeout + ANSWER_TIMEOUT_S)
