"""Defining a mirrored filesystem on this host, wholly or not at all: what `create` and `join` share."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from fusemirror import settings
from fusemirror.cli.arguments import Places, path_type, say
from fusemirror.cli.guarding import guard
from fusemirror.cli.join_file import JoinFile, Side
from fusemirror.cli.mistakes import check_addresses, check_place
from fusemirror.errors import RefusedForSafety, UsageError
from fusemirror.keys import CERTIFICATE, KEY, PEER_CERTIFICATE, KeyPair
from fusemirror.settings import OneOrMore, Settings

ID_BYTES = 16

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

volume_argument = click.argument("volume_dir", type=path_type)


def guard_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """An option for the directory that is to be mounted on."""
    return click.option(
        "--guard",
        metavar="MOUNTPOINT",
        type=path_type,
        help="Mount on this directory, and let nobody, not even root, write into it while it is not mounted.",
    )(function)


def new_identity() -> str:
    """Of a filesystem or a host."""
    return os.urandom(ID_BYTES).hex()


def check_join_path(path: Path) -> Path:
    """The path of a join file that is yet to be written; RefusedForSafety where something is there."""
    if os.path.lexists(path):
        raise RefusedForSafety(f"the join file {path} exists; remove it, or choose another with --join-file")
    return path


def other_name(peer: OneOrMore, host_name: str) -> str:
    """The host of the peer's first address, or all of the address where both hosts are one machine."""
    try:
        first = settings.parse_addresses(peer)[0]
    except ValueError as error:
        raise UsageError(f"peer: {error}") from None
    return str(first) if first.host == host_name else first.host


def chosen_settings(
    join: JoinFile, volume_dir: Path, *, listen: OneOrMore, peer: OneOrMore, mountpoint: Path | None
) -> Settings:
    """The settings of one side; UsageError where they cannot be used."""
    return settings.make(
        name=join.name,
        volume=str(volume_dir.absolute()),
        listen=listen,
        peer=peer,
        mountpoint="" if mountpoint is None else str(mountpoint.absolute()),
        access=join.access.value,
        acknowledge=join.acknowledge.value,
        communication=join.communication.value,
        tls=join.tls,
        witness=join.witness,
    )


def define(
    places: Places,
    chosen: Settings,
    join: JoinFile,
    *,
    own: Side,
    other: Side,
    keys: KeyPair,
    peer_certificate: str,
    primary: bool,
    guarded: Path | None,
    fill: Callable[[], None] = lambda: None,
    also: Callable[[], None] = lambda: None,
) -> None:
    """Make the volume, the keys and the config file, guard the mountpoint `guarded`; then do `also`.
    `fill` puts into the volume what is to be there from the beginning.

    All of it is durable on return; where anything fails, nothing stays. RefusedForSafety for what exists,
    and for places that cannot be; UsageError for addresses that cannot; BadKeys, OSError.
    """
    config = settings.config_path(places.config_dir, chosen.name)
    check_addresses(chosen)
    check_place(Path(chosen.volume), chosen.mountpoint)

    from fusemirror.channel.tls import Credentials
    from fusemirror.volume.durable import replace_file
    from fusemirror.volume.identity import Identity, KnownPeer
    from fusemirror.volume.private import keep_from_writers
    from fusemirror.volume.volume import Volume

    volume, keys_dir = Path(chosen.volume), places.keys_dir(chosen.name)
    identity = Identity(
        filesystem=join.filesystem,
        name=join.name,
        host=own.host,
        host_name=own.host_name,
        peers=(KnownPeer(other.host, other.host_name),),
        role="primary" if primary else "backup",
        complete=primary,
        compare_all=False,
        pairing=join.pairing,
    )
    places.config_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if keep_from_writers(places.config_dir):
        say(f"others could write to {places.config_dir}, and cannot now: see what they did there")
    with ExitStack() as undoing, ExitStack() as holding:
        with alone_in(places.config_dir):
            _check_free(places, chosen)
            undoing.callback(_empty if volume.exists() else _remove, volume)
            undoing.callback(_remove, keys_dir)
            keys_dir.mkdir(mode=0o700)
            holding.enter_context(alone_in(keys_dir))
            Volume.create(volume, identity)
        files = {CERTIFICATE: keys.certificate, KEY: keys.key, PEER_CERTIFICATE: peer_certificate}
        for name, content in files.items():
            replace_file(keys_dir / name, content.encode())
        Credentials(keys_dir)  # BadKeys, before there is a config file
        fill()
        if guarded is not None:
            guard(guarded, undoing)
        undoing.callback(config.unlink, missing_ok=True)
        replace_file(config, settings.render(chosen).encode())
        also()
        undoing.pop_all()


def _check_free(places: Places, chosen: Settings) -> None:
    """RefusedForSafety where the name is taken, or something is in the volume's directory."""
    volume = Path(chosen.volume)
    for path in (settings.config_path(places.config_dir, chosen.name), places.keys_dir(chosen.name)):
        if os.path.lexists(path):
            raise RefusedForSafety(
                f"{path} exists; choose another name, or forget it with `fusemirror delete {chosen.name}`"
            )
    if volume.is_symlink():
        raise RefusedForSafety(f"{volume} is a symbolic link; name the directory itself")
    if volume.exists() and (not volume.is_dir() or any(volume.iterdir())):
        raise RefusedForSafety(f"{volume} is not an empty directory; choose another")


@contextmanager
def alone_in(directory: Path, *, waits: bool = True) -> Iterator[None]:
    """While this lasts no other command makes or undoes a filesystem in a directory of settings, or in one of
    keys. OSError, BlockingIOError where one does and this one does not wait."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir():
            _remove(path)
        else:
            path.unlink()


def address_option(flag: str, help_text: str, *, required: bool = False) -> Decorator:
    """An option that takes HOST:PORT, and may be given again for a further address."""
    text = f"{help_text}  Again for each further address."
    return click.option(flag, metavar="HOST:PORT", required=required, multiple=True, help=text)


def as_set(addresses: tuple[str, ...]) -> OneOrMore:
    """How the settings have them: one as text, several as a list; empty text for none."""
    return addresses if len(addresses) > 1 else "".join(addresses)
