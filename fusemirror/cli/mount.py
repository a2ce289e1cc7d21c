"""`fusemirror mount`: check, fork, serve. The parent returns when the mount answers, with its exit status."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from logging.handlers import SysLogHandler, WatchedFileHandler
from pathlib import Path
from typing import Any

import click
import msgspec

from fusemirror import settings
from fusemirror.admin.changing import write_settings
from fusemirror.cli.arguments import Places, name_argument, pass_places, say
from fusemirror.cli.dead_mounts import FUSE_DEVICE, clear, start_watcher
from fusemirror.cli.mistakes import check_mountpoint, check_place
from fusemirror.cli.mount_options import parse_mount_options
from fusemirror.cli.mounts import FSTYPE, Mount, real_path, register
from fusemirror.cli.service_manager import notify
from fusemirror.errors import FusemirrorError, MountFailed, PermissionRefused, UsageError
from fusemirror.printable import printable
from fusemirror.settings import MountOptions, Settings
from fusemirror.volume.beneath import open_plain
from fusemirror.volume.private import keep_from_writers, make_private, make_volume_private

SYSLOG = Path("/dev/log")
READY = b"ready"

logger = logging.getLogger(__name__)


@click.command("mount")
@name_argument
@click.argument("mountpoint", required=False)
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground, log to stderr.")
@click.option("-d", "--debug", is_flag=True, help="Debug messages, and tracebacks of errors.")
@click.option("-o", "--options", multiple=True, metavar="OPTIONS", help="Mount options, comma-separated.")
@pass_places
def command(
    places: Places, name: str, mountpoint: str | None, foreground: bool, debug: bool, options: tuple[str, ...]
) -> int:
    """Mount NAME on the directory MOUNTPOINT, or without it on that of its settings."""
    chosen = places.load(name)
    mountpoint = mountpoint or chosen.mountpoint
    if not mountpoint:
        raise UsageError(f"no mountpoint: name one, or keep it with `fusemirror set {name} mountpoint=DIR`")
    places.debug = places.debug or debug
    parsed = parse_mount_options(",".join(options), as_root=os.geteuid() == 0)
    for line in parsed.ignored:
        say(line)
    return mount(places, chosen, mountpoint, parsed, foreground=foreground)


def mount(
    places: Places, chosen: Settings, mountpoint: str, options: MountOptions, *, foreground: bool = False
) -> int:
    """Mount, and serve until unmounted; the exit status.

    Without `foreground` this returns in a process of its own, and the caller's process exits here,
    once the mount answers or has failed. MountFailed, PermissionRefused and the errors of the volume.
    """
    target = Mount(real_path(mountpoint), FSTYPE, chosen.name)
    _check_fuse()
    make_runtime_dir(places.runtime_dir)
    clear(target, places.runtime_dir)
    check_mountpoint(Path(chosen.volume), target.directory)
    if chosen.communication_directory:
        check_place(Path(chosen.communication_directory), target.directory, what="communication_directory")
    if not os.path.isdir(target.directory):
        raise MountFailed(f"{target.directory} is not a directory; make it first")
    fuse = (*options.fuse, f"fsname={chosen.name}", "subtype=fusemirror")
    options = msgspec.structs.replace(options, fuse=fuse, debug=places.debug)
    serve = partial(_serve, places, chosen, target.directory, options)
    log = partial(_log_to, name=chosen.name, level="debug" if places.debug else chosen.log_level)
    return (_in_foreground if foreground else _in_background)(serve, target, places.runtime_dir, log)


def make_runtime_dir(directory: Path) -> None:
    """On return it is there, and nobody else can put a socket into it. RefusedForSafety, OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if keep_from_writers(directory):
        say(f"others could write to {directory}, and cannot now: see what they did there")


def _check_fuse() -> None:
    if not FUSE_DEVICE.exists():
        raise MountFailed(f"there is no {FUSE_DEVICE}; run `modprobe fuse`, or give it to the container")
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise PermissionRefused(f"{FUSE_DEVICE} may not be opened by this user; run the command as root")


def close_to_others(places: Places, chosen: Settings) -> Iterator[Path]:
    """Leave the config, the keys and the volume to their owner; what was open before. RefusedForSafety."""
    keys = places.keys_dir(chosen.name)
    if keep_from_writers(places.config_dir):
        yield places.config_dir
    files = [settings.config_path(places.config_dir, chosen.name), *([keys] if chosen.tls else [])]
    for path in (*files, *(keys.iterdir() if chosen.tls and keys.is_dir() else ())):
        if os.path.lexists(path) and make_private(path):
            yield path
    volume = Path(chosen.volume)
    if os.path.lexists(volume):
        yield from make_volume_private(volume)


Ready = Callable[[], None]
Log = Callable[[logging.Handler], None]


