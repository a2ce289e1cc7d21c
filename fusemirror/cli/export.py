"""`fusemirror export`: plain files out of an unmounted volume, without a mount."""

from pathlib import Path

import click

from fusemirror.cli.progress import shown


@click.command("export")
@click.argument("volume_dir", type=click.Path(path_type=Path))
@click.argument("target_dir", type=click.Path(path_type=Path))
def command(volume_dir: Path, target_dir: Path) -> None:
    """Copy everything in the unmounted volume VOLUME_DIR to plain files in TARGET_DIR, empty or new."""
    from fusemirror.volume.export import export

    with shown("export") as advance:
        export(volume_dir, target_dir, advance)
