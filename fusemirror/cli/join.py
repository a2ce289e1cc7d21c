"""`fusemirror join`: the second host's volume and configuration, from the first host's join file."""

from pathlib import Path

import click
import msgspec

from fusemirror import settings
from fusemirror.cli.arguments import Places, pass_places, path_type, set_subject, tell
from fusemirror.cli.defining import (
    address_option,
    as_set,
    chosen_settings,
    define,
    guard_option,
    volume_argument,
)
from fusemirror.cli.join_file import read_join_file


@click.command("join")
@click.argument("join_file", type=path_type)
@volume_argument
@address_option("--listen", "Where this host waits for the other.  [default: as `create` was told]")
@address_option("--peer", "Where the other host waits for this one.  [default: as `create` was told]")
@click.option("--host-name", help="Name of this host.  [default: as `create` was told]")
@guard_option
@click.pass_context
@pass_places
def command(
    places: Places,
    context: click.Context,
    join_file: Path,
    volume_dir: Path,
    listen: tuple[str, ...],
    peer: tuple[str, ...],
    host_name: str | None,
    guard: Path | None,
) -> None:
    """Make the subvolume in VOLUME_DIR, and its configuration, from the other host's JOIN_FILE."""
    join = read_join_file(join_file)
    set_subject(context, join.name)
    own = msgspec.structs.replace(
        join.backup, host_name=settings.check_host_name(host_name or join.backup.host_name)
    )
    settings.check_host_name(join.primary.host_name)
    chosen = chosen_settings(
        join,
        volume_dir,
        listen=as_set(listen) or own.addresses,
        peer=as_set(peer) or join.primary.addresses,
        mountpoint=guard,
    )
    define(
        places,
        chosen,
        join,
        own=own,
        other=join.primary,
        keys=join.backup_keys,
        peer_certificate=join.primary_certificate,
        primary=False,
        guarded=guard,
    )
    tell(f"Joined {join.name}. On both hosts: fusemirror mount {join.name} MOUNTPOINT", err=True)
