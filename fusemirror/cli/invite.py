"""`fusemirror invite`: a join file for a host in the place of the other one, which is gone for good."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from fusemirror import settings
from fusemirror.admin.changing import write_settings
from fusemirror.admin.client import ask
from fusemirror.cli.arguments import Places, name_argument, pass_places, path_type, tell
from fusemirror.cli.defining import address_option, as_set, check_join_path, new_identity, other_name
from fusemirror.cli.join_file import JoinFile, Side, split, write_join_file
from fusemirror.cli.mistakes import check_addresses
from fusemirror.keys import make_key_pair
from fusemirror.settings import Settings

SILENCE_TIMEOUT_S = 120.0


@click.command("invite")
@name_argument
@address_option("--listen", "Where this host waits for the new one.  [default: as it is set]")
@address_option("--peer", "Where the new host waits for this one.  [default: as the lost one did]")
@click.option("--host-name", help="Name of the new host.  [default: the host of its address]")
@click.option("--join-file", type=path_type, help="Join file to write.  [default: ./NAME.join]")
@pass_places
def command(
    places: Places,
    name: str,
    listen: tuple[str, ...],
    peer: tuple[str, ...],
    host_name: str | None,
    join_file: Path | None,
) -> None:
    """Let a new host take the place of the other host of NAME, which is gone for good.

    This host must be the primary and mounted, and the other one away: exit status 6 otherwise. The other one
    is refused from then on, also if it comes back. Copy the join file to the new host and run `fusemirror
    join` there; each invitation voids the one before.
    """
    path = check_join_path(join_file or Path(f"{name}.join"))
    before = places.load(name)
    changes = {key: as_set(value) for key, value in (("listen", listen), ("peer", peer)) if value}
    after = settings.changed(before, dict(changes))
    if changes:
        check_addresses(after)
    invitation, join = _invitation(places, after, host_name)
    with ExitStack() as undoing:
        # The file first: without it nobody could join, while the other host was refused already.
        write_join_file(path, join)
        undoing.callback(path.unlink, missing_ok=True)
        if changes:
            undoing.callback(write_settings(settings.config_path(places.config_dir, name), changes))
        ask(places.runtime_dir, name, "invite", invitation, timeout_s=SILENCE_TIMEOUT_S)
        undoing.pop_all()
    if after.listen != before.listen:
        listens = settings.joined(after.listen)
        tell(f"{name}: mount it again on this host, so that it listens on {listens}", err=True)
    tell(f"Invited {join.backup.host_name}. There: fusemirror join {path.name} VOLUME_DIR", err=True)


def _invitation(places: Places, chosen: Settings, host_name: str | None) -> tuple[dict[str, Any], JoinFile]:
    """What the mount process is asked, and the join file for it. VolumeMissing, BadKeys, OSError."""
    from fusemirror.channel.tls import own_certificate
    from fusemirror.volume.identity import Identity

    identity = Identity.load(Path(chosen.volume))
    name = settings.check_host_name(host_name or other_name(chosen.peer, identity.host_name))
    keys = make_key_pair(name)
    join = JoinFile(
        name=chosen.name,
        filesystem=identity.filesystem,
        primary=Side(identity.host, identity.host_name, *split(chosen.listen)),
        backup=Side(new_identity(), name, *split(chosen.peer)),
        access=chosen.access,
        acknowledge=chosen.acknowledge,
        communication=chosen.communication,
        primary_certificate=own_certificate(places.keys_dir(chosen.name)),
        backup_keys=keys,
        tls=chosen.tls,
        witness=chosen.witness,
        pairing=identity.pairing + 1,
    )
    asked = {
        "peer": join.backup.host,
        "peer_name": name,
        "certificate": keys.certificate,
        "address": chosen.peer,
        "pairing": join.pairing,
    }
    return asked, join
