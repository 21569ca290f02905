"""What the two Python programs have in common: how they tell, how they wait, and their end."""

import os
import random
import sys
import threading

INSERT = "insert into driver_writes (way, n) values"

_telling = threading.Lock()


def tell(way, what, of):
    """One line for each write and each error."""
    line = "\t".join([way, what, " ".join(str(of).split())])
    with _telling:
        print(line, flush=True)


class Backoff:
    """Grows from 20 ms to half a second, and is not the same for everybody."""

    def __init__(self):
        self.failures = 0

    def worked(self):
        self.failures = 0

    def failed(self):
        self.failures += 1
        return min(0.5, 0.02 * 2 ** min(self.failures - 1, 5)) * random.uniform(0.5, 1)


def ways():
    """The arguments: name and connection string of each way."""
    return zip(sys.argv[1::2], sys.argv[2::2])


def end_with_stdin():
    """Nobody waits for a thread that waits for a host that is gone."""
    sys.stdin.read()
    os._exit(0)
