"""Bytes between a client of the api and a process on a host, past the broker.

The api listens; a backend that was asked for a stream dials in and shows a
ticket, which is good once, for a few seconds, for one object. Nobody listens on
the hosts. After the ticket both sides send frames::

    channel (1 byte) · length (4 bytes, big-endian) · payload

Channels are those of Kubernetes' ``v4.channel.k8s.io``: 0 stdin, 1 stdout, 2
stderr, 3 the ending as JSON (``{"exit_code": n}`` or ``{"error": text}``), 4 the
terminal's size as JSON (``{"Width": w, "Height": h}``). A frame of channel 0
without bytes closes stdin. TCP's own flow control is the streams': whoever reads
slowly slows the process down, and nothing piles up between.

The dialler begins with an HTTP/1.1 upgrade request, so that a TLS terminator or
proxy between hosts and api need know nothing of it; the ticket is a header.

Who calls: the api (``Listener``) and the backend (``dial``).
"""

import asyncio
import collections.abc
import contextlib
import secrets
import socket
import ssl
import struct
import urllib.parse

import structlog

from magnum import errors

LOG = structlog.get_logger(__name__)

STDIN, STDOUT, STDERR, ENDING, SIZE = range(5)
MAX_FRAME = 1 << 20
"""Bytes of a frame's payload at most."""
TICKET_SECONDS = 15.0
"""How long a ticket is good."""
DIAL_SECONDS = 10.0
HEAD_SECONDS = 5.0
"""How long a dialler has to show its ticket."""
MAX_HEAD = 8192
PROTOCOL = "magnum-stream"

_HEADER = struct.Struct("!BI")
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