def _serve(places: Places, chosen: Settings, directory: str, options: MountOptions, ready: Ready) -> int:
    # What others could get at, by an earlier version or somebody's hand, is closed and told of.
    for path in close_to_others(places, chosen):
        logger.warning("others could get at %s, and cannot now: what is secret in it may be known", path)
    # Only now, and in the process that serves: neither threads nor LMDB outlive a fork.
    from fusemirror import daemon

    keys, reread = places.keys_dir(chosen.name), partial(places.load, chosen.name)
    keep = partial(write_settings, settings.config_path(places.config_dir, chosen.name))
    return daemon.run(chosen, keys, directory, options, places.runtime_dir, ready, reread, keep)


def _in_foreground(serve: Callable[[Ready], int], target: Mount, runtime_dir: Path, log: Log) -> int:
    log(logging.StreamHandler())
    if os.geteuid() == 0:
        start_watcher(target, runtime_dir, in_foreground=True)
    with ExitStack() as ending:

        def ready() -> None:
            ending.callback(register(target, runtime_dir).wait)
            notify("READY=1")

        return serve(ready)


def _in_background(serve: Callable[[Ready], int], target: Mount, runtime_dir: Path, log: Log) -> int:
    reading, writing = os.pipe()
    child = os.fork()
    if child != 0:
        os.close(writing)
        sys.exit(_outcome(child, reading, target, runtime_dir))
    _close_all_but(writing)
    os.setsid()
    os.chdir("/")
    log(_background_handler(target.source, runtime_dir))
    if os.geteuid() == 0:  # others may not mount
        start_watcher(target, runtime_dir, [writing])
    try:
        return serve(lambda: _let_go(writing))
    except FusemirrorError as error:
        logger.error("the mount ended: %s", error)
        raise
    except BaseException:
        logger.exception("the mount ended")
        raise


def _close_all_but(kept: int) -> None:
    """Let go of what the caller had open, as daemon(7) has it: it may wait for the end of a pipe, or lock by
    a file, which would be open for as long as the mount is there."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor != kept:
            with suppress(OSError):  # that of the list itself
                os.close(descriptor)


def _outcome(child: int, reading: int, target: Mount, runtime_dir: Path) -> int:
    """Wait until the child serves or has failed; it has then said why itself. The exit status.

    MountFailed where it could say nothing.
    """
    try:
        with open(reading, "rb") as pipe:
            serves = pipe.read() == READY
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        raise
    if serves:
        register(target, runtime_dir).wait()
        return 0
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code > 0:
        return code
    how = f"was ended by {signal.Signals(-code).name}" if code else "ended"
    raise MountFailed(f"the mount process {how} before it served")


def _let_go(writing: int) -> None:
    """The mount answers: tell the parent, and let go of its terminal."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    with suppress(BrokenPipeError), open(writing, "wb") as pipe:  # the parent may have been killed
        pipe.write(READY)


def _background_handler(name: str, runtime_dir: Path) -> logging.Handler:
    """The system's log, or a file where there is none."""
    if SYSLOG.exists():
        handler = _NeverWaiting(str(SYSLOG), facility=SysLogHandler.LOG_DAEMON)
        handler.ident = f"fusemirror[{os.getpid()}]: "
        return handler
    path = runtime_dir / f"{name}.log"
    os.close(open_plain(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT))  # and so it is for its owner alone
    make_private(path)
    return WatchedFileHandler(path)  # a file that was moved away by log rotation is made anew


class _NeverWaiting(SysLogHandler):
    """A message that the system's log does not take at once is lost.

    The system holds ten or so for a process that is stuck or stopped. Who waited for it then would keep
    every program on the mount waiting, and for ever where the log is written to that mount.
    """

    def _connect_unixsocket(self, address: str) -> None:
        super()._connect_unixsocket(address)  # type: ignore[misc]
        self.socket.setblocking(False)  # type: ignore[attr-defined]


class PrintableFormatter(logging.Formatter):
    """Each message in one line, with what users and the peer chose escaped; tracebacks line by line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(printable, super().formatException(ei).split("\n")))


class JournalFormatter(PrintableFormatter):
    """Each line with its priority before it, as sd-daemon(3) says; the journal takes that off again."""

    PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}

    def format(self, record: logging.LogRecord) -> str:
        priority = f"<{self.PRIORITIES[record.levelname]}>"
        return "\n".join(priority + line for line in super().format(record).split("\n"))


def _log_to(handler: logging.Handler, name: str, level: str) -> None:
    # The system's log, and the journal, add the time and the program by themselves.
    if isinstance(handler, SysLogHandler):
        formatter = PrintableFormatter(f"%(levelname)s {name}: %(message)s")
    elif isinstance(handler, logging.StreamHandler) and "JOURNAL_STREAM" in os.environ:
        formatter = JournalFormatter(f"%(levelname)s {name}: %(message)s")
    else:
        formatter = PrintableFormatter(f"%(asctime)s %(levelname)s fusemirror: {name}: %(message)s")
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=level.upper())
