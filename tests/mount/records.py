"""A program that writes until it is told to stop, and tells what was acknowledged.

    python records.py DIRECTORY

It appends numbered records to a log, makes a file for each, and prints each number once both calls
have returned. It ends with an error's errno, or 0 once its standard input is closed. A process of
its own, because a fork in a process that has files open on a stalled mount stalls too.
"""

import os
import select
import sys

RECORD_BYTES = 16


def main(directory: str) -> int:
    os.mkdir(directory)
    number = 0
    log = os.open(f"{directory}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        while not select.select([0], [], [], 0)[0]:
            os.write(log, b"%0*d\n" % (RECORD_BYTES - 1, number))
            os.close(os.open(f"{directory}/{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            print(number, flush=True)
            number += 1
        os.close(log)
    except OSError as error:
        return error.errno or 255
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
