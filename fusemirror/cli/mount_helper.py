"""mount.fusemirror: what mount(8) calls for `mount -t fusemirror NAME DIR` and for /etc/fstab."""

import getopt
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from fusemirror.cli.arguments import Places, report, say
from fusemirror.cli.mount import mount
from fusemirror.errors import BadConfig, ConfigMissing, FusemirrorError, PermissionRefused, UsageError
from fusemirror.settings import CONFIG_DIR, RUNTIME_DIR, parse_mount_options

USAGE_ERROR, SYSTEM_ERROR, BUG, INTERRUPTED, FAILED = 1, 2, 4, 8, 32
USAGE = "mount.fusemirror NAME DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]"


def places_of_environment(*, debug: bool = False) -> Places:
    """mount(8) has no options for our directories; the environment has."""
    return Places(
        Path(os.environ.get("FUSEMIRROR_CONFIG_DIR", CONFIG_DIR)),
        Path(os.environ.get("FUSEMIRROR_RUNTIME_DIR", RUNTIME_DIR)),
        debug=debug,
    )


def run_helper(action: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a helper on this process's arguments, and exit with a code of mount(8)."""
    try:
        code = action(sys.argv[1:])
    except KeyboardInterrupt:
        say("interrupted")
        code = INTERRUPTED
    sys.exit(code)


def exit_code(error: Exception) -> int:
    """Which of mount(8)'s exit codes an error is."""
    match error:
        case UsageError() | BadConfig() | ConfigMissing() | PermissionRefused() | PermissionError():
            return USAGE_ERROR
        case OSError():
            return SYSTEM_ERROR
        case _:
            return FAILED


def mount_fusemirror(arguments: Sequence[str]) -> int:
    """Mount as mount(8) asks; its exit code."""
    name = None
    try:
        flags, operands = getopt.gnu_getopt(list(arguments), "sfnvN:o:t:")
        given = dict(flags)
        if len(operands) != 2:
            raise UsageError(f"usage: {USAGE}")
        name, directory = operands
        options = ",".join(value for flag, value in flags if flag == "-o")
        parsed = parse_mount_options(options, as_root=os.geteuid() == 0, sloppy="-s" in given)
        places = places_of_environment()
        chosen = places.load(name)
        if "-f" in given:
            return 0  # a fake mount: everything but the mount itself
        return mount(places, chosen, directory, parsed)
    except getopt.GetoptError as error:
        say(f"{error}; usage: {USAGE}")
        return USAGE_ERROR
    except (FusemirrorError, OSError) as error:
        report(error, name, debug=False)
        return exit_code(error)


def main() -> NoReturn:
    """The helper on this process's arguments."""
    run_helper(mount_fusemirror)


if __name__ == "__main__":
    main()