class Connection:
    """Frames both ways. Used by both sides."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        # a stream may be silent for hours, and its far side's machine may die meanwhile
        with contextlib.suppress(OSError):
            sock = writer.get_extra_info("socket")
            for level, option, value in _KEEPALIVE:
                sock.setsockopt(level, option, value)

    async def send(self, channel: int, data: bytes) -> None:
        """Send ``data``, in as many frames as it needs; returns when the far side keeps up. Raises Unavailable: it is gone."""
        try:
            for start in range(0, len(data) or 1, MAX_FRAME):
                part = data[start : start + MAX_FRAME]
                self._writer.write(_HEADER.pack(channel, len(part)) + part)
                await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise errors.Unavailable(f"the stream's other side is gone: {error}") from None

    async def frames(self) -> collections.abc.AsyncIterator[tuple[int, bytes]]:
        """Yield (channel, bytes) until the far side ends, properly or not."""
        while True:
            try:
                channel, length = _HEADER.unpack(await self._reader.readexactly(_HEADER.size))
                if length > MAX_FRAME:
                    LOG.warning("stream broken off, a frame is too large", bytes=length)
                    return
                data = await self._reader.readexactly(length)
            except (asyncio.IncompleteReadError, OSError):
                return
            yield channel, data

    async def close(self) -> None:
        """Let go. Idempotent."""
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()


class Expected:
    """A stream that a backend is to bring. ``url`` and ``ticket`` go to it by RPC."""

    def __init__(self, url: str, ticket: str, uuid: str) -> None:
        self.url = url
        self.ticket = ticket
        self.uuid = uuid
        self._future: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()

    async def connection(self, seconds: float = TICKET_SECONDS) -> Connection:
        """Return the connection once the backend has dialled. Raises Unavailable."""
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(self._future)
        except TimeoutError:
            raise errors.Unavailable("the host did not bring the stream; can it reach [api] stream_host?") from None

    def give(self, connection: Connection) -> bool:
        if self._future.done():
            return False
        self._future.set_result(connection)
        return True

    async def close(self) -> None:
        """Let go of the connection, if there is one."""
        if self._future.done() and not self._future.cancelled():
            await self._future.result().close()
        else:
            self._future.cancel()


class Listener:
    """The api's side. ``cert`` and ``key`` are PEM files for TLS. Port 0 takes any free one."""

    def __init__(self, host: str, port: int, *, cert: str | None = None, key: str | None = None) -> None:
        self._host = host
        self._port = port
        self._tls: ssl.SSLContext | None = None
        if cert is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(cert, key)
        self._expected: dict[str, Expected] = {}
        self._server: asyncio.Server | None = None
        self._url = ""

    async def start(self) -> None:
        """Listen. Raises Invalid if the address cannot be had."""
        try:
            self._server = await asyncio.start_server(
                self._dialled, self._host, self._port, ssl=self._tls, limit=MAX_FRAME * 2
            )
        except OSError as error:
            raise errors.Invalid(f"cannot listen there: {error}", field="[api] stream_port") from None
        port = self._server.sockets[0].getsockname()[1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._url = f"{'streams' if self._tls else 'stream'}://{host}:{port}"

    async def close(self) -> None:
        """Listen no more; connections that were given out are their takers'."""
        if self._server is not None:
            self._server.close()
        for expected in list(self._expected.values()):
            await expected.close()
        self._expected.clear()

    def expect(self, uuid: str) -> Expected:
        """Return what a backend is to bring for the object ``uuid``; it is forgotten if it is not brought in time."""
        ticket = secrets.token_urlsafe(32)
        expected = Expected(self._url, ticket, uuid)
        self._expected[ticket] = expected
        asyncio.get_running_loop().call_later(TICKET_SECONDS, self._expected.pop, ticket, None)
        return expected

    async def _dialled(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            await connection.close()
            return
        headers = _headers(head)
        # taken at the first showing: a ticket is good once
        expected = self._expected.pop(headers.get("x-magnum-ticket", ""), None)
        if expected is None or headers.get("x-magnum-object") != expected.uuid or not expected.give(connection):
            LOG.warning("a dialler without a good ticket was turned away")
            with contextlib.suppress(OSError):
                writer.write(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
            await connection.close()
            return
        with contextlib.suppress(OSError):
            writer.write(
                f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {PROTOCOL}\r\n\r\n".encode()
            )
            await writer.drain()


def _headers(head: bytes) -> dict[str, str]:
    found = {}
    if len(head) <= MAX_HEAD:
        for line in head.decode("latin-1").split("\r\n")[1:]:
            name, _, value = line.partition(":")
            found[name.strip().lower()] = value.strip()
    return found


async def dial(url: str, ticket: str, uuid: str, *, ca: str | None = None) -> Connection:
    """Bring a stream to the api that asked for it. ``ca``: PEM file that its certificate is checked by.

    Raises Unavailable (not reached), Forbidden (the ticket is no longer good).
    """
    parsed = urllib.parse.urlsplit(url)
    connection: Connection | None = None
    try:
        tls = ssl.create_default_context(cafile=ca) if parsed.scheme == "streams" else None
        async with asyncio.timeout(DIAL_SECONDS):
            reader, writer = await asyncio.open_connection(parsed.hostname, parsed.port, ssl=tls, limit=MAX_FRAME * 2)
            connection = Connection(reader, writer)
            writer.write(
                f"GET / HTTP/1.1\r\nHost: {parsed.netloc}\r\nConnection: Upgrade\r\nUpgrade: {PROTOCOL}\r\n"
                f"X-Magnum-Ticket: {ticket}\r\nX-Magnum-Object: {uuid}\r\n\r\n".encode()
            )
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
    except BaseException as error:
        if connection is not None:
            await connection.close()
        if isinstance(error, (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)):
            reason = str(error) or "no answer"
            raise errors.Unavailable(f"the api cannot be reached for the stream: {reason}") from None
        raise
    if not head.startswith(b"HTTP/1.1 101 "):
        await connection.close()
        raise errors.Forbidden("the api does not know this stream's ticket (any more)")
    return connection
