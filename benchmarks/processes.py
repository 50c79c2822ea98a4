"""Each program's start, and its memory when idle, after 10,000 requests and after 1,000 creates; one process more of each kind."""

import asyncio
import itertools
import json
import pathlib
import tempfile
import time

import psutil

from benchmarks import asking, containers, deployments, table
from testbed import base, docker, images, postgresql, rabbitmq
from tests.conftest import hosts
from tests.deployment import Deployment, until

NEEDS = (docker, postgresql, rabbitmq)
REQUESTS, CREATES = 10_000, 1_000
CLIENTS = 16
REACH = {"api": 90, "conductor": 90, "backend": 100}


def _memory(cloud: Deployment) -> dict[str, float]:
    """Return program → resident memory in MB (10^6 bytes)."""
    return {
        name if name in REACH else "backend": psutil.Process(process.pid).memory_info().rss / 1e6
        for name, process in cloud.processes.items()
    }


async def _requests(cloud: Deployment, uuid: str) -> None:
    paths = itertools.cycle(["/v1/containers?limit=100", f"/v1/containers/{uuid}", "/v1/bays", "/v1/baymodels"])
    async with asking.session(cloud.url) as client:
        numbers = iter(range(REQUESTS))

        async def some() -> None:
            for _ in numbers:
                await asking.get(client, next(paths))

        await asyncio.gather(*(some() for _ in range(CLIENTS)))


async def _creates(cloud: Deployment) -> None:
    async with asking.session(cloud.url) as client:
        numbers = iter(range(CREATES))

        async def some() -> None:
            for _ in numbers:
                body = {"bay_uuid": "bench", "image": images.DEMO, "command": ["true"]}
                made = json.loads(await asking.send(client, "POST", "/v1/containers?wait=60", body))
                await asking.send(client, "DELETE", f"/v1/containers/{made['uuid']}?wait=60", status=204)

        await asyncio.gather(*(some() for _ in range(containers.AT_ONCE)))


def _starts(cloud: Deployment) -> dict[str, float]:
    """Start one program after the other; return seconds until each does its work."""
    (host,) = cloud.hosts
    works = {
        "api": lambda: cloud.request("GET", "/")[0] == 200,
        "conductor": lambda: cloud.request("GET", "/v1/bays")[0] == 200,
        "backend": lambda: [h["status"] for h in cloud.request("GET", "/v1/hosts")[1]["hosts"]] == ["up"],
    }
    found = {}
    for name, works_now in works.items():
        began = time.monotonic()
        cloud.start(host if name == "backend" else name)
        until(works_now)
        found[name] = time.monotonic() - began
    return found


def _more(cloud: Deployment, uuid: str, seconds: float) -> list[table.Row]:
    """Return the rates of gets with one process of a kind beside two."""

    def rate(port: int) -> asking.Load:
        async def ask() -> asking.Load:
            async with asking.session(f"http://127.0.0.1:{port}") as client:
                path = f"/v1/containers/{uuid}"
                return await asking.at_once(lambda number: asking.get(client, path), CLIENTS, seconds, [])

        return asyncio.run(ask())

    rows = []
    with (
        cloud.another_api("one", {}) as (one, _),
        cloud.another_api("two", {}, "--workers", "2") as (two, _),
    ):
        loads = [(rate(two), rate(one)) for _ in range(3)]
        rows.append(table.rates("gets, two workers of the api", [a for a, _ in loads], [b for _, b in loads], "one"))
        loads = []
        for _ in range(3):
            alone = rate(two)
            with cloud.another_conductor():
                loads.append((rate(two), alone))
        rows.append(table.rates("gets, two conductors", [a for a, _ in loads], [b for _, b in loads], "one"))
    return rows


def measure(seconds: float) -> list[table.Row]:
    """Return the rows; ``seconds``: of each rate."""
    rows: list[table.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        cloud = Deployment(f"processes-{base.TAG}", pathlib.Path(folder), hosts()[:1])
        try:
            for name, took in _starts(cloud).items():
                rows.append(table.Row(what=f"magnum-{name}: start until it does its work", unit="s", ours=took))
            cloud.ready()
            deployments.bay(cloud)
            body = {"bay_uuid": "bench", "image": images.DEMO}
            status, made = cloud.request("POST", "/v1/containers?wait=60", body)
            assert status == 201, made
            for name, found in _memory(cloud).items():
                rows.append(table.Row(what=f"magnum-{name}: resident memory, idle", unit="MB", ours=found,
                                      reach=f"<= {REACH[name]}"))  # fmt: skip
            # twice: what grows each time is a leak, what grows once is what is kept
            for what, work in (
                (f"after {REQUESTS:,} requests", lambda: _requests(cloud, made["uuid"])),
                (f"after {REQUESTS:,} requests more", lambda: _requests(cloud, made["uuid"])),
                (f"and {CREATES:,} creates", lambda: _creates(cloud)),
                (f"and {CREATES:,} creates more", lambda: _creates(cloud)),
            ):
                asyncio.run(work())
                for name, found in _memory(cloud).items():
                    rows.append(table.Row(what=f"magnum-{name}: resident memory {what}", unit="MB", ours=found,
                                          reach=f"<= {REACH[name]}"))  # fmt: skip
            rows += _more(cloud, made["uuid"], max(seconds / 5, 2))
            cloud.request("DELETE", "/v1/bays/bench?wait=60")
        finally:
            cloud.stop()
    return rows
