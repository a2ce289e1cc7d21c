"""`fusemirror keys`: new keys for both hosts."""

import click

from fusemirror.admin.client import ask
from fusemirror.cli.arguments import Places, name_argument, pass_places, tell
from fusemirror.errors import UsageError

SILENCE_TIMEOUT_S = 120.0
"""The mount process gives up after `io_timeout`."""


@click.command("keys")
@name_argument
@click.option("--renew", is_flag=True, help="Make new keys for both hosts.")
@pass_places
def command(places: Places, name: str, renew: bool) -> None:
    """Give both hosts of NAME new keys, from either, while both are mounted; programs go on.

    The old ones count beside the new ones until both hosts have confirmed, and are refused from then on.
    """
    if not renew:
        raise UsageError("nothing to do; `--renew` makes new keys for both hosts")
    ask(places.runtime_dir, name, "renew-keys", timeout_s=SILENCE_TIMEOUT_S)
    tell(f"{name}: both hosts have new keys; the old ones are refused")
