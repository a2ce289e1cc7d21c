"""`fusemirror delete`: forget a mirrored filesystem on this host."""

import shutil
from pathlib import Path

import click

from fusemirror import settings
from fusemirror.cli.arguments import Places, name_argument, pass_places, tell
from fusemirror.errors import BadConfig, RefusedForSafety, VolumeInUse, VolumeMissing


@click.command("delete")
@name_argument
@click.option("--volume", "with_volume", is_flag=True, help="Remove this host's copy of the files, too.")
@pass_places
def command(places: Places, name: str, with_volume: bool) -> None:
    """Forget NAME on this host: its settings and its keys.

    Its copy of the files stays, for `fusemirror export`, unless --volume says otherwise. Nothing is changed
    at the other host. Exit status 6 while it is mounted.
    """
    from fusemirror.volume.durable import sync_directory

    volume = Path(places.load(name).volume)
    config = settings.config_path(places.config_dir, name)
    _remove(places, name, volume, with_volume=with_volume)
    config.unlink()  # last: until then the command can be given again
    sync_directory(places.config_dir)
    kept = "" if with_volume else f"; its copy of the files stays in {volume}"
    tell(f"Forgot {name}{kept}", err=True)


def _remove(places: Places, name: str, volume: Path, *, with_volume: bool) -> None:
    """Remove the keys, and the volume if that is asked for. RefusedForSafety while it is in use."""
    from fusemirror.communication.place import leave_place
    from fusemirror.volume.identity import Identity, VolumeLock

    try:
        identity = Identity.load(volume)
        lock = VolumeLock(volume)
    except VolumeMissing:
        if with_volume and volume.is_dir() and any(volume.iterdir()):
            raise  # whatever it is, it is none of ours to remove
        identity = None
    except VolumeInUse as error:
        raise RefusedForSafety(f"{error}") from None
    try:
        if identity is not None and identity.name != name:
            raise BadConfig(
                settings.config_path(places.config_dir, name),
                1,
                f"volume: {volume} belongs to `{identity.name}`, and nothing was removed",
            )
        keys = places.keys_dir(name)
        if keys.is_dir() and not keys.is_symlink():
            shutil.rmtree(keys)
        if with_volume and identity is not None:
            if identity.communication_directory:
                leave_place(Path(identity.communication_directory))
            _remove_volume(volume)
    finally:
        if identity is not None:
            lock.release()


def _remove_volume(volume: Path) -> None:
    """Remove all that a volume holds, its identity first: what is left of one that was cut short is none.

    The directory itself stays where it is a mount point. OSError.
    """
    from fusemirror.volume.identity import Identity

    Identity.remove(volume)
    for path in volume.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if not volume.is_mount():
        volume.rmdir()
