"""mount.fusemirror: what mount(8) calls for `mount -t fusemirror NAME DIR` and for /etc/fstab."""

import getopt
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from fusemirror.cli.arguments import Places, attempt, drop_unwritten, prepare_process, say
from fusemirror.cli.mount import mount
from fusemirror.cli.mount_options import parse_mount_options
from fusemirror.cli.mounts import PUBLIC_UMASK, real_path, registered_runtime_dir, table_options
from fusemirror.errors import BadConfig, ConfigMissing, FusemirrorError, PermissionRefused, UsageError
from fusemirror.settings import CONFIG_DIR, RUNTIME_DIR

USAGE_ERROR, SYSTEM_ERROR, BUG, INTERRUPTED, FAILED = 1, 2, 4, 8, 32
USAGE = "mount.fusemirror NAME DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]"


def places_of_environment(*, debug: bool = False) -> Places:
    """mount(8) has no options for our directories; the environment has, with what is empty as if it was not
    there, and what is relative from where we are now, as `fusemirror` takes them."""
    return Places(
        Path(os.environ.get("FUSEMIRROR_CONFIG_DIR") or CONFIG_DIR).absolute(),
        Path(os.environ.get("FUSEMIRROR_RUNTIME_DIR") or RUNTIME_DIR).absolute(),
        debug=debug,
    )


def parse_helper(
    arguments: Sequence[str], flags: str, operands: int, usage: str
) -> tuple[dict[str, str], list[str]]:
    """Flags with their values, and operands, of a helper; of `-o` all values, with commas. UsageError."""
    try:
        found, words = getopt.gnu_getopt(list(arguments), flags)
    except getopt.GetoptError as error:
        raise UsageError(f"{error}; usage: {usage}") from None
    if len(words) != operands:
        raise UsageError(f"usage: {usage}")
    options = ",".join(value for flag, value in found if flag == "-o")
    return {**dict(found), "-o": options}, words


def run_helper(action: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a helper on this process's arguments, and exit with a code of mount(8)."""
    prepare_process()
    try:
        code = attempt(lambda: action(sys.argv[1:]), exit_code)
    except KeyboardInterrupt:
        say("interrupted")
        code = INTERRUPTED
    drop_unwritten()
    sys.exit(code)


def exit_code(error: Exception) -> int:
    """Which of mount(8)'s exit codes an error is."""
    match error:
        case UsageError() | BadConfig() | ConfigMissing() | PermissionRefused() | PermissionError():
            return USAGE_ERROR
        case FusemirrorError():
            return FAILED
        case OSError():
            return SYSTEM_ERROR
        case _:
            return BUG


def mount_fusemirror(arguments: Sequence[str]) -> int:
    """Mount as mount(8) asks; 0, or an error."""
    flags, (name, directory) = parse_helper(arguments, "sfnvN:o:t:", 2, USAGE)
    words = flags.get("-o", "").split(",")
    remounting = "remount" in words
    if remounting:
        words.remove("remount")
    options = parse_mount_options(",".join(words), as_root=os.geteuid() == 0, sloppy="-s" in flags)
    places = places_of_environment()
    for line in options.ignored:
        say(line)
    if remounting and "-f" not in flags:
        runtime_dir = registered_runtime_dir(real_path(directory)) or places.runtime_dir
        kept = table_options(runtime_dir).split(",")
        return _remount(directory, ",".join([word for word in words if word and word not in kept] + kept))
    chosen = places.load(name)
    if "-f" in flags:
        return 0  # a fake mount: everything but the mount itself
    return mount(places, chosen, directory, options)


def _remount(directory: str, options: str) -> int:
    """Change the flags (ro, nosuid, ...) of what is mounted: the kernel does that by itself.

    libmount's table then has these options and no others.
    """
    return subprocess.run(
        ["mount", "-i", "-o", f"remount,{options}", directory], check=False, umask=PUBLIC_UMASK
    ).returncode


def main() -> NoReturn:
    """The helper on this process's arguments."""
    run_helper(mount_fusemirror)


if __name__ == "__main__":
    main()
