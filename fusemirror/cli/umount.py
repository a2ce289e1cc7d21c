"""`fusemirror umount`: take the mount out of the tree, and wait until its process has made the data safe."""

import os
from contextlib import suppress
from pathlib import Path

import click

from fusemirror.admin.client import ANSWER_TIMEOUT_S, ask, process_id
from fusemirror.cli.arguments import Places, pass_places, say, seconds_type, set_subject
from fusemirror.cli.completing import complete_target
from fusemirror.cli.mounts import (
    FSTYPE,
    Mount,
    Process,
    detach,
    is_stale,
    mount_at,
    our_mounts,
    real_path,
    registered_runtime_dir,
)
from fusemirror.errors import CommandFailed, NotAMount, NotMounted, PermissionRefused, TimedOut
from fusemirror.printable import counted
from fusemirror.settings import format_bytes

TIMEOUT_S = 60.0
SILENCE_S = 1.0
"""After so long a person at a terminal is told what is waited for."""


@click.command("umount")
@click.argument("target", metavar="NAME|MOUNTPOINT", shell_complete=complete_target)
@click.option("--force", is_flag=True, help="Detach although in use; requests that wait for an answer fail.")
@click.option("--lazy", is_flag=True, help="Detach now, end when the last user has gone; do not wait.")
@click.option("--timeout", type=seconds_type, default=TIMEOUT_S, show_default=True, help="Seconds to wait.")
@click.pass_context
@pass_places
def command(
    places: Places, context: click.Context, target: str, force: bool, lazy: bool, timeout: float
) -> None:
    """Unmount NAME or MOUNTPOINT, and return when its data is safe."""
    if "/" not in target:
        set_subject(context, target)
    unmount(target, places.runtime_dir, force=force, lazy=lazy, timeout_s=timeout)


def unmount(
    target: str, runtime_dir: Path, *, force: bool = False, lazy: bool = False, timeout_s: float = TIMEOUT_S
) -> None:
    """Unmount by name or directory. On return the mount process has ended, unless `lazy`.

    NotMounted, NotAMount, MountBusy with the holders, UnmountFailed, TimedOut.
    """
    mount = _find(target, runtime_dir)
    # umount(8) forgets where it was registered.
    runtime_dir, name = _socket_of(mount, target, runtime_dir)
    try:
        process = _process_of(mount, name, runtime_dir)
    except TimedOut:  # nobody knows which process is to be waited for
        if mount is None or not (force or lazy):
            raise
        detach(mount.directory, force=force, lazy=lazy)
        if not lazy:
            raise
        return
    if mount is None and process is None:
        raise NotMounted(target)
    waiting = None if force or lazy else _what_waits(name, runtime_dir)
    if mount is not None:
        detach(mount.directory, force=force, lazy=lazy)
    if process is not None and not lazy:
        if not process.wait(min(SILENCE_S, timeout_s)):
            _end(process, name, runtime_dir, timeout_s)
            if os.isatty(2):
                say(f"waiting up to {timeout_s:g} s for process {process.pid} to bring its data to safety")
        process.wait_until_safe(timeout_s)
        if waiting:
            say(waiting)


def _what_waits(name: str, runtime_dir: Path) -> str | None:
    """What a backup whose primary is away keeps for the next mount, for people; None if that is nothing."""
    with suppress(NotMounted, TimedOut, CommandFailed):
        status = ask(runtime_dir, name, "status")
        pending = status["communication"]["pending_requests"]
        if status["role"] == "backup" and not status["peer"]["connected"] and pending:
            size = format_bytes(status["communication"]["pending_bytes"])
            waiting = f"{counted(pending, 'request')} ({size})"
            return f"waiting here for the other host: {waiting}; the next mount sends them"
    return None


def _end(process: Process, name: str, runtime_dir: Path, timeout_s: float) -> None:
    """Let a mount process end that was detached, and does not because another mount namespace, such as that
    of a container, has a copy of the mount: it would be served for as long as that lives.
    """
    # Else it is about to end, or stuck: waiting for it is all that is left.
    with suppress(NotMounted, TimedOut, CommandFailed):
        if process_id(runtime_dir, name) == process.pid:  # and not that of a mount since
            ask(runtime_dir, name, "stop", timeout_s=max(SILENCE_S, min(timeout_s, ANSWER_TIMEOUT_S)))


def _find(target: str, runtime_dir: Path) -> Mount | None:
    """The mount of a name, or the one on a directory; what may be either is a name first, so that nobody's
    current directory matters to it. None for a name that has none, or whose process alone is left."""
    if "/" not in target:
        mount = _mount_of(target, runtime_dir)
        if mount is not None or _is_served(target, runtime_dir):
            return mount
    there = mount_at(real_path(target))
    if there is not None and there.fstype == FSTYPE:
        return there
    if "/" in target:
        raise NotAMount(target)
    return None


def _is_served(name: str, runtime_dir: Path) -> bool:
    """Whether there is a process of this name, even if it no longer answers."""
    try:
        process_id(runtime_dir, name)
    except (NotMounted, PermissionRefused):  # who may not ask of the name may still have a mount of his own
        return False
    except TimedOut:
        pass
    return True


def _mount_of(name: str, runtime_dir: Path) -> Mount | None:
    """The mount of a name; of several, the one whose process answers here."""
    # Not those of the other of two hosts on one machine.
    places = {mount: registered_runtime_dir(mount.directory) for mount in our_mounts(name)}
    found = [mount for mount, place in places.items() if place == runtime_dir]
    unregistered = [mount for mount, place in places.items() if place is None]
    if len(found) == 1 or not (found or unregistered):
        return found[0] if found else None
    # What nobody registered may be a bind mount of the whole, here or of the other host: the process knows
    # where it mounted. Of one that was killed there is nothing but the dead mount.
    try:
        directory = ask(runtime_dir, name, "status")["mountpoint"]
    except NotMounted:
        return next((mount for mount in [*found, *unregistered] if is_stale(mount)), None)
    except (TimedOut, CommandFailed):
        return None  # it is stuck or about to end: nobody knows which is its own
    return next((mount for mount in [*found, *unregistered] if mount.directory == directory), None)


def _socket_of(mount: Mount | None, target: str, runtime_dir: Path) -> tuple[Path, str]:
    """The runtime directory and the name of a mount, or of what may still drain after its mount went."""
    if mount is None:
        return runtime_dir, target
    return registered_runtime_dir(mount.directory) or runtime_dir, mount.name


def _process_of(mount: Mount | None, name: str, runtime_dir: Path) -> Process | None:
    """The process that serves the mount, or that still drains after it went; None if it is gone.

    TimedOut where it takes no commands at all.
    """
    try:
        process = Process(process_id(runtime_dir, name))
    except NotMounted:
        return None
    try:
        if mount is not None and ask(runtime_dir, name, "status")["mountpoint"] != mount.directory:
            return None  # a mount of the same name on the other of two hosts on one machine
    except NotMounted:
        return None
    except (TimedOut, CommandFailed):
        pass  # it is stuck or about to end; waiting for it is all that is left
    return process
