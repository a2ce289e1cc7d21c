"""`fusemirror fsck`: check an unmounted volume, with the exit codes of fsck(8)."""

from pathlib import Path

import click

from fusemirror.cli.arguments import Places, attempt, pass_places, path_type, tell

CLEAN, REPAIRED, LEFT, OPERATIONAL_ERROR = 0, 1, 4, 8


@click.command("fsck")
@click.argument("volume_dir", type=path_type)
@click.option("--repair", is_flag=True, help="Repair what is found.")
@pass_places
def command(places: Places, volume_dir: Path, repair: bool) -> int:
    """Check the unmounted volume VOLUME_DIR.

    Exit status 0: clean; 1: problems were repaired; 4: problems are left; 8: it could not be checked.
    """
    from fusemirror.communication.opening import check_staged
    from fusemirror.volume.check import check

    def checked() -> int:
        result = check(volume_dir, repair, tell)
        staged_whole = check_staged(volume_dir, repair=repair, report=tell)
        if result.left or not (staged_whole or repair):
            return LEFT
        return CLEAN if staged_whole and not result.repaired else REPAIRED

    return attempt(checked, lambda _error: OPERATIONAL_ERROR, debug=places.debug)
