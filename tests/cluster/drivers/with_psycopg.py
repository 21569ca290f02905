"""An application with psycopg 3, and one with its pool: for each way one row after the other.

usage: with_psycopg.py WAY DSN [WAY DSN ...]    the password is in PGPASSWORD
"""

import threading
import time

import psycopg
from psycopg_pool import ConnectionPool

from common import INSERT, Backoff, end_with_stdin, tell, ways

PACE = 0.05
PLACES = 8


class Alone:
    """One connection, dropped after any error."""

    def __init__(self, dsn):
        self.dsn = dsn
        self.connection = None

    def write(self, row):
        try:
            if self.connection is None:
                self.connection = psycopg.connect(self.dsn, autocommit=True)
            self.connection.execute(f"{INSERT} (%s, %s)", row)
        except Exception:
            if self.connection is not None:
                self.connection.close()
            self.connection = None
            raise


class Pool:
    """All its connections are used in turn, and it replaces those that come back broken."""

    def __init__(self, dsn, check=None):
        self.pool = ConnectionPool(dsn, min_size=PLACES, kwargs={"autocommit": True}, check=check, open=True)

    def write(self, row):
        with self.pool.connection() as connection:
            connection.execute(f"{INSERT} (%s, %s)", row)


class DrainedPool(Pool):
    """Where one connection is broken all are: they are replaced at once."""

    def write(self, row):
        try:
            super().write(row)
        except psycopg.OperationalError:
            self.pool.drain()
            raise


def session(way, dsn):
    if "pool that checks" in way:
        return Pool(dsn, ConnectionPool.check_connection)
    if "pool that drains" in way:
        return DrainedPool(dsn)
    if "pool as it is" in way:
        return Pool(dsn)
    return Alone(dsn)


def run(way, dsn):
    own, backoff, n = session(way, dsn), Backoff(), 0
    while True:
        # A number is used once: whether a write that failed was committed is not known.
        n += 1
        try:
            own.write((way, n))
            tell(way, "wrote", n)
            backoff.worked()
            time.sleep(PACE)
        except Exception as error:
            tell(way, "error", f"{type(error).__name__}: {error}")
            time.sleep(backoff.failed())


for way, dsn in ways():
    threading.Thread(target=run, args=(way, dsn), daemon=True).start()
end_with_stdin()
