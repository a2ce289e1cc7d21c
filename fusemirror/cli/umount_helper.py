"""umount.fusemirror: what umount(8) calls, so that a plain `umount DIR` returns when the data is safe."""

from collections.abc import Sequence
from typing import NoReturn

from fusemirror.cli.mount_helper import parse_helper, places_of_environment, run_helper
from fusemirror.cli.umount import unmount

USAGE = "umount.fusemirror DIR [-fnlrv] [-N NAMESPACE] [-t TYPE]"


def umount_fusemirror(arguments: Sequence[str]) -> int:
    """Unmount as umount(8) asks; 0, or an error."""
    flags, (directory,) = parse_helper(arguments, "fnlrvN:t:", 1, USAGE)
    unmount(directory, places_of_environment().runtime_dir, force="-f" in flags, lazy="-l" in flags)
    return 0


def main() -> NoReturn:
    """The helper on this process's arguments."""
    run_helper(umount_fusemirror)


if __name__ == "__main__":
    main()
