"""`fusemirror set`: change settings, in the config file and in the mount that runs."""

import click

from fusemirror import settings
from fusemirror.admin.changing import change
from fusemirror.cli.arguments import Places, name_argument, pass_places, tell
from fusemirror.cli.completing import complete_assignment


@click.command("set")
@name_argument
@click.argument(
    "assignments", metavar="KEY=VALUE...", nargs=-1, required=True, shell_complete=complete_assignment
)
@pass_places
def command(places: Places, name: str, assignments: tuple[str, ...]) -> None:
    """Change settings of NAME on this host, at once where it is mounted, and for later mounts."""
    config = settings.config_path(places.config_dir, name)
    status = change(config, places.runtime_dir, name, assignments)
    if status is None:
        tell(f"{name}: set for the next mount")
        return
    if "mountpoint" in (assignment.partition("=")[0] for assignment in assignments):
        tell(f"{name}: the mountpoint is for the next mount")
    waiting = [key for key, value in status["settings"].items() if status["effective"][key] != value]
    if waiting:
        tell(f"{name}: set; not in effect yet: {', '.join(waiting)}: {status['reason']}")
    else:
        tell(f"{name}: set, and in effect")
