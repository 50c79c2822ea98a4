"""How late two hundred followers of ``GET /v1/events`` are told of a change, by the time that the log has of it."""

import asyncio
import datetime

import aiohttp
import msgspec

from benchmarks import asking, deployments, table
from magnum.objects import base as objects
from testbed import docker, postgresql, rabbitmq

NEEDS = (docker, postgresql, rabbitmq)
FOLLOWERS, CHANGES = 200, 10
"""Clients, and changes a second: each is told to each."""


async def _measure(url: str, seconds: float) -> tuple[list[float], int]:
    """Return (seconds between the log's time and each client's, for each event and client; how many changes there were)."""
    decode = msgspec.json.Decoder(objects.Event).decode
    lags: list[float] = []
    count = 0

    async def follow(client: aiohttp.ClientSession, ready: asyncio.Event) -> None:
        async with client.get("/v1/events", timeout=aiohttp.ClientTimeout(None)) as answer:
            async for line in answer.content:
                if line.startswith(b"data: "):
                    now = datetime.datetime.now(datetime.UTC)
                    event = decode(line[6:])
                    if event.step == "completed" or event.action == "create":
                        lags.append((now - event.at).total_seconds())
                elif line.startswith(b": following"):
                    ready.set()

    async with asking.session(url) as client:
        ready = [asyncio.Event() for _ in range(FOLLOWERS)]
        tasks = [asyncio.create_task(follow(client, each)) for each in ready]
        for each in ready:
            await each.wait()
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            await asking.send(client, "POST", "/v1/baymodels", {"name": f"n{count}"})
            count += 1
            await asyncio.sleep(1 / CHANGES)
        await asyncio.sleep(1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return lags, count


def measure(seconds: float) -> list[table.Row]:
    """Return the row; ``seconds``: how long there are changes."""
    with deployments.deployed("followers") as cloud:
        lags, count = asyncio.run(_measure(cloud.url, seconds))
    assert len(lags) >= FOLLOWERS * count, (len(lags), count)
    found = [lag * 1000 for lag in lags]
    return [table.Row(what=f"event to {FOLLOWERS} followers, {CHANGES} changes/s, p99", unit="ms",
                      ours=table.quantile(found, 0.99), reach="<= 250", note=f"{table.spread(found)}; {count} changes")]  # fmt: skip
