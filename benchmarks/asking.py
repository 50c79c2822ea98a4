"""Clients that ask an api as fast as they are answered, or at a rate, and what answering cost its processes."""

import asyncio
import collections.abc
import contextlib
import itertools
import time

import aiohttp
import psutil


@contextlib.asynccontextmanager
async def session(
    url: str, headers: dict[str, str] | None = None
) -> collections.abc.AsyncIterator[aiohttp.ClientSession]:
    """Give a session of kept connections, as many as are wanted at once."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(120)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout, headers=headers) as made:
        yield made


async def get(client: aiohttp.ClientSession, path: str) -> bytes:
    """Return the body of what was answered with 200."""
    async with client.get(path) as answer:
        body = await answer.read()
        assert answer.status == 200, (path, answer.status, body[:500])
        return body


async def send(client: aiohttp.ClientSession, method: str, path: str, body: object = None, status: int = 201) -> bytes:
    """Return the body of what was answered with ``status``."""
    async with client.request(method, path, json=body) as answer:
        found = await answer.read()
        assert answer.status == status, (path, answer.status, found[:500])
        return found


def processor_seconds(pids: list[int]) -> float:
    """Return the processor time, user and system, that processes have used."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(t.user + t.system for t in times)


class Load:
    """What came of asking: ``took`` in seconds, ``rate`` a second, ``processor``: seconds of the processes that serve."""

    def __init__(self, took: list[float], seconds: float, processor: float) -> None:
        self.took = took
        self.rate = len(took) / seconds
        self.processor = processor

    @property
    def by_processor(self) -> float:
        """Answers by second of the processor."""
        return len(self.took) / self.processor


async def at_once(
    ask: collections.abc.Callable[[int], collections.abc.Awaitable[object]],
    clients: int,
    seconds: float,
    pids: list[int],
) -> Load:
    """Have ``clients`` ask, each as soon as it is answered, for ``seconds``. ``pids``: the processes that serve."""
    took: list[float] = []
    numbers = itertools.count()
    used = processor_seconds(pids)
    began = time.perf_counter()
    end = began + seconds

    async def client() -> None:
        while (started := time.perf_counter()) < end:
            await ask(next(numbers))
            took.append(time.perf_counter() - started)

    await asyncio.gather(*(client() for _ in range(clients)))
    return Load(took, time.perf_counter() - began, processor_seconds(pids) - used)
