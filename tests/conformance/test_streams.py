"""Streams from a backend to the api: tickets, frames, flow control, TLS; over real sockets."""

import asyncio
import contextlib
import subprocess
import urllib.parse

import pytest

from magnum import errors
from magnum.rpc import streams

LIMIT = 60.0


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    made = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-out", made[0], "-keyout", made[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return [str(path) for path in made]


@pytest.fixture
async def listener():
    made = streams.Listener("127.0.0.1", 0)
    await made.start()
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def joined(listener, ca=None):
    """Give both ends of a stream: the backend's and the api's."""
    expected = listener.expect("u1")
    backend = await streams.dial(expected.url, expected.ticket, "u1", ca=ca)
    api = await expected.connection()
    try:
        yield backend, api
    finally:
        await backend.close()
        await api.close()


async def _dial_raw(listener):
    url = urllib.parse.urlsplit(listener.expect("u1").url)
    return await asyncio.open_connection(url.hostname, url.port)


@pytest.mark.parametrize("tls", [False, True])
async def test_frames_go_both_ways(request, tls):
    cert, key = request.getfixturevalue("certificate") if tls else (None, None)
    listener = streams.Listener("127.0.0.1", 0, cert=cert, key=key)
    await listener.start()
    try:
        async with asyncio.timeout(LIMIT), joined(listener, ca=cert) as (backend, api):
            await api.send(streams.STDIN, b"in")
            await api.send(streams.STDIN, b"")
            incoming = backend.frames()
            assert [await anext(incoming) for _ in range(2)] == [(streams.STDIN, b"in"), (streams.STDIN, b"")]
            large = bytes(range(256)) * 12 * 1024
            sending = asyncio.create_task(backend.send(streams.STDOUT, large))
            got = b""
            outgoing = api.frames()
            while len(got) < len(large):
                channel, data = await anext(outgoing)
                assert channel == streams.STDOUT and len(data) <= streams.MAX_FRAME
                got += data
            assert got == large
            await sending
            await backend.send(streams.ENDING, b'{"exit_code":0}')
            await backend.close()
            assert [frame async for frame in outgoing] == [(streams.ENDING, b'{"exit_code":0}')]
    finally:
        await listener.close()


async def test_a_certificate_that_is_not_known_is_refused(certificate):
    listener = streams.Listener("127.0.0.1", 0, cert=certificate[0], key=certificate[1])
    await listener.start()
    try:
        expected = listener.expect("u1")
        with pytest.raises(errors.Unavailable, match="certificate"):
            await streams.dial(expected.url, expected.ticket, "u1")
    finally:
        await listener.close()


async def test_a_ticket_is_good_once_for_one_object(listener):
    expected = listener.expect("u1")
    backend = await streams.dial(expected.url, expected.ticket, "u1")
    with pytest.raises(errors.Forbidden):
        await streams.dial(expected.url, expected.ticket, "u1")
    await backend.close()
    await expected.close()
    other = listener.expect("u1")
    with pytest.raises(errors.Forbidden):
        await streams.dial(other.url, other.ticket, "u2")
    with pytest.raises(errors.Forbidden):
        await streams.dial(other.url, other.ticket, "u1")
    given_up = listener.expect("u1")
    await given_up.close()
    with pytest.raises(errors.Forbidden):
        await streams.dial(given_up.url, given_up.ticket, "u1")


async def test_a_ticket_expires(listener, monkeypatch):
    monkeypatch.setattr(streams, "TICKET_SECONDS", 0.0)
    expected = listener.expect("u1")
    with pytest.raises(errors.Unavailable):
        await expected.connection(0.01)
    with pytest.raises(errors.Forbidden):
        await streams.dial(expected.url, expected.ticket, "u1")


async def test_who_dials_and_says_nothing_sensible_is_cut_off(listener, monkeypatch):
    monkeypatch.setattr(streams, "HEAD_SECONDS", 0.1)
    for words in (b"", b"GET / HTTP/1.1\r\n", b"\x00" * 100, b"\r\n\r\n"):
        reader, writer = await _dial_raw(listener)
        writer.write(words)
        async with asyncio.timeout(LIMIT):
            assert await reader.read() in (
                b"",
                b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            )
        writer.close()


async def test_an_api_that_is_away_or_silent_is_unavailable(listener, monkeypatch):
    expected = listener.expect("u1")
    await listener.close()
    with pytest.raises(errors.Unavailable):
        await streams.dial(expected.url, expected.ticket, "u1")
    monkeypatch.setattr(streams, "DIAL_SECONDS", 0.1)
    ended = asyncio.Event()

    async def silent(reader, writer):
        await reader.read()
        writer.close()
        ended.set()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(errors.Unavailable):
            await streams.dial(f"stream://127.0.0.1:{port}", "t", "u1")
        async with asyncio.timeout(LIMIT):
            await ended.wait()


async def test_a_frame_too_large_ends_the_stream(listener):
    async with asyncio.timeout(LIMIT), joined(listener) as (backend, api):
        backend._writer.write(streams._HEADER.pack(streams.STDOUT, streams.MAX_FRAME + 1))
        assert [frame async for frame in api.frames()] == []


async def test_a_slow_reader_slows_the_sender(listener):
    total, bound = 100, 32
    sent = 0

    async def send(connection):
        nonlocal sent
        for _ in range(total):
            await connection.send(streams.STDOUT, bytes(streams.MAX_FRAME))
            sent += 1

    async with asyncio.timeout(LIMIT), joined(listener) as (backend, api):
        sending = asyncio.create_task(send(backend))
        for _ in range(2000):  # turns in which it could send everything
            await asyncio.sleep(0)
        read = 0
        async for _ in api.frames():
            read += 1
            assert sent - read <= bound, "more is under way than sockets hold"
            if read == total:
                break
        await sending


async def test_a_sender_learns_that_the_far_side_is_gone(listener):
    async with asyncio.timeout(LIMIT), joined(listener) as (backend, api):
        await api.close()
        assert [frame async for frame in backend.frames()] == []
        with pytest.raises(errors.Unavailable):
            while True:
                await backend.send(streams.STDOUT, bytes(1024))
