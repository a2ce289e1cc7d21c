"""`fusemirror list`: the mirrored filesystems of this host, mounted or not."""

import json
from pathlib import Path
from typing import Any

import click

from fusemirror import settings
from fusemirror.admin.client import ask
from fusemirror.cli.arguments import Places, pass_places, tell
from fusemirror.cli.mounts import our_mounts
from fusemirror.errors import CommandFailed, FusemirrorError, NotMounted, PermissionRefused, TimedOut


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="A JSON array of objects.")
@pass_places
def command(places: Places, as_json: bool) -> None:
    """List the filesystems that are defined on this host: name, state, role, volume, mount point.

    A settings file that cannot be used is listed with the reason.
    """
    found = [_describe(places, name) for name in settings.names_in(places.config_dir)]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if not found:
        tell(f"nothing is defined in {places.config_dir}; see `fusemirror create`", err=True)
    for each in found:
        if each["error"] is not None:
            tell(f"{each['name']}: {each['error']}")
            continue
        where = f"mounted on {each['mountpoint']}" if each["mountpoint"] else "not mounted"
        state = "" if each["mirror_state"] is None else f", {each['mirror_state']}"
        tell(f"{each['name']}: {each['role']}{state}, with {each['peer']}, volume {each['volume']}, {where}")


def _describe(places: Places, name: str) -> dict[str, Any]:
    from fusemirror.volume.identity import Identity

    facts: dict[str, Any] = dict.fromkeys(
        ("name", "role", "mirror_state", "peer", "volume", "mountpoint", "error")
    )
    facts["name"] = name
    try:
        chosen = places.load(name)
        facts["volume"] = chosen.volume
        identity = Identity.load(Path(chosen.volume))
    except (FusemirrorError, OSError) as error:
        facts["error"] = str(error)
        return facts
    facts.update(role=identity.role, peer=" and ".join(peer.name for peer in identity.peers))
    try:
        status = ask(places.runtime_dir, name, "status")
        facts.update(mirror_state=status["mirror_state"], mountpoint=status["mountpoint"])
    except NotMounted:
        pass
    except (CommandFailed, TimedOut, PermissionRefused) as error:
        facts["error"] = str(error)
        facts["mountpoint"] = next((mount.directory for mount in our_mounts(name)), None)
    return facts
