"""An application with asyncpg: for each way one row after the other.

usage: with_asyncpg.py WAY DSN [WAY DSN ...]    the password is in PGPASSWORD
"""

import asyncio
import threading
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from common import INSERT, Backoff, end_with_stdin, tell, ways

PACE = 0.05
# A router holds a connection for 20 seconds; of members each has three.
ROUTED, MEMBER = 23, 3
COMMAND = 10


def turned(dsn, by):
    """The same string with another of its hosts at the head of the list."""
    parts = urlsplit(dsn)
    user, _, hosts = parts.netloc.rpartition("@")
    hosts = hosts.split(",")
    by %= len(hosts)
    return urlunsplit(parts._replace(netloc=f"{user}@{','.join(hosts[by:] + hosts[:by])}"))


def timeout(way, dsn):
    if "routed" in way:
        return ROUTED
    return MEMBER if "turned" in way else MEMBER * (dsn.count(",") + 1)


async def run(way, dsn):
    connection, backoff, n = None, Backoff(), 0
    while True:
        # A number is used once: whether a write that failed was committed is not known.
        n += 1
        try:
            if connection is None:
                to = turned(dsn, backoff.failures) if "turned" in way else dsn
                connection = await asyncpg.connect(to, timeout=timeout(way, dsn), command_timeout=COMMAND)
            await connection.execute(f"{INSERT} ($1, $2)", way, n)
            tell(way, "wrote", n)
            backoff.worked()
            await asyncio.sleep(PACE)
        except Exception as error:
            tell(way, "error", f"{type(error).__name__}: {error}")
            if connection is not None:
                # close() would wait for an answer.
                connection.terminate()
            connection = None
            await asyncio.sleep(backoff.failed())


async def main():
    await asyncio.gather(*(run(way, dsn) for way, dsn in ways()))


threading.Thread(target=end_with_stdin, daemon=True).start()
asyncio.run(main())
