"""Exec and attach as a client of the WebSockets has them. Used by the live tests."""

import asyncio
import json

import websockets

from magnum.api import sockets

LIMIT = 60.0
"""Seconds."""


def socket_to(cloud, path, **options):
    url = f"ws{cloud.url.removeprefix('http')}{path}"
    return websockets.connect(url, subprotocols=[sockets.PROTOCOL], compression=None, **options)


async def ending_of(socket):
    """Return (stdout, stderr, ending) of a session that ends by itself."""
    streams = {1: b"", 2: b""}
    async with asyncio.timeout(LIMIT):
        async for message in socket:
            if message[0] == 3:
                return streams[1], streams[2], json.loads(message[1:])
            streams[message[0]] += message[1:]
    raise AssertionError(f"no ending: {streams}")
