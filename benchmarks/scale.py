"""What many containers cost who asks for few: pages, filtered lists and gets with 100, 10,000 and 100,000 in the database.

A deployment each, over one RabbitMQ and one PostgreSQL, asked by turns as one project of a hundred.
"""

import asyncio
import contextlib
import json

from benchmarks import asking, deployments, filling, table
from testbed import docker, images, postgresql, rabbitmq
from tests.deployment import Deployment

NEEDS = (docker, postgresql, rabbitmq)
SIZES = (100, 10_000, 100_000)
TURNS = 6
PROJECT = {"X-Project-Id": "p0"}


async def _measure(clouds: dict[int, Deployment], seconds: float) -> list[table.Row]:
    asks: dict[str, dict[int, str]] = {"page of 100": {}, "filtered list": {}, "get": {}}
    loads: dict[tuple[str, int], list[asking.Load]] = {}
    async with contextlib.AsyncExitStack() as stack:
        clients = {size: await stack.enter_async_context(asking.session(c.url, PROJECT)) for size, c in clouds.items()}
        for size, client in clients.items():
            page = json.loads(await asking.get(client, "/v1/containers?limit=100"))["containers"]
            assert len(page) == 100, len(page)
            asks["page of 100"][size] = "/v1/containers?limit=100"
            # as many in every database: ten
            asks["filtered list"][size] = "/v1/containers?status=Stopped&limit=10"
            asks["get"][size] = f"/v1/containers/{page[50]['uuid']}"
            assert len(json.loads(await asking.get(client, asks["filtered list"][size]))["containers"]) == 10
        for what, paths in asks.items():
            for _ in range(TURNS):
                for size, client in clients.items():
                    path = paths[size]
                    load = await asking.at_once(
                        lambda number, client=client, path=path: asking.get(client, path), 1, seconds / TURNS / 3, []
                    )
                    loads.setdefault((what, size), []).append(load)
    rows = []
    for what in asks:
        took = {size: [t * 1000 for load in loads[what, size] for t in load.took] for size in SIZES}
        for size in SIZES[1:]:
            mine, other = table.quantile(took[size], 0.99), table.quantile(took[SIZES[0]], 0.99)
            rows.append(table.Row(
                what=f"{what} of {size:,} containers of 100 projects, p99", unit="ms", ours=mine, beside=other,
                peer=f"with {SIZES[0]}", reach="<= 1.5",
                note=f"medians {table.quantile(took[size], 0.5):.3g}, {table.quantile(took[SIZES[0]], 0.5):.3g}",
            ))  # fmt: skip
    return rows


def measure(seconds: float) -> list[table.Row]:
    """Return the rows; ``seconds``: how long each question is asked, in all databases together."""
    with contextlib.ExitStack() as stack:
        clouds = {size: stack.enter_context(deployments.deployed(f"scale-{size}")) for size in SIZES}
        for size, cloud in clouds.items():
            deployments.bay(cloud)
            body = {"bay_uuid": "bench", "image": images.DEMO}
            assert cloud.request("POST", "/v1/containers?wait=60", body)[0] == 201
            # a hundred projects, but the smallest has one: it, too, has a hundred that are asked for
            asyncio.run(filling.fill(cloud.settings["database"]["connection"], size, 100 if size > 100 else 1))
        rows = asyncio.run(_measure(clouds, seconds))
        for cloud in clouds.values():
            asyncio.run(filling.empty(cloud.settings["database"]["connection"]))
            cloud.request("DELETE", "/v1/bays/bench?wait=60")
    return rows
