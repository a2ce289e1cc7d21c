"""The `fusemirror` command line: its options, and its commands by name."""

import importlib
import os
from pathlib import Path

import click

import fusemirror
from fusemirror.cli.arguments import Places, Program, path_type, prepare_process
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
    "locks",
    "switch",
    "takeover",
    "conflicts",
    "resolve",
    "invite",
    "keys",
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


def _show_version(context: click.Context) -> None:
    """With what two hosts must agree on, and what a volume must have to be opened."""
    from fusemirror.cli.join_file import JOIN_FORMATS
    from fusemirror.limits import PROTOCOL_VERSION, PROTOCOL_VERSION_MIN
    from fusemirror.volume.identity import FORMAT_VERSION
    from fusemirror.volume.journal import JOURNAL_VERSION

    formats = {
        "protocol": (PROTOCOL_VERSION_MIN, PROTOCOL_VERSION),
        "volume format": (1, FORMAT_VERSION),
        "journal format": (1, JOURNAL_VERSION),
        "join file format": (min(JOIN_FORMATS), max(JOIN_FORMATS)),
    }
    shown = (
        f"{what} {first}" + (f" to {last}" if last > first else "") for what, (first, last) in formats.items()
    )
    click.echo(f"fusemirror {fusemirror.__version__} ({', '.join(shown)})")
    context.exit()


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.command(cls=Commands, context_settings=CONTEXT)
@click.option(
    "--config-dir",
    envvar="FUSEMIRROR_CONFIG_DIR",
    default=CONFIG_DIR,
    type=path_type,
    show_default=True,
    help="Where NAME.toml is.",
)
@click.option(
    "--runtime-dir",
    envvar="FUSEMIRROR_RUNTIME_DIR",
    default=RUNTIME_DIR,
    type=path_type,
    show_default=True,
    help="Where the sockets of mount processes are.",
)
@click.option("-d", "--debug", is_flag=True, help="Tracebacks of errors, and debug messages.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda context, _, wanted: _show_version(context) if wanted else None,
    help="Show the version, and those of the protocol and of what is on disk.",
)
@click.pass_context
def program(context: click.Context, config_dir: Path, runtime_dir: Path, debug: bool) -> None:
    """A filesystem that two hosts mount at once, with a complete copy on each.

    Manuals: fusemirror(7) explains it, fusemirror(8) has every command.
    """
    if os.environ.get("NO_COLOR"):  # https://no-color.org: set, and not empty
        context.color = False
    context.obj = Places(config_dir.absolute(), runtime_dir.absolute(), debug=debug)


def main() -> None:
    """Runs the command line of this process, and exits."""
    prepare_process()
    program.main(prog_name="fusemirror")
