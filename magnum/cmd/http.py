"""Serves the api over HTTP within a loop that is there already. Called by ``cmd.api`` and ``cmd.standalone``."""

import asyncio
import collections.abc
import contextlib
import socket

import structlog
import uvicorn

from magnum import errors, logs
from magnum.api import app

LOG = structlog.get_logger(__name__)

DRAIN_SECONDS = 10


class _Uvicorn(uvicorn.Server):
    """Uvicorn, whose program minds the signals itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> collections.abc.Generator[None, None, None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens there. Raises Invalid if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise errors.Invalid(f"cannot listen on {host}:{port}: {error.strerror}", field="[api] port") from None
    made.listen(2048)
    made.set_inheritable(True)
    return made


class Http:
    """Serves ``api`` on ``sock``, which stays its maker's."""

    def __init__(self, api: app.Api, sock: socket.socket) -> None:
        # said of every handshake that is refused with an answer of HTTP, which ASGI allows
        logs.hush("uvicorn.error", "ASGI callable returned without completing handshake")
        self._api = api
        self._socket = sock
        self._server = _Uvicorn(
            uvicorn.Config(
                api.app, interface="asgi3", log_config=None, access_log=False, lifespan="off", ws="websockets-sansio", http="httptools",
                ws_per_message_deflate=False, server_header=False, timeout_graceful_shutdown=DRAIN_SECONDS,
                proxy_headers=False, ws_max_size=2**20, timeout_keep_alive=30,
            )
        )  # fmt: skip
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve; returns once requests are answered."""
        await self._api.start()
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise errors.Unavailable("the HTTP server did not start")
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        """Take no more requests, answer those in hand, end streams."""
        self._api.closing.set()
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        await self._api.close()
