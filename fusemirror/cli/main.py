"""The `fusemirror` command line: its options, and its commands by name."""

import importlib
import os
from pathlib import Path

import click

import fusemirror
from fusemirror.cli.arguments import Places, Program
from fusemirror.settings import CONFIG_DIR, RUNTIME_DIR

COMMANDS = (
    "create",
    "join",
    "mount",
    "umount",
    "status",
    "set",
    "wait",
    "verify",
    "resync",
    "reserve",
    "release",
    "switch",
    "takeover",
    "conflicts",
    "resolve",
    "invite",
    "list",
    "delete",
    "fsck",
    "export",
    "completion",
)
"""Every command; it is in the module of its name, which is imported when it runs."""


class Commands(Program):
    """Imports only the command that runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"fusemirror.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.command(cls=Commands, context_settings=CONTEXT)
@click.option(
    "--config-dir",
    envvar="FUSEMIRROR_CONFIG_DIR",
    default=CONFIG_DIR,
    type=click.Path(path_type=Path),
    show_default=True,
    help="Where NAME.toml is.",
)
@click.option(
    "--runtime-dir",
    envvar="FUSEMIRROR_RUNTIME_DIR",
    default=RUNTIME_DIR,
    type=click.Path(path_type=Path),
    show_default=True,
    help="Where the sockets of mount processes are.",
)
@click.option("-d", "--debug", is_flag=True, help="Tracebacks of errors, and debug messages.")
@click.version_option(fusemirror.__version__, message="%(prog)s %(version)s")
@click.pass_context
def program(context: click.Context, config_dir: Path, runtime_dir: Path, debug: bool) -> None:
    """A filesystem that two hosts mount at once, with a complete copy on each.

    Manuals: fusemirror(7) explains it, fusemirror(8) has every command.
    """
    if os.environ.get("NO_COLOR"):  # https://no-color.org: set, and not empty
        context.color = False
    context.obj = Places(config_dir.absolute(), runtime_dir.absolute(), debug=debug)


def main() -> None:
    """Runs the command line of this process, and exits. Nothing that it makes is for others."""
    os.umask(0o077)
    program.main(prog_name="fusemirror")
