"""Streams of hosts as answers: logs at once or followed, a command's whole output. Called by containers and pods."""

import asyncio
import collections.abc
import contextlib
from typing import TYPE_CHECKING, Any

import msgspec

from magnum import context as contexts
from magnum import errors
from magnum.api import bodies, routing, verbs
from magnum.rpc import backend as rpc
from magnum.rpc import streams

if TYPE_CHECKING:
    from magnum.api import app

MAX_OUTPUT = 8 * 2**20
"""Bytes of output that are answered at once; a longer log shows its end, a longer command's output its beginning."""


class LogQuery(verbs.Which):
    """``tail``: lines from the end. ``since``: Unix seconds. ``follow``: go on as a stream of text.

    ``previous``: the log of the run before.
    """

    tail: int | None = None
    since: float | None = None
    timestamps: bool = False
    follow: bool = False
    previous: bool = False
    stdout: bool = True
    stderr: bool = True


class ExecuteQuery(verbs.Which, kw_only=True):
    """``command`` is split as a shell would; no shell runs it."""

    command: str
    user: str | None = None
    workdir: str | None = None


class Output(msgspec.Struct):
    """``exit_code`` of an executed command. ``truncated``: the output was longer than is shown at once."""

    output: str
    exit_code: int | None = None
    truncated: bool = False


class Ending(msgspec.Struct):
    """How a session ended, as channel 3 has it."""

    exit_code: int | None = None
    error: str | None = None


_ending = msgspec.json.Decoder(Ending).decode


def host_of(item: Any) -> str:
    """Return the host that has ``item``. Raises Conflict."""
    if not item.host:
        raise errors.Conflict("it is on no host (yet)", status=item.status)
    host: str = item.host
    return host


@contextlib.asynccontextmanager
async def opened(
    api: "app.Api", context: contexts.Context, item: Any, **asked: Any
) -> collections.abc.AsyncIterator[streams.Connection]:
    """Have the stream that ``asked`` (fields of ``rpc.backend.StreamAsked``) describes.

    Raises TooMany, Conflict, NotFound, NotSupported, Unavailable, EngineError.
    """
    if api.open_streams >= api.conf.api.max_streams:
        raise errors.TooMany(f"this api has {api.open_streams} streams open, which is as many as it may")
    host = host_of(item)
    api.open_streams += 1
    expected = api.streams.expect(item.uuid)
    try:
        request = rpc.StreamAsked(url=expected.url, ticket=expected.ticket, **asked)
        await api.backend(host).stream(context, item, request)
        yield await expected.connection()
    finally:
        api.open_streams -= 1
        await expected.close()


async def logs(call: routing.Call, item: Any, query: Any, member: str | None = None) -> Any:
    """Answer a log: JSON with its text, or a stream of text that goes on."""
    if query.tail is not None and query.tail < 0:
        raise errors.Invalid("must not be negative", field="tail")
    if not (query.stdout or query.stderr):
        raise errors.Invalid("one of stdout and stderr must be asked for", field="stdout")
    asked = {
        "verb": "logs", "follow": query.follow, "tail": query.tail, "since": query.since,
        "timestamps": query.timestamps, "member": member, "previous": query.previous,
    }  # fmt: skip
    channels = {c for c, wanted in ((streams.STDOUT, query.stdout), (streams.STDERR, query.stderr)) if wanted}
    if query.follow:
        return await _followed(call, item, asked, channels)
    output, _, truncated = await _collect(call, item, asked, channels, keep_end=True)
    return routing.Answer(200, {"output": output, "truncated": truncated})


async def execute(call: routing.Call, item: Any, query: Any, member: str | None = None) -> routing.Answer:
    """Run a command and answer its output and exit code."""
    command = bodies.arguments(query.command, "command")
    if not command:
        raise errors.Invalid("names no command", field="command")
    asked = {"verb": "exec", "command": command, "user": query.user, "workdir": query.workdir, "member": member}
    output, ending, truncated = await _collect(call, item, asked, {streams.STDOUT, streams.STDERR}, keep_end=False)
    return routing.Answer(200, {"output": output, "exit_code": ending.exit_code, "truncated": truncated})


async def _collect(
    call: routing.Call, item: Any, asked: dict[str, Any], channels: set[int], *, keep_end: bool
) -> tuple[str, Ending, bool]:
    parts = bytearray()
    truncated = False
    ending = Ending(error="the host broke the stream off")
    try:
        async with asyncio.timeout(call.context.remaining()), opened(call.api, call.context, item, **asked) as stream:
            async for channel, data in stream.frames():
                if channel == streams.ENDING:
                    ending = _ending(data)
                    break
                if channel not in channels:
                    continue
                if keep_end or len(parts) < MAX_OUTPUT:
                    parts += data
                if len(parts) > MAX_OUTPUT * (2 if keep_end else 1):
                    truncated = True
                    del parts[: -MAX_OUTPUT if keep_end else 0]
    except TimeoutError:
        raise errors.DeadlineExceeded("it did not end in time; an interactive exec has no limit") from None
    if ending.error is not None:
        raise errors.EngineError(ending.error)
    if len(parts) > MAX_OUTPUT:
        truncated = True
        parts = parts[-MAX_OUTPUT:] if keep_end else parts[:MAX_OUTPUT]
    return parts.decode(errors="replace"), ending, truncated


async def _followed(call: routing.Call, item: Any, asked: dict[str, Any], channels: set[int]) -> Any:
    # opened here, so that a refusal is still an answer of its own
    stack = contextlib.AsyncExitStack()
    stream = await stack.enter_async_context(opened(call.api, call.context, item, **asked))

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async with stack:
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"", "more_body": True})

            async def copy() -> None:
                async for channel, data in stream.frames():
                    if channel in channels:
                        await send({"type": "http.response.body", "body": data, "more_body": True})
                    elif channel == streams.ENDING:
                        return

            await until_gone(call.api, receive, copy())
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return answer


async def until_gone(api: "app.Api", receive: Any, work: collections.abc.Coroutine[Any, Any, None]) -> None:
    """Run ``work`` until it ends, the client goes, or the api ends."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(each) for each in (work, gone(), _set(api.closing))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _set(event: asyncio.Event) -> None:
    await event.wait()
