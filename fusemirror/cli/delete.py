"""`fusemirror delete`: forget a mirrored filesystem on this host."""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

import click

from fusemirror import settings
from fusemirror.admin.client import process_id
from fusemirror.cli.arguments import Places, name_argument, pass_places, tell
from fusemirror.cli.defining import alone_in
from fusemirror.cli.mounts import all_mounts, mount_at
from fusemirror.errors import BadConfig, NotMounted, RefusedForSafety, VolumeInUse, VolumeMissing

_ON_DISKS_OF_THEIR_OWN = ("journal", "communication")
"""The parts of a volume for which fusemirror-tasks(7) says how to mount a disk there."""


@click.command("delete")
@name_argument
@click.option("--volume", "with_volume", is_flag=True, help="Remove this host's copy of the files, too.")
@pass_places
def command(places: Places, name: str, with_volume: bool) -> None:
    """Forget NAME on this host: its settings and its keys, also what a killed `create` or `join` has left.

    Its copy of the files stays, for `fusemirror export`, unless --volume says otherwise. Nothing is changed
    at the other host. Exit status 6 while it is mounted.
    """
    from fusemirror.volume.durable import sync_directory

    config, keys = settings.config_path(places.config_dir, name), places.keys_dir(name)
    if not os.path.lexists(config) and keys.is_dir() and not keys.is_symlink():
        _remove_begun(places, name, keys)
        return
    volume = Path(places.load(name).volume)
    left = _remove(places, name, volume, with_volume=with_volume)
    config.unlink()  # last: until then the command can be given again
    sync_directory(places.config_dir)
    kept = "" if with_volume else f"; its copy of the files stays in {volume}"
    if left:
        directories = ", ".join(map(str, left))
        kept = f"; empty, and left for you to unmount and remove: {directories}"
    tell(f"Forgot {name}{kept}", err=True)


def _remove_begun(places: Places, name: str, keys: Path) -> None:
    """Remove the keys that a killed `create` or `join` has left; no settings say where its volume is.

    RefusedForSafety while it is at work, or mounted.
    """
    with suppress(NotMounted):
        number = process_id(places.runtime_dir, name)
        raise RefusedForSafety(f"process {number} has it mounted; unmount it first")
    try:
        with alone_in(keys, waits=False):
            shutil.rmtree(keys)
    except BlockingIOError:
        raise RefusedForSafety("it is being made by another command; wait for the end of that") from None
    tell(f"Forgot {name}, of which there were only keys; a volume that was begun may be left, too", err=True)


def _remove(places: Places, name: str, volume: Path, *, with_volume: bool) -> list[Path]:
    """Remove the keys, and the volume if that is asked for; the directories in it that are empty and stay.

    RefusedForSafety while it is in use, or something is mounted in it that is no part of it.
    """
    from fusemirror.communication.place import leave_place
    from fusemirror.volume.identity import Identity, VolumeLock

    goes_on = with_volume and Identity.is_removed(volume)  # by a removal that was cut short
    try:
        identity = Identity.load(volume, removed=goes_on)
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
        if with_volume:
            _check_mounts_in(volume)
        keys = places.keys_dir(name)
        if keys.is_dir() and not keys.is_symlink():
            shutil.rmtree(keys)
        if with_volume and identity is not None:
            if not goes_on:  # else it has been left, and may be another's by now
                if identity.communication_directory:
                    leave_place(Path(identity.communication_directory))
                Identity.remove(volume)
            return _remove_volume(volume)
        return []
    finally:
        if identity is not None:
            lock.release()


def _check_mounts_in(volume: Path) -> None:
    """RefusedForSafety where a disk is mounted in the volume that the manual does not have there: what it
    holds may be anybody's."""
    real = Path(os.path.realpath(volume))
    ours = [real, *(real / part for part in _ON_DISKS_OF_THEIR_OWN)]
    for mount in all_mounts():
        directory = Path(mount.directory)
        if directory.is_relative_to(real) and directory not in ours:
            raise RefusedForSafety(
                f"something is mounted on {directory}, and would be emptied with the volume; unmount it first"
            )


def _remove_volume(volume: Path) -> list[Path]:
    """Remove all that was a volume. What says which one it was goes last: what is left of a removal that was
    cut short is no volume, and can be removed.

    The directory itself stays where it is a mount point, and so do those in it, which are returned. OSError.
    """
    from fusemirror.volume.identity import REMOVED_IDENTITY

    paths = [path for path in sorted(volume.iterdir()) if path.name != REMOVED_IDENTITY]
    left = [path for path in paths if not _remove_path(path)]
    (volume / REMOVED_IDENTITY).unlink()
    if not left and mount_at(os.path.realpath(volume)) is None:
        volume.rmdir()
    return left


def _remove_path(path: Path) -> bool:
    """Remove what stands there, and all that it holds; whether nothing is left.

    A mount point is emptied and stays; so does one that is immutable, as fusemirror-tasks(7) makes them, and
    that is empty as long as its disk is not mounted. OSError.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return True
    is_mounted = mount_at(os.path.realpath(path)) is not None
    for inner in path.iterdir():
        if inner.is_dir() and not inner.is_symlink():
            if not (is_mounted and inner.name == "lost+found"):  # of the disk's filesystem
                shutil.rmtree(inner)
        else:
            inner.unlink()
    try:
        path.rmdir()
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EPERM):
            raise
        return False
    return True
