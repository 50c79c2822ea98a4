"""A project's log as its followers are told it: read once for all of them, each row encoded once.

A ``Feed`` is there for as long as somebody follows its project. It reads the log
when a broadcast says that there are new rows, and now and then without, and keeps
the last ones; who is further behind than these reads the rest for itself.

Who calls: ``events``.
"""

import asyncio
import bisect
import collections
import collections.abc
import contextlib

from magnum import context as contexts
from magnum import errors
from magnum.api import intents, routing
from magnum.objects import base
from magnum.rpc import conductor as conductor_rpc

LOOK_AGAIN = 5.0
"""Seconds after which the log is read without being told to."""
AT_ONCE = 500
"""Rows that are read with one call."""
KEPT = 500
"""Rows that are kept at least."""


def encoded(row: base.Event) -> bytes:
    """Return a row of the log as a server-sent event (WHATWG HTML, 9.2.6)."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (row.revision, row.step.encode(), routing.encode(row))


class Feed:
    """The last rows of one project's log. ``news`` is set, and another, once there are more."""

    def __init__(self, conductor: conductor_rpc.Conductor, context: contexts.Context) -> None:
        self._conductor = conductor
        self._context = context
        self._revisions: list[int] = []
        self._rows: list[bytes] = []
        self._floor: int | None = None
        self._last = 0
        self.news = asyncio.Event()

    async def run(self, woken: asyncio.Event) -> None:
        """Read on, for ever."""
        while True:
            woken.clear()
            count = 0
            with contextlib.suppress(errors.MagnumError):
                count = await self._read()
            if count < AT_ONCE:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_AGAIN):
                        await woken.wait()

    async def _read(self) -> int:
        begins = self._floor is None
        if begins:
            self._floor = self._last = await self._conductor.latest(self._context)
        rows = await self._conductor.events(self._context, self._last, AT_ONCE)
        for row in rows:
            self._revisions.append(row.revision)
            self._rows.append(encoded(row))
        if (old := len(self._rows) - KEPT) > KEPT:
            self._floor = self._revisions[old - 1]
            del self._revisions[:old], self._rows[:old]
        if rows:
            self._last = rows[-1].revision
        if rows or begins:
            news, self.news = self.news, asyncio.Event()
            news.set()
        return len(rows)

    async def after(self, revision: int) -> tuple[int, bytes]:
        """Return (the revision up to which this goes, the rows above ``revision`` that can be had at once, encoded).

        Raises Unavailable, DeadlineExceeded.
        """
        floor = self._floor
        if floor is not None and revision >= floor:
            return max(revision, self._last), b"".join(self._rows[bisect.bisect_right(self._revisions, revision) :])
        rows = await self._conductor.events(self._context, revision, AT_ONCE)
        reached = rows[-1].revision if rows else revision
        if len(rows) < AT_ONCE and floor is not None:
            # what is not among the rows by now is another project's
            reached = max(reached, floor)
        return reached, b"".join(map(encoded, rows))


class Feeds:
    """The feeds that somebody follows, by project."""

    def __init__(self, conductor: conductor_rpc.Conductor, watch: intents.Watch) -> None:
        self._conductor = conductor
        self._watch = watch
        self._open: dict[str, tuple[Feed, asyncio.Task[None]]] = {}
        self._followers: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def follow(self, context: contexts.Context) -> collections.abc.Iterator[Feed]:
        """Give the feed of a context's project, or of all projects."""
        key = intents.EVERY if context.all_projects else intents.of_project(context.project_id)
        if key not in self._open:
            feed = Feed(self._conductor, context)
            self._open[key] = feed, asyncio.create_task(self._run(key, feed))
        self._followers[key] += 1
        try:
            yield self._open[key][0]
        finally:
            self._followers[key] -= 1
            if not self._followers[key]:
                del self._followers[key]
                self._open.pop(key)[1].cancel()

    async def _run(self, key: str, feed: Feed) -> None:
        with self._watch.on(key) as woken:
            await feed.run(woken)
