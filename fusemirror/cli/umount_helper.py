"""umount.fusemirror: what umount(8) calls, so that a plain `umount DIR` returns when the data is safe."""

import getopt
from collections.abc import Sequence
from typing import NoReturn

from fusemirror.cli.arguments import report, say
from fusemirror.cli.mount_helper import USAGE_ERROR, exit_code, places_of_environment, run_helper
from fusemirror.cli.umount import unmount
from fusemirror.errors import FusemirrorError, UsageError

USAGE = "umount.fusemirror DIR [-fnlrv] [-N NAMESPACE] [-t TYPE]"


def umount_fusemirror(arguments: Sequence[str]) -> int:
    """Unmount as umount(8) asks; an exit code of mount(8)."""
    try:
        flags, operands = getopt.gnu_getopt(list(arguments), "fnlrvN:t:")
        given = dict(flags)
        if len(operands) != 1:
            raise UsageError(f"usage: {USAGE}")
        unmount(operands[0], places_of_environment().runtime_dir, force="-f" in given, lazy="-l" in given)
    except getopt.GetoptError as error:
        say(f"{error}; usage: {USAGE}")
        return USAGE_ERROR
    except (FusemirrorError, OSError) as error:
        report(error, None, debug=False)
        return exit_code(error)
    return 0


def main() -> NoReturn:
    """The helper on this process's arguments."""
    run_helper(umount_fusemirror)


if __name__ == "__main__":
    main()
