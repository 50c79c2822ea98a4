"""Exec and attach as a client of the WebSockets has them. Used by the live tests."""

import asyncio
import json
import urllib.parse

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


async def exec_is_interactive(cloud, at):
    """Raise AssertionError unless a command in what is ``at`` a path is talked to, and tells its exit code."""
    command = urllib.parse.quote("sh -c 'read name; echo hello $name; echo bad >&2; exit 7'")
    async with socket_to(cloud, f"{at}/exec?command={command}") as socket:
        await socket.send(b"\x00you\n")
        assert await ending_of(socket) == (b"hello you\n", b"bad\n", {"exit_code": 7})


async def terminal_has_its_size(cloud, at):
    """Raise AssertionError unless a command's terminal has the size that it is told."""
    command = urllib.parse.quote("sh -c 'read go; stty size'")
    async with socket_to(cloud, f"{at}/exec?tty=1&command={command}") as socket:
        await socket.send(b'\x04{"Width": 97, "Height": 31}')
        await asyncio.sleep(0.5)
        await socket.send(b"\x00go\n")
        out, _, ending = await ending_of(socket)
    assert b"31 97" in out and ending == {"exit_code": 0}
