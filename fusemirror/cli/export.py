"""`fusemirror export`: plain files out of an unmounted volume, without a mount."""

from pathlib import Path

import click

from fusemirror.cli.arguments import path_type, tell
from fusemirror.cli.progress import shown
from fusemirror.errors import ExportIncomplete
from fusemirror.printable import counted


@click.command("export")
@click.argument("volume_dir", type=path_type)
@click.argument("target_dir", type=path_type)
def command(volume_dir: Path, target_dir: Path) -> None:
    """Copy everything in the unmounted volume VOLUME_DIR to plain files in TARGET_DIR, empty or new.

    What cannot be copied is listed, and all else is copied; exit status 1 then.
    """
    from fusemirror.volume.export import export

    with shown("export") as advance:
        done = export(volume_dir, target_dir, advance, lambda line: tell(line, err=True))
    if done.devices or done.privileged:
        tell(
            f"exported as they are: {counted(done.devices, 'device file')}, "
            f"{counted(done.privileged, 'file')} with set-user-id or set-group-id bits or capabilities",
            err=True,
        )
    if done.problems:
        raise ExportIncomplete(counted(done.problems, "thing"))
