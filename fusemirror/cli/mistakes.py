"""Mistakes: what could be written into the settings, and could never work.

Each is refused before anything is made, with what to write instead.
"""

import ipaddress
import os
import socket
from pathlib import Path

from fusemirror.cli.mounts import FSTYPE, all_mounts
from fusemirror.errors import RefusedForSafety, UsageError
from fusemirror.settings import Address, Settings

EVERY_ADDRESS = ("0.0.0.0", "::", "*")
_DEFAULT_ROUTE = "192.0.2.1"  # RFC 5737: nobody is there, and nothing is sent; a route is looked up


def check_addresses(chosen: Settings) -> None:
    """UsageError where the two hosts could not find each other by these addresses.

    A name that is not known yet is no mistake: it may be by the time of the mount.
    """
    for peer in chosen.peer_addresses:
        if peer in chosen.listen_addresses:
            raise UsageError(f"--listen and --peer are both {peer}; the second is where the other host waits")
        if peer.host in EVERY_ADDRESS:
            raise UsageError(f"the other host listens on {peer}, every address; name one with --peer")
    for listen in chosen.listen_addresses:
        for peer in chosen.peer_addresses:
            _check_reachable(listen, peer)


def _check_reachable(listen: Address, peer: Address) -> None:
    if listen.host in EVERY_ADDRESS or not _is_loopback(listen.host) or _is_loopback(peer.host):
        return
    own = _own_address(peer.host)
    use = f"--listen {Address(own, listen.port)}" if own else "an address that the other host can reach"
    raise UsageError(
        f"{listen.host} is {', '.join(_addresses(listen.host))} on this host, a loopback address, where "
        f"{peer.host} can never connect (see /etc/hosts); use {use}"
    )


def _addresses(host: str) -> list[str]:
    """Those that a name has here; none where it is not known."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _is_loopback(host: str) -> bool:
    addresses = [ipaddress.ip_address(each.partition("%")[0]) for each in _addresses(host)]
    return bool(addresses) and all(each.is_loopback for each in addresses)


def _own_address(peer: str) -> str | None:
    """The address from which this host reaches the other, as its routes say; None where it has none."""
    for host in (*_addresses(peer), _DEFAULT_ROUTE):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((host, 9))
            except OSError:
                continue
            own = str(probe.getsockname()[0])
        if not ipaddress.ip_address(own.partition("%")[0]).is_loopback:
            return own
    return None


def check_place(volume: Path, mountpoint: str = "", *, what: str = "volume") -> None:
    """RefusedForSafety where a volume, or what else it is, would lie in a mirrored filesystem, in another
    volume, or in the way of its own mount point."""
    from fusemirror.errors import VolumeMissing
    from fusemirror.volume.identity import Identity

    place = Path(os.path.realpath(volume))
    for mount in all_mounts():
        if mount.fstype == FSTYPE and place.is_relative_to(mount.directory):
            raise RefusedForSafety(
                f"{volume} is in the mirrored filesystem on {mount.directory}; choose a place on a local disk"
            )
    for above in place.parents:
        try:
            identity = Identity.load(above)
        except VolumeMissing:
            continue
        raise RefusedForSafety(f"{volume} is inside the volume of {identity.name}, {above}; choose another")
    if mountpoint:
        check_mountpoint(place, mountpoint, what=what)


def check_mountpoint(volume: Path, mountpoint: str, *, what: str = "volume") -> None:
    """RefusedForSafety where one is inside the other: a mount would hide the volume, or lie in it."""
    place = Path(os.path.realpath(volume))
    if place.is_relative_to(mountpoint) or Path(mountpoint).is_relative_to(place):
        both = f"the {what} {volume} and the mount point {mountpoint}"
        raise RefusedForSafety(f"one of {both} is inside the other; choose another place for it")


def check_source(source: Path, volume: Path) -> None:
    """RefusedForSafety where `source` is no directory that can be taken in."""
    if not source.is_dir():
        raise RefusedForSafety(f"{source} is not a directory; --import takes one")
    tree, place = source.resolve(), Path(os.path.realpath(volume))
    if place.is_relative_to(tree) or tree.is_relative_to(place):
        raise RefusedForSafety(
            f"one of {source} and the volume {volume} is inside the other; move one of them"
        )
