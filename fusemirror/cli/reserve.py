"""`fusemirror reserve`: hold a file, or the whole filesystem, for this host."""

import os
from pathlib import Path
from typing import NamedTuple

import click

from fusemirror.admin.client import ANSWER_TIMEOUT_S, ask
from fusemirror.cli.arguments import Places, name_argument, pass_places, path_type, tell
from fusemirror.errors import UsageError

path_argument = click.argument("path", required=False, type=path_type)


@click.command("reserve")
@name_argument
@path_argument
@click.option("--preempt", is_flag=True, help="Take over what the other host holds.")
@pass_places
def command(places: Places, name: str, path: Path | None, preempt: bool) -> None:
    """Hold the file PATH, or without PATH all of NAME, for this host.

    Until `fusemirror release`, changes by programs of the other host fail with EBUSY. Exit status 6
    where the other host holds it.
    """
    what = find(places, name, path)
    send(places, name, "reserve", what, preempt=preempt)
    tell(f"{name}: reserved for this host: {what.path or 'everything'}")


class Reserved(NamedTuple):
    """A file by its inode and its path from the root of the filesystem; inode 0 is everything."""

    inode: int
    path: str


def find(places: Places, name: str, path: Path | None) -> Reserved:
    """What PATH means in the mounted filesystem; UsageError where it is no file in it."""
    if path is None:
        return Reserved(0, "")
    mountpoint = ask(places.runtime_dir, name, "status")["mountpoint"]
    real = os.path.realpath(path)
    found = os.stat(real)
    if found.st_dev != os.stat(mountpoint).st_dev:
        raise UsageError(f"{path} is not in {mountpoint}; give a path of a file there")
    if os.path.isdir(real):
        raise UsageError(f"{path} is a directory; give a file, or no PATH for the whole filesystem")
    return Reserved(found.st_ino, os.path.relpath(real, os.path.realpath(mountpoint)))


def send(places: Places, name: str, command: str, what: Reserved, *, preempt: bool) -> None:
    """Ask the mount process, which asks the other host if it must."""
    arguments = {"inode": what.inode, "path": what.path, "preempt": preempt}
    timeout_s = places.load(name).io_timeout + ANSWER_TIMEOUT_S
    ask(places.runtime_dir, name, command, arguments, timeout_s=timeout_s)
