"""`fusemirror create`: the first host's volume and configuration, and the join file for the second."""

import socket
from enum import StrEnum
from pathlib import Path

import click

from fusemirror import settings
from fusemirror.cli.arguments import Places, name_argument, pass_places, path_type, tell
from fusemirror.cli.defining import (
    Decorator,
    address_option,
    as_set,
    check_join_path,
    chosen_settings,
    define,
    guard_option,
    new_identity,
    other_name,
    volume_argument,
)
from fusemirror.cli.join_file import JoinFile, Side, split, write_join_file
from fusemirror.cli.mistakes import check_source
from fusemirror.cli.progress import shown
from fusemirror.keys import make_key_pair
from fusemirror.printable import counted
from fusemirror.settings import Access, Acknowledge, Communication, Settings


def mode_option(flag: str, default: StrEnum) -> Decorator:
    """An option for one of the modes; a mode that this version lacks is refused later, by name."""
    modes = click.Choice([mode.value for mode in type(default)])
    return click.option(flag, type=modes, default=default.value, show_default=True)


@click.command("create")
@name_argument
@volume_argument
@address_option("--listen", "Where this host waits for the other.", required=True)
@address_option("--peer", "Where the other host waits for this one.", required=True)
@mode_option("--access", Access.ROUTED)
@mode_option("--acknowledge", Acknowledge.SYNC)
@mode_option("--communication", Communication.LMDB)
@click.option("--host-name", default=socket.gethostname, help="Name of this host.  [default: its own]")
@click.option("--peer-name", help="Name of the other host.  [default: the host of --peer]")
@click.option("--join-file", type=path_type, help="Join file to write.  [default: ./NAME.join]")
@guard_option
@click.option(
    "--import",
    "source",
    metavar="DIRECTORY",
    type=path_type,
    help="Take in the files of this directory, which stays as it is.",
)
@pass_places
def command(
    places: Places,
    name: str,
    volume_dir: Path,
    listen: tuple[str, ...],
    peer: tuple[str, ...],
    access: str,
    acknowledge: str,
    communication: str,
    host_name: str,
    peer_name: str | None,
    join_file: Path | None,
    guard: Path | None,
    source: Path | None,
) -> None:
    """Make the main volume of NAME in VOLUME_DIR, its configuration, and a join file for the other host.

    Copy the join file to the other host and run `fusemirror join` there. It holds the other host's key:
    copy it over a safe way, and remove it afterwards.
    """
    path = check_join_path(join_file or Path(f"{name}.join"))
    host_name = settings.check_host_name(host_name)
    peer_name = settings.check_host_name(peer_name or other_name(as_set(peer), host_name))
    primary_keys, backup_keys = make_key_pair(host_name), make_key_pair(peer_name)
    join = JoinFile(
        name=name,
        filesystem=new_identity(),
        primary=Side(new_identity(), host_name, *split(listen)),
        backup=Side(new_identity(), peer_name, *split(peer)),
        access=Access(access),
        acknowledge=Acknowledge(acknowledge),
        communication=Communication(communication),
        primary_certificate=primary_keys.certificate,
        backup_keys=backup_keys,
    )
    chosen = chosen_settings(join, volume_dir, listen=as_set(listen), peer=as_set(peer), mountpoint=guard)
    if source is not None:
        check_source(source, Path(chosen.volume))
    define(
        places,
        chosen,
        join,
        own=join.primary,
        other=join.backup,
        keys=primary_keys,
        peer_certificate=backup_keys.certificate,
        primary=True,
        guarded=guard,
        fill=lambda: None if source is None else take_in(chosen, source),
        also=lambda: write_join_file(path, join),
    )
    tell(f"Made {name}. On the other host: fusemirror join {path.name} VOLUME_DIR", err=True)


def take_in(chosen: Settings, source: Path) -> None:
    """Import the files of a directory into the new volume. ImportFailed."""
    from fusemirror.cli.importing import import_tree

    with shown("import") as advance:
        count = import_tree(chosen, source, advance, lambda line: tell(line, err=True))
    tell(f"Took in {counted(count, 'name')} from {source}", err=True)
