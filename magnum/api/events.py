"""What happens to a project's objects, as server-sent events that are resumed by revision.

Each event's ``id`` is the revision of a row of the log; a client that comes back
with ``Last-Event-ID`` (or ``after``) misses nothing. All followers of a project
share what is read of the log: see ``feeds``.
"""

import asyncio
import contextlib
from typing import Any

import msgspec

from magnum import errors
from magnum.api import bodies, feeds, routing, tunnels
from magnum.objects import base

ROUTES = routing.Routes("events")

KEEP_ALIVE = 15.0
"""Seconds of silence after which a comment is sent, so that the connection is seen to live."""
AGAIN = 2.0
"""Seconds until a log that could not be read is asked for again."""


class EventQuery(bodies.Show):
    """``after``: revision to begin behind; without it, and without Last-Event-ID, what happens from now on."""

    after: int | None = None


class HistoryQuery(bodies.Show):
    """``after``: revision to begin behind. ``limit``: rows at most."""

    after: int = 0
    limit: int = 1000


def _after(call: routing.Call, query: EventQuery) -> int | None:
    raw = call.served.headers.get(b"last-event-id")
    if raw is None:
        given = query.after
    elif raw.isdigit() and len(raw) < 19:
        given = int(raw)
    else:
        raise errors.Invalid("must be a revision", field="Last-Event-ID")
    if given is not None and not 0 <= given < 2**63:
        raise errors.Invalid("must not be negative", field="after")
    return given


@ROUTES.get("/v1/events", rule="event:list", answers={200: base.Event}, media_type="text/event-stream")
async def follow(call: routing.Call, query: EventQuery) -> Any:
    """Follow what happens to the project's objects (``text/event-stream``)."""
    api = call.api
    context = msgspec.structs.replace(call.for_all_projects(query.all_projects), deadline=None)
    after = _after(call, query)
    if after is None:
        after = await api.conductor.latest(context)
    if api.open_streams >= api.conf.api.max_streams:
        raise errors.TooMany(f"this api has {api.open_streams} streams open, which is as many as it may")

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        api.open_streams += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b": following\n\n", "more_body": True})
            with api.feeds.follow(context) as feed:
                await tunnels.until_gone(api, receive, _tell(feed, after, send))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            api.open_streams -= 1

    return answer


async def _tell(feed: feeds.Feed, after: int, send: Any) -> None:
    """Send what the log has behind ``after``, and what comes."""
    loop = asyncio.get_running_loop()
    spoke = loop.time()
    while True:
        news, before, rows, patience = feed.news, after, b"", KEEP_ALIVE
        try:
            after, rows = await feed.after(after)
        except errors.AWAY:
            patience = AGAIN
        if rows or loop.time() - spoke > KEEP_ALIVE:
            await send({"type": "http.response.body", "body": rows or b": still here\n\n", "more_body": True})
            spoke = loop.time()
        if after == before:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await news.wait()
