"""A program that writes until it is told to stop, and tells what was acknowledged.

    python records.py DIRECTORY files|name

It appends numbered records to a log, makes a file for each (or gives its one file the next number as its
name), and prints each number once both calls have returned: either fails if it comes twice. It ends with an
error's errno, or 0 once its standard input is closed. A process of its own, because a fork in a process that
has files open on a stalled mount stalls too.
"""

import os
import select
import sys

RECORD_BYTES = 16


def make(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))


def main(directory: str, what: str) -> int:
    os.mkdir(directory)
    number = 0
    log = os.open(f"{directory}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if what == "name":
        make(f"{directory}/0")
    try:
        while not select.select([0], [], [], 0)[0]:
            os.write(log, b"%0*d\n" % (RECORD_BYTES - 1, number))
            if what == "name":
                os.rename(f"{directory}/{number}", f"{directory}/{number + 1}")
            else:
                make(f"{directory}/{number}")
            print(number, flush=True)
            number += 1
        os.close(log)
    except OSError as error:
        return error.errno or 255
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
