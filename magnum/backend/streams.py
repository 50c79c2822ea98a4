"""Joins a session of an engine to the api that asked for it. Called by ``backend.server``."""

import asyncio
import contextlib

import msgspec
import structlog
from oslo_config import cfg

from magnum import errors
from magnum.engines import base as engines
from magnum.rpc import backend as rpc
from magnum.rpc import streams

LOG = structlog.get_logger(__name__)


class Size(msgspec.Struct, rename="pascal"):
    """A terminal's size in characters."""

    width: int
    height: int


_size = msgspec.json.Decoder(Size).decode


class Streams:
    """The streams of a backend."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._ca: str | None = conf.backend.stream_ca
        self._tasks: set[asyncio.Task[None]] = set()

    async def join(self, session: engines.Session, uuid: str, asked: rpc.StreamAsked) -> None:
        """Dial, and carry on in the background until either side ends. Raises Unavailable, Forbidden."""
        try:
            connection = await streams.dial(asked.url, asked.ticket, uuid, ca=self._ca)
        except BaseException:
            await session.close()
            raise
        task = asyncio.create_task(self._carry(session, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Break off what is open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry(self, session: engines.Session, connection: streams.Connection) -> None:
        inward = asyncio.create_task(self._inward(session, connection))
        outward = asyncio.create_task(self._outward(session, connection))
        try:
            done, _ = await asyncio.wait([inward, outward], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if (error := task.exception()) is not None and not isinstance(error, errors.MagnumError):
                    LOG.error("stream failed", exc_info=error)
        finally:
            for task in (inward, outward):
                task.cancel()
            await asyncio.gather(inward, outward, return_exceptions=True)
            await session.close()
            await connection.close()

    async def _outward(self, session: engines.Session, connection: streams.Connection) -> None:
        ending: dict[str, object] = {}
        try:
            async for channel, data in session.read():
                await connection.send(channel, data)
            ending["exit_code"] = await session.exit_code()
        except errors.MagnumError as error:
            ending["error"] = error.detail
        with contextlib.suppress(errors.Unavailable):
            await connection.send(streams.ENDING, msgspec.json.encode(ending))

    async def _inward(self, session: engines.Session, connection: streams.Connection) -> None:
        """Give the client's bytes to the session; returns when the client has gone."""
        async for channel, data in connection.frames():
            if channel == streams.STDIN:
                await session.write(data)
            elif channel == streams.SIZE:
                with contextlib.suppress(msgspec.ValidationError, msgspec.DecodeError):
                    size = _size(data)
                    await session.resize(size.width, size.height)
