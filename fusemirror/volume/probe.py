"""Probe: walks a whole LMDB file in a process of its own, because a damaged one may end whoever reads it.

LMDB maps its file into memory and trusts what it finds: a page that is not there or makes no sense
ends in an error, or in a signal to the process.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import lmdb

import fusemirror
from fusemirror.errors import VolumeError

_TIMEOUT_S = 3600.0  # a catalog of many gigabytes on a slow disk
_TABLES_MAX = 16
_DAMAGED = 3
_SIGNALS_OF_DAMAGE = (-signal.SIGBUS, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGFPE)


def is_readable(directory: Path) -> bool:
    """Whether every row of every table of an LMDB environment can be read. VolumeError where the probe itself
    failed, as for want of memory: that says nothing of the file."""
    # -P: the current directory of whoever calls us is no place to import from.
    command = (sys.executable, "-P", "-m", "fusemirror.volume.probe", str(directory))
    environment = {**os.environ, "PYTHONPATH": str(Path(fusemirror.__file__).parent.parent)}
    try:
        ended = subprocess.run(
            command, capture_output=True, timeout=_TIMEOUT_S, check=False, env=environment, text=True
        )
    except subprocess.TimeoutExpired:
        return False  # a tree that leads into itself
    if ended.returncode not in (0, _DAMAGED, *_SIGNALS_OF_DAMAGE):
        said = ended.stderr.strip().splitlines()[-1:] or [f"it ended with {ended.returncode}"]
        raise VolumeError(directory.parent, f"{directory.name} could not be looked at: {said[0]}; try again")
    return ended.returncode == 0


def walk(directory: str) -> None:
    """Read everything. lmdb.Error, or the end of the process."""
    with (
        lmdb.open(directory, readonly=True, lock=False, create=False, max_dbs=_TABLES_MAX) as environment,
        environment.begin() as transaction,
    ):
        names = [bytes(name) for name in transaction.cursor().iternext(values=False)]
        for name in names:
            table = environment.open_db(name, txn=transaction, create=False)
            for key, value in transaction.cursor(db=table):
                len(bytes(key) + bytes(value))


if __name__ == "__main__":
    try:
        walk(sys.argv[1])
    except lmdb.Error as error:
        print(error, file=sys.stderr)
        sys.exit(_DAMAGED)
