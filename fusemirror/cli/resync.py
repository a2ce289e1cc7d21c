"""`fusemirror resync`: how far a resync is, and whether and how fast it goes on."""

from typing import Any

import click

from fusemirror.admin.client import ask
from fusemirror.cli.arguments import Places, name_argument, pass_places, tell
from fusemirror.cli.status import describe_resync
from fusemirror.errors import UsageError
from fusemirror.settings import format_bytes, parse_bytes

SILENCE_TIMEOUT_S = 120.0
"""The backup asks the primary, and gives up after its `io_timeout`."""


class _Rate(click.ParamType[int]):
    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_bytes(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command("resync")
@name_argument
@click.option("--pause", is_flag=True, help="Copy no images for now; changes are mirrored all the same.")
@click.option("--resume", is_flag=True, help="Go on.")
@click.option("--rate", type=_Rate(), help="Bytes per second to copy at most, until unmounted; 0: no limit.")
@pass_places
def command(places: Places, name: str, pause: bool, resume: bool, rate: int | None) -> None:
    """Say how far the resync of NAME is; pause it, let it go on, or limit its rate, from either host."""
    if pause and resume:
        raise UsageError("--pause and --resume exclude each other")
    arguments: dict[str, Any] = {"rate": rate, "paused": pause if pause or resume else None}
    status = ask(places.runtime_dir, name, "resync", arguments, timeout_s=SILENCE_TIMEOUT_S)
    if pause or resume:
        tell(f"{name}: resync {'paused' if pause else 'goes on'}")
    if rate is not None:
        tell(f"{name}: resync {f'at {format_bytes(rate)}/s at most' if rate else 'without a limit'}")
    tell(f"{name}: {describe_resync(status)}")
