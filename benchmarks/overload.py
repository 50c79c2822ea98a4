"""A flood beside a quiet tenant: ``python -m benchmarks.overload [--seconds N]``.

Three programs over the test bed's RabbitMQ and PostgreSQL, on two of its hosts. First the sustainable rate is found:
eight clients that each ask as soon as they are answered, creating and deleting bay models, listing and reading. Then
one tenant asks at four times that rate, whether it is answered or not, while another asks five times a second. Printed:
the rate and the answers by status, how long answers took, the quiet tenant's p99 beside that of before, the memory of each
program, and how long after the flood's end the first second is as before; then the same with each project held to half
of the rate (``[api] max_project_rate``).

Both tenants are processes of their own. The flood's gives way to everything else (``nice``): what it needs would be
another machine's.
"""

import argparse
import asyncio
import collections
import concurrent.futures
import itertools
import json
import multiprocessing
import os
import pathlib
import tempfile
import time

import aiohttp
import psutil

from benchmarks import table
from testbed import base, docker, postgresql, rabbitmq
from tests.conftest import hosts
from tests.deployment import Deployment

TIMES = 4
CLIENTS = 8
QUIET_EVERY = 0.2
SHARE = 0.5
GIVES_WAY = 10
SPAWN = multiprocessing.get_context("spawn")


class Asker:
    """Asks one thing after the other in the name of a tenant, and keeps how long each took and how it was answered."""

    def __init__(self, session: aiohttp.ClientSession, url: str, tenant: str) -> None:
        self._session, self._url = session, url
        self._headers = {"X-Project-Id": tenant}
        self._numbers = itertools.count()
        self.took: list[float] = []
        self.codes: collections.Counter[str] = collections.Counter()

    async def _ask(self, method: str, path: str, body: object = None) -> int:
        started = time.monotonic()
        try:
            async with self._session.request(method, self._url + path, json=body, headers=self._headers) as answer:
                await answer.read()
                status = answer.status
                if status in (429, 503):
                    assert answer.headers["Retry-After"]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.codes[type(error).__name__] += 1
            return 0
        self.took.append(time.monotonic() - started)
        self.codes[str(status)] += 1
        return status

    async def one(self) -> None:
        number = next(self._numbers)
        turn = number % 4
        if turn == 0:
            await self._ask("POST", "/v1/baymodels", {"name": f"n{number}"})
        elif turn == 1:
            await self._ask("DELETE", f"/v1/baymodels/n{number - 1}")
        elif turn == 2:
            await self._ask("GET", "/v1/baymodels?limit=20")
        else:
            await self._ask("GET", "/v1/quotas")


async def _closed(askers: list[Asker], seconds: float) -> float:
    """Have each ask as soon as it is answered; return the answers a second."""
    end = time.monotonic() + seconds

    async def run(asker: Asker) -> None:
        while time.monotonic() < end:
            await asker.one()

    started = time.monotonic()
    await asyncio.gather(*map(run, askers))
    return sum(sum(a.codes.values()) for a in askers) / (time.monotonic() - started)


async def _open(asker: Asker, rate: float, seconds: float) -> None:
    """Ask at a rate, whether it is answered or not."""
    tasks: set[asyncio.Task[None]] = set()
    started = time.monotonic()
    for number in itertools.count():
        at = number / rate
        if at > seconds:
            break
        await asyncio.sleep(max(started + at - time.monotonic(), 0))
        task = asyncio.create_task(asker.one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks)


def _tenant(name: str, url: str, rate: float, seconds: float, nice: int = 0) -> tuple[list[float], dict[str, int]]:
    """Be a tenant that asks at a rate, in a process of its own. Return how long each took, and answers by status."""
    os.nice(nice)

    async def run() -> Asker:
        async with _session() as session:
            asker = Asker(session, url, name)
            await _open(asker, rate, seconds)
            return asker

    asker = asyncio.run(run())
    return asker.took, dict(asker.codes)


def _memory(cloud: Deployment) -> dict[str, float]:
    return {name: round(psutil.Process(p.pid).memory_info().rss / 1e6, 1) for name, p in cloud.processes.items()}


async def _measure(cloud: Deployment, seconds: float) -> dict[str, object]:
    loop = asyncio.get_running_loop()
    async with _session() as session:
        rate = await _closed([Asker(session, cloud.url, f"warm{n}") for n in range(CLIENTS)], 10)
    with concurrent.futures.ProcessPoolExecutor(1, SPAWN) as pool:
        before, _ = await loop.run_in_executor(pool, _tenant, "quiet", cloud.url, 1 / QUIET_EVERY, seconds)
        found = {
            "sustainable_per_second": round(rate, 1), "asked_per_second": round(TIMES * rate, 1), **_times("quiet_before", before),
            "memory_idle_mb": _memory(cloud),
        }  # fmt: skip
        found["flood"] = await _flood(cloud, cloud.url, rate, seconds, pool, before)
        # the same, where an operator holds each project to a part of what the machine can do
        paced = {"api": {"max_project_rate": round(rate * SHARE, 1)}}
        with cloud.another_api("paced", paced) as (port, _):
            url = f"http://127.0.0.1:{port}"
            found["flood_held_to_a_rate"] = paced["api"] | await _flood(cloud, url, rate, seconds, pool, before)
    return found


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(70))


def _times(name: str, took: list[float]) -> dict[str, float]:
    shares = {"p50": 0.5, "p99": 0.99}
    return {f"{name}_{word}_ms": round(table.quantile(took, share) * 1e3, 1) for word, share in shares.items()}


async def _flood(
    cloud: Deployment, url: str, rate: float, seconds: float, pool: concurrent.futures.Executor, before: list[float]
) -> dict[str, object]:
    loop = asyncio.get_running_loop()
    with concurrent.futures.ProcessPoolExecutor(1, SPAWN) as another:
        most = _memory(cloud)
        flooding = loop.run_in_executor(another, _tenant, "flood", url, TIMES * rate, seconds, GIVES_WAY)
        calm = loop.run_in_executor(pool, _tenant, "quiet", url, 1 / QUIET_EVERY, seconds)
        while not flooding.done():
            await asyncio.sleep(1)
            most = {name: max(most[name], now) for name, now in _memory(cloud).items()}
        ended = time.monotonic()
        (took, codes), (quiet, answers) = await flooding, await calm
    async with _session() as session:
        bound = 2 * max(table.quantile(before, 0.99), 0.01)
        while True:
            after = Asker(session, url, "quiet")
            await _closed([after], 1)
            if after.took and table.quantile(after.took, 0.99) <= bound:
                break
        recovered = time.monotonic() - ended
    return {
        "answers": codes, **_times("answer", took), **_times("quiet", quiet), "quiet_answers": answers,
        "memory_most_mb": most, "recovered_after_s": round(recovered, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="how long the flood lasts")
    asked = parser.parse_args()
    for component in (docker, rabbitmq, postgresql):
        component.install()
        component.up(2)
    with tempfile.TemporaryDirectory() as folder:
        cloud = Deployment(
            f"overload-{base.TAG}", pathlib.Path(folder), hosts()[:2], {"api": {"max_project_requests": 50}}
        )
        cloud.start()
        try:
            cloud.ready()
            found = asyncio.run(_measure(cloud, asked.seconds))
        finally:
            cloud.stop()
    print(json.dumps(found, indent=1))
    (base.FOLDER.parent / "overload.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
